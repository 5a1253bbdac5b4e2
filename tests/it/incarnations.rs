//! Incarnations through the public API: which incarnation may begin, which routes it has, and how long the table
//! remembers it.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::thread;
use std::time::Duration;

use crate::common::gate::Gate;
use crate::common::ops::node;
use crate::common::{ensure, proxy, sweep_fully};
use nodetracker::{
    AddError, BeginError, Clock, Event, Incarnation, ManualClock, NodeId, Proxy, ProxyRef, RegisterError, RouteTable,
    StaleIncarnation,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const INTERVAL: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(1);

fn table() -> (RouteTable, ManualClock) {
    crate::common::table(INTERVAL)
}

fn number(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).expect("not zero")
}

fn begin(table: &RouteTable, id: &str, incarnation: u64) -> Incarnation {
    let begun = table.begin_incarnation(&proxy(id), number(incarnation));
    begun.unwrap_or_else(|error| panic!("{id} {incarnation}: {error}"))
}

fn stale(table: &RouteTable, id: &str, incarnation: u64) -> StaleIncarnation {
    match table.begin_incarnation(&proxy(id), number(incarnation)) {
        Err(BeginError::Stale(stale)) => stale,
        other => panic!("{id} {incarnation}: {other:?}"),
    }
}

/// The proxies of a node's routes.
fn routes(table: &RouteTable, node: &NodeId) -> Vec<ProxyRef> {
    table.get_proxies(node).iter().map(|route| route.proxy).collect()
}

#[test]
fn a_greater_one_takes_over_and_a_lesser_one_changes_nothing() {
    let (table, _) = table();
    let older = begin(&table, "proxy", 5);
    assert!(!older.is_resumed);
    assert_eq!(table.incarnation(older.proxy), Some(number(5)));
    table.add_node(&node(1), older.proxy).expect("there is room");

    let mut subscription = table.subscribe();
    let newer = begin(&table, "proxy", 7);
    assert!(!newer.is_resumed && newer.proxy != older.proxy);
    assert_eq!(routes(&table, &node(1)), []);
    assert_eq!(table.add_node(&node(1), older.proxy), Err(AddError::UnknownProxy));
    assert_eq!(table.incarnation(older.proxy), None);
    let mut events = Vec::new();
    assert_eq!(
        subscription.drain_events(9, |event: &Event| events.push(event.clone())),
        Ok(1)
    );
    assert!(
        matches!(&events[..], [Event::ProxyRemoved { proxy, id }] if *proxy == older.proxy && **id == *"proxy"),
        "{events:?}"
    );

    table.add_node(&node(1), newer.proxy).expect("there is room");
    let elsewhere = Proxy {
        addr: "192.0.2.99:1",
        ..proxy("proxy")
    };
    let refused = table.begin_incarnation(&elsewhere, number(6)).expect_err("7 has begun");
    assert_eq!(refused.to_string(), "incarnation 6 is stale: 7 has begun");
    assert_eq!(routes(&table, &node(1)), [newer.proxy]);
    assert_eq!(
        table.proxy(newer.proxy).expect("it is there").addr(),
        proxy("proxy").addr
    );
    assert_eq!(table.stats().proxies, 1);
}

#[test]
fn the_same_one_goes_on_with_its_reference_and_its_handles() {
    let (table, _) = table();
    let first = begin(&table, "proxy", 5);
    let nodes = [node(1), node(3)];
    let added = table
        .add_nodes_with_handles(&nodes, first.proxy)
        .expect("there is room");
    assert_eq!(added.added.inserted, 2);

    let elsewhere = Proxy {
        addr: "192.0.2.99:1",
        ..proxy("proxy")
    };
    let again = table
        .begin_incarnation(&elsewhere, number(5))
        .expect("it is the latest");
    assert!(again.is_resumed);
    assert_eq!(again.proxy, first.proxy);
    let addr = || table.proxy(first.proxy).expect("it is there").addr().to_owned();
    assert_eq!(addr(), "192.0.2.99:1");
    // A call that only resumes an incarnation does not change the details, which may be newer.
    let resumed = table.resume_incarnation(&proxy("proxy"), number(5));
    assert_eq!(resumed.expect("it is the latest"), again);
    assert_eq!(addr(), "192.0.2.99:1");
    let refresh = |proxy| {
        let refreshed = table.refresh_routes(&added.handles, proxy)?;
        Ok((refreshed.refreshed, refreshed.gone))
    };
    assert_eq!(refresh(again.proxy), Ok((2, vec![])));

    // They are not the next one's.
    let next = begin(&table, "proxy", 6);
    assert_eq!(refresh(first.proxy), Err(AddError::UnknownProxy));
    assert_eq!(refresh(next.proxy), Ok((0, vec![0, 1])));
}

