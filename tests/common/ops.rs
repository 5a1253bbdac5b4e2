//! Operations that are applied to a table and to its model alike.
//!
//! An operation names nodes and proxies by small numbers, taken modulo the size of the universe. So every sequence of
//! operations is valid, and a generator, a shrinker or a fuzzer may cut it anywhere.

use std::collections::HashMap;
use std::time::Duration;

use nodetracker::snapshot::Ages;
use nodetracker::{
    AddError, AddHandlesError, Added, AddedHandles, Clock, ManualClock, NodeId, Proxy, ProxyCursor, ProxyRef,
    RefreshedRoutes, ReportError, Route, RouteHandle, RouteTable, Verdict,
};
use uuid::Uuid;

use super::model::{Model, Setup};
use super::{ensure, sweep_fully};

/// An operation. Nodes and proxies are numbers modulo the size of the universe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Op {
    /// Registers a proxy, with one of several addresses.
    Register { proxy: u16, variant: u8 },
    /// Asks for a proxy's details, by the last reference that its ID had.
    Details { proxy: u16 },
    /// Removes a proxy, by the last reference that its ID had.
    RemoveProxy { proxy: u16 },
    /// Adds a route through the last reference that the proxy's ID had; registers an ID that never had one.
    Add { node: u16, proxy: u16 },
    /// Adds a route to each of `count` nodes.
    AddRange { first: u16, count: u16, proxy: u16 },
    /// Adds a route through each of `count` proxies.
    Spread { node: u16, first: u16, count: u16 },
    /// Adds a route to each of `count` nodes in one batch, and keeps the handles.
    AddBatch { first: u16, count: u16, proxy: u16 },
    /// Refreshes the routes of a proxy whose handles were kept.
    RefreshHandles { proxy: u16 },
    /// Adds a route through any reference that was ever handed out.
    AddByOldRef { node: u16, which: u16 },
    /// Looks a node up.
    Get { node: u16 },
    /// Removes a node.
    RemoveNode { node: u16 },
    /// Removes each of `count` nodes.
    RemoveRange { first: u16, count: u16 },
    /// Removes a route.
    RemoveRoute { node: u16, proxy: u16 },
    /// Takes one step of the sweep.
    Sweep { max_records: u16 },
    /// Sweeps two full rounds, then compares the number of routes exactly.
    SweepFully,
    /// Moves the clock forward.
    Advance { micros: u32 },
    /// Moves the clock forward by a keep-alive interval, give or take some milliseconds.
    AdvanceByInterval { off_by: i8 },
    /// Moves the clock backwards.
    StepBack { millis: u16 },
    /// Registers a proxy, with one of several addresses, and adds a route, in one call.
    Report { node: u16, proxy: u16, variant: u8 },
    /// Asks why a node's routes are or are not returned.
    Explain { node: u16 },
    /// Walks all routes.
    Walk,
    /// Writes a snapshot, and reads it into a new table.
    Snapshot,
    /// Compares every node's answer.
    CheckAll,
}

/// A table, its clock and its model, to apply operations to.
#[derive(Debug)]
pub(crate) struct Subject {
    setup: Setup,
    table: RouteTable,
    clock: ManualClock,
    model: Model,
    nodes: Vec<NodeId>,
    /// The last reference that each proxy ID had.
    refs: Vec<Option<ProxyRef>>,
    handles: Vec<Handle>,
}

/// A route's handle that was kept.
#[derive(Debug, Clone, Copy)]
struct Handle {
    handle: RouteHandle,
    node: usize,
    proxy: ProxyRef,
    /// Whether the record may have moved since, or may belong to another node: then the handle may be gone.
    disturbed: bool,
}

impl Subject {
    pub(crate) fn new(setup: Setup) -> Self {
        let clock = ManualClock::new();
        let builder = RouteTable::builder().keep_alive(setup.keep_alive).clock(clock.clone());
        let mut builder = builder.max_routes_per_proxy(usize::MAX);
        if let Some(limit) = setup.max_routes {
            builder = builder.max_routes(limit);
        }
        if let Some(limit) = setup.max_proxies {
            builder = builder.max_proxies(limit);
        }
        Self {
            setup,
            table: builder.build().expect("possible limits"),
            clock,
            model: Model::new(setup),
            nodes: (0..setup.nodes).map(node).collect(),
            refs: vec![None; usize::from(setup.proxies)],
            handles: Vec::new(),
        }
    }

