//! loom models of a proxy number's life, named after the property that each shows; see `src/shard/models.rs`.
//!
//! The table is one word here: a proxy number plus one, or zero. A round of the sweeper is a visit of that word, then three
//! of the proxies, as where three threads sweep. Threads that register or remove wait for each other as they do outside.

use std::sync::atomic::AtomicBool;

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::sync::{AtomicU32, AtomicU64, Ordering, epoch, pin};

struct World {
    proxies: Proxies,
    word: AtomicU64,
    /// The sweeper's round.
    round: AtomicU32,
}

fn proxy(id: &str) -> Proxy<'_> {
    Proxy {
        id,
        cluster_name: "",
        addr: "a:1",
    }
}

impl World {
    fn new() -> Self {
        Self {
            proxies: Proxies::new(4),
            word: AtomicU64::new(0),
            round: AtomicU32::new(1),
        }
    }

    fn register(&self, id: &str) -> ProxyRef {
        self.proxies
            .register(&proxy(id), 0, &pin(), |_| ())
            .expect("there is room")
    }

    /// As `RouteTable::begin_incarnation`.
    fn begin(&self, id: &str, incarnation: u64) -> Result<ProxyRef, BeginError> {
        let incarnation = NonZeroU64::new(incarnation).expect("not zero");
        let begun = self
            .proxies
            .begin(&proxy(id), incarnation, Some(|_| ()), Moment::new(0, 0), &pin());
        begun.map(|begun| begun.proxy)
    }

    fn find(&self, id: &str) -> Option<ProxyRef> {
        self.proxies.find(id, &pin())
    }

    /// The incarnation of the proxy that is registered under an ID.
    fn incarnation(&self, id: &str) -> Option<u64> {
        let guard = pin();
        let found = self.proxies.find(id, &guard)?;
        self.proxies.incarnation(found, &guard).map(NonZeroU64::get)
    }

    /// As `RouteTable::add_node`; tells whether the proxy took it.
    fn add(&self, proxy: ProxyRef) -> bool {
        let _guard = pin();
        let takes = self.proxies.takes_routes(proxy);
        if takes {
            self.word.store(u64::from(proxy.number) + 1, Ordering::Release);
        }
        takes
    }

    fn route(&self) -> Option<u32> {
        (self.word.load(Ordering::Acquire) as u32).checked_sub(1)
    }

    /// As `RouteTable::get_proxies`.
    fn look_up(&self) -> Option<ProxyRef> {
        let _guard = pin();
        let number = self.route()?;
        self.proxies.reference(number)
    }

    /// One round, at a tick at which every proxy is idle that has no route.
    fn sweep(&self) {
        let round = self.round.load(Ordering::Acquire);
        {
            let _guard = pin();
            let word = self.word.load(Ordering::Acquire);
            if let Some(number) = (word as u32).checked_sub(1) {
                if !self.proxies.census(round).see_valid(number, &self.proxies) {
                    _ = self.word.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Acquire);
                }
            }
        }
        let round_now = || self.round.fetch_add(0, Ordering::AcqRel);
        for _ in 0..3 {
            self.proxies
                .visit(0, 100, round, round_now, Moment::new(1 << 20, 0), &pin());
        }
        self.round.fetch_add(1, Ordering::AcqRel);
    }
}

/// Notes that some execution of a model came to what the model is about.
fn note(seen: &AtomicBool, now: bool) {
    // Relaxed: one OS thread.
    seen.fetch_or(now, Ordering::Relaxed);
}

fn assert_noted(seen: &AtomicBool, otherwise: &str) {
    // Relaxed: as above.
    assert!(seen.load(Ordering::Relaxed), "{otherwise}");
}

#[test]
fn a_stalled_addition_never_becomes_another_proxys_route() {
    static REUSED: AtomicBool = AtomicBool::new(false);
    epoch::check(3, || {
        epoch::order_unpins();
        let world = Arc::new(World::new());
        let old = world.register("old");
        let adder = thread::spawn({
            let world = Arc::clone(&world);
            move || world.add(old)
        });
        assert!(world.proxies.remove(old, 0, &pin()));
        for _ in 0..2 {
            world.sweep();
        }
        let new = world.register("new");
        let reused = new.number == old.number;
        assert!(new != old, "a reference came back");
        adder.join().expect("it ends");
        assert!(
            !reused || world.route() != Some(old.number),
            "a route of a removed proxy is another's"
        );
        note(&REUSED, reused);
    });
    assert_noted(&REUSED, "a number was never reused");
}

