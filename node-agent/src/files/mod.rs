//! Files for programs that read PEM, or PKCS#12: a certificate with its key and roots, exchanged as a whole at each rotation.
//!
//! ```text
//!   Registry ─▶ Keeper (one for each entry of `files`) ─▶ Content ─▶ Folder::put ─▶ After ─▶ adoption
//! ```

mod after;
mod config;
mod content;
mod folder;
mod keeper;
mod owner;
mod pkcs12;
#[cfg(test)]
mod tests;

pub(crate) use config::check;
pub use config::{Account, After, FilesConfig, FilesConfigError, Pkcs12Config, Roots};
pub(crate) use folder::Access;
pub(crate) use keeper::Keeper;
pub use owner::OwnerError;
pub(crate) use owner::access;
