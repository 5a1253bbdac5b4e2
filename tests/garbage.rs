//! The memory that waits for reclamation stays within the documented bound, with any mix of batches, single calls,
//! sweeps and feeds, even if no other thread pins. The tests run one at a time, because they measure the heap of the
//! process.

#[path = "../benches/support/counting.rs"]
#[allow(dead_code)]
mod counting;

mod common;
#[path = "common/stopping.rs"]
mod stopping;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use common::gate::Gate;
use common::{proxy, scale, table_with};
use counting::Counting;
use nodetracker::{AddError, Added, Builder, Clock, ManualClock, NodeId, ProxyRef, RouteTable, Stats};
use uuid::Uuid;

/// Counts the allocations of a thread, beside the heap of the process: the harness's threads allocate meanwhile.
struct Heap(Counting<System>);

#[global_allocator]
static HEAP: Heap = Heap(Counting(System));

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the inner allocator as it came, and that allocator keeps the contract.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are the same.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { self.0.dealloc(ptr, layout) }
    }
}

static ALONE: Mutex<()> = Mutex::new(());

const KIB: usize = 1 << 10;
const KEEP_ALIVE: Duration = Duration::from_secs(300);

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn nodes(count: u128) -> Vec<NodeId> {
    (0..count).map(|number| Uuid::from_u128(number).into()).collect()
}

fn table() -> (RouteTable, ManualClock) {
    common::table(KEEP_ALIVE)
}

fn register<const N: usize>(table: &RouteTable) -> [ProxyRef; N] {
    std::array::from_fn(|nth| {
        table
            .register_proxy(&proxy(&format!("proxy-{nth}")))
            .expect("there is room")
    })
}

/// One round of the sweeper from its beginning to its end, by `records` at a time.
fn sweep_round(table: &RouteTable, records: usize) {
    while !table.sweep(records).round_completed {}
}

fn garbage(table: &RouteTable) -> usize {
    table.stats().garbage
}

/// How often this thread allocates in a call.
fn allocations(call: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    call();
    ALLOCATIONS.get() - before
}

/// How many more bytes than `before` are in use.
fn grown(before: usize) -> usize {
    counting::live().saturating_sub(before)
}

#[test]
fn routes_that_move_by_batches_leave_no_more_garbage_than_one_by_one() {
    let _alone = alone();
    let nodes = nodes(20_000);
    let (table, clock) = table();
    let proxies = register::<6>(&table);
    let mut after_rounds = Vec::new();
    for round in 0..20 * scale() {
        for batch in nodes.chunks(1_000) {
            table.add_nodes(batch, proxies[round % 6]).expect("there is room");
            let waiting = garbage(&table);
            assert!(
                waiting <= Stats::MAX_GARBAGE_PER_THREAD,
                "{waiting} objects in round {round}"
            );
        }
        clock.advance(Duration::from_secs(100));
        sweep_round(&table, 256);
        after_rounds.push(counting::live());
    }
    let (early, late) = (after_rounds[6], after_rounds[after_rounds.len() - 1]);
    assert!(
        late < early + 64 * KIB,
        "{early} bytes after 6 rounds, {late} after all: {after_rounds:?}"
    );
}

#[test]
fn a_refresh_of_nothing_allocates_its_result_only() {
    let _alone = alone();
    let nodes = nodes(5_000);
    let (table, _clock) = table();
    let proxies = register::<4>(&table);
    let mut handles = Vec::new();
    for proxy in &proxies[..3] {
        let added = table.add_nodes_with_handles(&nodes, *proxy);
        handles = added.expect("there is room").handles;
    }
    for _ in 0..3 {
        sweep_round(&table, 256);
    }
    let all_gone = allocations(|| {
        let refreshed = table.refresh_routes(&handles, proxies[3]).expect("it is registered");
        assert_eq!((refreshed.refreshed, refreshed.gone.len()), (0, nodes.len()));
    });
    let positions = allocations(|| {
        let mut gone = Vec::new();
        (0..nodes.len()).for_each(|position| gone.push(position));
        assert_eq!(gone.len(), nodes.len());
    });
    assert_eq!(all_gone, positions, "allocations for refreshes that changed nothing");
    let none_gone = allocations(|| {
        let refreshed = table.refresh_routes(&handles, proxies[2]).expect("it is registered");
        assert_eq!(refreshed.refreshed, nodes.len());
    });
    assert_eq!(none_gone, 0, "allocations for refreshes of all handles");
}

