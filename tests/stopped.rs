//! A signal stops a thread at any instruction of each public call, while another thread makes all calls that must not
//! wait.
//!
//! A *victim* makes one call again and again. The main thread stops it at a random moment, makes the other calls,
//! compares their results with a model, and lets the victim continue. [`calls`] lists which calls may have to wait for
//! which.
//!
//! The victim is not stopped inside the allocator, whose locks are not the table's. If a call does not end while the
//! victim is stopped, an alarm finds that no call has ended since the last alarm. It lets the victim continue, and the
//! test fails.
#![cfg(target_os = "linux")]

#[path = "stopped/caller.rs"]
mod caller;
mod common;
#[path = "stopped/stop.rs"]
mod stop;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;
use std::thread;

use Registry::{Free, Itself, Takes, Tries};
use caller::{Caller, KEEP_ALIVE, OWN, described, node};
use common::sweep_fully;
use nodetracker::{ManualClock, RouteTable};
use stop::{Alarm, Victim, has_waited, live_bytes};

/// How a call uses the registry's lock, or the only other lock of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Registry {
    /// The call is lock-free.
    Free,
    /// The call takes the registry if it is free, and skips a step if not. So it does not wait, but other calls may
    /// wait for it.
    Tries,
    /// The call may wait for the registry.
    Takes,
    /// The call has a lock of its own.
    Itself,
}

/// A call: the victim is stopped in it, and the main thread makes it while the victim is stopped in this or another
/// call.
struct Call<'t> {
    name: &'static str,
    registry: Registry,
    /// How often the main thread makes the call at each stop.
    rate: Rate,
    make: fn(&mut Caller<'t>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rate {
    /// So many times at each stop.
    Times(usize),
    /// Once at one stop in this many, at random: such calls take longer.
    OneIn(usize),
}

const OFTEN: Rate = Rate::Times(16);
const RARELY: Rate = Rate::OneIn(8);

/// All calls, with the lock that each takes.
#[rustfmt::skip]
fn calls<'t>() -> [Call<'t>; 45] {
    let call = |name, registry, rate, make| Call { name, registry, rate, make };
    [
        call("add_node", Free, OFTEN, Caller::add_node),
        call("report_node", Free, OFTEN, Caller::report_node),
        call("add_nodes", Free, OFTEN, Caller::add_nodes),
        call("report_nodes", Free, OFTEN, Caller::report_nodes),
        call("add_nodes_with_handles", Free, OFTEN, Caller::add_nodes_with_handles),
        call("refresh_routes", Free, OFTEN, Caller::refresh_routes),
        call("get_proxies", Free, OFTEN, Caller::get_proxies),
        call("get_proxies_batch", Free, OFTEN, Caller::get_proxies_batch),
        call("resolve", Free, OFTEN, Caller::resolve),
        call("explain", Free, OFTEN, Caller::explain),
        call("remove_node", Free, OFTEN, Caller::remove_node),
        call("remove_route", Free, OFTEN, Caller::remove_route),
        call("sweep", Tries, OFTEN, Caller::sweep),
        call("for_each_route", Free, RARELY, Caller::for_each_route),
        call("try_for_each_route", Free, RARELY, Caller::try_for_each_route),
        call("nodes_page", Free, RARELY, Caller::nodes_page),
        call("try_nodes_page", Free, RARELY, Caller::try_nodes_page),
        call("nodes_of_part", Free, RARELY, Caller::nodes_of_part),
        call("proxies_page", Free, RARELY, Caller::proxies_page),
        call("subscribe", Free, RARELY, Caller::subscribe),
        call("poll", Free, OFTEN, Caller::poll),
        call("poll_ready", Free, OFTEN, Caller::poll_ready),
        call("wait", Free, RARELY, Caller::wait),
        call("len and other figures", Free, OFTEN, Caller::len),
        call("find_proxy", Free, OFTEN, Caller::find_proxy),
        call("proxy", Free, OFTEN, Caller::proxy),
        call("set_keep_alive", Itself, OFTEN, Caller::set_keep_alive),
        call("register_proxy, unchanged", Free, OFTEN, Caller::register_unchanged),
        call("stats", Free, RARELY, Caller::stats),
        call("memory_use", Free, RARELY, Caller::memory_use),
        call("incarnation", Free, OFTEN, Caller::incarnation),
        call("route_count", Free, OFTEN, Caller::route_count),
        call("expiry_hold", Free, OFTEN, Caller::expiry_hold),
        call("write_snapshot", Tries, RARELY, Caller::write_snapshot),
        call("resume_incarnation", Free, OFTEN, Caller::resume_incarnation),
        call("begin_incarnation, again", Free, OFTEN, Caller::begin_again),
        call("read_snapshot, into an empty table", Free, RARELY, Caller::read_snapshot_into_empty),
        // These change proxies.
        call("read_snapshot", Takes, RARELY, Caller::read_snapshot),
        call("register_proxy, new", Takes, RARELY, Caller::register_new),
        call("register_proxy, changed", Takes, OFTEN, Caller::register_changed),
        call("report_node, changed", Takes, OFTEN, Caller::report_changed),
        call("report_nodes, changed", Takes, OFTEN, Caller::report_nodes_changed),
        call("remove_proxy", Takes, RARELY, Caller::remove_proxy),
        call("remove_proxy_by_id", Takes, RARELY, Caller::remove_proxy_by_id),
        call("begin_incarnation, the next", Takes, RARELY, Caller::begin_the_next),
    ]
}

