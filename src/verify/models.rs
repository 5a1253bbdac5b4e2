//! loom models of a whole table whose proxies are removed and replaced. Each has the name of the property that it
//! shows; see `src/shard/models.rs`.
//!
//! Another proxy gets a number after `remove_proxy`, three rounds of the sweeper, and `register_proxy`. In each model
//! here one thread does that while another thread is inside a call with the removed proxy's reference. The call
//! precedes the removal, follows it, or its pin keeps the number from being reused. A call that unpinned between the
//! check of the proxy and the last use of the number would meet the other proxy. Only one thread registers, removes and
//! sweeps, unless the call also registers.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use loom::sync::Arc;
use loom::thread;
use uuid::Uuid;

use crate::sync::epoch;
use crate::{ManualClock, NodeId, Proxy, ProxyRef, RouteTable, Verdict};

/// A fact that must hold in at least one execution of a model.
#[derive(Clone, Default)]
pub(crate) struct Seen(std::sync::Arc<AtomicBool>);

impl Seen {
    pub(crate) fn note(&self, now: bool) {
        // Relaxed: one OS thread.
        self.0.fetch_or(now, Ordering::Relaxed);
    }

    pub(crate) fn assert(&self, otherwise: &str) {
        // Relaxed: one OS thread.
        assert!(self.0.load(Ordering::Relaxed), "{otherwise}");
    }
}

pub(crate) struct World {
    pub(crate) table: RouteTable,
    clock: ManualClock,
}

pub(crate) fn node() -> NodeId {
    Uuid::from_u128(1).into()
}

pub(crate) fn proxy(id: &str) -> Proxy<'_> {
    Proxy {
        id,
        cluster_name: "",
        addr: "10.0.0.1:1",
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new();
        let table = RouteTable::builder()
            .clock(clock.clone())
            .max_proxies(4)
            .build()
            .expect("possible limits");
        Self { table, clock }
    }

    pub(crate) fn register(&self, id: &str) -> ProxyRef {
        self.table.register_proxy(&proxy(id)).expect("there is room")
    }

    fn begin(&self, incarnation: u64) -> ProxyRef {
        let incarnation = NonZeroU64::new(incarnation).expect("not zero");
        let begun = self.table.begin_incarnation(&proxy("old"), incarnation);
        begun.expect("there is room").proxy
    }

    fn add(&self, proxy: ProxyRef) {
        self.table.add_node(&node(), proxy).expect("it is registered");
    }

    /// Leaves the node's record in the index without a route, so that an addition is one CAS.
    pub(crate) fn add_and_remove(&self, proxy: ProxyRef) {
        self.add(proxy);
        assert!(self.table.remove_node(&node()));
    }

    /// The proxies of the node's routes.
    fn proxies(&self) -> Vec<ProxyRef> {
        let routes = self.table.get_proxies(&node());
        routes.iter().map(|route| route.proxy).collect()
    }

    /// Gives another proxy the number of `old`, unless a pin prevents that.
    fn replace(&self, old: ProxyRef) -> ProxyRef {
        assert!(self.table.remove_proxy(old));
        for _ in 0..3 {
            assert!(self.table.sweep(100).round_completed);
        }
        let new = self.register("new");
        assert!(new != old, "a reference came back");
        new
    }
}

/// Runs `call` on its own thread with a proxy, while this thread gives the proxy's number to another proxy. `before`
/// prepares the table. Uses at most `preemptions` preemptions.
fn model<S: Send + 'static, R: Send + 'static>(
    preemptions: usize,
    before: impl Fn(&World, ProxyRef) -> S + Send + Sync + 'static,
    call: impl Fn(&World, ProxyRef, S) -> R + Copy + Send + Sync + 'static,
    replace: impl Fn(&World, ProxyRef) -> ProxyRef + Send + Sync + 'static,
    after: impl Fn(&World, ProxyRef, R) + Send + Sync + 'static,
) {
    let reused = Seen::default();
    let noted = reused.clone();
    epoch::check(preemptions, move || {
        epoch::order_unpins();
        epoch::switch_at_pins();
        let world = Arc::new(World::new());
        let old = world.register("old");
        let left = before(&world, old);
        let caller = thread::spawn({
            let world = Arc::clone(&world);
            move || call(&world, old, left)
        });
        let new = replace(&world, old);
        let result = caller.join().expect("it ends");
        after(&world, new, result);
        noted.note(new.number == old.number);
    });
    reused.assert("a number was never reused");
}

