//! The memory that h2 keeps for input that no call has read: the fields of an unfinished header block, trailers, and
//! DATA.
//!
//! Nothing else bounds this memory over all connections: h2's limits are those of a connection. So the memory is
//! charged to the [memory budget](crate::memory). The first bytes of each connection are free, so a small call is not
//! charged.
//!
//! If the budget has no room for unread DATA, the connection reads nothing more until its calls have read some. If they
//! do not for the time of a call, the connection drains. An unfinished header block ends its connection after that
//! time, or at once if the budget has no room.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Sleep, sleep};

use crate::http2::traffic::Traffic;
use crate::limits::{HEADER_BLOCK_MEMORY, MEMORY_PER_FIELD_BYTE, UNREAD_STEP};
use crate::memory::Charge;

/// The input that h2 keeps for one connection.
#[derive(Debug)]
pub(super) struct HeldInput {
    /// How long a header block may be unfinished, and how long unread DATA may wait for room.
    time: Duration,
    /// The charge for DATA and for trailers.
    charge: Charge,
    /// The bytes that the client had sent when no DATA was unread.
    read: u64,
    /// The trailers' memory when no call was reading a request.
    trailers: usize,
    stalled: Option<Stalled>,
    block: Option<OpenBlock>,
}

/// Unread DATA without room in the budget.
#[derive(Debug)]
struct Stalled {
    /// The charge that was refused.
    refused: usize,
    until: Pin<Box<Sleep>>,
}

/// An unfinished header block.
#[derive(Debug)]
struct OpenBlock {
    number: usize,
    until: Pin<Box<Sleep>>,
    charge: Charge,
}

/// How a connection ends because of its input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It finishes its calls first.
    Drain,
    /// A header block took too long.
    Late,
    /// The budget has no room for a header block. The refusal is counted.
    NoRoom,
}

impl HeldInput {
    /// Returns the input of a new connection. `charge` is a charge of nothing.
    pub(super) fn new(charge: Charge, time: Duration) -> Self {
        Self {
            time,
            charge,
            read: 0,
            trailers: 0,
            stalled: None,
            block: None,
        }
    }

