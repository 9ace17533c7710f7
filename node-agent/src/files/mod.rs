//! Files for programs that read PEM: a certificate with its key and roots, exchanged as a whole at each rotation.
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
#[cfg(test)]
mod tests;

pub(crate) use config::check;
pub use config::{Account, After, FilesConfig, FilesConfigError, Roots};
pub(crate) use folder::Access;
pub(crate) use keeper::Keeper;
pub use owner::OwnerError;
pub(crate) use owner::access;
