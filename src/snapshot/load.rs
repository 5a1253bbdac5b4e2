//! Loads a snapshot that was read into the table. First makes every check that can refuse the snapshot, and then
//! registers the proxies. Then fills the shards, as many at a time as rayon's pool has threads.
//!
//! A shard that never had a node is built in private and published with one CAS
//! ([`bulk_load`](crate::shard::bulk_load)). If the shard had a node, or the CAS fails, routes are added one by one,
//! the oldest of a node first. So the newest stands before routes that were refreshed in the same tick.

#[cfg(all(test, loom))]
mod models;

use std::collections::HashMap;

use rayon::prelude::*;

use crate::error::BeginError;
use crate::feed::{Event, Reason};
use crate::liveness::Liveness;
use crate::proxies::Proxies;
use crate::proxies::begin::Prospect;
use crate::route_limit::RouteLimit;
use crate::shard::bulk_load::NoIndex;
use crate::shard::routes::{Change, Words};
use crate::shard::{CapacityError, Scope};
use crate::snapshot::SnapshotReport;
use crate::snapshot::decode::{EndedItem, ProxyItem, ShardNodes, Snapshot};
use crate::snapshot::error::{SnapshotError, SnapshotFault, SnapshotPart};
use crate::snapshot::wire::damaged;
use crate::sync::pin;
use crate::table::RouteTable;
use crate::table::walk::{NodePosition, ShardScan};
use crate::types::node_id::NodeId;
use crate::types::proxy::ProxyRef;
use crate::types::route::Added;
use crate::word::Word;

/// How many routes are added, or nodes marked, under one pin.
const GROUP: usize = 64;

/// Makes the index of a part. Checks that no node is in the part twice. `sections` has the offsets of the sections.
fn make_index(table: &RouteTable, part: &mut ShardNodes, sections: &[u64]) -> Result<(), SnapshotError> {
    match part.nodes.make_index(part.shard, table.shards().hasher()) {
        Ok(()) => Ok(()),
        Err(NoIndex::Memory) => Err(SnapshotError::OutOfMemory),
        Err(NoIndex::Twice(first, second)) => {
            let node = part.nodes.node(second);
            let kind = if node.is_name() {
                SnapshotPart::Names
            } else {
                SnapshotPart::Uuids
            };
            let first = sections[part.section_of(first)];
            let fault = SnapshotFault::DuplicateNode { node, first };
            Err(damaged(kind, sections[part.section_of(second)], fault))
        }
    }
}

/// Reserved room for routes. Dropping it returns the room.
struct ReservedRoutes<'a> {
    count: &'a RouteLimit,
    routes: usize,
}

impl ReservedRoutes<'_> {
    /// Keeps the room of this many inserted routes reserved.
    fn use_up(&mut self, routes: usize) {
        debug_assert!(routes <= self.routes);
        self.routes -= routes;
    }

    /// Returns the room of one route, for the insertion to reserve.
    fn give_one(&mut self) {
        if self.routes > 0 {
            self.routes -= 1;
            self.count.release(1);
        }
    }
}

impl Drop for ReservedRoutes<'_> {
    fn drop(&mut self) {
        self.count.release(self.routes);
    }
}

/// The results of routes.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    inserted: u64,
    known: u64,
    refused: u64,
}

impl Tally {
    fn and(self, other: Tally) -> Tally {
        Tally {
            inserted: self.inserted + other.inserted,
            known: self.known + other.known,
            refused: self.refused + other.refused,
        }
    }
}

pub(super) fn load(table: &RouteTable, mut snapshot: Snapshot) -> Result<SnapshotReport, SnapshotError> {
    // Again: reading may have taken long. If a route was added meanwhile and has expired, the grace would make the
    // route valid again.
    if snapshot.hold_since().is_some() && !table.is_empty() {
        return Err(SnapshotError::NotEmpty);
    }
    let sections = &snapshot.sections;
    snapshot
        .parts
        .par_iter_mut()
        .try_for_each(|part| make_index(table, part, sections))?;

    let prospects = prospects(table, &snapshot)?;
    let needed: Vec<usize> = snapshot
        .parts
        .par_iter_mut()
        .map(|part| part.routes - present(table, part, &prospects))
        .collect();
    let total = needed.iter().sum();
    let count = table.route_limit();
    if !count.reserve(total) {
        return Err(SnapshotError::TooManyRoutes {
            needed: total,
            limit: count.limit(),
        });
    }
    let reserved: Vec<ReservedRoutes<'_>> = needed
        .into_iter()
        .map(|routes| ReservedRoutes { count, routes })
        .collect();

    // The table changes from here on.
    if let Some(since) = snapshot.hold_since() {
        table.begin_grace(since);
    }
    let proxies = register(table, &snapshot, &prospects)?;
    let remember = |item: &&EndedItem| {
        table
            .proxies()
            .remember_ended(&item.id, item.ended, table.moment(), &pin())
    };
    let incarnations_left_out = snapshot.ended.iter().filter(|item| !remember(item)).count() as u64;
    if snapshot.has_names() {
        table.shards().ensure_names();
    }
    let tallies: Vec<_> = snapshot
        .parts
        .into_par_iter()
        .zip(reserved)
        .map(|(part, reserved)| {
            let bulk = Bulk {
                table,
                proxies: &proxies,
                reserved,
                tally: Tally::default(),
            };
            bulk.add(part)
        })
        .collect();
    let mut tally = Tally::default();
    for part in tallies {
        tally = tally.and(part?);
    }
    let Tally {
        inserted,
        known,
        refused,
    } = tally;
    Ok(SnapshotReport {
        written_at: snapshot.written_at,
        downtime: snapshot.downtime,
        proxies: snapshot.proxies.len() as u64,
        nodes: snapshot.nodes,
        routes: snapshot.routes,
        incarnations: snapshot.incarnations,
        incarnations_left_out,
        inserted,
        known,
        expired: snapshot.expired,
        refused,
    })
}

