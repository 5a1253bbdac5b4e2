//! Sweeping.

use crate::sync::pin;
use crate::table::RouteTable;

/// What [`RouteTable::sweep`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct SweepReport {
    /// Records visited, including free records and records of removed nodes, and proxies. A record with many routes
    /// counts as several. Copying a part of an index, moving a shard, freeing a name and forgetting incarnations count
    /// as visits, too.
    pub visited: usize,
    /// Routes removed because they were expired or their proxy was removed.
    pub removed: usize,
    /// How many of the removed routes were expired. The proxies of the other removed routes were removed.
    pub expired: usize,
    /// Whether this call moved a shard to smaller memory, which takes milliseconds for a shard of some 100,000 nodes.
    pub shard_moved: bool,
    /// Whether this call ended a round: every record was visited since the end of the previous round.
    pub round_completed: bool,
}

/// # Sweeping
impl RouteTable {
    /// Does a part of the sweeper's work, and returns a report. The sweeper removes expired routes, and routes of
    /// removed proxies. It removes tombstones, frees garbage and the numbers of removed proxies, and drops idle
    /// proxies. Call `sweep` with some 256 records, so often that a round takes at most a quarter of the keep-alive
    /// interval. [`SweepPace`](crate::SweepPace) computes the pauses.
    ///
    /// The call starts where the last call stopped, visits at most `max_records` records (but at least one), and
    /// returns at the end of a round. Several threads may sweep at once, but they find the same work. Proxies are
    /// skipped while another thread has the registry's lock. If there is nothing to remove, a record costs a few
    /// nanoseconds. Moving a sparse shard to smaller memory is one step, for any `max_records`
    /// ([`SweepReport::shard_moved`]). A call of at most 512 records that begins a move does nothing else.
    pub fn sweep(&self, max_records: usize) -> SweepReport {
        self.time.look_at_the_wall();
        let mut report = SweepReport::default();
        let mut left = u32::try_from(max_records.max(1)).unwrap_or(u32::MAX);
        while left > 0 && !report.round_completed {
            let guard = pin();
            let scope = self.scope(&guard);
            let keep_alive = self.keep_alive.kept();
            let late_before = self.brake.late_before(scope.now, keep_alive);
            let step = self.cursor.step(left, &self.shards, &self.proxies, &scope, late_before);
            self.brake.after_step(&step, || self.len(), keep_alive, &self.time);
            left = left.saturating_sub(step.visited.max(1));
            report.visited += step.visited as usize;
            report.removed += step.removed;
            report.expired += step.expired;
            report.shard_moved |= step.has_moved;
            report.round_completed = step.round_completed;
        }
        report
    }
}
