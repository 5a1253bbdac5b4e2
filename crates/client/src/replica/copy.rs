//! A copy of a tracker's table: what readers see, and the writer that applies the messages of a watch.
//!
//! # Registrations
//!
//! A route belongs to a *registration* of a proxy. For a moment, a copy may have routes of two registrations under one
//! ID. The messages do not report which registration is later. A [`RouteTable`] has one proxy for each ID. So in the
//! table of a copy, the ID of a proxy is its registration, and the proxy's details are beside the table.
//!
//! # Parts
//!
//! A resync of a part removes the nodes of the part that were not sent again. The tracker's parts depend on a secret
//! hash, so the writer keeps the nodes of each part.

use std::collections::{HashMap, HashSet};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nodetracker::{AddError, Builder, MAX_ROUTES_PER_NODE, ManualClock, NodeId, Proxy, ProxyDetails};
use nodetracker::{ProxyRef, RegisterError, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::ProxyChangeReason;
use nodetracker_proto::v1::watch_change::Change;

use crate::tracker::Route;
use crate::wire::{InvalidNode, node_id, proxy_details};

/// What readers see of a copy.
#[derive(Debug)]
pub(super) struct TableCopy {
    table: RouteTable,
    /// The proxies of the table.
    proxies: papaya::HashMap<ProxyRef, ProxyDetails>,
}

impl TableCopy {
    /// Returns the routes of a node, in the tracker's order.
    pub(super) fn look_up(&self, node: &NodeId) -> Vec<Route> {
        let proxies = self.proxies.pin();
        let routes = self.table.get_proxies(node);
        // A proxy that is missing was removed after the table was read.
        let route = |route: &nodetracker::Route| {
            Some(Route {
                proxy: proxies.get(&route.proxy)?.clone(),
                last_refresh: route.last_refresh,
            })
        };
        routes.iter().filter_map(route).collect()
    }

    /// The number of routes, including those of removed proxies that were not swept yet.
    pub(super) fn route_count(&self) -> usize {
        self.table.len()
    }
}

/// Why a message could not be applied. The copy cannot be used any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// A node of a message has no valid ID.
    #[error("a node of the message: {0}")]
    Node(#[from] InvalidNode),
    /// A change or a route has no proxy, or names a position after the proxies of the message.
    #[error("a route of the message has no proxy")]
    NoProxy,
    /// A node has too many routes.
    #[error("a node of the message has {0} routes, the limit is {MAX_ROUTES_PER_NODE}")]
    TooManyRoutes(usize),
    /// A message names a part that does not exist.
    #[error("part {0} of the message is not below {parts}", parts = RouteTable::PARTS)]
    Part(u32),
    /// The copy has no room for another proxy.
    #[error(transparent)]
    Proxy(#[from] RegisterError),
    /// The copy has no room for another route.
    #[error(transparent)]
    Route(#[from] AddError),
}

/// A registration that the copy has.
#[derive(Debug)]
struct Registration {
    proxy: ProxyRef,
    /// Whether a message has named the registration since the proxies' resync began.
    is_confirmed: bool,
}

/// The nodes of a part that have routes.
#[derive(Debug, Default)]
struct Part {
    confirmed: HashSet<NodeId>,
    /// The nodes that were not sent again since the part's resync began.
    unconfirmed: HashSet<NodeId>,
    is_resyncing: bool,
}

/// Applies the messages of a watch to a copy.
#[derive(Debug)]
pub(super) struct Writer {
    copy: Arc<TableCopy>,
    /// The table's clock. So the time of a route is the time when the copy last got the route.
    clock: ManualClock,
    registrations: HashMap<u64, Registration>,
    parts: Vec<Part>,
    are_proxies_resyncing: bool,
    /// The place in the tracker's changes; `None` until the snapshot is complete.
    pub(super) place: Option<v1::WatchPlace>,
    /// The number of resyncs that began and are not complete.
    running_resyncs: usize,
    /// The number of resyncs that began.
    pub(super) resyncs: u64,
}

impl Writer {
    /// Creates an empty copy at the wall-clock time `wall`.
    pub(super) fn new(wall: SystemTime) -> Self {
        let clock = ManualClock::new();
        let epoch = nodetracker::Clock::wall(&clock);
        clock.advance(wall.duration_since(epoch).unwrap_or_default());
        let table = RouteTable::builder()
            // No route expires: the tracker sends the end of each route.
            .keep_alive(Duration::MAX)
            .clock(clock.clone())
            .max_routes(Builder::MAX_ROUTES)
            .max_proxies(Builder::MAX_PROXIES)
            // So that the table counts the routes of each proxy.
            .max_routes_per_proxy(Builder::MAX_ROUTES);
        let copy = TableCopy {
            table: table.build().expect("the limits are the greatest possible ones"),
            proxies: papaya::HashMap::new(),
        };
        Self {
            copy: Arc::new(copy),
            clock,
            registrations: HashMap::new(),
            parts: (0..RouteTable::PARTS).map(|_| Part::default()).collect(),
            are_proxies_resyncing: false,
            place: None,
            running_resyncs: 0,
            resyncs: 0,
        }
    }

    pub(super) fn copy(&self) -> &Arc<TableCopy> {
        &self.copy
    }

    /// Advances the copy's clock.
    pub(super) fn advance(&self, by: Duration) {
        self.clock.advance(by);
    }

    /// Whether some nodes may be behind until a resync completes.
    pub(super) fn is_resyncing(&self) -> bool {
        self.running_resyncs > 0
    }

    /// Whether the copy has every change before a place.
    pub(super) fn has_reached(&self, place: &v1::WatchPlace) -> bool {
        let reached = |own: v1::WatchPlace| own.generation == place.generation && own.sequence >= place.sequence;
        self.place.is_some_and(reached)
    }

    pub(super) fn snapshot(&mut self, snapshot: &v1::WatchSnapshot) -> Result<(), ApplyError> {
        self.set_proxies(&snapshot.proxies)?;
        for node in &snapshot.nodes {
            self.set_node(node, snapshot.part, &snapshot.proxies)?;
        }
        Ok(())
    }

    pub(super) fn changes(&mut self, changes: &v1::WatchChanges) -> Result<(), ApplyError> {
        self.set_proxies(&changes.proxies)?;
        for change in &changes.changes {
            match &change.change {
                Some(Change::Node(node)) => {
                    let routes = node.routes.as_ref().ok_or(InvalidNode::Missing)?;
                    self.set_node(routes, node.part, &changes.proxies)?;
                }
                Some(Change::Proxy(change)) => {
                    let proxy = change.proxy.as_ref().ok_or(ApplyError::NoProxy)?;
                    if change.reason() == ProxyChangeReason::Removed {
                        self.remove_proxy(proxy.registration);
                    } else {
                        self.set_proxy(proxy)?;
                        self.confirm(proxy.registration);
                    }
                }
                Some(Change::Resync(resync)) => self.resync(resync)?,
                // A change of a newer contract.
                None => {}
            }
            self.reach(change.sequence);
        }
        Ok(())
    }

    /// Records that the copy has every change up to a number. Before the end of a snapshot, the copy has no place, and
    /// this does nothing.
    pub(super) fn reach(&mut self, sequence: u64) {
        if let Some(place) = &mut self.place {
            place.sequence = place.sequence.max(sequence);
        }
    }

    /// Frees memory of removed proxies and their routes. Forgets proxies without routes, because the tracker does not
    /// always send their end.
    pub(super) fn sweep(&mut self, records: usize) {
        if !self.copy.table.sweep(records).round_completed {
            return;
        }
        let TableCopy { table, proxies } = &*self.copy;
        self.registrations.retain(|_, registration| {
            let is_used = table.route_count(registration.proxy) != Some(0);
            if !is_used {
                table.remove_proxy(registration.proxy);
                proxies.pin().remove(&registration.proxy);
            }
            is_used
        });
    }

    fn resync(&mut self, resync: &v1::WatchResync) -> Result<(), ApplyError> {
        let begins = !resync.is_complete;
        let is_running = match resync.part {
            Some(part) => &mut self.part(part)?.is_resyncing,
            None => &mut self.are_proxies_resyncing,
        };
        let was_running = mem::replace(is_running, begins);
        self.resyncs += u64::from(begins);
        self.running_resyncs = self.running_resyncs + usize::from(begins) - usize::from(was_running);
        match resync.part {
            Some(part) if begins => {
                let part = self.part(part)?;
                part.unconfirmed.extend(part.confirmed.drain());
            }
            Some(part) => {
                for node in mem::take(&mut self.part(part)?.unconfirmed) {
                    self.copy.table.remove_node(&node);
                }
            }
            None if begins => {
                for registration in self.registrations.values_mut() {
                    registration.is_confirmed = false;
                }
            }
            None if was_running => {
                let unconfirmed = self.registrations.iter().filter(|(_, known)| !known.is_confirmed);
                for registration in unconfirmed.map(|(registration, _)| *registration).collect::<Vec<_>>() {
                    self.remove_proxy(registration);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Replaces the routes of a node. Meanwhile, a look-up may find the former and the new routes. It never lacks a
    /// route that is among both, unless the node has its maximum of routes.
    fn set_node(&mut self, routes: &v1::NodeRoutes, part: u32, proxies: &[v1::WatchedProxy]) -> Result<(), ApplyError> {
        let node = node_id(routes.node.as_ref())?;
        if routes.routes.len() > MAX_ROUTES_PER_NODE {
            return Err(ApplyError::TooManyRoutes(routes.routes.len()));
        }
        let mut present = Vec::with_capacity(routes.routes.len());
        for route in &routes.routes {
            let proxy = proxies.get(route.proxy_index as usize).ok_or(ApplyError::NoProxy)?;
            // A proxy that was removed by an earlier change of the message has no routes.
            present.extend(self.confirm(proxy.registration));
        }
        let table = &self.copy.table;
        let former = table.get_proxies(&node);
        let remove_others = || {
            for route in former.iter().filter(|route| !present.contains(&route.proxy)) {
                table.remove_route(&node, route.proxy);
            }
        };
        if former.len() + present.len() > MAX_ROUTES_PER_NODE {
            remove_others();
        }
        // The latest addition comes first in the table. A route that is added again counts as reported again, which
        // ends complaints. So the routes that keep their places at the end are not added again. But if the routes are
        // the former routes, the tracker has lost one of these routes and got it again. The replica cannot know which
        // route, so all routes are added again.
        let mut kept = former
            .iter()
            .map(|route| route.proxy)
            .filter(|proxy| present.contains(proxy));
        let is_same = former.len() == present.len() && kept.clone().count() == present.len();
        let is_kept = |proxy: &ProxyRef| !is_same && kept.next_back() == Some(*proxy);
        let added = present.len() - present.iter().rev().copied().take_while(is_kept).count();
        for proxy in present[..added].iter().rev() {
            table.add_node(&node, *proxy)?;
        }
        remove_others();

        let is_gone = present.is_empty();
        let part = self.part(part)?;
        part.unconfirmed.remove(&node);
        if is_gone {
            part.confirmed.remove(&node);
        } else {
            part.confirmed.insert(node);
        }
        Ok(())
    }

    fn part(&mut self, part: u32) -> Result<&mut Part, ApplyError> {
        self.parts.get_mut(part as usize).ok_or(ApplyError::Part(part))
    }

    fn set_proxies(&mut self, proxies: &[v1::WatchedProxy]) -> Result<(), ApplyError> {
        proxies.iter().try_for_each(|proxy| self.set_proxy(proxy))
    }

    /// Registers a proxy, or gives a registered proxy other details.
    fn set_proxy(&mut self, watched: &v1::WatchedProxy) -> Result<(), ApplyError> {
        let details = watched.proxy.as_ref().ok_or(ApplyError::NoProxy)?;
        let details = proxy_details(details);
        let proxies = self.copy.proxies.pin();
        let proxy = match self.registrations.get(&watched.registration) {
            Some(known) if proxies.get(&known.proxy) == Some(&details) => return Ok(()),
            Some(known) => known.proxy,
            None => self.copy.table.register_proxy(&Proxy {
                id: &format!("{:016x}", watched.registration),
                cluster_name: "",
                addr: "registration:1",
            })?,
        };
        proxies.insert(proxy, details);
        self.registrations.entry(watched.registration).or_insert(Registration {
            proxy,
            is_confirmed: true,
        });
        Ok(())
    }

    /// Records that a message has named a registration. Returns the proxy of the registration, if the copy has it.
    fn confirm(&mut self, registration: u64) -> Option<ProxyRef> {
        let known = self.registrations.get_mut(&registration)?;
        known.is_confirmed = true;
        Some(known.proxy)
    }

    /// Removes a registration with all its routes.
    fn remove_proxy(&mut self, registration: u64) {
        if let Some(known) = self.registrations.remove(&registration) {
            self.copy.table.remove_proxy(known.proxy);
            self.copy.proxies.pin().remove(&known.proxy);
        }
    }
}

#[cfg(test)]
mod tests {
    use nodetracker_proto::v1::node_id::Id;

    use super::*;

    fn proxy(registration: u64, id: &str) -> v1::WatchedProxy {
        v1::WatchedProxy {
            registration,
            proxy: Some(v1::Proxy {
                proxy_id: id.to_owned(),
                cluster_name: "main".to_owned(),
                addr: "proxy:1".to_owned(),
            }),
        }
    }

    /// A node with a route through each of these proxies.
    fn node_routes(name: &str, proxies: std::ops::Range<u32>) -> v1::NodeRoutes {
        let route = |proxy_index| v1::IndexedRoute {
            proxy_index,
            last_refresh_time: None,
        };
        v1::NodeRoutes {
            node: Some(v1::NodeId {
                id: Some(Id::Name(name.to_owned())),
            }),
            routes: proxies.map(route).collect(),
        }
    }

    fn snapshot(proxies: Vec<v1::WatchedProxy>, nodes: Vec<v1::NodeRoutes>) -> v1::WatchSnapshot {
        v1::WatchSnapshot {
            proxies,
            nodes,
            part: 7,
        }
    }

    fn ids(writer: &Writer, name: &str) -> Vec<String> {
        let routes = writer.copy().look_up(&name.parse().expect("a name"));
        routes.iter().map(|route| route.proxy.id().to_owned()).collect()
    }

    fn new_writer() -> Writer {
        Writer::new(SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn a_node_can_replace_one_of_its_most_routes_and_keeps_the_trackers_order() {
        let most = MAX_ROUTES_PER_NODE as u32;
        let proxies: Vec<_> = (0..=most)
            .map(|number| proxy(u64::from(number), &format!("{number}")))
            .collect();
        let mut writer = new_writer();
        for range in [0..most, 1..most + 1, 0..2, 0..0, 3..4] {
            let expected: Vec<_> = range.clone().map(|number| number.to_string()).collect();
            let message = snapshot(proxies.clone(), vec![node_routes("node", range)]);
            writer.snapshot(&message).expect("a valid message");
            assert_eq!(ids(&writer, "node"), expected);
        }
        let message = snapshot(proxies, vec![node_routes("node", 0..most + 1)]);
        assert_eq!(
            writer.snapshot(&message),
            Err(ApplyError::TooManyRoutes(most as usize + 1))
        );
    }

    #[test]
    fn two_registrations_of_one_id_are_apart_until_one_is_removed() {
        let proxies = || vec![proxy(1, "proxy-1"), proxy(2, "proxy-1")];
        for (removed, left) in [(1, "second"), (2, "first")] {
            let mut writer = new_writer();
            let nodes = vec![node_routes("first", 0..1), node_routes("second", 1..2)];
            writer.snapshot(&snapshot(proxies(), nodes)).expect("a valid message");
            writer.remove_proxy(removed);
            let found = ["first", "second"].map(|name| (name, ids(&writer, name).len()));
            assert_eq!(found, found.map(|(name, _)| (name, usize::from(name == left))));
        }
    }

    #[test]
    fn a_proxy_that_lost_its_routes_is_forgotten() {
        let mut writer = new_writer();
        let message = snapshot(vec![proxy(1, "a"), proxy(2, "b")], vec![node_routes("node", 0..2)]);
        writer.snapshot(&message).expect("a valid message");
        let message = snapshot(vec![proxy(2, "b")], vec![node_routes("node", 0..1)]);
        writer.snapshot(&message).expect("a valid message");
        for _ in 0..3 {
            writer.sweep(usize::MAX);
        }
        assert_eq!(writer.registrations.keys().collect::<Vec<_>>(), [&2]);
        assert_eq!(ids(&writer, "node"), ["b"]);
        // The proxy comes back with its next route.
        let message = snapshot(vec![proxy(1, "a")], vec![node_routes("node", 0..1)]);
        writer.snapshot(&message).expect("a valid message");
        assert_eq!(ids(&writer, "node"), ["a"]);
    }
}