    /// Applies one operation to the table and to the model, and compares.
    pub(crate) fn apply(&mut self, op: Op) -> Result<(), String> {
        // Every operation that depends on time reads the clock, and the table keeps the latest reading. Other
        // operations need not read the clock, so `StepBack` makes sure that the table has seen the latest reading.
        match op {
            Op::Register { proxy, variant } => {
                self.read_clock();
                self.register(proxy, variant)?;
            }
            Op::Details { proxy } => {
                if let Some(proxy) = self.refs[self.proxy_index(proxy)] {
                    self.model.check_details(proxy, self.table.proxy(proxy).as_ref())?;
                }
            }
            Op::RemoveProxy { proxy } => {
                if let Some(proxy) = self.refs[self.proxy_index(proxy)] {
                    let removed = self.table.remove_proxy(proxy);
                    self.model.check_remove_proxy(proxy, removed)?;
                }
            }
            Op::Add { node, proxy } => self.add(node, proxy)?,
            Op::AddRange { first, count, proxy } => {
                for node in range(self.setup.nodes, first, count) {
                    self.add(node, proxy)?;
                }
            }
            Op::Spread { node, first, count } => {
                for proxy in range(self.setup.proxies, first, count) {
                    self.add(node, proxy)?;
                }
            }
            Op::AddBatch { first, count, proxy } => self.add_batch(first, count, proxy)?,
            Op::RefreshHandles { proxy } => self.refresh_handles(proxy)?,
            Op::AddByOldRef { node, which } => {
                let handed_out = self.model.handed_out();
                if !handed_out.is_empty() {
                    let proxy = handed_out[usize::from(which) % handed_out.len()];
                    _ = self.add_by_ref(node, proxy)?;
                }
            }
            Op::Get { node } => self.get(node)?,
            Op::RemoveNode { node } => self.remove_node(node)?,
            Op::RemoveRange { first, count } => {
                for node in range(self.setup.nodes, first, count) {
                    self.remove_node(node)?;
                }
            }
            Op::RemoveRoute { node, proxy } => {
                if let Some(proxy) = self.refs[self.proxy_index(proxy)] {
                    self.read_clock();
                    self.disturb(Some(self.node_index(node)));
                    let node = &self.nodes[self.node_index(node)];
                    self.model
                        .check_remove_route(node, proxy, self.table.remove_route(node, proxy))?;
                }
            }
            Op::Sweep { max_records } => self.sweep(usize::from(max_records).max(1))?,
            Op::SweepFully => self.sweep_fully()?,
            Op::Advance { micros } => self.clock.advance(Duration::from_micros(micros.into())),
            Op::AdvanceByInterval { off_by } => {
                let millis = self.model.keep_alive().saturating_add_signed(off_by.into());
                self.clock.advance(Duration::from_millis(millis));
            }
            Op::StepBack { millis } => {
                self.sweep(1)?;
                self.clock.set(
                    self.clock
                        .monotonic()
                        .saturating_sub(Duration::from_millis(millis.into())),
                );
            }
            Op::Report { node, proxy, variant } => self.report(node, proxy, variant)?,
            Op::Explain { node } => self.explain(node)?,
            Op::Walk => self.walk()?,
            Op::Snapshot => self.snapshot()?,
            Op::CheckAll => self.check_all()?,
        }
        Ok(())
    }

    /// Compares everything: every answer before and after two full rounds of the sweep, and the counts.
    pub(crate) fn finish(&mut self) -> Result<(), String> {
        self.check_all()?;
        self.sweep_fully()?;
        self.check_all()
    }

    fn check_all(&mut self) -> Result<(), String> {
        check_route_counts(&self.table, &self.nodes)?;
        (0..self.setup.nodes).try_for_each(|node| self.get(node))?;
        let compare_times = self.read_clock();
        let answers = self.table.get_proxies_batch(&self.nodes);
        ensure!(answers.len() == self.nodes.len(), "{} answers", answers.len());
        for (node, answer) in self.nodes.iter().zip(answers) {
            self.model.check_get(node, &answer, compare_times)?;
        }
        let stats = self.table.stats();
        ensure!(
            stats.routes == self.table.len(),
            "{stats:?}, but {} routes",
            self.table.len()
        );
        ensure!(
            self.table.is_empty() == (stats.routes == 0),
            "empty with {} routes",
            stats.routes
        );
        self.model.check_counts(stats.routes, stats.proxies)
    }

