//! Many threads on one table. Each thread compares its own nodes with a model, and all check the shared nodes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crate::common::gate::{Gate, Pass};
use crate::common::model::{Routes, millis};
use crate::common::ops::node;
use crate::common::{check_answer, ensure, proxy, scale, seed, sweep_fully};
use fastrand::Rng;
use nodetracker::{AddError, Added, Clock, ManualClock, NodeId, Proxy, ProxyRef, RouteTable};

const WORKERS: usize = 4;
/// The keep-alive interval in milliseconds.
const INTERVAL: u64 = 50;
const KEEP_ALIVE: Duration = Duration::from_millis(INTERVAL);

/// Panics with the finding of a check, and the command that repeats the run.
fn expect(result: Result<(), String>) {
    if let Err(message) = result {
        panic!("{message} (NODETRACKER_SEED={})", seed());
    }
}

/// A table under test and the clock that it reads.
struct Arena {
    table: RouteTable,
    clock: ManualClock,
    /// Workers that have not finished. The other threads continue until no worker is left.
    working: AtomicUsize,
}

impl Arena {
    fn new() -> Self {
        let (table, clock) = crate::common::table(KEEP_ALIVE);
        Self {
            table,
            clock,
            working: AtomicUsize::new(WORKERS),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.monotonic().as_millis()).expect("a reading in range")
    }

    fn finish_work(&self) {
        // Relaxed: a count alone.
        self.working.fetch_sub(1, Ordering::Relaxed);
    }

    /// Repeats something until the workers have finished, or until a thread panics.
    fn while_working(&self, pass: &Pass<'_>, mut step: impl FnMut()) {
        // Relaxed: a count alone.
        while self.working.load(Ordering::Relaxed) > 0 && !pass.is_broken() {
            step();
        }
    }

    /// Registers a proxy with an address drawn at random; its reference stays the same.
    fn register(&self, id: &str, rng: &mut Rng) -> ProxyRef {
        let addr = format!("192.0.2.{}:3080", rng.u8(..));
        self.table
            .register_proxy(&Proxy {
                addr: &addr,
                ..proxy(id)
            })
            .expect("registers")
    }

    /// Registers, uses and removes a proxy that no other thread knows, and returns its stale reference.
    fn churn(&self, id: &str, node: &NodeId) -> Result<ProxyRef, String> {
        let table = &self.table;
        let since = self.now();
        let proxy = table.register_proxy(&proxy(id)).expect("registers");
        // If this thread stood still for an interval before it used the proxy, a sweep may have dropped the proxy.
        let perhaps_dropped = || self.now() - since > INTERVAL;
        match table.add_node(node, proxy) {
            Ok(Added::Inserted) => ensure!(table.remove_proxy(proxy) || perhaps_dropped(), "{proxy:?} is not there"),
            Err(AddError::UnknownProxy) if perhaps_dropped() => {}
            unexpected => return Err(format!("a new proxy's route: {unexpected:?}")),
        }
        ensure!(!table.remove_proxy(proxy), "a proxy was removed twice");
        ensure!(table.proxy(proxy).is_none(), "a removed proxy has details");
        let added = table.add_node(node, proxy);
        ensure!(
            added == Err(AddError::UnknownProxy),
            "a route of a removed proxy: {added:?}"
        );
        ensure!(
            !table.remove_route(node, proxy),
            "a removed proxy's route was there to remove"
        );
        ensure!(
            table.get_proxies(node).iter().all(|route| route.proxy != proxy),
            "a removed proxy was answered"
        );
        Ok(proxy)
    }
}

// --- nodes of one thread's own

const PHASES: usize = 16;
const NODES_PER_WORKER: u16 = 400;
const PROXIES: usize = 80;

/// A thread that alone uses its nodes, and so knows every answer in advance.
struct Owner<'a> {
    arena: &'a Arena,
    proxies: Vec<ProxyRef>,
    nodes: Vec<NodeId>,
    /// Nodes that keep every proxy from becoming idle.
    anchors: [NodeId; 2],
    model: Routes,
    rng: Rng,
}

