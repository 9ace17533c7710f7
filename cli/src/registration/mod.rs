//! `alcazar registration`: who gets which identity on which node, while the CA runs.

use std::process::ExitCode;
use std::time::Duration;

use alcazar_api::MAX_MESSAGE;
use alcazar_api::ca::v1::{self, administration_client::AdministrationClient};
use alcazar_identity::{SpiffeId, TrustDomain};
use alcazar_service::duration;

use crate::operator::{self, CaArg, OperatorError};
use crate::say;
use crate::table::Table;

/// What is asked, or changed.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List every registration
    List(ListArgs),
    /// Put one in, or replace the one of this id
    Put(PutArgs),
    /// Remove one: its workload gets no certificate any more
    Delete {
        /// Which
        id: String,
        #[command(flatten)]
        ca: CaArg,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ListArgs {
    /// Also those that nobody has put in, which follow from the pods of the cluster
    #[arg(long)]
    pods: bool,
    /// Of this node alone: a name in the CA's cluster, or a whole SPIFFE ID
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    #[command(flatten)]
    ca: CaArg,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PutArgs {
    /// Its name, by convention NAMESPACE.WORKLOAD
    id: String,
    /// The node: a name in the CA's cluster, or a whole SPIFFE ID
    #[arg(long, value_name = "NODE")]
    node: String,
    /// The identity: NAMESPACE/ACCOUNT, or a whole SPIFFE ID
    #[arg(long, value_name = "IDENTITY")]
    identity: String,
    /// How the node's agent knows the workload, such as socket:shop.web or uid:1000; may be repeated, all must hold
    #[arg(long = "selector", value_name = "SELECTOR", required = true)]
    selectors: Vec<String>,
    /// The life of its certificates; without it, the profile's
    #[arg(long, value_name = "TIME", value_parser = duration::parse_positive)]
    ttl: Option<Duration>,
    /// The profile of its certificates; without it, `default`
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    /// A DNS name in its certificates, which the profile must allow; may be repeated
    #[arg(long = "dns-name", value_name = "NAME")]
    dns_names: Vec<String>,
    #[command(flatten)]
    ca: CaArg,
}

pub(crate) fn run(command: &Command) -> ExitCode {
    match command {
        Command::List(args) => operator::run(list(args)),
        Command::Put(args) => operator::run(put(args)),
        Command::Delete { id, ca } => operator::run(delete(id, ca)),
    }
}

async fn list(args: &ListArgs) -> Result<ExitCode, OperatorError> {
    let mut client = AdministrationClient::new(args.ca.connect().await?).max_decoding_message_size(MAX_MESSAGE);
    let node_id = match &args.node {
        Some(text) => {
            let hierarchy = client.get_hierarchy(v1::GetHierarchyRequest {}).await?.into_inner();
            node(text, &trust_domain(&hierarchy)?, &hierarchy.cluster)?.to_string()
        }
        None => String::new(),
    };
    let request = v1::ListRegistrationsRequest { pods: args.pods, node_id };
    let v1::ListRegistrationsResponse { registrations, of_pods } =
        client.list_registrations(request).await?.into_inner();
    Ok(say(&listing(registrations, of_pods, args.pods)))
}

/// What is listed, and what there is beside it.
fn listing(listed: Vec<v1::Registration>, of_pods: Option<u64>, with_pods: bool) -> String {
    let more = match of_pods.filter(|number| *number > 0 && !with_pods) {
        Some(number) => {
            format!("{number} more follow from the pods of the cluster and come and go with them: --pods lists them\n")
        }
        None => String::new(),
    };
    if listed.is_empty() {
        return format!("no workload is registered\n{more}");
    }
    let mut table = Table::new(["ID", "NODE", "IDENTITY", "SELECTORS", "LIFE", "PROFILE", "DNS NAMES"]);
    for registration in listed {
        let life = match u64::try_from(registration.ttl) {
            Ok(seconds @ 1..) => crate::span::of(Duration::from_secs(seconds)),
            _ => "default".to_owned(),
        };
        table.row([
            registration.id,
            registration.node_id,
            registration.spiffe_id,
            registration.selectors.join(" "),
            life,
            if registration.profile.is_empty() { "default".to_owned() } else { registration.profile },
            registration.dns_names.join(" "),
        ]);
    }
    format!("{table}{more}")
}

async fn put(args: &PutArgs) -> Result<ExitCode, OperatorError> {
    let mut client = AdministrationClient::new(args.ca.connect().await?);
    let hierarchy = client.get_hierarchy(v1::GetHierarchyRequest {}).await?.into_inner();
    let trust_domain = trust_domain(&hierarchy)?;
    let node = node(&args.node, &trust_domain, &hierarchy.cluster)?;
    let id = identity(&args.identity, &trust_domain)?;
    let message = v1::Registration {
        id: args.id.clone(),
        node_id: node.to_string(),
        spiffe_id: id.to_string(),
        selectors: args.selectors.clone(),
        ttl: args.ttl.map_or(0, |ttl| i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)),
        profile: args.profile.clone().unwrap_or_default(),
        dns_names: args.dns_names.clone(),
    };
    client.put_registration(message).await?;
    Ok(say(&format!("{}: {id} on {node}\n", args.id)))
}

async fn delete(id: &str, ca: &CaArg) -> Result<ExitCode, OperatorError> {
    let mut client = AdministrationClient::new(ca.connect().await?);
    client.delete_registration(v1::DeleteRegistrationRequest { id: id.to_owned() }).await?;
    Ok(say(&format!(
        "{id} is registered no more; revoke its identity where what it has must not be believed until it ends\n"
    )))
}

fn trust_domain(hierarchy: &v1::Hierarchy) -> Result<TrustDomain, OperatorError> {
    hierarchy.trust_domain.parse().map_err(|error| OperatorError::Answer(format!("its trust domain: {error}")))
}

/// A node's name in the CA's cluster, or its whole SPIFFE ID.
fn node(text: &str, trust_domain: &TrustDomain, cluster: &str) -> Result<SpiffeId, OperatorError> {
    let id = if text.starts_with("spiffe://") { text.parse() } else { SpiffeId::node(trust_domain, cluster, text) };
    id.map_err(|error| OperatorError::Nothing(format!("{text:?} names no node: {error}")))
}

/// `<namespace>/<service account>`, or a whole SPIFFE ID.
fn identity(text: &str, trust_domain: &TrustDomain) -> Result<SpiffeId, OperatorError> {
    let wrong = |why: String| OperatorError::Nothing(format!("{text:?} is no identity: {why}"));
    if text.starts_with("spiffe://") {
        return text.parse().map_err(|error| wrong(format!("{error}")));
    }
    let (namespace, account) = text
        .split_once('/')
        .ok_or_else(|| wrong("write <namespace>/<service account>, or a whole SPIFFE ID".into()))?;
    SpiffeId::workload(trust_domain, namespace, account).map_err(|error| wrong(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_follows_from_pods_is_listed_when_asked_for_and_never_kept_quiet_about() {
        let web = || v1::Registration { id: "k8s.shop.web".into(), ..v1::Registration::default() };
        assert_eq!(listing(Vec::new(), None, false), "no workload is registered\n");
        assert_eq!(listing(Vec::new(), Some(0), false), "no workload is registered\n");
        let told = listing(Vec::new(), Some(7), false);
        assert!(told.starts_with("no workload is registered\n7 more follow from the pods"), "{told}");
        let told = listing(vec![web()], Some(7), false);
        assert!(told.contains("k8s.shop.web") && told.ends_with("--pods lists them\n"), "{told}");
        let told = listing(vec![web()], Some(1), true);
        assert!(told.contains("k8s.shop.web") && !told.contains("more follow"), "{told}");
    }

    #[test]
    fn short_names_are_those_of_the_ca_and_whole_ones_stand_for_themselves() {
        let td: TrustDomain = "td.example".parse().unwrap();
        let told = |id: Result<SpiffeId, OperatorError>| id.map_or_else(|error| error.to_string(), |id| id.to_string());
        assert_eq!(told(node("vm-1", &td, "east")), "spiffe://td.example/node/east/vm-1");
        assert_eq!(told(node("spiffe://a/node/b/c", &td, "east")), "spiffe://a/node/b/c");
        assert_eq!(told(identity("shop/web", &td)), "spiffe://td.example/ns/shop/sa/web");
        assert_eq!(told(identity("spiffe://a/b", &td)), "spiffe://a/b");
        assert!(told(identity("web", &td)).contains("write <namespace>/<service account>"));
        assert!(told(node("a/b", &td, "east")).starts_with("\"a/b\" names no node"));
    }
}
