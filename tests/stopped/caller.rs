//! A thread that makes calls, and a model of their results.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::num::NonZeroU64;
use std::ops::ControlFlow;
use std::time::Duration;

use nodetracker::snapshot::Ages;
use nodetracker::{
    Added, Event, LostChanges, ManualClock, NodeCursor, NodeId, Proxy, ProxyCursor, ProxyRef, Route, RouteTable,
    Subscription, Verdict,
};
use uuid::Uuid;

use crate::common;
use crate::stop::stoppable;

pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(3600);
/// Three groups of nodes. Only one caller changes the first group. In the second group, each caller changes the routes
/// of its own proxies. The routes of the third group are in no caller's model.
pub(crate) const OWN: usize = 160;
const SHARED: usize = 24;
const WILD: usize = 24;
/// Nodes of a batch.
const BATCH: usize = 20;
/// How many of its own nodes are in a caller's snapshot.
const IN_SNAPSHOT: usize = 8;
const ADDRS: [&str; 2] = ["192.0.2.1:3080", "192.0.2.2:3080"];

/// A UUID, a short name, or a name that is too long to be stored inline.
pub(crate) fn node(of: &str, number: usize) -> NodeId {
    let name = match number % 8 {
        6 => format!("{of}-{number}"),
        7 => format!("{of}-{number}-with-a-name-that-is-longer-than-others"),
        _ => {
            let hash = of.bytes().fold(7_u128, |hash, byte| hash * 257 + u128::from(byte));
            Uuid::from_u128(hash << 32 | number as u128).to_string()
        }
    };
    name.parse().expect("a node ID")
}

/// A thread that makes calls, with a model of their results.
pub(crate) struct Caller<'t> {
    table: &'t RouteTable,
    name: &'static str,
    random: fastrand::Rng,
    /// The IDs of `proxies`. Routes are added through the first three proxies. The last proxy is the snapshot's.
    ids: [String; 4],
    proxies: [ProxyRef; 4],
    /// The address of the third proxy, which changes.
    addr: usize,
    pub(crate) nodes: Vec<NodeId>,
    /// For each of `nodes`, the proxies that it has a route through.
    pub(crate) routes: Vec<HashSet<ProxyRef>>,
    numbers: HashMap<NodeId, usize>,
    pub(crate) wild: Vec<NodeId>,
    incarnation: (NonZeroU64, ProxyRef),
    snapshot: Vec<u8>,
    /// `None` only during a poll.
    subscription: Option<Subscription<'t>>,
    counter: usize,
}

impl<'t> Caller<'t> {
    pub(crate) fn new(table: &'t RouteTable, name: &'static str, seed: u64) -> Self {
        let ids = ["a", "b", "changing", "snapshot"].map(|suffix| format!("{name}-{suffix}"));
        let register = |id: &String| table.register_proxy(&described(id, 0)).expect("there is room");
        let proxies = [0, 1, 2, 3].map(|nth| register(&ids[nth]));
        let own = (0..OWN).map(|number| node(name, number));
        let nodes: Vec<NodeId> = own.chain((0..SHARED).map(|number| node("shared", number))).collect();

        let other = RouteTable::builder()
            .clock(ManualClock::new())
            .build()
            .expect("possible limits");
        for node in &nodes[..IN_SNAPSHOT] {
            other.report_node(node, &described(&ids[3], 0)).expect("there is room");
        }
        let mut snapshot = Vec::new();
        other.write_snapshot(&mut snapshot).expect("a vector takes it");

        let first = NonZeroU64::MIN;
        let begun = table.begin_incarnation(&described(&format!("{name}-incarnation"), 0), first);
        Self {
            table,
            name,
            random: fastrand::Rng::with_seed(seed),
            ids,
            proxies,
            addr: 0,
            routes: vec![HashSet::new(); nodes.len()],
            numbers: nodes.iter().cloned().zip(0..).collect(),
            nodes,
            wild: (0..WILD).map(|number| node("wild", number)).collect(),
            incarnation: (first, begun.expect("there is room").proxy),
            snapshot,
            subscription: Some(table.subscribe()),
            counter: 0,
        }
    }

    fn is_victim(&self) -> bool {
        self.name == "victim"
    }

    /// A random node that is not wild, and one of the first three proxies.
    fn pick(&mut self) -> (usize, usize) {
        (self.random.usize(..self.nodes.len()), self.random.usize(..3))
    }

