//! The parts of Envoy's API that Alcazar speaks, by the names Envoy gives them.

pub use envoy_types::pb::envoy::config::core::v3 as core;
pub use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as tls;
pub use envoy_types::pb::envoy::service::discovery::v3 as discovery;
pub use envoy_types::pb::envoy::service::secret::v3 as secret;
pub use envoy_types::pb::google::protobuf::Any;
pub use envoy_types::pb::google::rpc::Status;

/// The type URL of [`tls::Secret`].
pub const SECRET_URL: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// A message in an [`Any`] of this type URL.
pub fn pack(type_url: &str, message: &impl prost::Message) -> Any {
    Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
}

/// The message in an [`Any`].
///
/// # Errors
/// When it is of another type, or does not decode.
pub fn unpack<M: prost::Message + Default>(type_url: &str, any: &Any) -> Result<M, UnpackError> {
    if any.type_url != type_url {
        return Err(UnpackError::Type { wanted: type_url.to_owned(), found: any.type_url.clone() });
    }
    M::decode(any.value.as_slice()).map_err(|source| UnpackError::Decode { wanted: type_url.to_owned(), source })
}

/// Why an [`Any`] did not hold what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// Another type.
    #[error("expected a resource of type {wanted}, found {found:?}")]
    Type {
        /// The type URL that was wanted.
        wanted: String,
        /// The type URL that was there.
        found: String,
    },
    /// The right type, broken bytes.
    #[error("cannot decode a resource of type {wanted}")]
    Decode {
        /// The type URL.
        wanted: String,
        /// What broke.
        source: prost::DecodeError,
    },
}
