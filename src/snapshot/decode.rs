//! Reads a snapshot into memory and checks all of it. Nothing here changes the table.
//!
//! The caller's thread reads the bytes and their checksums. All threads of rayon's pool decode the sections of nodes, a
//! group of sections at a time. They put the nodes at once into the memory that the nodes will have in the table
//! ([`NewNodes`]). Expired routes are dropped at once, and too many routes for the table are an error at once. So no
//! stream takes more memory than the table might.

use std::io::Read;
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use ahash::RandomState;
use compact_str::CompactString;
use rayon::prelude::*;
use uuid::Uuid;

use crate::error::{ProxyField, RegisterError};
use crate::layout::{MAX_ROUTES_PER_NODE, SHARDS};
use crate::proxies::incarnations::Ended;
use crate::shard::routes::Words;
use crate::shards::NewNodes;
use crate::snapshot::Ages;
use crate::snapshot::error::{SnapshotError, SnapshotFault, SnapshotPart};
use crate::snapshot::wire::{HEAD_BYTES, MAGIC, MAX_PAYLOAD, Payload, SectionKind, Source, VERSION, damaged};
use crate::sync::pin;
use crate::table::RouteTable;
use crate::time::after_epoch;
use crate::types::node_id::{NodeId, check_text};
use crate::types::proxy::Proxy;
use crate::word::{LAST_TICK, Word};

/// The most bytes of payload, and the most sections, that are read before they are decoded. A decoded node takes two
/// to three times as many bytes as its item.
const GROUP_BYTES: usize = 1 << 20;
const GROUP_SECTIONS: usize = 64;

/// A snapshot whose parts are valid, each by itself.
pub(super) struct Snapshot {
    pub(super) written_at: SystemTime,
    pub(super) downtime: Duration,
    ages: Ages,
    /// The present tick, and the keep-alive interval in ticks.
    now: u64,
    keep_alive: u64,
    /// The earliest tick of a last refresh or of an end.
    oldest: u64,
    pub(super) proxies: Vec<ProxyItem>,
    /// The ended incarnations that still count.
    pub(super) ended: Vec<EndedItem>,
    /// One part for each shard, by the shard's number.
    pub(super) parts: Vec<ShardNodes>,
    /// The positions of the sections that have unexpired nodes.
    pub(super) sections: Vec<u64>,
    /// All nodes and routes, and those of the routes that `parts` leaves out.
    pub(super) nodes: u64,
    pub(super) routes: u64,
    pub(super) expired: u64,
    /// All ended incarnations.
    pub(super) incarnations: u64,
}

pub(super) struct ProxyItem {
    pub(super) id: CompactString,
    cluster_name: CompactString,
    addr: CompactString,
    pub(super) incarnation: Option<NonZeroU64>,
    /// Where its section begins.
    section: u64,
}

/// An incarnation that has ended, with the tick of its end in this table's time.
pub(super) struct EndedItem {
    pub(super) id: CompactString,
    pub(super) ended: Ended,
    /// Where its section begins.
    section: u64,
}

impl ProxyItem {
    pub(super) fn as_proxy(&self) -> Proxy<'_> {
        Proxy {
            id: &self.id,
            cluster_name: &self.cluster_name,
            addr: &self.addr,
        }
    }
}

/// A snapshot's nodes of one shard, with their unexpired routes. The routes have the snapshot's numbers of their
/// proxies, and the ticks of their last refreshes in this table's time.
pub(super) struct ShardNodes {
    /// The shard's number.
    pub(super) shard: usize,
    pub(super) nodes: NewNodes,
    pub(super) routes: usize,
    /// The sections that have nodes of this part: the number of the first such node, and the section's number in
    /// [`Snapshot::sections`].
    runs: Vec<(u32, u32)>,
}

impl ShardNodes {
    pub(super) fn new(shard: usize) -> Self {
        Self {
            shard,
            nodes: NewNodes::of_shard(shard),
            routes: 0,
            runs: Vec::new(),
        }
    }

    /// Adds a node with its routes. `false` if there is no memory.
    #[must_use]
    pub(super) fn push(&mut self, node: &NodeId, routes: &[Word], section: u32, hasher: &RandomState) -> bool {
        if self.runs.last().is_none_or(|&(_, last)| last != section) {
            self.runs.push((self.nodes.len() as u32, section));
        }
        self.routes += routes.len();
        self.nodes.push(node, routes, hasher)
    }

