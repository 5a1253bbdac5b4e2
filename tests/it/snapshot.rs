//! Snapshots: a written snapshot can be read, all other input is an error, and an error leaves the table unchanged.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::common::content::{Content, content};
use crate::common::model::Routes;
use crate::common::ops::node;
use crate::common::{check_answer, proxy, sweep_fully};
use nodetracker::snapshot::{Ages, SnapshotError, SnapshotFault, SnapshotPart, SnapshotReport, SnapshotSize};
use nodetracker::{Builder, Clock, ManualClock, NodeId, Proxy, ProxyRef, RouteTable};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use uuid::Uuid;

const INTERVAL: Duration = Duration::from_secs(60);

fn table() -> (RouteTable, ManualClock) {
    table_with(|builder| builder)
}

fn table_with(options: impl FnOnce(Builder) -> Builder) -> (RouteTable, ManualClock) {
    crate::common::table_with(INTERVAL, options)
}

/// A table like `table()`, with the clock of another table.
fn table_beside(clock: &ManualClock) -> RouteTable {
    let beside = ManualClock::new();
    beside.set(clock.monotonic());
    RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(beside)
        .build()
        .expect("possible limits")
}

fn register(table: &RouteTable, id: &str) -> ProxyRef {
    table.register_proxy(&proxy(id)).expect("registers")
}

fn add(table: &RouteTable, node: &NodeId, proxy: &str) {
    let proxy = register(table, proxy);
    table.add_node(node, proxy).expect("there is room");
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn written(table: &RouteTable) -> Vec<u8> {
    let mut bytes = Vec::new();
    let size = table.write_snapshot(&mut bytes).expect("memory can be written to");
    assert_eq!(size.bytes, bytes.len() as u64);
    bytes
}

fn read(table: &RouteTable, bytes: &[u8]) -> SnapshotReport {
    let report = table.read_snapshot(bytes).expect("a good snapshot");
    assert_eq!(
        report.routes,
        report.inserted + report.known + report.expired + report.refused,
        "{report:?}"
    );
    report
}

fn refused(table: &RouteTable, bytes: &[u8]) -> SnapshotError {
    table.read_snapshot(bytes).expect_err("a bad snapshot")
}

/// Proxy IDs of a node's answer.
fn answer(table: &RouteTable, node: &NodeId) -> Vec<String> {
    let routes = table.get_proxies(node);
    check_answer(&routes).expect("a good answer");
    let id = |proxy| table.proxy(proxy).expect("it is registered").id().into();
    routes.iter().map(|route| id(route.proxy)).collect()
}

/// Panics unless a table is as empty as a new table.
fn assert_untouched(table: &RouteTable) {
    assert_eq!((table.len(), table.stats().proxies, table.stats().records), (0, 0, 0));
}

/// A small snapshot that has everything: UUIDs, names, lists, ties, idle proxies.
fn small() -> (RouteTable, ManualClock) {
    let (table, clock) = table();
    add(&table, &node(0), "a");
    clock.advance(ms(5));
    add(&table, &node(3), "b");
    add(&table, &node(3), "a");
    clock.advance(ms(300));
    add(&table, &node(0), "b");
    add(&table, &node(0), "c");
    add(&table, &node(1), "c");
    register(&table, "idle");
    (table, clock)
}

#[test]
fn types_are_send_and_sync() {
    fn is_send_and_sync<T: Send + Sync + 'static>() {}
    is_send_and_sync::<(Ages, SnapshotReport, SnapshotError, SnapshotSize)>();
}

// --- round trips

#[test]
fn an_empty_table_gives_an_empty_table() {
    let (table, clock) = table();
    let bytes = written(&table);
    let other = table_beside(&clock);
    let report = read(&other, &bytes);
    assert_eq!((report.proxies, report.nodes, report.routes), (0, 0, 0));
    assert_untouched(&other);
}

#[test]
fn what_is_written_is_read() {
    let (table, clock) = small();
    let size = table.write_snapshot(io::sink()).expect("a sink can be written to");
    assert_eq!((size.proxies, size.nodes, size.routes), (4, 3, 6));

    let other = table_beside(&clock);
    let report = read(&other, &written(&table));
    assert_eq!((report.proxies, report.nodes, report.routes), (4, 3, 6));
    assert_eq!((report.inserted, report.downtime), (6, Duration::ZERO));
    assert_eq!(report.written_at, clock.wall());
    assert_eq!(content(&other), content(&table));
    assert_eq!(answer(&other, &node(0)), ["c", "b", "a"], "ties keep their order");
    assert_eq!((other.len(), other.stats().proxies), (6, 4));
    assert_eq!(content(&table_from(&other, &clock)), content(&table), "and once more");
}

fn table_from(table: &RouteTable, clock: &ManualClock) -> RouteTable {
    let other = table_beside(clock);
    read(&other, &written(table));
    other
}

#[test]
fn a_loaded_table_goes_on_like_any_other() {
    let (table, clock) = small();
    let other_clock = ManualClock::new();
    other_clock.set(clock.monotonic());
    let other = RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(other_clock.clone())
        .build()
        .expect("possible limits");
    read(&other, &written(&table));
    for i in 0..5_000 {
        add(&other, &node(i), "a");
    }
    assert_eq!(answer(&other, &node(0)), ["a", "c", "b"]);
    assert_eq!(other.len(), 5_004);
    assert!(other.remove_node(&node(0)) && other.remove_node(&node(3)));
    assert_eq!(other.len(), 4_999);
    other_clock.advance(2 * INTERVAL);
    sweep_fully(&other);
    sweep_fully(&other);
    assert_eq!(other.len(), 0);
}

#[test]
fn expired_routes_and_those_of_removed_proxies_are_not_written() {
    let (table, clock) = table();
    let gone = register(&table, "gone");
    table.add_node(&node(0), gone).expect("there is room");
    add(&table, &node(1), "a");
    clock.advance(INTERVAL);
    add(&table, &node(0), "a");
    clock.advance(ms(1));
    table.remove_proxy(gone);
    let size = table.write_snapshot(io::sink()).expect("a sink can be written to");
    assert_eq!((size.proxies, size.nodes, size.routes), (1, 1, 1));
}

#[test]
fn a_node_may_have_64_routes_and_a_text_255_bytes() {
    let (table, clock) = table();
    let long = |first: char| format!("{first}{}", "ü".repeat(127));
    let name: NodeId = long('n').parse().expect("a name");
    for i in 0..64_u8 {
        let id = long((b'0' + i) as char);
        let proxy = Proxy {
            id: &id,
            cluster_name: &long('c'),
            addr: "[2001:db8::1]:3080",
        };
        let proxy = table.register_proxy(&proxy).expect("registers");
        table.add_node(&name, proxy).expect("there is room");
        clock.advance(ms(u64::from(i % 3) * 150));
    }
    let other = table_from(&table, &clock);
    assert_eq!(content(&other), content(&table));
    assert_eq!(content(&other)[&name].len(), 64);
}

#[test]
fn a_snapshot_of_many_sections_is_read() {
    let (table, clock) = table();
    for i in 0..20_000_u16 {
        add(&table, &node(i), &format!("proxy-{}", i % 3_000));
        if i % 100 == 0 {
            clock.advance(ms(7));
        }
    }
    let bytes = written(&table);
    assert!(bytes.len() > 300_000, "{}", bytes.len());
    let other = table_beside(&clock);
    // However few bytes come at a time.
    let report = other.read_snapshot(Trickle(&bytes)).expect("a good snapshot");
    assert_eq!((report.proxies, report.inserted), (3_000, 20_000));
    assert_eq!(content(&other), content(&table));
    assert_eq!(other.stats().nodes, 20_000);
}

/// Reads seven bytes at a time, and is interrupted now and then.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        if self.0.len().is_multiple_of(5) && fastrand::bool() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = to.len().min(7);
        self.0.read(&mut to[..len])
    }
}

