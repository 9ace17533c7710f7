//! Documents as written: their kinds, their names, and what each says, already in terms of clauses.

use alcazar_yaml::{Mapping, Node, Reader, SourceFile, Span, Value, YamlError, YamlErrors, documents, suggest};

use crate::activation::{ConfigSpec, read_config};
use crate::bindings::{BindingSpec, read_binding};
use crate::roles::{RuleSpec, read_role};

/// Every document that could be read, in the order of the files.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    pub(crate) roles: Vec<Document<Vec<RuleSpec>>>,
    pub(crate) bindings: Vec<Document<BindingSpec>>,
    pub(crate) configs: Vec<Document<ConfigSpec>>,
    /// Something could not be read that may have said that RBAC is on.
    pub(crate) may_miss_config: bool,
}

/// One document: where it stands, and what it says.
#[derive(Debug, Clone)]
pub(crate) struct Document<T> {
    pub(crate) place: Place,
    pub(crate) spec: T,
}

/// The name of a document, and where that stands.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) file: SourceFile,
    pub(crate) span: Span,
}

/// The kinds that this version understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    ServiceRole,
    ServiceRoleBinding,
    ClusterRbacConfig,
    RbacConfig,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ServiceRole => "ServiceRole",
            Self::ServiceRoleBinding => "ServiceRoleBinding",
            Self::ClusterRbacConfig => "ClusterRbacConfig",
            Self::RbacConfig => "RbacConfig",
        }
    }

    pub(crate) fn is_config(self) -> bool {
        matches!(self, Self::ClusterRbacConfig | Self::RbacConfig)
    }
}

const KINDS: [Kind; 4] = [Kind::ServiceRole, Kind::ServiceRoleBinding, Kind::ClusterRbacConfig, Kind::RbacConfig];
const API_VERSION: &str = "rbac.istio.io/v1alpha1";
/// Kinds that bear on who may call what: skipping one would change what the others mean.
const LATER_KINDS: [&str; 5] =
    ["AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication", "Policy", "MeshPolicy"];

impl Documents {
    /// Reads what can be read; the errors say what could not.
    pub(crate) fn read(files: &[SourceFile]) -> (Self, YamlErrors) {
        let mut all = Self::default();
        let mut errors = YamlErrors::default();
        for file in files {
            match documents(file) {
                Ok(nodes) => {
                    let mut reader = Reader::new(file);
                    nodes.iter().for_each(|node| all.read_document(&mut reader, node));
                    errors.extend(reader.into_errors());
                }
                Err(error) => {
                    all.may_miss_config = true;
                    errors.push(error);
                }
            }
        }
        (all, errors)
    }

    fn read_document(&mut self, reader: &mut Reader<'_>, node: &Node) {
        let errors_before = reader.error_count();
        // What it was cannot be told: it may have said that RBAC is on, or have denied something.
        let Some(mut fields) = reader.mapping(node, "document") else { return self.may_miss_config = true };
        let Some(kind) = read_kind(reader, &mut fields) else { return self.may_miss_config = true };
        let Some(kind) = kind else { return self.read_list(reader, fields, errors_before) };
        let metadata = fields.take("metadata");
        let spec = fields.take("spec");
        // What an API server adds.
        fields.take("status");
        reader.finish(fields);
        let place = read_place(reader, kind, node, metadata);
        match spec {
            Some(spec) => self.read_spec(reader, kind, spec, place, errors_before),
            None => reader.error_with_help(&node.span, "`spec` is missing", "add `spec:`"),
        }
        self.may_miss_config |= kind.is_config() && reader.error_count() != errors_before;
    }

    /// Keeps what is right through and through: half a document could mean something else.
    fn read_spec(
        &mut self,
        reader: &mut Reader<'_>,
        kind: Kind,
        spec: &Node,
        place: Option<Place>,
        errors_before: usize,
    ) {
        // Read even where the name is wrong, so that all errors are told at once.
        match kind {
            Kind::ServiceRole => {
                let role = read_role(reader, spec);
                self.roles.extend(whole(reader, place, role, errors_before));
            }
            Kind::ServiceRoleBinding => {
                let binding = read_binding(reader, spec);
                self.bindings.extend(whole(reader, place, binding, errors_before));
            }
            Kind::ClusterRbacConfig | Kind::RbacConfig => {
                let config = read_config(reader, spec);
                self.configs.extend(whole(reader, place, config, errors_before));
            }
        }
    }

