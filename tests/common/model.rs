//! A plain model of the table.
//!
//! [`Routes`] is the reference itself: one list per node, newest first. [`Model`] adds the proxies and the limits, and
//! checks the results of a real table. In some cases, the contract leaves the table a choice: whether an expired route
//! was swept yet, or an idle proxy dropped. The model accepts both results, and learns from the answer.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, SystemTime};

use nodetracker::{
    AddError, Added, Clock, ManualClock, NodeId, Proxy, ProxyDetails, ProxyRef, RegisterError, Route, SweepReport,
};

use super::{check_answer, ensure};

/// The most routes that a node has.
pub(crate) const MAX_ROUTES_PER_NODE: usize = 64;

/// One route: its proxy, and when it was last refreshed, in milliseconds.
pub(crate) type ModelRoute = (ProxyRef, u64);

/// The reference: the routes of each node. It keeps expired routes, and leaves them out of answers.
#[derive(Debug, Default, Clone)]
pub(crate) struct Routes {
    nodes: HashMap<NodeId, Vec<ModelRoute>>,
    keep_alive: u64,
    removed: HashSet<ProxyRef>,
}

impl Routes {
    pub(crate) fn new(keep_alive: Duration) -> Self {
        let keep_alive = u64::try_from(keep_alive.as_millis()).expect("a keep-alive interval in range");
        Self {
            keep_alive,
            ..Self::default()
        }
    }

    fn is_live(&self, (proxy, at): ModelRoute, now: u64) -> bool {
        now - at <= self.keep_alive && !self.removed.contains(&proxy)
    }

    /// The answer to a look-up.
    pub(crate) fn get(&self, node: &NodeId, now: u64) -> Vec<ModelRoute> {
        let all = self.nodes.get(node).map_or(&[][..], Vec::as_slice);
        all.iter().copied().filter(|&entry| self.is_live(entry, now)).collect()
    }

    pub(crate) fn has(&self, node: &NodeId, proxy: ProxyRef, now: u64) -> bool {
        self.get(node, now).iter().any(|entry| entry.0 == proxy)
    }

    /// Adds or refreshes a route. Returns what the table should, and the route that made place for it.
    pub(crate) fn add(&mut self, node: &NodeId, proxy: ProxyRef, now: u64) -> (Added, Option<ProxyRef>) {
        let added = if self.has(node, proxy, now) {
            Added::Refreshed
        } else {
            Added::Inserted
        };
        let live = self.get(node, now);
        let replaced = match live.last() {
            Some(stalest) if added == Added::Inserted && live.len() == MAX_ROUTES_PER_NODE => Some(stalest.0),
            _ => None,
        };
        let entries = self.nodes.entry(node.clone()).or_default();
        entries.retain(|entry| entry.0 != proxy && Some(entry.0) != replaced);
        entries.insert(0, (proxy, now));
        (added, replaced)
    }

    /// Removes one live route. Returns whether there was one.
    pub(crate) fn remove(&mut self, node: &NodeId, proxy: ProxyRef, now: u64) -> bool {
        let had = self.has(node, proxy, now);
        if had && let Some(entries) = self.nodes.get_mut(node) {
            entries.retain(|entry| entry.0 != proxy);
        }
        had
    }

    /// Removes a node's live routes and returns their proxies.
    pub(crate) fn remove_node(&mut self, node: &NodeId, now: u64) -> Vec<ProxyRef> {
        let live = self.get(node, now);
        live.iter().for_each(|entry| _ = self.remove(node, entry.0, now));
        live.into_iter().map(|entry| entry.0).collect()
    }

    pub(crate) fn remove_proxy(&mut self, proxy: ProxyRef) {
        self.removed.insert(proxy);
    }

    /// Forgets routes that are no longer live, as a full sweep does.
    pub(crate) fn sweep(&mut self, now: u64) {
        let Self {
            nodes,
            keep_alive,
            removed,
        } = self;
        nodes.retain(|_, entries| {
            entries.retain(|(proxy, at)| now - at <= *keep_alive && !removed.contains(proxy));
            !entries.is_empty()
        });
    }

    /// How many routes are live.
    pub(crate) fn len(&self, now: u64) -> usize {
        self.nodes
            .values()
            .flatten()
            .filter(|&&entry| self.is_live(entry, now))
            .count()
    }

    /// How many routes the table may count: the live ones, and those that it has perhaps not swept yet.
    pub(crate) fn len_unswept(&self) -> usize {
        self.nodes.values().map(Vec::len).sum()
    }