#[test]
fn bulk_built_shards_take_no_more_memory_than_others() {
    let (table, clock) = table();
    for i in 0..60_000 {
        add(&table, &node(i), "a");
    }
    let other = table_from(&table, &clock);
    let (one_by_one, bulk) = (table.stats(), other.stats());
    assert_eq!((bulk.nodes, bulk.routes), (one_by_one.nodes, one_by_one.routes));
    assert!(bulk.records <= one_by_one.records, "{bulk:?}, {one_by_one:?}");
}

// --- ages

#[test]
fn ages_go_on_by_the_wall_clock_or_stand_still() {
    let (table, clock) = table();
    add(&table, &node(0), "old");
    clock.advance(ms(40_000));
    add(&table, &node(0), "new");
    clock.advance(ms(10_000));
    let bytes = written(&table);

    let read_after = |downtime: Duration, ages| {
        let (other, other_clock) = self::table();
        other_clock.set(clock.monotonic() + downtime);
        let report = other
            .read_snapshot_with(bytes.as_slice(), ages)
            .expect("a good snapshot");
        let age = |time: SystemTime| other_clock.wall().duration_since(time).expect("a time in the past");
        let routes = other.get_proxies(&node(0));
        let ages: Vec<_> = routes.iter().map(|route| age(route.last_refresh)).collect();
        (report, ages)
    };
    let (report, ages) = read_after(Duration::ZERO, Ages::Continue);
    assert_eq!((report.downtime, ages), (Duration::ZERO, vec![ms(10_000), ms(50_000)]));
    let (report, ages) = read_after(ms(10_000), Ages::Continue);
    assert_eq!((report.downtime, report.expired), (ms(10_000), 0));
    assert_eq!(ages, [ms(20_000), ms(60_000)]);
    let (report, ages) = read_after(ms(10_001), Ages::Continue);
    assert_eq!((report.inserted, report.expired), (1, 1));
    assert_eq!(ages, [ms(20_001)]);
    let (report, ages) = read_after(ms(1_000_000_000), Ages::Continue);
    assert_eq!((report.nodes, report.inserted, report.expired), (1, 0, 2));
    assert_eq!(ages, []);
    let (report, ages) = read_after(ms(1_000_000_000), Ages::Frozen);
    assert_eq!((report.downtime, ages), (Duration::ZERO, vec![ms(10_000), ms(50_000)]));
}

#[test]
fn a_wall_clock_that_went_back_adds_nothing() {
    let (table, clock) = table();
    clock.advance(ms(100_000));
    add(&table, &node(0), "a");
    clock.advance(ms(10));
    let bytes = written(&table);
    let (other, other_clock) = self::table();
    assert_eq!(read(&other, &bytes).downtime, Duration::ZERO);
    let age = other_clock
        .wall()
        .duration_since(other.get_proxies(&node(0))[0].last_refresh);
    assert_eq!(age.expect("a time in the past"), ms(10));
}

#[test]
fn a_loaded_route_expires_when_it_would_have() {
    let (table, clock) = table();
    add(&table, &node(0), "a");
    clock.advance(ms(59_000));
    let bytes = written(&table);
    let (other, other_clock) = self::table();
    other_clock.set(clock.monotonic());
    read(&other, &bytes);
    other_clock.advance(ms(1_000));
    assert_eq!(answer(&other, &node(0)), ["a"]);
    other_clock.advance(ms(1));
    assert_eq!(answer(&other, &node(0)), [""; 0]);
}

/// A clock with a wall clock that the test sets.
#[derive(Debug)]
struct WallOf(SystemTime);

impl Clock for WallOf {
    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn wall(&self) -> SystemTime {
        self.0
    }
}

#[test]
fn no_wall_clock_is_too_strange() {
    let years = |years: u64| Duration::from_secs(years * 31_556_952);
    let epoch = SystemTime::UNIX_EPOCH;
    let times = [
        epoch,
        epoch - years(3_000),
        epoch + years(9_000),
        epoch.checked_add(years(250_000_000_000)).unwrap_or(epoch),
        epoch.checked_sub(years(250_000_000_000)).unwrap_or(epoch),
    ];
    for writer in times {
        for reader in times {
            let table = RouteTable::builder()
                .clock(WallOf(writer))
                .build()
                .expect("possible limits");
            add(&table, &node(0), "a");
            let other = RouteTable::builder()
                .clock(WallOf(reader))
                .build()
                .expect("possible limits");
            let report = read(&other, &written(&table));
            assert_eq!(report.inserted, u64::from(reader <= writer), "{report:?}");
        }
    }
}

// --- merging

#[test]
fn the_later_time_of_a_route_counts() {
    let (table, clock) = table();
    add(&table, &node(0), "a");
    add(&table, &node(1), "a");
    add(&table, &node(3), "a");
    clock.advance(ms(100));
    add(&table, &node(3), "b");
    let bytes = written(&table);

    let other_clock = ManualClock::new();
    let other = RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(other_clock.clone())
        .build()
        .expect("possible limits");
    add(&other, &node(3), "b");
    other_clock.advance(ms(50));
    add(&other, &node(0), "a");
    add(&other, &node(0), "c");
    add(&other, &node(3), "a");
    other_clock.advance(ms(50));
    let (now, at) = (other_clock.wall(), |age| other_clock.wall() - ms(age));

    for round in 0..2 {
        let report = read(&other, &bytes);
        let inserted = if round == 0 { 1 } else { 0 };
        assert_eq!(
            (report.inserted, report.known),
            (inserted, 4 - inserted),
            "round {round}"
        );
        let times = |node: &NodeId| {
            let routes = content(&other).remove(node).unwrap_or_default();
            routes
                .into_iter()
                .map(|([id, ..], time)| (id, time))
                .collect::<Vec<_>>()
        };
        let route = |id: &str, time| (id.to_owned(), time);
        assert_eq!(times(&node(0)), [route("c", at(50)), route("a", at(50))]);
        assert_eq!(times(&node(1)), [route("a", at(100))]);
        assert_eq!(times(&node(3)), [route("b", now), route("a", at(50))]);
        assert_eq!(other.len(), 5);
    }
}

