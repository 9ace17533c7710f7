//! When to come back, as clients of gRPC read it: `google.rpc.RetryInfo` in `grpc-status-details-bin`, which Google's and
//! Envoy's clients know, and `retry-after-ms`, which a person can read.

use std::time::Duration;

use prost::Message;
use tonic::{
    Code, Status,
    metadata::{MetadataMap, MetadataValue},
};

/// A status with a hint of when to try again.
pub(crate) fn with_hint(code: Code, words: &str, retry_after: Duration) -> Status {
    let retry_delay = prost_types::Duration::try_from(retry_after).ok();
    let info = prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
        value: RetryInfo { retry_delay }.encode_to_vec(),
    };
    let details = RpcStatus { code: code.into(), message: words.into(), details: vec![info] }.encode_to_vec();
    let mut metadata = MetadataMap::new();
    let millis = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    metadata.insert("retry-after-ms", MetadataValue::from(millis));
    Status::with_details_and_metadata(code, words, details.into(), metadata)
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hint_is_where_clients_look() {
        let status = with_hint(Code::ResourceExhausted, "later", Duration::from_millis(1500));
        assert_eq!(status.metadata().get("retry-after-ms").unwrap(), "1500");
        let details = RpcStatus::decode(status.details()).unwrap();
        assert_eq!((details.code, details.message.as_str()), (8, "later"));
        let info = RetryInfo::decode(details.details[0].value.as_slice()).unwrap();
        assert_eq!(info.retry_delay.unwrap(), prost_types::Duration { seconds: 1, nanos: 500_000_000 });
    }
}