/// The look-up reads a route whose proxy was removed long ago, just before the sweeper takes it away, and only then asks who
/// the proxy is.
#[test]
fn a_stalled_look_up_never_finds_another_proxys_route() {
    static REUSED: AtomicBool = AtomicBool::new(false);
    epoch::check(3, || {
        epoch::order_unpins();
        let world = Arc::new(World::new());
        let old = world.register("old");
        assert!(world.add(old));
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || world.look_up()
        });
        assert!(world.proxies.remove(old, 0, &pin()));
        for _ in 0..2 {
            world.sweep();
        }
        let new = world.register("new");
        let found = reader.join().expect("it ends");
        assert!(found.is_none_or(|found| found == old), "{found:?} never had a route");
        note(&REUSED, new.number == old.number);
    });
    assert_noted(&REUSED, "a number was never reused");
}

#[test]
fn a_proxy_that_gets_a_route_is_not_dropped_as_idle() {
    epoch::check(3, || {
        epoch::order_unpins();
        let world = Arc::new(World::new());
        let proxy = world.register("old");
        let adder = thread::spawn({
            let world = Arc::clone(&world);
            move || world.add(proxy)
        });
        for _ in 0..3 {
            world.sweep();
        }
        let added = adder.join().expect("it ends");
        assert_eq!(
            world.route().is_some_and(|number| world.proxies.has(number)),
            added,
            "what a proxy took is there"
        );
    });
}

#[test]
fn a_proxy_is_found_while_the_map_of_ids_grows() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let old = world.register("old");
        // As many as fit into the first array.
        for id in ["b", "c"] {
            world.register(id);
        }
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let guard = pin();
                assert_eq!(world.proxies.find("old", &guard), Some(old));
                let new = world.proxies.find("new", &guard)?;
                let details = world.proxies.details(new, &guard).expect("it is registered");
                assert_eq!((&*details.id, &*details.addr), ("new", "a:1"));
                Some(new)
            }
        });
        let new = world.register("new");
        let found = reader.join().expect("it ends");
        assert!(found.is_none_or(|found| found == new));
        assert_eq!(world.proxies.find("new", &pin()), Some(new));
    });
}

#[test]
fn a_late_touch_takes_nothing_back() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let proxy = world.register("proxy");
        let threads = [1_000, 2_000].map(|tick| {
            let world = Arc::clone(&world);
            thread::spawn(move || world.proxies.touch(proxy.number, tick))
        });
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        let entry = world.proxies.numbers.get(proxy.number).expect("it is registered");
        assert!(!entry.is_idle(2_000), "it was used at tick 2000");
    });
}

#[test]
fn of_two_sweepers_one_frees_a_number() {
    epoch::check(3, || {
        epoch::order_unpins();
        let world = Arc::new(World::new());
        let old = world.register("old");
        assert!(world.proxies.remove(old, 0, &pin()));
        let visit = |world: &World, round: u32| {
            world
                .proxies
                .visit(0, 100, round, || round, Moment::new(1 << 20, 0), &pin());
        };
        // The grace period is over, and the round; the last grace period has begun.
        visit(&world, 1);
        visit(&world, 2);
        let sweepers = [(); 2].map(|()| {
            let world = Arc::clone(&world);
            thread::spawn(move || visit(&world, 2))
        });
        sweepers
            .into_iter()
            .for_each(|sweeper| sweeper.join().expect("it ends"));
        let (one, two) = (world.register("one"), world.register("two"));
        assert_ne!(one.number, two.number, "a number was freed twice");
        assert_eq!(world.proxies.room(), world.proxies.limit() - 2);
    });
}