#[test]
fn one_that_is_over_is_remembered_for_an_interval() {
    let (table, clock) = table();
    let begun = begin(&table, "proxy", 5);
    assert!(table.remove_proxy(begun.proxy));
    for passed in [Duration::ZERO, INTERVAL] {
        clock.advance(passed);
        sweep_fully(&table);
        let refused = stale(&table, "proxy", 5);
        assert!(refused.is_over && refused.latest == number(5), "{refused:?}");
        assert_eq!(refused.to_string(), "incarnation 5 is stale: 5 is over");
        assert_eq!(stale(&table, "proxy", 4).latest, number(5));
        assert_eq!(table.stats().proxies, 0);
    }
    clock.advance(TICK);
    assert!(!begin(&table, "proxy", 1).is_resumed);
}

#[test]
fn a_greater_one_may_follow_one_that_is_over_at_once() {
    let (table, _) = table();
    let begun = begin(&table, "proxy", 5);
    assert!(table.remove_proxy(begun.proxy));
    let next = begin(&table, "proxy", 6);
    assert!(!next.is_resumed && next.proxy != begun.proxy);
    assert!(!stale(&table, "proxy", 5).is_over);
}

#[test]
fn one_that_the_sweeper_dropped_may_go_on_for_an_interval_and_older_ones_may_not() {
    let (table, clock) = table();
    let begun = begin(&table, "proxy", 5);
    // Other threads of this process may hold a grace period up, so it may take some rounds.
    clock.advance(INTERVAL + Duration::from_secs(1));
    while table.proxy(begun.proxy).is_some() {
        sweep_fully(&table);
    }
    clock.advance(INTERVAL);
    assert!(!stale(&table, "proxy", 4).is_over);
    let again = begin(&table, "proxy", 5);
    assert!(!again.is_resumed && again.proxy != begun.proxy);

    clock.advance(INTERVAL + Duration::from_secs(1));
    while table.proxy(again.proxy).is_some() {
        sweep_fully(&table);
    }
    clock.advance(INTERVAL + TICK);
    assert!(!begin(&table, "proxy", 1).is_resumed);
}

#[test]
fn calls_without_an_incarnation_speak_for_the_current_one() {
    let (table, _) = table();
    // Routes from before the first incarnation become its routes.
    table.report_node(&node(1), &proxy("proxy")).expect("there is room");
    let unnamed = table.register_proxy(&proxy("proxy")).expect("it is there");
    assert_eq!(table.incarnation(unnamed), None);
    let first = begin(&table, "proxy", 1);
    assert_eq!((first.proxy, first.is_resumed), (unnamed, false));
    assert_eq!(routes(&table, &node(1)), [unnamed]);

    let second = begin(&table, "proxy", 2);
    table.report_node(&node(2), &proxy("proxy")).expect("there is room");
    assert_eq!(routes(&table, &node(2)), [second.proxy]);
    assert_eq!(table.incarnation(second.proxy), Some(number(2)));

    // After its end they register one without an incarnation. Such a call is no way around the remembered incarnations,
    // and a greater incarnation does not take it over.
    assert!(table.remove_proxy(second.proxy));
    table.report_node(&node(2), &proxy("proxy")).expect("there is room");
    let late = table.register_proxy(&proxy("proxy")).expect("it is there");
    assert_eq!(table.incarnation(late), None);
    assert!(stale(&table, "proxy", 2).is_over);
    assert_eq!(routes(&table, &node(2)), [late]);
    let third = begin(&table, "proxy", 3);
    assert!(third.proxy != late);
    assert_eq!(routes(&table, &node(2)), []);
}

#[test]
fn a_removal_of_an_old_reference_does_not_end_the_current_one() {
    let (table, _) = table();
    let older = begin(&table, "proxy", 1);
    let newer = begin(&table, "proxy", 2);
    assert!(!table.remove_proxy(older.proxy));
    assert!(begin(&table, "proxy", 2).is_resumed);
    assert_eq!(table.incarnation(newer.proxy), Some(number(2)));
}

