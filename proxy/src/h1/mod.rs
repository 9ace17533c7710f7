//! HTTP/1, by hyper: for applications on either side.

mod apps;
mod server;

pub(crate) use apps::{Apps, AskError, Lease};
pub(crate) use server::serve;
