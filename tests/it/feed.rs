//! The change feed, and `explain`.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::Duration;

use nodetracker::{Event, LostChanges, NodeId, Proxy, ProxyRef, Reason, RouteTable, Verdict};

fn register(table: &RouteTable, id: &str) -> ProxyRef {
    let proxy = Proxy {
        id,
        cluster_name: "main",
        addr: "10.0.0.1:3080",
    };
    table.register_proxy(&proxy).expect("there is room")
}

fn events(subscription: &mut nodetracker::Subscription<'_>) -> Vec<Event> {
    let mut events = Vec::new();
    subscription
        .drain_events(usize::MAX, |event| events.push(event.clone()))
        .expect("nothing was lost");
    events
}

#[test]
fn each_change_of_a_node_is_told_once_and_refreshes_are_not() {
    let (table, clock) = crate::common::table(Duration::from_secs(10));
    let [one, two] = ["proxy-1", "proxy-2"].map(|id| register(&table, id));
    let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse().expect("a node ID");
    let name: NodeId = "node-1".parse().expect("a node ID");
    table.add_node(&node, one).expect("there is room");

    let mut subscription = table.subscribe();
    assert_eq!(events(&mut subscription), [], "what was before is no event");
    let is = |node: &NodeId, reason| Event::Node {
        node: node.clone(),
        reason,
    };
    table.add_node(&node, one).expect("there is room");
    assert_eq!(events(&mut subscription), []);
    table.add_node(&node, two).expect("there is room");
    assert_eq!(events(&mut subscription), [is(&node, Reason::Added)]);
    table.add_node(&name, two).expect("there is room");
    assert_eq!(events(&mut subscription), [is(&name, Reason::Added)]);
    assert!(table.remove_route(&node, one));
    assert!(!table.remove_route(&node, one));
    assert!(table.remove_node(&name));
    assert!(!table.remove_node(&name));
    assert_eq!(
        events(&mut subscription),
        [is(&node, Reason::Removed), is(&name, Reason::Removed)]
    );
    clock.advance(Duration::from_secs(11));
    crate::common::sweep_fully(&table);
    assert_eq!(events(&mut subscription), [is(&node, Reason::Expired)]);
    assert!(table.remove_proxy(two));
    let id = "proxy-2".into();
    assert_eq!(events(&mut subscription), [Event::ProxyRemoved { proxy: two, id }]);
}

/// A waker that registers a proxy, which takes the registry's lock.
struct Register(Arc<RouteTable>);

impl Wake for Register {
    fn wake(self: Arc<Self>) {
        register(&self.0, "proxy-of-the-waker");
    }
}

/// Each call changes a proxy under the registry's lock, and wakes the subscriber after the lock is released.
#[test]
fn a_waker_may_take_the_registrys_lock() {
    fn moved(id: &str) -> Proxy<'_> {
        Proxy {
            id,
            cluster_name: "main",
            addr: "10.0.0.2:3080",
        }
    }
    let begin = |table: &RouteTable, incarnation| {
        let incarnation = NonZeroU64::new(incarnation).expect("not zero");
        let begun = table.begin_incarnation(&moved("proxy-2"), incarnation);
        begun.expect("there is room").proxy
    };
    let remove = |table: &RouteTable, proxy| assert!(table.remove_proxy(proxy));
    let register_moved = |table: &RouteTable| _ = table.register_proxy(&moved("proxy-1")).expect("there is room");
    type Call = Box<dyn Fn(&RouteTable) + Send>;
    let calls: [(&str, Call); 4] = [
        ("a proxy moves", Box::new(register_moved)),
        ("an incarnation moves", Box::new(move |table| _ = begin(table, 1))),
        ("an incarnation is replaced", Box::new(move |table| _ = begin(table, 2))),
        (
            "a proxy is removed",
            Box::new(move |table| remove(table, register(table, "proxy-1"))),
        ),
    ];
    for (what, call) in calls {
        let table = Arc::new(RouteTable::new());
        register(&table, "proxy-1");
        let first = Proxy {
            addr: "10.0.0.1:3080",
            ..moved("proxy-2")
        };
        table.begin_incarnation(&first, NonZeroU64::MIN).expect("there is room");
        let mut subscription = table.subscribe();
        assert_eq!(events(&mut subscription), []);
        let waker = Waker::from(Arc::new(Register(Arc::clone(&table))));
        assert!(subscription.poll_ready(&mut Context::from_waker(&waker)).is_pending());
        let (ended, has_ended) = mpsc::channel();
        // Not scoped: if the call hangs, the test must end.
        let caller = Arc::clone(&table);
        thread::spawn(move || {
            call(&caller);
            ended.send(()).expect("the test waits");
        });
        let has_ended = has_ended.recv_timeout(Duration::from_secs(20));
        assert!(has_ended.is_ok(), "{what}: the call waits for its own lock");
        assert!(
            table.find_proxy("proxy-of-the-waker").is_some(),
            "{what}: nobody was woken"
        );
    }
}

