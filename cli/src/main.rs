//! The alcazar command: a secured mesh on one machine, and everything people type.
fn main() {}
