//! How much of a reply is taken: whoever answers many requests in one message issues nothing that would not fit.

use std::sync::atomic::{AtomicUsize, Ordering};

use prost::Message;

/// The room in a reply for what has no bound of its own. Some of what is under way together may go past it, so there is more.
#[derive(Default)]
pub(super) struct Room {
    taken: AtomicUsize,
}

impl Room {
    /// Whether there is any left.
    pub(super) fn is_left(&self) -> bool {
        self.taken.load(Ordering::Relaxed) < ROOM
    }

    /// Takes what a message needs.
    pub(super) fn take<M: Message>(&self, message: M) -> M {
        self.taken.fetch_add(message.encoded_len() + FRAME, Ordering::Relaxed);
        message
    }
}

/// Clients of gRPC take 4 MiB by default. The rest is for what is under way, refusals, and the bundle.
const ROOM: usize = 3 << 20;
/// Around each message: names of registrations and lengths.
const FRAME: usize = 128;

#[cfg(test)]
mod tests {
    use alcazar_api::ca::v1;

    use super::*;

    #[test]
    fn a_reply_is_full_before_clients_refuse_it() {
        let (room, mut sent) = (Room::default(), 0);
        while room.is_left() {
            // RSA-4096 all the way.
            let svid = v1::IssuedSvid { chain: vec![vec![0; 1300], vec![0; 1500]], ..v1::IssuedSvid::default() };
            sent += room.take(svid).encoded_len();
        }
        // With as many again under way as may be, and a megabyte of anything else.
        assert!((2 << 20..3 << 20).contains(&sent), "{sent}");
    }
}