impl Call<'_> {
    /// Whether this call may have to wait for a thread that is stopped in `other`.
    fn may_wait_for(&self, other: &Call<'_>) -> bool {
        match self.registry {
            Free | Tries => false,
            Takes => matches!(other.registry, Takes | Tries),
            Itself => self.name == other.name,
        }
    }
}

/// Bytes that may stay allocated once a table is dropped: threads and rayon's pool keep them.
const KEPT: usize = 1 << 18;

/// `NODETRACKER_SCALE` multiplies the stops. A seed repeats the calls, but not the instructions at which the victim
/// stops.
#[test]
fn a_thread_that_is_stopped_in_any_call_holds_up_no_call_that_is_lock_free() {
    let mut random = fastrand::Rng::with_seed(common::seed());
    println!("NODETRACKER_SEED={}", common::seed());
    let _alarm = Alarm::set();
    for nth in 0..calls().len() {
        let before = live_bytes();
        stop_in(nth, 100 * common::scale(), &mut random);
        // Objects retired meanwhile are freed once other threads have retired more.
        let left = || live_bytes().saturating_sub(before);
        let is_freed = (0..10_000).any(|_| {
            retire_some();
            left() < KEPT
        });
        assert!(is_freed, "{}: {} bytes are left", calls()[nth].name, left());
    }
}

/// A new public call needs a row in the crate's docs, and a method of [`Caller`].
#[test]
fn every_public_call_is_in_the_docs_and_has_a_caller() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = |path: &Path| fs::read_to_string(root.join(path)).expect("a source");
    let docs = source("src/lib.rs".as_ref());
    let (_, docs) = docs
        .split_once("# Which calls wait for another thread")
        .expect("a section");
    let (docs, _) = docs.split_once("\n//! # ").expect("another section");
    let callers = source("tests/stopped/caller.rs".as_ref());

    let mut files = vec![
        "src/table.rs".into(),
        "src/snapshot/mod.rs".into(),
        "src/feed/subscription.rs".into(),
    ];
    let table = fs::read_dir(root.join("src/table")).expect("a folder");
    files.extend(table.map(|file| file.expect("a file").path()));
    let mut calls = 0;
    for text in files.iter().map(|file| source(file)) {
        let blocks = text.split("\nimpl").skip(1);
        let of_table = blocks.filter(|block| {
            [" RouteTable {", "<'t> Subscription<'t> {"]
                .iter()
                .any(|of| block.starts_with(of))
        });
        for declared in of_table.flat_map(|block| block.split("\n    pub fn ").skip(1)) {
            let name: String = declared
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if ["new", "builder"].contains(&&*name) {
                continue;
            }
            assert!(docs.contains(&format!("[`{name}`]")), "{name} is not in the docs");
            assert!(callers.contains(&format!(".{name}(")), "{name} has no caller");
            calls += 1;
        }
    }
    assert!(calls > 40, "{calls} calls");
}

