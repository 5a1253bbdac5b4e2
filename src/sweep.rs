//! The position of the sweeper, and the promise of a round.
//!
//! A round visits the shards of UUIDs, then those of names, then the proxies. The cursor is one word, and advances only
//! *after* a visit. A thread reads the cursor, visits the part to which it points, and then tries to advance it.
//! Threads that sweep at the same time do the same work, which is harmless, and only one of them advances the cursor. A
//! thread that is stopped in the middle delays no other thread. So when a round ends, every shard was visited by a
//! thread that began the visit after the round had begun. (If a thread claimed a part before it visited the part, a
//! stopped thread would leave a hole.)
//!
//! A round does not see a route that a thread puts into a shard after that shard's visit. Therefore `proxies` waits for
//! a grace period before the round.

#[cfg(all(test, loom))]
mod models;

use crate::layout::{ROUND_BITS, ROUNDS, SHARDS};
use crate::proxies::{Moment, Proxies};
use crate::shard::rebuild::RebuildSlot;
use crate::shard::{RecordPosition, Scope, Visit};
use crate::shards::Shards;
use crate::sync::{AtomicU64, Ordering, collect, failpoint, garbage};

/// Bits of a record's or a proxy's number.
const CURSOR_NUMBER_BITS: u32 = 24;
const MOVE_COUNT_BITS: u32 = 8;
const STAGE_BITS: u32 = 10;
const ROUND_SHIFT: u32 = STAGE_BITS + MOVE_COUNT_BITS + CURSOR_NUMBER_BITS;

const _: () = assert!(ROUND_SHIFT + ROUND_BITS == 64, "the fields of a position fill a word");

/// The stage of a round that visits the proxies. The stages before it visit the shard of the same number.
const PROXIES: usize = 2 * SHARDS;

/// The sweeper's position: round (22 bits), stage (10), the slab's move count (8), record or proxy number (24).
///
/// If the move count differs, the shard has moved since the sweeper began it, and the sweeper begins the shard again. A
/// move begins only after the visit of all records, in a step of its own. So a move count repeats unnoticed only if 256
/// sweepers are stopped in the middle of the same shard, in rounds long past. They would then have to continue one
/// after the other while another sweeper visits it.
#[derive(Debug)]
pub(crate) struct Cursor {
    position: AtomicU64,
    parked: RebuildSlot,
}