/// The results that restoring the snapshot's proxies would have, if there is room for all of them.
fn prospects(table: &RouteTable, snapshot: &Snapshot) -> Result<Vec<Prospect>, SnapshotError> {
    let at = table.moment();
    // Incarnations may have ended after the writer copied their proxies.
    let ended: HashMap<_, _> = snapshot.ended.iter().map(|item| (&item.id, item.ended)).collect();
    let has_ended = |proxy: &ProxyItem| match (ended.get(&proxy.id), proxy.incarnation) {
        (Some(ended), Some(incarnation)) => ended.check(incarnation).is_err(),
        _ => false,
    };
    let prospect = |proxy: &ProxyItem| match has_ended(proxy) {
        true => Prospect::Stale,
        false => table.proxies().prospect(&proxy.id, proxy.incarnation, at, &pin()),
    };
    let mut prospects: Vec<_> = snapshot.proxies.iter().map(prospect).collect();
    let (new, has_room) = count_new(table, &prospects);
    if has_room {
        return Ok(prospects);
    }
    // A proxy that was removed while the writer copied proxies has no routes.
    for (prospect, has_routes) in prospects.iter_mut().zip(have_routes(snapshot)) {
        if *prospect == Prospect::New && !has_routes {
            *prospect = Prospect::Stale;
        }
    }
    match count_new(table, &prospects) {
        (_, true) => Ok(prospects),
        (_, false) => Err(SnapshotError::TooManyProxies {
            needed: new,
            limit: table.proxies().limit(),
        }),
    }
}

/// How many proxies would be new, and whether the table has room for them and for those that replace others.
fn count_new(table: &RouteTable, prospects: &[Prospect]) -> (usize, bool) {
    let count = |wanted| prospects.iter().filter(|prospect| **prospect == wanted).count();
    let new = count(Prospect::New);
    (new, table.proxies().has_room(new, count(Prospect::Replaces)))
}

/// Whether each of the snapshot's proxies has a route.
fn have_routes(snapshot: &Snapshot) -> Vec<bool> {
    let mut have_routes = vec![false; snapshot.proxies.len()];
    for (_, routes) in snapshot.parts.iter().flat_map(|part| part.nodes.iter()) {
        for route in routes {
            have_routes[route.proxy() as usize] = true;
        }
    }
    have_routes
}

/// Registers the snapshot's proxies that are not yet registered. Returns all of these proxies, except stale proxies.
fn register(
    table: &RouteTable,
    snapshot: &Snapshot,
    prospects: &[Prospect],
) -> Result<Vec<Option<ProxyRef>>, SnapshotError> {
    let restore = |(proxy, prospect): (&ProxyItem, &Prospect)| match prospect {
        Prospect::Stale => Ok(None),
        _ => table.restore_proxy(&proxy.as_proxy(), proxy.incarnation),
    };
    let restored: Result<_, BeginError> = snapshot.proxies.iter().zip(prospects).map(restore).collect();
    restored.map_err(|_| SnapshotError::TooManyProxies {
        needed: snapshot.proxies.len(),
        limit: table.proxies().limit(),
    })
}

/// How many of a part's routes its shard has.
///
/// Routes of a stale incarnation are not known, so room is reserved for them, too, and returned later.
fn present(table: &RouteTable, part: &ShardNodes, prospects: &[Prospect]) -> usize {
    if table.shards().is_untouched(part.shard, &pin()) {
        return 0;
    }
    let of_node = |(node, routes): (NodeId, Words)| {
        let guard = pin();
        let words = table.shards().routes(&node, table.hash(&node), &table.scope(&guard));
        let is_there = |route: &&Word| {
            let Prospect::Known(proxy) = prospects[route.proxy() as usize] else {
                return false;
            };
            words.iter().any(|word| word.proxy() == proxy.number)
        };
        routes.iter().filter(is_there).count()
    };
    part.nodes.iter().map(of_node).sum()
}

