//! Why nobody is believed.

use alcazar_identity::{ParseSpiffeIdError, SpiffeId};
use alcazar_jwt::{ParseTokenError, VerifyError};
use alcazar_mtls::MachineError;
use thiserror::Error;
use tonic::Code;

use super::{
    account::AccountError, challenge::ChallengeError, keys::KeysError, returning::ReturnRefusal, rights::RightsError,
    rules::RuleError,
};
use crate::admission::Overloaded;

/// Why a caller is not who its evidence says, or may not do what it asks.
#[derive(Debug, Error)]
pub(crate) enum CallerError {
    #[error(
        "the caller presented a bearer token, and no issuer of such tokens is configured here (callers in ca.yaml)"
    )]
    NoTokens,
    #[error("the authorization header is not one bearer token")]
    Header,
    #[error(
        "the authorization header stands beside evidence of another kind, or in a request that no bearer token can make"
    )]
    Beside,
    #[error("the bearer token cannot be read")]
    Token(#[source] ParseTokenError),
    #[error("the bearer token is from the issuer {0:?}, whom callers in ca.yaml does not name")]
    UnknownIssuer(String),
    #[error("the token is refused")]
    Verify(#[source] VerifyError),
    #[error("the token is refused")]
    Account(#[source] AccountError),
    #[error("the issuer's keys are not known at the moment")]
    Keys(#[source] KeysError),
    #[error("the API server cannot be asked about a token")]
    Review(#[source] ReviewError),
    #[error("the token's account cannot have an identity")]
    Identity(#[source] ParseSpiffeIdError),
    #[error("the rules make no identity of it")]
    Rule(#[source] RuleError),
    #[error("the pods of the cluster are not known at the moment")]
    NoPods,
    #[error("the node authorisation refuses it")]
    Rights(#[source] RightsError),
    #[error(
        "the caller is of the cluster {found:?}, and this CA is of {own:?}; other names of it are callers.kubernetes.clusterIds"
    )]
    Cluster { found: String, own: String },
    #[error("{0} is not an identity that a caller with such evidence can ask for")]
    WrongKind(SpiffeId),
    #[error("the account {0} is not one of the node agents; if it should be, name it in callers.kubernetes.nodeAgents")]
    NotAnAgent(String),
    #[error("the caller presented no evidence of who it is")]
    NoEvidence,
    #[error("no machine certificates are accepted here (callers.machines in ca.yaml)")]
    NoMachines,
    #[error("the machine certificate is refused")]
    Machine(#[source] MachineError),
    #[error("the node does not come back by its certificate")]
    Returning(#[source] ReturnRefusal),
    #[error("the proof of possession is refused")]
    Challenge(#[source] ChallengeError),
    #[error(transparent)]
    Overloaded(Overloaded),
}

/// Why the API server did not answer.
#[derive(Debug, Error)]
pub(crate) enum ReviewError {
    #[error(
        "it does not let the CA review tokens; bind the CA's service account to the cluster role system:auth-delegator"
    )]
    Forbidden(#[source] Box<kube::Error>),
    #[error("it did not answer")]
    Failed(#[source] Box<kube::Error>),
    #[error("it did not answer in time")]
    Late,
    #[error("it answered without a verdict")]
    Empty,
}

impl CallerError {
    /// What the wire says of it.
    pub(crate) fn terse(&self) -> (Code, &'static str) {
        match self {
            _ if self.is_of_an_outage() => (Code::Unavailable, "the Kubernetes API is away; try again later"),
            Self::Keys(_) | Self::Review(_) | Self::NoPods => (Code::Unavailable, "try again later"),
            Self::Identity(_) | Self::Rule(_) | Self::Rights(_) | Self::WrongKind(_) | Self::NotAnAgent(_) => {
                (Code::PermissionDenied, "not permitted for this caller")
            }
            Self::Overloaded(_) => (Code::ResourceExhausted, "try again later"),
            Self::Returning(_) => (Code::Unauthenticated, "the certificate proves the node no more; attest otherwise"),
            Self::Cluster { .. } => (Code::PermissionDenied, "another cluster's CA is responsible"),
            _ => (Code::Unauthenticated, "not authenticated"),
        }
    }

    /// Whether the API server would know the answer, and gives none.
    pub(crate) fn is_of_an_outage(&self) -> bool {
        matches!(self, Self::Review(ReviewError::Failed(_) | ReviewError::Late))
    }
}
