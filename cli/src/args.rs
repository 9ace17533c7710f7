//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use alcazar_identity::TrustDomain;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::{agent, app, bundle, ca, cert, ledger, registration, revocation, root, vm};

/// An identity for every workload, mutual TLS between them, and RBAC that explains itself.
#[derive(Debug, Parser)]
#[command(name = "alcazar", version, disable_help_subcommand = true)]
pub(crate) struct CommandLine {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a secured mesh on this machine: CA, node agent, control plane, and a proxy for each workload
    Up(UpArgs),
    /// Show the mesh that `alcazar up` runs: workloads, certificates, addresses
    Status(StatusArgs),
    /// Ask what a policy says
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Ask a certificate authority, or tell it something
    #[command(subcommand)]
    Ca(ca::Command),
    /// Ask what was issued, and verify that the record of it was never changed
    #[command(subcommand)]
    Ledger(Box<ledger::Command>),
    /// Take back a certificate, an identity or an intermediate: in force everywhere within seconds
    Revoke(revocation::RevokeArgs),
    /// Lift the hold of a certificate, or reinstate an identity
    Unrevoke(revocation::UnrevokeArgs),
    /// Show what is revoked
    Revocations(revocation::RevocationsArgs),
    /// Say whom the trust domain believes: its own roots, and other trust domains
    #[command(subcommand)]
    Bundle(bundle::Command),
    /// Make, use and exchange a root
    #[command(subcommand)]
    Root(root::Command),
    /// Ask the agent of this node
    #[command(subcommand)]
    Agent(agent::Command),
    /// Say in words what certificates are
    #[command(subcommand)]
    Cert(cert::Command),
    /// Say who gets which identity on which node
    #[command(subcommand)]
    Registration(Box<registration::Command>),
    /// Let machines join that are no Kubernetes nodes
    #[command(subcommand)]
    Vm(vm::Command),
    /// Print the version
    Version,
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Run one of the sample's applications; it reads PORT and http_proxy
    #[command(hide = true)]
    App {
        /// Which application
        name: app::Name,
    },
    /// Become a command that ends when its parent does
    #[command(hide = true)]
    Supervised {
        /// The process that must be the parent
        #[arg(long)]
        parent: u32,
        /// Where to note the process
        #[arg(long)]
        note: PathBuf,
        /// Whose command it is
        #[arg(long)]
        workload: String,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    /// The mesh to run; without it, the sample shop
    #[arg(long, value_name = "FILE")]
    pub(crate) mesh: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) data: DataDirArg,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    pub(crate) data: DataDirArg,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DataDirArg {
    /// Where the mesh keeps its state
    #[arg(long = "data-dir", value_name = "DIR", default_value = DEFAULT_DATA_DIR)]
    pub(crate) path: PathBuf,
}

/// Where a mesh is, for whoever does not say.
pub(crate) const DEFAULT_DATA_DIR: &str = ".alcazar";

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Say whether a request is allowed, and why; exit status 0 allowed, 1 denied, 2 error
    Explain(Box<ExplainArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A policy file, or a folder of them
    #[arg(long, value_name = "PATH")]
    pub(crate) policy: PathBuf,
    /// Who calls
    #[arg(long, value_name = "NAMESPACE/ACCOUNT")]
    pub(crate) from: Caller,
    /// Who is called
    #[arg(long, value_name = "SERVICE.NAMESPACE")]
    pub(crate) to: Called,
    /// The HTTP method; without it and --path, a TCP connection
    #[arg(long, requires = "path")]
    pub(crate) method: Option<String>,
    /// The path, as the caller sends it
    #[arg(long, requires = "method")]
    pub(crate) path: Option<String>,
    /// A request header; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", requires = "method")]
    pub(crate) headers: Vec<Header>,
    /// The service's port; without it, its first
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// The host that the caller asks for; without it, the service's name
    #[arg(long, requires = "method")]
    pub(crate) host: Option<String>,
    /// The caller's address
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub(crate) from_ip: IpAddr,
    /// A mesh file, for the labels, ports and accounts behind the service
    #[arg(long, value_name = "FILE")]
    pub(crate) mesh: Option<PathBuf>,
    /// The trust domain of both; without it, the mesh file's, else cluster.local
    #[arg(long, value_name = "NAME")]
    pub(crate) trust_domain: Option<TrustDomain>,
}

/// `NAMESPACE/ACCOUNT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) namespace: String,
    pub(crate) account: String,
}

impl FromStr for Caller {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, account)) if is_label(namespace) && is_label(account) => {
                Ok(Self { namespace: namespace.to_owned(), account: account.to_owned() })
            }
            _ => Err("write the caller as NAMESPACE/ACCOUNT, such as shop/frontend"),
        }
    }
}

/// `SERVICE.NAMESPACE`, or one of the longer names of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) service: String,
    pub(crate) namespace: String,
}

impl FromStr for Called {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split('.');
        match (parts.next(), parts.next(), parts.next()) {
            (Some(service), Some(namespace), None | Some("svc")) if is_label(service) && is_label(namespace) => {
                Ok(Self { service: service.to_owned(), namespace: namespace.to_owned() })
            }
            _ => Err("write the service as SERVICE.NAMESPACE, such as reviews.shop"),
        }
    }
}

/// `NAME=VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) value: String,
}

impl FromStr for Header {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once('=').ok_or("write a header as NAME=VALUE")?;
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err("this is not the name of an HTTP header");
        }
        Ok(Self { name: name.to_ascii_lowercase(), value: value.to_owned() })
    }
}

/// Whether a text can be the name of a Kubernetes object that ends up in a SPIFFE ID.
fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn callers_services_and_headers_are_parsed_or_refused() {
        let called = |text: &str| text.parse::<Called>().map(|c| (c.service, c.namespace));
        assert_eq!(called("reviews.shop"), Ok(("reviews".into(), "shop".into())));
        assert_eq!(called("reviews.shop.svc.cluster.local"), Ok(("reviews".into(), "shop".into())));
        for bad in ["", "reviews", "reviews.", ".shop", "reviews.shop.example", "re views.shop"] {
            assert!(called(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "shop", "shop/", "/frontend", "a/b/c", "spiffe://td/ns/a/sa/b"] {
            assert!(bad.parse::<Caller>().is_err(), "{bad:?}");
        }
        let header = |text: &str| text.parse::<Header>().map(|h| (h.name, h.value));
        assert_eq!(header("X-Token=a=b"), Ok(("x-token".into(), "a=b".into())));
        assert!(header("x-token").is_err() && header("a b=c").is_err() && header("=c").is_err());
    }

    #[test]
    fn a_supervised_command_keeps_its_own_flags() {
        let line = "alcazar supervised --parent 7 --note n --workload a/b -- python3 -m http.server --help";
        let parsed = CommandLine::try_parse_from(line.split(' ')).unwrap();
        let Command::Supervised { parent, command, .. } = parsed.command else { panic!("another command") };
        assert_eq!((parent, command.len()), (7, 4));
    }
}
