//! Threads that keep the reference of a removed proxy while its number becomes another proxy's.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::gate::Gate;
use crate::common::{proxy, scale, sweep_fully};
use nodetracker::{AddError, Added, AddedHandles, ManualClock, NodeId, ProxyRef, RouteHandle, RouteTable};

const HOLDERS: usize = 2;
/// How often a holder uses a reference after the next proxy has its number.
const LATE_TRIES: usize = 50;

/// The only proxy that the table has room for.
#[derive(Clone)]
struct Life {
    proxy: ProxyRef,
    /// Of the routes that it reported.
    handles: Vec<RouteHandle>,
}

/// Where the lives of the number are: `2 * life` while a proxy is registered, `2 * life + 1` once its removal has
/// returned.
struct Progress(AtomicUsize);

impl Progress {
    fn reach(&self, instant: usize) {
        // Release: pairs with `get`, so that a thread that sees a removal knows that the call has returned.
        self.0.store(instant, Ordering::Release);
    }

    fn get(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }
}

/// The number of a reference, which a later proxy may get.
fn number(proxy: ProxyRef) -> u32 {
    proxy.to_bits() as u32
}

/// A thread that holds a reference.
struct Holder {
    /// No other thread adds routes to these.
    nodes: [NodeId; 2],
    /// The node that each proxy reports itself.
    reported: NodeId,
}

impl Holder {
    /// Makes every call that takes a reference. `is_removed`: the removal of the proxy has returned before.
    fn use_reference(&self, table: &RouteTable, life: &Life, is_removed: bool) {
        let old = life.proxy;
        let refreshed = table.refresh_routes(&life.handles, old);
        let added = self.nodes.each_ref().map(|node| table.add_node(node, old));
        let batch = table.add_nodes(&self.nodes, old);
        let answers = self.nodes.each_ref().map(|node| table.get_proxies(node));
        if is_removed {
            assert_eq!(refreshed, Err(AddError::UnknownProxy));
            assert_eq!(added, [Err(AddError::UnknownProxy); 2]);
            assert_eq!(batch.map_err(|error| error.error), Err(AddError::UnknownProxy));
            assert_eq!(table.proxy(old), None);
            assert!(
                !table.remove_route(&self.reported, old),
                "a stranger's route was removed"
            );
            assert!(!table.remove_proxy(old), "a stranger was removed");
            for answer in answers {
                assert!(answer.is_empty(), "a stranger has the routes of {old:?}: {answer:?}");
            }
        } else {
            // The proxy may be removed at any moment. Later calls are then refused, and reach no other proxy's routes.
            for error in added
                .into_iter()
                .filter_map(Result::err)
                .chain(batch.err().map(|error| error.error))
            {
                assert_eq!(error, AddError::UnknownProxy);
            }
            for answer in answers {
                assert!(
                    answer.iter().all(|route| route.proxy == old),
                    "{answer:?} has a stranger to {old:?}"
                );
            }
        }
    }
}

/// A number goes from proxy to proxy. Threads use each proxy's reference before, during and after the removal, and when
/// the next proxy has the number. From the removal on, the table refuses the reference: the reference reaches no route
/// of the next proxy, and the next proxy gets none of the old routes.
#[test]
fn a_reference_never_reaches_the_next_proxy_of_its_number() {
    let lives = 40 * scale();
    let clock = ManualClock::new();
    let table = RouteTable::builder()
        .keep_alive(Duration::from_secs(3_600))
        .clock(clock)
        .max_proxies(1)
        .build()
        .expect("possible limits");
    let reported: NodeId = "reported".parse().expect("a name");
    let (progress, gate) = (Progress(AtomicUsize::new(0)), Gate::new(HOLDERS + 1));
    let current: Mutex<Option<Life>> = Mutex::new(None);
    let (table, reported, progress, gate, current) = (&table, &reported, &progress, &gate, &current);
    thread::scope(|scope| {
        for holder in 0..HOLDERS {
            scope.spawn(move || {
                let pass = gate.pass();
                let holder = Holder {
                    nodes: [0, 1].map(|i| format!("node-{holder}-{i}").parse().expect("a name")),
                    reported: reported.clone(),
                };
                for life in 0..lives {
                    pass.wait();
                    let mine = current.lock().expect("not poisoned").clone().expect("it is registered");
                    // Until the next proxy has the number, and for some more calls.
                    let mut late = 0;
                    while late < LATE_TRIES && !pass.is_broken() {
                        let before = progress.get();
                        holder.use_reference(table, &mine, before > 2 * life);
                        late += usize::from(before >= 2 * (life + 1));
                    }
                    assert!(late == LATE_TRIES, "another thread panicked");
                    pass.wait();
                }
            });
        }
        let pass = gate.pass();
        let mut refs: Vec<ProxyRef> = Vec::new();
        for life in 0..=lives {
            // The number is free after a grace period, which the holders may delay, and a full round after that. Until
            // then, the table has a few other numbers for new proxies.
            let registered = (0..1_000_000).find_map(|_| {
                sweep_fully(table);
                thread::yield_now();
                let new = table.register_proxy(&proxy(&format!("proxy-{life}"))).ok()?;
                let has_number = refs.last().is_none_or(|last| number(*last) == number(new));
                if !has_number {
                    assert!(table.remove_proxy(new));
                }
                has_number.then_some(new)
            });
            let new = registered.expect("the number was never free again");
            assert!(!refs.contains(&new), "{new:?} was handed out before");
            refs.push(new);
            let nodes = std::slice::from_ref(reported);
            let AddedHandles { added, handles, .. } =
                table.add_nodes_with_handles(nodes, new).expect("it is registered");
            assert_eq!(
                (added.inserted, added.refreshed),
                (1, 0),
                "the next proxy begins with a route"
            );
            // The holders now use the reference of the previous life. This proxy has the same number.
            progress.reach(2 * life);
            if life > 0 {
                pass.wait();
            }
            assert_eq!(table.len(), 1, "routes of an old reference are left");
            let routes = table.get_proxies(reported);
            assert_eq!(routes.iter().map(|route| route.proxy).collect::<Vec<_>>(), [new]);
            assert_eq!(table.add_node(reported, new), Ok(Added::Refreshed));
            if life < lives {
                *current.lock().expect("not poisoned") = Some(Life { proxy: new, handles });
                pass.wait();
                // Some lives end while the holders add, others when they have.
                (0..life % 7 * 10).for_each(|_| thread::yield_now());
                assert!(table.remove_proxy(new));
                progress.reach(2 * life + 1);
            }
        }
    });
}
