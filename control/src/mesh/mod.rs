//! `mesh.yaml`: what a person states, checked as a whole. Every error of the file is found in one reading.
//!
//! ```text
//!   SourceFile ──read──▶ Reading { policies, Mesh | YamlErrors } ──▶ World (addresses chosen, policy joined)
//! ```
//!
//! The reference of the file is `docs/mesh.md`.

mod fields;
mod forwards;
mod names;
mod service;
mod sockets;
mod ttl;
mod workload;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alcazar_identity::TrustDomain;
use alcazar_yaml::{Node, Reader, SourceFile, Span, YamlError, YamlErrors, documents};

use self::fields::{Located, required};
pub(crate) use self::service::Bound;
pub(crate) use self::sockets::claimed_ports;
pub(crate) use self::ttl::display as display_ttl;
pub(crate) use self::workload::Stated;
use crate::world::Forward;

/// A mesh file that is right by itself.
#[derive(Debug, Clone)]
pub(crate) struct Mesh {
    pub(crate) file: SourceFile,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) cluster: String,
    pub(crate) ttl: Option<Duration>,
    pub(crate) workloads: Vec<Stated>,
    pub(crate) services: Vec<Bound>,
    /// What works and is probably not meant.
    pub(crate) warnings: YamlErrors,
    trust_domain_span: Span,
    cluster_span: Span,
    forwards: Vec<Vec<Forward>>,
}

/// What a reading of the file found. Where policies are is known even if something else is wrong, so that the
/// errors of both can be shown together.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) policies: Option<Policies>,
    pub(crate) mesh: Result<Mesh, YamlErrors>,
}

/// The `policies` of a mesh file.
#[derive(Debug, Clone)]
pub(crate) struct Policies {
    /// As the file states it; relative to the file.
    pub(crate) path: PathBuf,
    pub(crate) span: Span,
}

impl Policies {
    /// The path that the file means.
    pub(crate) fn resolve(&self, mesh: &Path) -> PathBuf {
        match mesh.parent() {
            Some(folder) => folder.join(&self.path),
            None => self.path.clone(),
        }
    }
}

impl Mesh {
    /// The forwards of a workload, by its index.
    pub(crate) fn forwards(&self, index: usize) -> &[Forward] {
        self.forwards.get(index).map_or(&[], Vec::as_slice)
    }

    /// An error at the trust domain or the cluster, if they are not these: a mesh that runs cannot change them.
    pub(crate) fn moved_from(&self, trust_domain: &TrustDomain, cluster: &str) -> Option<YamlError> {
        let help = "restart to run another mesh; until then everything stays as it was";
        let moved = |what: &str, from: &str, to: &str, span: &Span| {
            let message = format!("the {what} of a running mesh cannot change from `{from}` to `{to}`");
            YamlError::new(&self.file, span.clone(), message).with_help(help)
        };
        if *trust_domain != self.trust_domain {
            let to = self.trust_domain.as_str();
            return Some(moved("trust domain", trust_domain.as_str(), to, &self.trust_domain_span));
        }
        (cluster != self.cluster).then(|| moved("cluster", cluster, &self.cluster, &self.cluster_span))
    }
}

/// Reads a mesh file.
pub(crate) fn read(file: &SourceFile) -> Reading {
    let refused = |error: YamlError| Reading { policies: None, mesh: Err(error.into()) };
    let documents = match documents(file) {
        Ok(documents) => documents,
        Err(error) => return refused(error),
    };
    match documents.as_slice() {
        [] => refused(YamlError::whole_file(file, "the mesh file is empty").with_help("it needs `workloads`")),
        [document] => read_document(file, document),
        [_, second, ..] => refused(
            YamlError::new(file, second.span.clone(), "a mesh file holds one document")
                .with_label("another begins here")
                .with_help("policies have files of their own: see `policies`"),
        ),
    }
}

fn read_document(file: &SourceFile, node: &Node) -> Reading {
    let mut reader = Reader::new(file);
    let mut warnings = YamlErrors::default();
    let Some(mut fields) = reader.mapping(node, "mesh.yaml") else {
        return Reading { policies: None, mesh: Err(reader.into_errors()) };
    };
    let trust_domain = fields.take("trustDomain").map(|node| trust_domain(&mut reader, node));
    let cluster = fields.take("cluster").map(|node| names::label(&mut reader, node, "cluster"));
    let policies = fields.take("policies").and_then(|node| policies(&mut reader, node));
    let ttl = fields.take("certificates").and_then(|node| certificates(&mut reader, node));
    // A wrong trust domain is noted already; the rest of the file is read as if it were the default.
    let trust_domain = match trust_domain {
        Some(stated) => stated,
        None => default_trust_domain(&mut reader),
    };
    let workloads = required(&mut reader, &mut fields, "workloads", "the mesh file")
        .zip(trust_domain.as_ref())
        .map(|(node, trust_domain)| workloads(&mut reader, node, &trust_domain.value))
        .unwrap_or_default();
    sockets::check(&mut reader, &workloads);
    let services = match fields.take("services") {
        // Where a workload was refused, a service that leads to it is not to blame.
        Some(node) if reader.error_count() > 0 => service::read(&mut reader, node, &[], &mut warnings),
        Some(node) => service::read(&mut reader, node, &workloads, &mut warnings),
        None => service::defaults(&mut reader, &workloads),
    };
    // A service that was refused is missing: forwards to it are not to blame.
    let forwards = match reader.error_count() {
        0 => workloads.iter().map(|workload| forwards::resolve(&mut reader, workload, &services)).collect(),
        _ => Vec::new(),
    };
    warn_of_open_listeners(file, &workloads, &mut warnings);
    if policies.is_none() {
        let warning = YamlError::whole_file(file, "no `policies`: every workload may call every other");
        warnings.push(warning.with_help("name a folder of RBAC YAML: `policies: ./policies`"));
    }
    reader.finish(fields);

    let errors = in_order(reader.into_errors());
    let mesh = match (trust_domain, errors.is_empty()) {
        (Some(trust_domain), true) => {
            let cluster = cluster.flatten();
            Ok(Mesh {
                file: file.clone(),
                trust_domain: trust_domain.value,
                trust_domain_span: trust_domain.span,
                cluster_span: cluster.as_ref().map_or(0..0, |cluster| cluster.span.clone()),
                cluster: cluster.map_or_else(|| DEFAULT_CLUSTER.to_owned(), |cluster| cluster.text),
                ttl,
                workloads,
                services,
                warnings,
                forwards,
            })
        }
        _ => Err(errors),
    };
    Reading { policies, mesh }
}