#[test]
fn a_late_addition_of_an_older_incarnation_brings_no_route_back() {
    epoch::check(3, || {
        epoch::order_unpins();
        let world = Arc::new(World {
            proxies: Proxies::new(2),
            ..World::new()
        });
        let older = world.begin("proxy", 1).expect("it is the first one");
        let adder = thread::spawn({
            let world = Arc::clone(&world);
            move || world.add(older)
        });
        let newer = world.begin("proxy", 2).expect("there is room");
        assert!(newer != older, "a reference came back");
        for _ in 0..2 {
            world.sweep();
        }
        // It gets the first one's number, if that is free; otherwise there is no room.
        let newest = world.begin("proxy", 3);
        assert!(newest.is_ok_and(|newest| newest.number == older.number) || newest.is_err());
        adder.join().expect("it ends");
        assert!(
            !world.route().is_some_and(|number| world.proxies.has(number)),
            "a route of an older incarnation is there"
        );
    });
}

#[test]
fn a_proxy_is_found_with_its_details() {
    let model = |by_id: bool| {
        move || {
            let world = Arc::new(World::new());
            let id = "550e8400-e29b-41d4-a716-446655440000";
            let finder = thread::spawn({
                let world = Arc::clone(&world);
                move || {
                    let guard = pin();
                    let number = match by_id {
                        true => world.proxies.ids.find(ProxyId::of(id), &guard),
                        false => Some(0),
                    };
                    if let Some(proxy) = number.and_then(|number| world.proxies.reference(number)) {
                        let details = world.proxies.details(proxy, &guard).expect("nobody removes it");
                        assert_eq!((&*details.id, &*details.addr), (id, "a:1"));
                    } else {
                        assert!(number.is_none() || !by_id, "an ID is found whose proxy is not");
                    }
                }
            });
            world.register(id);
            finder.join().expect("it ends");
        }
    };
    epoch::check(3, model(false));
    epoch::check(3, model(true));
}

/// The reader finds the older or the newer one, and no route of the older one once it has found the newer one.
#[test]
fn a_proxy_that_is_replaced_is_found() {
    static REPLACED: AtomicBool = AtomicBool::new(false);
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let older = world.begin("proxy", 1).expect("it is the first one");
        assert!(world.add(older));
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let found = world.find("proxy").expect("it is registered all the while");
                let routes = world.look_up();
                assert!(found == older || routes.is_none(), "an older route with a newer proxy");
                found
            }
        });
        let newer = world.begin("proxy", 2).expect("there is room");
        let found = reader.join().expect("it ends");
        assert!(found == older || found == newer);
        assert_eq!(world.find("proxy"), Some(newer));
        note(&REPLACED, found == newer);
    });
    assert_noted(&REPLACED, "the newer one was never found");
}

/// The reader may have an array of the map that was replaced by a larger one, which then was changed.
#[test]
fn a_proxy_that_is_replaced_is_found_while_the_map_of_ids_grows() {
    epoch::check(3, || {
        let world = Arc::new(World {
            proxies: Proxies::new(5),
            ..World::new()
        });
        let older = world.begin("proxy", 1).expect("it is the first one");
        // As many as fit into the first array.
        world.register("b");
        world.register("c");
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || world.find("proxy").expect("it is registered all the while")
        });
        // The array grows, and has another number for the proxy.
        world.register("d");
        let newer = world.begin("proxy", 2).expect("there is room");
        let found = reader.join().expect("it ends");
        assert!(found == older || found == newer);
    });
}

#[test]
fn a_part_has_a_proxy_that_is_replaced_once() {
    static REPLACED: AtomicBool = AtomicBool::new(false);
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let older = world.begin("proxy", 1).expect("it is the first one");
        let other = world.register("other");
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let guard = pin();
                let found = world.proxies.in_part(0, &guard);
                let copy = |proxy: ProxyRef| {
                    let details = world.proxies.last_details(proxy, &guard).expect("it was registered");
                    let incarnation = world.proxies.last_incarnation(proxy, &guard);
                    (details.id, incarnation.map_or(0, NonZeroU64::get))
                };
                let mut copied: Vec<_> = found.iter().map(|(_, proxy)| copy(*proxy)).collect();
                copied.sort();
                let is_older = found.iter().any(|(_, proxy)| *proxy == older);
                assert!(found.iter().any(|(_, proxy)| *proxy == other));
                let incarnation = if is_older { 1 } else { 2 };
                assert_eq!(copied, [("other".into(), 0), ("proxy".into(), incarnation)]);
                is_older
            }
        });
        world.begin("proxy", 2).expect("there is room");
        note(&REPLACED, !reader.join().expect("it ends"));
    });
    assert_noted(&REPLACED, "the newer one was never found");
}

