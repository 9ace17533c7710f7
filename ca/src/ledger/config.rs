//! The section `ledger` of the configuration.

use serde::Deserialize;

/// What a person decides about the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LedgerConfig {
    /// The name of a ledger of this CA that is lost for good, and that a new one goes on after: said by the error that a CA
    /// refuses to start with. It names that one alone, so it may stay. Default: none, and a ledger that is lost is refused.
    pub replaces: Option<String>,
}
