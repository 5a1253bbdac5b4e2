//! The heads of a client's frames, to see the frames that h2 neither bounds nor reports.
//!
//! h2 visits every stream of the connection for a SETTINGS frame that changes the window, and for a GOAWAY. It keeps
//! the decoded fields of an unfinished header block, and the trailers and the DATA of requests that no call reads. The
//! scanner finds these frames in the input before h2 parses the input. The scanner reads the nine bytes of each head
//! and skips the payloads, so an ordinary call costs it some dozen instructions.

use crate::grpc::unread::frame_cost;
use crate::http2::rate_guard::RateGuard;
use crate::limits::{CONTROL_FRAMES, CONTROL_FRAMES_PER_SECOND, MEMORY_PER_FIELD_BYTE, SMALL_BLOCK};

/// Bytes that every client sends before its first frame.
const PREFACE: usize = 24;

/// Bytes of a frame's head.
const HEAD: usize = 9;

/// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

/// Flags.
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The position in a client's frames.
#[derive(Debug)]
pub(super) struct FrameScanner {
    /// The bytes of the current payload, or of the preface, that have not arrived.
    left: usize,
    head: [u8; HEAD],
    /// The bytes of the next head that have arrived.
    head_len: usize,
    /// The greatest number of a stream with headers.
    newest: u32,
    /// Whether the last header block belongs to trailers.
    is_trailers: bool,
    control: RateGuard,
    found: FrameEffects,
}

/// The effects of the frames so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct FrameEffects {
    /// The memory that DATA takes until a call has read it.
    pub(super) data: usize,
    /// The memory that trailers take until a call has read them.
    pub(super) trailers: usize,
    /// The frames that make h2 visit every stream.
    pub(super) control: usize,
    /// The header blocks that have arrived in several frames.
    pub(super) blocks: usize,
    /// Whether the last of these blocks is unfinished.
    pub(super) is_open: bool,
    /// The bytes of the last header block.
    pub(super) block: usize,
    /// The bytes of all header blocks, without the first [`SMALL_BLOCK`] of each.
    pub(super) large_blocks: usize,
}

impl FrameScanner {
    pub(super) fn new() -> Self {
        Self {
            left: PREFACE,
            head: [0; HEAD],
            head_len: 0,
            newest: 0,
            is_trailers: false,
            control: RateGuard::new(CONTROL_FRAMES, CONTROL_FRAMES_PER_SECOND),
            found: FrameEffects::default(),
        }
    }

    /// Returns the effects of the frames so far.
    pub(super) fn found(&self) -> FrameEffects {
        self.found
    }

    /// Scans the next bytes. Returns how many of the bytes h2 may have: all, unless a frame in them is a flood.
    pub(super) fn scan(&mut self, input: &[u8]) -> usize {
        let mut rest = input;
        loop {
            let skipped = self.left.min(rest.len());
            self.left -= skipped;
            rest = &rest[skipped..];
            if rest.is_empty() {
                return input.len();
            }
            let head = match rest.split_first_chunk::<HEAD>() {
                Some((head, payload)) if self.head_len == 0 => {
                    rest = payload;
                    *head
                }
                _ => {
                    let taken = rest.len().min(HEAD - self.head_len);
                    self.head[self.head_len..][..taken].copy_from_slice(&rest[..taken]);
                    self.head_len += taken;
                    rest = &rest[taken..];
                    if self.head_len < HEAD {
                        return input.len();
                    }
                    self.head_len = 0;
                    self.head
                }
            };
            if !self.begin(head) {
                // Without the last byte of its head, h2 does not parse the frame.
                return input.len() - rest.len() - 1;
            }
        }
    }