/// As a person reads the file: from the top.
fn in_order(errors: YamlErrors) -> YamlErrors {
    let mut sorted: Vec<YamlError> = errors.into_iter().collect();
    sorted.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    let mut errors = YamlErrors::default();
    errors.extend(sorted);
    errors
}

fn trust_domain(reader: &mut Reader<'_>, node: &Node) -> Option<Located<TrustDomain>> {
    let text = reader.text(node, "trustDomain")?;
    match text.text.parse::<TrustDomain>() {
        Ok(trust_domain) => Some(Located::new(trust_domain, &text.span)),
        Err(error) => {
            let plain = text.text.trim_start_matches("spiffe://").to_ascii_lowercase();
            let help = plain.parse::<TrustDomain>().ok().map(|meant| format!("did you mean `{meant}`?"));
            reader.push(YamlError::new(reader.file(), text.span, error.to_string()).with_help_if(help));
            None
        }
    }
}

fn default_trust_domain(reader: &mut Reader<'_>) -> Option<Located<TrustDomain>> {
    match DEFAULT_TRUST_DOMAIN.parse() {
        Ok(trust_domain) => Some(Located::new(trust_domain, &(0..0))),
        // Not reached: a test parses the constant.
        Err(error) => {
            reader.error(&(0..0), format!("{error}"));
            None
        }
    }
}

fn policies(reader: &mut Reader<'_>, node: &Node) -> Option<Policies> {
    let text = reader.text(node, "policies")?;
    if text.text.is_empty() || text.text.contains('\0') {
        reader.error(&text.span, "`policies` must be the path of a folder or file");
        return None;
    }
    Some(Policies { path: PathBuf::from(text.text), span: text.span })
}

fn certificates(reader: &mut Reader<'_>, node: &Node) -> Option<Duration> {
    let mut fields = reader.mapping(node, "certificates")?;
    let ttl = fields.take("ttl").and_then(|node| certificate_ttl(reader, node));
    reader.finish(fields);
    ttl
}

fn certificate_ttl(reader: &mut Reader<'_>, node: &Node) -> Option<Duration> {
    let text = reader.text(node, "ttl")?;
    match ttl::parse(&text.text) {
        Ok(ttl) if (SHORTEST_TTL..=LONGEST_TTL).contains(&ttl) => Some(ttl),
        Ok(_) => {
            let (shortest, longest) = (ttl::display(SHORTEST_TTL), ttl::display(LONGEST_TTL));
            let message = format!("certificates cannot live for {}", text.text);
            reader.error_with_help(&text.span, message, format!("their life is from {shortest} to {longest}"));
            None
        }
        Err(error) => {
            reader.error_with_help(
                &text.span,
                error.to_string(),
                "write hours, minutes and seconds: `1h`, `90m`, `45s`",
            );
            None
        }
    }
}

fn workloads(reader: &mut Reader<'_>, node: &Node, trust_domain: &TrustDomain) -> Vec<Stated> {
    let mut names: BTreeMap<String, Span> = BTreeMap::new();
    let mut workloads = Vec::new();
    for item in reader.list(node, "workloads").unwrap_or_default() {
        let Some(workload) = workload::read(reader, item, trust_domain) else { continue };
        if let Some(first) = names.get(&workload.key()) {
            let message = format!("the workload {} stands twice", workload.key());
            let error = YamlError::new(reader.file(), workload.name.span, message);
            reader.push(error.with_label("again here").with_also(first.clone(), "first here"));
            continue;
        }
        names.insert(workload.key(), workload.name.span.clone());
        workloads.push(workload);
    }
    workloads
}

/// Whoever reaches a workload's outbound proxy speaks with that workload's identity.
fn warn_of_open_listeners(file: &SourceFile, workloads: &[Stated], warnings: &mut YamlErrors) {
    for workload in workloads {
        let listeners = workload.outbound.iter().chain(workload.forwards.iter().map(|forward| &forward.listen));
        for listener in listeners.filter(|listener| !listener.value.ip().is_loopback()) {
            let message = format!("whoever can connect to {} speaks as {}", listener.value, workload.key());
            let warning = YamlError::new(file, listener.span.clone(), message);
            warnings.push(warning.with_help("listen on 127.0.0.1, unless the network around it is the workload's own"));
        }
    }
}

const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_CLUSTER: &str = "local";
/// Below this, renewals would crowd out everything else.
const SHORTEST_TTL: Duration = Duration::from_secs(10);
/// What the CA allows at most.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 3600);