/// Many refreshes within a tick replace the list of a node's routes, and leave out stale routes: before the sweeper
/// comes, so the sweeper reports nothing.
#[test]
fn a_refresh_that_removes_a_stale_route_is_an_event() {
    let (table, clock) = crate::common::table(Duration::from_secs(10));
    let proxies = ["proxy-1", "proxy-2", "proxy-3"].map(|id| register(&table, id));
    let node: NodeId = "node-1".parse().expect("a node ID");
    for proxy in proxies {
        table.add_node(&node, proxy).expect("there is room");
    }
    let mut subscription = table.subscribe();
    clock.advance(Duration::from_secs(6));
    table.add_node(&node, proxies[1]).expect("there is room");
    table.add_node(&node, proxies[2]).expect("there is room");
    assert_eq!(events(&mut subscription), [], "all are there");
    clock.advance(Duration::from_secs(6));
    table.add_node(&node, proxies[2]).expect("there is room");
    assert_eq!(events(&mut subscription), [], "a refresh in place takes nothing away");
    // Refresh in turn, until the list has no rank left for the latest refresh.
    for nth in 0..7 {
        table.add_node(&node, proxies[1 + nth % 2]).expect("there is room");
    }
    let expired = Event::Node {
        node: node.clone(),
        reason: Reason::Expired,
    };
    assert_eq!(events(&mut subscription), [expired]);
    crate::common::sweep_fully(&table);
    assert_eq!(events(&mut subscription), [], "the event comes once");
}

#[test]
fn a_subscriber_that_is_too_slow_gets_an_error_and_continues() {
    let table = RouteTable::new();
    let proxy = register(&table, "proxy-1");
    let node: NodeId = "node-1".parse().expect("a node ID");
    let mut slow = table.subscribe();
    for _ in 0..10_000 {
        table.add_node(&node, proxy).expect("there is room");
        table.remove_node(&node);
    }
    let lagged = slow
        .drain_events(10, |event| panic!("{event:?} after a gap"))
        .unwrap_err();
    assert_eq!(lagged.lost, LostChanges::OfPart(table.part_of(&node)));
    assert_eq!(events(&mut slow), []);
    table.add_node(&node, proxy).expect("there is room");
    assert_eq!(
        events(&mut slow),
        [Event::Node {
            node,
            reason: Reason::Added
        }]
    );
}

/// The changes of one node are in one ring, which has 512.
#[test]
fn a_subscriber_that_lags_loses_its_place_and_others_do_not() {
    let table = RouteTable::new();
    let proxy = register(&table, "proxy-1");
    let [busy, other] = ["node-1", "node-2"].map(|node| node.parse::<NodeId>().expect("a node ID"));
    let [mut early, mut late, mut fast] = [(); 3].map(|()| table.subscribe());
    let change = |times| {
        for _ in 0..times {
            if !table.remove_node(&busy) {
                table.add_node(&busy, proxy).expect("there is room");
            }
        }
    };
    change(1);
    assert_eq!(early.drain_events(9, |_| ()), Ok(1));
    change(511);
    assert_eq!(fast.drain_events(usize::MAX, |_| ()), Ok(512));
    assert_eq!(late.drain_events(1, |_| ()), Ok(1), "512 changes are kept");
    table.add_node(&other, proxy).expect("there is room");
    change(2);
    // Of the 513 changes after the first change, one is lost. The change of the other node is not.
    for subscription in [&mut late, &mut early] {
        let mut taken = Vec::new();
        let lost = LostChanges::OfPart(table.part_of(&busy));
        let mut drain = || subscription.drain_events(usize::MAX, |event| taken.push(event.clone()));
        assert_eq!(drain().unwrap_err().lost, lost);
        drain().expect("no other part has lost changes");
        let (node, reason) = (other.clone(), Reason::Added);
        assert_eq!(taken, [Event::Node { node, reason }]);
    }
    assert_eq!(fast.drain_events(usize::MAX, |_| ()), Ok(3));
    for _ in 0..3 {
        // The subscribers have taken the latest change of each ring, and see the next change, idle or not.
        for subscription in [&mut early, &mut late, &mut fast] {
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
        }
        change(1);
        for subscription in [&mut early, &mut late, &mut fast] {
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(1));
        }
    }
}

