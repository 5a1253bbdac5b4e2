//! A key's probe sequence through an index, and how look-ups and insertions follow it.
//!
//! The sequence starts at a slot of its own in its home bucket, wraps around that bucket, and continues with the next
//! buckets. A look-up that misses at a load factor of 0.9 probes about one and a half cache lines, because probes are
//! of whole lines. Plain linear probing would read fifty slots.

use crate::layout::{RECORD_BITS, SLOTS_PER_BUCKET};
use crate::mem::prefetch::prefetch;
use crate::shard::bucket::{ends, first, from_offset, same_tag, same_tag_or_end};
#[cfg(not(loom))]
use crate::shard::index::Header;
use crate::shard::index::{EMPTY, FROZEN, Index, number_in};
use crate::shard::published::Published;
use crate::sync::Ordering;

/// The most buckets of a probe sequence. At a load factor of 0.9, full buckets come in runs. With 16 buckets, a longer
/// run caused one rebuild in seven; with 64, almost none.
pub(super) const PROBED_BUCKETS: u32 = 64;

/// The bucket with which a probe sequence continues.
#[inline]
pub(super) fn following(bucket: u32, buckets: u32) -> u32 {
    if bucket + 1 == buckets { 0 } else { bucket + 1 }
}

/// A key's probe sequence.
#[derive(Clone, Copy)]
pub(super) struct Probe {
    pub(super) bucket: u32,
    pub(super) offset: u32,
    pub(super) tag: u32,
}