#[test]
fn merged_routes_of_a_tick_keep_their_order() {
    let (table, clock) = table();
    for id in ["a", "b", "c", "d"] {
        add(&table, &node(0), id);
    }
    let other = table_beside(&clock);
    // So that no shard is empty.
    (1..5_000).for_each(|i| add(&other, &node(i), "b"));
    for _ in 0..3 {
        read(&other, &written(&table));
        assert_eq!(answer(&other, &node(0)), ["d", "c", "b", "a"]);
    }
}

#[test]
fn a_registered_proxy_keeps_its_details() {
    let (table, clock) = table();
    add(&table, &node(0), "a");
    let other = table_beside(&clock);
    let moved = Proxy {
        addr: "198.51.100.7:1",
        ..proxy("a")
    };
    let known = other.register_proxy(&moved).expect("registers");
    read(&other, &written(&table));
    assert_eq!(other.proxy(known).expect("it is registered").addr(), moved.addr);
    assert_eq!(other.get_proxies(&node(0))[0].proxy, known);
}

#[test]
fn a_node_keeps_the_64_latest_routes() {
    let (table, clock) = table();
    for i in 0..64 {
        add(&table, &node(0), &format!("old-{i}"));
        clock.advance(ms(1));
    }
    let bytes = written(&table);
    let other_clock = ManualClock::new();
    other_clock.set(clock.monotonic() - ms(33));
    let other = RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(other_clock.clone())
        .build()
        .expect("possible limits");
    for i in 0..64 {
        add(&other, &node(0), &format!("new-{i}"));
        if i >= 32 {
            other_clock.advance(ms(1));
        }
    }
    other_clock.set(clock.monotonic());
    let report = read(&other, &bytes);
    let ids = answer(&other, &node(0));
    assert_eq!((ids.len(), other.len()), (64, 64));
    assert_eq!((report.inserted, report.known), (32, 32), "{ids:?}");
    assert_eq!(ids.iter().filter(|id| id.starts_with("old")).count(), 32);
}

#[test]
fn an_expired_route_that_is_not_swept_counts_as_none() {
    let (table, clock) = table();
    add(&table, &node(0), "a");
    clock.advance(INTERVAL + ms(1));
    let other = table_beside(&ManualClock::new());
    add(&other, &node(0), "a");
    let (fresh, fresh_clock) = self::table();
    fresh_clock.set(clock.monotonic());
    add(&fresh, &node(0), "a");
    let report = read(&table, &written(&fresh));
    assert_eq!((report.inserted, table.len()), (1, 1));
    assert_eq!(answer(&table, &node(0)), ["a"]);
}

// --- limits

#[test]
fn a_table_without_room_for_all_takes_nothing() {
    let (table, clock) = small();
    let bytes = written(&table);
    let beside = |builder: Builder| {
        let beside = ManualClock::new();
        beside.set(clock.monotonic());
        builder
            .keep_alive(INTERVAL)
            .clock(beside)
            .build()
            .expect("possible limits")
    };
    let other = beside(RouteTable::builder().max_routes(5));
    let error = refused(&other, &bytes);
    assert!(
        matches!(error, SnapshotError::TooManyRoutes { needed: 6, limit: 5 }),
        "{error}"
    );
    assert_untouched(&other);

    let other = beside(RouteTable::builder().max_proxies(2));
    let error = refused(&other, &bytes);
    assert!(
        matches!(error, SnapshotError::TooManyProxies { needed: 4, limit: 2 }),
        "{error}"
    );
    assert_untouched(&other);
    // Proxies without routes need no room.
    let other = beside(RouteTable::builder().max_proxies(3));
    assert_eq!(read(&other, &bytes).inserted, 6);

    // Known routes need no room.
    let other = beside(RouteTable::builder().max_routes(6).max_proxies(4));
    add(&other, &node(0), "a");
    add(&other, &node(3), "b");
    assert_eq!(read(&other, &bytes).inserted, 4);
    assert_eq!(read(&other, &bytes).known, 6);
    assert_eq!(other.len(), 6);
    let full = beside(RouteTable::builder().max_routes(6));
    add(&full, &node(200), "a");
    let error = refused(&full, &bytes);
    assert!(
        matches!(error, SnapshotError::TooManyRoutes { needed: 6, limit: 6 }),
        "{error}"
    );
    assert_eq!((full.len(), full.stats().proxies), (1, 1));
    let full = beside(RouteTable::builder().max_proxies(3));
    register(&full, "x");
    let error = refused(&full, &bytes);
    assert!(
        matches!(error, SnapshotError::TooManyProxies { needed: 4, limit: 3 }),
        "{error}"
    );
    assert_eq!((full.len(), full.stats().proxies), (0, 1));
}

/// The ID of a proxy, long enough for the writer to write some 500 proxies at a time.
fn long_id(nth: usize) -> String {
    format!("{nth:04}-{}", "x".repeat(200))
}

/// A file during whose writing 60 copied proxies are removed, and as many others are registered.
struct Churn<'a> {
    table: &'a RouteTable,
    bytes: Vec<u8>,
    replaced: usize,
}

impl Write for Churn<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let copied = String::from_utf8_lossy(bytes);
        let ids = (0..1_000).map(long_id).filter(|id| copied.contains(id));
        for id in ids.take(60 - self.replaced) {
            assert!(self.table.remove_proxy_by_id(&id));
            register(self.table, &long_id(1_000 + self.replaced));
            self.replaced += 1;
        }
        self.bytes.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_table_takes_a_snapshot_that_was_written_while_proxies_changed() {
    let full = |builder: Builder| builder.max_proxies(1_000);
    let (table, _) = table_with(full);
    (0..1_000).for_each(|nth| _ = register(&table, &long_id(nth)));
    let bytes = Vec::new();
    let mut churn = Churn {
        table: &table,
        bytes,
        replaced: 0,
    };
    let size = table.write_snapshot(&mut churn).expect("memory can be written to");
    assert!(size.proxies > 1_000, "{} replaced, {size:?}", churn.replaced);
    let (restored, _) = table_with(full);
    read(&restored, &churn.bytes);
}