impl Owner<'_> {
    /// Everything that happens between two steps of the clock.
    fn phase(&mut self, operations: usize) -> Result<(), String> {
        let now = self.arena.now();
        for index in 0..PROXIES {
            self.add(&self.anchors[index / 64].clone(), self.proxies[index], now)?;
        }
        for _ in 0..operations {
            self.operation(now)?;
        }
        self.nodes.iter().try_for_each(|node| self.compare(node, now))
    }

    fn operation(&mut self, now: u64) -> Result<(), String> {
        // A few nodes get much of the work, through all proxies, and are seldom removed: they have up to 64 routes.
        let crowded = self.rng.u8(..3) == 0;
        let node = self.nodes[self.rng.usize(..if crowded { 3 } else { self.nodes.len() })].clone();
        let any_proxy = crowded || self.rng.bool();
        let index = self.rng.usize(..if any_proxy { PROXIES } else { 3 });
        let proxy = self.proxies[index];
        let table = &self.arena.table;
        match self.rng.u32(..100) {
            0..60 => self.add(&node, proxy, now),
            60..85 => self.compare(&node, now),
            85..95 => {
                let (removed, expected) = (table.remove_route(&node, proxy), self.model.remove(&node, proxy, now));
                ensure!(
                    removed == expected,
                    "removing a route of {node} gave {removed}, expected {expected}"
                );
                Ok(())
            }
            95..98 if !crowded || self.rng.u8(..) == 0 => {
                let (removed, routes) = (table.remove_node(&node), self.model.remove_node(&node, now));
                ensure!(
                    removed != routes.is_empty(),
                    "removing {node} gave {removed}, it had {routes:?}"
                );
                Ok(())
            }
            _ => {
                let again = self.arena.register(&format!("proxy-{index}"), &mut self.rng);
                ensure!(again == proxy, "registered again, {proxy:?} is {again:?}");
                Ok(())
            }
        }
    }

    fn add(&mut self, node: &NodeId, proxy: ProxyRef, now: u64) -> Result<(), String> {
        let (added, expected) = (
            self.arena.table.add_node(node, proxy),
            Ok(self.model.add(node, proxy, now).0),
        );
        ensure!(
            added == expected,
            "adding a route to {node} gave {added:?}, expected {expected:?}"
        );
        Ok(())
    }

    fn compare(&self, node: &NodeId, now: u64) -> Result<(), String> {
        let answer = self.arena.table.get_proxies(node);
        let answer: Vec<_> = answer
            .iter()
            .map(|route| (route.proxy, millis(route.last_refresh)))
            .collect();
        let expected = self.model.get(node, now);
        ensure!(
            answer == expected,
            "{node} has {answer:?} at {now}, expected {expected:?}"
        );
        Ok(())
    }
}

/// After every phase, each thread's nodes equal its model, while other threads, a sweeper and short-lived proxies work.
/// In the end, the table counts as many routes as the models together.
#[test]
fn each_threads_nodes_equal_its_model() {
    let operations = 80_000 * scale();
    let arena = Arena::new();
    let workers = Gate::new(WORKERS);
    let all = Gate::new(WORKERS + 2);
    let models = Mutex::new(Vec::new());
    let registered: OnceLock<Vec<ProxyRef>> = OnceLock::new();
    let (arena, workers, all, models, registered) = (&arena, &workers, &all, &models, &registered);
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                let (all, pass) = (all.pass(), workers.pass());
                let mut rng = Rng::with_seed(seed() ^ (worker as u64) << 32);
                all.wait();
                // All at once register the same proxies, each in an order of its own.
                let mut order: Vec<usize> = (0..PROXIES).collect();
                rng.shuffle(&mut order);
                let refs = order
                    .into_iter()
                    .map(|i| (i, arena.register(&format!("proxy-{i}"), &mut rng)));
                let mut refs: Vec<(usize, ProxyRef)> = refs.collect();
                refs.sort_unstable();
                let proxies: Vec<ProxyRef> = refs.into_iter().map(|(_, proxy)| proxy).collect();
                assert_eq!(
                    &proxies,
                    registered.get_or_init(|| proxies.clone()),
                    "one proxy has two references"
                );

                let first = u16::try_from(worker).expect("few workers") * (NODES_PER_WORKER + 2);
                let nodes = (first..first + NODES_PER_WORKER).map(node).collect();
                let anchors = [0, 1].map(|i| node(first + NODES_PER_WORKER + i));
                let mut owner = Owner {
                    arena,
                    proxies,
                    nodes,
                    anchors,
                    model: Routes::new(KEEP_ALIVE),
                    rng,
                };
                for _ in 0..PHASES {
                    expect(owner.phase(operations / PHASES));
                    pass.wait();
                    if worker == 0 {
                        // Within an interval, so that the anchors do not expire.
                        let ticks = Rng::with_seed(seed() ^ arena.now()).u64(1..=INTERVAL);
                        arena.clock.advance(Duration::from_millis(ticks));
                    }
                    pass.wait();
                }
                let now = arena.now();
                expect(owner.nodes.iter().try_for_each(|node| owner.compare(node, now)));
                models.lock().expect("not poisoned").push(owner.model);
                arena.finish_work();
            });
        }
        scope.spawn(move || {
            let pass = all.pass();
            pass.wait();
            arena.while_working(&pass, || {
                _ = arena.table.sweep(100);
                thread::yield_now();
            });
        });
        scope.spawn(move || {
            let pass = all.pass();
            let mut rng = Rng::with_seed(!seed());
            let node = "churn".parse().expect("a name");
            pass.wait();
            arena.while_working(&pass, || {
                expect(arena.churn(&format!("churn-{}", rng.u8(..8)), &node).map(drop));
                thread::yield_now();
            });
        });
    });

    sweep_fully(&arena.table);
    let models = models.lock().expect("not poisoned");
    let expected: usize = models.iter().map(|model| model.len(arena.now())).sum();
    assert_eq!(
        arena.table.len(),
        expected,
        "routes in the end (NODETRACKER_SEED={})",
        seed()
    );
}

