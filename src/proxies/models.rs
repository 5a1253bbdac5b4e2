//! loom models of a proxy number's life. Each has the name of the property that it shows; see `src/shard/models.rs`.
//!
//! Models that need a table with routes are in `src/verify/models.rs`. Threads that register or remove proxies wait for
//! the registry's lock here, too.

use loom::sync::Arc;
use loom::thread;

use crate::error::BeginError;
use crate::proxies::id::ProxyId;
use crate::proxies::register::ReportedDetails;
use crate::proxies::{Moment, Proxies, ProxyLimits};
use crate::sync::{epoch, pin};
use crate::types::proxy::{Proxy, ProxyRef};
use crate::verify::models::Seen;
use std::num::NonZeroU64;

struct World {
    proxies: Proxies,
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
            proxies: Proxies::new(ProxyLimits::of(6)),
        }
    }

    fn register(&self, id: &str) -> ProxyRef {
        self.proxies
            .register((&proxy(id)).into(), 0, &pin())
            .expect("there is room")
            .proxy
    }

    /// Like `RouteTable::begin_incarnation`.
    fn begin(&self, id: &str, incarnation: u64) -> Result<ProxyRef, BeginError> {
        let incarnation = NonZeroU64::new(incarnation).expect("not zero");
        let begun = self.proxies.begin(
            (&proxy(id)).into(),
            incarnation,
            ReportedDetails::Apply,
            Moment::new(0, 0),
            &pin(),
        );
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
}

/// Registering `new` replaces the map with a larger one, which leaves out the slot of a proxy that was removed.
/// Registering `last` changes the map in place. The reader meets either map, and slots in each state.
#[test]
fn a_proxy_is_found_while_the_map_of_ids_grows() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let old = world.register("old");
        // As many proxies as fit into the first array.
        let [b, _] = ["b", "c"].map(|id| world.register(id));
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                assert_eq!(world.find("old"), Some(old));
                let last = world.find("last");
                let guard = pin();
                let new = world.proxies.find("new", &guard);
                assert!(new.is_some() || last.is_none(), "it came before the last one");
                if let Some(new) = new {
                    let details = world.proxies.details(new, &guard).expect("it is registered");
                    assert_eq!((&*details.id, &*details.addr), ("new", "a:1"));
                }
                drop(guard);
                assert_eq!(world.find("old"), Some(old));
                assert!(world.find("b").is_none_or(|found| found == b));
                (new, last)
            }
        });
        assert!(world.proxies.remove(b, 0, &pin()));
        let (new, last) = (world.register("new"), world.register("last"));
        let found = reader.join().expect("it ends");
        assert!(found.0.is_none_or(|found| found == new) && found.1.is_none_or(|found| found == last));
        let ids = ["old", "b", "new", "last"].map(|id| world.find(id));
        assert_eq!(ids, [Some(old), None, Some(new), Some(last)]);
    });
}

/// Either thread may be late: it has read the tick before the other thread recorded a later tick, and records its own
/// after that.
#[test]
fn a_late_touch_takes_nothing_back() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let proxy = world.register("proxy");
        let threads = [[1_000, 4_000], [2_000, 3_000]].map(|ticks| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                for tick in ticks {
                    world.proxies.touch(proxy.number, tick);
                    let entry = world.proxies.numbers.get(proxy.number).expect("it is registered");
                    assert!(!entry.is_idle(tick), "it was used at tick {tick}");
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().expect("it ends"));
        let entry = world.proxies.numbers.get(proxy.number).expect("it is registered");
        assert!(!entry.is_idle(4_000), "it was used at tick 4000");
    });
}

/// Both sweepers find before the lock that the number can be freed. The second finds under the lock that the number is
/// free already.
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
        // The grace period and the round are over; the last grace period has begun.
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
        let limit = world.proxies.limit();
        assert_eq!(world.proxies.registry.lock().room(limit), limit - 2);
    });
}