/// Adds a part's routes to its shard.
struct Bulk<'a> {
    table: &'a RouteTable,
    /// `None` for proxies of a stale incarnation.
    proxies: &'a [Option<ProxyRef>],
    reserved: ReservedRoutes<'a>,
    tally: Tally,
}

impl Bulk<'_> {
    fn add(mut self, mut part: ShardNodes) -> Result<Tally, SnapshotError> {
        if part.nodes.len() == 0 || self.fill(&mut part) {
            return Ok(self.tally);
        }
        let mut nodes = part.nodes.iter().peekable();
        while nodes.peek().is_some() {
            let guard = pin();
            let scope = self.table.scope(&guard);
            let mut left = GROUP;
            while left > 0
                && let Some((node, routes)) = nodes.next()
            {
                // Each route may replace a list.
                left = left.saturating_sub(routes.len());
                let hash = self.table.hash(&node);
                for route in routes.iter().rev() {
                    self.add_one(&node, hash, *route, &scope)?;
                }
            }
        }
        Ok(self.tally)
    }

    /// Fills the shard if it never had a node, and if all proxies of the part take routes. Returns whether it did.
    fn fill(&mut self, part: &mut ShardNodes) -> bool {
        let guard = pin();
        let scope = self.table.scope(&guard);
        let proxies = self.table.proxies();
        let (mut all_take, mut of_proxies) = (true, HashMap::new());
        let is_counted = proxies.route_counts().is_some();
        part.nodes.update(|route| {
            match self.route(route) {
                Some(word) if is_counted => *of_proxies.entry(word.proxy()).or_insert(0) += 1,
                Some(_) => {}
                None => all_take = false,
            }
            route
        });
        if !all_take {
            return false;
        }
        let number = |route: Word| self.proxies[route.proxy() as usize].map_or(0, |proxy| proxy.number);
        part.nodes.update(|route| Word::live(number(route), route.time()));
        if !self.table.shards().fill(part.shard, &mut part.nodes, &scope) {
            let numbers = self
                .proxies
                .iter()
                .zip(0..)
                .filter_map(|(proxy, at)| Some((proxy.as_ref()?.number, at)));
            let places: HashMap<u32, u32> = numbers.collect();
            part.nodes.update(|word| Word::live(places[&word.proxy()], word.time()));
            return false;
        }
        of_proxies
            .into_iter()
            .for_each(|(proxy, routes)| proxies.count(proxy, routes));
        drop(guard);
        self.reserved.use_up(part.routes);
        self.tally.inserted = part.routes as u64;
        if self.table.feed().is_followed() {
            self.mark(part.shard);
        }
        true
    }

    /// Marks every node of a shard for subscribers.
    fn mark(&self, shard: usize) {
        let (mut at, mut copy) = (NodePosition::Shard(shard), ShardScan::default());
        loop {
            let next = self.table.scan_next(&at, GROUP, &mut copy).next;
            // One pin for a group of nodes: each mark may retire the entry that it overwrites.
            let guard = pin();
            for (node, _) in copy.nodes() {
                self.table.feed().mark(shard, &guard, || Event::Node {
                    node: node.clone(),
                    reason: Reason::Added,
                });
            }
            match next {
                None | Some(NodePosition::Shard(_)) => return,
                Some(next) => at = next,
            }
        }
    }

    /// The word of a snapshot's route, if the route's proxy takes routes. The word is usable until the end of the
    /// caller's pin: see `proxies`.
    fn route(&self, route: Word) -> Option<Word> {
        let proxy = self.proxies[route.proxy() as usize]?;
        self.table
            .proxies()
            .takes_routes(proxy)
            .then(|| Word::live(proxy.number, route.time()))
    }

    fn add_one(
        &mut self,
        node: &NodeId,
        hash: u64,
        route: Word,
        scope: &Scope<'_, Proxies>,
    ) -> Result<(), SnapshotError> {
        let Some(word) = self.route(route) else {
            self.tally.refused += 1;
            return Ok(());
        };
        let (proxy, time) = (word.proxy(), word.time());
        self.reserved.give_one();
        match self
            .table
            .shards()
            .put(node, hash, Change::Restore { proxy, time }, scope)
        {
            Ok((Added::Inserted, _)) => {
                self.table.proxies().touch(proxy, scope.now);
                self.tally.inserted += 1;
            }
            Ok((Added::Refreshed, _)) => self.tally.known += 1,
            Err(CapacityError::Routes | CapacityError::RoutesOf(_) | CapacityError::Text) => self.tally.refused += 1,
            Err(CapacityError::Memory) => return Err(SnapshotError::OutOfMemory),
        }
        Ok(())
    }
}
