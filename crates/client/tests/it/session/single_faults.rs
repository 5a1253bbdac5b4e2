//! One fault at a time. A recovery lasts from the fault's end until the tracker has a route of each live node. The
//! tracker then has no route of a node that went down.
//!
//! At all times, no node that went down keeps its route for longer than the keep-alive interval. After the recovery,
//! the session keeps no node that is down: see [`Run::settle`].

use std::time::Duration;

use crate::seeds::{Fault, Recovery, recoveries};
use crate::session::faults::{DELAY, INTERVAL, KEEP_ALIVE, Run, SIGNS, STEP};

const PRECISION: Duration = Duration::from_millis(20);
const LATENCY: Duration = Duration::from_millis(50);
/// From a connection's loss until the tracker has confirmed all changes: the longest first wait, and four round trips.
const RECONNECTION: Duration = Duration::from_millis(100 + 10 + 8 * 50);
/// A request waits this long for its answer.
const ANSWER: Duration = Duration::from_secs(10);
/// A later wait for an attempt.
const RETRY: Duration = Duration::from_secs(3);

recoveries! {
    100;
    tracker_restarts_with_a_snapshot: Fault {
        name: "a tracker restarts with a snapshot",
        bound: RECONNECTION.saturating_add(Duration::from_secs(1)),
        cost: 1,
        recovery: |seed| recovery(seed, Duration::ZERO, |run| run.restart_with_snapshot(0), |_| {}),
    },
    tracker_restarts_without_a_snapshot: Fault {
        name: "a tracker restarts without a snapshot",
        // The jitter of announcements is one second.
        bound: RECONNECTION.saturating_add(Duration::from_secs(1)),
        cost: 1,
        recovery: |seed| recovery(seed, Duration::ZERO, |run| run.world.restart(0, false), |_| {}),
    },
    tracker_is_unreachable: Fault {
        name: "a tracker is unreachable for three intervals",
        // A hello whose answer is lost, the next attempt, and the jitter.
        bound: ANSWER
            .saturating_add(RETRY)
            .saturating_add(RECONNECTION)
            .saturating_add(Duration::from_secs(1)),
        cost: 1,
        recovery: |seed| {
            let cut = |run: &mut Run| run.world.set_reachable(0, false);
            recovery(seed, 3 * INTERVAL, cut, |run| run.world.set_reachable(0, true))
        },
    },
    connection_breaks: Fault {
        name: "a proxy's connection breaks",
        bound: RECONNECTION,
        cost: 1,
        recovery: |seed| recovery(seed, Duration::ZERO, |run| run.world.cut(0, false), |_| {}),
    },
    connection_is_half_open: Fault {
        name: "a proxy's connection is half open",
        // Changes or the next round are sent, and have no answer.
        bound: INTERVAL.saturating_add(ANSWER).saturating_add(RECONNECTION),
        cost: 1,
        recovery: |seed| recovery(seed, Duration::ZERO, |run| run.world.cut(0, true), |_| {}),
    },
    batches_are_duplicated_and_delayed: Fault {
        name: "batches are duplicated, and delayed by up to 2 s, for two minutes",
        // Messages that are on their way, and their changes after the answers.
        bound: DELAY.saturating_mul(4),
        cost: 1,
        recovery: |seed| {
            let disturb = |run: &mut Run| {
                run.world.repeats_requests = true;
                run.world.latency.end = DELAY;
            };
            recovery(seed, Duration::from_secs(120), disturb, Run::heal)
        },
    },
    tracker_asks_for_a_resync: Fault {
        name: "a tracker asks for a resync",
        // The jitter of announcements is one second.
        bound: RECONNECTION
            .saturating_add(INTERVAL)
            .saturating_add(Duration::from_secs(1)),
        cost: 1,
        recovery: |seed| recovery(seed, Duration::ZERO, |run| run.world.trackers[0].drop_proxies(), |_| {}),
    },
    process_sleeps: Fault {
        name: "a proxy's process sleeps for up to an hour",
        // The nodes give signs of life one after the other. If the sleep was short, the stream is lost first.
        bound: SIGNS.saturating_add(ANSWER).saturating_add(RECONNECTION),
        cost: 1,
        recovery: |seed| {
            let sleep = |run: &mut Run| {
                let time = Duration::from_secs(3600).mul_f64(run.world.random.f64().powi(3));
                run.sleep(time);
            };
            recovery(seed, Duration::ZERO, sleep, |_| {})
        },
    },
    proxy_is_killed: Fault {
        name: "a proxy is killed: its routes expire",
        bound: KEEP_ALIVE.saturating_add(LATENCY),
        cost: 1,
        recovery: kill,
    },
}

/// Lets nodes come, go and fall silent until the fault has ended. Returns how long the recovery takes.
fn recovery(seed: u64, lasts: Duration, begin: impl FnOnce(&mut Run), end: impl FnOnce(&mut Run)) -> Recovery {
    let mut run = Run::new(seed, 1);
    let before = Duration::from_secs(60).mul_f64(f64::from(seed as u32 % 60) / 60.0);
    change_for(&mut run, before, false);
    begin(&mut run);
    change_for(&mut run, lasts, true);
    end(&mut run);
    let ended = run.world.now;
    run.last_fault = ended;
    while !run.has_recovered() {
        let time = run.world.now - ended;
        assert!(time < KEEP_ALIVE, "no recovery, seed {seed}");
        run.step(PRECISION);
    }
    let time = run.world.now - ended;
    run.settle();
    run.world.recovery(time)
}

fn change_for(run: &mut Run, time: Duration, has_fault: bool) {
    let end = run.world.now + time;
    loop {
        run.change_some();
        if run.world.now >= end {
            return;
        }
        if has_fault {
            run.last_fault = run.world.now;
        }
        run.step(STEP.min(end - run.world.now));
    }
}

fn kill(seed: u64) -> Recovery {
    let mut run = Run::new(seed, 1);
    change_for(&mut run, Duration::from_secs(60), false);
    run.world.cut(0, true);
    run.world.sleep_until(0, Duration::MAX);
    let killed = run.world.now;
    while !run.routes().is_empty() {
        run.world.run_until(run.world.now + PRECISION);
        assert!(run.world.now <= killed + 2 * KEEP_ALIVE, "routes stay, seed {seed}");
    }
    run.world.recovery(run.world.now - killed)
}
