//! Bytes: the format's fixed values, streams with checksums, and the parts of sections.

use std::io::{self, Read, Write};

use crc32fast::Hasher;

use crate::snapshot::error::{SnapshotError, SnapshotFault, SnapshotPart};

/// The magic is not text. A tool that treats the snapshot as text damages the magic.
pub(super) const MAGIC: [u8; 8] = *b"\x89NTRACK\n";
pub(super) const VERSION: u32 = 2;
pub(super) const HEAD_BYTES: usize = 9;
/// The maximum length of a payload.
pub(super) const MAX_PAYLOAD: usize = 1 << 20;
/// The length at which a payload is written and the next section begins. No item makes a payload much longer.
pub(super) const FULL_PAYLOAD: usize = 1 << 17;

/// A kind of section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SectionKind {
    Proxies = 1,
    Uuids = 2,
    Names = 3,
    Incarnations = 4,
    End = 5,
}

impl SectionKind {
    pub(super) fn of(byte: u8) -> Option<SectionKind> {
        [
            SectionKind::Proxies,
            SectionKind::Uuids,
            SectionKind::Names,
            SectionKind::Incarnations,
            SectionKind::End,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    pub(super) fn part(self) -> SnapshotPart {
        match self {
            SectionKind::Proxies => SnapshotPart::Proxies,
            SectionKind::Uuids => SnapshotPart::Uuids,
            SectionKind::Names => SnapshotPart::Names,
            SectionKind::Incarnations => SnapshotPart::Incarnations,
            SectionKind::End => SnapshotPart::End,
        }
    }
}

/// Writes bytes and their checksums.
pub(super) struct Sink<W> {
    to: W,
    checksum: Hasher,
    pub(super) bytes: u64,
}

impl<W: Write> Sink<W> {
    pub(super) fn new(to: W) -> Self {
        Self {
            to,
            checksum: Hasher::new(),
            bytes: 0,
        }
    }

    /// Writes bytes, then the checksum of all bytes so far.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.checksum.update(bytes);
        self.to.write_all(bytes)?;
        let checksum = self.checksum.clone().finalize().to_le_bytes();
        self.to.write_all(&checksum)?;
        self.bytes += (bytes.len() + checksum.len()) as u64;
        Ok(())
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// A section that is being written.
pub(super) struct Section {
    kind: SectionKind,
    items: u32,
    payload: Vec<u8>,
}

impl Section {
    pub(super) fn new(kind: SectionKind) -> Self {
        Self {
            kind,
            items: 0,
            payload: Vec::new(),
        }
    }

    /// Adds an item of a kind, which `encode` appends. First writes the section if it has another kind or is full.
    pub(super) fn push<W: Write>(
        &mut self,
        kind: SectionKind,
        sink: &mut Sink<W>,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> io::Result<()> {
        if kind != self.kind || self.payload.len() >= FULL_PAYLOAD {
            self.write(sink)?;
            self.kind = kind;
        }
        encode(&mut self.payload);
        self.items += 1;
        Ok(())
    }

    /// Writes the section unless it is empty.
    pub(super) fn write<W: Write>(&mut self, sink: &mut Sink<W>) -> io::Result<()> {
        if self.payload.is_empty() {
            return Ok(());
        }
        let mut head = [0; HEAD_BYTES];
        head[0] = self.kind as u8;
        head[1..5].copy_from_slice(&self.items.to_le_bytes());
        head[5..].copy_from_slice(&(self.payload.len() as u32).to_le_bytes());
        sink.write(&head)?;
        sink.write(&self.payload)?;
        self.items = 0;
        self.payload.clear();
        Ok(())
    }

    /// Writes a snapshot's end.
    pub(super) fn write_end<W: Write>(totals: [u64; 4], sink: &mut Sink<W>) -> io::Result<()> {
        let mut end = Section::new(SectionKind::End);
        end.payload.extend(totals.iter().flat_map(|total| total.to_le_bytes()));
        end.write(sink)
    }
}

pub(super) fn put_varint(to: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        to.push(value as u8 | 0x80);
        value >>= 7;
    }
    to.push(value as u8);
}

/// `text` has at most 255 bytes.
pub(super) fn put_text(to: &mut Vec<u8>, text: &str) {
    to.push(text.len() as u8);
    to.extend_from_slice(text.as_bytes());
}

/// Reads bytes and checks their checksums.
pub(super) struct Source<R> {
    from: R,
    checksum: Hasher,
    pub(super) offset: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(from: R) -> Self {
        Self {
            from,
            checksum: Hasher::new(),
            offset: 0,
        }
    }

    /// Fills `bytes`, which belong to `part`.
    pub(super) fn read(&mut self, bytes: &mut [u8], part: SnapshotPart) -> Result<(), SnapshotError> {
        let mut done = 0;
        while done < bytes.len() {
            match self.read_some(&mut bytes[done..])? {
                0 => return Err(damaged(part, self.offset, SnapshotFault::Truncated)),
                more => done += more,
            }
        }
        self.checksum.update(bytes);
        Ok(())
    }

    fn read_some(&mut self, bytes: &mut [u8]) -> Result<usize, SnapshotError> {
        loop {
            match self.from.read(bytes) {
                Ok(more) => {
                    self.offset += more as u64;
                    return Ok(more);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = self.offset;
                    return Err(SnapshotError::Read { offset, source });
                }
            }
        }
    }

    /// Reads and checks a checksum of all bytes so far.
    pub(super) fn check(&mut self, part: SnapshotPart) -> Result<(), SnapshotError> {
        let checksum = self.checksum.clone();
        let computed = checksum.clone().finalize();
        let offset = self.offset;
        let mut stored = [0; 4];
        self.read(&mut stored, part)?;
        // A checksum does not cover other checksums.
        self.checksum = checksum;
        let stored = u32::from_le_bytes(stored);
        if stored == computed {
            Ok(())
        } else {
            Err(damaged(part, offset, SnapshotFault::Checksum { stored, computed }))
        }
    }

    /// Checks that nothing follows.
    pub(super) fn finish(&mut self) -> Result<(), SnapshotError> {
        let offset = self.offset;
        match self.read_some(&mut [0])? {
            0 => Ok(()),
            _ => Err(damaged(SnapshotPart::End, offset, SnapshotFault::Trailing)),
        }
    }
}

pub(super) fn damaged(part: SnapshotPart, offset: u64, fault: SnapshotFault) -> SnapshotError {
    SnapshotError::Damaged { part, offset, fault }
}

/// A payload that is being read.
pub(super) struct Payload<'a> {
    bytes: &'a [u8],
    /// How many of the bytes are read.
    pub(super) at: usize,
    part: SnapshotPart,
    /// Where the bytes begin in the snapshot.
    offset: u64,
}

impl<'a> Payload<'a> {
    pub(super) fn new(bytes: &'a [u8], part: SnapshotPart, offset: u64) -> Self {
        Self {
            bytes,
            at: 0,
            part,
            offset,
        }
    }

    /// The error for a fault that is `at` bytes into the payload.
    #[cold]
    pub(super) fn fault(&self, at: usize, fault: SnapshotFault) -> SnapshotError {
        damaged(self.part, self.offset + at as u64, fault)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], SnapshotError> {
        match self.bytes.get(self.at..).and_then(|rest| rest.get(..count)) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => Err(self.fault(self.at, SnapshotFault::Short)),
        }
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    #[inline]
    pub(super) fn byte(&mut self) -> Result<u8, SnapshotError> {
        Ok(self.take(1)?[0])
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, SnapshotError> {
        let start = self.at;
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7F);
            // The last byte has one bit of the 64 left, and only the first byte may end a number with zeros.
            if bits << shift >> shift != bits || byte == 0 && shift > 0 {
                break;
            }
            value |= bits << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.fault(start, SnapshotFault::Varint))
    }

    pub(super) fn text(&mut self) -> Result<&'a str, SnapshotError> {
        let start = self.at;
        let len = self.byte()?;
        let bytes = self.take(len.into())?;
        std::str::from_utf8(bytes).map_err(|_| self.fault(start, SnapshotFault::Utf8))
    }

