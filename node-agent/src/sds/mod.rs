//! Envoy's Secret Discovery Service, v3: state machines that do no I/O, and the gRPC service around them.
//!
//! ```text
//!   request ─hear─▶ Sotw | Delta ─say(view)─▶ response      pure
//!   Unix socket ─▶ SdsService: who calls? ─▶ View of what it may see, followed live
//! ```

mod brake;
mod delta;
mod secrets;
mod service;
mod sotw;
#[cfg(test)]
mod tests;

pub use delta::Delta;
pub use secrets::{Found, View};
pub(crate) use service::SdsService;
pub use sotw::{Heard, RequestError, Sotw};

/// As many names as one stream may subscribe to.
pub(crate) const MAX_NAMES: usize = 256;