    /// The last instant at which the proxy had a live route, as far as the known routes show.
    fn last_live(&self, proxy: ProxyRef, now: u64) -> Option<u64> {
        let entries = self.nodes.values().flatten();
        entries
            .filter(|entry| entry.0 == proxy)
            .map(|entry| now.min(entry.1 + self.keep_alive))
            .max()
    }
}

/// The options of a table, and the numbers of nodes and proxies in its operations.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) keep_alive: Duration,
    pub(crate) nodes: u16,
    pub(crate) proxies: u16,
    pub(crate) max_routes: Option<usize>,
    pub(crate) max_proxies: Option<usize>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            keep_alive: Duration::from_millis(100),
            nodes: 6,
            proxies: 5,
            max_routes: None,
            max_proxies: None,
        }
    }
}

/// A proxy that is registered, as far as the model knows.
#[derive(Debug)]
struct Known {
    details: ProxyDetails,
    /// The proxy had no routes before this time, or lost its last route then. Routes that are still listed are later.
    idle_since: u64,
    /// A sweep may have dropped the proxy, and no result since then shows that the proxy is registered.
    perhaps_dropped: bool,
}

/// The reference for a whole table that one thread uses.
#[derive(Debug)]
pub(crate) struct Model {
    setup: Setup,
    routes: Routes,
    known: HashMap<ProxyRef, Known>,
    handed_out: Vec<ProxyRef>,
    /// Proxies that were removed or dropped. Their places may still be taken. A place is free after sweeps, and after
    /// each thread that was inside a table at that time has left the table.
    leaving: usize,
    /// The latest reading of the clock that the table saw, in milliseconds.
    now: u64,
}