/// What writers do for subscribers: each change is marked once, however many there are.
#[test]
fn a_thousand_subscriptions_cost_writers_what_one_does() {
    const KEEP_ALIVE: Duration = Duration::from_secs(10);
    let (table, clock) = crate::common::table(KEEP_ALIVE);
    let nodes: Vec<NodeId> = (0..1000).map(crate::common::ops::node).collect();
    // A thousand each of additions, refreshes, removals and expiries, and a few of everything else.
    let work = || {
        let before = table.marked_changes();
        let proxy = register(&table, "proxy-1");
        let by_handle = |handles: &[_]| table.refresh_routes(handles, proxy);
        let mut handles = Vec::new();
        for _ in 0..2 {
            let added = table.add_nodes_with_handles(&nodes, proxy);
            handles.extend(added.expect("there is room").handles);
        }
        by_handle(&handles).expect("the proxy is there");
        for node in &nodes {
            table.remove_node(node);
            table.add_node(node, proxy).expect("there is room");
        }
        clock.advance(KEEP_ALIVE + Duration::from_millis(1));
        crate::common::sweep_fully(&table);
        assert_eq!(table.len(), 0);
        let elsewhere = Proxy {
            id: "proxy-1",
            cluster_name: "main",
            addr: "10.0.0.2:3080",
        };
        table.report_node(&nodes[0], &elsewhere).expect("there is room");
        table.remove_proxy(proxy);
        table.marked_changes() - before
    };
    assert_eq!(work(), 0, "nobody follows");
    let first = table.subscribe();
    // Added, removed, added again and expired; then moved, added and the proxy removed; and what it leaves behind is
    // swept.
    crate::common::sweep_fully(&table);
    let for_one = work();
    assert_eq!(for_one, 4 * 1000 + 3);
    let _others: Vec<_> = (1..1000).map(|_| table.subscribe()).collect();
    assert_eq!(table.subscriptions(), 1000);
    crate::common::sweep_fully(&table);
    assert_eq!(work(), for_one);
    drop(first);
}

#[test]
fn one_poll_takes_no_more_than_it_was_asked_for() {
    let table = RouteTable::new();
    let proxy = register(&table, "proxy-1");
    let mut subscription = table.subscribe();
    for number in 0..100 {
        table
            .add_node(&format!("node-{number}").parse().expect("a node ID"), proxy)
            .expect("there is room");
    }
    let mut left = 100;
    while left > 0 {
        let taken = subscription.drain_events(7, |_| ()).expect("nothing was lost");
        assert_eq!(taken, left.min(7));
        left -= taken;
    }
    assert_eq!(subscription.drain_events(7, |_| ()), Ok(0));
}

/// Each shard has a ring of its own, so one node's changes keep one ring busy.
#[test]
fn a_busy_node_does_not_keep_the_changes_of_others_from_a_subscriber() {
    let table = RouteTable::new();
    let proxy = register(&table, "proxy-1");
    let nodes: Vec<NodeId> = (0..100).map(crate::common::ops::node).collect();
    let mut subscription = table.subscribe();
    for quiet in &nodes[1..] {
        table.add_node(quiet, proxy).expect("there is room");
    }
    let mut named = HashSet::new();
    // The busy node has one change for each poll of one.
    for round in 0..1000 {
        if round % 2 == 0 {
            table.add_node(&nodes[0], proxy).expect("there is room");
        } else {
            table.remove_node(&nodes[0]);
        }
        let polled = subscription.drain_events(1, |event| match event {
            Event::Node { node, .. } => _ = named.insert(node.clone()),
            event => panic!("{event:?}"),
        });
        assert_eq!(polled, Ok(1), "no ring overflows in this time");
        if named.len() == nodes.len() {
            return;
        }
    }
    panic!("{} of {} nodes were named", named.len(), nodes.len());
}