/// The proxy is registered, and gets other details. One thread looks it up by its ID, another by its number.
#[test]
fn a_proxy_is_found_with_its_details() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let id = "550e8400-e29b-41d4-a716-446655440000";
        let finders = [true, false].map(|by_id| {
            let world = Arc::clone(&world);
            thread::spawn(move || {
                let guard = pin();
                let number = match by_id {
                    true => world.proxies.ids.find(ProxyId::of(id), &guard),
                    false => Some(0),
                };
                if let Some(proxy) = number.and_then(|number| world.proxies.reference(number)) {
                    let details = world.proxies.details(proxy, &guard).expect("nobody removes it");
                    assert_eq!(details.id, id);
                    assert!(["a:1", "b:1"].contains(&&*details.addr), "{details:?}");
                } else {
                    assert!(number.is_none() || !by_id, "an ID is found whose proxy is not");
                }
            })
        });
        let registered = world.register(id);
        let moved = Proxy {
            addr: "b:1",
            ..proxy(id)
        };
        let moved = world.proxies.register((&moved).into(), 0, &pin());
        assert_eq!(
            moved.map(|moved| (moved.proxy, moved.has_moved)),
            Ok((registered, true))
        );
        finders.into_iter().for_each(|finder| finder.join().expect("it ends"));
    });
}

/// The reader finds the older or the newer incarnation. When it finds the newer, no route of the older is returned.
#[test]
fn a_proxy_that_is_replaced_is_found() {
    let seen = Seen::default();
    let noted = seen.clone();
    epoch::check(3, move || {
        let world = Arc::new(World::new());
        let older = world.begin("proxy", 1).expect("it is the first one");
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || {
                let found = world.find("proxy").expect("it is registered all the while");
                let has_older = world.proxies.reference(older.number) == Some(older);
                assert!(found == older || !has_older, "both are registered");
                found
            }
        });
        let newer = world.begin("proxy", 2).expect("there is room");
        let found = reader.join().expect("it ends");
        assert!(found == older || found == newer);
        assert_eq!(world.find("proxy"), Some(newer));
        noted.note(found == newer);
    });
    seen.assert("the newer one was never found");
}

/// The reader may have an array of the map that was replaced by a larger array, which then has changed.
#[test]
fn a_proxy_that_is_replaced_is_found_while_the_map_of_ids_grows() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let older = world.begin("proxy", 1).expect("it is the first one");
        // As many proxies as fit into the first array.
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

/// The reader copies the part's slots before the takeover, or after it. Or the reader copies a slot with the older
/// number, and finds that the older incarnation has ended.
#[test]
fn a_part_has_a_proxy_that_is_replaced_once() {
    let seen = Seen::default();
    let noted = seen.clone();
    epoch::check(3, move || {
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
        noted.note(!reader.join().expect("it ends"));
    });
    seen.assert("the newer one was never found");
}

/// The ID gets another slot while the reader reads the slots: another ID takes its first slot.
#[test]
fn a_part_has_a_proxy_that_comes_back_at_most_once() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        // The sequences of both IDs start at the first slot.
        let begins = |id: &String| world.proxies.ids.hash(ProxyId::of(id)) >> 60 == 0;
        let mut ids = (0..).map(|number: u32| number.to_string()).filter(begins);
        let (id, other) = (ids.next().expect("an ID"), ids.next().expect("another ID"));
        let before = world.register(&id);
        let reader = thread::spawn({
            let (world, id) = (Arc::clone(&world), id.clone());
            move || {
                let guard = pin();
                let found = world.proxies.in_part(0, &guard);
                let id_of = |proxy| world.proxies.last_details(proxy, &guard).expect("it was registered").id;
                let of_id = found.iter().filter(|(_, proxy)| id_of(*proxy) == id);
                assert!(of_id.count() <= 1);
            }
        });
        assert!(world.proxies.remove(before, 0, &pin()));
        world.register(&other);
        world.register(&id);
        reader.join().expect("it ends");
    });
}

/// The registry's lock orders the takeovers, so few executions remain: both orders, and a look-up before, between and
/// after them.
#[test]
fn of_two_takeovers_the_greater_one_stays() {
    let seen = Seen::default();
    let noted = seen.clone();
    epoch::check(2, move || {
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
        noted.note(second.is_err());
    });
    seen.assert("the lesser one never came last");
}

/// Both orders under the registry's lock, with a look-up before, between and after them. A removal that comes last
/// finds that its incarnation has ended.
#[test]
fn of_a_takeover_and_a_removal_one_comes_last() {
    let seen = Seen::default();
    let noted = seen.clone();
    epoch::check(2, move || {
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
        noted.note(removed);
    });
    seen.assert("the removal never came first");
}

/// Neither thread finds the ID without the lock. The second finds the ID under the lock.
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
        assert_eq!(world.proxies.len(), 1);
        let others = world.proxies.limit() - 1;
        assert!(world.proxies.has_room(others, 0) && !world.proxies.has_room(others + 1, 0));
    });
}

/// The reader asks for the number itself, so it may read the life before the writer has put the ID into the map. Few
/// executions: the reader does nothing unless it reads the new life.
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
