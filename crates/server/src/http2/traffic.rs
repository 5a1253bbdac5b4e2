//! The bytes of one connection: counts for its keep-alive, and the price of its input.
//!
//! The price counts on the [wire](crate::http2::wire): TLS records cost more than their bytes. [`CountedStream`] is
//! above TLS, and sees HTTP/2's frames.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::grpc::unread::Unread;
use crate::http2::frames::{FrameEffects, FrameScanner};
use crate::http2::socket::SentBytes;
use crate::http2::wire::Metered;
use crate::limits::FIELD_INPUT;

/// Counts of one connection. All are Relaxed: only the connection's task uses them.
#[derive(Debug)]
pub(super) struct Traffic {
    /// Bytes that the client has sent, without TLS's.
    read: AtomicU64,
    /// The price of all input, in bytes.
    price: AtomicU64,
    /// The TLS records whose bytes were all taken.
    opened_records: AtomicU64,
    /// Whether the client has sent a flood. Then nothing more is read.
    is_flooded: AtomicBool,
    /// See [`FrameEffects`].
    control: AtomicUsize,
    trailers: AtomicUsize,
    blocks: AtomicUsize,
    block: AtomicUsize,
    large_blocks: AtomicUsize,
    has_open_block: AtomicBool,
    unread: Arc<Unread>,
    /// Bytes that were written.
    written: AtomicU64,
    /// Whether the next read or write has to note the bytes that were sent.
    is_asked: AtomicBool,
    /// The last [`SentBytes`].
    sent: AtomicU64,
    acknowledged: AtomicU64,
    /// The price of the input that may be read until the turn ends.
    allowance: AtomicUsize,
    /// Whether a read was refused because the allowance is used up.
    is_exhausted: AtomicBool,
}

impl Default for Traffic {
    fn default() -> Self {
        Self {
            read: AtomicU64::new(0),
            price: AtomicU64::new(0),
            opened_records: AtomicU64::new(0),
            is_flooded: AtomicBool::new(false),
            control: AtomicUsize::new(0),
            trailers: AtomicUsize::new(0),
            blocks: AtomicUsize::new(0),
            block: AtomicUsize::new(0),
            large_blocks: AtomicUsize::new(0),
            has_open_block: AtomicBool::new(false),
            unread: Arc::default(),
            written: AtomicU64::new(0),
            is_asked: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            allowance: AtomicUsize::new(usize::MAX),
            is_exhausted: AtomicBool::new(false),
        }
    }
}

impl Traffic {
    /// Returns the number of bytes that the client has sent, without TLS's.
    pub(super) fn read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Returns the price of all input so far, in bytes.
    pub(super) fn price(&self) -> u64 {
        self.price.load(Ordering::Relaxed)
    }

    /// Returns the number of frames so far that make h2 visit every stream.
    pub(super) fn control_frames(&self) -> usize {
        self.control.load(Ordering::Relaxed)
    }

    /// Returns the memory that all trailers so far take until they are read.
    pub(super) fn trailers(&self) -> usize {
        self.trailers.load(Ordering::Relaxed)
    }

    /// Returns the number of the header block that is unfinished, and its bytes so far, if a header block is
    /// unfinished.
    pub(super) fn open_block(&self) -> Option<(usize, usize)> {
        let is_open = self.has_open_block.load(Ordering::Relaxed);
        is_open.then(|| (self.blocks.load(Ordering::Relaxed), self.block.load(Ordering::Relaxed)))
    }

    /// Returns the DATA that no call has read.
    pub(super) fn unread(&self) -> &Arc<Unread> {
        &self.unread
    }

    /// Reports whether the client has sent a flood.
    pub(super) fn is_flooded(&self) -> bool {
        self.is_flooded.load(Ordering::Relaxed)
    }

    /// Notes that the client has sent a flood.
    pub(super) fn report_flood(&self) {
        self.is_flooded.store(true, Ordering::Relaxed);
    }

    /// Returns the number of TLS records whose bytes were all taken.
    pub(super) fn opened_records(&self) -> u64 {
        self.opened_records.load(Ordering::Relaxed)
    }

    /// Counts TLS records whose bytes were all taken.
    pub(super) fn has_opened(&self, records: u64) {
        add(&self.opened_records, records);
    }

    /// Returns the number of bytes that were written.
    pub(super) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Requests the counts of [`SentBytes`]. The next poll of the connection stores them.
    pub(super) fn ask_sent(&self) {
        self.is_asked.store(true, Ordering::Relaxed);
    }

    /// Returns the counts that the first poll after the request has stored. `None` if the connection was not polled
    /// since.
    pub(super) fn take_sent(&self) -> Option<SentBytes> {
        (!self.is_asked.swap(false, Ordering::Relaxed)).then(|| SentBytes {
            written: self.sent.load(Ordering::Relaxed),
            acknowledged: self.acknowledged.load(Ordering::Relaxed),
        })
    }