    /// The number of a node's section in [`Snapshot::sections`].
    pub(super) fn section_of(&self, node: u32) -> usize {
        let run = self.runs.partition_point(|&(first, _)| first <= node) - 1;
        self.runs[run].1 as usize
    }
}

/// The contents of one section.
struct Decoded {
    nodes: Vec<DecodedNode>,
    routes: Vec<Word>,
    counts: Counts,
}

struct DecodedNode {
    id: NodeId,
    /// Where the node's routes end in `Decoded::routes`; they begin where those of the previous node end.
    end: u32,
    /// The node's part.
    part: u16,
}

// The documentation of `read_snapshot_with` states this figure.
const _: () = assert!(size_of::<DecodedNode>() == 32);

impl Decoded {
    /// The nodes, each with its routes, newest first.
    fn iter(&self) -> impl Iterator<Item = (&DecodedNode, &[Word])> {
        let mut start = 0;
        self.nodes.iter().map(move |node| {
            let routes = &self.routes[start..node.end as usize];
            start = node.end as usize;
            (node, routes)
        })
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    nodes: u64,
    routes: u64,
    expired: u64,
    /// The earliest tick of a last refresh.
    oldest: u64,
}

/// A section of nodes that is not decoded yet.
struct Raw {
    kind: SectionKind,
    items: u32,
    payload: Vec<u8>,
    /// The offsets of the section and its payload.
    offset: u64,
    payload_offset: u64,
}

/// The input of decoding.
struct Context<'a> {
    table: &'a RouteTable,
    proxies: usize,
    now: u64,
    keep_alive: u64,
    /// How much each age has grown, in ticks.
    downtime: u64,
    ages: Ages,
}

pub(super) fn read(table: &RouteTable, from: impl Read, ages: Ages) -> Result<Snapshot, SnapshotError> {
    let mut source = Source::new(from);
    let written_at = read_header(&mut source)?;
    // The wall clock may have any value, so the difference may exceed both types.
    let since = i128::from(table.time().wall_clock()) - i128::from(written_at);
    let downtime = match ages {
        Ages::Continue | Ages::Grace => u64::try_from(since.max(0)).unwrap_or(u64::MAX),
        Ages::Frozen => 0,
    };
    let (now, keep_alive) = {
        let guard = pin();
        let scope = table.scope(&guard);
        (scope.now, scope.keep_alive)
    };
    let mut context = Context {
        table,
        proxies: 0,
        now,
        keep_alive,
        downtime,
        ages,
    };
    let mut snapshot = Snapshot {
        written_at: after_epoch(written_at),
        downtime: Duration::from_millis(downtime),
        ages,
        now,
        keep_alive,
        oldest: now,
        proxies: Vec::new(),
        ended: Vec::new(),
        parts: (0..2 * SHARDS).map(ShardNodes::new).collect(),
        sections: Vec::new(),
        nodes: 0,
        routes: 0,
        expired: 0,
        incarnations: 0,
    };
    let mut group: Vec<Raw> = Vec::new();
    let mut last = SectionKind::Proxies;
    loop {
        let raw = read_section(&mut source, last)?;
        if raw.kind > SectionKind::Proxies && last == SectionKind::Proxies {
            let ids = snapshot.proxies.iter().map(|proxy| (&proxy.id, proxy.section));
            check_ids(ids, SnapshotPart::Proxies)?;
            context.proxies = snapshot.proxies.len();
        }
        last = raw.kind;
        match raw.kind {
            SectionKind::Proxies => snapshot.add_proxies(&raw, table)?,
            SectionKind::Uuids | SectionKind::Names => {
                if raw.items == 0 && raw.payload.is_empty() {
                    return Err(damaged(raw.kind.part(), raw.offset, SnapshotFault::Empty));
                }
                group.push(raw);
                let bytes: usize = group.iter().map(|raw| raw.payload.len()).sum();
                if bytes >= GROUP_BYTES || group.len() >= GROUP_SECTIONS {
                    snapshot.add_nodes(&group, &context)?;
                    group.clear();
                }
            }
            SectionKind::Incarnations => snapshot.add_ended(&raw, &context)?,
            SectionKind::End => {
                snapshot.add_nodes(&group, &context)?;
                let ids = snapshot.ended.iter().map(|ended| (&ended.id, ended.section));
                check_ids(ids, SnapshotPart::Incarnations)?;
                snapshot.check_totals(&raw)?;
                source.finish()?;
                return Ok(snapshot);
            }
        }
    }
}