    fn pick_batch(&mut self) -> (Vec<usize>, Vec<NodeId>, usize) {
        let first = self.random.usize(..self.nodes.len() - BATCH);
        let numbers: Vec<_> = (first..first + BATCH).collect();
        let nodes = numbers.iter().map(|&number| self.nodes[number].clone()).collect();
        (numbers, nodes, self.random.usize(..3))
    }

    /// The caller's own routes in an answer; fails if there are others for one of its own nodes.
    fn check(&self, number: usize, answer: impl IntoIterator<Item = ProxyRef>) {
        let answer: Vec<_> = answer.into_iter().collect();
        let mine: HashSet<_> = answer
            .iter()
            .copied()
            .filter(|proxy| self.proxies.contains(proxy))
            .collect();
        assert_eq!(mine, self.routes[number], "{}", self.nodes[number]);
        assert!(number >= OWN || answer.len() == mine.len(), "{answer:?}");
    }

    /// Adds routes to the model. Returns how many were not there.
    fn added(&mut self, numbers: &[usize], proxy: usize) -> usize {
        let proxy = self.proxies[proxy];
        let is_news = |&&number: &&usize| self.routes[number].insert(proxy);
        numbers.iter().filter(is_news).count()
    }

    pub(crate) fn add_node(&mut self) {
        let (number, proxy) = self.pick();
        let (table, node, reference) = (self.table, &self.nodes[number], self.proxies[proxy]);
        let added = stoppable(|| table.add_node(node, reference)).expect("there is room");
        assert_eq!((added == Added::Inserted) as usize, self.added(&[number], proxy));
        let wild = self.random.usize(..WILD);
        stoppable(|| table.add_node(&self.wild[wild], reference)).expect("there is room");
    }

    pub(crate) fn report_node(&mut self) {
        let (number, proxy) = (self.pick().0, self.random.usize(..2));
        let (table, node) = (self.table, &self.nodes[number]);
        let described = described(&self.ids[proxy], 0);
        let added = stoppable(|| table.report_node(node, &described)).expect("there is room");
        assert_eq!((added == Added::Inserted) as usize, self.added(&[number], proxy));
    }

    pub(crate) fn add_nodes(&mut self) {
        let (numbers, nodes, proxy) = self.pick_batch();
        let (table, reference) = (self.table, self.proxies[proxy]);
        let added = stoppable(|| table.add_nodes(&nodes, reference)).expect("there is room");
        assert_eq!((added.inserted, added.len()), (self.added(&numbers, proxy), BATCH));
    }

    pub(crate) fn report_nodes(&mut self) {
        let (numbers, nodes, _) = self.pick_batch();
        let described = described(&self.ids[1], 0);
        let added = stoppable(|| self.table.report_nodes(&nodes, &described)).expect("there is room");
        assert_eq!((added.inserted, added.len()), (self.added(&numbers, 1), BATCH));
    }

    pub(crate) fn add_nodes_with_handles(&mut self) {
        let (numbers, nodes, proxy) = self.pick_batch();
        let (table, reference) = (self.table, self.proxies[proxy]);
        let added = stoppable(|| table.add_nodes_with_handles(&nodes, reference));
        let added = added.expect("there is room");
        assert_eq!(
            (added.added.inserted, added.handles.len()),
            (self.added(&numbers, proxy), BATCH)
        );
    }

    pub(crate) fn refresh_routes(&mut self) {
        let (numbers, nodes, proxy) = self.pick_batch();
        let (table, reference) = (self.table, self.proxies[proxy]);
        let added = table.add_nodes_with_handles(&nodes, reference).expect("there is room");
        assert_eq!(added.added.inserted, self.added(&numbers, proxy));
        let refreshed = stoppable(|| table.refresh_routes(&added.handles, reference));
        let refreshed = refreshed.expect("it is registered");
        // Records move only if another thread changes the shard.
        assert_eq!(refreshed.refreshed + refreshed.gone.len(), BATCH);
        assert!(self.is_victim() || refreshed.gone.is_empty());
    }

    pub(crate) fn get_proxies(&mut self) {
        let number = self.pick().0;
        let routes = stoppable(|| self.table.get_proxies(&self.nodes[number]));
        self.check(number, routes.iter().map(|route| route.proxy));
    }