/// A follower that reads each node that is named ends with the content of the table, however threads change the table
/// meanwhile.
#[test]
fn a_follower_ends_with_what_the_table_holds() {
    let seed = crate::common::seed();
    println!("NODETRACKER_SEED={seed}");
    let table = RouteTable::new();
    let proxies: Vec<_> = (0..4)
        .map(|number| register(&table, &format!("proxy-{number}")))
        .collect();
    let nodes: Vec<NodeId> = (0..50).map(crate::common::ops::node).collect();
    let done = AtomicBool::new(false);
    let mut mirror: HashMap<NodeId, Vec<ProxyRef>> = HashMap::new();
    let look_up = |node: &NodeId| {
        let mut proxies: Vec<_> = table.get_proxies(node).iter().map(|route| route.proxy).collect();
        proxies.sort();
        proxies
    };
    std::thread::scope(|scope| {
        let (table, proxies, nodes, done) = (&table, &proxies, &nodes, &done);
        let mut subscription = table.subscribe();
        let writers: Vec<_> = (0..3_u64)
            .map(|thread| {
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed ^ thread);
                    for _ in 0..20_000 * crate::common::scale() {
                        let node = &nodes[random.usize(..nodes.len())];
                        let proxy = proxies[random.usize(..proxies.len())];
                        match random.u8(..4) {
                            0 => _ = table.remove_node(node),
                            1 => _ = table.remove_route(node, proxy),
                            _ => _ = table.add_node(node, proxy).expect("there is room"),
                        }
                    }
                })
            })
            .collect();
        scope.spawn(move || {
            writers.into_iter().for_each(|writer| writer.join().expect("it ends"));
            done.store(true, Ordering::Release);
        });
        loop {
            // Before the poll: the poll sees every earlier change.
            let last = done.load(Ordering::Acquire);
            let polled = subscription.drain_events(usize::MAX, |event| match event {
                Event::Node { node, .. } => _ = mirror.insert(node.clone(), look_up(node)),
                event => panic!("{event:?}"),
            });
            if polled.is_err() {
                mirror = nodes.iter().map(|node| (node.clone(), look_up(node))).collect();
            }
            if last && polled == Ok(0) {
                break;
            }
        }
    });
    for node in &nodes {
        assert_eq!(mirror.get(node).cloned().unwrap_or_default(), look_up(node), "{node}");
    }
}

#[test]
fn explain_tells_why_a_route_is_not_returned() {
    let (table, clock) = crate::common::table(Duration::from_secs(10));
    let [old, new, removed] = ["old", "new", "removed"].map(|id| register(&table, id));
    let node: NodeId = "node-1".parse().expect("a node ID");
    assert_eq!(table.explain(&node), []);
    // Together, since an addition removes expired routes.
    for proxy in [old, removed, new] {
        table.add_node(&node, proxy).expect("there is room");
    }
    clock.advance(Duration::from_secs(8));
    table.add_node(&node, new).expect("there is room");
    clock.advance(Duration::from_secs(3));
    assert!(table.remove_proxy(removed));

    let explained = table.explain(&node);
    let reported: Vec<_> = explained
        .iter()
        .map(|route| {
            (
                route.proxy.as_ref().map(|proxy| proxy.id()),
                route.age.as_secs(),
                route.verdict,
            )
        })
        .collect();
    assert_eq!(
        reported,
        [
            (Some("new"), 3, Verdict::Returned),
            (None, 11, Verdict::ProxyRemoved),
            (Some("old"), 11, Verdict::Expired),
        ]
    );
    assert_eq!(table.get_proxies(&node).len(), 1);
    table.set_keep_alive(Duration::from_secs(20));
    crate::common::wait_until(|| table.get_proxies(&node).len() == 2);
    assert_eq!(table.explain(&node)[2].verdict, Verdict::Returned);
    assert_eq!(table.get_proxies(&node).len(), 2);
}