impl Context<'_> {
    /// The tick of the last refresh of a route, or of the end of an incarnation, that had an age in the snapshot.
    /// `None` if it has expired.
    fn tick(&self, age: u64) -> Option<u64> {
        let age_now = age.saturating_add(self.downtime);
        match self.ages {
            // It had not expired when it was written. It is older than all that happens after the reading.
            Ages::Grace => Some(self.now.saturating_sub(age_now.max(1))),
            Ages::Continue | Ages::Frozen => (age_now <= self.keep_alive).then(|| self.now.saturating_sub(age_now)),
        }
    }

    /// The part that a node belongs to.
    fn part_of(&self, node: &NodeId) -> u16 {
        self.table.shards().number_of(node, self.table.hash(node)) as u16
    }
}

/// Reads the header. Returns the time of writing.
fn read_header<R: Read>(source: &mut Source<R>) -> Result<i64, SnapshotError> {
    let part = SnapshotPart::Header;
    let mut magic = [0; MAGIC.len()];
    source.read(&mut magic, part)?;
    if magic != MAGIC {
        return Err(SnapshotError::NotASnapshot);
    }
    let mut version = [0; 4];
    source.read(&mut version, part)?;
    let found = u32::from_le_bytes(version);
    if found != VERSION {
        return Err(SnapshotError::Version { found, known: VERSION });
    }
    let mut written_at = [0; 8];
    source.read(&mut written_at, part)?;
    source.check(part)?;
    Ok(i64::from_le_bytes(written_at))
}

/// Reads a section of kind `last` or later.
fn read_section<R: Read>(source: &mut Source<R>, last: SectionKind) -> Result<Raw, SnapshotError> {
    let offset = source.offset;
    let mut head = [0; HEAD_BYTES];
    source.read(&mut head, SnapshotPart::Head)?;
    source.check(SnapshotPart::Head)?;
    let [kind, i0, i1, i2, i3, b0, b1, b2, b3] = head;
    let kind = SectionKind::of(kind).ok_or_else(|| damaged(SnapshotPart::Head, offset, SnapshotFault::Kind(kind)))?;
    if kind < last {
        let fault = SnapshotFault::Order { after: last.part() };
        return Err(damaged(kind.part(), offset, fault));
    }
    let bytes = u32::from_le_bytes([b0, b1, b2, b3]);
    if bytes as usize > MAX_PAYLOAD {
        let most = MAX_PAYLOAD as u32;
        return Err(damaged(kind.part(), offset, SnapshotFault::TooLarge { bytes, most }));
    }
    let payload_offset = source.offset;
    let mut payload = vec![0; bytes as usize];
    source.read(&mut payload, kind.part())?;
    source.check(kind.part())?;
    Ok(Raw {
        kind,
        items: u32::from_le_bytes([i0, i1, i2, i3]),
        payload,
        offset,
        payload_offset,
    })
}

impl Raw {
    fn payload(&self) -> Payload<'_> {
        Payload::new(&self.payload, self.kind.part(), self.payload_offset)
    }
}

/// Checks that no ID is there twice. `ids` has the offsets of the IDs' sections.
fn check_ids<'a>(ids: impl Iterator<Item = (&'a CompactString, u64)>, part: SnapshotPart) -> Result<(), SnapshotError> {
    let mut order: Vec<_> = ids.collect();
    order.sort_unstable();
    match order.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => {
            let (id, first) = (pair[1].0.to_string(), pair[0].1);
            let fault = SnapshotFault::DuplicateProxy { id, first };
            Err(damaged(part, pair[1].1, fault))
        }
        None => Ok(()),
    }
}

impl Snapshot {
    fn add_proxies(&mut self, raw: &Raw, table: &RouteTable) -> Result<(), SnapshotError> {
        let mut payload = raw.payload();
        for _ in 0..raw.items {
            let start = payload.at;
            let (id, cluster_name, addr) = (payload.text()?, payload.text()?, payload.text()?);
            let incarnation = NonZeroU64::new(payload.varint()?);
            let proxy = Proxy { id, cluster_name, addr };
            proxy
                .check()
                .map_err(|error| payload.fault(start, SnapshotFault::Proxy(error)))?;
            // The writer copies one part of the proxies after the other. If the writer copies a proxy that is removed
            // later, and the proxy that is registered instead, there are more proxies than fit into the table.
            if self.proxies.len() == table.proxies().most_numbers() {
                let (needed, limit) = (self.proxies.len() + 1, table.proxies().limit());
                return Err(SnapshotError::TooManyProxies { needed, limit });
            }
            self.proxies.push(ProxyItem {
                id: id.into(),
                cluster_name: cluster_name.into(),
                addr: addr.into(),
                incarnation,
                section: raw.offset,
            });
        }
        payload.finish()
    }

