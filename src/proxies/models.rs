//! loom models of a proxy number's life, named after the property that each shows; see `src/shard/models.rs`.
//!
//! What takes a table with routes is in `src/models.rs`.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::sync::{epoch, pin};

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
            proxies: Proxies::new(6),
        }
    }

    fn register(&self, id: &str) -> ProxyRef {
        self.proxies
            .register(&proxy(id), 0, &pin(), |_| ())
            .expect("there is room")
    }

    fn find(&self, id: &str) -> Option<ProxyRef> {
        self.proxies.find(id, &pin())
    }
}

/// The map is replaced by a larger one as `new` comes, which leaves out the slot of a proxy that was removed, and changed in
/// place as `last` comes. The reader meets either map, and slots in each state.
#[test]
fn a_proxy_is_found_while_the_map_of_ids_grows() {
    epoch::check(3, || {
        let world = Arc::new(World::new());
        let old = world.register("old");
        // As many as fit into the first array.
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

/// Either one may be late: it has looked before a later tick was noted, and notes its own after that.
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

/// The proxy comes, and moves. It is looked for by its ID, and by the number that it gets.
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
        let moved = world.proxies.register(&moved, 0, &pin(), |_| ());
        assert_eq!(moved, Ok(registered));
        finders.into_iter().for_each(|finder| finder.join().expect("it ends"));
    });
}
