//! Garbage over time, with a single thread. Three tables: routes that move in batches, routes that move one by one, and
//! routes that all expire and are left to the sweeper.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nodetracker::{ManualClock, NodeId, Proxy, ProxyRef, RouteTable, Stats};
use uuid::Uuid;

use crate::chart::{Axis, Panel, Series, draw};

const NODES: u128 = 200_000;
const PROXIES: usize = 6;
const ROUNDS: usize = 80;
/// The round before which everything expires, in the table that is left to the sweeper.
const EXPIRY: usize = 20;
const KEEP_ALIVE: Duration = Duration::from_secs(300);
const ROUND: Duration = Duration::from_secs(100);

/// How the nodes are reported in a round.
#[derive(Clone, Copy)]
enum Load {
    Batches,
    SingleCalls,
    /// Two routes for each node, once.
    None,
}

/// Draws the plot, and prints the maximum of each line. Returns whether all lines are within the bound.
pub(crate) fn plot(here: &Path) -> Result<bool, Box<dyn Error>> {
    let lines = [
        ("batches of 1,000", "table blue", Load::Batches),
        ("single calls", "green", Load::SingleCalls),
        ("all expire, then idle", "orange", Load::None),
    ];
    let mut series = Vec::new();
    let mut holds = true;
    for (name, class, load) in lines {
        let points = run(load);
        let most = points.iter().map(|&(_, objects)| objects).fold(0.0, f64::max);
        let last = points.last().map_or(0.0, |&(_, objects)| objects);
        println!("{name:<24} {most:>6} objects at most, {last:>6} in the last round");
        holds &= most <= Stats::MAX_GARBAGE_PER_THREAD as f64;
        series.push(Series {
            name: name.into(),
            class,
            points,
            has_dots: false,
        });
    }
    let most = series.iter().flat_map(|line| &line.points).map(|&(_, objects)| objects);
    let panel = Panel {
        title: String::new(),
        x: Axis::up_to("rounds of the sweeper", ROUNDS as f64),
        y: Axis::up_to("objects that wait, at most in a round", most.fold(1.0, f64::max)),
        series,
    };
    let title = format!("Garbage over time, one thread, {NODES} nodes that move among {PROXIES} proxies");
    fs::write(here.join("garbage.svg"), draw(&title, &[panel]))?;
    Ok(holds)
}

/// The rounds, and the most objects that waited in each.
fn run(load: Load) -> Vec<(f64, f64)> {
    let clock = ManualClock::new();
    let table = RouteTable::builder()
        .clock(clock.clone())
        .keep_alive(KEEP_ALIVE)
        .build()
        .expect("possible limits");
    let proxies: Vec<ProxyRef> = (0..PROXIES).map(|nth| register(&table, nth)).collect();
    let nodes: Vec<NodeId> = (0..NODES).map(|number| Uuid::from_u128(number).into()).collect();
    let batch = |nodes: &[NodeId], proxy| _ = table.add_nodes(nodes, proxy).expect("there is room");
    if let Load::None = load {
        proxies[..2].iter().for_each(|&proxy| batch(&nodes, proxy));
    }
    let mut points = Vec::new();
    for round in 0..ROUNDS {
        let mut most = 0;
        let mut look = || most = most.max(table.stats().garbage);
        let proxy = proxies[round % PROXIES];
        for nodes in nodes.chunks(1_000) {
            match load {
                Load::Batches => batch(nodes, proxy),
                Load::SingleCalls => {
                    let add = |node| _ = table.add_node(node, proxy).expect("there is room");
                    nodes.iter().for_each(add);
                }
                Load::None => {}
            }
            look();
        }
        clock.advance(match load {
            Load::None if round < EXPIRY => Duration::ZERO,
            _ => ROUND,
        });
        while !table.sweep(256).round_completed {
            look();
        }
        points.push((round as f64, most as f64));
    }
    points
}

fn register(table: &RouteTable, nth: usize) -> ProxyRef {
    let proxy = Proxy {
        id: &format!("proxy-{nth}"),
        cluster_name: "main",
        addr: "192.0.2.1:3080",
    };
    table.register_proxy(&proxy).expect("there is room")
}
