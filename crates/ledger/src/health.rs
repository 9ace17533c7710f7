//! Whether entries can be put on record.

/// How a log is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It takes entries.
    Running,
    /// The disk takes nothing for now, and why. It is asked again and again; nothing needs to be done here.
    Refused(String),
    /// It takes nothing until it is opened again, and why.
    Stopped(String),
}

impl Health {
    /// Is this from now on; whether that is news.
    pub(crate) fn becomes(&mut self, now: Self) -> bool {
        let news = *self != now;
        *self = now;
        news
    }
}

/// An error and all its causes, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}
