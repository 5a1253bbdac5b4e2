//! Going through a table in pages, beside a walk over all of it.
//!
//! ```console
//! $ cargo bench --bench pages                   # 1,000,000 nodes
//! $ NODES=10000000 cargo bench --bench pages
//! ```
//!
//! Each page size goes through the whole table, or through the first `PAGES` pages (10,000 by default) of it. The shortest
//! of several rounds counts.

use std::env;
use std::time::{Duration, Instant};

use nodetracker::{NodeCursor, NodeId, Proxy, RouteTable};
use uuid::Uuid;

const PROXIES: usize = 1_000;
const ROUNDS: usize = 3;
const SIZES: [usize; 4] = [1, 100, 1_000, 10_000];

fn number(name: &str, default: usize) -> usize {
    env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is a number"))
    })
}

fn filled(nodes: usize) -> RouteTable {
    let table = RouteTable::builder()
        .keep_alive(Duration::from_secs(86_400))
        .build()
        .expect("possible limits");
    let register = |i| {
        let proxy = Proxy {
            id: &format!("proxy-{i}"),
            cluster_name: "main",
            addr: "192.0.2.1:3080",
        };
        table.register_proxy(&proxy).expect("there is room")
    };
    let proxies: Vec<_> = (0..PROXIES).map(register).collect();
    let mut random = fastrand::Rng::with_seed(1);
    for i in 0..nodes {
        let node = NodeId::from(Uuid::from_u128(random.u128(..)));
        table.add_node(&node, proxies[i % PROXIES]).expect("there is room");
    }
    table
}

/// How a program keeps the cursor between two pages.
#[derive(Clone, Copy)]
enum Kept {
    AsValue,
    AsText,
}

/// Goes through `pages` pages at most; returns how many nodes they had.
fn pages(table: &RouteTable, most: usize, pages: usize, kept: Kept) -> usize {
    let (mut nodes, mut from) = (0, Some(NodeCursor::default()));
    for _ in 0..pages {
        let Some(mut cursor) = from else { break };
        if let Kept::AsText = kept {
            cursor = cursor.to_string().parse().expect("a cursor's text is a cursor");
        }
        let page = table.nodes_page(&cursor, most, |_, _| true);
        nodes += page.nodes.len();
        from = page.next;
    }
    nodes
}

fn report(what: &str, mut run: impl FnMut() -> usize) {
    let per_node = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        let nodes = run();
        start.elapsed().as_secs_f64() * 1e9 / nodes as f64
    });
    println!("{what:<32} {:>10.1} ns a node", per_node.fold(f64::INFINITY, f64::min));
}

fn main() {
    let (nodes, most_pages) = (number("NODES", 1_000_000), number("PAGES", 10_000));
    let table = filled(nodes);
    println!("{nodes} nodes");
    report("walk", || {
        let mut routes = 0;
        table.for_each_route(|_, _| routes += 1);
        routes
    });
    for size in SIZES {
        for (kept, suffix) in [(Kept::AsValue, ""), (Kept::AsText, ", cursor as text")] {
            report(&format!("pages of {size}{suffix}"), || {
                pages(&table, size, most_pages, kept)
            });
        }
    }
}