    /// `kind: List`, as `kubectl get -o yaml` writes it.
    fn read_list(&mut self, reader: &mut Reader<'_>, mut fields: Mapping<'_>, errors_before: usize) {
        let items = fields.take("items");
        fields.take("metadata");
        reader.finish(fields);
        let items = items.and_then(|node| reader.list(node, "items")).unwrap_or_default();
        self.may_miss_config |= reader.error_count() != errors_before;
        for item in items {
            // A list in a list is nothing that a tool writes.
            let is_list = matches!(&item.value, Value::Mapping(entries)
                if entries.iter().any(|(key, value)| is_text(key, "kind") && is_text(value, "List")));
            if is_list {
                reader.error(&item.span, "a list cannot be an item of a list");
                self.may_miss_config = true;
            } else {
                self.read_document(reader, item);
            }
        }
    }
}

fn whole<T>(reader: &Reader<'_>, place: Option<Place>, spec: Option<T>, errors_before: usize) -> Option<Document<T>> {
    let document = Document { place: place?, spec: spec? };
    (reader.error_count() == errors_before).then_some(document)
}

fn is_text(node: &Node, text: &str) -> bool {
    matches!(&node.value, Value::Scalar(found) if found == text)
}

/// The kind of a document; `Some(None)` for a list of documents.
fn read_kind(reader: &mut Reader<'_>, fields: &mut Mapping<'_>) -> Option<Option<Kind>> {
    let start = fields.span().clone();
    let (version, kind) = (fields.take("apiVersion"), fields.take("kind"));
    let Some(kind) = kind else {
        reader.error_with_help(&start, "`kind` is missing", "every document starts with `apiVersion:` and `kind:`");
        return None;
    };
    let kind = reader.text(kind, "kind")?;
    if kind.text == "List" {
        return Some(None);
    }
    if LATER_KINDS.contains(&kind.text.as_str()) {
        let error =
            YamlError::new(reader.file(), kind.span, format!("{} is not supported yet by this version", kind.text));
        let help = "use ServiceRole and ServiceRoleBinding, or move the document elsewhere: none is skipped silently";
        reader.push(error.with_label("cannot be enforced").with_help(help));
        return None;
    }
    let names = KINDS.map(Kind::name);
    let Some(known) = KINDS.into_iter().find(|known| known.name() == kind.text) else {
        let error =
            YamlError::new(reader.file(), kind.span, format!("`{}` is not a kind of policy document", kind.text));
        reader.push(error.with_help_if(suggest(&kind.text, names)));
        return None;
    };
    match version {
        None => {
            reader.error_with_help(&start, "`apiVersion` is missing", format!("add `apiVersion: {API_VERSION}`"));
            return None;
        }
        Some(version) => {
            let version = reader.text(version, "apiVersion")?;
            if version.text != API_VERSION {
                let message = format!("a {} is of `{API_VERSION}`, not of `{}`", kind.text, version.text);
                reader.error_with_help(&version.span, message, format!("write `apiVersion: {API_VERSION}`"));
                return None;
            }
        }
    }
    Some(Some(known))
}

fn read_place(reader: &mut Reader<'_>, kind: Kind, document: &Node, metadata: Option<&Node>) -> Option<Place> {
    let Some(metadata) = metadata else {
        let help = "add `metadata:` with `name:` and `namespace:`";
        reader.error_with_help(&document.span, "`metadata` is missing", help);
        return None;
    };
    let mut fields = reader.mapping(metadata, "metadata")?;
    let (name, namespace) = (fields.take("name"), fields.take("namespace"));
    for theirs in KUBERNETES_METADATA {
        fields.take(theirs);
    }
    reader.finish(fields);
    let namespace = match namespace {
        Some(node) => name_text(reader, node, "namespace")?,
        // As kubectl does it.
        None => alcazar_yaml::Text { text: "default".to_owned(), span: metadata.span.clone() },
    };
    let Some(name) = name else {
        reader.error_with_help(&metadata.span, "`name` is missing", "add `name:`");
        return None;
    };
    let name = name_text(reader, name, "name")?;
    Some(Place { kind, namespace: namespace.text, name: name.text, file: reader.file().clone(), span: name.span })
}

/// A name that can be told apart in `namespace/name`.
pub(crate) fn name_text(reader: &mut Reader<'_>, node: &Node, what: &str) -> Option<alcazar_yaml::Text> {
    let text = reader.text(node, what)?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_' | ':');
    if text.text.is_empty() {
        reader.error(&text.span, format!("`{what}` is empty"));
        return None;
    }
    if let Some(c) = text.text.chars().find(|c| !is_name(*c)) {
        reader.error(&text.span, format!("`{what}` cannot contain {c:?}"));
        return None;
    }
    Some(text)
}

/// Fields of `metadata` that carry no meaning for us.
const KUBERNETES_METADATA: [&str; 15] = [
    "annotations",
    "clusterName",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "initializers",
    "labels",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];
