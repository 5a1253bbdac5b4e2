//! Tests that stop a thread at each step of each protocol in turn, while other threads run.

use std::cell::RefCell;
use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::layout::SHARDS;
use crate::{AddError, BeginError, Event, Incarnation, ManualClock, NodeId, Proxy, ProxyCursor, ProxyRef, RouteTable};
use uuid::Uuid;

fn garbage() -> usize {
    crate::sync::garbage().objects
}

/// The place at which a thread stops, until it may continue.
#[derive(Default)]
struct Stop {
    at: &'static str,
    reached: AtomicBool,
    /// Set when the thread may continue. It does not stop again.
    go_on: Mutex<bool>,
    changed: Condvar,
}

impl Stop {
    fn release(&self) {
        *self.go_on.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }
}

thread_local! {
    static STOP: RefCell<Option<Arc<Stop>>> = const { RefCell::new(None) };
}

/// Stops the thread if it is to stop at this step.
pub(crate) fn failpoint(name: &'static str) {
    let stop = STOP.with_borrow(|stop| stop.as_ref().filter(|stop| stop.at == name).map(Arc::clone));
    if let Some(stop) = stop {
        let mut go_on = stop.go_on.lock().unwrap_or_else(PoisonError::into_inner);
        stop.reached.store(true, Ordering::Release);
        while !*go_on {
            go_on = stop.changed.wait(go_on).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// One test at a time: a stopped thread delays the reclamation of all tables.
static ALONE: Mutex<()> = Mutex::new(());

/// Waits until no test has a stopped thread, and keeps other tests from stopping a thread. For tests that wait for
/// reclamation, or that stay pinned for long.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const STEPS: [&str; 21] = [
    "insert: root loaded",
    "insert: record taken",
    "insert: slot won",
    "change: before the CAS",
    "change: done, not counted",
    "list: before a freeze",
    "list: frozen",
    "rebuild: frozen",
    "rebuild: mid copy",
    "rebuild: copied",
    "rebuild: before the root",
    "rebuild: root replaced",
    "move: frozen",
    "move: mid freeze",
    "move: before the root",
    "move: root replaced",
    "returned: taken",
    "returned: before giving back",
    "sweep: before the visit",
    "sweep: before the advance",
    "feed: before the head",
];

const NODES: u128 = 3_000;
const KEEP_ALIVE: Duration = Duration::from_millis(50);
/// The most objects that `work` retires for each node, by seven operations. Two are lists, replaced by the refresh and
/// by the removal of the second route. Four are entries of the feed, overwritten by two additions and two removals.
const GARBAGE_PER_NODE: usize = 2 + 4;
/// The most indexes that are replaced in each shard, on average, while a thousand nodes are added, removed and swept.
const INDEXES_PER_SHARD: usize = 6;

struct Arena {
    table: RouteTable,
    clock: ManualClock,
}

fn node(number: u128) -> NodeId {
    Uuid::from_u128(number).into()
}

impl Arena {
    fn new() -> Self {
        let clock = ManualClock::new();
        let table = RouteTable::builder()
            .clock(clock.clone())
            .keep_alive(KEEP_ALIVE)
            .build()
            .expect("possible limits");
        Self { table, clock }
    }

    fn register(&self, id: &str) -> ProxyRef {
        self.table.register_proxy(&proxy(id)).expect("there is room")
    }

    /// Does every kind of operation on `count` nodes from `first` on. Returns how many operations it did. `is_alone`:
    /// no other thread advances the clock, so the answers are checked.
    fn work(&self, ids: [&str; 2], first: u128, count: u128, is_alone: bool) -> usize {
        let table = &self.table;
        let proxies = ids.map(|id| self.register(id));
        let nodes = || (first..first + count).map(node);
        let has = |node: &NodeId| {
            table
                .get_proxies(node)
                .iter()
                .map(|route| route.proxy)
                .collect::<HashSet<_>>()
        };
        for node in nodes() {
            for proxy in proxies {
                match table.add_node(&node, proxy) {
                    Ok(_) => {}
                    Err(AddError::UnknownProxy) if !is_alone => return 0,
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(!is_alone || has(&node) == HashSet::from(proxies));
        }
        for node in nodes() {
            let refreshed = table.add_node(&node, proxies[0]).is_ok();
            let removed = table.remove_route(&node, proxies[1]);
            assert!(!is_alone || refreshed && removed && has(&node) == HashSet::from([proxies[0]]));
        }
        for node in nodes().skip(1) {
            assert!(table.remove_node(&node) || !is_alone);
            assert_eq!(has(&node), HashSet::new());
        }
        7 * count as usize
    }

    /// Full rounds, after which no expired route is left.
    fn sweep(&self) {
        for _ in 0..2 {
            assert!(
                (0..1_000_000).any(|_| self.table.sweep(4096).round_completed),
                "a round does not end"
            );
        }
    }
}

fn scale() -> u128 {
    std::env::var("NODETRACKER_SCALE").map_or(1, |text| text.parse().expect("NODETRACKER_SCALE is a number"))
}

/// `NODETRACKER_SCALE=35` makes more than 100,000 operations at each step.
#[test]
fn a_thread_that_stops_anywhere_holds_nobody_up() {
    let _alone = alone();
    let mut never = Vec::new();
    for at in STEPS {
        let arena = Arena::new();
        let mut subscription = arena.table.subscribe();
        let stop = Arc::new(Stop { at, ..Stop::default() });
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let (stop, arena, ended) = (&stop, &arena, &ended);
            scope.spawn(move || {
                STOP.with_borrow_mut(|mine| *mine = Some(Arc::clone(stop)));
                for _ in 0..50 {
                    arena.work(["slow-1", "slow-2"], 1 << 40, NODES, false);
                    arena.clock.advance(2 * KEEP_ALIVE);
                    arena.sweep();
                    if stop.reached.load(Ordering::Acquire) {
                        break;
                    }
                }
                ended.store(true, Ordering::Release);
            });
            while !stop.reached.load(Ordering::Acquire) && !ended.load(Ordering::Acquire) {
                thread::yield_now();
            }
            if !stop.reached.load(Ordering::Acquire) {
                never.push(at);
                return;
            }
            let before = garbage();
            let (mut operations, mut most) = (0, 0);
            for round in 0..scale() {
                operations += arena.work(["fast-1", "fast-2"], round * NODES, NODES / 3, true);
                arena.clock.advance(2 * KEEP_ALIVE);
                arena.sweep();
                most += GARBAGE_PER_NODE * (NODES / 3) as usize + INDEXES_PER_SHARD * SHARDS;
            }
            let grown = garbage().saturating_sub(before);
            println!("{at}: {operations} operations, {grown} objects of garbage, {most} are allowed");
            assert!(
                grown <= most,
                "{at}: {grown} objects of garbage after {operations} operations"
            );
            _ = subscription.drain_events(usize::MAX, |event: &Event| _ = event.clone());
            stop.release();
        });
        // Objects that the thread held back are freed after the thread has continued.
        for _ in 0..10_000 {
            if garbage() < 256 {
                break;
            }
            crate::sync::pin().flush();
            thread::yield_now();
        }
        assert!(garbage() < 256, "{at}: {} objects are left", garbage());
        arena.clock.advance(2 * KEEP_ALIVE);
        arena.sweep();
        assert_eq!(arena.table.len(), 0, "{at}");
    }
    assert_eq!(never, Vec::<&str>::new(), "steps where nobody ever came");
}

/// Runs `work` on a thread that stops at `at`, then `others`, then lets the thread continue.
pub(crate) fn with_stopped<R>(at: &'static str, work: impl FnOnce() + Send, others: impl FnOnce() -> R) -> R {
    let stop = Arc::new(Stop { at, ..Stop::default() });
    thread::scope(|scope| {
        let its = Arc::clone(&stop);
        let stopped = scope.spawn(move || {
            STOP.with_borrow_mut(|mine| *mine = Some(its));
            work();
        });
        while !stop.reached.load(Ordering::Acquire) {
            assert!(!stopped.is_finished(), "the thread never came to {at:?}");
            thread::yield_now();
        }
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(others));
        stop.release();
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn a_sweeper_that_stops_leaves_no_hole() {
    let _alone = alone();
    let arena = Arena::new();
    arena.work(["one", "two"], 0, NODES, true);
    let proxy = arena.register("one");
    (0..NODES).for_each(|number| _ = arena.table.add_node(&node(number), proxy).expect("there is room"));
    arena.clock.advance(2 * KEEP_ALIVE);
    with_stopped(
        "sweep: before the visit",
        || _ = arena.table.sweep(1),
        || {
            let ends = (0..1_000).any(|_| arena.table.sweep(4096).round_completed);
            assert!(ends, "a round does not end");
            assert_eq!(arena.table.len(), 0, "a round ended, but some were not visited");
        },
    );
}

/// The clock advances while an addition is stopped, and the node gets as many routes as it may have.
#[test]
fn an_addition_that_stopped_for_long_displaces_no_later_route() {
    let _alone = alone();
    for at in ["insert: root loaded", "list: before a freeze", "change: before the CAS"] {
        let arena = Arena::new();
        let others: Vec<_> = (0..64).map(|nth| arena.register(&format!("other-{nth}"))).collect();
        let late = arena.register("late");
        let add = |proxy| _ = arena.table.add_node(&node(1), proxy).expect("there is room");
        others[..2].iter().for_each(|&proxy| add(proxy));
        with_stopped(
            at,
            || add(late),
            || {
                arena.clock.advance(2 * KEEP_ALIVE);
                others.iter().for_each(|&proxy| add(proxy));
            },
        );
        let routes: HashSet<_> = arena
            .table
            .get_proxies(&node(1))
            .iter()
            .map(|route| route.proxy)
            .collect();
        assert_eq!(routes, others.iter().copied().collect(), "{at}");
    }
}

/// An addition that removes an expired route is stopped. Meanwhile the interval becomes so long that the route is
/// valid.
#[test]
fn a_route_that_a_longer_interval_brought_back_stays() {
    let _alone = alone();
    let arena = Arena::new();
    let [old, new, newest] = ["old", "new", "newest"].map(|id| arena.register(id));
    let routes = || {
        let routes = arena.table.get_proxies(&node(1));
        routes.iter().map(|route| route.proxy).collect::<Vec<_>>()
    };
    for (proxy, later) in [(old, KEEP_ALIVE), (new, KEEP_ALIVE / 2)] {
        arena.table.add_node(&node(1), proxy).expect("there is room");
        arena.table.add_node(&node(2), proxy).expect("there is room");
        arena.clock.advance(later);
    }
    assert_eq!(routes(), [new]);
    let returned = with_stopped(
        "change: before the CAS",
        || _ = arena.table.add_node(&node(1), newest).expect("there is room"),
        || {
            arena.table.set_keep_alive(4 * KEEP_ALIVE);
            routes()
        },
    );
    let now = routes();
    assert!(
        returned.iter().all(|route| now.contains(route)),
        "{returned:?}, then {now:?}"
    );
    // The longer interval comes into force for others when the addition has ended.
    let in_force = (0..10_000_000).any(|_| {
        crate::sync::pin().flush();
        arena.table.get_proxies(&node(2)).len() == 2
    });
    assert!(in_force, "the longer interval never came into force");
}

#[test]
fn a_writer_that_stops_before_the_head_moves_holds_nobody_up() {
    let _alone = alone();
    let arena = Arena::new();
    let proxies = ["one", "two", "three"].map(|id| arena.register(id));
    let mut subscription = arena.table.subscribe();
    with_stopped(
        "feed: before the head",
        || _ = arena.table.add_node(&node(1), proxies[0]),
        || {
            for proxy in &proxies[1..] {
                arena.table.add_node(&node(1), *proxy).expect("there is room");
            }
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(3));
        },
    );
}

#[test]
fn an_addition_of_an_older_incarnation_brings_no_route_back_wherever_it_stops() {
    let _alone = alone();
    for at in &STEPS[..5] {
        let arena = Arena::new();
        let begin = |incarnation| begin(&arena.table, "proxy", incarnation).proxy;
        let older = begin(1);
        let newer = with_stopped(
            at,
            || _ = arena.table.add_node(&node(1), older),
            || {
                let newer = begin(2);
                assert_eq!(arena.table.get_proxies(&node(1)).len(), 0, "{at}: it is there");
                newer
            },
        );
        assert_eq!(arena.table.get_proxies(&node(1)).len(), 0, "{at}: it came back");
        assert_eq!(arena.table.add_node(&node(1), older), Err(AddError::UnknownProxy));
        arena.table.add_node(&node(1), newer).expect("there is room");
        let routes = arena.table.get_proxies(&node(1));
        assert_eq!(
            routes.iter().map(|route| route.proxy).collect::<Vec<_>>(),
            [newer],
            "{at}"
        );
    }
}

/// A call of a thread that stops with the registry's lock held.
type Locking = fn(&RouteTable, ProxyRef);

/// A registration, a takeover and a removal, at each of their steps.
#[test]
fn readers_do_not_wait_for_the_registrys_lock() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let register: Locking = |table, _| _ = table.register_proxy(&proxy("new")).expect("there is room");
    let replace: Locking = |table, _| _ = begin(table, "restarts", 2);
    let remove: Locking = |table, gone| assert!(table.remove_proxy(gone));
    for (at, work, now) in [
        ("register: not in the map", register, 1),
        ("replace: announced", replace, 1),
        ("replace: dead", replace, 2),
        ("replace: in the map", replace, 2),
        ("remove: dead", remove, 1),
    ] {
        let Arena { table, .. } = &Arena::new();
        let (stays, gone) = (begin(table, "stays", 7).proxy, begin(table, "gone", 1).proxy);
        let before = begin(table, "restarts", 1).proxy;
        table.add_node(&node(1), before).expect("there is room");
        table.add_node(&node(2), stays).expect("there is room");
        let look = || {
            let found = table.find_proxy("restarts").expect("it is registered all the while");
            assert_eq!(table.incarnation(found).map(NonZeroU64::get), Some(now), "{at}");
            assert_eq!(table.proxy(found).expect("it is registered").id, "restarts", "{at}");
            // A reader finds the newer reference from the moment at which the older reference's routes are gone.
            assert_eq!(
                (found == before, table.get_proxies(&node(1)).len()),
                (now == 1, 2 - now as usize)
            );
            assert_eq!(
                (table.proxy(before).is_some(), table.incarnation(before).is_some()),
                (now == 1, now == 1)
            );
            assert!(now == 1 || !table.remove_proxy(before), "{at}");

            for again in [begin(table, "restarts", now), begin(table, "stays", 7)] {
                assert!(again.is_resumed, "{at}");
            }
            let resumed = table.resume_incarnation(&proxy("stays"), NonZeroU64::MIN.saturating_add(6));
            assert_eq!(resumed.map(|resumed| resumed.proxy), Ok(stays), "{at}");
            let late = table.begin_incarnation(&proxy("stays"), NonZeroU64::MIN);
            assert!(matches!(late, Err(BeginError::Stale(_))), "{at}: {late:?}");
            assert_eq!(table.register_proxy(&proxy("stays")), Ok(stays), "{at}");
            table.sweep(usize::MAX);
            assert_eq!(table.find_proxy("new"), None, "{at}");
            assert_eq!(table.find_proxy("gone").is_none(), at == "remove: dead", "{at}");
            assert!((2..=3).contains(&table.stats().proxies), "{at}: {:?}", table.stats());

            let page = table.proxies_page(ProxyCursor::default(), 9);
            let mut listed: Vec<_> = page.proxies.iter().map(|(_, details)| &*details.id).collect();
            listed.sort_unstable();
            let expected: &[&str] = if at == "remove: dead" {
                &["restarts", "stays"]
            } else {
                &["gone", "restarts", "stays"]
            };
            assert_eq!(listed, expected, "{at}");
            let mut bytes = Vec::new();
            let written = table.write_snapshot(&mut bytes).expect("memory can be written to");
            assert_eq!(
                (written.proxies, written.routes),
                (expected.len() as u64, 3 - now),
                "{at}"
            );
            let other = RouteTable::new();
            other.read_snapshot(bytes.as_slice()).expect("a good snapshot");
            let read = other.find_proxy("restarts").expect("it is in there");
            assert_eq!(other.incarnation(read).map(NonZeroU64::get), Some(now), "{at}");
        };
        with_stopped(at, || work(table, gone), look);
    }
}

fn proxy(id: &str) -> Proxy<'_> {
    Proxy {
        id,
        cluster_name: "",
        addr: "a:1",
    }
}

fn begin(table: &RouteTable, id: &str, incarnation: u64) -> Incarnation {
    let incarnation = NonZeroU64::new(incarnation).expect("not zero");
    table.begin_incarnation(&proxy(id), incarnation).expect("there is room")
}
