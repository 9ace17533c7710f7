//! What `up` says to the person who watches: whole lines, in order, from one thread.
//!
//! A proxy must never wait for a terminal that somebody has paused: when the queue is full, lines are dropped and
//! counted.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Texts that may wait for the terminal.
const QUEUE: usize = 4096;

/// How long [`Console::flush`] waits for a terminal that takes nothing.
const FLUSH: Duration = Duration::from_secs(1);

/// A handle to the thread that writes. The thread lives as long as the process.
#[derive(Clone)]
pub(crate) struct Console(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    texts: VecDeque<String>,
    /// How many found the queue full since one was written.
    dropped: u64,
    /// Whether a text has left the queue and is not written yet.
    is_writing: bool,
}

impl Console {
    /// Starts the thread.
    pub(crate) fn start(output: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        std::thread::Builder::new().name("console".to_owned()).spawn(move || write(output, &theirs))?;
        Ok(Self(shared))
    }

    /// Says a text, of one line or more; never waits for the terminal.
    pub(crate) fn say(&self, text: impl Into<String>) {
        let mut queue = self.0.lock();
        if queue.texts.len() < QUEUE {
            queue.texts.push_back(text.into());
            self.0.changed.notify_all();
        } else {
            queue.dropped += 1;
        }
    }

    /// Waits until what was said is written, but not for ever.
    pub(crate) fn flush(&self) {
        let unwritten = |queue: &mut Queue| !queue.texts.is_empty() || queue.is_writing;
        let waited = self.0.changed.wait_timeout_while(self.0.lock(), FLUSH, unwritten);
        drop(waited);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next text.
    fn next(&self) -> String {
        let mut queue = self.lock();
        queue.is_writing = false;
        self.changed.notify_all();
        loop {
            if let Some(text) = queue.texts.pop_front() {
                queue.is_writing = true;
                // Those that are missing come after what was queued before them.
                if queue.texts.is_empty() && queue.dropped > 0 {
                    let dropped = std::mem::take(&mut queue.dropped);
                    queue.texts.push_back(format!("({dropped} lines could not be shown)"));
                }
                return text;
            }
            queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn write(mut output: impl Write, shared: &Shared) {
    // Once the reader is gone (`alcazar up | head`), the mesh runs on and nothing is written.
    let mut is_read = true;
    loop {
        let text = shared.next();
        if is_read {
            let line_end = if text.ends_with('\n') { "" } else { "\n" };
            is_read = write!(output, "{text}{line_end}").and_then(|()| output.flush()).is_ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Screen(Arc<Mutex<Vec<u8>>>);

    impl Write for Screen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let screen = Screen::default();
        let console = Console::start(screen.clone()).unwrap();
        console.say("one");
        console.say("two\n");
        console.flush();
        assert_eq!(screen.0.lock().unwrap().as_slice(), b"one\ntwo\n");
    }

    #[test]
    fn a_paused_terminal_costs_lines_and_not_time() {
        let screen = Screen::default();
        let paused = screen.clone();
        let console = Console::start(screen).unwrap();
        let pause = paused.0.lock().unwrap();
        for n in 0..QUEUE + 10 {
            console.say(n.to_string());
        }
        drop(pause);
        console.flush();
        console.say("after");
        console.flush();
        let said = String::from_utf8(paused.0.lock().unwrap().clone()).unwrap();
        assert!(said.contains("lines could not be shown)\n"), "{}", said.len());
        assert!(said.ends_with("after\n"));
    }
}