    fn register(&mut self, proxy: u16, variant: u8) -> Result<Option<ProxyRef>, String> {
        let index = self.proxy_index(proxy);
        let (id, addr) = (format!("proxy-{index}"), format!("192.0.2.{variant}:3080"));
        let proxy = described(&id, &addr, variant);
        let result = self.table.register_proxy(&proxy);
        self.model.check_register(&proxy, result)?;
        self.refs[index] = result.ok().or(self.refs[index]);
        Ok(result.ok())
    }

    fn report(&mut self, node: u16, proxy: u16, variant: u8) -> Result<(), String> {
        self.read_clock();
        let index = self.proxy_index(proxy);
        let (id, addr) = (format!("proxy-{index}"), format!("192.0.2.{variant}:3080"));
        let proxy = described(&id, &addr, variant);
        let node = &self.nodes[self.node_index(node)];
        let len = self.table.len();
        let result = self.table.report_node(node, &proxy);
        let registered = match result {
            Err(ReportError::Proxy(error)) => Err(error),
            // A report does not return the reference; registering the same proxy again does.
            _ => self.table.register_proxy(&proxy),
        };
        self.model.check_register(&proxy, registered)?;
        let Ok(reference) = registered else { return Ok(()) };
        self.refs[index] = Some(reference);
        let added = match result {
            Ok(added) => Ok(added),
            Err(ReportError::Route(error)) => Err(error),
            Err(error) => return Err(format!("{error}, though it is registered")),
        };
        self.model.check_add(node, reference, len, added)
    }

    /// The routes that `explain` marks as returned are those that a look-up returns, and no others.
    fn explain(&mut self, node: u16) -> Result<(), String> {
        self.read_clock();
        let node = &self.nodes[self.node_index(node)];
        let explained = self.table.explain(node);
        let returned = explained.iter().filter(|route| route.verdict == Verdict::Returned);
        let returned: Vec<_> = returned
            .map(|route| (route.proxy.clone(), route.last_refresh))
            .collect();
        let answer = self.table.get_proxies(node).into_iter();
        let answer: Vec<_> = answer
            .map(|route| (self.table.proxy(route.proxy), route.last_refresh))
            .collect();
        ensure!(returned == answer, "{node} has {answer:?}, explained as {explained:?}");
        for route in &explained {
            let expired = route.age > self.setup.keep_alive;
            let expected = match route.verdict {
                Verdict::Returned => route.proxy.is_some() && !expired,
                Verdict::Expired => route.proxy.is_some() && expired,
                _ => route.proxy.is_none(),
            };
            ensure!(expected, "{node} has {route:?}");
        }
        Ok(())
    }

    /// A walk reports the routes that look-ups return.
    fn walk(&mut self) -> Result<(), String> {
        let compare_times = self.read_clock();
        let mut seen: HashMap<NodeId, Vec<Route>> = HashMap::new();
        self.table
            .for_each_route(|node, route| seen.entry(node.clone()).or_default().push(route));
        for node in &self.nodes {
            let routes = seen.remove(node).unwrap_or_default();
            self.model.check_get(node, &routes, compare_times)?;
        }
        ensure!(seen.is_empty(), "nodes that never were: {seen:?}");
        Ok(())
    }

    /// A new table that reads a snapshot answers as this one does.
    fn snapshot(&mut self) -> Result<(), String> {
        let compare_times = self.read_clock();
        let mut bytes = Vec::new();
        let size = self
            .table
            .write_snapshot(&mut bytes)
            .map_err(|error| error.to_string())?;
        let builder = RouteTable::builder().keep_alive(self.setup.keep_alive);
        let builder = builder.max_routes_per_proxy(usize::MAX);
        let new = builder.clock(self.clock.clone()).build().expect("possible limits");
        let report = new.read_snapshot_with(bytes.as_slice(), Ages::Frozen);
        let report = report.map_err(|error| format!("a snapshot was refused: {error}"))?;
        ensure!(
            (size.routes, size.routes) == (report.routes, report.inserted) && size.bytes == bytes.len() as u64,
            "{size:?} was written, {report:?} read"
        );
        ensure!(new.len() as u64 == report.inserted, "{} routes, {report:?}", new.len());
        check_route_counts(&new, &self.nodes)?;
        for node in &self.nodes {
            let reported = |table: &RouteTable| -> Vec<_> {
                let routes = table.get_proxies(node).into_iter();
                let time = |route: &Route| compare_times.then_some(route.last_refresh);
                routes.map(|route| (table.proxy(route.proxy), time(&route))).collect()
            };
            let (old, new) = (reported(&self.table), reported(&new));
            ensure!(
                old == new,
                "{node} had {old:?} when it was written, {new:?} when it was read"
            );
        }
        Ok(())
    }

