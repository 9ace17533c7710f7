//! The control plane's client: delta ADS, and the snapshot that comes of it.

mod client;
mod state;

pub(crate) use client::Ads;
pub use client::Status;
pub use state::{Refused, State};