#[test]
fn bad_strings_and_a_full_table_change_nothing() {
    let clock = ManualClock::new();
    let table = RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(clock.clone())
        .max_proxies(2)
        .build()
        .expect("possible limits");
    let refused = |id: &str, incarnation| match table.begin_incarnation(&proxy(id), number(incarnation)) {
        Err(BeginError::Proxy(error)) => error,
        other => panic!("{id} {incarnation}: {other:?}"),
    };
    assert!(matches!(refused("", 1), RegisterError::Invalid { .. }));
    let full = RegisterError::TooManyProxies { limit: 2 };
    let a = begin(&table, "a", 1);
    begin(&table, "b", 1);
    table.add_node(&node(1), a.proxy).expect("there is room");
    assert_eq!(refused("c", 1), full);
    assert_eq!(routes(&table, &node(1)), [a.proxy]);
    assert!(begin(&table, "a", 1).is_resumed);
    // A registered proxy can restart, although the number of the last incarnation is in use until its routes are swept.
    let restarts = (2..100).take_while(|&incarnation| {
        let begun = table.begin_incarnation(&proxy("a"), number(incarnation));
        begun.is_ok_and(|begun| table.add_node(&node(1), begun.proxy).is_ok())
    });
    // Restarts between two sweeps are refused, and change nothing, when new proxies would be.
    let restarts = restarts.count() as u64;
    assert_eq!(restarts, 8);
    assert_eq!(
        table.begin_incarnation(&proxy("a"), number(restarts + 2)),
        Err(BeginError::RestartsTooOften)
    );
    let a = begin(&table, "a", restarts + 1);
    assert!(a.is_resumed);
    assert_eq!(routes(&table, &node(1)), [a.proxy]);

    // The ended incarnations count until they are forgotten: there may be 8 more of them than proxies.
    assert!(table.remove_proxy(a.proxy));
    let begin_later = |id: &str| {
        (0..10_000).find_map(|_| {
            sweep_fully(&table);
            table.begin_incarnation(&proxy(id), number(1)).ok()
        })
    };
    let mut known = 2;
    while let Some(stranger) = begin_later(&format!("stranger-{known}")) {
        assert!(table.remove_proxy(stranger.proxy));
        known += 1;
    }
    assert_eq!(known, 10);
    let late = table.begin_incarnation(&proxy("late"), number(1));
    assert_eq!(late, Err(BeginError::TooManyIncarnations { limit: 10 }));

    // An equal table takes the snapshot of such a table, and refuses the same incarnations.
    let mut bytes = Vec::new();
    let size = table.write_snapshot(&mut bytes).expect("memory can be written to");
    assert_eq!((size.incarnations, size.has_all_incarnations), (9, true));
    let beside = ManualClock::new();
    beside.set(clock.monotonic());
    let restored = RouteTable::builder()
        .keep_alive(INTERVAL)
        .clock(beside)
        .max_proxies(2)
        .build()
        .expect("possible limits");
    let report = restored.read_snapshot(&*bytes).expect("an equal table has room");
    assert_eq!((report.incarnations, report.incarnations_left_out), (9, 0));
    for known in 2..10 {
        assert!(stale(&restored, &format!("stranger-{known}"), 1).is_over);
    }
    assert!(stale(&restored, "a", restarts).is_over);

    clock.advance(INTERVAL + TICK);
    // `b` is kept in use meanwhile.
    begin(&table, "b", 1);
    assert!(begin_later("c").is_some_and(|begun| !begun.is_resumed));
}

#[test]
fn a_proxy_that_restarts_again_and_again_leaves_the_others_room_to_restart() {
    const PROXIES: usize = 100;
    let (table, _) = crate::common::table_with(INTERVAL, |builder| builder.max_proxies(PROXIES));
    let others: Vec<_> = (1..PROXIES).map(|nth| format!("proxy-{nth}")).collect();
    begin(&table, "a", 1);
    others.iter().for_each(|id| _ = begin(&table, id, 1));
    let restarts = |id: &str, from: u64| {
        let begin = |nth: &u64| table.begin_incarnation(&proxy(id), number(*nth)).is_ok();
        (from..from + 1_000).take_while(begin).count()
    };
    // New proxies are refused when half of the additional numbers, 28, are in use.
    assert_eq!(restarts("a", 2), 14);
    // Each of the other proxies can restart once, while there are numbers.
    for id in &others[..14] {
        assert_eq!(restarts(id, 2), 1, "{id}");
    }
    assert_eq!(restarts(&others[14], 2), 0);
    // The sweeper frees the older numbers.
    let again = |id: &str, nth: u64| {
        (0..10_000).any(|_| {
            sweep_fully(&table);
            table.begin_incarnation(&proxy(id), number(nth)).is_ok()
        })
    };
    assert!(again("a", 2_000) && again(&others[14], 2) && again(&others[0], 3));
    // And then a proxy that restarted before can restart again, also while one of them uses up the numbers.
    let restarts_again = (1..1_000).any(|turn| {
        sweep_fully(&table);
        restarts("a", 2_000 * (turn + 1));
        restarts(&others[1], 10) > 0
    });
    assert!(restarts_again);
}