    fn add_ended(&mut self, raw: &Raw, context: &Context<'_>) -> Result<(), SnapshotError> {
        let mut payload = raw.payload();
        for _ in 0..raw.items {
            let start = payload.at;
            let id = payload.text()?;
            check_text(id).map_err(|reason| {
                let field = ProxyField::Id;
                payload.fault(start, SnapshotFault::Proxy(RegisterError::Invalid { field, reason }))
            })?;
            let at = payload.at;
            let incarnation = NonZeroU64::new(payload.varint()?);
            let incarnation = incarnation.ok_or_else(|| payload.fault(at, SnapshotFault::NoIncarnation))?;
            let at = payload.at;
            let is_over = match payload.byte()? {
                0 => false,
                1 => true,
                other => return Err(payload.fault(at, SnapshotFault::End(other))),
            };
            let at = payload.at;
            let age = payload.varint()?;
            if age > LAST_TICK {
                return Err(payload.fault(at, SnapshotFault::Age));
            }
            self.incarnations += 1;
            let Some(tick) = context.tick(age) else { continue };
            self.oldest = self.oldest.min(tick);
            let limit = context.table.proxies().most_incarnations();
            if self.ended.len() == limit {
                let needed = limit + 1;
                return Err(SnapshotError::TooManyIncarnations { needed, limit });
            }
            self.ended.push(EndedItem {
                id: id.into(),
                ended: Ended {
                    incarnation,
                    tick,
                    is_over,
                    client: None,
                },
                section: raw.offset,
            });
        }
        payload.finish()
    }

    fn add_nodes(&mut self, group: &[Raw], context: &Context<'_>) -> Result<(), SnapshotError> {
        let decoded: Vec<_> = group.par_iter().map(|raw| decode(raw, context)).collect();
        let decoded = decoded.into_iter().collect::<Result<Vec<_>, _>>()?;
        let first = self.sections.len() as u32;
        for (raw, section) in group.iter().zip(&decoded) {
            self.nodes += section.counts.nodes;
            self.routes += section.counts.routes;
            self.expired += section.counts.expired;
            self.oldest = self.oldest.min(section.counts.oldest);
            let (needed, limit) = (
                (self.routes - self.expired) as usize,
                context.table.route_limit().limit(),
            );
            if needed > limit {
                return Err(SnapshotError::TooManyRoutes { needed, limit });
            }
            if !section.nodes.is_empty() {
                self.sections.push(raw.offset);
            }
        }
        // Each thread takes a range of shards, and picks their nodes from all sections.
        let range = self.parts.len().div_ceil(rayon::current_num_threads());
        self.parts
            .par_chunks_mut(range)
            .enumerate()
            .try_for_each(|(nth, parts)| {
                let with_nodes = decoded.iter().filter(|section| !section.nodes.is_empty());
                for (section, number) in with_nodes.zip(first..) {
                    for (node, routes) in section.iter() {
                        let at = usize::from(node.part).checked_sub(nth * range);
                        if let Some(part) = at.and_then(|at| parts.get_mut(at))
                            && !part.push(&node.id, routes, number, context.table.shards().hasher())
                        {
                            return Err(SnapshotError::OutOfMemory);
                        }
                    }
                }
                Ok(())
            })
    }

    /// The tick at which expiry is held, so that nothing of the snapshot has expired; `None` if expiry is not held.
    pub(super) fn hold_since(&self) -> Option<u64> {
        let since = self.oldest.saturating_add(self.keep_alive).min(self.now - 1);
        (self.ages == Ages::Grace).then_some(since)
    }

    /// Whether any node has a name.
    pub(super) fn has_names(&self) -> bool {
        self.parts
            .iter()
            .any(|part| part.shard >= SHARDS && part.nodes.len() > 0)
    }

    fn check_totals(&self, end: &Raw) -> Result<(), SnapshotError> {
        let mut payload = end.payload();
        let found = [
            ("proxies", self.proxies.len() as u64),
            ("nodes", self.nodes),
            ("routes", self.routes),
            ("ended incarnations", self.incarnations),
        ];
        for (of, found) in found {
            let at = payload.at;
            let stored = u64::from_le_bytes(payload.array()?);
            if stored != found {
                return Err(payload.fault(at, SnapshotFault::Total { of, stored, found }));
            }
        }
        payload.finish()
    }
}