    fn note_sent(&self, transport: &impl Metered) {
        if self.is_asked.swap(false, Ordering::Relaxed) {
            let SentBytes { written, acknowledged } = transport.sent();
            self.sent.store(written, Ordering::Relaxed);
            self.acknowledged.store(acknowledged, Ordering::Relaxed);
        }
    }

    /// Begins a turn, in which the client may send input of the price `allowance`. The rest waits in the socket.
    pub(super) fn begin_turn(&self, allowance: usize) {
        self.allowance.store(allowance, Ordering::Relaxed);
        self.is_exhausted.store(false, Ordering::Relaxed);
    }

    /// Reports whether a read was refused in this turn. If so, nothing wakes the task when more bytes arrive, and the
    /// task has to begin another turn.
    pub(super) fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Relaxed)
    }

    /// Returns the price of the input that may be read. 0 ends the turn.
    pub(super) fn begin_read(&self) -> usize {
        let allowance = self.allowance.load(Ordering::Relaxed);
        self.is_exhausted.store(allowance == 0, Ordering::Relaxed);
        allowance
    }

    /// Counts input that was read.
    pub(super) fn has_read(&self, price: usize) {
        add(&self.price, price as u64);
        let allowance = self.allowance.load(Ordering::Relaxed);
        self.allowance.store(allowance.saturating_sub(price), Ordering::Relaxed);
    }

    /// Counts bytes that h2 reads, and the effects of all frames so far.
    fn has_received(&self, bytes: usize, found: FrameEffects) {
        add(&self.read, bytes as u64);
        self.unread.set_arrived(found.data);
        self.trailers.store(found.trailers, Ordering::Relaxed);
        self.control.store(found.control, Ordering::Relaxed);
        self.blocks.store(found.blocks, Ordering::Relaxed);
        self.block.store(found.block, Ordering::Relaxed);
        let more = found
            .large_blocks
            .wrapping_sub(self.large_blocks.load(Ordering::Relaxed));
        if more > 0 {
            self.large_blocks.store(found.large_blocks, Ordering::Relaxed);
            self.has_read(more.saturating_mul(FIELD_INPUT));
        }
        self.has_open_block.store(found.is_open, Ordering::Relaxed);
    }

    fn has_written(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            add(&self.written, *bytes as u64);
        }
    }
}

/// Adds to a counter that only this thread writes, without a locked instruction.
fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// The bytes that every client of HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A stream that counts its bytes, and scans its frames.
pub(super) struct CountedStream<S> {
    stream: S,
    traffic: Arc<Traffic>,
    frames: FrameScanner,
    /// The bytes that [`read_preface`](Self::read_preface) has read.
    ahead: Vec<u8>,
}

impl<S: Metered> CountedStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            traffic: Arc::clone(stream.traffic()),
            stream,
            frames: FrameScanner::new(),
            ahead: Vec::new(),
        }
    }

    /// Waits until the client's preface has arrived, and keeps it for h2. If the client sends other bytes, or no more,
    /// h2 gets the bytes so far, and then sees the reason itself.
    pub(super) async fn read_preface(&mut self) {
        let mut bytes = [0; PREFACE.len()];
        let mut buf = ReadBuf::new(&mut bytes);
        while buf.remaining() > 0 && PREFACE.starts_with(buf.filled()) {
            let before = buf.filled().len();
            let read = poll_fn(|cx| self.stream.poll_plaintext(cx, &mut buf)).await;
            if read.is_err() || buf.filled().len() == before {
                break;
            }
        }
        self.ahead = buf.filled().to_vec();
    }
}

impl<S: Metered> AsyncRead for CountedStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.traffic.note_sent(&this.stream);
        if this.traffic.is_flooded() {
            // The connection ends.
            return Poll::Pending;
        }
        let before = buf.filled().len();
        if this.ahead.is_empty() {
            ready!(this.stream.poll_plaintext(cx, buf))?;
        } else {
            // h2 reads with larger buffers.
            let taken = this.ahead.len().min(buf.remaining());
            buf.put_slice(&this.ahead[..taken]);
            this.ahead.drain(..taken);
        }
        let read = buf.filled().len() - before;
        let passed = this.frames.scan(&buf.filled()[before..]);
        this.traffic.has_received(passed, this.frames.found());
        if passed < read {
            this.traffic.report_flood();
            buf.set_filled(before + passed);
            if passed == 0 {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: Metered> AsyncWrite for CountedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.traffic.note_sent(&self.stream);
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.traffic.has_written(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.traffic.note_sent(&self.stream);
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.traffic.has_written(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