/// A [`model`] of a call that adds a route.
pub(crate) fn addition(
    preemptions: usize,
    before: impl Fn(&World, ProxyRef) + Send + Sync + 'static,
    call: impl Fn(&World, ProxyRef) + Copy + Send + Sync + 'static,
) {
    model(
        preemptions,
        before,
        move |world, old, ()| call(world, old),
        World::replace,
        |world, _, ()| {
            let routes = world.table.resolve(&node());
            assert!(
                routes.iter().all(|route| route.details.id == "old"),
                "a route of a removed proxy is another's"
            );
            let left = world.table.explain(&node()).len();
            assert_eq!(world.table.len(), left, "routes are miscounted");
        },
    );
}

#[test]
fn a_stalled_addition_never_becomes_another_proxys_route() {
    addition(3, World::add_and_remove, |world, old| {
        _ = world.table.add_node(&node(), old)
    });
}

#[test]
fn a_stalled_batch_of_additions_never_becomes_another_proxys_routes() {
    addition(3, World::add_and_remove, |world, old| {
        _ = world.table.add_nodes(&[node()], old)
    });
}

/// A report after the removal registers the proxy again, perhaps under the same number. It then takes the registry's
/// lock, so a third preemption would make the model seven times as large.
#[test]
fn a_stalled_report_never_becomes_another_proxys_route() {
    addition(2, World::add_and_remove, |world, _| {
        _ = world.table.report_node(&node(), &proxy("old"))
    });
}

/// The other proxy has its own route to the node, in the record that the handle names.
#[test]
fn a_stalled_refresh_never_refreshes_another_proxys_route() {
    model(
        3,
        |world, old| {
            let added = world.table.add_nodes_with_handles(&[node()], old);
            added.expect("it is registered").handles
        },
        |world, old, handles| _ = world.table.refresh_routes(&handles, old),
        |world, old| {
            let new = world.replace(old);
            world.add(new);
            world.clock.advance(Duration::from_secs(1));
            new
        },
        |world, new, ()| {
            let routes = world.table.explain(&node());
            let of_new = routes.iter().find(|route| route.verdict == Verdict::Returned);
            let of_new = of_new.expect("it was added");
            assert_eq!(of_new.age, Duration::from_secs(1), "{new:?} did not refresh it");
        },
    );
}

#[test]
fn a_stalled_removal_never_removes_another_proxys_route() {
    model(
        3,
        World::add_and_remove,
        |world, old, ()| _ = world.table.remove_route(&node(), old),
        |world, old| {
            let new = world.replace(old);
            world.add(new);
            new
        },
        |world, new, ()| assert_eq!(world.proxies(), [new]),
    );
}

/// A [`model`] of a call that returns the proxies of routes. The look-up reads a route first, and resolves its number
/// later.
fn look_up(
    before: impl Fn(&World, ProxyRef) + Send + Sync + 'static,
    call: impl Fn(&World) -> Vec<ProxyRef> + Copy + Send + Sync + 'static,
) {
    model(
        3,
        before,
        move |world, _, ()| call(world),
        World::replace,
        |_, new, found| assert!(!found.contains(&new), "{new:?} never had a route"),
    );
}

/// Two routes make a list, which is read on another path than a single route.
fn add_two(world: &World, old: ProxyRef) {
    world.add(old);
    world.add(world.register("other"));
}

fn batch(world: &World) -> Vec<ProxyRef> {
    let nodes = [node()];
    let routes = world.table.get_proxies_batch(&nodes).flatten();
    routes.map(|route| route.proxy).collect()
}

#[test]
fn a_stalled_look_up_never_finds_another_proxys_route() {
    look_up(World::add, World::proxies);
}

#[test]
fn a_stalled_look_up_of_a_list_never_finds_another_proxys_route() {
    look_up(add_two, World::proxies);
}

#[test]
fn a_stalled_batch_of_look_ups_never_finds_another_proxys_route() {
    look_up(World::add, batch);
}

