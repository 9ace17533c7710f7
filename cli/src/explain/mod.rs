//! `alcazar policy explain`: one request, the verdict, and why, in the words of the proxies' log.
//!
//! ```text
//!   policy files ─▶ Policy ─┐
//!   --to, --mesh ─▶ Target ─┼─▶ WorkloadPolicy ─▶ Compiled ─▶ explain(request) ─▶ words, exit status
//!   --from, --method, … ────┘
//! ```

mod target;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use alcazar_control::ReadError;
use alcazar_identity::{ParseSpiffeIdError, SpiffeId};
use alcazar_policy::{
    Compiled, EncodedSlash, Explanation, Host, Http, NormalizedPath, Policy, Protocol, RefusedHost, RefusedPath,
    Request, Settings, Verdict, Workload,
};
use alcazar_service::process::chain;
use alcazar_service::telemetry::colour_wanted;
use alcazar_yaml::{Style, YamlErrors};

use self::target::{FindTargetError, Target};
use crate::args::ExplainArgs;

/// Runs the command: 0 allowed, 1 denied, 2 error.
pub(crate) fn run(args: &ExplainArgs) -> ExitCode {
    let answers = match explain(args) {
        Ok(answers) => answers,
        Err(error) => {
            eprint!("{}", error.render());
            return ExitCode::from(2);
        }
    };
    let mut text = String::new();
    for answer in &answers {
        let name = if answers.len() > 1 { format!("{}: ", answer.workload) } else { String::new() };
        text += &format!("{name}{}\n", answer.explanation);
    }
    if io::stdout().write_all(text.as_bytes()).is_err() {
        return ExitCode::from(2);
    }
    let all_allowed = answers.iter().all(|answer| answer.explanation.verdict == Verdict::Allow);
    if all_allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The answer for one of the workloads behind the service.
struct Answer {
    workload: String,
    explanation: Explanation,
}

fn explain(args: &ExplainArgs) -> Result<Vec<Answer>, ExplainError> {
    let files = alcazar_control::read_policies(&args.policy)?;
    if files.is_empty() {
        return Err(ExplainError::NoPolicy { path: args.policy.clone() });
    }
    let policy = Policy::from_files(&files, &Settings::default())?;
    let targets = target::find(args, &files)?;
    let answer = |target: &Target| answer(args, &policy, target);
    targets.iter().map(answer).collect()
}

fn answer(args: &ExplainArgs, policy: &Policy, target: &Target) -> Result<Answer, ExplainError> {
    let compiled = Compiled::new(policy.for_workload(&Workload {
        name: &target.name,
        namespace: &target.namespace,
        service_account: &target.service_account,
        labels: &target.labels,
        services: &target.services,
        trust_domain: target.trust_domain.as_str(),
        trust_domain_aliases: &[],
    }));
    let source = SpiffeId::workload(&target.trust_domain, &args.from.namespace, &args.from.account)?;
    let authority = args.host.clone().unwrap_or_else(|| format!("{}.{}", args.to.service, args.to.namespace));
    let host = Host::normalize(&authority)?;
    let headers: Vec<_> = args.headers.iter().map(|header| (&*header.name, &*header.value)).collect();
    let path = NormalizedPath::parse(args.path.as_deref().unwrap_or("/"), EncodedSlash::default())?;
    let protocol = match &args.method {
        Some(method) if target.is_http => {
            Protocol::Http(Http { host: Some(&host), path: &path, method, headers: &headers })
        }
        Some(_) => return Err(ExplainError::NotHttp { port: target.port }),
        None if target.is_http => return Err(ExplainError::NoRequest { port: target.port }),
        None => Protocol::Tcp,
    };
    let explanation = compiled.explain(&Request {
        source: Some(&source),
        trust_domain: &target.trust_domain,
        source_ip: args.from_ip,
        destination: SocketAddr::new(target.address, target.port),
        sni: None,
        protocol,
    });
    Ok(Answer { workload: format!("{}/{}", target.namespace, target.name), explanation })
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
enum ExplainError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("there is no .yaml or .yml file in {}; without RBAC documents everything is allowed", path.display())]
    NoPolicy { path: PathBuf },
    #[error("the policy has errors")]
    Policy(#[from] YamlErrors),
    #[error(transparent)]
    Target(#[from] FindTargetError),
    #[error("the caller has no SPIFFE ID")]
    Caller(#[from] ParseSpiffeIdError),
    #[error("a proxy would refuse the host with 400")]
    Host(#[from] RefusedHost),
    #[error("a proxy would refuse the path with 400")]
    Path(#[from] RefusedPath),
    #[error("port {port} speaks TCP: it is decided per connection; leave out --method, --path and --header")]
    NotHttp { port: u16 },
    #[error("port {port} speaks HTTP: it is decided per request; say --method and --path")]
    NoRequest { port: u16 },
}

impl ExplainError {
    /// As it is printed: what a person wrote, with carets.
    fn render(&self) -> String {
        let style = if colour_wanted(&io::stderr()) { Style::Colour } else { Style::Plain };
        match self {
            Self::Policy(errors) => alcazar_yaml::render_all(errors, style),
            Self::Target(FindTargetError::Mesh(errors)) => alcazar_yaml::render_all(errors, style),
            other => format!("alcazar: {}\n", chain(other)),
        }
    }
}