/// The messages of the older incarnation race with the hello of the newer incarnation, and with their own incarnation's
/// hello.
#[test]
fn additions_of_an_older_incarnation_that_race_with_a_newer_one_bring_nothing_back() {
    let (table, _) = table();
    let nodes: Vec<_> = (0..200).map(node).collect();
    for round in 0..50 * crate::common::scale() as u64 {
        let older = begin(&table, "proxy", 2 * round + 1);
        let gate = Gate::new(3);
        let newer = thread::scope(|scope| {
            for half in nodes.chunks(100) {
                let (pass, table) = (gate.pass(), &table);
                scope.spawn(move || {
                    pass.wait();
                    _ = table.add_nodes(half, older.proxy);
                    for node in half {
                        _ = table.add_node(node, older.proxy);
                    }
                });
            }
            gate.pass().wait();
            begin(&table, "proxy", 2 * round + 2)
        });
        for node in &nodes {
            assert_eq!(routes(&table, node), [], "round {round}");
        }
        assert_eq!(table.incarnation(newer.proxy), Some(number(2 * round + 2)));
        sweep_fully(&table);
    }
    assert_eq!(table.len(), 0);
}

mod snapshots {
    use super::*;

    fn copy(from: &RouteTable, to: &RouteTable) -> (u64, u64) {
        let mut bytes = Vec::new();
        from.write_snapshot(&mut bytes).expect("memory can be written to");
        let report = to.read_snapshot(bytes.as_slice()).expect("a good snapshot");
        (report.inserted, report.refused)
    }

    #[test]
    fn incarnations_survive_a_restart() {
        let (before, _) = table();
        let named = begin(&before, "named", 5);
        before.add_node(&node(1), named.proxy).expect("there is room");
        before.report_node(&node(2), &proxy("unnamed")).expect("there is room");

        let (after, _) = table();
        assert_eq!(copy(&before, &after), (2, 0));
        assert!(!stale(&after, "named", 4).is_over);
        let again = begin(&after, "named", 5);
        assert!(again.is_resumed);
        assert_eq!(routes(&after, &node(1)), [again.proxy]);
        assert!(!begin(&after, "unnamed", 1).is_resumed);
        assert_eq!(routes(&after, &node(2)).len(), 1);
    }

    #[test]
    fn a_snapshot_of_a_stale_incarnation_brings_no_routes() {
        let (before, _) = table();
        for id in ["older", "over", "same", "unknown"] {
            let begun = begin(&before, id, 5);
            before.add_node(&node(1), begun.proxy).expect("there is room");
        }
        let (after, _) = table();
        begin(&after, "older", 6);
        after.remove_proxy(begin(&after, "over", 5).proxy);
        let same = begin(&after, "same", 5);
        assert_eq!(copy(&before, &after), (2, 2));
        let unknown = begin(&after, "unknown", 5);
        assert!(unknown.is_resumed);
        assert_eq!(
            routes(&after, &node(1)).into_iter().collect::<HashSet<_>>(),
            HashSet::from([same.proxy, unknown.proxy])
        );
        assert!(stale(&after, "over", 5).is_over);
        assert_eq!(after.stats().proxies, 3);
    }

    #[test]
    fn a_snapshot_of_a_later_incarnation_takes_over() {
        let (before, _) = table();
        let later = begin(&before, "proxy", 5);
        before.add_node(&node(1), later.proxy).expect("there is room");
        let (after, _) = table();
        let older = begin(&after, "proxy", 4);
        after.add_node(&node(2), older.proxy).expect("there is room");
        assert_eq!(copy(&before, &after), (1, 0));
        assert_eq!(routes(&after, &node(2)), []);
        assert_eq!(routes(&after, &node(1)), [begin(&after, "proxy", 5).proxy]);
        assert_eq!(stale(&after, "proxy", 4).latest, number(5));
    }
}

