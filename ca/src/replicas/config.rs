//! How replicas know each other.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::duration;

/// The section `replicas`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ReplicasConfig {
    /// A file with a secret that all replicas of this CA have, 32 random bytes or more (`openssl rand -base64 32`): by it a new
    /// replica gets an intermediate from the others. Whoever has it and can write to the store can become a replica. Default: none,
    /// and a replica joins only where a root is plugged in.
    pub secret_file: Option<PathBuf>,
    /// For how long a replica that is to end serves on after it has said that it is not ready: load balancers need a moment to look
    /// elsewhere. Default: 0s.
    #[serde(deserialize_with = "duration::deserialize")]
    pub drain_delay: Duration,
}
