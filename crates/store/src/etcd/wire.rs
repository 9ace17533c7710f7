//! The generated client of etcd's API, and the few shapes of requests that the store sends.
#![allow(missing_docs, unreachable_pub, clippy::allow_attributes_without_reason, reason = "generated code")]

use crate::Revision;

tonic::include_proto!("etcdserverpb");

/// What a transaction expects of `key`: absent where `revision` is 0.
pub(super) fn at_revision(key: Vec<u8>, revision: i64) -> Compare {
    Compare {
        result: compare::CompareResult::Equal.into(),
        target: compare::CompareTarget::Mod.into(),
        key,
        target_union: Some(compare::TargetUnion::ModRevision(revision)),
    }
}

pub(super) fn get(key: Vec<u8>) -> RequestOp {
    let range = RangeRequest { key, ..RangeRequest::default() };
    RequestOp { request: Some(request_op::Request::Range(range)) }
}

pub(super) fn put(key: Vec<u8>, value: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(request_op::Request::Put(PutRequest { key, value })) }
}

pub(super) fn delete(key: Vec<u8>) -> RequestOp {
    RequestOp { request: Some(request_op::Request::DeleteRange(DeleteRangeRequest { key })) }
}

/// The revision of the one key that a transaction read, when it was there.
pub(super) fn found(response: &TxnResponse) -> Option<Revision> {
    let read = response.responses.iter().find_map(|response| match &response.response {
        Some(response_op::Response::Range(range)) => Some(range),
        _ => None,
    });
    read?.kvs.first().map(|kv| revision(kv.mod_revision))
}

/// etcd counts from 1 and up; a negative number never comes.
pub(super) fn revision(number: i64) -> Revision {
    Revision::new(u64::try_from(number).unwrap_or_default())
}

/// The first key after everything that begins with `prefix`; for the empty prefix etcd's sign for "no end".
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_after_all_of_it() {
        assert_eq!(end_of(b"a/"), b"a0");
        assert_eq!(end_of(b"a\xff"), b"b");
        assert_eq!(end_of(b"\xff\xff"), b"\0");
        assert_eq!(end_of(b""), b"\0");
    }
}
