//! Allocations that grow with the table may fail. Then the call reports the failure, or a later call tries again. A
//! single test, because the allocator serves the whole process.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use common::{proxy, sweep_fully};
use nodetracker::{AddError, Added, ManualClock, NodeId, ProxyRef, RouteTable};
use uuid::Uuid;

/// Fails the allocations that a test selects. The allocator recognises the table's allocations by their layouts.
/// Segments and indexes are allocated zeroed, indexes are aligned to cache lines, and the vectors of a rebuild are
/// long. Lists have no layout of their own, so a test sets `LISTS` while nothing else of their size is allocated.
struct Failing;

/// The length of a vector of this many bytes depends on the number of a shard's records.
const LONG: usize = 1_024;
/// crossbeam's bags of garbage, which are not the table's; theirs abort.
const BAGS: std::ops::Range<usize> = 2_048..2_112;

thread_local! {
    /// How many of this thread's allocations succeed before one fails; `None`: all.
    static UNTIL: Cell<Option<u64>> = const { Cell::new(None) };
    static LISTS: Cell<bool> = const { Cell::new(false) };
}

fn fails() -> bool {
    UNTIL.with(|until| match until.get() {
        Some(0) => true,
        Some(left) => {
            until.set(Some(left - 1));
            false
        }
        None => false,
    })
}

// SAFETY: each method passes its arguments to the system's allocator, or returns null.
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let is_list = LISTS.get() && layout.align() == 8 && (16..=72).contains(&layout.size());
        let is_long = layout.size() >= LONG && !BAGS.contains(&layout.size());
        if (is_long || is_list) && fails() {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let is_segment = layout.align() == 8 && layout.size().is_multiple_of(24);
        if (layout.align() == 64 || is_segment) && fails() {
            return std::ptr::null_mut();
        }
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Failing = Failing;

/// Runs `f`. After the first `succeed` of the table's allocations, all others fail.
fn without_memory<R>(succeed: u64, f: impl FnOnce() -> R) -> R {
    UNTIL.set(Some(succeed));
    let result = f();
    UNTIL.set(None);
    result
}

const NODES: u128 = 40_000;

fn node(number: u128) -> NodeId {
    Uuid::from_u128(number).into()
}

fn table(clock: &ManualClock) -> RouteTable {
    RouteTable::builder()
        .keep_alive(Duration::from_secs(10))
        .clock(clock.clone())
        .build()
        .expect("possible limits")
}

fn has(table: &RouteTable, number: u128) -> Vec<ProxyRef> {
    table
        .get_proxies(&node(number))
        .iter()
        .map(|route| route.proxy)
        .collect()
}

#[test]
fn without_memory_calls_say_so_and_nothing_is_lost() {
    additions();
    lists();
    sweeps();
    numbers();
}

/// Every allocation of an addition fails in turn.
fn additions() {
    for succeed in 0..4 {
        let clock = ManualClock::new();
        let table = table(&clock);
        let one = table.register_proxy(&proxy("one")).expect("there is room");
        let (mut added, mut refused) = (Vec::new(), Vec::new());
        for number in 0..NODES {
            match without_memory(succeed, || table.add_node(&node(number), one)) {
                Ok(_) => added.push(number),
                Err(AddError::OutOfMemory) => refused.push(number),
                Err(error) => panic!("{error}"),
            }
            // Memory comes and goes.
            if number % 7 == 0 {
                table.add_node(&node(number), one).expect("there is memory");
                added.extend(refused.pop_if(|last| *last == number));
            }
        }
        assert!(!refused.is_empty() || succeed > 1, "nothing failed after {succeed}");
        println!(
            "{succeed} allocations of each addition succeed: {} were refused",
            refused.len()
        );
        assert_eq!(table.len(), added.len());
        assert!(added.iter().all(|&number| has(&table, number) == [one]));
        assert!(refused.iter().all(|&number| has(&table, number).is_empty()));
        for &number in &refused {
            table.add_node(&node(number), one).expect("there is memory again");
        }
        assert_eq!(table.len(), NODES as usize);
    }
}

/// A route that finds no memory for a list does not count for its proxy.
fn lists() {
    let builder = RouteTable::builder().max_routes_per_proxy(1);
    let table = builder.build().expect("possible limits");
    let proxies = ["one", "two", "three"].map(|id| table.register_proxy(&proxy(id)).expect("there is room"));
    table.add_node(&node(1), proxies[0]).expect("there is room");
    for proxy in &proxies[1..] {
        LISTS.set(true);
        let refused = without_memory(0, || table.add_node(&node(1), *proxy));
        LISTS.set(false);
        let count = table.route_count(*proxy);
        assert_eq!((refused, count), (Err(AddError::OutOfMemory), Some(0)));
        assert_eq!(table.add_node(&node(1), *proxy), Ok(Added::Inserted));
    }
}

/// A sweep that can neither rebuild nor move still removes expired routes. A later sweep does the rest.
fn sweeps() {
    let clock = ManualClock::new();
    let table = table(&clock);
    let one = table.register_proxy(&proxy("one")).expect("there is room");
    (0..NODES).for_each(|number| _ = table.add_node(&node(number), one).expect("there is room"));
    clock.advance(Duration::from_secs(6));
    (0..1_000).for_each(|number| _ = table.add_node(&node(number), one).expect("there is room"));
    clock.advance(Duration::from_secs(6));
    without_memory(0, || sweep_fully(&table));
    assert_eq!(table.len(), 1_000);
    assert!((0..1_000).all(|number| has(&table, number) == [one]));
    let records = table.stats().records;
    sweep_fully(&table);
    assert!(table.stats().records < records / 2, "the shards did not move later");
    assert!((0..1_000).all(|number| has(&table, number) == [one]));
}

/// If memory is short, a removed proxy's route stays in a list. The next proxy does not get this route.
fn numbers() {
    let clock = ManualClock::new();
    let table = table(&clock);
    let [one, two, old] = ["one", "two", "old"].map(|id| table.register_proxy(&proxy(id)).expect("there is room"));
    for proxy in [one, two, old] {
        table.add_node(&node(1), proxy).expect("there is room");
    }
    assert!(table.remove_proxy(old));
    LISTS.set(true);
    for _ in 0..10 {
        without_memory(0, || while !table.sweep(100_000).round_completed {});
    }
    LISTS.set(false);
    assert_eq!(table.len(), 3, "the list was replaced without memory");
    let new = table.register_proxy(&proxy("new")).expect("there is room");
    assert_eq!(has(&table, 1), [two, one], "a removed proxy's route came back");
    // With memory, the route goes, and then the number is free.
    for _ in 0..10 {
        sweep_fully(&table);
    }
    assert_eq!((table.len(), has(&table, 1)), (2, vec![two, one]));
    let newer = table.register_proxy(&proxy("newer")).expect("there is room");
    assert!(newer != old && newer != new);
}
