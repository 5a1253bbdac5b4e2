//! Restored routes: which routes a table has after a restart, for how long, and how they are marked.

use std::io::{self, Read};
use std::num::NonZeroU64;
use std::time::Duration;

use crate::common::ops::node;
use crate::common::{proxy, sweep_fully, wait_until};
use nodetracker::snapshot::{Ages, SnapshotError, SnapshotReport};
use nodetracker::{BeginError, ExpiryBrake, HoldCause, ManualClock, RouteTable, SweepPace, Verdict};

const INTERVAL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);
const HOUR: Duration = Duration::from_secs(3600);

fn table() -> (RouteTable, ManualClock) {
    crate::common::table(INTERVAL)
}

fn add(table: &RouteTable, nodes: impl IntoIterator<Item = u16>, id: &str) {
    let proxy = table.register_proxy(&proxy(id)).expect("there is room");
    for number in nodes {
        table.add_node(&node(number), proxy).expect("there is room");
    }
}

fn written(table: &RouteTable) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.write_snapshot(&mut bytes).expect("memory can be written to");
    bytes
}

/// A new table that is restored a while after `clock`, and its own clock.
fn restored(bytes: &[u8], clock: &ManualClock, downtime: Duration) -> (RouteTable, ManualClock, SnapshotReport) {
    let (table, beside) = table();
    beside.set(nodetracker::Clock::monotonic(clock) + downtime);
    let report = table.read_snapshot_with(bytes, Ages::Grace).expect("a good snapshot");
    (table, beside, report)
}

/// The proxies of a node's known routes, and the verdicts.
fn explained(table: &RouteTable, number: u16) -> Vec<(String, Verdict)> {
    let explained = table.explain(&node(number)).into_iter();
    explained
        .map(|route| (route.proxy.expect("it is registered").id().to_owned(), route.verdict))
        .collect()
}

/// Lets time pass with all steps of the sweeper.
fn pass(table: &RouteTable, clock: &ManualClock, pace: &mut SweepPace, time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let pause = pace.next_pause(table).min(left);
        clock.advance(pause);
        pace.sweep(table);
        left -= pause;
    }
}

#[test]
fn restored_routes_have_one_interval_to_be_confirmed() {
    let (before, clock) = table();
    add(&before, [0, 1], "a");
    let refreshed = before.get_proxies(&node(0))[0].last_refresh;
    clock.advance(INTERVAL);
    add(&before, [2], "a");
    let bytes = written(&before);
    for downtime in [Duration::ZERO, TICK, INTERVAL, HOUR, 10_000 * HOUR] {
        let (table, clock, report) = restored(&bytes, &clock, downtime);
        assert_eq!((report.inserted, report.expired), (3, 0), "{downtime:?}");
        if downtime > Duration::ZERO && downtime <= HOUR {
            assert_eq!(table.get_proxies(&node(0))[0].last_refresh, refreshed, "{downtime:?}");
        }
        let hold = table.expiry_hold().expect("expiry is held");
        assert_eq!((hold.cause, hold.left), (HoldCause::Restart, INTERVAL));
        clock.advance(INTERVAL / 2);
        add(&table, [1], "a");
        clock.advance(INTERVAL / 2 - TICK);
        sweep_fully(&table);
        assert_eq!(table.len(), 3, "{downtime:?}");
        for (number, verdict) in [(0, Verdict::Restored), (1, Verdict::Returned), (2, Verdict::Restored)] {
            assert_eq!(explained(&table, number), [("a".into(), verdict)], "{downtime:?}");
            assert_eq!(table.get_proxies(&node(number)).len(), 1, "{downtime:?}");
        }
        clock.advance(TICK);
        assert_eq!(table.expiry_hold(), None);
        assert_eq!(table.effective_keep_alive(), INTERVAL);
        assert_eq!(explained(&table, 0), [("a".into(), Verdict::Expired)]);
        assert_eq!(table.get_proxies(&node(2)).len(), 0, "{downtime:?}");
        sweep_fully(&table);
        assert_eq!((table.len(), table.get_proxies(&node(1)).len()), (1, 1));
    }
}

#[test]
fn a_route_survives_a_second_restart_during_the_grace() {
    let (before, clock) = table();
    add(&before, [0, 1], "a");
    let (second, clock, _) = restored(&written(&before), &clock, HOUR);
    clock.advance(INTERVAL / 2);
    add(&second, [1], "a");
    let (third, clock, report) = restored(&written(&second), &clock, 2 * HOUR);
    assert_eq!((report.inserted, report.expired), (2, 0));
    clock.advance(INTERVAL - TICK);
    assert_eq!(explained(&third, 0), [("a".into(), Verdict::Restored)]);
    clock.advance(TICK);
    assert_eq!(explained(&third, 0), [("a".into(), Verdict::Expired)]);
}

#[test]
fn a_restored_route_ranks_behind_a_confirmed_one() {
    let (before, clock) = table();
    add(&before, [0], "a");
    add(&before, [0], "b");
    // In the tick of the restart.
    let (table, ..) = restored(&written(&before), &clock, Duration::ZERO);
    let both = [("b".into(), Verdict::Restored), ("a".into(), Verdict::Restored)];
    assert_eq!(explained(&table, 0), both, "the order of the refreshes is the same");
    add(&table, [0], "a");
    let one = [("a".into(), Verdict::Returned), ("b".into(), Verdict::Restored)];
    assert_eq!(explained(&table, 0), one);
    let first = table.get_proxies(&node(0))[0].proxy;
    assert_eq!(table.proxy(first).expect("it is registered").id(), "a");
}