/// The ID gets another slot, or the same one, while the reader goes through them.
#[test]
fn a_part_has_a_proxy_that_comes_back_at_most_once() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let before = world.register("proxy");
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let guard = pin();
                let found = world.proxies.in_part(0, &guard);
                let id = |proxy| world.proxies.last_details(proxy, &guard).expect("it was registered").id;
                let of_id = found.iter().filter(|(_, proxy)| id(*proxy) == "proxy");
                assert!(of_id.count() <= 1);
            }
        });
        assert!(world.proxies.remove(before, 0, &pin()));
        world.register("other");
        world.register("proxy");
        reader.join().expect("it ends");
    });
}

#[test]
fn of_two_takeovers_the_greater_one_stays() {
    static STALE: AtomicBool = AtomicBool::new(false);
    epoch::check(2, || {
        let world = Arc::new(World::new());
        world.begin("proxy", 1).expect("it is the first one");
        let registrars = [2, 3].map(|incarnation| {
            let world = Arc::clone(&world);
            thread::spawn(move || world.begin("proxy", incarnation))
        });
        assert!(world.find("proxy").is_some(), "it is registered all the while");
        let [second, third] = registrars.map(|registrar| registrar.join().expect("it ends"));
        let third = third.expect("it is the greatest");
        assert_eq!(
            (world.find("proxy"), world.incarnation("proxy")),
            (Some(third), Some(3))
        );
        assert_eq!(world.proxies.len(), 1);
        note(&STALE, second.is_err());
    });
    assert_noted(&STALE, "the lesser one never came last");
}

#[test]
fn of_a_takeover_and_a_removal_one_comes_last() {
    static REMOVED: AtomicBool = AtomicBool::new(false);
    epoch::check(2, || {
        let world = Arc::new(World::new());
        let older = world.begin("proxy", 1).expect("it is the first one");
        let remover = thread::spawn({
            let world = Arc::clone(&world);
            move || world.proxies.remove(older, 0, &pin())
        });
        let registrar = thread::spawn({
            let world = Arc::clone(&world);
            move || world.begin("proxy", 2).expect("there is room")
        });
        let found = world.find("proxy");
        let (removed, newer) = (remover.join().expect("it ends"), registrar.join().expect("it ends"));
        assert!(found.is_none_or(|found| found == older || found == newer));
        assert!(found.is_some() || removed, "it was registered all the while");
        assert_eq!(
            (world.find("proxy"), world.incarnation("proxy")),
            (Some(newer), Some(2))
        );
        assert_eq!(world.proxies.len(), 1);
        note(&REMOVED, removed);
    });
    assert_noted(&REMOVED, "the removal never came first");
}

#[test]
fn of_two_registrations_of_an_id_both_have_one_number() {
    epoch::check(2, || {
        let world = Arc::new(World::new());
        let registrars = ["proxy"; 2].map(|id| {
            let world = Arc::clone(&world);
            thread::spawn(move || world.register(id))
        });
        let found = world.find("proxy");
        let [one, two] = registrars.map(|registrar| registrar.join().expect("it ends"));
        assert_eq!(one, two);
        assert!(found.is_none_or(|found| found == one));
        assert_eq!(
            (world.proxies.len(), world.proxies.room()),
            (1, world.proxies.limit() - 1)
        );
    });
}

#[test]
fn a_proxy_is_found_with_its_incarnation() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let finder = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let guard = pin();
                if let Some(proxy) = world.proxies.reference(0) {
                    let incarnation = world.proxies.incarnation(proxy, &guard);
                    assert_eq!(incarnation.map(NonZeroU64::get), Some(7), "nobody removes it");
                }
            }
        });
        world.begin("proxy", 7).expect("it is the first one");
        finder.join().expect("it ends");
    });
}
