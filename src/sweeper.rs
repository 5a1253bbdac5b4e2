//! The pace of sweeping, and a thread that sweeps.

use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::brake::HEARTBEATS_PER_INTERVAL;
use crate::table::RouteTable;
use crate::table::sweep::SweepReport;
use crate::time::ticks;

/// Records of one step: a few microseconds. This is half of the changes that a ring of the feed keeps. So a mass expiry
/// does not overtake a subscriber between two steps.
const STEP: usize = 256;

/// Rounds over the whole table in one keep-alive interval.
const ROUNDS_PER_INTERVAL: u32 = 4;

/// The shortest pause between two turns: timers are no finer. From some ten million routes at the default interval, a
/// round takes more steps than there are such pauses, so a turn has several steps.
const MIN_PAUSE: Duration = Duration::from_millis(2);

/// The longest pause, so that a shorter keep-alive interval comes into force soon.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The fewest pauses in one heartbeat interval, so that a timer that is late does not look like a stop.
const PAUSES_PER_HEARTBEAT: u32 = 4;

/// The fewest steps of a turn after a sweep was requested. Visits of these steps take some tenths of a millisecond. So
/// the sweeper visits a million routes in less than half a second, with about a tenth of a core.
const HURRIED_STEPS: u32 = 32;

/// The most steps of one turn, whose visits take a millisecond or two. A step that copies a part of an index takes
/// longer. A step that moves a shard takes milliseconds, and ends the turn.
const MAX_STEPS: u32 = 256;

/// Spreads the sweeper's work evenly, so that a table is swept at least four times in a keep-alive interval. For
/// callers that call [`RouteTable::sweep`] from their own thread or timer; [`Sweeper`] is such a thread.
///
/// If the process was stopped, no route expires before every proxy could send a heartbeat: see
/// [`RouteTable::effective_keep_alive`].
///
/// ```
/// # use nodetracker::{RouteTable, SweepPace};
/// # let table = RouteTable::new();
/// let mut pace = SweepPace::default();
/// # for _ in 0..2 {
/// let pause = pace.next_pause(&table);
/// # assert!(pause <= std::time::Duration::from_secs(1));
/// // … wait for the pause, then:
/// pace.sweep(&table);
/// # }
/// ```
#[derive(Debug, Default)]
pub struct SweepPace {
    /// Records visited in this round.
    visited: usize,
    /// Records visited in the last whole round.
    last_round: usize,
    /// Steps of this turn that were not taken yet.
    steps: u32,
    /// Rounds that are still to be completed at [`HURRIED_STEPS`]: the round in which a sweep was requested, and a
    /// whole round.
    hurried_rounds: u32,
}

impl SweepPace {
    /// Returns the time to wait before the next [`sweep`](Self::sweep): 2 ms to 1 s, depending on the table's size and
    /// its keep-alive interval. After the removal of a proxy, and after a limit has refused a route or a proxy, the
    /// time is 2 ms for two rounds.
    ///
    /// From the first call on, the table watches the clock. If no call reads the clock for more than a third of the
    /// keep-alive interval, the table assumes that the process was stopped.
    pub fn next_pause(&mut self, table: &RouteTable) -> Duration {
        let keep_alive = table.keep_alive();
        let heartbeat = keep_alive / HEARTBEATS_PER_INTERVAL;
        table.time().set_longest_step(ticks(heartbeat));
        let round = keep_alive / ROUNDS_PER_INTERVAL;
        let (pause, steps) = self.turn(table.len(), round);
        if table.take_sweep_request() {
            self.hurried_rounds = 2;
        }
        if self.hurried_rounds > 0 {
            self.steps = steps.max(HURRIED_STEPS);
            return MIN_PAUSE;
        }
        self.steps = steps;
        let soon = (heartbeat / PAUSES_PER_HEARTBEAT).max(MIN_PAUSE);
        pause.min(soon).min(MAX_PAUSE)
    }

    fn turn(&self, routes: usize, round: Duration) -> (Duration, u32) {
        let records = self.last_round.max(self.visited).max(routes);
        let steps = u32::try_from(records / STEP + 1).unwrap_or(u32::MAX);
        let pause = round / steps;
        if pause >= MIN_PAUSE {
            return (pause, 1);
        }
        let turns = (round.as_nanos() / MIN_PAUSE.as_nanos()).max(1);
        let steps = u128::from(steps).div_ceil(turns).min(u128::from(MAX_STEPS));
        (MIN_PAUSE, steps as u32)
    }

    /// Sweeps the part of the table that is due after the pause: one step of 256 records, or several if the table is
    /// large. Returns the sum of all steps.
    pub fn sweep(&mut self, table: &RouteTable) -> SweepReport {
        let mut all = SweepReport::default();
        self.steps = self.steps.max(1);
        while let Some(report) = self.sweep_step(table) {
            all.visited += report.visited;
            all.removed += report.removed;
            all.expired += report.expired;
            all.shard_moved |= report.shard_moved;
            all.round_completed |= report.round_completed;
        }
        all
    }

    /// Takes the next of the steps that are due after the pause. Returns `None` if no step is left; a step that moves a
    /// shard is the last. Use this call instead of `sweep` if a subscriber of the change feed must take the changes of
    /// each step before the next step.
    pub fn sweep_step(&mut self, table: &RouteTable) -> Option<SweepReport> {
        self.steps = self.steps.checked_sub(1)?;
        let report = table.sweep(STEP);
        self.visited += report.visited;
        if report.shard_moved {
            self.steps = 0;
        }
        if report.round_completed {
            self.last_round = std::mem::take(&mut self.visited);
            self.hurried_rounds = self.hurried_rounds.saturating_sub(1);
        }
        Some(report)
    }
}