#[test]
fn a_stalled_batch_of_look_ups_of_lists_never_finds_another_proxys_route() {
    look_up(add_two, batch);
}

#[test]
fn a_stalled_resolution_never_finds_another_proxy() {
    look_up(World::add, |world| {
        let routes = world.table.resolve(&node());
        routes.iter().map(|route| route.proxy).collect()
    });
}

#[test]
fn a_stalled_walk_never_finds_another_proxys_route() {
    look_up(World::add, |world| {
        let mut found = Vec::new();
        world.table.for_each_route(|_, route| found.push(route.proxy));
        found
    });
}

#[test]
fn a_stalled_explanation_never_names_another_proxy() {
    model(
        3,
        World::add,
        |world, _, ()| world.table.explain(&node()),
        World::replace,
        |_, _, routes| {
            let mut details = routes.iter().filter_map(|route| route.proxy.as_ref());
            assert!(details.all(|details| details.id == "old"), "{routes:?}");
        },
    );
}

/// An older incarnation's number is removed like a proxy's, and the third incarnation gets it.
#[test]
fn a_late_addition_of_an_older_incarnation_brings_no_route_back() {
    model(
        3,
        |world, old| {
            world.add_and_remove(old);
            let begun = world.begin(1);
            assert_eq!(begun, old, "it adopts the proxy");
        },
        |world, old, ()| _ = world.table.add_node(&node(), old),
        |world, old| {
            assert_ne!(world.begin(2), old, "a reference came back");
            for _ in 0..3 {
                assert!(world.table.sweep(100).round_completed);
            }
            world.begin(3)
        },
        |world, _, ()| assert_eq!(world.proxies(), []),
    );
}

#[test]
fn a_proxy_that_gets_a_route_is_not_dropped_as_idle() {
    let (added, dropped) = (Seen::default(), Seen::default());
    let noted = (added.clone(), dropped.clone());
    epoch::check(2, move || {
        epoch::order_unpins();
        let world = Arc::new(World::new());
        let proxy = world.register("proxy");
        world.add_and_remove(proxy);
        world.clock.advance(2 * world.table.keep_alive());
        let adder = thread::spawn({
            let world = Arc::clone(&world);
            move || world.table.add_node(&node(), proxy).is_ok()
        });
        // The sweeper finds the proxy idle, waits for a grace period, and then for a round without a route.
        for _ in 0..3 {
            assert!(world.table.sweep(100).round_completed);
        }
        let was_added = adder.join().expect("it ends");
        let routes = world.proxies();
        assert_eq!(
            routes,
            Vec::from_iter(was_added.then_some(proxy)),
            "what a proxy took is there"
        );
        noted.0.note(was_added);
        noted.1.note(!was_added);
    });
    added.assert("it was dropped each time");
    dropped.assert("it was never dropped");
}

/// The proxy gets another shared address and another cluster while its details are read. Another thread, with the old
/// details, sets them back. A third cluster is added, and gets the number of a former cluster when no thread reads that
/// number any more.
#[test]
fn a_proxys_details_are_read_whole_while_it_moves() {
    let details = |cluster_name, addr| Proxy {
        id: "proxy",
        cluster_name,
        addr,
    };
    let (one, two) = (details("one", "a:1"), details("two", "b:1"));
    epoch::check(3, move || {
        epoch::order_unpins();
        let world = Arc::new(World::new());
        let proxy = world.table.register_proxy(&one).expect("there is room");
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let read = world.table.proxy(proxy).expect("it is registered");
                let is_as = |proxy: Proxy<'_>| (proxy.cluster_name, proxy.addr) == (&read.cluster_name, &read.addr);
                assert!(is_as(one) || is_as(two), "{read:?}");
            }
        });
        let mover = thread::spawn({
            let world = Arc::clone(&world);
            move || assert_eq!(world.table.register_proxy(&one), Ok(proxy))
        });
        assert_eq!(world.table.register_proxy(&two), Ok(proxy));
        let third = Proxy {
            id: "third",
            ..details("three", "c:1")
        };
        world.table.register_proxy(&third).expect("there is room");
        reader.join().expect("it ends");
        mover.join().expect("it ends");
    });
}