/// An operation on a table of three proxies and four nodes.
#[derive(Debug, Clone, Copy)]
enum Op {
    Begin { proxy: usize, incarnation: u64 },
    Report { node: u16, proxy: usize },
    Add { node: u16, which: usize },
    Remove { which: usize },
    Advance { millis: u64 },
    Sweep,
}

const IDS: [&str; 3] = ["proxy-1", "550e8400-e29b-41d4-a716-446655440000", "proxy-3"];
const NODES: u16 = 4;

fn any_op() -> impl Strategy<Value = Op> {
    let proxy = 0..IDS.len();
    let step = prop_oneof![1_u64..500, 59_998_u64..60_003, 1_u64..70_000];
    prop_oneof![
        6 => (proxy.clone(), 1_u64..6).prop_map(|(proxy, incarnation)| Op::Begin { proxy, incarnation }),
        3 => (0..NODES, proxy).prop_map(|(node, proxy)| Op::Report { node, proxy }),
        5 => (0..NODES, any::<usize>()).prop_map(|(node, which)| Op::Add { node, which }),
        2 => any::<usize>().prop_map(|which| Op::Remove { which }),
        3 => step.prop_map(|millis| Op::Advance { millis }),
        1 => Just(Op::Sweep),
    ]
}

/// The model's knowledge of a proxy's ID.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    registered: Option<ProxyRef>,
    /// The latest incarnation; when it ended, and whether by a removal.
    latest: Option<(u64, Option<(u64, bool)>)>,
}

/// The rules of [`RouteTable::begin_incarnation`], as plainly as can be.
#[derive(Debug, Default)]
struct Reference {
    now: u64,
    known: [Known; IDS.len()],
    /// Every reference that there ever was, and whose.
    refs: Vec<(ProxyRef, usize)>,
    /// When each route was refreshed.
    routes: HashMap<(u16, ProxyRef), u64>,
}

impl Reference {
    const INTERVAL: u64 = INTERVAL.as_millis() as u64;

    fn owner(&self, proxy: ProxyRef) -> Option<usize> {
        (0..IDS.len()).find(|&id| self.known[id].registered == Some(proxy))
    }

    fn registers(&mut self, id: usize, proxy: ProxyRef) -> Result<(), String> {
        ensure!(
            !self.refs.contains(&(proxy, id)) && self.refs.iter().all(|known| known.0 != proxy),
            "{proxy:?} was there before"
        );
        self.refs.push((proxy, id));
        self.known[id].registered = Some(proxy);
        Ok(())
    }

    fn check_begin(&mut self, id: usize, given: u64, result: Result<Incarnation, BeginError>) -> Result<(), String> {
        if let Some((_, Some((at, _)))) = self.known[id].latest
            && self.now - at > Self::INTERVAL
        {
            self.known[id].latest = None;
        }
        let Known { registered, latest } = self.known[id];
        let expected_stale = latest.and_then(|(latest, ended)| {
            let is_over = ended.is_some_and(|(_, removed)| removed);
            let stale = given < latest || given == latest && is_over;
            stale.then_some((number(given), number(latest), is_over))
        });
        if let Some(stale) = expected_stale {
            let is_expected = matches!(
                result,
                Err(BeginError::Stale(StaleIncarnation { incarnation, latest, is_over, .. }))
                    if (incarnation, latest, is_over) == stale
            );
            ensure!(is_expected, "expected {stale:?}, not {result:?}");
            return Ok(());
        }
        let begun = result.map_err(|error| error.to_string())?;
        let goes_on = latest.is_none_or(|(latest, _)| latest == given);
        match registered {
            Some(proxy) if goes_on => ensure!(begun.proxy == proxy, "{begun:?}, expected {proxy:?}"),
            _ => self.registers(id, begun.proxy)?,
        }
        let resumed = latest == Some((given, None));
        ensure!(begun.is_resumed == resumed, "{begun:?}, but resumed: {resumed}");
        self.known[id].latest = Some((given, None));
        Ok(())
    }

    fn removed(&mut self, id: usize) {
        self.known[id].registered = None;
        if let Some((_, ended @ None)) = &mut self.known[id].latest {
            *ended = Some((self.now, true));
        }
    }

