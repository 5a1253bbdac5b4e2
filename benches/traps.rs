//! The cost of calls in rare situations, each beside the ordinary call that it should not exceed.
//!
//! ```console
//! $ cargo bench --bench traps                  # all rows; a minute or two
//! $ cargo bench --bench traps -- sweep         # rows whose title has the word
//! $ NODES=1M cargo bench --bench traps         # by default, the sweep has 10,000,000 nodes
//! $ cargo bench --bench traps -- --record FILE
//! ```

#![allow(dead_code, reason = "a bench uses a part of what they share")]

mod peers;
mod support;

use std::hint::black_box;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nodetracker::{Builder, ManualClock, NodeId, Proxy, ProxyRef, RouteTable};
use uuid::Uuid;

use crate::support::args::Args;
use crate::support::own_time::{Laps, Stopwatch};
use crate::support::report::Report;
use crate::support::steps;

#[global_allocator]
static HEAP: mimalloc::MiMalloc = mimalloc::MiMalloc;

const KEEP_ALIVE: Duration = Duration::from_secs(300);

fn table(max_routes: usize) -> (RouteTable, ManualClock) {
    table_of(max_routes, Builder::MAX_PROXIES)
}

fn table_of(max_routes: usize, max_proxies: usize) -> (RouteTable, ManualClock) {
    let clock = ManualClock::new();
    let builder = RouteTable::builder().clock(clock.clone()).keep_alive(KEEP_ALIVE);
    let builder = builder.max_routes(max_routes).max_proxies(max_proxies);
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

fn refusals(report: &mut Report) {
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
    report.value("insert a node", ROUTES, "ns", per(watch.elapsed(), ROUTES));
    let watch = Stopwatch::start();
    strange
        .iter()
        .for_each(|node| _ = table.add_node(node, proxy).expect_err("there is no room"));
    let took = per(watch.elapsed(), ROUTES);
    report.value("refuse a node at the limit of routes", ROUTES, "ns", took);
}

fn ties(report: &mut Report) {
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
        report.value(title, ROUTES, "ns", per(watch.elapsed(), REFRESHES));
    }
}

/// A part of all routes expires at once. The bench times each step of the sweeper. Of three runs, the run counts whose
/// longest step is the median: a virtual machine may lose its processor unnoticed.
fn expiry(report: &mut Report, count: usize, expire: usize) {
    let mut runs = [(); 3].map(|()| steps_of_sweep(count, expire));
    runs.sort_by_key(|steps| steps.last().copied());
    let steps = &runs[1];
    let at = |share: f64| steps[((steps.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    for (what, share) in [
        ("the longest step", 1.0),
        ("p99.99 of the steps", 0.9999),
        ("the median step", 0.5),
    ] {
        report.value(
            format!("sweep(256) while {expire} % of the routes expire, {what}"),
            count,
            "µs",
            at(share),
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

/// The processor time of this thread. By the wall clock, the longest step would be the step during which another thread
/// had the core.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a `timespec` of this function.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "there is such a clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn idle_poll(report: &mut Report) {
    const POLLS: u32 = 100_000;
    let (table, _clock) = table(1_000);
    let mut subscription = table.subscribe();
    let start = Instant::now();
    for _ in 0..POLLS {
        assert_eq!(black_box(subscription.drain_events(10, |_| ())), Ok(0));
    }
    let took = per(start.elapsed(), POLLS as usize);
    report.value("poll a subscription with nothing to report", 0, "ns", took);
}

/// The mean and the longest of calls, each with the ID of a new proxy. A call's waits for a core do not count.
fn time_calls(report: &mut Report, title: &str, mut call: impl FnMut(&str)) {
    const CALLS: usize = 10_000;
    let ids: Vec<_> = (0..CALLS).map(|nth| format!("new-{nth}")).collect();
    let (mut all, mut longest) = (Duration::ZERO, Duration::ZERO);
    let mut laps = Laps::start();
    for id in &ids {
        call(id);
        let (_, own) = laps.lap();
        (all, longest) = (all + own, longest.max(own));
    }
    report.value(title, 0, "ns", per(all, CALLS));
    report.value(
        format!("{title}, the longest call"),
        0,
        "µs",
        longest.as_secs_f64() * 1e6,
    );
}

/// Begins incarnations while the ended incarnations that are due leave no room for another: each call forgets two.
fn due_incarnations(report: &mut Report, count: usize) {
    let size = steps::size_name(count);
    for (is_full, title) in [
        (false, "begin an incarnation".into()),
        (true, format!("begin an incarnation while {size} ended ones are due")),
    ] {
        let (table, clock) = table_of(1_000, count);
        let begin = |id: &str| {
            let begun = table.begin_incarnation(&described(id), NonZeroU64::MIN);
            begun.map(|begun| begun.proxy)
        };
        if is_full {
            let ended = (0..).map_while(|nth| begin(&format!("ended-{nth}")).ok());
            let ended = ended.inspect(|proxy| assert!(table.remove_proxy(*proxy)));
            assert!(ended.count() >= count);
            // After 15 rounds, the numbers of the removed proxies are free. All incarnations are still remembered.
            for _ in 0..15 {
                table.sweep(usize::MAX);
            }
            clock.advance(2 * KEEP_ALIVE);
        }
        time_calls(report, &title, |id| _ = black_box(begin(id).expect("there is room")));
    }
}

/// The sweeper frees the numbers of removed proxies, and holds the registry's lock for one step at a time.
fn registrations_beside_sweeps(report: &mut Report, count: usize) {
    let (table, _clock) = table(1_000);
    let removed = register(&table, count);
    let register = |prefix: &str, id: &str| {
        let registered = table.register_proxy(&described(&format!("{prefix}-{id}")));
        _ = black_box(registered.expect("there is room"));
    };
    time_calls(report, "register a proxy", |id| register("alone", id));
    removed.iter().for_each(|proxy| assert!(table.remove_proxy(*proxy)));
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Relaxed: the flag publishes nothing.
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                table.sweep(usize::MAX);
            }
        });
        let size = steps::size_name(count);
        let title = format!("register a proxy while sweep(usize::MAX) frees {size} removed proxies");
        time_calls(report, &title, |id| register("beside", id));
        is_over.store(true, Ordering::Relaxed);
    });
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let mut report = Report::default();
    let sizes = steps::sizes(if args.is_bench { &[10_000_000] } else { &[10_000] });
    if args.wants("refuse") {
        refusals(&mut report);
    }
    if args.wants("tick") {
        ties(&mut report);
    }
    if args.wants("poll") {
        idle_poll(&mut report);
    }
    let proxies = if args.is_bench { 1_000_000 } else { 40_000 };
    if args.wants("incarnation") {
        due_incarnations(&mut report, proxies);
    }
    if args.wants("register") {
        registrations_beside_sweeps(&mut report, proxies);
    }
    if args.wants("sweep") {
        for &size in &sizes {
            for expire in [25, 50, 90] {
                expiry(&mut report, size, expire);
            }
        }
    }
    report.save(&args)
}