#[test]
fn a_restart_needs_no_place_of_a_proxy() {
    let begin = |table: &RouteTable, incarnation| {
        let incarnation = NonZeroU64::new(incarnation).expect("not zero");
        table
            .begin_incarnation(&proxy("a"), incarnation)
            .expect("there is room")
            .proxy
    };
    let (table, _) = table_with(|builder| builder.max_proxies(1));
    let older = begin(&table, 1);
    table.add_node(&node(0), older).expect("there is room");
    let (newer, _) = table_with(|builder| builder.max_proxies(1));
    newer.add_node(&node(1), begin(&newer, 2)).expect("there is room");
    let report = read(&table, &written(&newer));
    assert_eq!((report.inserted, report.refused), (1, 0));
    assert_eq!(answer(&table, &node(0)), [""; 0]);
    assert_eq!(answer(&table, &node(1)), ["a"]);
}

#[test]
fn expired_routes_need_no_room() {
    let (table, clock) = table();
    (0..100).for_each(|i| add(&table, &node(i), "a"));
    clock.advance(INTERVAL);
    add(&table, &node(7), "a");
    let bytes = written(&table);
    clock.advance(ms(1));
    let clock_beside = ManualClock::new();
    clock_beside.set(clock.monotonic());
    let other = RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(clock_beside)
        .max_routes(1)
        .build()
        .expect("possible limits");
    let report = read(&other, &bytes);
    assert_eq!((report.inserted, report.expired, other.len()), (1, 99, 1));
}

// --- damage

/// The bytes of a description that need not be valid, with correct checksums.
#[derive(Default)]
struct Forged {
    bytes: Vec<u8>,
    /// Without checksums.
    checked: Vec<u8>,
}

impl Forged {
    fn new() -> Self {
        Self::of_version(2)
    }

    fn of_version(version: u32) -> Self {
        let mut header = b"\x89NTRACK\n".to_vec();
        header.extend(version.to_le_bytes());
        header.extend(1_637_625_600_000_i64.to_le_bytes());
        Self::default().part(&header)
    }

    fn part(mut self, bytes: &[u8]) -> Self {
        self.checked.extend(bytes);
        self.bytes.extend(bytes);
        self.bytes.extend(crc(&self.checked).to_le_bytes());
        self
    }

    fn section(self, kind: u8, items: u32, payload: &[u8]) -> Self {
        let mut head = vec![kind];
        head.extend(items.to_le_bytes());
        head.extend((payload.len() as u32).to_le_bytes());
        self.part(&head).part(payload)
    }

    fn proxies(self, ids: &[&str]) -> Self {
        let mut payload = Vec::new();
        for id in ids {
            payload.extend(text(id));
            payload.extend(text("cluster"));
            payload.extend(text("192.0.2.1:3080"));
            payload.push(0);
        }
        self.section(1, ids.len() as u32, &payload)
    }

    fn end(self, proxies: u64, nodes: u64, routes: u64) -> Vec<u8> {
        self.end_with(proxies, nodes, routes, 0)
    }

    fn end_with(self, proxies: u64, nodes: u64, routes: u64, ended: u64) -> Vec<u8> {
        let totals: Vec<u8> = [proxies, nodes, routes, ended]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .collect();
        self.section(5, 0, &totals).bytes
    }
}

fn text(text: &str) -> Vec<u8> {
    [&[text.len() as u8], text.as_bytes()].concat()
}

/// CRC-32 bit by bit: checks the documented format, not the crate that computes the checksum.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xEDB8_8320 } else { 0 };
        }
    }
    !crc
}

const UUID: [u8; 16] = [7; 16];

/// A node's item: a UUID, and the bytes of its routes.
fn uuid_item(routes: &[u8]) -> Vec<u8> {
    [UUID.as_slice(), routes].concat()
}

#[test]
fn the_format_is_as_documented() {
    // Proxies come in any order.
    let forged = |ids: [&str; 2], a: u8, b: u8| {
        let name = [text("node-1"), vec![2, b, 0xAC, 0x02, a, 5]].concat();
        Forged::new()
            .proxies(&ids)
            .section(2, 1, &uuid_item(&[1, a, 0]))
            .section(3, 1, &name)
            .end(2, 2, 3)
    };
    let bytes = forged(["a", "b"], 0, 1);
    let (table, clock) = table();
    let report = read(&table, &bytes);
    assert_eq!((report.proxies, report.nodes, report.inserted), (2, 2, 3));
    let at = |age| clock.wall() - ms(age);
    let strings = |id: &str| [id, "cluster", "192.0.2.1:3080"].map(str::to_owned);
    let expected = Content::from([
        (Uuid::from_bytes(UUID).into(), vec![(strings("a"), at(0))]),
        (
            "node-1".parse().expect("a name"),
            vec![(strings("b"), at(300)), (strings("a"), at(305))],
        ),
    ]);
    assert_eq!(content(&table), expected);
    let written = written(&table);
    let other = forged(["b", "a"], 1, 0);
    assert!(
        written == bytes || written == other,
        "and written like that: {written:?}"
    );
}

#[test]
fn every_bit_counts() {
    let bytes = written(&small().0);
    let (other, _) = table();
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = refused(&other, &flipped);
        assert!(!matches!(error, SnapshotError::Read { .. }), "bit {bit}: {error}");
    }
    assert_untouched(&other);
}

#[test]
fn every_truncation_is_noticed() {
    let bytes = written(&small().0);
    let (other, _) = table();
    for len in 0..bytes.len() {
        let error = refused(&other, &bytes[..len]);
        assert!(
            matches!(error, SnapshotError::Damaged { offset, fault: SnapshotFault::Truncated, .. } if offset == len as u64),
            "{len} bytes: {error}"
        );
    }
    assert_untouched(&other);
}

#[test]
fn a_snapshot_is_all_that_there_is() {
    let bytes = written(&small().0);
    let (other, _) = table();
    for more in [&[0][..], &bytes] {
        let error = refused(&other, &[&bytes, more].concat());
        assert!(
            matches!(error, SnapshotError::Damaged { part: SnapshotPart::End, offset, fault: SnapshotFault::Trailing }
                if offset == bytes.len() as u64),
            "{error}"
        );
    }
    assert_untouched(&other);
}

