//! Other certificate authorities, asked by their own protocols.

pub(crate) mod spire;
pub(crate) mod step;
