//! Writing a snapshot.

use std::io::{self, Write};
use std::num::NonZeroU64;

use ahash::RandomState;
use hashbrown::HashMap;
use smallvec::SmallVec;

use crate::proxies::Proxies;
use crate::proxies::ended::EndedIncarnation;
use crate::snapshot::SnapshotSize;
use crate::snapshot::wire::{MAGIC, Section, SectionKind, Sink, VERSION, put_text, put_varint};
use crate::sync::pin;
use crate::table::RouteTable;
use crate::types::node_id::IdKind;
use crate::types::proxy::{ProxyDetails, ProxyRef};

pub(super) fn write(table: &RouteTable, to: impl Write) -> io::Result<SnapshotSize> {
    let begun = table.now();
    let mut sink = Sink::new(to);
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend(table.time().wall_clock().to_le_bytes());
    sink.write(&header)?;

    let mut section = Section::new(SectionKind::Proxies);
    let indexes = write_proxies(table, &mut section, &mut sink)?;
    let (mut nodes, mut total) = (0, 0);
    table.walk(|node, copied| {
        // Proxies that were registered later are not in the snapshot, and neither are their routes.
        let routes: SmallVec<[(u32, u64); 4]> = copied
            .iter()
            .filter_map(|route| Some((*indexes.get(&route.proxy)?, begun.saturating_sub(route.tick))))
            .collect();
        if routes.is_empty() {
            return Ok(());
        }
        nodes += 1;
        total += routes.len() as u64;
        match node.kind() {
            IdKind::Uuid(uuid) => section.push(SectionKind::Uuids, &mut sink, |payload| {
                payload.extend(uuid.as_bytes());
                put_routes(payload, &routes);
            }),
            IdKind::Name(name) => section.push(SectionKind::Names, &mut sink, |payload| {
                put_text(payload, name);
                put_routes(payload, &routes);
            }),
        }
    })?;
    let mut incarnations = 0;
    let has_all_incarnations = table
        .proxies()
        .each_ended(table.moment(), |EndedIncarnation { id, ended }| {
            incarnations += 1;
            section.push(SectionKind::Incarnations, &mut sink, |payload| {
                put_text(payload, &id.to_compact_string());
                put_varint(payload, ended.incarnation.get());
                payload.push(ended.is_over.into());
                put_varint(payload, begun.saturating_sub(ended.tick));
            })
        })?;
    section.write(&mut sink)?;
    let proxies = indexes.len() as u64;
    Section::write_end([proxies, nodes, total, incarnations], &mut sink)?;
    sink.flush()?;
    Ok(SnapshotSize {
        proxies,
        nodes,
        routes: total,
        incarnations,
        has_all_incarnations,
        bytes: sink.bytes,
    })
}

/// Writes the proxies, including all proxies that are registered during the whole call, and each ID at most once.
/// Returns the number of each proxy.
///
/// If a proxy begins another incarnation meanwhile, the snapshot has one of its incarnations, and only routes of that
/// reference.
fn write_proxies<W: Write>(
    table: &RouteTable,
    section: &mut Section,
    sink: &mut Sink<W>,
) -> io::Result<HashMap<ProxyRef, u32, RandomState>> {
    let mut indexes = HashMap::default();
    for part in 0..Proxies::PARTS {
        for (proxy, details, incarnation) in copy_part(table, part) {
            section.push(SectionKind::Proxies, sink, |payload| {
                put_text(payload, &details.id);
                put_text(payload, &details.cluster_name);
                put_text(payload, &details.addr);
                put_varint(payload, incarnation.map_or(0, NonZeroU64::get));
            })?;
            indexes.insert(proxy, indexes.len() as u32);
        }
    }
    Ok(indexes)
}

/// Copies the proxies whose IDs are in one part, under one pin.
fn copy_part(table: &RouteTable, part: usize) -> Vec<(ProxyRef, ProxyDetails, Option<NonZeroU64>)> {
    let guard = pin();
    let proxies = table.proxies();
    let copy = |(_, proxy)| {
        // Take the details even if the proxy was removed since: it was registered with them under the pin.
        let details = proxies.last_details(proxy, &guard)?;
        Some((proxy, details, proxies.last_incarnation(proxy, &guard)))
    };
    proxies.in_part(part, &guard).into_iter().filter_map(copy).collect()
}

/// Appends routes: proxy and age, newest first.
fn put_routes(payload: &mut Vec<u8>, routes: &[(u32, u64)]) {
    payload.push(routes.len() as u8);
    let mut before = 0;
    for &(proxy, age) in routes {
        put_varint(payload, proxy.into());
        put_varint(payload, age - before);
        before = age;
    }
}