/// Stops a victim in the `nth` call, again and again, and checks the table when it has ended.
fn stop_in(nth: usize, stops: usize, random: &mut fastrand::Rng) {
    let builder = RouteTable::builder().clock(ManualClock::new());
    let builder = builder.keep_alive(KEEP_ALIVE).max_routes_per_proxy(1 << 20);
    let table = builder.build().expect("possible limits");
    let calls = calls();
    let stopped_in = &calls[nth];
    let mut caller = Caller::new(&table, "caller", random.u64(..));
    let victim = Caller::new(&table, "victim", random.u64(..));
    let (mut signals, mut made) = (0, 0);
    let mut victim = thread::scope(|scope| {
        let victim = Victim::spawn(scope, victim, stopped_in.make);
        for _ in 0..stops {
            signals += victim.stop(|| random.u32(..1000));
            for call in calls.iter().filter(|call| !call.may_wait_for(stopped_in)) {
                let times = match call.rate {
                    Rate::Times(times) => times,
                    Rate::OneIn(stops) => usize::from(random.usize(..stops) == 0),
                };
                for _ in 0..times {
                    (call.make)(&mut caller);
                    made += 1;
                    let [name, other] = [call.name, stopped_in.name];
                    assert!(!has_waited(), "{name} waits for a thread that is stopped in {other}");
                }
            }
            victim.go_on();
        }
        victim.end()
    });
    let name = stopped_in.name;
    println!("{name}: {stops} stops by {signals} signals, {made} calls of others");
    check(&table, &mut caller, &mut victim);
}

/// Checks that the table has the routes that the callers have added and not removed, and no others.
fn check<'t>(table: &RouteTable, caller: &mut Caller<'t>, victim: &mut Caller<'t>) {
    for node in &caller.wild {
        table.remove_node(node);
    }
    sweep_fully(table);
    // The nodes that both callers change are checked once, for both.
    for (routes, others) in caller.routes[OWN..].iter_mut().zip(victim.routes.drain(OWN..)) {
        routes.extend(others);
    }
    let mut total = (0, 0);
    let mut of_proxies = HashMap::new();
    for caller in [caller, victim] {
        for (node, routes) in caller.nodes.iter().zip(&caller.routes) {
            let answer: HashSet<_> = table.get_proxies(node).iter().map(|route| route.proxy).collect();
            assert_eq!(answer, *routes, "{node}");
            total.0 += routes.len();
            routes
                .iter()
                .for_each(|proxy| *of_proxies.entry(*proxy).or_insert(0) += 1);
            total.1 += usize::from(!routes.is_empty());
        }
    }
    for (proxy, routes) in of_proxies {
        assert_eq!(table.route_count(proxy), Some(routes));
    }
    let stats = table.stats();
    assert_eq!((stats.routes, stats.nodes), total);
    assert_eq!(table.len(), total.0);
}

/// Retires some objects of another table, so that reclamation advances.
fn retire_some() {
    let table = RouteTable::builder()
        .clock(ManualClock::new())
        .build()
        .expect("possible limits");
    let proxies = ["a", "b"].map(|id| table.register_proxy(&described(id, 0)).expect("there is room"));
    let node = node("node", 0);
    for _ in 0..100 {
        for proxy in proxies {
            table.add_node(&node, proxy).expect("there is room");
        }
        table.remove_node(&node);
    }
}
