//! The sweeper: removes expired routes in the background, in small steps.
//!
//! Look-ups never return an expired route, swept or not; sweeping gives its memory back.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nodetracker::{HoldCause, RouteTable, SweepPace, SweepReport};
use tokio::task::yield_now;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use crate::config::duration;
use crate::rpc::watch::Watches;

/// What the sweeper has done so far. Only the sweeper counts.
#[derive(Debug, Default)]
pub(crate) struct SweepCounters {
    nanos: AtomicU64,
    visited: AtomicU64,
    expired: AtomicU64,
    of_removed_proxies: AtomicU64,
    rounds: AtomicU64,
}

impl SweepCounters {
    fn count(&self, time: Duration, report: &SweepReport) {
        // Relaxed, here and in `get`: the counters guard no data.
        let add = |counter: &AtomicU64, more: usize| counter.fetch_add(more as u64, Ordering::Relaxed);
        // 64 bits are 584 years.
        add(&self.nanos, time.as_nanos() as usize);
        add(&self.visited, report.visited);
        add(&self.expired, report.expired);
        add(&self.of_removed_proxies, report.removed - report.expired);
        add(&self.rounds, usize::from(report.round_completed));
    }

    fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    /// Returns the time of all steps, without the pauses between them.
    pub(crate) fn time(&self) -> Duration {
        Duration::from_nanos(Self::get(&self.nanos))
    }

    /// Returns the number of records and proxies that were visited.
    pub(crate) fn visited(&self) -> u64 {
        Self::get(&self.visited)
    }

    /// Returns the number of removed routes that were expired.
    pub(crate) fn expired(&self) -> u64 {
        Self::get(&self.expired)
    }

    /// Returns the number of removed routes that were not expired: their proxy was removed.
    pub(crate) fn of_removed_proxies(&self) -> u64 {
        Self::get(&self.of_removed_proxies)
    }

    /// Returns the number of completed rounds over the whole table.
    pub(crate) fn rounds(&self) -> u64 {
        Self::get(&self.rounds)
    }
}

/// Sweeps until the task is dropped. Lets the watches take the changes of each step, so that a mass expiry does not
/// overtake them.
pub(crate) async fn sweep(table: &RouteTable, watches: &Watches, counters: &SweepCounters) -> Infallible {
    let mut pace = SweepPace::default();
    let mut expired = 0;
    let mut hold = None;
    loop {
        sleep(pace.next_pause(table)).await;
        hold = log_hold(table, hold);
        loop {
            let begin = Instant::now();
            let Some(report) = pace.sweep_step(table) else { break };
            counters.count(begin.elapsed(), &report);
            expired += report.removed;
            if report.round_completed && expired > 0 {
                debug!(expired, "removed expired routes");
                expired = 0;
            }
            if report.removed > 0 {
                watches.drain().await;
            } else {
                // Copying a part of an index takes some tenths of a millisecond, and this thread has other tasks.
                yield_now().await;
            }
        }
    }
}

