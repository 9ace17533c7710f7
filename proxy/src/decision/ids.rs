use std::sync::atomic::{AtomicU64, Ordering};

/// Names decisions, so that a denied caller and the log speak of the same one.
///
/// **Shape**: `<start of the process><worker>-<count>` in hexadecimal; unique among processes as far as the random start is.
pub(crate) struct Ids {
    prefix: String,
    count: AtomicU64,
}

impl Ids {
    /// `start` is random and the same for all workers of a process.
    pub(crate) fn new(start: u32, worker: usize) -> Self {
        Self { prefix: format!("{start:08x}{worker:02x}"), count: AtomicU64::new(0) }
    }

    pub(crate) fn next(&self) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        format!("{}-{count:x}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_decisions_have_the_same_name() {
        let (one, two) = (Ids::new(0xabc, 0), Ids::new(0xabc, 1));
        let names = [one.next(), one.next(), two.next()];
        assert_eq!(names, ["00000abc00-0", "00000abc00-1", "00000abc01-0"]);
    }
}