    pub(crate) fn get_proxies_batch(&mut self) {
        let (numbers, nodes, _) = self.pick_batch();
        let answers: Vec<_> = stoppable(|| self.table.get_proxies_batch(&nodes).collect());
        assert_eq!(answers.len(), BATCH);
        for (number, routes) in numbers.into_iter().zip(answers) {
            self.check(number, routes.iter().map(|route| route.proxy));
        }
    }

    pub(crate) fn resolve(&mut self) {
        let number = self.pick().0;
        let routes = stoppable(|| self.table.resolve(&self.nodes[number]));
        for route in &routes {
            let nth = self.proxies.iter().position(|&proxy| proxy == route.proxy);
            assert!(nth.is_none_or(|nth| route.details.id() == self.ids[nth]));
        }
        self.check(number, routes.iter().map(|route| route.proxy));
    }

    pub(crate) fn explain(&mut self) {
        let number = self.random.usize(..OWN);
        let routes = stoppable(|| self.table.explain(&self.nodes[number]));
        assert!(routes.iter().all(|route| route.verdict == Verdict::Returned));
        assert_eq!(routes.len(), self.routes[number].len());
    }

    pub(crate) fn remove_node(&mut self) {
        let number = self.random.usize(..OWN);
        let removed = stoppable(|| self.table.remove_node(&self.nodes[number]));
        assert_eq!(removed, !mem::take(&mut self.routes[number]).is_empty());
        if self.is_victim() {
            // Else nothing is removed soon.
            self.refill();
        }
        let wild = self.random.usize(..WILD);
        stoppable(|| self.table.remove_node(&self.wild[wild]));
    }

    pub(crate) fn remove_route(&mut self) {
        let (number, proxy) = self.pick();
        let (table, node, proxy) = (self.table, &self.nodes[number], self.proxies[proxy]);
        let removed = stoppable(|| table.remove_route(node, proxy));
        assert_eq!(removed, self.routes[number].remove(&proxy));
        if self.is_victim() {
            self.refill();
        }
    }

    /// Adds a few routes, so that a victim which removes routes finds some.
    pub(crate) fn refill(&mut self) {
        for _ in 0..2 {
            let (number, proxy) = self.pick();
            let added = self.table.add_node(&self.nodes[number], self.proxies[proxy]);
            assert_eq!((added == Ok(Added::Inserted)) as usize, self.added(&[number], proxy));
        }
    }

    pub(crate) fn sweep(&mut self) {
        if self.is_victim() {
            // The others do not remove proxies while a sweep is stopped.
            self.remove_a_proxy(|table, proxy, _id| table.remove_proxy(proxy));
        }
        let report = stoppable(|| self.table.sweep(256));
        assert!(report.visited > 0 || report.round_completed);
    }

    /// Checks what a walk found of the caller's own routes.
    fn check_walk(&self, found: &[(NodeId, ProxyRef)]) {
        let mut routes = vec![HashSet::new(); self.nodes.len()];
        for (node, proxy) in found {
            if let Some(&number) = self.numbers.get(node)
                && self.proxies.contains(proxy)
            {
                assert!(routes[number].insert(*proxy), "{node} is there twice");
            }
        }
        assert_eq!(routes, self.routes);
    }

    pub(crate) fn for_each_route(&mut self) {
        let mut found = Vec::new();
        stoppable(|| {
            self.table
                .for_each_route(|node, route| found.push((node.clone(), route.proxy)));
        });
        self.check_walk(&found);
    }

    pub(crate) fn try_for_each_route(&mut self) {
        let all = stoppable(|| self.table.try_for_each_route(|_, _| ControlFlow::<()>::Continue(())));
        assert_eq!(all, ControlFlow::Continue(()));
    }

    pub(crate) fn nodes_page(&mut self) {
        let mut found = Vec::new();
        let mut place = Some(NodeCursor::default());
        while let Some(from) = place {
            let page = stoppable(|| self.table.nodes_page(&from, 3, |_, _| true));
            for node in page.nodes {
                found.extend(node.routes.iter().map(|route: &Route| (node.node.clone(), route.proxy)));
            }
            place = page.next;
        }
        self.check_walk(&found);
    }

