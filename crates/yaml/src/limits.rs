//! How much a file may ask of us.

use serde_saphyr::Options;
use serde_saphyr::options::{AliasLimits, DuplicateKeyPolicy, MergeKeyPolicy};

/// The longest file that is read, in bytes.
pub const MAX_FILE_BYTES: usize = 16 * 1024 * 1024;

/// How deep lists and mappings may nest.
pub const MAX_DEPTH: usize = 64;

/// How many documents a file may hold.
pub const MAX_DOCUMENTS: usize = 20_000;

/// Strict: `yes` is no boolean, a key stands once, anchors cannot multiply.
pub(crate) fn options(duplicate_keys: DuplicateKeyPolicy) -> Options {
    let budget = serde_saphyr::budget! {
        max_depth: MAX_DEPTH,
        flow_nesting_limit: MAX_DEPTH,
        max_documents: MAX_DOCUMENTS,
        max_events: 8_000_000,
        max_nodes: 4_000_000,
        max_total_scalar_bytes: MAX_FILE_BYTES,
        max_aliases: 1_000,
        max_anchors: 1_000,
        max_recorded_anchor_events: 100_000,
        max_recorded_anchor_bytes: 4 * 1024 * 1024,
    };
    let alias_limits: AliasLimits = serde_saphyr::alias_limits! {
        max_total_replayed_events: 100_000,
        max_replay_stack_depth: 16,
        max_alias_expansions_per_anchor: 1_000,
    };
    serde_saphyr::options! {
        budget: budget,
        alias_limits: alias_limits,
        duplicate_keys: duplicate_keys,
        merge_keys: MergeKeyPolicy::Merge,
        strict_booleans: true,
        reject_unsupported_tags: true,
        reject_tagged_field_names: true,
        with_snippet: false,
    }
}
