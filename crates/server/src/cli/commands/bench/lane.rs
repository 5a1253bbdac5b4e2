//! The loop of one connection: makes each call at its time, and counts its end.
//!
//! The latency of a call is the time from when the call was *due* to its reply. If the server stalls, the calls that
//! were due meanwhile have waited, and their waiting counts. A loop that took the time from the sending would make few
//! calls during a stall, and would hide most of the waiting. Gil Tene named this error "coordinated omission" in "How
//! NOT to Measure Latency". wrk2 and this loop measure alike.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cli::commands::bench::schedule::{Due, Schedule};
use crate::cli::commands::bench::tally::{Outcome, Tally};
use crate::cli::commands::bench::timer::Timer;

/// A call that ended.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) due: Due,
    /// How many routes the call was about.
    pub(super) routes: u32,
    pub(super) outcome: Outcome,
}

/// A connection that makes calls.
pub(super) trait Lane: Send {
    /// Begins a call.
    fn send(&mut self, due: Due);
    /// Returns how many calls have begun and not ended.
    fn in_flight(&self) -> usize;
    /// Waits until a call ends. At least one call must be in flight. May be cancelled, and then loses nothing.
    fn ended(&mut self) -> impl Future<Output = Ended> + Send;
    /// Returns whether the connection broke, so that no further call can succeed.
    fn is_lost(&self) -> bool;
}

/// The limits of a lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Calls at a time. Further calls wait.
    pub(super) in_flight: usize,
    /// How long calls that wait may begin after the last call was due.
    pub(super) patience: Duration,
}

/// Makes all calls of a schedule, until the schedule ends, `stop` is cancelled, or the connection breaks. Then waits
/// for the calls in flight.
pub(super) async fn drive<L: Lane>(
    lane: &mut L,
    timer: &mut impl Timer,
    mut schedule: Schedule,
    bounds: Bounds,
    tally: &Mutex<Tally>,
    stop: &CancellationToken,
) {
    let mut waiting = None;
    let give_up = schedule.end().map(|end| end + bounds.patience);
    tokio::select! {
        biased;
        () = send_all(lane, timer, &mut schedule, bounds.in_flight, tally, &mut waiting) => {}
        () = stop.cancelled() => {}
        () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => {}
    }
    let now = Instant::now();
    // In a closed loop, no call waits. If the lane has room for a call, the stop came before the call, and nothing kept
    // the call waiting.
    if give_up.is_some() && lane.in_flight() >= bounds.in_flight {
        let due = waiting.into_iter().chain(std::iter::from_fn(|| schedule.next(now)));
        let mut tally = lock(tally);
        due.take_while(|due| due.at <= now)
            .for_each(|due| tally.unsent(due, now));
    }
    while lane.in_flight() > 0 {
        count(lane.ended().await, tally);
    }
    lock(tally).lost_connections += u64::from(lane.is_lost());
}

/// Makes the calls of a schedule. `waiting` is the call that is next, if any.
async fn send_all<L: Lane>(
    lane: &mut L,
    timer: &mut impl Timer,
    schedule: &mut Schedule,
    max_in_flight: usize,
    tally: &Mutex<Tally>,
    waiting: &mut Option<Due>,
) {
    // When the next call could begin, if it was due.
    let mut has_room_since = Instant::now();
    while !lane.is_lost() {
        if waiting.is_none() && lane.in_flight() < max_in_flight {
            has_room_since = Instant::now();
            *waiting = schedule.next(has_room_since);
        }
        let in_flight = lane.in_flight();
        let due = waiting.filter(|_| in_flight < max_in_flight);
        tokio::select! {
            biased;
            ended = lane.ended(), if in_flight > 0 => count(ended, tally),
            () = timer.until(due.map_or(has_room_since, |due| due.at)), if due.is_some() => {
                if let Some(due) = waiting.take() {
                    lane.send(due);
                    lock(tally).began(due, due.at.max(has_room_since), Instant::now());
                }
            }
            else => return,
        }
    }
}

