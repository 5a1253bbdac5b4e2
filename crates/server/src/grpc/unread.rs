//! The DATA of one connection that has arrived and that no call has read.
//!
//! h2 keeps the DATA of each request until the call reads it. The connection counts each frame when the frame arrives,
//! and the readers of requests count each frame that they take. The difference is the DATA that the client makes the
//! server hold.
//!
//! A frame of one byte holds the whole buffer that h2 has read the frame into. So each frame counts with the size of
//! that buffer. Frames that h2 drops itself, such as those of a call that has its reply, are never taken. So if no call
//! that reads its request has bytes in h2, nothing is unread. A session reads for as long as its connection lives, and
//! mostly has no bytes in h2.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use h2::{FlowControl, RecvStream, StreamId};

use crate::limits::{READ_BUFFER, UNREAD_STEP};

/// Returns the most memory that a frame with this many bytes of DATA holds.
pub(crate) fn frame_cost(len: usize) -> usize {
    match len {
        // h2 keeps nothing.
        0 => 0,
        len => READ_BUFFER + len,
    }
}

/// The unread DATA of one connection. All accesses are Relaxed, and the mutex never waits: only the thread of the
/// connection's worker uses them.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    /// The cost of all frames that have arrived. Wraps around.
    arrived: AtomicUsize,
    /// The cost of all frames that were taken. Wraps around.
    taken: AtomicUsize,
    /// The value of `arrived` when [`forget_dropped`](Self::forget_dropped) last found no bytes in h2.
    seen: AtomicUsize,
    /// The number of calls that read a request.
    readers: AtomicUsize,
    /// The streams and the windows of these calls: at most
    /// [`MAX_CONCURRENT_STREAMS`](crate::limits::MAX_CONCURRENT_STREAMS).
    windows: Mutex<Vec<(StreamId, FlowControl)>>,
    /// Whether the connection waits until frames are taken.
    is_awaited: AtomicBool,
    waker: AtomicWaker,
}

impl Unread {
    /// Sets the cost of all frames that have arrived.
    pub(crate) fn set_arrived(&self, cost: usize) {
        self.arrived.store(cost, Ordering::Relaxed);
    }

    /// Counts a frame of `len` bytes that was taken from h2.
    pub(crate) fn take(&self, len: usize) {
        let taken = self.taken.load(Ordering::Relaxed);
        self.taken.store(taken.wrapping_add(frame_cost(len)), Ordering::Relaxed);
        if self.is_awaited.load(Ordering::Relaxed) {
            self.waker.wake();
        }
    }

    /// Takes all frames that have arrived of a request that no handler reads.
    pub(crate) fn discard(&self, body: &mut RecvStream) {
        while let Poll::Ready(Some(Ok(data))) = body.poll_data(&mut Context::from_waker(Waker::noop())) {
            self.take(data.len());
            // An error: the stream is gone.
            let _ = body.flow_control().release_capacity(data.len());
        }
    }

    fn windows(&self) -> MutexGuard<'_, Vec<(StreamId, FlowControl)>> {
        // No critical section here leaves the list half changed.
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call that reads its request.
    pub(crate) fn add_reader(&self, stream: &mut RecvStream) {
        let window = (stream.stream_id(), stream.flow_control().clone());
        self.windows().push(window);
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    /// Removes a call, before its stream is dropped.
    pub(crate) fn remove_reader(&self, stream: &RecvStream) {
        let id = stream.stream_id();
        self.windows().retain(|(of, _)| *of != id);
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Reports whether a call reads a request.
    pub(crate) fn has_readers(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    /// If h2 has no bytes for the calls that read a request, h2 has dropped the frames that no call has taken. Then
    /// this call counts the frames as taken, except the frames that arrived since the last call that found no bytes.
    /// Does nothing if too little is unread to be charged. No request of the connection may wait for the start of its
    /// call.
    pub(crate) fn forget_dropped(&self) {
        // h2 counts a byte as used until its call has taken the frame.
        if self.cost() <= UNREAD_STEP || self.windows().iter().any(|(_, window)| window.used_capacity() > 0) {
            return;
        }
        let arrived = self.arrived.load(Ordering::Relaxed);
        let before = self.seen.swap(arrived, Ordering::Relaxed);
        // The last frame may be incomplete, so that h2 does not have it yet. All frames before it are complete.
        let dropped = before.wrapping_sub(self.taken.load(Ordering::Relaxed));
        if before != arrived && dropped <= isize::MAX as usize {
            self.taken.store(before, Ordering::Relaxed);
        }
    }

    /// Counts all that has arrived as taken.
    pub(crate) fn clear(&self) {
        self.taken
            .store(self.arrived.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Returns the most memory that the unread frames hold.
    pub(crate) fn cost(&self) -> usize {
        let unread = self
            .arrived
            .load(Ordering::Relaxed)
            .wrapping_sub(self.taken.load(Ordering::Relaxed));
        if unread > isize::MAX as usize {
            // More was taken than has arrived: a frame that was cleared while it arrived.
            self.clear();
            return 0;
        }
        unread
    }

    /// Wakes the task of `cx` when frames are taken.
    pub(crate) fn wake_when_taken(&self, cx: &Context<'_>) {
        self.waker.register(cx.waker());
        self.is_awaited.store(true, Ordering::Relaxed);
    }

    /// Ends [`wake_when_taken`](Self::wake_when_taken).
    pub(crate) fn wake_no_more(&self) {
        self.is_awaited.store(false, Ordering::Relaxed);
        self.waker.take();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_arrived_and_was_not_taken_is_unread() {
        let unread = Unread::default();
        // The counters wrap around.
        unread.set_arrived(usize::MAX - 10);
        unread.clear();
        unread.set_arrived(
            (usize::MAX - 10)
                .wrapping_add(frame_cost(100))
                .wrapping_add(frame_cost(1)),
        );
        assert_eq!(unread.cost(), frame_cost(100) + frame_cost(1));
        unread.take(100);
        unread.take(0);
        assert_eq!(unread.cost(), frame_cost(1));
        unread.clear();
        assert_eq!(unread.cost(), 0);
        unread.take(1);
        assert_eq!(unread.cost(), 0);
    }
}
