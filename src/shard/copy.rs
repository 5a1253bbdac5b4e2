//! Copying a shard's routes out, a bounded part at a time.
//!
//! A shard's keys have an order: by their hash as a seed mixes it ([`mix`]), then by their node. The home bucket is monotone
//! in that order, whatever the number of buckets ([`home`]). So a range of the order is a range of home buckets, in each
//! index with that seed: to copy the range, look at those buckets, and at what was displaced from them. And a position in
//! the order stays good while the shard grows, sheds tombstones and moves.
//!
//! A crowded index gets another seed, and thereby another order. A position knows its seed; in an index with another one
//! the keys of a range are anywhere, so all buckets are looked at. Whoever begins a shard takes the seed of the day.

use smallvec::SmallVec;

use crate::key::Key;
use crate::node_id::NodeId;
use crate::proxies::Liveness;
use crate::shard::index::{BUCKET, first_rank, home, mix};
use crate::shard::routes::{Words, read};
use crate::shard::slab::Record;
use crate::shard::{Scope, Shard, newest_first};

/// The most home buckets of one part. Beside them, it looks at up to 63 buckets for displaced keys.
const MOST_BUCKETS: u32 = if cfg!(loom) { 1 } else { 64 };

/// Keys that a part has room for without an allocation.
type Found<'g> = SmallVec<[(u64, &'g Record); 64]>;

/// Where in a shard's order a part begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'n> {
    /// With the first key.
    Beginning,
    /// With the first key of at least this rank, which is the upper half of what the seed mixes hashes to.
    Rank { seed: u64, rank: u32 },
    /// With the first key after that of a node, which need not be there.
    After { seed: u64, hash: u64, node: &'n NodeId },
}

/// Where in a shard's order the next part begins.
#[derive(Debug)]
pub(crate) enum Next {
    Rank(u32),
    After(NodeId),
    /// There is none.
    End,
}

/// What was copied.
#[derive(Debug)]
pub(crate) struct Part {
    /// Of the order.
    pub(crate) seed: u64,
    /// How many slots were looked at.
    pub(crate) slots: u32,
    pub(crate) next: Next,
}

impl Part {
    /// Of a shard without keys.
    pub(crate) const NONE: Part = Part {
        seed: 0,
        slots: 0,
        next: Next::End,
    };
}

impl<K: Key> Shard<K> {
    /// Hands the next nodes that have valid routes to `each`, with these, newest first: some of the next `most` keys. They
    /// come in order, unless `most` is [`usize::MAX`], which saves the sorting.
    ///
    /// All of it looks at one index under one pin. A route that is there all the while is in a record that this index has,
    /// since the index was the root at the beginning, and slots are written once (invariant 1). It is in the home bucket of
    /// its key, or behind a run of buckets that were full when the key came, and so still are. Whatever replaces the index
    /// meanwhile shares the record, or moves it, and then its frozen word still says that the route was there (9); the record
    /// is not reused under the pin (7).
    ///
    /// No node comes twice. A key has one record that is not RETIRED in one index; a second one is put there after the
    /// first one became RETIRED, by a rebuild that lost (6). Both have the same place in the order, so they are in the same
    /// part. Slots are all read before words are: if the second record was found, the first one's word is read after it
    /// became RETIRED.
    pub(crate) fn copy<P: Liveness>(
        &self,
        start: Start<'_>,
        most: usize,
        scope: &Scope<'_, P>,
        mut each: impl FnMut(NodeId, &Words),
    ) -> Part {
        let Some(index) = self.root(scope.guard) else {
            return Part::NONE;
        };
        let shape = index.shape();
        let (seed, least, after) = match start {
            Start::Beginning => (shape.seed, 0, None),
            Start::Rank { seed, rank } => (seed, u64::from(rank) << 32, None),
            Start::After { seed, hash, node } => (seed, mix(hash, seed), Some(node)),
        };
        let homes = if seed == shape.seed {
            let first = home(least, shape.buckets);
            first..shape.buckets.min(first + buckets_with(most))
        } else {
            0..shape.buckets
        };

        let mut found = Found::new();
        let (looked, end) = index.with_homes(homes, |record| found.push((0, record)));
        let end = (end < shape.buckets).then(|| first_rank(end, shape.buckets));
        let node = |record: &Record| {
            // SAFETY: an index has the record, and the guard is pinned.
            unsafe { K::node(record.key()) }
        };
        found.retain(|(mixed, record)| {
            *mixed = mix(K::hash_stored(record.key(), scope.hasher), seed);
            *mixed >= least
                && end.is_none_or(|end| *mixed >> 32 < u64::from(end))
                && (*mixed > least || after.is_none_or(|after| node(record) > *after))
        });
        let mut next = end.map_or(Next::End, Next::Rank);
        if most < usize::MAX {
            let order = |(mixed, record): &(u64, &Record), (other_mixed, other): &(u64, &Record)| {
                mixed.cmp(other_mixed).then_with(|| node(record).cmp(&node(other)))
            };
            let is_cut = found.len() > most;
            if is_cut {
                found.select_nth_unstable_by(most, order);
                found.truncate(most);
            }
            found.sort_unstable_by(order);
            if is_cut && let Some((_, last)) = found.last() {
                next = Next::After(node(last));
            }
        }
        let mut words = Words::new();
        for (_, record) in &found {
            words.clear();
            read(record, scope, |word| words.push(word));
            if !words.is_empty() {
                newest_first(&mut words);
                each(node(record), &words);
            }
        }
        Part {
            seed,
            slots: looked * BUCKET,
            next,
        }
    }
}

/// How many home buckets have about so many keys, where most slots are taken.
fn buckets_with(keys: usize) -> u32 {
    let buckets = keys.saturating_mul(8) / (7 * BUCKET as usize) + 1;
    u32::try_from(buckets).map_or(MOST_BUCKETS, |buckets| buckets.min(MOST_BUCKETS))
}
