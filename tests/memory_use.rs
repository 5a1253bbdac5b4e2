//! The bytes that a table reports, compared with the bytes that it has allocated. One test, since the allocator is the
//! process's.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use common::{proxy, sweep_fully};
use nodetracker::{ManualClock, MemoryUse, NodeId, RouteTable};
use uuid::Uuid;

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: each method passes its arguments to the system's allocator, and returns its result.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn sum(parts: MemoryUse) -> usize {
    parts.records + parts.indexes + parts.lists + parts.strings + parts.proxies + parts.feed
}

struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a panic that is meant to be");
    }
}

const NODES: u128 = 200_000;
const NAMES: usize = 50_000;
const PROXIES: usize = 1_000;

#[test]
fn the_parts_add_up_to_what_is_allocated() {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let clock = ManualClock::new();
    let table = RouteTable::builder()
        .clock(clock.clone())
        .keep_alive(Duration::from_secs(10))
        .max_routes_per_proxy(1_000_000)
        .build()
        .expect("possible limits");
    let check = |what: &str| {
        // Twice, so that garbage of the first round is freed.
        sweep_fully(&table);
        sweep_fully(&table);
        let allocated = ALLOCATED.load(Ordering::Relaxed) - before - table.stats().garbage_bytes;
        let parts = table.memory_use();
        // The rest: the fixed parts of a table, and crossbeam's bags.
        let rest = allocated as f64 - sum(parts) as f64;
        assert!(rest.abs() < 400_000.0, "{what}: {allocated} bytes, {parts:?}");
        parts
    };
    let empty = check("empty");
    assert_eq!((empty.records, empty.lists, empty.strings, empty.feed), (0, 0, 0, 0));

    let name = |number: usize| format!("proxy-{number:0>10}");
    let proxies: Vec<_> = (0..PROXIES)
        .map(|number| table.register_proxy(&proxy(&name(number))).expect("there is room"))
        .collect();
    for number in 0..NODES {
        let node: NodeId = Uuid::from_u128(number << 64 | number).into();
        table.add_node(&node, proxies[0]).expect("there is room");
        if number % 4 == 0 {
            table.add_node(&node, proxies[1]).expect("there is room");
        }
    }
    for number in 0..NAMES {
        let node: NodeId = format!("node-{number:0>14}").parse().expect("a good name");
        table.add_node(&node, proxies[number % PROXIES]).expect("there is room");
    }
    let mut subscription = table.subscribe();
    let full = check("full");
    assert_eq!(full.lists, NODES as usize / 4 * 16);
    assert!(full.strings >= NAMES * 20 + PROXIES * 17, "{full:?}");
    assert!(full.records >= 24 * (NODES as usize + NAMES), "{full:?}");
    assert!(
        full.indexes > 4 * (NODES as usize + NAMES) && full.proxies > 32 * PROXIES,
        "{full:?}"
    );
    assert!(full.feed > 1 << 20, "{full:?}");

    // A waker that panics ends the call that changed the routes, but does not keep the former list.
    let [other, list] = [0, 4].map(|number: u128| NodeId::from(Uuid::from_u128(number << 64 | number)));
    for (node, bytes) in [(other, 16), (list, 32)] {
        assert_eq!(subscription.drain_events(usize::MAX, |_| ()), Ok(0));
        let waker = Waker::from(Arc::new(Panics));
        assert!(subscription.poll_ready(&mut Context::from_waker(&waker)).is_pending());
        let remove = || table.remove_route(&node, proxies[1]);
        // A backtrace would keep what it reads of the program's symbols.
        let hook = take_hook();
        set_hook(Box::new(|_| {}));
        let removed = catch_unwind(AssertUnwindSafe(remove));
        set_hook(hook);
        assert!(removed.is_err(), "the waker was not called");
        assert_eq!(full.lists - check("panicked").lists, bytes);
        while subscription.drain_events(usize::MAX, |_| ()) != Ok(0) {}
    }

    clock.advance(Duration::from_secs(30));
    let swept = check("swept");
    drop(subscription);
    assert_eq!(swept.lists, 0);
    assert!(swept.records < full.records / 4, "{swept:?}");

    drop(table);
    let after = RouteTable::new().memory_use();
    assert_eq!((after.lists, after.strings), (0, 0));
}
