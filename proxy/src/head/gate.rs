//! What the service tells the reader of the same connection.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

use super::RefusedHead;

/// Between the service of one HTTP/1 connection and its [`Strict`](super::Strict) reader.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    verdict: AtomicU8,
    waker: AtomicWaker,
    refused: Mutex<Option<RefusedHead>>,
}

/// What follows a request that may change the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It does not: the next request.
    Resume,
    /// It does.
    Switch,
}

impl Gate {
    /// The protocol changes, or it does not: the reader goes on.
    pub(crate) fn decide(&self, switch: bool) {
        self.verdict.store(if switch { SWITCH } else { RESUME }, Ordering::Release);
        self.waker.wake();
    }

    /// Why the reader refused what it read.
    pub(crate) fn refused(&self) -> Option<RefusedHead> {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn refuse(&self, why: RefusedHead) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// Takes the verdict once it is there.
    pub(super) fn poll_verdict(&self, cx: &mut Context<'_>) -> Poll<Verdict> {
        self.waker.register(cx.waker());
        match self.verdict.swap(OPEN, Ordering::Acquire) {
            RESUME => Poll::Ready(Verdict::Resume),
            SWITCH => Poll::Ready(Verdict::Switch),
            _ => Poll::Pending,
        }
    }
}

const OPEN: u8 = 0;
const RESUME: u8 = 1;
const SWITCH: u8 = 2;
