//! The cost of calls in rare situations, each beside the ordinary call that it should not exceed.
//!
//! ```console
//! $ cargo bench --bench traps                  # all rows; a minute or two
//! $ cargo bench --bench traps -- sweep         # rows whose title has the word
//! $ NODES=1M cargo bench --bench traps         # by default, the sweep has 10,000,000 nodes
//! ```

#![allow(dead_code, reason = "a bench uses a part of what they share")]

#[path = "support/args.rs"]
mod args;
#[path = "support/own_time.rs"]
mod own_time;
#[path = "support/steps.rs"]
mod steps;

use std::hint::black_box;
use std::time::{Duration, Instant};

use args::Args;
use nodetracker::{ManualClock, NodeId, Proxy, ProxyRef, RouteTable};
use own_time::Stopwatch;
use uuid::Uuid;

#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEEP_ALIVE: Duration = Duration::from_secs(300);

fn table(limit: usize) -> (RouteTable, ManualClock) {
    let clock = ManualClock::new();
    let builder = RouteTable::builder().clock(clock.clone()).keep_alive(KEEP_ALIVE);
    (builder.max_routes(limit).build().expect("possible limits"), clock)
}

fn register(table: &RouteTable, count: usize) -> Vec<ProxyRef> {
    let register = |nth| {
        let proxy = Proxy {
            id: &format!("proxy-{nth}"),
            cluster_name: "main",
            addr: "192.0.2.1:3080",
        };
        table.register_proxy(&proxy).expect("there is room")
    };
    (0..count).map(register).collect()
}

fn nodes(count: usize, seed: u64) -> Vec<NodeId> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| Uuid::from_u128(random.u128(..)).into()).collect()
}

fn per(took: Duration, count: usize) -> f64 {
    took.as_secs_f64() * 1e9 / count as f64
}

fn show(title: &str, figure: f64, unit: &str) {
    println!("{title:<64} {figure:>10.1} {unit}");
}

fn refusals() {
    const ROUTES: usize = 200_000;
    let (known, strange) = (nodes(ROUTES, 1), nodes(ROUTES, 2));
    let (table, _clock) = table(ROUTES);
    let [proxy] = register(&table, 1)[..] else {
        unreachable!()
    };
    let watch = Stopwatch::start();
    known
        .iter()
        .for_each(|node| _ = table.add_node(node, proxy).expect("there is room"));
    show("insert a node", per(watch.elapsed(), ROUTES), "ns");
    let watch = Stopwatch::start();
    strange
        .iter()
        .for_each(|node| _ = table.add_node(node, proxy).expect_err("there is no room"));
    show(
        "refuse a node at the limit of routes",
        per(watch.elapsed(), ROUTES),
        "ns",
    );
}

fn ties() {
    const ROUTES: usize = 64;
    const REFRESHES: usize = 400_000;
    let (table, clock) = table(1_000);
    let proxies = register(&table, ROUTES);
    let node = nodes(1, 1).remove(0);
    for is_tied in [false, true] {
        let mut random = fastrand::Rng::with_seed(3);
        let watch = Stopwatch::start();
        for _ in 0..REFRESHES {
            if !is_tied {
                clock.advance(Duration::from_millis(1));
            }
            let proxy = proxies[random.usize(..ROUTES)];
            black_box(table.add_node(&node, proxy)).expect("there is room");
        }
        let title = match is_tied {
            false => "refresh one of 64 routes, a tick apart",
            true => "refresh one of 64 routes, all within one tick",
        };
        show(title, per(watch.elapsed(), REFRESHES), "ns");
    }
}

/// A part of all routes expires at once. Each step of the sweeper is timed; of several runs, the one with the shortest longest
/// step counts, since a virtual machine loses its processor without a trace.
fn expiry(count: usize, expire: usize) {
    const RUNS: usize = 3;
    let steps = (0..RUNS).map(|_| steps_of_sweep(count, expire));
    let steps = steps.min_by_key(|steps| steps.last().copied()).unwrap_or_default();
    let size = steps::size_name(count);
    let at = |share: f64| steps[((steps.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    for (what, share) in [("the longest", 1.0), ("p99.99 of the", 0.9999), ("the median", 0.5)] {
        show(
            &format!("sweep(256), {expire} % of {size} expire: {what} step"),
            at(share),
            "us",
        );
    }
}

/// The times of all steps of three rounds, the shortest first.
fn steps_of_sweep(count: usize, expire: usize) -> Vec<Duration> {
    let (table, clock) = table(count);
    let proxies = register(&table, 1_000);
    let nodes = nodes(count, 1);
    let stay = nodes.len() - nodes.len() * expire / 100;
    for (batch, proxy) in nodes.chunks(1_000).zip(proxies.iter().cycle()) {
        table.add_nodes(batch, *proxy).expect("there is room");
    }
    clock.advance(2 * KEEP_ALIVE / 3);
    for (batch, proxy) in nodes[..stay].chunks(1_000).zip(proxies.iter().cycle()) {
        table.add_nodes(batch, *proxy).expect("there is room");
    }
    clock.advance(2 * KEEP_ALIVE / 3);
    let (mut steps, mut rounds) = (Vec::new(), 0);
    while rounds < 3 {
        let before = cpu_time();
        rounds += usize::from(table.sweep(256).round_completed);
        steps.push(cpu_time() - before);
    }
    steps.sort_unstable();
    steps
}

/// The processor time of this thread: the longest of many steps would else be the one during which the core was another's.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a `timespec` of ours.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "there is such a clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn idle_poll() {
    const POLLS: u32 = 100_000;
    let (table, _clock) = table(1_000);
    let mut subscription = table.subscribe();
    let start = Instant::now();
    for _ in 0..POLLS {
        assert_eq!(black_box(subscription.drain_events(10, |_| ())), Ok(0));
    }
    show(
        "poll a subscription with nothing to report",
        per(start.elapsed(), POLLS as usize),
        "ns",
    );
}

fn main() {
    let args = Args::parse();
    let sizes = steps::sizes(if args.is_bench { &[10_000_000] } else { &[10_000] });
    if args.wants("refuse") {
        refusals();
    }
    if args.wants("tick") {
        ties();
    }
    if args.wants("poll") {
        idle_poll();
    }
    if args.wants("sweep") {
        for &size in &sizes {
            for expire in [25, 50, 90] {
                expiry(size, expire);
            }
        }
    }
}
