//! loom models of the sweeper's cursor, on a whole table; see `src/shard/models.rs`.

use std::sync::atomic::AtomicBool;

use loom::sync::Arc;
use loom::thread;
use uuid::Uuid;

use crate::sync::{epoch, pin};
use crate::{ManualClock, NodeId, Proxy, ProxyRef, RouteTable};

fn register(table: &RouteTable, id: &str) -> ProxyRef {
    let proxy = Proxy {
        id,
        cluster_name: "",
        addr: "a:1",
    };
    table.register_proxy(&proxy).expect("there is room")
}

/// An addition that was stopped when its proxy was removed goes on; of two sweepers, one sees that it is over, and the
/// other one goes through the next round.
#[test]
fn a_round_after_a_grace_period_sees_what_came_before_its_end() {
    static REUSED: AtomicBool = AtomicBool::new(false);
    epoch::check(1, || {
        epoch::order_unpins();
        let table = Arc::new(RouteTable::builder().clock(ManualClock::new()).max_proxies(2).build());
        let node: NodeId = Uuid::from_u128(1).into();
        let (old, other) = (register(&table, "old"), register(&table, "other"));
        table.add_node(&node, other).expect("there is room");
        assert!(table.remove_node(&node));
        let guard = pin();
        assert!(table.proxies().takes_routes(old));
        assert!(table.remove_proxy(old));
        let adder = thread::spawn({
            let (table, node) = (Arc::clone(&table), node.clone());
            move || {
                let hash = table.hash(&node);
                table
                    .add_pinned(&node, hash, old, table.now(), &guard)
                    .expect("there is room");
            }
        });
        let sweeper = thread::spawn({
            let table = Arc::clone(&table);
            move || _ = table.sweep(100)
        });
        thread::yield_now();
        for _ in 0..3 {
            table.sweep(100);
        }
        let proxy = Proxy {
            id: "new",
            cluster_name: "",
            addr: "a:1",
        };
        let new = table.register_proxy(&proxy);
        adder.join().expect("it ends");
        sweeper.join().expect("it ends");
        // Relaxed: one OS thread.
        REUSED.fetch_or(new.is_ok(), std::sync::atomic::Ordering::Relaxed);
        assert!(
            table.get_proxies(&node).is_empty(),
            "a route of a removed proxy is another's"
        );
    });
    // Relaxed: as above.
    assert!(
        REUSED.load(std::sync::atomic::Ordering::Relaxed),
        "the number was never reused"
    );
}