/// Mixes a hash with a seed. A key's home bucket, offset and tag come from the result. With one seed, different
/// hashes give different results.
#[inline]
pub(crate) fn mix(hash: u64, seed: u64) -> u64 {
    // All hashes of a shard have the same top bits, so mix the other bits into the top: an odd factor carries each bit
    // upwards.
    (hash ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The home bucket of a key, from its mixed hash. It is monotone in `mixed`: [`scan`](crate::shard::scan) relies on
/// that.
#[inline]
pub(crate) fn home(mixed: u64, buckets: u32) -> u32 {
    (((mixed >> 32) * u64::from(buckets)) >> 32) as u32
}

/// The least upper half of a mixed hash with this home bucket. `bucket` must be below `buckets`.
pub(crate) fn first_rank(bucket: u32, buckets: u32) -> u32 {
    debug_assert!(bucket < buckets);
    (u64::from(bucket) << 32).div_ceil(u64::from(buckets)) as u32
}

impl Probe {
    #[inline]
    fn new(hash: u64, seed: u64, buckets: u32) -> Probe {
        let mixed = mix(hash, seed);
        Probe {
            bucket: home(mixed, buckets),
            offset: (mixed >> 24) as u32 % SLOTS_PER_BUCKET,
            tag: (mixed as u32 >> 8) << RECORD_BITS,
        }
    }
}

/// Prefetches a key's home bucket in a root's index, if the index has this many buckets and the seed 0. A prefetch
/// reads nothing, so it needs no pin, and `root` and `buckets` may be stale.
#[cfg(not(loom))]
#[inline]
pub(crate) fn prefetch_bucket(root: *const Header, buckets: u32, hash: u64) {
    let bucket = Probe::new(hash, 0, buckets).bucket;
    prefetch(
        root.cast::<[u32; SLOTS_PER_BUCKET as usize]>()
            .wrapping_add(1 + bucket as usize),
    );
}

impl<'g> Index<'g> {
    #[inline]
    pub(super) fn probe(self, hash: u64) -> Probe {
        let header = self.header();
        Probe::new(hash, header.shape.seed, header.shape.buckets)
    }

    /// Prefetches the key's home bucket.
    #[inline]
    pub(crate) fn prefetch(self, hash: u64) {
        prefetch(self.bucket(self.probe(hash).bucket));
    }

    /// The first record with the key's tag in its home bucket: if the key has a record, nearly always the key's record.
    /// Starts loading the record.
    #[inline]
    pub(crate) fn candidate(self, hash: u64) -> Option<(u32, Published<'g>)> {
        let probe = self.probe(hash);
        self.find_in(probe.bucket, probe, |number, record| {
            record.prefetch();
            Some((number, record))
        })
    }

    /// Finds the first record with the key's tag in one bucket of its probe sequence that `accept` takes.
    #[inline]
    fn find_in<R>(
        self,
        bucket: u32,
        probe: Probe,
        mut accept: impl FnMut(u32, Published<'g>) -> Option<R>,
    ) -> Option<R> {
        let line = self.bucket(bucket);
        let mut hits = from_offset(same_tag(line, probe.tag), probe.offset);
        while hits != 0 {
            // Acquire: as in `find`.
            let value = line[first(hits, probe.offset)].load(Ordering::Acquire);
            // A slot that was EMPTY in the comparison may be taken now, which is as good.
            if value != EMPTY
                && value != FROZEN
                && (value ^ probe.tag) >> RECORD_BITS == 0
                && let Some(result) = accept(number_in(value), self.record_in(value))
            {
                return Some(result);
            }
            hits &= hits - 1;
        }
        None
    }

    /// Finds the first record in the key's probe sequence that `accept` takes.
    ///
    /// Slots are written once, in the order of the sequence (invariant 1). So if the sequence has an EMPTY slot when
    /// its bucket is compared, the key is not in the index at that moment.
    #[inline]
    pub(crate) fn find<R>(self, hash: u64, mut accept: impl FnMut(Published<'g>) -> Option<R>) -> Option<R> {
        let probe = self.probe(hash);
        let buckets = self.header().shape.buckets;
        let mut bucket = probe.bucket;
        for _ in 0..buckets.min(PROBED_BUCKETS) {
            // Acquire, of slots: pairs with the CAS that filled the slot (or with the store of a rebuild, through the
            // root).
            if let Some(result) = self.find_in(bucket, probe, |_, record| accept(record)) {
                return Some(result);
            }
            if ends(self.bucket(bucket)) != 0 {
                return None;
            }
            bucket = following(bucket, buckets);
        }
        None
    }

    /// Follows the key's probe sequence until `accept` takes a record, or `offer` returns the number of a record for
    /// the first EMPTY slot.
    pub(crate) fn find_or_fill<E>(
        self,
        hash: u64,
        mut accept: impl FnMut(Published<'g>) -> bool,
        mut offer: impl FnMut() -> Result<u32, E>,
    ) -> Result<Filled<'g>, E> {
        let probe = self.probe(hash);
        // Nearly always the key is known and in its home bucket.
        let known = self.find_in(probe.bucket, probe, |number, record| {
            accept(record).then_some(Filled::Found(number, record))
        });
        if let Some(known) = known {
            return Ok(known);
        }
        let buckets = self.header().shape.buckets;
        let mut bucket = probe.bucket;
        for _ in 0..buckets.min(PROBED_BUCKETS) {
            let line = self.bucket(bucket);
            // The other slots have other keys' records, for good.
            let mut left = from_offset(same_tag_or_end(line, probe.tag), probe.offset);
            while left != 0 {
                let slot = &line[first(left, probe.offset)];
                left &= left - 1;
                // Acquire: as in `find`.
                let mut value = slot.load(Ordering::Acquire);
                if value == EMPTY {
                    let number = offer()?;
                    // Release: publishes the record's key; pairs with the Acquire loads of slots. Acquire on failure:
                    // the slot is checked again, as after a load.
                    match slot.compare_exchange(EMPTY, probe.tag | (number + 1), Ordering::Release, Ordering::Acquire) {
                        Ok(_) => return Ok(Filled::Won),
                        Err(won) => value = won,
                    }
                }
                if value == FROZEN {
                    return Ok(Filled::Frozen);
                }
                if (value ^ probe.tag) >> RECORD_BITS == 0 {
                    let record = self.record_in(value);
                    if accept(record) {
                        return Ok(Filled::Found(number_in(value), record));
                    }
                }
            }
            bucket = following(bucket, buckets);
        }
        Ok(Filled::Crowded)
    }
}

/// The result of [`Index::find_or_fill`].
pub(crate) enum Filled<'g> {
    /// The key has this record.
    Found(u32, Published<'g>),
    /// The offered record is published.
    Won,
    /// The index is being replaced.
    Frozen,
    /// The probe sequence is full, and the key is not in it.
    Crowded,
}
