//! The heads of a client's TLS records.
//!
//! To open a record costs rustls more than to copy its bytes, so a record has a price. A record that brings no bytes
//! for HTTP/2 has another purpose: a handshake, an alert, new keys. A connection needs few of those, but new keys cost
//! as much as ten ordinary records. rustls allows 32 changes of keys for each record with bytes, so the server counts
//! the records without bytes itself.

use crate::http2::rate_guard::RateGuard;
use crate::limits::{BARE_RECORDS, BARE_RECORDS_PER_SECOND};

/// Bytes of a record's head: a type, a version, and a length.
const HEAD: usize = 5;

/// The type of a record of a handshake that is not encrypted. In TLS 1.2, encrypted records of a handshake have this
/// type, too.
const HANDSHAKE: u8 = 22;

/// Counts of records.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Records {
    pub(super) all: u64,
    /// Records of a handshake that are not encrypted.
    pub(super) plain: u64,
}

/// The position in a client's records.
#[derive(Debug)]
pub(super) struct RecordScanner {
    /// The bytes of the current record that have not arrived.
    left: usize,
    head: [u8; HEAD],
    /// The bytes of the next head that have arrived.
    head_len: usize,
    /// The records that have arrived in full.
    arrived: u64,
    /// The records of a handshake that are not encrypted.
    plain: u64,
    /// The records without bytes for HTTP/2 that the guard has counted.
    bare: u64,
    guard: RateGuard,
}

impl RecordScanner {
    pub(super) fn new() -> Self {
        Self {
            left: 0,
            head: [0; HEAD],
            head_len: 0,
            arrived: 0,
            plain: 0,
            bare: 0,
            guard: RateGuard::new(BARE_RECORDS, BARE_RECORDS_PER_SECOND),
        }
    }

    /// Scans the next bytes. Returns the number of records that have arrived in full.
    pub(super) fn scan(&mut self, mut input: &[u8]) -> usize {
        let before = self.arrived;
        while !input.is_empty() {
            if self.left > 0 {
                let skipped = self.left.min(input.len());
                self.left -= skipped;
                input = &input[skipped..];
            } else {
                let taken = input.len().min(HEAD - self.head_len);
                self.head[self.head_len..][..taken].copy_from_slice(&input[..taken]);
                self.head_len += taken;
                input = &input[taken..];
                if self.head_len < HEAD {
                    break;
                }
                self.head_len = 0;
                let [.., l1, l2] = self.head;
                self.left = usize::from(u16::from_be_bytes([l1, l2]));
            }
            self.arrived += u64::from(self.left == 0);
            self.plain += u64::from(self.left == 0 && self.head[0] == HANDSHAKE);
        }
        (self.arrived - before) as usize
    }

    /// Returns the records that have arrived in full.
    pub(super) fn scanned(&self) -> Records {
        Records {
            all: self.arrived,
            plain: self.plain,
        }
    }

    /// Reports whether too many records had no bytes for HTTP/2. `opened`: the records that had bytes. Call this
    /// function when rustls has opened all records so far, and their bytes were taken.
    pub(super) fn is_flooded(&mut self, opened: u64) -> bool {
        let bare = self.arrived.saturating_sub(opened);
        if bare <= self.bare {
            return false;
        }
        let more = u32::try_from(bare - self.bare).unwrap_or(u32::MAX);
        self.bare = bare;
        !self.guard.allow(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_are_found_however_the_bytes_are_cut() {
        let lens: [u16; 6] = [0, 1, 23, 16_384, 0, 5];
        // The first record and the last record are records of a handshake.
        let kind = |len: u16| if len == 0 || len == 5 { 22 } else { 23 };
        let record = |len: u16| [&[kind(len), 3, 3], &len.to_be_bytes()[..], &vec![9; usize::from(len)]].concat();
        let records: Vec<_> = lens.into_iter().flat_map(record).collect();
        for size in [1, 2, 5, 6, 7, 100, records.len()] {
            let mut scanner = RecordScanner::new();
            let arrived: usize = records.chunks(size).map(|part| scanner.scan(part)).sum();
            assert_eq!((arrived, scanner.scanned().plain), (lens.len(), 3), "{size}");
            assert_eq!((scanner.left, scanner.head_len), (0, 0));
        }
    }
}