    /// Begins a frame. Returns `false` if the frame is a flood.
    fn begin(&mut self, head: [u8; HEAD]) -> bool {
        let [len @ .., kind, flags, s1, s2, s3, s4] = head;
        let len = (usize::from(len[0]) << 16) | (usize::from(len[1]) << 8) | usize::from(len[2]);
        self.left = len;
        match kind {
            DATA => self.found.data = self.found.data.wrapping_add(frame_cost(len)),
            HEADERS | PUSH_PROMISE => {
                // The first bit is reserved, and h2 ignores it (RFC 9113, 4.1).
                let stream = u32::from_be_bytes([s1 & 0x7f, s2, s3, s4]);
                self.is_trailers = stream <= self.newest;
                self.newest = self.newest.max(stream);
                self.found.block = 0;
                self.fields(len);
                let is_open = flags & END_HEADERS == 0;
                self.found.is_open = is_open;
                self.found.blocks += usize::from(is_open);
            }
            CONTINUATION => {
                self.fields(len);
                self.found.is_open &= flags & END_HEADERS == 0;
            }
            SETTINGS if flags & ACK != 0 => {}
            SETTINGS | GOAWAY => {
                self.found.control += 1;
                return self.control.allow(1);
            }
            _ => {}
        }
        true
    }

    fn fields(&mut self, len: usize) {
        let before = self.found.block.saturating_sub(SMALL_BLOCK);
        self.found.block += len;
        let more = self.found.block.saturating_sub(SMALL_BLOCK) - before;
        self.found.large_blocks = self.found.large_blocks.wrapping_add(more);
        if self.is_trailers {
            self.found.trailers = self.found.trailers.wrapping_add(len * MEMORY_PER_FIELD_BYTE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, len: usize) -> Vec<u8> {
        let length = (len as u32).to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), &vec![7; len]].concat()
    }

    #[tokio::test]
    async fn frames_are_found_however_the_bytes_are_cut() {
        let frames = [
            vec![b'P'; PREFACE],
            frame(SETTINGS, 0, 0, 6),
            frame(SETTINGS, ACK, 0, 0),
            frame(HEADERS, END_HEADERS, 1, 100),
            frame(DATA, 0, 1, 0),
            frame(DATA, 0, 1, 16_384),
            frame(DATA, 0, 1, 5),
            // Trailers in two frames.
            frame(HEADERS, 0, 1, 10),
            frame(CONTINUATION, END_HEADERS, 1, 20),
            frame(6, 0, 0, 8),
            frame(GOAWAY, 0, 0, 8),
            // The first bit of the stream's number has no meaning. So these are headers, and then trailers.
            frame(HEADERS, END_HEADERS, 3 | 1 << 31, 40),
            frame(HEADERS, END_HEADERS, 1 | 1 << 31, 50),
            frame(HEADERS, END_HEADERS, 5, 60),
            frame(HEADERS, 0, 7, 30),
        ]
        .concat();
        for size in [1, 2, 8, 9, 10, 100, frames.len()] {
            let mut scanner = FrameScanner::new();
            for part in frames.chunks(size) {
                assert_eq!(scanner.scan(part), part.len());
            }
            let found = scanner.found();
            assert_eq!(found.data, frame_cost(16_384) + frame_cost(5), "{size}");
            assert_eq!(found.trailers, (10 + 20 + 50) * MEMORY_PER_FIELD_BYTE);
            assert_eq!((found.control, found.blocks, found.is_open), (2, 2, true));
            assert_eq!(found.block, 30);
            assert_eq!((scanner.left, scanner.head_len), (0, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn h2_does_not_get_the_frame_that_is_a_flood() {
        let allowed = frame(SETTINGS, 0, 0, 6).repeat(CONTROL_FRAMES as usize);
        let flood = [vec![b'P'; PREFACE], allowed, frame(GOAWAY, 0, 0, 8)].concat();
        let least = flood.len() - 8 - HEAD;
        for size in [1, 4, 9, flood.len()] {
            let mut scanner = FrameScanner::new();
            let mut passed = 0;
            for part in flood.chunks(size) {
                let allowed = scanner.scan(part);
                passed += allowed;
                if allowed < part.len() {
                    break;
                }
            }
            assert!((least..least + HEAD).contains(&passed), "{size}: {passed}");
        }
    }
}
