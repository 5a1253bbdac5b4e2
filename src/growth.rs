//! The size of an index for a number of keys.
//!
//! Random keys fill all shards evenly. If all shards grew at the same fill, they would grow at the same time, and
//! memory and pauses would spike together. Instead, each shard has its own geometric series of sizes, shifted by its
//! share of one step. So at any time only a few shards are about to grow.

use crate::layout::{SHARDS, SLOTS_PER_BUCKET};

/// The factor from one size to the next.
const GROWTH: f64 = 1.1875;
/// The share of occupied slots (LIVE, SPILL, DEAD and RETIRED) at which an index is replaced.
const MAX_LOAD: f64 = 0.9;
/// The minimum room of a new index: its contents may grow by this factor before the index is replaced again.
pub(crate) const MIN_ROOM: f64 = 1.03125;

/// How many slots of an index with this many buckets may be occupied before the index is replaced.
pub(crate) fn max_used(buckets: u32) -> u32 {
    (f64::from(buckets * SLOTS_PER_BUCKET) * MAX_LOAD) as u32
}

/// How many slots may be occupied while one thread copies the index: a 32nd more than [`max_used`]. A copy takes as
/// long as one insertion for each ten records, and one insertion in [`SHARDS`] is into the shard. So 40 threads insert
/// about as many.
pub(crate) fn most_used(buckets: u32) -> u32 {
    let first = max_used(buckets);
    first + first / 32
}

/// How many buckets the index of a shard with `keys` keys has.
pub(crate) fn buckets_for(keys: u32, shard: u16) -> u32 {
    let slots = f64::from(keys + 1) * MIN_ROOM / MAX_LOAD;
    next_size(
        slots / f64::from(SLOTS_PER_BUCKET),
        f64::from(shard % SHARDS as u16) / SHARDS as f64,
    )
}

/// The first size of a series that is not below `least`. The series is shifted by a share of one step.
pub(crate) fn next_size(least: f64, share: f64) -> u32 {
    let step = (least.max(1.0).ln() / GROWTH.ln() - share).ceil();
    (GROWTH.powf(step + share).round() as u32).max(least.ceil() as u32)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn an_index_has_room_to_grow_but_not_much_more() {
        for shard in [0, 77, 127, 255] {
            for keys in (0..200).chain((200..2_000_000).step_by(9_973)) {
                let buckets = buckets_for(keys, shard);
                assert!(max_used(buckets) > keys, "{keys} keys in {buckets} buckets");
                let slots = f64::from(buckets * SLOTS_PER_BUCKET);
                let most = f64::from(keys + 1) * MIN_ROOM / MAX_LOAD * GROWTH + 2.0 * f64::from(SLOTS_PER_BUCKET);
                assert!(slots <= most, "{keys} keys in {slots} slots, shard {shard}");
            }
        }
    }

    #[test]
    fn shards_of_one_fill_do_not_all_grow_together() {
        let sizes: std::collections::BTreeSet<_> = (0..SHARDS as u16).map(|shard| buckets_for(4_000, shard)).collect();
        assert!(sizes.len() > 20, "{sizes:?}");
    }
}