// --- nodes that all threads use

const SHARED_NODES: u16 = 12;
const SHARED_PROXIES: usize = 80;

/// How a shared node is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Nobody removes the node or a worker's own route, and few enough proxies reach it that none is replaced.
    OwnRoutesStay,
    /// Any call, through few proxies.
    FewProxies,
    /// Any call, through more proxies than a node can have routes.
    Crowded,
}

impl Use {
    fn of(node: usize) -> Self {
        [Self::OwnRoutesStay, Self::FewProxies, Self::Crowded][node % 3]
    }
}

struct Shared {
    arena: Arena,
    nodes: Vec<NodeId>,
    /// Nodes that keep every lasting proxy from becoming idle.
    anchors: [NodeId; 2],
    /// Registered from beginning to end.
    lasting: Vec<ProxyRef>,
    /// One for each worker: no other thread adds or removes its routes.
    own: Vec<ProxyRef>,
    /// Proxies that were removed, and at which count of removals.
    removed: Mutex<HashMap<ProxyRef, u64>>,
    removals: AtomicU64,
}

impl Shared {
    fn new() -> Self {
        let arena = Arena::new();
        let register = |id: String| arena.table.register_proxy(&proxy(&id)).expect("registers");
        let lasting = (0..SHARED_PROXIES).map(|i| register(format!("proxy-{i}"))).collect();
        let own = (0..WORKERS).map(|i| register(format!("own-{i}"))).collect();
        let nodes = (0..SHARED_NODES).map(node).collect();
        let anchors = [node(SHARED_NODES), node(SHARED_NODES + 1)];
        let (removed, removals) = (Mutex::default(), AtomicU64::new(0));
        let shared = Self {
            arena,
            nodes,
            anchors,
            lasting,
            own,
            removed,
            removals,
        };
        shared.refresh_anchor();
        shared
    }

    /// Refreshes a route of every lasting proxy.
    fn refresh_anchor(&self) {
        let proxies: Vec<ProxyRef> = self.lasting.iter().chain(&self.own).copied().collect();
        for (anchor, proxies) in self.anchors.iter().zip(proxies.chunks(64)) {
            for &proxy in proxies {
                self.arena.table.add_node(anchor, proxy).expect("adds");
            }
        }
    }

    /// Looks a node up and checks the answer. Returns it, with the time before the call.
    fn look_up(&self, node: &NodeId) -> Result<HashMap<ProxyRef, u64>, String> {
        // Acquire: pairs with the Release in `remove`, so that the earlier removals are known.
        let removals = self.removals.load(Ordering::Acquire);
        let before = self.arena.now();
        let answer = self.arena.table.get_proxies(node);
        check_answer(&answer)?;
        let after = self.arena.now();
        for route in &answer {
            let at = millis(route.last_refresh);
            ensure!(
                at + INTERVAL >= before,
                "{node} has a route refreshed at {at}, it was {before} before the look-up"
            );
            ensure!(
                at <= after,
                "{node} has a route refreshed at {at}, it was {after} after the look-up"
            );
            if !self.lasting.contains(&route.proxy) && !self.own.contains(&route.proxy) {
                let removed = self.removed.lock().expect("not poisoned").get(&route.proxy).copied();
                ensure!(
                    removed.is_none_or(|removed| removed >= removals),
                    "{node} has a route of {:?}, which was removed before the look-up",
                    route.proxy
                );
            }
        }
        Ok(answer
            .into_iter()
            .map(|route| (route.proxy, millis(route.last_refresh)))
            .collect())
    }

    /// Notes that a proxy's removal has returned.
    fn note_removal(&self, proxy: ProxyRef) {
        let mut removed = self.removed.lock().expect("not poisoned");
        // Relaxed: only changed with the lock held.
        removed.insert(proxy, self.removals.load(Ordering::Relaxed));
        // Release: pairs with the Acquire in `look_up`.
        self.removals.fetch_add(1, Ordering::Release);
    }
}

/// One thread's work on the shared nodes.
struct Worker<'a> {
    shared: &'a Shared,
    own: ProxyRef,
    /// The time of the last refresh of each node's own route: between these two readings.
    refreshed: Vec<Option<(u64, u64)>>,
    rng: Rng,
}

