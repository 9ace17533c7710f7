//! Developer commands: test, tools, bench, fuzz.
fn main() {}