/// A thread that sweeps a table at least four times in a keep-alive interval, until the `Sweeper` is dropped.
///
/// Without sweeping, expired routes are not returned, but keep their memory and count towards the limit of routes.
///
/// ```
/// use std::sync::Arc;
///
/// use nodetracker::{RouteTable, Sweeper};
///
/// let table = Arc::new(RouteTable::new());
/// let sweeper = Sweeper::start(Arc::clone(&table))?;
/// // … use the table from any thread …
/// drop(sweeper);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Sweeper {
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Stop {
    is_due: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    /// Waits for at most `pause`. Returns whether to stop.
    fn within(&self, pause: Duration) -> bool {
        let is_due = self.is_due.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(is_due, pause, |is_due| !*is_due);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Sweeper {
    /// Starts a thread that sweeps the table.
    ///
    /// # Errors
    ///
    /// The operating system cannot start a thread.
    pub fn start(table: Arc<RouteTable>) -> io::Result<Self> {
        let stop = Arc::new(Stop::default());
        let its = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("nodetracker-sweeper".into())
            .spawn(move || {
                let mut pace = SweepPace::default();
                while !its.within(pace.next_pause(&table)) {
                    pace.sweep(&table);
                }
                // No thread is bound to read the clock any more.
                table.time().set_longest_step(u64::MAX);
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Sweeper {
    /// Waits for the thread to end, which takes as long as one turn of the sweeper.
    fn drop(&mut self) {
        *self.stop.is_due.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread panics only if the table does, and the panic was printed.
            _ = thread.join();
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::{Builder, ManualClock, NodeId, Proxy, ProxyRef};

    const ROUND: Duration = Duration::from_secs(75);

    fn register(table: &RouteTable) -> ProxyRef {
        let proxy = Proxy {
            id: "p",
            cluster_name: "",
            addr: "p:1",
        };
        table.register_proxy(&proxy).expect("there is room")
    }

    fn fill(table: &RouteTable, nodes: usize) {
        let proxy = register(table);
        for number in 0..nodes {
            let node: NodeId = format!("node-{number}").parse().expect("a good name");
            table.add_node(&node, proxy).expect("there is room");
        }
    }

    #[test]
    fn an_empty_table_is_swept_once_a_round_and_once_a_second() {
        assert_eq!(SweepPace::default().next_pause(&RouteTable::new()), MAX_PAUSE);
        assert_eq!(SweepPace::default().turn(0, ROUND), (ROUND, 1));
    }

    #[test]
    fn the_steps_of_a_round_take_the_round() {
        let routes = 1_000_000;
        let steps = (routes / STEP + 1) as u32;
        assert_eq!(SweepPace::default().turn(routes, ROUND), (ROUND / steps, 1));
    }

    #[test]
    fn a_pause_has_a_floor_and_a_turn_a_most() {
        let pace = SweepPace::default();
        assert_eq!(pace.turn(0, Duration::from_micros(1)), (MIN_PAUSE, 1));
        assert_eq!(pace.turn(usize::MAX, ROUND), (MIN_PAUSE, MAX_STEPS));
    }

    #[test]
    fn a_round_of_a_large_table_takes_its_time_too() {
        for routes in [20_000_000, 100_000_000, Builder::MAX_ROUTES] {
            let (pause, steps) = SweepPace::default().turn(routes, ROUND);
            let turns = (routes / STEP + 1).div_ceil(steps as usize);
            assert!(
                steps > 1 && pause * turns as u32 <= ROUND,
                "{routes} routes: {steps} steps a turn"
            );
        }
    }

    #[test]
    fn everything_that_is_expired_is_swept_within_an_interval() {
        let clock = ManualClock::new();
        let table = RouteTable::builder()
            .clock(clock.clone())
            .keep_alive(4 * ROUND)
            .build()
            .expect("possible limits");
        fill(&table, 3 * STEP);
        clock.advance(table.keep_alive() + Duration::from_millis(1));
        let (mut pace, mut waited, mut removed) = (SweepPace::default(), Duration::ZERO, 0);
        // The first round may have begun anywhere, so only two rounds visit everything.
        for _ in 0..2 {
            loop {
                waited += pace.next_pause(&table);
                let report = pace.sweep(&table);
                removed += report.removed;
                if report.round_completed {
                    break;
                }
            }
        }
        assert_eq!(removed, 3 * STEP);
        assert!(waited < table.keep_alive(), "{waited:?}");
    }

    #[test]
    fn a_sweeper_empties_an_expired_table_and_ends_when_it_is_dropped() {
        let clock = ManualClock::new();
        let table = Arc::new(
            RouteTable::builder()
                .clock(clock.clone())
                .keep_alive(Duration::from_millis(1))
                .build()
                .expect("possible limits"),
        );
        fill(&table, 1_000);
        clock.advance(Duration::from_millis(2));
        let mut changes = table.subscribe();
        let sweeper = Sweeper::start(Arc::clone(&table)).expect("a thread can be started");
        while !table.is_empty() {
            let drained = changes.drain_events(usize::MAX, |_| ()).expect("few changes");
            assert!(drained > 0 || changes.wait(Duration::from_secs(60)), "nothing is swept");
        }
        drop(changes);
        drop(sweeper);
        assert_eq!(Arc::strong_count(&table), 1, "the thread has ended");
    }
}