impl Default for Cursor {
    /// Starts in round 1, so that no proxy was seen in it.
    fn default() -> Self {
        let start = Position {
            round: 1,
            stage: 0,
            record: RecordPosition::default(),
        };
        Self {
            position: AtomicU64::new(start.pack()),
            parked: RebuildSlot::default(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    round: u32,
    stage: usize,
    record: RecordPosition,
}

impl Position {
    fn pack(self) -> u64 {
        u64::from(self.round) << ROUND_SHIFT
            | (self.stage as u64) << (MOVE_COUNT_BITS + CURSOR_NUMBER_BITS)
            | u64::from(self.record.move_count) << CURSOR_NUMBER_BITS
            | u64::from(self.record.number)
    }

    fn unpack(packed: u64) -> Self {
        Self {
            round: (packed >> ROUND_SHIFT) as u32,
            stage: (packed >> (MOVE_COUNT_BITS + CURSOR_NUMBER_BITS)) as usize & ((1 << STAGE_BITS) - 1),
            record: RecordPosition {
                move_count: (packed >> CURSOR_NUMBER_BITS) as u8,
                number: packed as u32 & ((1 << CURSOR_NUMBER_BITS) - 1),
            },
        }
    }
}

/// The most records or proxies that a step visits. A step has one pin. So this bounds the objects that a sweep retires
/// under one pin, and how long the pin holds back garbage of other threads. A pin costs a hundredth of this many
/// visits.
const MOST_PER_STEP: u32 = 512;

/// The most garbage that the last step of a stage frees, in units of 512 objects. Bounded, because a thread that was
/// stopped may have left a million objects.
const MOST_COLLECTIONS: usize = 8;

/// The result of one step of a sweep.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Step {
    pub(crate) visited: u32,
    pub(crate) removed: usize,
    /// Of these, routes that were expired.
    pub(crate) expired: usize,
    /// Whether the step moved a shard.
    pub(crate) has_moved: bool,
    /// The number of routes that stay and were last refreshed before `late_before`; zero if another thread did the same
    /// step.
    pub(crate) late: usize,
    /// The stage of the step: a shard, or [`PROXIES`].
    pub(crate) stage: usize,
    /// Whether this step ended the stage.
    pub(crate) stage_completed: bool,
    pub(crate) round_completed: bool,
}

/// How often to collect at the end of each stage, so that a round frees the garbage, unless there are a million
/// objects. At least once: crossbeam's own garbage, the nodes of its queue, is not counted.
pub(crate) fn collections(objects: usize) -> usize {
    objects.div_ceil(512).clamp(1, MOST_COLLECTIONS)
}

impl Cursor {
    fn load(&self) -> Position {
        // Acquire: pairs with the CAS in `step`, so that a visit follows the earlier visits of the round.
        Position::unpack(self.position.load(Ordering::Acquire))
    }

    /// Visits one part of the table, of at most `most` records, and advances. Counts the routes that were last
    /// refreshed before the tick `late_before`.
    pub(crate) fn step(
        &self,
        most: u32,
        shards: &Shards,
        proxies: &Proxies,
        scope: &Scope<'_, Proxies>,
        late_before: u64,
    ) -> Step {
        let most = most.min(MOST_PER_STEP);
        let at = self.load();
        failpoint("sweep: before the visit");
        let mut after = Position {
            stage: at.stage + 1,
            record: RecordPosition::default(),
            ..at
        };
        let mut round_completed = false;
        let mut late = 0;
        let visit = match at.stage {
            ..PROXIES => {
                let mut census = proxies.census(at.round, late_before);
                let visit = shards.visit(at.stage, at.record, most, &self.parked, scope, &mut census);
                late = census.late;
                visit.unwrap_or_else(|| {
                    after.stage = PROXIES;
                    Visit {
                        visited: 0,
                        removed: 0,
                        expired: 0,
                        has_moved: false,
                        next: None,
                    }
                })
            }
            _ => {
                let moment = Moment::new(scope.now, scope.kept_age);
                // AcqRel: Release pairs with the CAS below and the load in `load`. This write does not change the
                // value. Another thread may advance the cursor later, and visit shards in the next round. That thread
                // is ordered after what this thread has seen: the end of a grace period. Acquire pairs with the CAS
                // below.
                let round_now = || Position::unpack(self.position.fetch_add(0, Ordering::AcqRel)).round;
                let (visited, next) = proxies.visit(at.record.number, most, at.round, round_now, moment, scope.guard);
                if next.is_none() {
                    round_completed = true;
                    after = Position {
                        round: (at.round + 1) % ROUNDS,
                        stage: 0,
                        record: RecordPosition::default(),
                    };
                }
                Visit {
                    visited,
                    removed: 0,
                    expired: 0,
                    has_moved: false,
                    next: next.map(|number| RecordPosition { move_count: 0, number }),
                }
            }
        };
        match visit.next {
            Some(record) => after = Position { record, ..at },
            // Once per stage: if no other thread pins for long, garbage would wait for the next pin.
            None => collect(scope.guard, collections(garbage().objects)),
        }
        failpoint("sweep: before the advance");
        // AcqRel: Release pairs with the load in `load`, and so passes on the round's promise. Acquire pairs with
        // `round_now`.
        let advanced = self
            .position
            .compare_exchange(at.pack(), after.pack(), Ordering::AcqRel, Ordering::Relaxed)
            .is_ok();
        Step {
            visited: visit.visited,
            removed: visit.removed,
            expired: visit.expired,
            has_moved: visit.has_moved,
            late: if advanced { late } else { 0 },
            stage: at.stage,
            stage_completed: advanced && after.stage != at.stage,
            round_completed: round_completed && advanced,
        }
    }
}
