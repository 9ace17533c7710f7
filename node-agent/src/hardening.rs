//! What the agent's process gives up at its start.

/// Keeps other processes of the agent's user, such as the proxy, from reading its memory and its files through `/proc`
/// (`PR_SET_DUMPABLE`), and what it starts from having its capabilities (`PR_CAP_AMBIENT_CLEAR_ALL`).
///
/// Capabilities are each thread's own: this is for the first one, before there are others.
///
/// # Errors
/// When the kernel refuses.
pub fn harden() -> std::io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(rustix::thread::clear_ambient_capability_set()?)
}