    /// Adds a route, registering the proxy if it never was or if it turns out to be dropped.
    fn add(&mut self, node: u16, proxy: u16) -> Result<(), String> {
        let index = self.proxy_index(proxy);
        if self.refs[index].is_none() {
            self.read_clock();
            self.register(proxy, 0)?;
        }
        let Some(old) = self.refs[index] else { return Ok(()) };
        let registered = self.model.is_registered(old);
        if registered
            && self.add_by_ref(node, old)? == Err(AddError::UnknownProxy)
            && let Some(new) = self.register(proxy, 0)?
        {
            let result = self.add_by_ref(node, new)?;
            ensure!(
                result != Err(AddError::UnknownProxy),
                "{new:?} was dropped as soon as it was registered"
            );
        } else if !registered {
            _ = self.add_by_ref(node, old)?;
        }
        Ok(())
    }

    fn add_batch(&mut self, first: u16, count: u16, proxy: u16) -> Result<(), String> {
        let Some(proxy) = self.refs[self.proxy_index(proxy)] else {
            return Ok(());
        };
        self.read_clock();
        let indexes: Vec<_> = range(self.setup.nodes, first, count).map(usize::from).collect();
        let nodes: Vec<_> = indexes.iter().map(|&index| self.nodes[index].clone()).collect();
        let len = self.table.len();
        let result = self.table.add_nodes_with_handles(&nodes, proxy);
        let (counts, handles, error) = match result {
            Ok(AddedHandles { added, handles, .. }) => (Some(added), handles, None),
            Err(AddHandlesError { handles, error, .. }) => (None, handles, Some(error)),
        };
        ensure!(
            error.is_some() || handles.len() == nodes.len(),
            "{} of {} were added",
            handles.len(),
            nodes.len()
        );
        let mut inserted = 0;
        for (node, (&index, &handle)) in nodes.iter().zip(indexes.iter().zip(&handles)) {
            inserted += usize::from(self.model.add_of_batch(node, proxy)? == Added::Inserted);
            self.forget_handle(index, proxy);
            self.handles.push(Handle {
                handle,
                node: index,
                proxy,
                disturbed: false,
            });
        }
        if let Some(error) = error {
            self.model
                .check_add(&nodes[handles.len()], proxy, len + inserted, Err(error))?;
        }
        if let Some(counts) = counts {
            ensure!(
                counts.inserted == inserted && counts.len() == nodes.len(),
                "{counts:?}, expected {inserted} of {} to be inserted",
                nodes.len()
            );
        }
        Ok(())
    }

    fn refresh_handles(&mut self, proxy: u16) -> Result<(), String> {
        let Some(proxy) = self.refs[self.proxy_index(proxy)] else {
            return Ok(());
        };
        self.read_clock();
        let kept: Vec<_> = self
            .handles
            .iter()
            .copied()
            .filter(|handle| handle.proxy == proxy)
            .collect();
        let handles: Vec<_> = kept.iter().map(|kept| kept.handle).collect();
        let Ok(RefreshedRoutes { refreshed, gone, .. }) = self.table.refresh_routes(&handles, proxy) else {
            return self
                .model
                .check_add(&self.nodes[0], proxy, 0, Err(AddError::UnknownProxy));
        };
        ensure!(
            refreshed + gone.len() == handles.len(),
            "{refreshed} refreshed, {} gone",
            gone.len()
        );
        for (at, kept) in kept.iter().enumerate() {
            let node = &self.nodes[kept.node];
            let live = self.model.has(node, proxy);
            if gone.contains(&at) {
                ensure!(
                    !live || kept.disturbed,
                    "the handle of {node} is gone, but its route is there"
                );
            } else {
                ensure!(live, "refreshed {node} by its handle, but it has no such route");
                ensure!(
                    self.model.add_of_batch(node, proxy)? == Added::Refreshed,
                    "refreshed {node}"
                );
            }
        }
        Ok(())
    }