#[test]
fn sections_cannot_be_left_out_repeated_or_exchanged() {
    let (a, b) = (written(&small().0), {
        let (table, _) = table();
        add(&table, &node(0), "x");
        written(&table)
    });
    let (other, _) = table();
    // The sections of proxies and UUIDs begin where a head says so.
    let heads = |bytes: &[u8]| {
        let mut at = 24;
        let mut heads = Vec::new();
        while at < bytes.len() {
            heads.push(at);
            at += 13 + u32::from_le_bytes(bytes[at + 5..at + 9].try_into().expect("four bytes")) as usize + 4;
        }
        heads.push(at);
        heads
    };
    let (in_a, in_b) = (heads(&a), heads(&b));
    for pair in in_a.windows(2) {
        let section = &a[pair[0]..pair[1]];
        refused(&other, &[&a[..pair[0]], &a[pair[1]..]].concat());
        refused(&other, &[&a[..pair[1]], section, &a[pair[1]..]].concat());
        for foreign in in_b.windows(2) {
            refused(
                &other,
                &[&a[..pair[0]], &b[foreign[0]..foreign[1]], &a[pair[1]..]].concat(),
            );
        }
    }
    assert_untouched(&other);
}

#[test]
fn other_versions_are_refused_by_their_number() {
    let (other, _) = table();
    for version in [0, 1, 3, u32::MAX] {
        let error = refused(&other, &Forged::of_version(version).end(0, 0, 0));
        assert!(
            matches!(error, SnapshotError::Version { found, known: 2 } if found == version),
            "{error}"
        );
    }
    let error = refused(&other, b"PK\x03\x04 and so on");
    assert!(matches!(error, SnapshotError::NotASnapshot), "{error}");
}

/// A snapshot with one fault, and the error that must report it: part, offset, and message.
fn fault(forged: Vec<u8>, part: SnapshotPart, offset: usize, message: &str) {
    let (other, _) = table();
    let error = refused(&other, &forged);
    assert!(
        matches!(&error, SnapshotError::Damaged { part: found, offset: at, .. } if *found == part && *at == offset as u64),
        "{error}"
    );
    let error = error.to_string();
    assert!(
        error.contains(message) && error.contains(&offset.to_string()),
        "{error}"
    );
    assert_untouched(&other);
}

#[test]
fn an_error_tells_what_and_where() {
    use SnapshotPart::{End, Head, Incarnations, Names, Proxies, Uuids};
    let new = Forged::new;
    let with_proxies = || new().proxies(&["a", "b"]);
    // Where a section begins, and where its payload does.
    let first = new().bytes.len();
    let second = with_proxies().bytes.len();
    let (in_first, in_second) = (first + 13, second + 13);
    let nodes = |kind, items, payload: &[u8]| with_proxies().section(kind, items, payload).end(2, 1, 1);
    let uuid = |routes: &[u8]| nodes(2, 1, &uuid_item(routes));

    fault(new().section(9, 0, &[]).bytes, Head, first, "kind 9");
    fault(new().section(0, 0, &[]).bytes, Head, first, "kind 0");
    let backwards = with_proxies().section(2, 1, &uuid_item(&[1, 0, 0]));
    let at = backwards.bytes.len();
    fault(backwards.proxies(&["c"]).bytes, Proxies, at, "section of UUIDs");
    let huge = new().part(&[2, 1, 0, 0, 0, 1, 0, 16, 0]).bytes;
    fault(huge, Uuids, first, "1048577 bytes");

    // Counts that lie.
    fault(
        nodes(2, 2, &uuid_item(&[1, 0, 0])),
        Uuids,
        in_second + 19,
        "exceeds the end",
    );
    fault(
        nodes(2, u32::MAX, &uuid_item(&[1, 0, 0])),
        Uuids,
        in_second + 19,
        "exceeds the end",
    );
    fault(
        nodes(2, 0, &uuid_item(&[1, 0, 0])),
        Uuids,
        in_second,
        "19 bytes are left",
    );
    fault(
        nodes(2, 1, &uuid_item(&[1, 0, 0, 0])),
        Uuids,
        in_second + 19,
        "1 bytes are left",
    );
    fault(nodes(2, 1, &UUID[..9]), Uuids, in_second, "exceeds the end");
    fault(nodes(2, 0, &[]), Uuids, second, "no nodes");
    fault(nodes(3, 0, &[]), Names, second, "no nodes");
    fault(nodes(3, 1, &[200, b'x']), Names, in_second + 1, "exceeds the end");
    let good = |proxies, nodes, routes| {
        with_proxies()
            .section(2, 1, &uuid_item(&[1, 0, 0]))
            .end(proxies, nodes, routes)
    };
    let end = good(2, 1, 1).len() - 36;
    fault(good(3, 1, 1), End, end, "should be 3 proxies, and 2");
    fault(good(2, 1 << 60, 1), End, end + 8, "nodes, and 1");
    fault(good(2, 1, 1 << 60), End, end + 16, "routes, and 1");
    fault(
        new().section(5, 0, &[0; 31]).bytes,
        End,
        in_first + 24,
        "exceeds the end",
    );
    fault(
        new().section(5, 0, &[0; 33]).bytes,
        End,
        in_first + 32,
        "1 bytes are left",
    );

    // Routes.
    fault(uuid(&[0]), Uuids, in_second + 16, "0 routes");
    fault(uuid(&[65]), Uuids, in_second + 16, "65 routes");
    fault(uuid(&[1, 2, 0]), Uuids, in_second + 17, "number 2");
    let far = [1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0];
    fault(uuid(&far), Uuids, in_second + 17, "number 18446744073709551615");
    fault(
        uuid(&[2, 1, 0, 1, 0]),
        Uuids,
        in_second + 19,
        "two routes through proxy number 1",
    );
    fault(uuid(&[1, 0x80, 0, 0]), Uuids, in_second + 17, "zeros in front");
    let over = [1, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 2];
    fault(uuid(&over), Uuids, in_second + 18, "more than 64 bits");
    fault(
        uuid(&[1, 0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x10]),
        Uuids,
        in_second + 18,
        "8.7 years",
    );
    let sum = [2, 0, 1, 1, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1];
    fault(uuid(&sum), Uuids, in_second + 20, "8.7 years");

    // Strings.
    let name = |name: &str| nodes(3, 1, &[text(name), vec![1, 0, 0]].concat());
    fault(name(""), Names, in_second, "node ID is empty");
    fault(name("a\nb"), Names, in_second, "control character '\\n' at byte 1");
    fault(
        name("550e8400e29b41d4a716446655440000"),
        Names,
        in_second,
        "stands among the names",
    );
    fault(nodes(3, 1, &[1, 0xFF, 1, 0, 0]), Names, in_second, "UTF-8");
    fault(
        new().proxies(&["a", ""]).bytes,
        Proxies,
        in_first + 26,
        "proxy ID is empty",
    );
    let bad_addr = [text("a"), text(""), text("nowhere"), vec![0]].concat();
    fault(
        new().section(1, 1, &bad_addr).bytes,
        Proxies,
        in_first,
        "address is not host:port",
    );

    // Ended incarnations.
    let ended = |payload: &[u8]| new().section(4, 1, payload).end_with(0, 0, 0, 1);
    fault(ended(&[1, b'a', 0, 1, 0]), Incarnations, in_first + 2, "number 0");
    fault(ended(&[1, b'a', 7, 2, 0]), Incarnations, in_first + 3, "ended by 2");
    let old = [&[1, b'a', 7, 1][..], &[0x80, 0x80, 0x80, 0x80, 0x80, 0x10]].concat();
    fault(ended(&old), Incarnations, in_first + 4, "8.7 years");
    fault(ended(&[0, 7, 1, 0]), Incarnations, in_first, "proxy ID is empty");
    let twice = [[1, b'a', 7, 1, 0], [1, b'a', 8, 1, 0]].concat();
    let twice = new().section(4, 2, &twice).end_with(0, 0, 0, 2);
    fault(twice, Incarnations, first, "\"a\" is there already");
    let counted = new().section(4, 1, &[1, b'a', 7, 1, 0]).end_with(0, 0, 0, 2);
    fault(
        counted,
        End,
        first + 13 + 5 + 4 + 13 + 24,
        "should be 2 ended incarnations, and 1",
    );

    // Twice the same.
    fault(
        new().proxies(&["a", "b", "a"]).end(3, 0, 0),
        Proxies,
        first,
        "\"a\" is there already",
    );
    let twice = with_proxies().proxies(&["b"]).end(3, 0, 0);
    fault(
        twice,
        Proxies,
        second,
        &format!("\"b\" is there already, in the section at byte {first}"),
    );
    let twice = with_proxies()
        .section(2, 1, &uuid_item(&[1, 0, 0]))
        .section(2, 1, &uuid_item(&[1, 1, 0]));
    let third = second + 13 + 19 + 4;
    let message = format!("is there already, in the section at byte {second}");
    fault(twice.end(2, 2, 2), Uuids, third, &message);
    let names = [
        text("x"),
        vec![1, 0, 0],
        text("y"),
        vec![1, 0, 0],
        text("x"),
        vec![1, 0, 9],
    ]
    .concat();
    let twice = with_proxies().section(3, 3, &names).end(2, 3, 3);
    fault(twice, Names, second, "node x is there already");
}