    /// Reports whether the connection may read nothing until its calls have read.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Charges the input that h2 keeps now, beyond `free` bytes and the first [`UNREAD_STEP`]. `has_received`: whether
    /// requests wait for their calls. If the connection has to end later, wakes the task of `cx` then. Returns the end
    /// once.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        traffic: &Traffic,
        has_received: bool,
        free: usize,
    ) -> Option<End> {
        self.poll_unread(cx, traffic, has_received, free)
            .or_else(|| self.poll_block(cx, traffic))
    }

    /// Returns the bytes that h2 keeps at most.
    fn unread(&mut self, traffic: &Traffic, has_received: bool) -> usize {
        let unread = traffic.unread();
        if !has_received {
            if unread.has_readers() {
                unread.forget_dropped();
            } else {
                unread.clear();
                self.trailers = traffic.trailers();
            }
        }
        let trailers = traffic.trailers().wrapping_sub(self.trailers);
        match unread.cost() {
            0 => {
                self.read = traffic.read();
                trailers
            }
            // Frames share the buffers that h2 reads into, so together they hold no more than was read meanwhile.
            cost => cost.min((traffic.read() - self.read) as usize) + trailers,
        }
    }

    fn poll_unread(&mut self, cx: &mut Context<'_>, traffic: &Traffic, has_received: bool, free: usize) -> Option<End> {
        let unread = self.unread(traffic, has_received).saturating_sub(free + UNREAD_STEP);
        if unread == 0 && self.charge.bytes() == 0 && self.stalled.is_none() {
            return None;
        }
        let end = self.set_charge(cx, unread.next_multiple_of(UNREAD_STEP));
        // When calls have read, less is charged.
        match self.charge.bytes() > 0 || self.stalled.is_some() {
            true => traffic.unread().wake_when_taken(cx),
            false => traffic.unread().wake_no_more(),
        }
        end
    }

    /// Changes the charge to `needed` bytes. If the budget has no room, stalls the connection.
    fn set_charge(&mut self, cx: &mut Context<'_>, needed: usize) -> Option<End> {
        let charged = self.charge.bytes();
        if needed <= charged {
            drop(self.charge.split(charged - needed));
            self.stalled = None;
            return None;
        }
        let mut is_over = false;
        if let Some(stalled) = &mut self.stalled {
            is_over = stalled.until.as_mut().poll(cx).is_ready();
            if needed >= stalled.refused && !is_over {
                return None;
            }
        }
        if self.charge.grow(needed - charged).is_ok() {
            self.stalled = None;
            return None;
        }
        let stalled = self.stalled.get_or_insert_with(|| Stalled {
            refused: needed,
            until: Box::pin(sleep(self.time)),
        });
        stalled.refused = needed;
        if is_over {
            // The connection drains, and still reads nothing.
            stalled.until = Box::pin(sleep(Duration::MAX));
        }
        let _ = stalled.until.as_mut().poll(cx);
        is_over.then_some(End::Drain)
    }

    fn poll_block(&mut self, cx: &mut Context<'_>, traffic: &Traffic) -> Option<End> {
        let Some((number, bytes)) = traffic.open_block() else {
            self.block = None;
            return None;
        };
        if self.block.as_ref().is_none_or(|block| block.number != number) {
            self.block = Some(OpenBlock {
                number,
                until: Box::pin(sleep(self.time)),
                charge: self.charge.memory().no_charge(),
            });
        }
        let block = self.block.as_mut()?;
        let needed = (bytes * MEMORY_PER_FIELD_BYTE).min(HEADER_BLOCK_MEMORY);
        let more = needed.saturating_sub(block.charge.bytes());
        if more > 0 && block.charge.grow(more).is_err() {
            return Some(End::NoRoom);
        }
        match block.until.as_mut().poll(cx) {
            Poll::Ready(()) => Some(End::Late),
            Poll::Pending => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;

    use http::{Request, Response};
    use http_body::Body as _;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::Semaphore;
    use tokio::time::{Instant, advance, timeout};
    use tonic::body::Body;

    use super::*;
    use crate::grpc::handler::Handler;
    use crate::grpc::request::RequestBody;
    use crate::http2::connection::tests::{frame, settle};
    use crate::http2::served::{Served, Silent};
    use crate::limits::{
        CALL_MEMORY, FRAMES_PER_STREAM, MEMORY_PER_FIELD_BYTE, READ_BUFFER, SMALL_CONNECTION_CALLS, STREAM_MEMORY,
        STREAM_WINDOW,
    };
    use crate::quota::ClientQuota;
    use crate::refusal::Reason;

    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const PRIORITY: u8 = 2;
    const CONTINUATION: u8 = 9;
    const UNKNOWN: u8 = 0xfa;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    /// Bytes that the stream between the client and the server keeps.
    const BETWEEN: usize = 4096;

    /// The head of a request.
    const HEAD: &[u8] = b"\x83\x86\x04\x0e/Counting/Call\x0f\x10\x10application/grpc";

    /// Serves a connection that has half of the budget. A permit lets a call read one frame of its request.
    async fn served(budget: usize) -> (Served<DuplexStream>, Arc<Semaphore>) {
        let may_read = Arc::new(Semaphore::new(0));
        let permits = Arc::clone(&may_read);
        let handler = Handler::Streaming(Arc::new(move |request: Request<RequestBody>, _, _| {
            let permits = Arc::clone(&permits);
            tokio::spawn(async move {
                let mut body = request.into_body();
                loop {
                    permits.acquire().await.unwrap().forget();
                    if poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_none() {
                        break;
                    }
                }
            });
            Box::pin(async { Response::new(Body::new(Silent)) })
        }));
        (Served::plaintext(BETWEEN, handler, budget).await, may_read)
    }

    impl Served<DuplexStream> {
        /// Sends bytes, takes the replies, and lets the connection read.
        async fn exchange(&mut self, bytes: &[u8]) {
            let (mut read, mut write) = tokio::io::split(&mut self.client);
            let mut taken = [0; 4096];
            let mut sent = std::pin::pin!(write.write_all(bytes));
            loop {
                tokio::select! {
                    biased;
                    sent = &mut sent => break sent.unwrap(),
                    Ok(1..) = read.read(&mut taken) => {}
                }
            }
            settle().await;
        }

        /// Reports whether the connection reads the client's bytes.
        async fn reads(&mut self) -> bool {
            // More than the stream between the two keeps, which is a number of whole frames.
            let bytes = frame(UNKNOWN, 0, 0, &[0; 7]).repeat(BETWEEN / 16 + 1);
            timeout(Duration::from_millis(1), self.exchange(&bytes)).await.is_ok()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_unfinished_header_block_is_charged_until_it_ends() {
        let (mut served, _may_read) = served(1 << 30).await;
        served.exchange(&frame(HEADERS, 0, 1, HEAD)).await;
        assert_eq!(served.memory.used(), HEAD.len() * MEMORY_PER_FIELD_BYTE);
        served.exchange(&frame(CONTINUATION, 0, 1, &[0x90; 100])).await;
        assert_eq!(served.memory.used(), (HEAD.len() + 100) * MEMORY_PER_FIELD_BYTE);
        // Beyond its limit, h2 keeps no more fields.
        for _ in 0..4 {
            served.exchange(&frame(CONTINUATION, 0, 1, &[0x90; 10_000])).await;
        }
        assert_eq!(served.memory.used(), HEADER_BLOCK_MEMORY);
        // h2 refuses the call: the list of its fields is too long.
        served.exchange(&frame(CONTINUATION, END_HEADERS, 1, &[])).await;
        assert_eq!(served.memory.used(), 0);
        served.exchange(&frame(HEADERS, 0, 3, HEAD)).await;
        served.exchange(&frame(CONTINUATION, END_HEADERS, 3, &[])).await;
        assert_eq!(served.memory.used(), CALL_MEMORY);
        advance(2 * served.limits.call).await;
        settle().await;
        assert!(!served.task.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_block_has_the_time_of_a_call_however_slowly_it_comes() {
        let (mut served, _may_read) = served(1 << 30).await;
        let begin = Instant::now();
        served.exchange(&frame(HEADERS, 0, 1, HEAD)).await;
        for byte in frame(CONTINUATION, 0, 1, &[0x90; 100]) {
            advance(Duration::from_secs(1)).await;
            settle().await;
            if served.task.is_finished() {
                break;
            }
            served.exchange(&[byte]).await;
        }
        assert!(served.task.is_finished());
        assert_eq!(begin.elapsed(), served.limits.call);
        assert_eq!(served.refused(), [(Reason::FrameFlood, 1)]);
        assert_eq!(served.memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_block_without_room_ends_its_connection() {
        let (mut served, _may_read) = served(HEADER_BLOCK_MEMORY).await;
        served.exchange(&frame(HEADERS, 0, 1, HEAD)).await;
        assert!(!served.task.is_finished());
        let mut more = frame(CONTINUATION, 0, 1, &[0x90; 10_000]);
        served.exchange(&more).await;
        assert!(!served.task.is_finished());
        // The connection ends when the head of the frame has arrived.
        more.truncate(BETWEEN / 2);
        served.exchange(&more).await;
        settle().await;
        assert!(served.task.is_finished());
        assert_eq!(served.refused(), [(Reason::ConnectionMemory, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn data_that_no_call_reads_is_charged_beyond_the_first_bytes() {
        const LEN: usize = 8 * 1024;
        let (mut served, may_read) = served(1 << 30).await;
        // Spare memory is used up, so the window stays small.
        let rest = served.memory.for_connection(ClientQuota::alone());
        let rest = rest.charge((1 << 30) / 4).unwrap();
        let used = |served: &Served<DuplexStream>| served.memory.used() - rest.bytes();
        served.exchange(&frame(HEADERS, END_HEADERS, 1, HEAD)).await;
        let data = frame(DATA, 0, 1, &[0; LEN]);
        for sent in 1..=STREAM_WINDOW as usize / LEN - 1 {
            served.exchange(&data).await;
            let unread = sent * data.len();
            let charged = unread.saturating_sub(UNREAD_STEP).next_multiple_of(UNREAD_STEP);
            assert_eq!(used(&served), CALL_MEMORY + charged, "{sent}");
        }
        may_read.add_permits(1000);
        settle().await;
        assert_eq!(used(&served), CALL_MEMORY);
        assert_eq!(served.refused(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_data_has_no_room_reads_nothing_until_its_calls_read() {
        for reads in [true, false] {
            let (mut served, may_read) = served(2 * (CALL_MEMORY + UNREAD_STEP)).await;
            served.exchange(&frame(HEADERS, END_HEADERS, 1, HEAD)).await;
            served.exchange(&frame(DATA, 0, 1, &[0; 12 * 1024])).await;
            served.exchange(&frame(DATA, 0, 1, &[0; 12 * 1024])).await;
            assert!(served.reads().await);
            assert_eq!(served.memory.used(), CALL_MEMORY + UNREAD_STEP);
            // Beyond two steps, and no more than the stream between the two keeps.
            served.exchange(&frame(DATA, 0, 1, &[0; BETWEEN - 16])).await;
            assert!(!served.reads().await);
            assert_eq!(served.refused(), [(Reason::ConnectionMemory, 1)]);
            advance(served.limits.call / 2).await;
            if reads {
                may_read.add_permits(2);
                settle().await;
                assert!(served.reads().await);
                advance(2 * served.limits.call).await;
                settle().await;
                assert!(served.reads().await);
                assert_eq!(served.refused(), [(Reason::ConnectionMemory, 1)]);
            } else {
                advance(served.limits.call / 2 + served.limits.drain).await;
                settle().await;
                advance(served.limits.drain).await;
                settle().await;
                assert!(served.task.is_finished());
            }
        }
    }

    /// A frame of one byte holds the buffer that h2 has read the frame into.
    #[tokio::test(start_paused = true)]
    async fn tiny_frames_are_charged_with_the_buffers_that_they_hold() {
        const FRAMES: usize = 100;
        let (mut served, _may_read) = served(1 << 30).await;
        served.exchange(&frame(HEADERS, END_HEADERS, 1, HEAD)).await;
        let others = frame(PRIORITY, 0, 1, &[0; 5]);
        let others = others.repeat(READ_BUFFER / others.len());
        for _ in 0..FRAMES {
            served.exchange(&[&frame(DATA, 0, 1, &[0])[..], &others].concat()).await;
        }
        let charged = served.memory.used() - CALL_MEMORY;
        assert!((FRAMES - 5..=FRAMES).contains(&(charged / READ_BUFFER)), "{charged}");
    }

    /// Small requests that arrive together share the buffers.
    #[tokio::test(start_paused = true)]
    async fn many_small_requests_at_one_time_are_not_charged() {
        const CALLS: u32 = 100;
        let (mut served, _may_read) = served(1 << 30).await;
        let requests = (1..).step_by(2).take(CALLS as usize).flat_map(|stream| {
            let mut request = frame(HEADERS, END_HEADERS, stream, HEAD);
            request.extend(frame(DATA, END_STREAM, stream, &[0; 5]));
            request
        });
        let requests: Vec<_> = requests.collect();
        assert!(requests.len() < UNREAD_STEP);
        served.exchange(&requests).await;
        let streams = CALLS as usize * CALL_MEMORY;
        let more = crate::limits::STREAM_MEMORY * (CALLS as usize - crate::limits::SMALL_CONNECTION_CALLS);
        let window = (crate::limits::LARGE_CONNECTION_WINDOW - crate::limits::CONNECTION_WINDOW) as usize;
        assert_eq!(served.memory.used(), streams + more + window);
    }

    /// h2 keeps a slot of its slabs for each frame, however small the frame is, and keeps the slots afterwards.
    #[tokio::test(start_paused = true)]
    async fn many_tiny_frames_are_charged_as_streams() {
        const FRAMES: usize = 1_000;
        let (mut served, may_read) = served(1 << 30).await;
        served.exchange(&frame(HEADERS, END_HEADERS, 1, HEAD)).await;
        let frames = frame(DATA, 0, 1, &[0]).repeat(FRAMES);
        assert!(frames.len() < UNREAD_STEP);
        served.exchange(&frames).await;
        let streams = FRAMES / FRAMES_PER_STREAM - SMALL_CONNECTION_CALLS;
        assert_eq!(served.memory.used(), CALL_MEMORY + streams * STREAM_MEMORY);
        may_read.add_permits(FRAMES);
        settle().await;
        served.exchange(&frame(PRIORITY, 0, 1, &[0; 5])).await;
        assert_eq!(served.memory.used(), CALL_MEMORY + streams * STREAM_MEMORY);
        assert_eq!(served.refused(), []);
    }

    #[tokio::test(start_paused = true)]
    async fn trailers_that_no_call_reads_are_charged() {
        const FIELDS: usize = 1000;
        // HTTP/2 ignores the first bit of the stream's number.
        for stream in [1, 1 | 1 << 31] {
            let (mut served, may_read) = served(1 << 30).await;
            served.exchange(&frame(HEADERS, END_HEADERS, 1, HEAD)).await;
            // A field of HPACK's static table is one byte.
            let trailers = frame(HEADERS, END_HEADERS | END_STREAM, stream, &[0x90; FIELDS]);
            served.exchange(&trailers).await;
            let held = FIELDS * MEMORY_PER_FIELD_BYTE;
            let charged = (held - UNREAD_STEP).next_multiple_of(UNREAD_STEP);
            assert_eq!(served.memory.used(), CALL_MEMORY + charged, "{stream}");
            may_read.add_permits(10);
            settle().await;
            // The connection notices with its next bytes.
            served.exchange(&frame(PRIORITY, 0, 1, &[0; 5])).await;
            // The stream is open: its response never ends.
            assert_eq!(served.memory.used(), CALL_MEMORY);
        }
    }
}
