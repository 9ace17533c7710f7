use std::path::PathBuf;

use alcazar_api::ca::v1::{self, administration_client::AdministrationClient};
use alcazar_identity::SpiffeId;
use futures::{StreamExt, TryStreamExt, stream};
use tonic::transport::Endpoint;

use crate::connect::uid;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The CA's administration socket.
    #[arg(long)]
    socket: PathBuf,
    /// The node.
    #[arg(long)]
    node: String,
    /// How many workloads.
    #[arg(long)]
    count: u32,
    /// How long the certificates of these live, in seconds; 0: as the CA decides.
    #[arg(long, default_value_t = 0)]
    ttl: i64,
}

/// Registers `count` workloads, the first of them anew where they are there; a join token.
pub(crate) async fn register(options: &Options) -> anyhow::Result<String> {
    let channel = Endpoint::from_shared(format!("unix:{}", options.socket.display()))?.connect().await?;
    let mut operator = AdministrationClient::new(channel);
    let hierarchy = operator.get_hierarchy(v1::GetHierarchyRequest {}).await?.into_inner();
    let trust_domain = hierarchy.trust_domain.parse()?;
    let node = SpiffeId::node(&trust_domain, &hierarchy.cluster, &options.node)?;
    stream::iter(0..options.count)
        .map(|number| {
            let (mut operator, node) = (operator.clone(), node.to_string());
            let spiffe_id = SpiffeId::workload(&trust_domain, "bench", &format!("w{number}"));
            async move {
                let registration = v1::Registration {
                    id: format!("bench.w{number}"),
                    node_id: node,
                    spiffe_id: spiffe_id?.to_string(),
                    selectors: vec![format!("uid:{}", uid(number))],
                    ttl: options.ttl,
                    ..v1::Registration::default()
                };
                anyhow::Ok(operator.put_registration(registration).await?)
            }
        })
        .buffer_unordered(256)
        .try_collect::<Vec<_>>()
        .await?;
    let request = v1::CreateJoinTokenRequest { node_id: node.to_string(), ttl: 0, kubernetes_node: false };
    Ok(operator.create_join_token(request).await?.into_inner().token)
}