#[test]
fn a_call_that_changes_nothing_allocates_nothing() {
    let _alone = alone();
    let (table, clock) = table();
    let [one, two, stranger] = register(&table);
    let nodes = nodes(4);
    let [listed, single, unknown] = [&nodes[0], &nodes[1], &nodes[3]];
    for (node, proxy) in [(listed, one), (listed, two), (single, one)] {
        table.add_node(node, proxy).expect("there is room");
    }
    let removed = table.register_proxy(&proxy("removed")).expect("there is room");
    assert!(table.remove_proxy(removed));
    let [first, second] = [1, 2].map(|number| NonZeroU64::new(number).expect("not zero"));
    table.begin_incarnation(&proxy("begun"), second).expect("there is room");
    let mut subscription = table.subscribe();
    while subscription.drain_events(usize::MAX, |_| ()) != Ok(0) {}
    // Until the number of the removed proxy is free.
    (0..16).for_each(|_| sweep_round(&table, 256));

    let calls: &mut [(&str, &mut dyn FnMut())] = &mut [
        ("refresh", &mut || {
            clock.advance(Duration::from_millis(1));
            for (node, proxy) in [(listed, two), (listed, one), (single, one)] {
                assert_eq!(table.add_node(node, proxy), Ok(Added::Refreshed));
                assert_eq!(table.add_node(node, proxy), Ok(Added::Refreshed));
            }
            assert!(table.add_nodes(&nodes[..2], one).is_ok());
        }),
        ("look up", &mut || {
            assert_eq!(nodes.iter().map(|node| table.get_proxies(node).len()).sum::<usize>(), 3);
        }),
        ("remove a route", &mut || {
            for node in [listed, single, unknown] {
                assert!(!table.remove_route(node, stranger) && !table.remove_route(node, removed));
            }
        }),
        ("remove a node", &mut || assert!(!table.remove_node(unknown))),
        ("register", &mut || {
            assert_eq!(table.register_proxy(&proxy("proxy-0")), Ok(one))
        }),
        ("begin again", &mut || {
            assert!(
                table
                    .begin_incarnation(&proxy("begun"), second)
                    .is_ok_and(|begun| begun.is_resumed)
            );
            assert!(
                table
                    .resume_incarnation(&proxy("begun"), second)
                    .is_ok_and(|begun| begun.is_resumed)
            );
        }),
        ("begin an older one", &mut || {
            assert!(table.begin_incarnation(&proxy("begun"), first).is_err());
        }),
        ("remove a proxy", &mut || {
            assert!(!table.remove_proxy(removed) && !table.remove_proxy_by_id("removed"));
        }),
        ("set the interval", &mut || table.set_keep_alive(KEEP_ALIVE)),
        ("poll", &mut || assert_eq!(subscription.drain_events(9, |_| ()), Ok(0))),
    ];
    for (name, call) in calls {
        assert_eq!(allocations(call), 0, "allocations to {name}");
    }
}

/// A refusal leaves a node's list as it is, so the next refresh of the list's routes replaces no list.
#[test]
fn a_route_that_is_refused_allocates_nothing() {
    let _alone = alone();
    type Limit = fn(Builder) -> Builder;
    let limits: [(Limit, AddError); 2] = [
        (|builder| builder.max_routes(5), AddError::TooManyRoutes { limit: 5 }),
        (
            |builder| builder.max_routes_per_proxy(2),
            AddError::TooManyRoutesOfProxy { limit: 2 },
        ),
    ];
    for (limit, refused) in limits {
        let (table, clock) = table_with(KEEP_ALIVE, limit);
        let [one, two, third, fourth] = register(&table);
        let nodes = nodes(5);
        let [listed, single, unknown] = [&nodes[0], &nodes[1], &nodes[4]];
        // The table or the third proxy has no room for a further route.
        for (node, proxy) in [
            (listed, one),
            (listed, two),
            (single, one),
            (&nodes[2], third),
            (&nodes[3], third),
        ] {
            assert_eq!(table.add_node(node, proxy), Ok(Added::Inserted));
        }
        for node in [listed, single, unknown] {
            let refuse = || assert_eq!(table.add_node(node, third), Err(refused));
            // The first call may make the first index of a shard.
            refuse();
            assert_eq!(allocations(refuse), 0, "allocations to refuse {node}: {refused}");
        }
        let refreshes = allocations(|| {
            for proxy in [one, two, one] {
                clock.advance(Duration::from_millis(1));
                assert_eq!(table.add_node(listed, proxy), Ok(Added::Refreshed));
            }
        });
        assert_eq!(refreshes, 0, "allocations for refreshes after a refusal: {refused}");
        // At the limit, a route may still take the place of a stale route.
        clock.advance(2 * KEEP_ALIVE);
        assert_eq!(table.add_node(listed, fourth), Ok(Added::Inserted));
    }
}