#[test]
fn a_table_that_has_routes_is_not_restored() {
    let (before, _) = table();
    add(&before, [0], "a");
    let (other, _) = table();
    add(&other, [1], "b");
    let error = other.read_snapshot_with(written(&before).as_slice(), Ages::Grace);
    assert!(matches!(error, Err(SnapshotError::NotEmpty)), "{error:?}");
    assert_eq!((other.len(), other.expiry_hold()), (1, None));
}

/// Adds a node when it has been read to its end.
struct AddsNode<'a>(&'a [u8], &'a RouteTable);

impl Read for AddsNode<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read(to)?;
        if read == 0 && !to.is_empty() {
            add(self.1, [1], "b");
        }
        Ok(read)
    }
}

/// The route may expire before the grace begins. The grace would make it valid again.
#[test]
fn a_table_that_gets_a_route_during_the_reading_is_not_restored() {
    let (before, _) = table();
    add(&before, [0], "a");
    let bytes = written(&before);
    let (other, _) = table();
    let error = other.read_snapshot_with(AddsNode(&bytes, &other), Ages::Grace);
    assert!(matches!(error, Err(SnapshotError::NotEmpty)), "{error:?}");
    assert_eq!((other.len(), other.expiry_hold()), (1, None));
    assert_eq!(other.find_proxy("a"), None, "a proxy of the snapshot is registered");
}

#[test]
fn a_damaged_snapshot_holds_nothing() {
    let (before, _) = table();
    add(&before, [0], "a");
    let mut bytes = written(&before);
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    let (other, _) = table();
    assert!(other.read_snapshot_with(bytes.as_slice(), Ages::Grace).is_err());
    assert_eq!((other.len(), other.expiry_hold()), (0, None));
}

/// The grace is over when the unconfirmed routes expire, so the brake does not take them for missing heartbeats.
#[test]
fn the_brake_does_not_hold_unconfirmed_routes() {
    let (before, clock) = table();
    add(&before, 0..1_000, "a");
    add(&before, 1_000..2_000, "b");
    let bytes = written(&before);
    let brake = ExpiryBrake::default().min_routes(1);
    let (table, beside) = crate::common::table_with(INTERVAL, |builder| builder.expiry_brake(brake));
    beside.set(nodetracker::Clock::monotonic(&clock) + HOUR);
    table
        .read_snapshot_with(bytes.as_slice(), Ages::Grace)
        .expect("a good snapshot");
    let mut pace = SweepPace::default();
    for _ in 0..5 {
        add(&table, 0..1_000, "a");
        pass(&table, &beside, &mut pace, INTERVAL / 3);
    }
    assert_eq!((table.expiry_hold(), table.len()), (None, 1_000));
    assert_eq!(explained(&table, 0), [("a".into(), Verdict::Returned)]);
    // A stop is a stop again.
    beside.advance(HOUR);
    assert_eq!(table.expiry_hold().map(|hold| hold.cause), Some(HoldCause::Stop));
}

#[test]
fn a_stop_during_the_grace_does_not_end_it() {
    let (before, clock) = table();
    add(&before, [0], "a");
    let (table, clock, _) = restored(&written(&before), &clock, HOUR);
    let mut pace = SweepPace::default();
    pass(&table, &clock, &mut pace, INTERVAL / 2);
    clock.advance(HOUR);
    assert_eq!(explained(&table, 0), [("a".into(), Verdict::Restored)]);
    let hold = table.expiry_hold().expect("expiry is held");
    assert_eq!((hold.cause, hold.left), (HoldCause::Restart, INTERVAL / 2));
    // Near the end of the grace, a heartbeat interval is left.
    pass(&table, &clock, &mut pace, INTERVAL / 2 - TICK);
    clock.advance(HOUR);
    let hold = table.expiry_hold().expect("expiry is held");
    assert_eq!((hold.cause, hold.left), (HoldCause::Restart, INTERVAL / 3));
}

#[test]
fn ended_incarnations_are_restored_for_as_long_as_they_count() {
    let number = |number| NonZeroU64::new(number).expect("not zero");
    let begin = |table: &RouteTable, id: &str, of| table.begin_incarnation(&proxy(id), number(of));
    let (before, clock) = table();
    let uuid = "550e8400-e29b-41d4-a716-446655440000";
    for id in ["early", "over", uuid] {
        let begun = begin(&before, id, 5).expect("there is room");
        before.remove_proxy(begun.proxy);
        clock.advance(INTERVAL / 2);
    }
    begin(&before, "dropped", 5).expect("there is room");
    clock.advance(INTERVAL + Duration::from_secs(1));
    // "early", "over" and the UUID no longer count, and "dropped" has no routes.
    wait_until(|| {
        sweep_fully(&before);
        before.find_proxy("dropped").is_none()
    });
    begin(&before, "last", 5)
        .map(|last| before.remove_proxy(last.proxy))
        .expect("there is room");
    let mut bytes = Vec::new();
    let size = before.write_snapshot(&mut bytes).expect("memory can be written to");
    assert_eq!((size.incarnations, size.has_all_incarnations), (2, true));

    let (table, clock, report) = restored(&bytes, &clock, HOUR);
    assert_eq!((report.incarnations, report.proxies), (2, 0));
    let stale = |id, of| matches!(begin(&table, id, of), Err(BeginError::Stale(_)));
    assert!(stale("last", 5) && stale("last", 4) && stale("dropped", 4));
    assert!(!stale("early", 4) && !stale("over", 4) && !stale(uuid, 4));
    assert!(!stale("dropped", 5), "it may continue");
    clock.advance(INTERVAL);
    assert!(!stale("last", 4), "it is forgotten after the grace");
}
