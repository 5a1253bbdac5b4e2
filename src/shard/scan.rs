//! Copies a shard's routes, a bounded part at a time.
//!
//! A shard's keys have an order: by their hash mixed with the index's seed ([`mix`]), then by their node. The home
//! bucket is monotone in that order, for every number of buckets ([`home`]). So a range of the order is a range of home
//! buckets, in each index with that seed. To copy the range, read those buckets, and the buckets to which keys were
//! displaced. A position in the order stays valid while the shard grows, sheds tombstones and moves.
//!
//! A crowded index gets another seed, and so another order. A position has its seed. In an index with another seed, the
//! keys of a range may be in any bucket, so the copy reads all buckets. A copy that begins a shard uses the seed of the
//! present index.
//!
//! The seeds of a shard's indexes are the beginning of one sequence, from 0 on. So a copy knows whether an index of the
//! shard had a seed, and takes any other seed for the present one. A forged cursor makes no copy read all buckets.

use smallvec::SmallVec;

use crate::layout::SLOTS_PER_BUCKET;
use crate::liveness::Liveness;
use crate::shard::index::Shape;
use crate::shard::key::Key;
use crate::shard::probe::{first_rank, home, mix};
use crate::shard::published::Published;
use crate::shard::rebuild::crowded_shape;
use crate::shard::routes::{Words, read};
use crate::shard::{Scope, Shard, newest_first};
use crate::types::node_id::NodeId;

/// The most home buckets of one part. The part also reads up to 63 buckets after them for displaced keys.
const MOST_BUCKETS: u32 = if cfg!(loom) { 1 } else { 64 };

/// A key's mixed hash, and its record with its number.
type Found<'g> = (u64, Published<'g>, u32);

/// The most keys of a part that need no allocation.
const INLINE: usize = 64;

/// Where in a shard's order a part begins.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start<'n> {
    /// With the first key.
    Beginning,
    /// With the first key of at least this rank. A key's rank is the upper half of its hash as the seed mixes it.
    Rank { seed: u64, rank: u32 },
    /// With the first key after that of a node. The node itself need not be in the shard.
    After { seed: u64, hash: u64, node: &'n NodeId },
}

/// Where in a shard's order the next part begins.
#[derive(Debug)]
pub(crate) enum Next {
    Rank(u32),
    After(NodeId),
    /// There is no next part.
    End,
}

/// How the scan of a part ended, and where the next part starts.
#[derive(Debug)]
pub(crate) struct PartEnd {
    /// The seed of the order.
    pub(crate) seed: u64,
    /// How many slots were read.
    pub(crate) slots: u32,
    pub(crate) next: Next,
}

impl PartEnd {
    /// The part of a shard without keys.
    pub(crate) const NONE: PartEnd = PartEnd {
        seed: 0,
        slots: 0,
        next: Next::End,
    };
}

impl<K: Key> Shard<K> {
    /// Calls `each` with each of the next nodes that have valid routes, the number of its record, and these routes,
    /// newest first. The nodes are some of the next `most` keys, in order; but if `most` is [`usize::MAX`], they are
    /// not sorted.
    ///
    /// The whole part reads one index under one pin. A route that exists all the time is in a record of this index. The
    /// index was the root's at the beginning, and slots are written once (invariant 1). The record is in the home
    /// bucket of its key, or behind a run of buckets that were full when the key was inserted. These buckets are still
    /// full. An index that replaces this index meanwhile has the same record, or the record has moved. Then its frozen
    /// word still holds the route (9). The record is not reused under the pin (7).
    ///
    /// No node is reported twice. A key has one record in one index that is not RETIRED. It gets a second record only
    /// after a rebuild that lost has made the first record RETIRED (6). Both records have the same place in the order,
    /// so they are in the same part. All slots are read before the words: if the second record was found, the first
    /// record's word is read after it became RETIRED.
    pub(crate) fn scan<P: Liveness>(
        &self,
        start: Start<'_>,
        most: usize,
        scope: &Scope<'_, P>,
        mut each: impl FnMut(NodeId, u32, &Words),
    ) -> PartEnd {
        let Some(index) = self.root(scope.guard) else {
            return PartEnd::NONE;
        };
        let shape = index.shape();
        let (seed, least, after) = match start {
            Start::Beginning => (shape.seed, 0, None),
            Start::Rank { seed, rank } => (known(seed, shape), u64::from(rank) << 32, None),
            Start::After { seed, hash, node } => {
                let seed = known(seed, shape);
                (seed, mix(hash, seed), Some(node))
            }
        };
        let homes = if seed == shape.seed {
            let first = home(least, shape.buckets);
            first..shape.buckets.min(first + buckets_with(most))
        } else {
            0..shape.buckets
        };

        let mut found = SmallVec::<[Found<'_>; INLINE]>::new();
        let (looked, end) = index.with_homes(homes, |number, record| found.push((0, record, number)));
        let end = (end < shape.buckets).then(|| first_rank(end, shape.buckets));
        let node = |record: &Published<'_>| record.node::<K>();
        found.retain(|(mixed, record, _)| {
            *mixed = mix(K::hash_stored(record.key(), scope.hasher), seed);
            *mixed >= least
                && end.is_none_or(|end| *mixed >> 32 < u64::from(end))
                && (*mixed > least || after.is_none_or(|after| node(record) > *after))
        });
        let mut next = end.map_or(Next::End, Next::Rank);
        if most < usize::MAX {
            let order = |(mixed, record, _): &Found<'_>, (other_mixed, other, _): &Found<'_>| {
                mixed.cmp(other_mixed).then_with(|| node(record).cmp(&node(other)))
            };
            let is_cut = found.len() > most;
            if is_cut {
                found.select_nth_unstable_by(most, order);
                found.truncate(most);
            }
            found.sort_unstable_by(order);
            if is_cut && let Some((_, last, _)) = found.last() {
                next = Next::After(node(last));
            }
        }
        let mut words = Words::new();
        for (_, record, number) in &found {
            words.clear();
            read(record, scope, |word| words.push(word));
            if !words.is_empty() {
                newest_first(&mut words);
                each(node(record), *number, &words);
            }
        }
        PartEnd {
            seed,
            slots: looked * SLOTS_PER_BUCKET,
            next,
        }
    }
}

/// The seed, if the shape or an earlier index of the shard has the seed; otherwise the seed of the shape.
fn known(seed: u64, shape: Shape) -> u64 {
    let mut earlier = 0;
    while earlier != shape.seed && earlier != seed {
        let of = Shape {
            seed: earlier,
            reseeds: 0,
            ..shape
        };
        earlier = crowded_shape(of).seed;
    }
    earlier
}

/// How many home buckets have about `keys` keys at seven in eight slots taken; at most [`MOST_BUCKETS`].
fn buckets_with(keys: usize) -> u32 {
    let buckets = keys.saturating_mul(8) / (7 * SLOTS_PER_BUCKET as usize) + 1;
    u32::try_from(buckets).map_or(MOST_BUCKETS, |buckets| buckets.min(MOST_BUCKETS))
}