#[test]
fn an_idle_table_gives_memory_back_within_two_rounds() {
    let _alone = alone();
    let nodes = nodes(50_000);
    let (table, clock) = table();
    let proxies = register::<2>(&table);
    let before = counting::live();
    for proxy in proxies {
        table.add_nodes(&nodes, proxy).expect("there is room");
    }
    clock.advance(2 * KEEP_ALIVE);
    counting::forget_peak();
    let full = counting::live();
    for _ in 0..2 {
        sweep_round(&table, 256);
    }
    assert_eq!(table.len(), 0);
    assert_eq!(garbage(&table), 0, "objects wait in an idle table");
    // Empty indexes and slabs stay: 128 shards, of less than a kilobyte each.
    assert!(grown(before) < 128 * KIB, "{} bytes of an empty table", grown(before));
    let peak = counting::peak() - full;
    assert!(peak < 256 * KIB, "{peak} bytes more at the peak of the sweep");
    // One list does not fill a bag, and no other call retires anything.
    for proxy in register::<2>(&table) {
        table.add_node(&nodes[0], proxy).expect("there is room");
    }
    clock.advance(2 * KEEP_ALIVE);
    for _ in 0..2 {
        sweep_round(&table, 256);
    }
    assert_eq!((table.len(), garbage(&table)), (0, 0), "the list of one node");
}

/// Too few nodes expire for the shards to move. A rebuild leaves out more records of each shard than an insertion takes
/// back at once.
#[test]
fn an_idle_table_gives_the_names_of_expired_nodes_back_within_two_rounds() {
    let _alone = alone();
    let nodes: Vec<NodeId> = (0..480_000)
        .map(|number| format!("node-{number}").parse().expect("a good name"))
        .collect();
    let (table, clock) = table();
    let [proxy] = register(&table);
    let (expire, stay) = nodes.split_at(nodes.len() * 31 / 100);
    table.add_nodes(stay, proxy).expect("there is room");
    let of_stay = table.memory_use().strings;
    table.add_nodes(expire, proxy).expect("there is room");
    clock.advance(2 * KEEP_ALIVE / 3);
    table.add_nodes(stay, proxy).expect("there is room");
    clock.advance(2 * KEEP_ALIVE / 3);
    for _ in 0..2 {
        sweep_round(&table, 256);
    }
    assert_eq!(table.len(), stay.len());
    assert_eq!(table.memory_use().strings, of_stay, "bytes of names");
}

#[test]
fn a_subscriber_that_does_not_poll_costs_its_ring() {
    let _alone = alone();
    let nodes = nodes(400_000);
    // The table's memory without a subscriber and with one, after all changes were made by batches.
    let bytes = |is_followed: bool| {
        let before = counting::live();
        let (table, _clock) = table();
        let [proxy] = register::<1>(&table);
        let subscription = is_followed.then(|| table.subscribe());
        for batch in nodes.chunks(1_000) {
            table.add_nodes(batch, proxy).expect("there is room");
            let waiting = garbage(&table);
            assert!(waiting <= Stats::MAX_GARBAGE_PER_THREAD, "{waiting} objects");
        }
        let grown = grown(before);
        drop(subscription);
        grown
    };
    let rings = bytes(true) - bytes(false);
    // 128 rings of 512 changes, of 64 bytes each with their place; and the garbage of one thread.
    let most = 128 * 512 * 64 + Stats::MAX_GARBAGE_PER_THREAD * 64;
    assert!(
        rings < most + 512 * KIB,
        "{rings} bytes for a subscriber that does not poll"
    );
}

#[test]
fn a_sweep_of_many_dead_proxies_takes_no_more_memory_than_its_steps() {
    let _alone = alone();
    let (table, _clock) = table();
    for nth in 0..50_000 {
        let proxy = table
            .register_proxy(&proxy(&format!("proxy-{nth}")))
            .expect("there is room");
        assert!(table.remove_proxy(proxy));
    }
    let before = counting::live();
    counting::forget_peak();
    for _ in 0..8 {
        assert!(table.sweep(usize::MAX).round_completed);
    }
    let peak = counting::peak() - before;
    assert!(peak < 1_024 * KIB, "{peak} bytes more at the peak");
}

/// More records expire in each shard than the sweeper takes in one step.
#[test]
fn a_sweep_keeps_within_the_bound_whatever_it_is_asked_for() {
    let _alone = alone();
    let nodes = nodes(1_000_000);
    let (table, clock) = table();
    for proxy in register::<2>(&table) {
        table.add_nodes(&nodes, proxy).expect("there is room");
    }
    clock.advance(2 * KEEP_ALIVE);
    let before = counting::live();
    counting::forget_peak();
    while !table.sweep(usize::MAX).round_completed {}
    let peak = counting::peak().saturating_sub(before);
    // The lists of three steps, of 16 bytes each, and a bag of 2 KiB for 64 of them. A step that visited a whole shard
    // would leave 3,125 lists.
    let most = 3 * 512 * (16 + 32);
    assert!(peak <= most, "{peak} bytes more at the peak of the sweep");
    assert_eq!(table.len(), 0);
}