    /// Notes that one node, or every node, may have another record now.
    fn disturb(&mut self, node: Option<usize>) {
        let of_node = |handle: &&mut Handle| node.is_none_or(|node| handle.node == node);
        self.handles
            .iter_mut()
            .filter(of_node)
            .for_each(|handle| handle.disturbed = true);
        // Enough to try.
        let surplus = self.handles.len().saturating_sub(256);
        self.handles.drain(..surplus);
    }

    /// Forgets a handle that another handle replaces.
    fn forget_handle(&mut self, node: usize, proxy: ProxyRef) {
        self.handles
            .retain(|handle| (handle.node, handle.proxy) != (node, proxy));
    }

    fn add_by_ref(&mut self, node: u16, proxy: ProxyRef) -> Result<Result<Added, AddError>, String> {
        self.read_clock();
        let node = &self.nodes[self.node_index(node)];
        // Only a limit needs the number, and counting may be slow.
        let len = self.setup.max_routes.map_or(0, |_| self.table.len());
        let result = self.table.add_node(node, proxy);
        self.model.check_add(node, proxy, len, result)?;
        Ok(result)
    }

    fn get(&mut self, node: u16) -> Result<(), String> {
        let compare_times = self.read_clock();
        let node = &self.nodes[self.node_index(node)];
        self.model.check_get(node, &self.table.get_proxies(node), compare_times)
    }

    fn remove_node(&mut self, node: u16) -> Result<(), String> {
        self.read_clock();
        self.disturb(Some(self.node_index(node)));
        let node = &self.nodes[self.node_index(node)];
        self.model.check_remove_node(node, self.table.remove_node(node))
    }

    fn sweep(&mut self, max_records: usize) -> Result<(), String> {
        self.read_clock();
        self.disturb(None);
        let before = self.table.len();
        let report = self.table.sweep(max_records);
        self.model.check_sweep(max_records, (before, self.table.len()), report)
    }

    fn sweep_fully(&mut self) -> Result<(), String> {
        self.read_clock();
        self.disturb(None);
        sweep_fully(&self.table);
        self.model.check_full_sweep(self.table.len())
    }

    /// Lets the model see the clock's reading. Returns whether it is the latest that there was.
    fn read_clock(&mut self) -> bool {
        self.model
            .saw(u64::try_from(self.clock.monotonic().as_millis()).expect("a reading in range"))
    }

    fn node_index(&self, node: u16) -> usize {
        usize::from(node) % self.nodes.len()
    }

    fn proxy_index(&self, proxy: u16) -> usize {
        usize::from(proxy) % self.refs.len()
    }
}

/// A proxy with one of a few clusters.
fn described<'a>(id: &'a str, addr: &'a str, variant: u8) -> Proxy<'a> {
    let cluster_name = ["", "east", "west"][usize::from(variant % 3)];
    Proxy { id, cluster_name, addr }
}

/// Up to `count` different numbers below `size`, wrapping around.
fn range(size: u16, first: u16, count: u16) -> impl Iterator<Item = u16> {
    (0..count.min(size)).map(move |i| (first % size + i) % size)
}

/// The node with this number: a UUID three times out of four, otherwise a name.
pub(crate) fn node(number: u16) -> NodeId {
    if number % 4 == 3 {
        format!("node-{number}").parse().expect("a name")
    } else {
        Uuid::from_u128(0x550e_8400_e29b_41d4_a716_4466_5544_0000 + u128::from(number)).into()
    }
}

/// Compares the count of each proxy's routes with its routes, including the expired routes.
fn check_route_counts(table: &RouteTable, nodes: &[NodeId]) -> Result<(), String> {
    let mut counts = HashMap::new();
    for route in nodes.iter().flat_map(|node| table.explain(node)) {
        if let Some(details) = route.proxy {
            *counts.entry(details.id().to_owned()).or_insert(0) += 1;
        }
    }
    let page = table.proxies_page(ProxyCursor::default(), usize::MAX);
    for (proxy, details) in page.proxies {
        let counted = table.route_count(proxy);
        let routes = counts.get(details.id()).copied().or(Some(0));
        ensure!(
            counted == routes,
            "{counted:?} routes of {}, not {routes:?}",
            details.id()
        );
    }
    Ok(())
}