/// Logs when a hold of expiry begins or ends. Returns why expiry is held now.
fn log_hold(table: &RouteTable, before: Option<HoldCause>) -> Option<HoldCause> {
    let hold = table.expiry_hold();
    let cause = hold.map(|hold| hold.cause);
    if cause == before {
        return cause;
    }
    match hold {
        Some(hold) if hold.cause == HoldCause::Brake => warn!(
            "expiry brake: the heartbeats of many routes are missing; until they return, no route expires, for at most {}",
            duration::format(hold.left)
        ),
        // The load of the snapshot has logged it.
        Some(hold) if hold.cause == HoldCause::Restart => {}
        Some(hold) => warn!(
            "the process was stopped or its clock jumped: nothing happened for {}; no route expires for a heartbeat interval",
            duration::format(hold.raise)
        ),
        None if before == Some(HoldCause::Brake) => info!("the expiry brake is released: routes expire again"),
        None if before == Some(HoldCause::Restart) => {
            info!("the grace after the restart is over: restored routes that were not confirmed have expired");
        }
        None => info!("the grace after the stop is over: routes expire again"),
    }
    cause
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom};
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::task::{Context, Waker};

    use nodetracker::{ExpiryBrake, ManualClock, Proxy};
    use tokio::time::advance;
    use tracing::dispatcher::{self, DefaultGuard};
    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::rpc::watch::tail;

    const NODES: u128 = 100_000;

    /// A table whose routes have all expired, with some 800 nodes in each part.
    fn expired() -> Arc<RouteTable> {
        let clock = ManualClock::new();
        let builder = RouteTable::builder().clock(clock.clone()).feed_ring(300);
        let keep_alive = Duration::from_secs(1);
        let table = builder.keep_alive(keep_alive).build().expect("possible limits");
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "",
            addr: "proxy:1",
        };
        let proxy = table.register_proxy(&proxy).expect("there is room");
        for number in 0..NODES {
            let node = uuid::Uuid::from_u128(number << 64).into();
            table.add_node(&node, proxy).expect("there is room");
        }
        clock.advance(2 * keep_alive);
        Arc::new(table)
    }

    /// Sweeps until all is swept, while one watch is open. Returns how many resyncs the watch had.
    async fn sweep_all(
        table: &Arc<RouteTable>,
        watches: &Arc<Watches>,
        tailer: impl Future<Output = Infallible>,
    ) -> usize {
        let (mut place, mut resyncs) = (1, 0);
        let counters = SweepCounters::default();
        let all = async {
            while !table.is_empty() {
                sleep(Duration::from_millis(1)).await;
                resyncs += watches.resyncs_since(&mut place);
            }
        };
        tokio::select! {
            never = tailer => match never {},
            never = sweep(table, watches, &counters) => match never {},
            () = all => {}
        }
        assert_eq!(counters.expired(), NODES as u64);
        assert_eq!(counters.of_removed_proxies(), 0);
        assert!(counters.visited() >= NODES as u64 && counters.time() > Duration::ZERO);
        resyncs
    }

    /// The log of a test's thread.
    struct Log {
        file: File,
        /// The bytes that were read.
        read: u64,
        _guard: DefaultGuard,
    }

    impl Log {
        fn begin() -> Self {
            let file = tempfile::tempfile().expect("a file");
            let writer = file.try_clone().expect("a file");
            let lines = fmt::layer().with_writer(writer).without_time();
            let lines = lines.with_target(false).with_ansi(false);
            Self {
                file,
                read: 0,
                _guard: dispatcher::set_default(&tracing_subscriber::registry().with(lines).into()),
            }
        }

        /// Returns the lines since the last call.
        fn take(&mut self) -> String {
            let mut text = String::new();
            self.file.seek(SeekFrom::Start(self.read)).expect("a file");
            self.file.read_to_string(&mut text).expect("text");
            self.read += text.len() as u64;
            text
        }
    }

    /// A table with a brake, and one proxy with its nodes.
    struct Braked {
        clock: ManualClock,
        table: Arc<RouteTable>,
    }

    impl Braked {
        const INTERVAL: Duration = Duration::from_secs(300);

        fn new() -> Self {
            let clock = ManualClock::new();
            let builder = RouteTable::builder().keep_alive(Self::INTERVAL).clock(clock.clone());
            let table = builder.expiry_brake(ExpiryBrake::default()).build();
            let braked = Self {
                table: Arc::new(table.expect("possible limits")),
                clock,
            };
            braked.report();
            braked
        }

        fn report(&self) {
            let proxy = Proxy {
                id: "proxy",
                cluster_name: "",
                addr: "proxy:1",
            };
            for number in 0..200_u128 {
                let node = uuid::Uuid::from_u128(number << 64).into();
                self.table.report_node(&node, &proxy).expect("there is room");
            }
        }

        /// Runs a sweeper while its pauses and the table's clock advance by some time.
        async fn pass(&self, mut sweeper: Pin<&mut impl Future<Output = Infallible>>, time: Duration) {
            // Far below the time after which the table assumes that the process was stopped.
            const STEP: Duration = Duration::from_secs(1);
            for _ in 0..time.as_secs() {
                self.clock.advance(STEP);
                advance(STEP).await;
                // The sweeper yields after each of its steps.
                for _ in 0..20 {
                    let cx = &mut Context::from_waker(Waker::noop());
                    assert!(sweeper.as_mut().poll(cx).is_pending());
                }
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_says_when_the_brake_holds_expiry_and_why_it_ends() {
        let (mut log, braked) = (Log::begin(), Braked::new());
        let (watches, counters) = (
            Watches::without_resume(Arc::clone(&braked.table)),
            SweepCounters::default(),
        );
        let mut sweeper = pin!(sweep(&braked.table, &watches, &counters));
        braked.pass(sweeper.as_mut(), Braked::INTERVAL / 2).await;
        assert_eq!(log.take(), "");
        braked.pass(sweeper.as_mut(), Braked::INTERVAL * 3 / 5).await;
        let held = log.take();
        let (text, left) = held.trim().split_once(" for at most ").expect("a line");
        assert_eq!(
            text,
            "WARN expiry brake: the heartbeats of many routes are missing; until they return, no route expires,"
        );
        assert!(
            duration::parse(left).expect("a duration") <= 2 * Braked::INTERVAL,
            "{left}"
        );
        braked.pass(sweeper.as_mut(), Braked::INTERVAL).await;
        assert_eq!(log.take(), "", "the hold is logged once");
        braked.report();
        braked.pass(sweeper.as_mut(), Braked::INTERVAL * 3 / 5).await;
        assert_eq!(
            log.take().trim(),
            "INFO the expiry brake is released: routes expire again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_log_says_that_the_process_was_stopped_and_when_the_grace_is_over() {
        let (mut log, braked) = (Log::begin(), Braked::new());
        let (watches, counters) = (
            Watches::without_resume(Arc::clone(&braked.table)),
            SweepCounters::default(),
        );
        let mut sweeper = pin!(sweep(&braked.table, &watches, &counters));
        braked.pass(sweeper.as_mut(), Braked::INTERVAL / 10).await;
        assert_eq!(log.take(), "");
        braked.clock.advance(10 * Braked::INTERVAL);
        braked.pass(sweeper.as_mut(), Braked::INTERVAL / 10).await;
        let stopped = log.take();
        let time = stopped
            .trim()
            .strip_prefix("WARN the process was stopped or its clock jumped: nothing happened for ")
            .and_then(|rest| rest.strip_suffix("; no route expires for a heartbeat interval"))
            .expect("one line");
        let time = duration::parse(time).expect("a duration");
        // The sweeper pauses for some seconds at most.
        let expected = 10 * Braked::INTERVAL;
        assert!((expected..expected + Braked::INTERVAL / 30).contains(&time), "{time:?}");
        braked.report();
        braked.pass(sweeper.as_mut(), Braked::INTERVAL / 2).await;
        assert_eq!(
            log.take().trim(),
            "INFO the grace after the stop is over: routes expire again"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_mass_expiry_does_not_overtake_the_watches() {
        let table = expired();
        let watches = Watches::without_resume(Arc::clone(&table));
        let _slot = watches.open();
        let resyncs = sweep_all(&table, &watches, tail(&watches)).await;
        assert_eq!(table.marked_changes(), NODES as u64);
        assert_eq!(resyncs, 0, "changes were lost");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_given_back_although_nothing_follows() {
        let table = expired();
        let watches = Watches::without_resume(Arc::clone(&table));
        let _slot = watches.open();
        let stuck = async {
            let tailer = tail(&watches);
            let mut tailer = std::pin::pin!(tailer);
            // The first turn only.
            std::future::poll_fn(|cx| {
                assert!(tailer.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            std::future::pending().await
        };
        let before = tokio::time::Instant::now();
        sweep_all(&table, &watches, stuck).await;
        let steps = NODES as u32 / 256 + 256;
        assert!(before.elapsed() < 2 * steps * crate::limits::MAX_SWEEP_WAIT);
    }
}
