use serde::Deserialize;

/// Whether stock clients are given CRLs beside the roots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CrlsConfig {
    /// Whenever all are here that there must be.
    #[default]
    Auto,
    /// Never: certificates are checked without.
    Never,
}
