//! Shared by the integration tests: the reference model, the linearizability checker, seeds, and a barrier that
//! does not hang when a thread panics.

// Every test binary compiles this module and uses its own part of it.
#![allow(dead_code)]

pub(crate) mod content;
pub(crate) mod gate;
pub(crate) mod model;
pub(crate) mod ops;
pub(crate) mod wgl;

use std::collections::HashSet;
use std::env;
use std::sync::OnceLock;
use std::time::Duration;

use nodetracker::{Builder, ManualClock, Proxy, ProxyRef, Route, RouteTable};

/// Returns early with a message, in a function that returns a `Result<_, String>`, unless the
/// condition holds.
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// The seed of this run: `NODETRACKER_SEED`, or a fresh seed. A test that fails prints the seed that it used.
pub(crate) fn seed() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        env::var("NODETRACKER_SEED").map_or_else(
            |_| fastrand::u64(..),
            |text| text.parse().expect("NODETRACKER_SEED is a number"),
        )
    })
}

/// How many times as much to do as in a normal run: `NODETRACKER_SCALE`, 1 unless it is set.
pub(crate) fn scale() -> usize {
    env::var("NODETRACKER_SCALE").map_or(1, |text| text.parse().expect("NODETRACKER_SCALE is a number"))
}

/// A proxy with this ID and valid strings.
pub(crate) fn proxy(id: &str) -> Proxy<'_> {
    Proxy {
        id,
        cluster_name: "cluster",
        addr: "192.0.2.1:3080",
    }
}

/// A table with a keep-alive interval, and the table's clock.
pub(crate) fn table(keep_alive: Duration) -> (RouteTable, ManualClock) {
    table_with(keep_alive, |builder| builder)
}

/// [`table`] with further options.
pub(crate) fn table_with(keep_alive: Duration, options: impl FnOnce(Builder) -> Builder) -> (RouteTable, ManualClock) {
    let clock = ManualClock::new();
    let table = options(RouteTable::builder().keep_alive(keep_alive).clock(clock.clone()))
        .build()
        .expect("possible limits");
    (table, clock)
}

/// Waits for an effect that comes after threads of other tests have left their calls, such as a longer keep-alive
/// interval.
pub(crate) fn wait_until(condition: impl Fn() -> bool) {
    for _ in 0..10_000_000 {
        if condition() {
            return;
        }
        std::thread::yield_now();
    }
    panic!("it does not happen");
}

/// Sweeps until two rounds are completed. The first round may have begun before the call.
pub(crate) fn sweep_fully(table: &RouteTable) {
    const STEPS: usize = 1_000_000;
    for _ in 0..2 {
        let completed = (0..STEPS).any(|_| table.sweep(4096).round_completed);
        assert!(completed, "a sweep round did not complete within {STEPS} steps");
    }
}

/// Checks the properties of every answer at any time: newest first, each proxy once, at most 64 routes.
pub(crate) fn check_answer(answer: &[Route]) -> Result<(), String> {
    ensure!(answer.len() <= 64, "{} routes in an answer", answer.len());
    ensure!(
        answer.is_sorted_by(|a, b| a.last_refresh >= b.last_refresh),
        "an answer is not newest first: {answer:?}"
    );
    let proxies: HashSet<ProxyRef> = answer.iter().map(|route| route.proxy).collect();
    ensure!(
        proxies.len() == answer.len(),
        "a proxy is in an answer twice: {answer:?}"
    );
    Ok(())
}