#[test]
fn an_incarnation_that_ended_meanwhile_has_ended() {
    let proxies = [
        text("a"),
        text("c"),
        text("h:1"),
        vec![5],
        text("b"),
        text("c"),
        text("i:2"),
        vec![5],
    ]
    .concat();
    let ended = [text("a"), vec![5, 1, 0], text("b"), vec![5, 0, 0]].concat();
    let forged = Forged::new()
        .section(1, 2, &proxies)
        .section(2, 1, &uuid_item(&[2, 0, 0, 1, 0]))
        .section(4, 2, &ended)
        .end_with(2, 1, 2, 2);
    let (table, _) = table();
    let report = read(&table, &forged);
    assert_eq!((report.inserted, report.refused, report.incarnations), (1, 1, 2));
    assert_eq!(answer(&table, &Uuid::from_bytes(UUID).into()), ["b"]);
    assert_eq!(table.find_proxy("a"), None);
}

#[test]
fn a_reader_that_fails_is_told_of() {
    struct Fails(usize);
    impl Read for Fails {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let bytes = Forged::new().bytes;
            let rest = &bytes[self.0..];
            let len = rest.len().min(to.len());
            if len == 0 {
                return Err(io::Error::other("the disk is gone"));
            }
            to[..len].copy_from_slice(&rest[..len]);
            self.0 += len;
            Ok(len)
        }
    }
    let (table, _) = table();
    let error = table.read_snapshot(Fails(0)).expect_err("the reader fails");
    assert_eq!(
        error.to_string(),
        "cannot read the snapshot on from byte 24: the disk is gone"
    );
}