    fn dropped(&mut self, id: usize) -> Result<(), String> {
        let proxy = self.known[id].registered.take();
        let used = self
            .routes
            .iter()
            .filter(|((_, by), _)| Some(*by) == proxy)
            .map(|(_, at)| at);
        ensure!(
            used.clone().all(|at| self.now - at > Self::INTERVAL),
            "{} was dropped with a route of {:?}",
            IDS[id],
            used.max()
        );
        if let Some((_, ended @ None)) = &mut self.known[id].latest {
            *ended = Some((self.now, false));
        }
        Ok(())
    }

    fn check_routes(&self, table: &RouteTable) -> Result<(), String> {
        for number in 0..NODES {
            let given: HashSet<_> = routes(table, &node(number)).into_iter().collect();
            let is_live = |by: ProxyRef, at: u64| self.owner(by).is_some() && self.now - at <= Self::INTERVAL;
            let of_node = self.routes.iter().filter(|((node, _), _)| *node == number);
            let expected: HashSet<_> = of_node
                .filter(|((_, by), at)| is_live(*by, **at))
                .map(|((_, by), _)| *by)
                .collect();
            ensure!(given == expected, "node {number} has {given:?}, expected {expected:?}");
        }
        for (id, known) in self.known.iter().enumerate() {
            let expected = known.registered.and(known.latest).filter(|(_, ended)| ended.is_none());
            let given = known.registered.and_then(|proxy| table.incarnation(proxy));
            ensure!(
                given == expected.map(|(latest, _)| number(latest)),
                "{} is of incarnation {given:?}, expected {expected:?}",
                IDS[id]
            );
        }
        Ok(())
    }
}

fn apply(table: &RouteTable, clock: &ManualClock, reference: &mut Reference, op: Op) -> Result<(), String> {
    let any_ref = |reference: &Reference, which: usize| {
        let count = reference.refs.len();
        (count > 0).then(|| reference.refs[which % count].0)
    };
    match op {
        Op::Begin { proxy: id, incarnation } => {
            let begun = table.begin_incarnation(&proxy(IDS[id]), number(incarnation));
            reference.check_begin(id, incarnation, begun)?;
        }
        Op::Report { node: at, proxy: id } => {
            table
                .report_node(&node(at), &proxy(IDS[id]))
                .map_err(|error| error.to_string())?;
            let by = table
                .register_proxy(&proxy(IDS[id]))
                .map_err(|error| error.to_string())?;
            match reference.known[id].registered {
                Some(expected) => ensure!(by == expected, "{by:?} took the place of {expected:?}"),
                None => reference.registers(id, by)?,
            }
            reference.routes.insert((at, by), reference.now);
        }
        Op::Add { node: at, which } => {
            let Some(by) = any_ref(reference, which) else {
                return Ok(());
            };
            let added = table.add_node(&node(at), by);
            match reference.owner(by) {
                Some(_) => {
                    added.map_err(|error| error.to_string())?;
                    reference.routes.insert((at, by), reference.now);
                }
                None => ensure!(added == Err(AddError::UnknownProxy), "{by:?} is gone: {added:?}"),
            }
        }
        Op::Remove { which } => {
            let Some(by) = any_ref(reference, which) else {
                return Ok(());
            };
            let owner = reference.owner(by);
            ensure!(
                table.remove_proxy(by) == owner.is_some(),
                "removing {by:?} of {owner:?}"
            );
            owner.into_iter().for_each(|id| reference.removed(id));
        }
        Op::Advance { millis } => {
            clock.advance(Duration::from_millis(millis));
            reference.now += millis;
        }
        Op::Sweep => {
            for _ in 0..2 {
                sweep_fully(table);
            }
            // When the sweeper drops a proxy depends on when other threads leave the table, so it is asked.
            for id in 0..IDS.len() {
                if let Some(by) = reference.known[id].registered
                    && table.proxy(by).is_none()
                {
                    reference.dropped(id)?;
                }
            }
        }
    }
    reference.check_routes(table)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: u32::try_from(512 * crate::common::scale()).expect("a moderate scale"),
        rng_seed: RngSeed::Fixed(crate::common::seed()),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn incarnations_equal_the_reference(ops in vec(any_op(), 1..120)) {
        let (table, clock) = table();
        let mut reference = Reference::default();
        for (step, op) in ops.into_iter().enumerate() {
            let result = apply(&table, &clock, &mut reference, op);
            let seed = crate::common::seed();
            prop_assert!(result.is_ok(), "step {step}, {op:?}: {result:?} (NODETRACKER_SEED={seed})");
        }
    }
}