    /// Checks that all bytes are read.
    pub(super) fn finish(&self) -> Result<(), SnapshotError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            bytes => Err(self.fault(self.at, SnapshotFault::Long { bytes })),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<u64, SnapshotError> {
        Payload::new(bytes, SnapshotPart::Uuids, 0).varint()
    }

    #[test]
    fn a_varint_is_read_as_it_was_written() {
        let powers = (0..64).map(|bit| 1_u64 << bit);
        for value in powers.flat_map(|power| [power - 1, power, power + 1]).chain([u64::MAX]) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            assert_eq!(read(&bytes).expect("it is a varint"), value);
        }
    }

    #[test]
    fn a_varint_is_neither_too_large_nor_longer_than_it_must_be() {
        let faulty: [&[u8]; 5] = [
            &[0x80, 0x00],
            &[0xFF, 0x80, 0x00],
            &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02],
            &[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x81, 0x01],
            &[0x80; 20],
        ];
        for bytes in faulty {
            let fault = SnapshotFault::Varint;
            assert!(
                matches!(read(bytes), Err(SnapshotError::Damaged { offset: 0, fault: found, .. }) if found == fault),
                "{bytes:?}"
            );
        }
        assert!(matches!(
            read(&[0x80]),
            Err(SnapshotError::Damaged {
                fault: SnapshotFault::Short,
                ..
            })
        ));
    }
}