    pub(crate) fn try_nodes_page(&mut self) {
        let mut found = Vec::new();
        let mut place = Some(NodeCursor::default());
        while let Some(from) = place {
            // Each page ends after one node.
            let page = stoppable(|| self.table.try_nodes_page(&from, 3, |_, _| ControlFlow::Break(true)));
            for node in page.nodes {
                found.extend(node.routes.iter().map(|route: &Route| (node.node.clone(), route.proxy)));
            }
            place = page.next;
        }
        self.check_walk(&found);
    }

    pub(crate) fn nodes_of_part(&mut self) {
        let mut found = Vec::new();
        for part in 0..RouteTable::PARTS {
            let mut place = None;
            loop {
                place = stoppable(|| {
                    self.table.nodes_of_part(part, place.as_ref(), 3, |node, routes| {
                        found.extend(routes.iter().map(|route| (node.clone(), route.proxy)));
                    })
                });
                if place.is_none() {
                    break;
                }
            }
        }
        self.check_walk(&found);
    }

    pub(crate) fn proxies_page(&mut self) {
        let mut found = HashSet::new();
        let mut place = Some(ProxyCursor::default());
        while let Some(from) = place {
            let page = stoppable(|| self.table.proxies_page(from, 100));
            found.extend(page.proxies.iter().map(|(proxy, _)| *proxy));
            place = page.next;
        }
        assert!(self.proxies.iter().all(|proxy| found.contains(proxy)));
    }

    /// Changes one of the caller's own nodes, and returns it.
    fn change(&mut self) -> NodeId {
        let (number, proxy) = (self.random.usize(..OWN), self.proxies[0]);
        let node = &self.nodes[number];
        if !self.routes[number].remove(&proxy) {
            self.routes[number].insert(proxy);
            assert_eq!(self.table.add_node(node, proxy), Ok(Added::Inserted));
        } else {
            assert!(self.table.remove_route(node, proxy));
        }
        node.clone()
    }

    pub(crate) fn subscribe(&mut self) {
        let mut subscription = stoppable(|| self.table.subscribe());
        let changed = stoppable(|| self.change());
        self.check_poll(&mut subscription, changed);
        stoppable(|| drop(subscription));
    }

    pub(crate) fn poll(&mut self) {
        let changed = stoppable(|| self.change());
        let mut subscription = self.subscription.take().expect("it is put back");
        self.check_poll(&mut subscription, changed);
        self.subscription = Some(subscription);
    }

    fn check_poll(&self, subscription: &mut Subscription<'_>, changed: NodeId) {
        let mut is_told = false;
        let lost = LostChanges::OfPart(self.table.part_of(&changed));
        // Each part that has lost changes fails by itself.
        loop {
            let polled = stoppable(|| {
                subscription.drain_events(usize::MAX, |event| {
                    is_told |= matches!(event, Event::Node { node, .. } if *node == changed);
                })
            });
            match polled {
                Ok(_) => break,
                Err(lagged) => is_told |= lagged.lost == lost,
            }
        }
        assert!(is_told, "the change is missed");
        let polled = stoppable(|| subscription.drain_events(usize::MAX, |_| ()));
        assert!(self.is_victim() || polled == Ok(0), "{polled:?}");
    }

    pub(crate) fn len(&mut self) {
        let len = stoppable(|| self.table.len());
        let own: usize = self.routes.iter().map(HashSet::len).sum();
        assert!(len >= own);
        assert!(own == 0 || !stoppable(|| self.table.is_empty()));
        stoppable(|| {
            (
                self.table.subscriptions(),
                self.table.marked_changes(),
                self.table.limits().routes,
                self.table.keep_alive(),
            )
        });
    }

    pub(crate) fn poll_ready(&mut self) {
        let subscription = &mut self.table.subscribe();
        // Pending only if no other thread has changed the table meanwhile.
        _ = stoppable(|| {
            _ = subscription.drain_events(0, |_| ());
            _ = subscription.drain_events(usize::MAX, |_| ());
            subscription.poll_ready(&mut std::task::Context::from_waker(std::task::Waker::noop()))
        });
    }

    pub(crate) fn wait(&mut self) {
        let mut subscription = self.subscription.take().expect("it is put back");
        // Without earlier changes, `wait` has to look for this one.
        while subscription.drain_events(usize::MAX, |_| ()) != Ok(0) {}
        stoppable(|| self.change());
        assert!(stoppable(|| subscription.wait(Duration::ZERO)), "the change is missed");
        while subscription.drain_events(usize::MAX, |_| ()) != Ok(0) {}
        let is_ready = stoppable(|| subscription.wait(Duration::from_micros(20)));
        assert!(self.is_victim() || !is_ready);
        self.subscription = Some(subscription);
    }