#[test]
fn a_writer_that_fails_is_told_of() {
    struct Full(usize);
    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let len = bytes.len().min(self.0);
            self.0 -= len;
            if len == 0 {
                Err(io::ErrorKind::StorageFull.into())
            } else {
                Ok(len)
            }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (table, _) = small();
    let len = written(&table).len();
    for room in 0..len {
        let error = table.write_snapshot(Full(room)).expect_err("the disk is full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
    assert_eq!(table.write_snapshot(Full(len)).expect("it fits").bytes, len as u64);
}

// --- properties

fn config(cases: usize) -> ProptestConfig {
    ProptestConfig {
        cases: u32::try_from(cases * crate::common::scale()).expect("a moderate scale"),
        rng_seed: RngSeed::Fixed(crate::common::seed()),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Something that happens to a table.
#[derive(Debug, Clone)]
enum Step {
    Add { node: u16, proxy: u16 },
    RemoveNode { node: u16 },
    RemoveProxy { proxy: u16 },
    Advance { millis: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let number = any::<u16>;
    prop_oneof![
        20 => (number(), number()).prop_map(|(node, proxy)| Step::Add { node, proxy }),
        1 => number().prop_map(|node| Step::RemoveNode { node }),
        1 => number().prop_map(|proxy| Step::RemoveProxy { proxy }),
        4 => (1_u64..5).prop_map(|millis| Step::Advance { millis }),
        1 => (1_000_u64..40_000).prop_map(|millis| Step::Advance { millis }),
    ]
}

/// The content of a table, by the model that had the same operations.
#[derive(Debug)]
struct Subject {
    table: RouteTable,
    clock: ManualClock,
    routes: Routes,
    refs: BTreeMap<u16, ProxyRef>,
    ids: HashMap<ProxyRef, String>,
    nodes: u16,
}

impl Subject {
    fn new(nodes: u16) -> Self {
        let (table, clock) = table();
        Self {
            table,
            clock,
            routes: Routes::new(INTERVAL),
            refs: BTreeMap::new(),
            ids: HashMap::new(),
            nodes,
        }
    }

    fn now(&self) -> u64 {
        self.clock.monotonic().as_millis() as u64
    }

    fn apply(&mut self, step: &Step, proxies: u16) {
        let now = self.now();
        match *step {
            Step::Add { node, proxy } => {
                let (node, proxy) = (crate::common::ops::node(node % self.nodes), proxy % proxies);
                let id = format!("proxy-{proxy}");
                let proxy = *self.refs.entry(proxy).or_insert_with(|| register(&self.table, &id));
                self.ids.insert(proxy, id);
                self.table.add_node(&node, proxy).expect("there is room");
                self.routes.add(&node, proxy, now);
            }
            Step::RemoveNode { node } => {
                let node = crate::common::ops::node(node % self.nodes);
                self.table.remove_node(&node);
                self.routes.remove_node(&node, now);
            }
            Step::RemoveProxy { proxy } => {
                if let Some(proxy) = self.refs.remove(&(proxy % proxies)) {
                    self.table.remove_proxy(proxy);
                    self.routes.remove_proxy(proxy);
                }
            }
            Step::Advance { millis } => self.clock.advance(ms(millis)),
        }
    }

    /// Proxy IDs and ages, as the model has them, of routes that are no older than `most`.
    fn expected(&self, node: &NodeId, most: u64) -> Vec<(String, u64)> {
        let now = self.now();
        let routes = self.routes.get(node, now).into_iter();
        routes
            .map(|(proxy, at)| (self.ids[&proxy].clone(), now - at))
            .filter(|(_, age)| *age <= most)
            .collect()
    }
}

fn ids_and_ages(table: &RouteTable, clock: &ManualClock, node: &NodeId) -> Vec<(String, u64)> {
    let routes = table.get_proxies(node);
    let age = |time| {
        clock
            .wall()
            .duration_since(time)
            .expect("a time in the past")
            .as_millis() as u64
    };
    let id = |proxy| table.proxy(proxy).expect("it is registered").id().into();
    routes
        .iter()
        .map(|route| (id(route.proxy), age(route.last_refresh)))
        .collect()
}

proptest! {
    #![proptest_config(config(128))]

    #[test]
    fn a_new_table_holds_what_the_model_says(
        steps in vec(step(), 0..300),
        (nodes, proxies) in prop_oneof![Just((3, 70)), Just((40, 5)), Just((3_000, 30))],
        downtime in prop_oneof![Just(0), 0_u64..70_000],
    ) {
        let mut subject = Subject::new(nodes);
        steps.iter().for_each(|step| subject.apply(step, proxies));
        let bytes = written(&subject.table);
        let beside = ManualClock::new();
        beside.set(subject.clock.monotonic() + ms(downtime));
        let other = RouteTable::builder().keep_alive(INTERVAL).clock(beside.clone()).build().expect("possible limits");
        let report = read(&other, &bytes);
        let interval = INTERVAL.as_millis() as u64;
        let mut total = 0;
        for number in 0..nodes {
            let node = node(number);
            let expected: Vec<_> = subject
                .expected(&node, interval.saturating_sub(downtime))
                .into_iter()
                .map(|(id, age)| (id, age + downtime))
                .filter(|_| downtime <= interval)
                .collect();
            total += expected.len();
            prop_assert_eq!(ids_and_ages(&other, &beside, &node), expected, "{}", node);
        }
        prop_assert_eq!((report.inserted, other.len()), (total as u64, total));
        if downtime == 0 {
            prop_assert_eq!(content(&other), content(&subject.table));
        }
    }

    /// Merging is the model's union of routes, each with its later time.
    #[test]
    fn a_table_in_use_takes_what_is_later(
        ours in vec(step(), 0..150),
        theirs in vec(step(), 0..150),
        nodes in prop_oneof![Just(3_u16), Just(200)],
    ) {
        let (mut here, mut there) = (Subject::new(nodes), Subject::new(nodes));
        ours.iter().for_each(|step| here.apply(step, 8));
        theirs.iter().for_each(|step| there.apply(step, 8));
        let now = here.now().max(there.now());
        for subject in [&mut here, &mut there] {
            subject.apply(&Step::Advance { millis: now - subject.now() }, 8);
        }
        let report = read(&here.table, &written(&there.table));
        prop_assert_eq!(report.refused, 0);
        for number in 0..nodes {
            let node = node(number);
            let mut expected: HashMap<String, u64> = HashMap::new();
            let interval = INTERVAL.as_millis() as u64;
            for (id, age) in here.expected(&node, interval).into_iter().chain(there.expected(&node, interval)) {
                expected.entry(id).and_modify(|known| *known = age.min(*known)).or_insert(age);
            }
            check_answer(&here.table.get_proxies(&node)).map_err(TestCaseError::fail)?;
            let merged = ids_and_ages(&here.table, &here.clock, &node);
            prop_assert_eq!(merged.into_iter().collect::<HashMap<_, _>>(), expected, "{}", node);
        }
        sweep_fully(&here.table);
        prop_assert_eq!(here.table.len(), content(&here.table).values().map(Vec::len).sum::<usize>());
    }
}

proptest! {
    #![proptest_config(config(2_048))]

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..400), with_header: bool) {
        let (table, _) = table();
        let bytes = if with_header { [Forged::new().bytes, bytes].concat() } else { bytes };
        prop_assert!(table.read_snapshot(bytes.as_slice()).is_err());
        assert_untouched(&table);
    }

    /// Payloads of anything, under checksums that are right.
    #[test]
    fn no_sections_panic(sections in vec((0_u8..7, 0_u32..4, vec(small_byte(), 0..60)), 0..6), totals: [u8; 3]) {
        let mut forged = Forged::new().proxies(&["a", "b"]);
        for (kind, items, payload) in sections {
            forged = forged.section(kind, items, &payload);
        }
        let (table, _) = table();
        let bytes = forged.end(2, u64::from(totals[1] % 3), u64::from(totals[2] % 3));
        match table.read_snapshot(bytes.as_slice()) {
            Ok(report) => prop_assert_eq!(report.inserted, table.len() as u64),
            Err(_) => assert_untouched(&table),
        }
    }

    /// A good snapshot with some bytes changed, inserted or removed, under checksums that are right.
    #[test]
    fn no_damage_panics(
        changes in vec((any::<prop::sample::Index>(), 0_u8..3, small_byte()), 1..4),
        part in 0_usize..3,
    ) {
        let names = [text("x"), vec![1, 0, 0], text("y"), vec![2, 1, 4, 0, 7]].concat();
        let uuids = [uuid_item(&[1, 0, 3]), [8; 16].to_vec(), vec![2, 1, 0, 0, 0]].concat();
        let proxies = [text("a"), text("c"), text("h:1"), vec![0], text("b"), text(""), text("i:2"), vec![0]].concat();
        let mut payloads = [proxies, uuids, names];
        for (at, how, byte) in changes {
            let payload = &mut payloads[part];
            match how {
                0 => *at.get_mut(payload) = byte,
                1 => payload.insert(at.index(payload.len()), byte),
                _ => _ = payload.remove(at.index(payload.len())),
            }
        }
        let [proxies, uuids, names] = payloads;
        let forged = Forged::new().section(1, 2, &proxies).section(2, 2, &uuids).section(3, 2, &names);
        let (table, _) = table();
        match table.read_snapshot(forged.end(2, 4, 6).as_slice()) {
            Ok(report) => prop_assert_eq!(report.inserted, table.len() as u64),
            Err(_) => assert_untouched(&table),
        }
    }
}

/// Bytes that numbers and counts are made of more often than others.
fn small_byte() -> impl Strategy<Value = u8> {
    prop_oneof![4 => 0_u8..4, 1 => Just(16_u8), 1 => Just(0x80_u8), 1 => Just(0xFF_u8), 2 => any::<u8>()]
}

// --- while others use the table

#[test]
fn what_stays_is_written_while_others_add_and_remove() {
    const STAYING: u128 = 100_000;
    let table = RouteTable::new();
    let proxies: Vec<_> = (0..10).map(|i| register(&table, &format!("proxy-{i}"))).collect();
    let staying = |i: u128| NodeId::from(Uuid::from_u128(i << 64));
    for i in 0..STAYING {
        table
            .add_node(&staying(i), proxies[i as usize % 5])
            .expect("there is room");
    }
    let done = AtomicBool::new(false);
    let snapshots = thread::scope(|scope| {
        for thread in 0..2_u128 {
            let (table, proxies, done) = (&table, &proxies, &done);
            scope.spawn(move || {
                let node = |i: u128| NodeId::from(Uuid::from_u128(i << 32 | 1 << 20 | thread));
                while !done.load(Ordering::Relaxed) {
                    for i in 0..50_000 {
                        table
                            .add_node(&node(i), proxies[5 + thread as usize])
                            .expect("there is room");
                        _ = table.add_node(&staying(i % STAYING), proxies[7]);
                    }
                    (0..50_000).for_each(|i| _ = table.remove_node(&node(i)));
                    let passing = register(table, &format!("passing-{thread}"));
                    table.add_node(&node(1), passing).expect("there is room");
                    table.remove_proxy(passing);
                    table.sweep(100_000);
                }
            });
        }
        let snapshots: Vec<_> = (0..5 * crate::common::scale()).map(|_| written(&table)).collect();
        done.store(true, Ordering::Relaxed);
        snapshots
    });
    for bytes in snapshots {
        let other = RouteTable::new();
        let report = read(&other, &bytes);
        assert_eq!(report.inserted, report.routes);
        assert_eq!(other.len() as u64, report.inserted);
        for i in 0..STAYING {
            let ids = answer(&other, &staying(i));
            let stays = format!("proxy-{}", i % 5);
            assert!(ids.contains(&stays) && ids.len() <= 2, "node {i}: {ids:?}");
        }
    }
}

#[test]
fn a_table_is_loaded_while_others_use_it() {
    const NODES: u128 = 100_000;
    let (table, clock) = table();
    let uuid = |i: u128| NodeId::from(Uuid::from_u128(i << 64));
    for i in 0..NODES {
        add(&table, &uuid(i), &format!("proxy-{}", i % 7));
    }
    clock.advance(ms(1_000));
    let bytes = written(&table);

    for round in 0..3 * crate::common::scale() {
        let other = table_beside(&clock);
        let loaded = AtomicBool::new(false);
        let (report, added) = thread::scope(|scope| {
            let (other, loaded) = (&other, &loaded);
            let adders: Vec<_> = (0..2_u128)
                .map(|thread| {
                    scope.spawn(move || {
                        let proxy = register(other, "new");
                        let known = register(other, "proxy-3");
                        let mut added = 0;
                        for i in 0.. {
                            // Half of the nodes are in the snapshot; the same routes, too.
                            other
                                .add_node(&uuid(i * 5 % (2 * NODES)), proxy)
                                .expect("there is room");
                            other
                                .add_node(&uuid((i * 7 + 3) % NODES), known)
                                .expect("there is room");
                            other.remove_node(&uuid(2 * NODES + thread));
                            added = i + 1;
                            if loaded.load(Ordering::Relaxed) {
                                break;
                            }
                        }
                        added
                    })
                })
                .collect();
            let report = read(other, &bytes);
            loaded.store(true, Ordering::Relaxed);
            let added: Vec<u128> = adders.into_iter().map(|adder| adder.join().expect("it adds")).collect();
            (report, added)
        });
        assert_eq!(report.refused, 0, "round {round}");
        for i in 0..NODES {
            let ids = answer(&other, &uuid(i));
            assert!(
                ids.contains(&format!("proxy-{}", i % 7)),
                "round {round}, node {i}: {ids:?}"
            );
        }
        for i in 0..*added.iter().max().expect("two threads") {
            let node = uuid(i * 5 % (2 * NODES));
            assert!(
                answer(&other, &node).contains(&"new".to_owned()),
                "round {round}, {node}"
            );
        }
        let total: usize = content(&other).values().map(Vec::len).sum();
        assert_eq!(other.len(), total, "round {round}: the count is exact");
        assert_eq!(other.stats().nodes, content(&other).len(), "round {round}");
    }
}

#[test]
fn a_full_table_stays_within_its_limit_while_it_is_loaded() {
    const NODES: u16 = 20_000;
    const LIMIT: usize = 30_000;
    let (table, clock) = table();
    (0..NODES).for_each(|i| add(&table, &node(i), "a"));
    let bytes = written(&table);
    let beside = ManualClock::new();
    beside.set(clock.monotonic());
    let other = RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(beside)
        .max_routes(LIMIT)
        .build()
        .expect("possible limits");
    // So that shards are not empty.
    (0..1_000).for_each(|i| add(&other, &node(i), "b"));
    let loaded = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        let (other, loaded) = (&other, &loaded);
        scope.spawn(move || {
            let proxy = register(other, "c");
            let mut i = 0_u128;
            while !loaded.load(Ordering::Relaxed) {
                _ = other.add_node(&NodeId::from(Uuid::from_u128(i << 64)), proxy);
                assert!(other.len() <= LIMIT);
                i += 1;
            }
        });
        let report = other.read_snapshot(bytes.as_slice());
        loaded.store(true, Ordering::Relaxed);
        report
    });
    let total: usize = content(&other).values().map(Vec::len).sum();
    assert_eq!(other.len(), total);
    match report {
        Ok(report) => assert_eq!(report.inserted + report.refused, u64::from(NODES)),
        Err(error) => assert!(matches!(error, SnapshotError::TooManyRoutes { .. }), "{error}"),
    }
}

#[test]
fn a_subscriber_hears_of_loaded_routes() {
    let (table, clock) = small();
    let other = table_beside(&clock);
    let mut subscription = other.subscribe();
    read(&other, &written(&table));
    let mut nodes = Vec::new();
    let taken = subscription.drain_events(100, |event| {
        if let nodetracker::Event::Node { node, .. } = event {
            nodes.push(node.clone());
        }
    });
    assert_eq!(taken, Ok(nodes.len()));
    nodes.sort();
    nodes.dedup();
    let mut expected = vec![node(0), node(1), node(3)];
    expected.sort();
    assert_eq!(nodes, expected);
}
