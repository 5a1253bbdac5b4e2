//! Reads a table in pages; for comparison, walks over the whole table.
//!
//! ```console
//! $ cargo bench --bench pages                   # 1,000,000 nodes
//! $ NODES=1M,10M cargo bench --bench pages
//! $ cargo bench --bench pages -- --record FILE
//! ```
//!
//! Each page size goes through the whole table, or through its first 10,000 pages. The figures are per node, and the
//! shortest of several rounds counts.

#![allow(dead_code, reason = "a bench uses a part of what they share")]

mod peers;
mod support;

use std::time::{Duration, Instant};

use nodetracker::{NodeCursor, NodeId, Proxy, RouteTable};
use uuid::Uuid;

use crate::support::args::Args;
use crate::support::report::Report;
use crate::support::steps;

const PROXIES: usize = 1_000;
const ROUNDS: usize = 3;
const SIZES: [usize; 4] = [1, 100, 1_000, 10_000];
const MOST_PAGES: usize = 10_000;

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

/// Reads at most [`MOST_PAGES`] pages. Returns the number of their nodes.
fn pages(table: &RouteTable, most: usize, kept: Kept) -> usize {
    let (mut nodes, mut from) = (0, Some(NodeCursor::default()));
    for _ in 0..MOST_PAGES {
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

/// The time for each node: the shortest of several rounds.
fn time(mut run: impl FnMut() -> usize) -> f64 {
    let per_node = (0..ROUNDS).map(|_| {
        let start = Instant::now();
        let nodes = run();
        start.elapsed().as_secs_f64() * 1e9 / nodes as f64
    });
    per_node.fold(f64::INFINITY, f64::min)
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let mut report = Report::default();
    for nodes in steps::sizes(if args.is_bench { &[1_000_000] } else { &[10_000] }) {
        let table = filled(nodes);
        let walk = || {
            let mut routes = 0;
            table.for_each_route(|_, _| routes += 1);
            routes
        };
        report.value("walk", nodes, "ns", time(walk));
        for size in SIZES {
            for (kept, suffix) in [(Kept::AsValue, ""), (Kept::AsText, ", cursor as text")] {
                let took = time(|| pages(&table, size, kept));
                report.value(format!("pages of {size}{suffix}"), nodes, "ns", took);
            }
        }
    }
    report.save(&args)
}