    pub(crate) fn find_proxy(&mut self) {
        let nth = self.random.usize(..4);
        let found = stoppable(|| self.table.find_proxy(&self.ids[nth]));
        assert_eq!(found, Some(self.proxies[nth]));
    }

    pub(crate) fn proxy(&mut self) {
        let details = stoppable(|| self.table.proxy(self.proxies[2])).expect("it is registered");
        assert_eq!((details.id(), details.addr()), (self.ids[2].as_str(), ADDRS[self.addr]));
    }

    pub(crate) fn set_keep_alive(&mut self) {
        stoppable(|| self.table.set_keep_alive(KEEP_ALIVE));
        assert_eq!(stoppable(|| self.table.keep_alive()), KEEP_ALIVE);
        assert_eq!(stoppable(|| self.table.effective_keep_alive()), KEEP_ALIVE);
    }

    pub(crate) fn stats(&mut self) {
        let stats = stoppable(|| self.table.stats());
        let own = &self.routes[..OWN];
        assert!(stats.routes >= self.routes.iter().map(HashSet::len).sum());
        assert!(stats.nodes >= own.iter().filter(|routes| !routes.is_empty()).count());
        assert!(stats.proxies >= self.proxies.len());
    }

    pub(crate) fn memory_use(&mut self) {
        let memory = stoppable(|| self.table.memory_use());
        assert!(memory.proxies > 0 && memory.feed > 0, "{memory:?}");
    }

    pub(crate) fn incarnation(&mut self) {
        let (number, proxy) = self.incarnation;
        assert_eq!(stoppable(|| self.table.incarnation(proxy)), Some(number));
    }

    pub(crate) fn route_count(&mut self) {
        let proxy = self.proxies[0];
        let routes = self.routes[..OWN]
            .iter()
            .filter(|routes| routes.contains(&proxy))
            .count();
        assert!(stoppable(|| self.table.route_count(proxy)) >= Some(routes));
    }

    pub(crate) fn expiry_hold(&mut self) {
        assert_eq!(stoppable(|| self.table.expiry_hold()), None);
    }

    pub(crate) fn write_snapshot(&mut self) {
        let mut bytes = Vec::new();
        let size = stoppable(|| self.table.write_snapshot(&mut bytes)).expect("a vector takes it");
        assert_eq!(size.bytes, bytes.len() as u64);
        assert!(size.routes >= self.routes.iter().map(HashSet::len).sum::<usize>() as u64);
    }

    /// Makes a thread the only thread of a rayon pool of its own. So all work of a victim's `read_snapshot` stops with
    /// the victim.
    fn read_alone(&self) {
        if self.is_victim() && rayon::current_thread_index().is_none() {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
            pool.build().expect("the thread is in no pool");
        }
    }

    /// Reads a snapshot whose routes get a whole keep-alive interval. Only an empty table accepts such a snapshot.
    pub(crate) fn read_snapshot_into_empty(&mut self) {
        self.read_alone();
        let table = RouteTable::builder()
            .clock(ManualClock::new())
            .build()
            .expect("possible limits");
        let report = stoppable(|| table.read_snapshot_with(self.snapshot.as_slice(), Ages::Grace));
        assert_eq!(report.expect("it is whole").inserted, IN_SNAPSHOT as u64);
        assert_eq!(table.len(), IN_SNAPSHOT);
    }

    pub(crate) fn read_snapshot(&mut self) {
        self.read_alone();
        let report = stoppable(|| self.table.read_snapshot(self.snapshot.as_slice())).expect("it is whole");
        let numbers: Vec<_> = (0..IN_SNAPSHOT).collect();
        let inserted = self.added(&numbers, 3);
        assert_eq!((report.inserted, report.routes), (inserted as u64, IN_SNAPSHOT as u64));
        self.table.remove_node(&self.nodes[0]);
        self.routes[0].clear();
    }

    pub(crate) fn register_unchanged(&mut self) {
        let nth = self.random.usize(..2);
        let described = described(&self.ids[nth], 0);
        let registered = stoppable(|| self.table.register_proxy(&described));
        assert_eq!(registered, Ok(self.proxies[nth]));
    }

