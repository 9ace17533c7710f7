//! `alcazar vm onboard`.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use alcazar_api::ca::v1::{self, administration_client::AdministrationClient};
use alcazar_identity::{SpiffeId, TrustDomain, pem_block};
use alcazar_service::files::write_atomic;

use super::OnboardArgs;
use super::folder::{self, Machine};
use crate::operator::OperatorError;
use crate::say;

pub(super) async fn onboard(args: &OnboardArgs) -> Result<ExitCode, OperatorError> {
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(&args.name));
    // Before the CA is told anything.
    is_free(&out)?;
    let mut client = AdministrationClient::new(args.ca.connect().await?);
    let hierarchy = client.get_hierarchy(v1::GetHierarchyRequest {}).await?.into_inner();
    let wrong = |what: String| OperatorError::Nothing(what);
    let trust_domain: TrustDomain =
        hierarchy.trust_domain.parse().map_err(|error| OperatorError::Answer(format!("its trust domain: {error}")))?;
    let root = hierarchy.root.ok_or_else(|| OperatorError::Answer("it has no root".to_owned()))?;
    let node = SpiffeId::node(&trust_domain, &hierarchy.cluster, &args.name)
        .map_err(|error| wrong(format!("{:?} cannot be the name of a machine: {error}", args.name)))?;
    let id = SpiffeId::workload(&trust_domain, &args.namespace, &args.service_account)
        .map_err(|error| wrong(format!("namespace and service account make no identity: {error}")))?;
    let registration = format!("{}.{}", args.namespace, args.name);
    let selectors = match args.selectors.as_slice() {
        // The proxy is another user than the agent, who has no right to give it a socket.
        [] if args.control_address.is_some() => vec![format!("unit:{}", folder::PROXY_UNIT)],
        [] => vec![format!("socket:{registration}")],
        given => given.to_vec(),
    };
    let machine = Machine {
        name: args.name.clone(),
        workload: format!("{}/{}", args.namespace, args.name),
        has_socket: selectors.iter().any(|selector| *selector == format!("socket:{registration}")),
        registration: registration.clone(),
        spiffe_id: id.to_string(),
        trust_domain: trust_domain.to_string(),
        cluster: hierarchy.cluster,
        ca_address: args.ca_address.clone(),
        proxy: args.control_address.clone().zip(args.outbound_user),
        root_pem: pem_block("CERTIFICATE", &root.certificate),
    };
    let message = v1::Registration {
        id: registration,
        node_id: node.to_string(),
        spiffe_id: machine.spiffe_id.clone(),
        selectors,
        ..v1::Registration::default()
    };
    // The CA replaces what has the same id: another machine's workload must not lose its identity by a name.
    let listed = client.list_registrations(v1::ListRegistrationsRequest::default()).await?.into_inner().registrations;
    let other = listed.iter().find(|there| there.id == message.id);
    if let Some(other) = other.filter(|other| other.node_id != message.node_id || other.spiffe_id != message.spiffe_id)
    {
        return Err(wrong(format!(
            "the registration {} is {} on {} already; choose another name, or remove it first: alcazar registration delete {}",
            other.id, other.spiffe_id, other.node_id, other.id
        )));
    }
    let ttl = i64::try_from(args.token_ttl.as_secs()).unwrap_or(i64::MAX);
    // A machine is no node of Kubernetes: the CA refuses the name of one.
    let wanted = v1::CreateJoinTokenRequest { node_id: node.to_string(), ttl, kubernetes_node: false };
    let token = client.create_join_token(wanted).await?.into_inner();
    client.put_registration(message).await?;
    write(&out, &machine, &token.token)?;
    Ok(say(&format!(
        "{} is registered as {} on the machine {}\n{} has all that it needs; its token is good for {}s, once.\nCarry it there, and run install.sh in it as root.\n",
        machine.workload,
        machine.spiffe_id,
        node,
        out.display(),
        ttl,
    )))
}

/// A folder of before has a token that is not to be lost, or one that was used.
fn is_free(out: &Path) -> Result<(), OperatorError> {
    match fs::symlink_metadata(out) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(out, &error)),
        Ok(_) => Err(OperatorError::File {
            path: out.to_owned(),
            what: "is there already; move it away, or name another folder with --out".to_owned(),
        }),
    }
}

fn write(out: &Path, machine: &Machine, token: &str) -> Result<(), OperatorError> {
    DirBuilder::new().mode(0o700).create(out).map_err(|error| failed(out, &error))?;
    let put = |name: &str, mode: u32, text: &str| {
        let path = out.join(name);
        write_atomic(&path, text.as_bytes(), mode).map_err(|error| failed(&path, &error))
    };
    for (name, mode, text) in folder::files(machine) {
        put(name, mode, &text)?;
    }
    put("token", 0o600, &format!("{token}\n"))
}

fn failed(path: &Path, error: &std::io::Error) -> OperatorError {
    OperatorError::File { path: path.to_owned(), what: error.to_string() }
}