impl Model {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            setup,
            routes: Routes::new(setup.keep_alive),
            known: HashMap::new(),
            handed_out: Vec::new(),
            leaving: 0,
            now: 0,
        }
    }

    /// The keep-alive interval in milliseconds.
    pub(crate) fn keep_alive(&self) -> u64 {
        self.routes.keep_alive
    }

    /// Every reference that was ever handed out.
    pub(crate) fn handed_out(&self) -> &[ProxyRef] {
        &self.handed_out
    }

    /// Whether the proxy is registered, as far as the model knows.
    pub(crate) fn is_registered(&self, proxy: ProxyRef) -> bool {
        self.known.contains_key(&proxy)
    }

    /// Takes note of a reading of the clock. Returns whether it is the latest that there was.
    pub(crate) fn saw(&mut self, reading: u64) -> bool {
        self.now = self.now.max(reading);
        self.now == reading
    }

    fn find(&self, id: &str) -> Option<ProxyRef> {
        self.known
            .iter()
            .find(|(_, known)| known.details.id() == id)
            .map(|(&proxy, _)| proxy)
    }

    /// Forgets a proxy that was removed, or that turned out to be dropped.
    fn forget(&mut self, proxy: ProxyRef) {
        if self.known.remove(&proxy).is_some() {
            self.routes.remove_proxy(proxy);
            self.leaving += 1;
        }
    }

    fn perhaps_dropped(&self, proxy: ProxyRef) -> bool {
        self.known.get(&proxy).is_some_and(|known| known.perhaps_dropped)
    }

    fn is_there(&mut self, proxy: ProxyRef) {
        if let Some(known) = self.known.get_mut(&proxy) {
            known.perhaps_dropped = false;
        }
    }

    fn lost_a_route(&mut self, proxy: ProxyRef) {
        if let Some(known) = self.known.get_mut(&proxy) {
            known.idle_since = known.idle_since.max(self.now);
        }
    }

    pub(crate) fn check_register(
        &mut self,
        proxy: &Proxy<'_>,
        result: Result<ProxyRef, RegisterError>,
    ) -> Result<(), String> {
        let old = self.find(proxy.id);
        let others = self.known.iter().filter(|(_, known)| known.details.id() != proxy.id);
        let certain = others.clone().filter(|(_, known)| !known.perhaps_dropped).count();
        let at_most = others.count() + self.leaving + usize::from(old.is_some_and(|old| self.perhaps_dropped(old)));
        let limit = self.setup.max_proxies.unwrap_or(usize::MAX);

        let is_new = match result {
            Ok(new) => Some(new) != old,
            Err(RegisterError::TooManyProxies { limit: reported }) => {
                ensure!(reported == limit, "the limit is {limit}, not {reported}");
                ensure!(
                    at_most >= limit,
                    "refused {} with {at_most} of {limit} proxies",
                    proxy.id
                );
                true
            }
            Err(error) => return Err(format!("refused {}: {error}", proxy.id)),
        };
        if is_new && let Some(old) = old {
            ensure!(
                self.perhaps_dropped(old),
                "{} was registered already, as {old:?}: {result:?}",
                proxy.id
            );
            self.forget(old);
        }
        if let Ok(new) = result {
            if is_new {
                ensure!(
                    certain < limit,
                    "registered {} with {certain} of {limit} proxies",
                    proxy.id
                );
                ensure!(!self.handed_out.contains(&new), "{new:?} was handed out before");
                self.handed_out.push(new);
            }
            let details = ProxyDetails::from(*proxy);
            let idle_since = self.known.get(&new).map_or(self.now, |known| known.idle_since);
            self.known.insert(
                new,
                Known {
                    details,
                    idle_since,
                    perhaps_dropped: false,
                },
            );
        }
        Ok(())
    }

    pub(crate) fn check_details(&mut self, proxy: ProxyRef, result: Option<&ProxyDetails>) -> Result<(), String> {
        if result.is_none() && self.perhaps_dropped(proxy) {
            self.forget(proxy);
        }
        self.is_there(proxy);
        let expected = self.known.get(&proxy).map(|known| &known.details);
        ensure!(result == expected, "{proxy:?} is {result:?}, expected {expected:?}");
        Ok(())
    }

    pub(crate) fn check_remove_proxy(&mut self, proxy: ProxyRef, result: bool) -> Result<(), String> {
        let (known, perhaps_dropped) = (self.known.contains_key(&proxy), self.perhaps_dropped(proxy));
        ensure!(result == known || perhaps_dropped, "removing {proxy:?} gave {result}");
        self.forget(proxy);
        Ok(())
    }

    /// Checks the result of adding a route to a table that counted `len` routes before.
    pub(crate) fn check_add(
        &mut self,
        node: &NodeId,
        proxy: ProxyRef,
        len: usize,
        result: Result<Added, AddError>,
    ) -> Result<(), String> {
        let limit = self.setup.max_routes.unwrap_or(usize::MAX);
        let refresh = self.routes.has(node, proxy, self.now);
        match result {
            Err(AddError::UnknownProxy) => {
                ensure!(
                    !self.known.contains_key(&proxy) || self.perhaps_dropped(proxy),
                    "{proxy:?} is registered, but no route can be added: {:?}",
                    self.known.get(&proxy)
                );
                // Registering the proxy again may bring the same reference back. Until then, it is perhaps dropped.
            }
            Err(AddError::TooManyRoutes { limit: reported }) => {
                ensure!(reported == limit, "the limit is {limit}, not {reported}");
                ensure!(len >= limit, "refused a route with {len} of {limit} routes");
                ensure!(!refresh, "refused to refresh a route");
                ensure!(
                    self.known.contains_key(&proxy),
                    "{proxy:?} is unknown, which comes before the limit"
                );
            }
            Ok(added) => {
                ensure!(
                    self.known.contains_key(&proxy),
                    "added a route to {proxy:?}, which is unknown"
                );
                self.is_there(proxy);
                // At the limit, the route must replace another route of the node: the stalest of 64, or an expired
                // route that is perhaps not swept yet.
                let live = self.routes.get(node, self.now).len();
                let unswept = self.routes.nodes.get(node).map_or(0, Vec::len) - live;
                let in_place = refresh || live == MAX_ROUTES_PER_NODE || unswept > 0;
                ensure!(len < limit || in_place, "added a route with {len} of {limit} routes");
                let (expected, replaced) = self.routes.add(node, proxy, self.now);
                ensure!(
                    added == expected,
                    "adding {proxy:?} to {node} gave {added:?}, expected {expected:?}"
                );
                replaced.into_iter().for_each(|proxy| self.lost_a_route(proxy));
            }
            Err(error) => return Err(format!("refused to add a route: {error}")),
        }
        Ok(())
    }

    /// Whether a route is live.
    pub(crate) fn has(&self, node: &NodeId, proxy: ProxyRef) -> bool {
        self.routes.has(node, proxy, self.now)
    }

    /// Applies a batch to one of its nodes, and returns the result of adding the node alone.
    pub(crate) fn add_of_batch(&mut self, node: &NodeId, proxy: ProxyRef) -> Result<Added, String> {
        ensure!(
            self.known.contains_key(&proxy),
            "added a route to {proxy:?}, which is unknown"
        );
        self.is_there(proxy);
        let (added, replaced) = self.routes.add(node, proxy, self.now);
        replaced.into_iter().for_each(|proxy| self.lost_a_route(proxy));
        Ok(added)
    }

    /// Checks an answer. The times in it are compared too unless the wall clock is behind the table.
    pub(crate) fn check_get(&self, node: &NodeId, answer: &[Route], compare_times: bool) -> Result<(), String> {
        check_answer(answer)?;
        let expected = self.routes.get(node, self.now);
        let proxies = |entries: &[ModelRoute]| entries.iter().map(|entry| entry.0).collect::<Vec<_>>();
        let given: Vec<ModelRoute> = answer
            .iter()
            .map(|route| (route.proxy, millis(route.last_refresh)))
            .collect();
        let same = if compare_times {
            given == expected
        } else {
            proxies(&given) == proxies(&expected)
        };
        ensure!(same, "{node} has {given:?} at {}, expected {expected:?}", self.now);
        Ok(())
    }

    pub(crate) fn check_remove_node(&mut self, node: &NodeId, result: bool) -> Result<(), String> {
        let removed = self.routes.remove_node(node, self.now);
        ensure!(
            result != removed.is_empty(),
            "removing {node} gave {result}, it had {removed:?}"
        );
        removed.into_iter().for_each(|proxy| self.lost_a_route(proxy));
        Ok(())
    }

    pub(crate) fn check_remove_route(&mut self, node: &NodeId, proxy: ProxyRef, result: bool) -> Result<(), String> {
        let expected = self.routes.remove(node, proxy, self.now);
        ensure!(
            result == expected,
            "removing {proxy:?} from {node} gave {result}, expected {expected}"
        );
        if expected {
            self.lost_a_route(proxy);
        }
        Ok(())
    }

    /// Checks a step of the sweep against the numbers of routes before and after it.
    pub(crate) fn check_sweep(
        &mut self,
        max_records: usize,
        (before, after): (usize, usize),
        report: SweepReport,
    ) -> Result<(), String> {
        self.note_sweep();
        ensure!(
            report.visited <= max_records,
            "visited {} of {max_records} records",
            report.visited
        );
        // Routes of removed proxies need not count as expired, and every other route that went must.
        let gone = before
            .checked_sub(after)
            .ok_or_else(|| format!("{before} routes became {after}"))?;
        let adds_up = report.removed == gone || (report.removed < gone && !self.routes.removed.is_empty());
        ensure!(adds_up, "{report:?}, but {before} routes became {after}");
        Ok(())
    }

    /// Notes which proxies a sweep may drop: proxies without live routes for longer than one interval.
    fn note_sweep(&mut self) {
        let Self { routes, known, now, .. } = self;
        for (&proxy, known) in known {
            let idle_since = routes
                .last_live(proxy, *now)
                .map_or(known.idle_since, |at| at.max(known.idle_since));
            known.perhaps_dropped |= *now - idle_since > routes.keep_alive;
        }
    }

    /// Checks the number of routes after two full rounds: exactly the live routes.
    pub(crate) fn check_full_sweep(&mut self, len: usize) -> Result<(), String> {
        self.note_sweep();
        for (&proxy, known) in &mut self.known {
            known.idle_since = known
                .idle_since
                .max(self.routes.last_live(proxy, self.now).unwrap_or(0));
        }
        self.routes.sweep(self.now);
        let expected = self.routes.len(self.now);
        ensure!(len == expected, "{len} routes after a full sweep, expected {expected}");
        Ok(())
    }

    /// Checks the number of routes and of proxies at any time.
    pub(crate) fn check_counts(&self, routes: usize, proxies: usize) -> Result<(), String> {
        let (live, unswept) = (self.routes.len(self.now), self.routes.len_unswept());
        ensure!(
            (live..=unswept).contains(&routes),
            "{routes} routes, expected {live} to {unswept}"
        );
        ensure!(
            self.setup.max_routes.is_none_or(|limit| routes <= limit),
            "{routes} routes are more than the limit"
        );
        let certain = self.known.values().filter(|known| !known.perhaps_dropped).count();
        let at_most = self.known.len();
        ensure!(
            (certain..=at_most).contains(&proxies),
            "{proxies} proxies, expected {certain} to {at_most}"
        );
        Ok(())
    }
}

/// Whole milliseconds between the instant at which a [`ManualClock`] reads zero and a time that a table returns.
pub(crate) fn millis(time: SystemTime) -> u64 {
    let since = time
        .duration_since(ManualClock::new().wall())
        .expect("a time after the clock's zero");
    u64::try_from(since.as_millis()).expect("a time in range")
}
