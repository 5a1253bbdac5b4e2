//! The limit of text. One test, since all texts of the process count.

mod common;

use std::num::NonZeroU64;
use std::time::Duration;

use common::{proxy, sweep_fully};
use nodetracker::{AddError, Added, BeginError, Builder, NodeId, Proxy, RegisterError, ReportError, SweepPace};
use uuid::Uuid;

const LIMIT: usize = 4 << 20;
const INTERVAL: Duration = Duration::from_secs(10);

/// A name of 255 bytes, the longest. It takes 256 bytes.
fn name(number: usize) -> NodeId {
    format!("{number:0>255}").parse().expect("a name")
}

#[test]
fn text_stays_within_its_limit_and_known_proxies_move_and_restart() {
    let limited = |builder: Builder| builder.max_text_bytes(LIMIT);
    let (table, clock) = common::table_with(INTERVAL, limited);
    let strings = || table.memory_use().strings;
    let one = table.register_proxy(&proxy("proxy-1")).expect("there is room");
    assert_eq!(strings(), "proxy-1".len() + "cluster".len() + 2);
    let names: Vec<_> = (0..LIMIT / 256).map(name).collect();
    let added = table.add_nodes(&names, one).expect_err("the proxy has text, too");
    let full = AddError::TooMuchText { limit: LIMIT };
    assert_eq!((added.added, added.error), (names.len() - 1, full));
    assert!((LIMIT - 256..=LIMIT).contains(&strings()), "{}", strings());
    // Each refusal asks for a sweep, and the next pause takes the request.
    let asks_for_a_sweep = || SweepPace::default().next_pause(&table) == Duration::from_millis(2);
    assert!(asks_for_a_sweep() && !asks_for_a_sweep());
    assert_eq!(table.add_node(&name(LIMIT), one), Err(full));
    assert!(asks_for_a_sweep());
    assert_eq!(
        table.report_node(&name(LIMIT), &proxy("proxy-1")),
        Err(ReportError::Route(full))
    );
    assert_eq!(table.stats().nodes, names.len() - 1, "a refused node leaves no record");

    // Calls that need no further text still succeed.
    let uuid: NodeId = Uuid::from_u128(1).into();
    assert_eq!(table.add_node(&uuid, one), Ok(Added::Inserted));
    assert_eq!(table.add_node(&names[0], one), Ok(Added::Refreshed));

    // New proxies are refused, and known proxies move and restart.
    let full = RegisterError::TooMuchText { limit: LIMIT };
    let long = "x".repeat(255);
    let [new, moved] = [long.as_str(), "proxy-1"].map(|id| Proxy {
        addr: "moved.example.org:3080",
        ..proxy(id)
    });
    let incarnation = NonZeroU64::MIN;
    assert_eq!(table.register_proxy(&new), Err(full));
    assert!(asks_for_a_sweep());
    assert_eq!(table.begin_incarnation(&new, incarnation), Err(BeginError::Proxy(full)));
    assert_eq!(table.register_proxy(&moved), Ok(one));
    table.begin_incarnation(&moved, incarnation).expect("it adopts");
    let mut bytes = Vec::new();
    table.write_snapshot(&mut bytes).expect("memory can be written to");
    table
        .begin_incarnation(&moved, incarnation.saturating_add(1))
        .expect("it restarts");

    // A snapshot is restored with any texts of its nodes and proxies, also into a shard that has a node.
    let (short, two) = ("node-1", proxy("2"));
    let texts = [short, two.id, two.cluster_name];
    let needed: usize = texts.iter().map(|text| text.len() + 1).sum();
    let limited = |builder: Builder| builder.max_text_bytes(strings() + needed + 1);
    let (restored, _) = common::table_with(INTERVAL, limited);
    let short: NodeId = short.parse().expect("a name");
    assert_eq!(restored.report_node(&short, &two), Ok(Added::Inserted));
    let report = restored.read_snapshot(bytes.as_slice()).expect("a good snapshot");
    assert_eq!((report.inserted, report.refused), (names.len() as u64, 0));
    drop(restored);

    // Names that are gone make room.
    clock.advance(2 * INTERVAL);
    let has_room = (0..1_000).any(|_| {
        sweep_fully(&table);
        strings() < LIMIT / 4
    });
    assert!(has_room, "{}", strings());
    let two = table.register_proxy(&new).expect("there is room");
    let half = &names[..names.len() / 2];
    assert_eq!(table.add_nodes(half, two).map(|added| added.inserted), Ok(half.len()));
}