#[test]
fn an_index_that_was_replaced_does_not_wait_for_others() {
    let _alone = alone();
    let (table, _clock) = table();
    let [proxy] = register::<1>(&table);
    let mut most = 0;
    for node in nodes(300_000) {
        table.add_node(&node, proxy).expect("there is room");
        most = most.max(table.stats().garbage_bytes);
    }
    // The largest index has 300,000 / 128 slots of 4 bytes. Each of three pins may hold an index of each of a few
    // shards.
    assert!(most < 128 * KIB, "{most} bytes of replaced indexes wait");
}

/// Threads run rounds of calls at the same time, each thread its own kind of call. At the end of a round, all threads
/// meet at a gate, so no thread stays inside a call.
#[test]
fn threads_that_are_not_stalled_keep_within_the_bound() {
    let _alone = alone();
    const THREADS: usize = 4;
    let nodes = nodes(8_000);
    let (table, clock) = table();
    let proxies = register::<6>(&table);
    let subscription = table.subscribe();
    let gate = Gate::new(THREADS);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (table, nodes, clock, pass) = (&table, &nodes, &clock, gate.pass());
            scope.spawn(move || {
                for round in 0..200 {
                    let slice = &nodes[round % 40 * 200..][..200];
                    let proxy = proxies[(round + thread) % 6];
                    match thread {
                        0 => _ = table.add_nodes(slice, proxy).expect("there is room"),
                        1 => {
                            let added = table.add_nodes_with_handles(slice, proxy).expect("there is room");
                            _ = table.refresh_routes(&added.handles, proxies[round % 6]);
                        }
                        2 => slice.iter().for_each(|node| _ = table.remove_route(node, proxy)),
                        _ => {
                            clock.advance(Duration::from_secs(5));
                            table.sweep(1_000);
                        }
                    }
                    pass.wait();
                    if thread == 0 {
                        let waiting = garbage(table);
                        assert!(
                            waiting <= THREADS * Stats::MAX_GARBAGE_PER_THREAD,
                            "{waiting} objects in round {round}"
                        );
                    }
                }
            });
        }
    });
    drop(subscription);
}

/// A clock that stops a thread inside its call.
#[derive(Debug)]
struct Stopping(ManualClock);

impl Clock for Stopping {
    fn monotonic(&self) -> Duration {
        stopping::point();
        self.0.monotonic()
    }

    fn wall(&self) -> SystemTime {
        self.0.wall()
    }
}

/// The figures of "What a stopped thread costs" in the crate's docs.
#[test]
fn a_stopped_thread_costs_what_the_docs_say() {
    let _alone = alone();
    let builder = RouteTable::builder().clock(Stopping(ManualClock::new()));
    let table = builder.keep_alive(KEEP_ALIVE).build().expect("possible limits");
    let [proxy] = register(&table);
    let nodes = nodes(20_000);
    let each = |times: usize, call: &dyn Fn(usize)| {
        let before = counting::live();
        (0..times).for_each(call);
        grown(before) / times
    };
    let (of_node, of_proxy) = thread::scope(|scope| {
        scope.spawn(|| {
            stopping::stop_here();
            // It pins before it reads the clock.
            table.explain(&nodes[0])
        });
        let stopped = stopping::wait_for_stop();
        let of_node = each(nodes.len(), &|nth| {
            table.add_node(&nodes[nth], proxy).expect("there is room");
            assert!(table.remove_node(&nodes[nth]));
        });
        let of_proxy = each(2_000, &|nth| {
            let id = format!("stranger-{nth}");
            let stranger = table.register_proxy(&common::proxy(&id)).expect("there is room");
            assert!(table.remove_proxy(stranger));
        });
        drop(stopped);
        (of_node, of_proxy)
    });
    println!("{of_node} bytes for each node, {of_proxy} for each proxy");
    assert!(
        (40..300).contains(&of_node),
        "{of_node} bytes for each insertion and removal of a node"
    );
    assert!(
        (2_000..3_000).contains(&of_proxy),
        "{of_proxy} bytes for each registration and removal of a proxy"
    );
    for _ in 0..2 {
        sweep_round(&table, 256);
    }
    assert!(garbage(&table) < 256, "{} objects are left", garbage(&table));
}
