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
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use args::Args;
use nodetracker::{Builder, ManualClock, NodeId, Proxy, ProxyRef, RouteTable};
use own_time::{Laps, Stopwatch};
use uuid::Uuid;

#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEEP_ALIVE: Duration = Duration::from_secs(300);

fn table(limit: usize) -> (RouteTable, ManualClock) {
    let clock = ManualClock::new();
    let builder = RouteTable::builder().clock(clock.clone()).keep_alive(KEEP_ALIVE);
    let builder = builder.max_routes(limit).max_proxies(Builder::MOST_PROXIES);
    (builder.build().expect("possible limits"), clock)
}

fn described(id: &str) -> Proxy<'_> {
    Proxy {
        id,
        cluster_name: "main",
        addr: "192.0.2.1:3080",
    }
}

fn register(table: &RouteTable, count: usize) -> Vec<ProxyRef> {
    let register = |nth| {
        table
            .register_proxy(&described(&format!("proxy-{nth}")))
            .expect("there is room")
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

/// The processor time of this thread. By the wall clock, the longest step would be the one during which another thread
/// had the core.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a `timespec` of this function.
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

/// The mean and the longest of calls, each with the ID of a new proxy. A call's waits for a core do not count.
fn show_calls(title: &str, mut call: impl FnMut(&str)) {
    const CALLS: usize = 10_000;
    let ids: Vec<_> = (0..CALLS).map(|nth| format!("new-{nth}")).collect();
    let (mut all, mut longest) = (Duration::ZERO, Duration::ZERO);
    let mut laps = Laps::start();
    for id in &ids {
        call(id);
        let (_, own) = laps.lap();
        (all, longest) = (all + own, longest.max(own));
    }
    show(title, per(all, CALLS), "ns");
    show(&format!("{title}: the longest"), longest.as_secs_f64() * 1e6, "us");
}

/// Incarnations begin while very many that have ended are due to be forgotten: each call forgets at most two.
fn due_incarnations(count: usize) {
    let size = steps::size_name(count);
    for (ended, title) in [
        (0, "begin an incarnation".into()),
        (count, format!("begin an incarnation, {size} ended ones are due")),
    ] {
        let (table, clock) = table(1_000);
        let begin = |id: &str| {
            let begun = table.begin_incarnation(&described(id), NonZeroU64::MIN);
            begun.expect("there is room").proxy
        };
        for nth in 0..ended {
            assert!(table.remove_proxy(begin(&format!("ended-{nth}"))));
        }
        clock.advance(2 * KEEP_ALIVE);
        show_calls(&title, |id| _ = black_box(begin(id)));
    }
}

/// The sweeper holds the registry's lock for one step of its visit of the proxies at a time.
fn registrations_beside_sweeps(count: usize) {
    let (table, _clock) = table(1_000);
    _ = register(&table, count);
    let register = |prefix: &str, id: &str| {
        let registered = table.register_proxy(&described(&format!("{prefix}-{id}")));
        _ = black_box(registered.expect("there is room"));
    };
    show_calls("register a proxy", |id| register("alone", id));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Relaxed: the flag publishes nothing.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                table.sweep(usize::MAX);
            }
        });
        let title = format!(
            "register a proxy beside sweep(usize::MAX) of {}",
            steps::size_name(count)
        );
        show_calls(&title, |id| register("beside", id));
        is_over.store(true, Ordering::Relaxed);
    });
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
    let proxies = if args.is_bench { 1_000_000 } else { 1_000 };
    if args.wants("incarnation") {
        due_incarnations(proxies);
    }
    if args.wants("register") {
        registrations_beside_sweeps(proxies);
    }
    if args.wants("sweep") {
        for &size in &sizes {
            for expire in [25, 50, 90] {
                expiry(size, expire);
            }
        }
    }
}