impl Worker<'_> {
    fn operation(&mut self) -> Result<(), String> {
        let Shared {
            arena, nodes, lasting, ..
        } = self.shared;
        let index = self.rng.usize(..nodes.len());
        let (node, usage) = (&nodes[index], Use::of(index));
        let proxy = lasting[self.rng.usize(..if usage == Use::Crowded { SHARED_PROXIES } else { 6 })];
        match self.rng.u32(..100) {
            0..40 => _ = arena.table.add_node(node, proxy).map_err(|error| error.to_string())?,
            40..50 => self.refresh_own(index)?,
            50..80 => self.look_up(index)?,
            80..95 => _ = arena.table.remove_route(node, proxy),
            _ if usage == Use::OwnRoutesStay => {}
            // Rarely, or the node would never be full.
            _ if usage == Use::Crowded && self.rng.u8(..) > 0 => {}
            _ => _ = arena.table.remove_node(node),
        }
        Ok(())
    }

    fn refresh_own(&mut self, index: usize) -> Result<(), String> {
        let Shared { arena, nodes, .. } = self.shared;
        let before = arena.now();
        let added = arena
            .table
            .add_node(&nodes[index], self.own)
            .map_err(|error| error.to_string())?;
        let after = arena.now();
        if let (Use::OwnRoutesStay, Some((from, to))) = (Use::of(index), self.refreshed[index]) {
            if from + INTERVAL >= after {
                ensure!(
                    added == Added::Refreshed,
                    "a route refreshed at {from} was {added:?} again by {after}"
                );
            } else if to + INTERVAL < before {
                ensure!(
                    added == Added::Inserted,
                    "a route refreshed at {to} had not expired at {before}: {added:?}"
                );
            }
        }
        self.refreshed[index] = Some((before, after));
        Ok(())
    }

    fn look_up(&self, index: usize) -> Result<(), String> {
        let Shared { arena, nodes, .. } = self.shared;
        let answer = self.shared.look_up(&nodes[index])?;
        let after = arena.now();
        if let (Use::OwnRoutesStay, Some((from, to))) = (Use::of(index), self.refreshed[index]) {
            let at = answer.get(&self.own);
            ensure!(
                at.is_some() || from + INTERVAL < after,
                "a route refreshed at {from} is not there by {after}"
            );
            ensure!(
                at.is_none_or(|at| (from..=to).contains(at)),
                "refreshed between {from} and {to}, a route has the time {at:?}"
            );
        }
        Ok(())
    }
}

/// Every answer is correct at any time, and a route stays unless a thread removes it.
#[test]
fn answers_about_shared_nodes_are_always_sound() {
    let operations = 200_000 * scale();
    let shared = Shared::new();
    let gate = Gate::new(WORKERS + 3);
    let (shared, gate) = (&shared, &gate);
    let arena = &shared.arena;
    thread::scope(|scope| {
        for worker in 0..WORKERS {
            scope.spawn(move || {
                let pass = gate.pass();
                let rng = Rng::with_seed(seed() ^ (worker as u64) << 32);
                let refreshed = vec![None; shared.nodes.len()];
                let mut worker = Worker {
                    shared,
                    own: shared.own[worker],
                    refreshed,
                    rng,
                };
                pass.wait();
                for _ in 0..operations {
                    expect(worker.operation());
                }
                arena.finish_work();
            });
        }
        scope.spawn(move || {
            let pass = gate.pass();
            pass.wait();
            arena.while_working(&pass, || {
                _ = arena.table.sweep(5);
                thread::yield_now();
            });
        });
        scope.spawn(move || {
            let pass = gate.pass();
            let mut rng = Rng::with_seed(!seed());
            pass.wait();
            arena.while_working(&pass, || {
                let node = &shared.nodes[rng.usize(..shared.nodes.len())];
                expect(
                    arena
                        .churn(&format!("churn-{}", rng.u8(..8)), node)
                        .map(|proxy| shared.note_removal(proxy)),
                );
                thread::yield_now();
            });
        });
        scope.spawn(move || {
            let pass = gate.pass();
            pass.wait();
            arena.while_working(&pass, || {
                shared.refresh_anchor();
                arena.clock.advance(Duration::from_millis(1));
                thread::yield_now();
            });
        });
    });

    sweep_fully(&arena.table);
    let mut routes = 0;
    for node in shared.nodes.iter().chain(&shared.anchors) {
        expect(shared.look_up(node).map(|answer| routes += answer.len()));
    }
    assert_eq!(
        arena.table.len(),
        routes,
        "routes in the end (NODETRACKER_SEED={})",
        seed()
    );
}
