//! The memory that a page and a walk allocate bounds the size of their copies. It does not depend on the size of the
//! table.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::proxy;
use nodetracker::{NodeCursor, NodeId, RouteTable};
use uuid::Uuid;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    /// Bytes that this thread allocated.
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
    /// Bytes that this thread holds, and the most that it ever held.
    static HELD: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

// SAFETY: each method passes its arguments to the system's allocator, and returns its result.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        let (held, most) = HELD.get();
        HELD.set((held + layout.size(), most.max(held + layout.size())));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        let (held, most) = HELD.get();
        // What another thread allocated is not this thread's.
        HELD.set((held.saturating_sub(layout.size()), most));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn table_of(nodes: u128) -> RouteTable {
    let table = RouteTable::new();
    let proxy = table.register_proxy(&proxy("one")).expect("registers");
    let nodes: Vec<NodeId> = (0..nodes).map(|i| Uuid::from_u128(i).into()).collect();
    table.add_nodes(&nodes, proxy).expect("there is room");
    table
}

#[test]
fn a_page_copies_no_more_of_a_large_table_than_of_a_small_one() {
    // A page also allocates the nodes that it reads ahead, and 3 KiB or more if it looks through many keys. A shard of
    // the large table has 1,500 nodes, so a copy of a shard would allocate 37 KiB.
    for (most, limit) in [(1, 16 << 10), (100, 64 << 10), (1_000, 512 << 10)] {
        for nodes in [20_000, 200_000] {
            let table = table_of(nodes);
            let mut from = NodeCursor::default();
            for _ in 0..10 {
                let before = ALLOCATED.get();
                let page = table.nodes_page(&from, most, |_, _| true);
                let allocated = ALLOCATED.get() - before;
                assert_eq!(page.nodes.len(), most, "{nodes} nodes");
                assert!(
                    allocated < limit,
                    "a page of {most} of {nodes} nodes allocated {allocated} bytes"
                );
                from = page.next.expect("there are more");
            }
        }
    }
}

/// The text of a cursor does not have the nodes that a page reads ahead, so reading ahead would be in vain.
#[test]
fn a_page_from_a_text_reads_nothing_ahead() {
    // Some 16 nodes in each shard: fewer than the keys for which a page has room without an allocation.
    let table = table_of(2_000);
    let mut from = NodeCursor::default();
    let mut bytes = Vec::new();
    for _ in 0..100 {
        let text: NodeCursor = from.to_string().parse().expect("a cursor's text");
        let before = ALLOCATED.get();
        let page = table.nodes_page(&text, 1, |_, _| true);
        bytes.push(ALLOCATED.get() - before);
        assert_eq!(page.nodes.len(), 1);
        from = page.next.expect("there are more");
    }
    assert!(bytes.iter().all(|&bytes| bytes < 640), "{bytes:?}");
}

/// The nodes after a place of another order may be in any bucket, so a page would copy the whole shard.
#[test]
fn a_forged_order_costs_no_more_than_a_good_one() {
    let table = table_of(200_000);
    let first = table.nodes_page(&NodeCursor::default(), 1, |_, _| true);
    let node = &first.nodes[0].node;
    for text in [format!("f>{node}"), "0:0:f".into(), format!("{:x}>{node}", u64::MAX)] {
        let forged: NodeCursor = text.parse().expect("a cursor's text");
        let before = ALLOCATED.get();
        let page = table.nodes_page(&forged, 1, |_, _| true);
        let allocated = ALLOCATED.get() - before;
        assert_eq!(page.nodes.len(), 1);
        assert!(allocated < 2 << 10, "{text}: {allocated} bytes");
    }
}

#[test]
fn a_walk_holds_a_bounded_part_of_the_table() {
    let table = table_of(1_000_000);
    let (held, _) = HELD.get();
    HELD.set((held, held));
    let mut nodes = 0;
    table.for_each_route(|_, _| nodes += 1);
    let most = HELD.get().1 - held;
    assert_eq!(nodes, 1_000_000);
    assert!(most < 256 << 10, "the walk held {most} bytes");
}