/// Decodes a section of nodes.
fn decode(raw: &Raw, context: &Context<'_>) -> Result<Decoded, SnapshotError> {
    let are_names = raw.kind == SectionKind::Names;
    // The minimum length of an item: a UUID or a name of one byte, and one route.
    let shortest = if are_names { 5 } else { 19 };
    let room = (raw.items as usize).min(raw.payload.len() / shortest);
    let mut decoded = Decoded {
        nodes: Vec::with_capacity(room),
        routes: Vec::with_capacity(room),
        counts: Counts {
            oldest: u64::MAX,
            ..Counts::default()
        },
    };
    let mut payload = raw.payload();
    let mut routes = Words::new();
    for _ in 0..raw.items {
        let start = payload.at;
        let id = if are_names {
            let id: NodeId = payload
                .text()?
                .parse()
                .map_err(|error| payload.fault(start, SnapshotFault::NodeId(error)))?;
            if id.as_uuid().is_some() {
                return Err(payload.fault(start, SnapshotFault::UuidAsName(id)));
            }
            id
        } else {
            Uuid::from_bytes(payload.array()?).into()
        };
        routes.clear();
        let all = decode_routes(&mut payload, context, &mut routes)?;
        decoded.counts.nodes += 1;
        decoded.counts.routes += all as u64;
        decoded.counts.expired += (all - routes.len()) as u64;
        // The last route is the oldest.
        let oldest = routes.last().map_or(u64::MAX, |route| route.time());
        decoded.counts.oldest = decoded.counts.oldest.min(oldest);
        if !routes.is_empty() {
            decoded.routes.extend_from_slice(&routes);
            decoded.nodes.push(DecodedNode {
                part: context.part_of(&id),
                end: decoded.routes.len() as u32,
                id,
            });
        }
    }
    payload.finish()?;
    Ok(decoded)
}

/// Decodes a node's routes. Returns their number, expired routes included.
fn decode_routes(payload: &mut Payload<'_>, context: &Context<'_>, routes: &mut Words) -> Result<usize, SnapshotError> {
    let at = payload.at;
    let count = payload.byte()?;
    if count == 0 || usize::from(count) > MAX_ROUTES_PER_NODE {
        return Err(payload.fault(at, SnapshotFault::Routes(count)));
    }
    let count = usize::from(count);
    let mut age = 0_u64;
    let mut proxies = [0; MAX_ROUTES_PER_NODE];
    for nth in 0..count {
        let at = payload.at;
        let index = payload.varint()?;
        let proxy = match u32::try_from(index) {
            Ok(proxy) if (proxy as usize) < context.proxies => proxy,
            _ => {
                let proxies = context.proxies;
                return Err(payload.fault(at, SnapshotFault::NoSuchProxy { index, proxies }));
            }
        };
        if proxies[..nth].contains(&proxy) {
            return Err(payload.fault(at, SnapshotFault::SameProxy(proxy)));
        }
        proxies[nth] = proxy;
        let at = payload.at;
        age = age.saturating_add(payload.varint()?);
        if age > LAST_TICK {
            return Err(payload.fault(at, SnapshotFault::Age));
        }
        routes.extend(context.tick(age).map(|tick| Word::live(proxy, tick)));
    }
    Ok(count)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};

    /// A stream may have any number of sections whose nodes have expired, so the reader must keep nothing of these
    /// sections.
    #[test]
    fn sections_of_expired_nodes_are_not_remembered() {
        let clock = ManualClock::new();
        let table = RouteTable::builder()
            .clock(clock.clone())
            .build()
            .expect("possible limits");
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "",
            addr: "a:1",
        };
        let proxy = table.register_proxy(&proxy).expect("there is room");
        for number in 0..100_u128 {
            table
                .add_node(&Uuid::from_u128(number).into(), proxy)
                .expect("there is room");
        }
        let mut bytes = Vec::new();
        table.write_snapshot(&mut bytes).expect("memory can be written to");
        for (elapsed, sections) in [(Duration::ZERO, 1), (table.keep_alive() + Duration::from_secs(1), 0)] {
            let beside = ManualClock::new();
            beside.set(clock.monotonic() + elapsed);
            let other = RouteTable::builder().clock(beside).build().expect("possible limits");
            let snapshot = read(&other, bytes.as_slice(), Ages::Continue).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(snapshot.nodes, 100);
            assert_eq!(snapshot.sections.len(), sections, "after {elapsed:?}");
        }
    }
}