    pub(crate) fn register_changed(&mut self) {
        self.addr = 1 - self.addr;
        let described = described(&self.ids[2], self.addr);
        let registered = stoppable(|| self.table.register_proxy(&described));
        assert_eq!(registered, Ok(self.proxies[2]));
        self.proxy();
    }

    pub(crate) fn report_changed(&mut self) {
        self.addr = 1 - self.addr;
        let number = self.pick().0;
        let described = described(&self.ids[2], self.addr);
        let added = stoppable(|| self.table.report_node(&self.nodes[number], &described)).expect("there is room");
        assert_eq!((added == Added::Inserted) as usize, self.added(&[number], 2));
        self.proxy();
    }

    pub(crate) fn report_nodes_changed(&mut self) {
        self.addr = 1 - self.addr;
        let (numbers, nodes, _) = self.pick_batch();
        let described = described(&self.ids[2], self.addr);
        let added = stoppable(|| self.table.report_nodes(&nodes, &described)).expect("there is room");
        assert_eq!((added.inserted, added.len()), (self.added(&numbers, 2), BATCH));
        self.proxy();
    }

    /// An ID that no proxy has had.
    fn new_id(&mut self) -> String {
        if self.is_victim() {
            // A victim may take any number of numbers before it is stopped, so the numbers of its earlier proxies must
            // become free.
            self.table.sweep(64);
        }
        self.counter += 1;
        format!("{}-{}", self.name, self.counter)
    }

    pub(crate) fn register_new(&mut self) {
        let id = self.new_id();
        let proxy = stoppable(|| self.table.register_proxy(&described(&id, 0))).expect("there is room");
        assert_eq!(self.table.find_proxy(&id), Some(proxy));
        assert!(self.table.remove_proxy(proxy));
    }

    pub(crate) fn remove_proxy(&mut self) {
        self.remove_a_proxy(|table, proxy, _id| stoppable(|| table.remove_proxy(proxy)));
    }

    pub(crate) fn remove_proxy_by_id(&mut self) {
        self.remove_a_proxy(|table, _proxy, id| stoppable(|| table.remove_proxy_by_id(id)));
    }

    fn remove_a_proxy(&mut self, remove: impl FnOnce(&RouteTable, ProxyRef, &str) -> bool) {
        let id = self.new_id();
        let proxy = self.table.register_proxy(&described(&id, 0)).expect("there is room");
        let added = self.table.add_nodes(&self.wild, proxy).expect("there is room");
        assert_eq!(added.inserted, WILD);
        assert!(remove(self.table, proxy, &id));
        assert_eq!((self.table.proxy(proxy), self.table.find_proxy(&id)), (None, None));
        assert!(self.table.add_node(&self.wild[0], proxy).is_err());
    }

    fn begin(&mut self, begin: impl FnOnce(&RouteTable, &Proxy<'_>)) {
        let id = format!("{}-incarnation", self.name);
        begin(self.table, &described(&id, 0));
    }

    pub(crate) fn begin_the_next(&mut self) {
        let (number, old) = self.incarnation;
        let next = number.saturating_add(1);
        if self.is_victim() {
            // As in `new_id`.
            self.table.sweep(64);
        }
        self.table.add_nodes(&self.wild, old).expect("there is room");
        let mut begun = None;
        self.begin(|table, proxy| begun = Some(stoppable(|| table.begin_incarnation(proxy, next))));
        let begun = begun.expect("it was called").expect("there is room");
        assert!(!begun.is_resumed && self.table.proxy(old).is_none());
        self.incarnation = (next, begun.proxy);
    }

    pub(crate) fn begin_again(&mut self) {
        let (number, old) = self.incarnation;
        self.begin(|table, proxy| {
            let begun = stoppable(|| table.begin_incarnation(proxy, number)).expect("there is room");
            assert!(begun.is_resumed && begun.proxy == old);
        });
    }

    pub(crate) fn resume_incarnation(&mut self) {
        let (number, old) = self.incarnation;
        self.begin(|table, proxy| {
            let begun = stoppable(|| table.resume_incarnation(proxy, number)).expect("there is room");
            assert!(begun.is_resumed && begun.proxy == old);
        });
    }
}

pub(crate) fn described(id: &str, addr: usize) -> Proxy<'_> {
    Proxy {
        addr: ADDRS[addr],
        ..common::proxy(id)
    }
}
