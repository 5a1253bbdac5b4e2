//! Loading a snapshot into a new table, beside adding its routes one by one.
//!
//! ```console
//! $ cargo bench --bench snapshot                # 1,000,000 nodes, 1,000 proxies
//! $ NODES=10000000 cargo bench --bench snapshot
//! ```
//!
//! Both ways take turns, and the shortest of several rounds counts. So a busy machine disturbs both alike.

use std::env;
use std::hint::black_box;
use std::time::{Duration, Instant};

use nodetracker::{NodeId, Proxy, ProxyRef, RouteTable};
use uuid::Uuid;

const PROXIES: usize = 1_000;
const ROUNDS: usize = 9;

fn register(table: &RouteTable) -> Vec<ProxyRef> {
    let register = |i| {
        table.register_proxy(&Proxy {
            id: &format!("proxy-{i}"),
            cluster_name: "main",
            addr: "192.0.2.1:3080",
        })
    };
    (0..PROXIES)
        .map(register)
        .collect::<Result<_, _>>()
        .expect("there is room")
}

fn add_one_by_one(table: &RouteTable, nodes: &[NodeId]) {
    let proxies = register(table);
    for (i, node) in nodes.iter().enumerate() {
        table.add_node(node, proxies[i % PROXIES]).expect("there is room");
    }
}

/// Keeps the shortest time of `f`. The time to drop the result of `f` does not count.
fn time<R>(shortest: &mut Duration, f: impl FnOnce() -> R) {
    let start = Instant::now();
    let result = black_box(f());
    *shortest = start.elapsed().min(*shortest);
    drop(result);
}

fn main() {
    let count = env::var("NODES").map_or(1_000_000, |text| text.parse().expect("NODES is a number"));
    let mut random = fastrand::Rng::with_seed(1);
    let nodes: Vec<NodeId> = (0..count).map(|_| Uuid::from_u128(random.u128(..)).into()).collect();
    let table = RouteTable::new();
    add_one_by_one(&table, &nodes);

    let [mut one_by_one, mut write, mut walk, mut read] = [Duration::MAX; 4];
    let mut bytes = Vec::new();
    for _ in 0..ROUNDS {
        time(&mut one_by_one, || {
            let table = RouteTable::new();
            add_one_by_one(&table, &nodes);
            table
        });
        bytes.clear();
        time(&mut write, || {
            table.write_snapshot(&mut bytes).expect("memory can be written to");
        });
        time(&mut walk, || {
            let mut routes = 0;
            table.for_each_route(|_, _| routes += 1);
            routes
        });
        time(&mut read, || {
            let table = RouteTable::new();
            table.read_snapshot(bytes.as_slice()).expect("the snapshot is good");
            table
        });
    }

    println!("{count} nodes, {} bytes of snapshot", bytes.len());
    for (what, took) in [
        ("add one by one", one_by_one),
        ("walk", walk),
        ("write", write),
        ("read", read),
    ] {
        let part = took.as_secs_f64() / one_by_one.as_secs_f64();
        println!("{what:<16} {:>9.1} ms   {part:.3}", took.as_secs_f64() * 1e3);
    }
}
