//! The sweeper: removes expired routes in the background, in small steps.
//!
//! Look-ups never return an expired route. Sweeping frees the route's memory.

use std::time::Duration;

use nodetracker::{RouteTable, SweepReport};
use tokio::time::sleep;
use tracing::debug;

/// Records that one step visits, which takes a few microseconds.
///
/// A step is at most half of the changes that the table's feed holds for a shard, so a mass expiry does not overtake the
/// tailer. With several steps a turn, in a table of tens of millions, a mass expiry can: then watches begin again.
const STEP: usize = 256;

/// Rounds over the whole table per keep-alive interval.
const ROUNDS_PER_INTERVAL: u32 = 4;

/// The shortest pause between two turns, since timers are no finer.
///
/// If a round takes more steps than such pauses fit into it, each turn has several steps. At the default interval, that
/// happens from about ten million routes on.
const MIN_PAUSE: Duration = Duration::from_millis(2);
/// The most steps in one turn, which take a millisecond or two. The thread has other tasks.
const MAX_STEPS: u32 = 256;

/// Sweeps for ever.
pub(crate) async fn sweep(table: &RouteTable) -> std::convert::Infallible {
    let mut pace = Pace::default();
    let mut expired = 0;
    loop {
        // The keep-alive interval can change at any time.
        pace.round = table.keep_alive() / ROUNDS_PER_INTERVAL;
        let (pause, steps) = pace.turn(table.len());
        sleep(pause).await;
        for _ in 0..steps {
            let report = table.sweep(STEP);
            pace.stepped(report);
            expired += report.removed;
            if report.round_completed && expired > 0 {
                debug!(expired, "removed expired routes");
                expired = 0;
            }
        }
    }
}

/// Spreads the steps of a round evenly over the time of the round.
#[derive(Default)]
struct Pace {
    round: Duration,
    /// Records visited in the current round.
    visited: usize,
    /// Records visited in the last complete round.
    last_round: usize,
}

impl Pace {
    /// Returns the pause before the next turn of a table with `routes` routes, and the number of steps of that turn.
    ///
    /// A round is expected to be as long as the last round, or longer if the table has grown.
    fn turn(&self, routes: usize) -> (Duration, u32) {
        let records = self.last_round.max(self.visited).max(routes);
        let steps = u32::try_from(records / STEP + 1).unwrap_or(u32::MAX);
        let pause = self.round / steps;
        if pause >= MIN_PAUSE {
            return (pause, 1);
        }
        let turns = (self.round.as_nanos() / MIN_PAUSE.as_nanos()).max(1);
        let steps = u128::from(steps).div_ceil(turns).min(u128::from(MAX_STEPS));
        (MIN_PAUSE, steps as u32)
    }

    fn stepped(&mut self, report: SweepReport) {
        self.visited += report.visited;
        if report.round_completed {
            self.last_round = std::mem::take(&mut self.visited);
        }
    }
}

#[cfg(test)]
mod tests {
    use nodetracker::{ManualClock, NodeId, Proxy};

    use super::*;

    const ROUND: Duration = Duration::from_secs(75);

    fn pace(round: Duration) -> Pace {
        Pace {
            round,
            ..Pace::default()
        }
    }

    #[test]
    fn an_empty_table_is_swept_once_a_round() {
        assert_eq!(pace(ROUND).turn(0), (ROUND, 1));
    }

    #[test]
    fn the_steps_of_a_round_take_the_round() {
        let even = pace(ROUND);
        let routes = 1_000_000;
        let steps = (routes / STEP + 1) as u32;
        assert_eq!(even.turn(routes), (ROUND / steps, 1));
    }

    #[test]
    fn a_pause_has_a_floor_and_a_turn_a_most() {
        assert_eq!(pace(Duration::from_micros(1)).turn(0), (MIN_PAUSE, 1));
        assert_eq!(pace(ROUND).turn(usize::MAX), (MIN_PAUSE, MAX_STEPS));
    }

    #[test]
    fn a_round_of_a_large_table_takes_its_time_too() {
        for routes in [20_000_000, 100_000_000, nodetracker::Builder::MOST_ROUTES] {
            let (pause, steps) = pace(ROUND).turn(routes);
            let turns = (routes / STEP + 1).div_ceil(steps as usize);
            assert!(
                steps > 1 && pause * turns as u32 <= ROUND,
                "{routes} routes: {steps} steps a turn"
            );
        }
    }

    #[test]
    fn a_real_round_is_paced_to_end_in_time() {
        let clock = ManualClock::new();
        let table = RouteTable::builder().clock(clock.clone()).keep_alive(4 * ROUND).build();
        let proxy = table
            .register_proxy(&Proxy {
                id: "p",
                cluster_name: "",
                addr: "p:1",
            })
            .unwrap();
        for number in 0..3 * STEP {
            table
                .add_node(&format!("node-{number}").parse::<NodeId>().unwrap(), proxy)
                .unwrap();
        }
        let mut paced = pace(table.keep_alive() / ROUNDS_PER_INTERVAL);
        clock.advance(table.keep_alive() + Duration::from_millis(1));
        let mut waited = Duration::ZERO;
        let mut expired = 0;
        // A round may begin anywhere, so two rounds visit every record.
        for _ in 0..2 {
            loop {
                let (pause, steps) = paced.turn(table.len());
                assert_eq!(steps, 1);
                waited += pause;
                let report = table.sweep(STEP);
                paced.stepped(report);
                expired += report.removed;
                if report.round_completed {
                    break;
                }
            }
        }
        assert_eq!(expired, 3 * STEP);
        assert!(waited < table.keep_alive(), "{waited:?}");
    }
}