fn count(ended: Ended, tally: &Mutex<Tally>) {
    let now = Instant::now();
    lock(tally).ended(ended.due, ended.routes, &ended.outcome, now);
}

/// Locks a tally. If a thread panicked with the lock, at most one call is half counted.
pub(super) fn lock(tally: &Mutex<Tally>) -> std::sync::MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tonic::Status;

    use super::*;
    use crate::cli::commands::bench::schedule::{Extent, Pace, Phase};

    const MS: Duration = Duration::from_millis(1);
    const NEVER: Duration = Duration::from_secs(1 << 30);

    /// tokio's timer, which the paused time of a test moves.
    struct Paused;

    impl Timer for Paused {
        async fn until(&mut self, at: Instant) {
            sleep_until(at).await;
        }
    }

    /// A server that takes a millisecond for each call, one call after the other, and stalls once.
    struct Server {
        calls: VecDeque<(Due, Instant)>,
        free: Instant,
        stall: (Instant, Duration),
        most_in_flight: usize,
        /// The connection breaks with this call.
        breaks_at: Option<u64>,
        is_lost: bool,
    }

    impl Server {
        fn new(stall_after: Duration, stall: Duration) -> Self {
            let now = Instant::now();
            Self {
                calls: VecDeque::new(),
                free: now,
                stall: (now + stall_after, stall),
                most_in_flight: 0,
                breaks_at: None,
                is_lost: false,
            }
        }
    }

    impl Lane for Server {
        fn send(&mut self, due: Due) {
            let mut begin = self.free.max(Instant::now());
            let (stall, duration) = self.stall;
            if (stall..stall + duration).contains(&begin) {
                begin = stall + duration;
            }
            let end = begin + MS;
            self.free = end;
            self.calls.push_back((due, end));
            self.most_in_flight = self.most_in_flight.max(self.calls.len());
        }

        fn in_flight(&self) -> usize {
            self.calls.len()
        }

        async fn ended(&mut self) -> Ended {
            let (due, end) = self.calls[0];
            sleep_until(end).await;
            self.calls.pop_front();
            self.is_lost |= self.breaks_at == Some(due.number);
            let outcome = if self.is_lost {
                Err(Status::unavailable("the connection broke"))
            } else {
                Ok(1)
            };
            Ended {
                due,
                routes: 1,
                outcome,
            }
        }

        fn is_lost(&self) -> bool {
            self.is_lost
        }
    }

    fn open(rate: f64, duration: Duration) -> Phase {
        Phase {
            pace: Pace::Open(rate),
            warm_up: Duration::ZERO,
            extent: Extent::For(duration),
        }
    }

    const BOUNDS: Bounds = Bounds {
        in_flight: 4,
        patience: Duration::from_secs(10),
    };

    async fn run(lane: &mut Server, phase: Phase, bounds: Bounds, stop: &CancellationToken) -> Tally {
        let tally = Mutex::new(Tally::new());
        let schedule = Schedule::new(phase, Instant::now(), 0, 1);
        drive(lane, &mut Paused, schedule, bounds, &tally, stop).await;
        tally.into_inner().unwrap()
    }

    fn millis(tally: &Tally, percentile: f64) -> u64 {
        tally.latencies.value_at_percentile(percentile) / 1_000_000
    }

    /// The server stalls for one of ten seconds. So a tenth of the calls were due during the stall, and waited for half
    /// a second on average. At most four calls were in flight, so a loop that took the time from the sending would see
    /// four slow calls in a thousand.
    #[tokio::test(start_paused = true)]
    async fn calls_that_were_due_during_a_stall_are_charged_to_the_server() {
        let mut lane = Server::new(Duration::from_secs(5), Duration::from_secs(1));
        let stop = CancellationToken::new();
        let tally = run(&mut lane, open(100.0, Duration::from_secs(10)), BOUNDS, &stop).await;
        assert_eq!((tally.count(), tally.succeeded(), tally.unsent), (1000, 1000, 0));
        assert_eq!(lane.most_in_flight, BOUNDS.in_flight);
        assert!(millis(&tally, 50.0) <= 2, "{}", millis(&tally, 50.0));
        assert!((300..700).contains(&millis(&tally, 95.0)), "{}", millis(&tally, 95.0));
        assert!((800..1000).contains(&millis(&tally, 99.0)), "{}", millis(&tally, 99.0));
        // The generator itself was in time.
        assert_eq!(tally.late, 0, "{:?}", tally.worst_lateness);
    }

    #[tokio::test(start_paused = true)]
    async fn a_closed_loop_takes_the_time_from_the_sending() {
        let mut lane = Server::new(Duration::from_secs(5), Duration::from_secs(1));
        let phase = Phase {
            pace: Pace::Closed,
            ..open(1.0, Duration::from_secs(10))
        };
        let tally = run(&mut lane, phase, BOUNDS, &CancellationToken::new()).await;
        // Ten seconds less the stall, and the calls in flight at the end.
        assert!((8990..=9010).contains(&tally.count()), "{}", tally.count());
        assert_eq!(lane.most_in_flight, BOUNDS.in_flight);
        assert!(millis(&tally, 99.0) <= 5);
        assert!(millis(&tally, 100.0) >= 1000);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_cannot_begin_in_time_are_counted_with_their_waiting() {
        // The server takes a thousand calls a second, and gets two thousand.
        let mut lane = Server::new(NEVER, Duration::ZERO);
        let bounds = Bounds {
            patience: Duration::from_secs(1),
            ..BOUNDS
        };
        let tally = run(
            &mut lane,
            open(2000.0, Duration::from_secs(4)),
            bounds,
            &CancellationToken::new(),
        )
        .await;
        assert_eq!(tally.count() + tally.unsent, 8000);
        assert_eq!(tally.latencies.len(), 8000);
        assert!((2900..=3010).contains(&tally.unsent), "{}", tally.unsent);
        assert!(millis(&tally, 100.0) >= 2500, "{}", millis(&tally, 100.0));
    }

    async fn stopped_after(lane: &mut Server, time: Duration) -> Tally {
        let stop = CancellationToken::new();
        let stopper = stop.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            stopper.cancel();
        });
        run(lane, open(100.0, Duration::from_secs(3600)), BOUNDS, &stop).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_the_schedule_and_waits_for_the_calls_in_flight() {
        let mut lane = Server::new(NEVER, Duration::ZERO);
        let tally = stopped_after(&mut lane, Duration::from_millis(1005)).await;
        assert_eq!((tally.count(), tally.succeeded(), tally.unsent), (101, 101, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_that_wait_at_a_stop_are_counted_with_their_waiting() {
        let mut lane = Server::new(Duration::from_secs(1), Duration::from_secs(60));
        let tally = stopped_after(&mut lane, Duration::from_millis(2005)).await;
        // Before the stall 100 calls, in the stall four; the others up to the stop wait.
        assert_eq!((tally.count(), tally.succeeded(), tally.unsent), (104, 104, 97));
        assert_eq!(tally.latencies.len(), 201);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_lost_its_connection_sends_nothing_more() {
        let mut lane = Server::new(NEVER, Duration::ZERO);
        lane.breaks_at = Some(9);
        let stop = CancellationToken::new();
        let tally = run(&mut lane, open(100.0, Duration::from_secs(3600)), BOUNDS, &stop).await;
        assert_eq!((tally.succeeded(), tally.statuses()["UNAVAILABLE"]), (9, 1));
        assert_eq!(tally.errors["UNAVAILABLE: the connection broke"], 1);
        assert_eq!(tally.lost_connections, 1);
    }
}
