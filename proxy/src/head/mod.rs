//! HTTP/1 as strictly as it is written: what two parsers could read differently is refused before anyone parses it.
//!
//! ```text
//!   bytes ──▶ Scanner (framing, heads, chunks) ──▶ vetted bytes ──▶ hyper
//!                └─ refused ──▶ a stand-in request that the service answers with 400, after earlier responses
//! ```
//!
//! Invariant: hyper never sees a byte of a request whose head, or whose framing as far as it had come, was refused.

mod chunks;
mod fields;
mod gate;
mod scanner;
mod strict;

pub use fields::RefusedHead;
pub(crate) use gate::Gate;
pub(crate) use scanner::STAND_IN_METHOD;
pub use scanner::{Scan, Scanner};
pub(crate) use strict::Strict;
