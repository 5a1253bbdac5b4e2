//! Any bytes as a snapshot, as they are or under checksums that are right. See `fuzz/README.md`.
#![no_main]

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use crc32fast::Hasher;
use libfuzzer_sys::fuzz_target;
use nodetracker::snapshot::Ages;
use nodetracker::{ManualClock, NodeId, Proxy, RouteTable};

const KEEP_ALIVE: Duration = Duration::from_secs(1 << 30);

/// A snapshot in the making: bytes from the input, and checksums that are right.
#[derive(Default)]
struct Forged {
    bytes: Vec<u8>,
    checksum: Hasher,
}

impl Forged {
    fn part(&mut self, bytes: &[u8]) {
        self.checksum.update(bytes);
        self.bytes.extend(bytes);
        self.bytes.extend(self.checksum.clone().finalize().to_le_bytes());
    }

    fn section(&mut self, kind: u8, items: u32, payload: &[u8]) {
        let head = [&[kind][..], &items.to_le_bytes(), &(payload.len() as u32).to_le_bytes()].concat();
        self.part(&head);
        self.part(payload);
    }
}

/// Sections of what the input says: each has its kind and number of items in a byte, the length of its payload in
/// another, and the payload. The last byte is the number of routes.
fn forge(mut input: &[u8]) -> Vec<u8> {
    let mut forged = Forged::default();
    let mut header = b"\x89NTRACK\n\x01\0\0\0".to_vec();
    header.extend(1_637_625_600_000_i64.to_le_bytes());
    forged.part(&header);
    let mut totals = [0_u64; 3];
    totals[2] = input.split_off_last().copied().unwrap_or(0).into();
    while let [first, len, rest @ ..] = input {
        let (kind, items) = (first % 4 + 1, u32::from(first / 4));
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        forged.section(kind, items, payload);
        totals[usize::from(kind != 1)] += u64::from(items);
        input = rest;
    }
    let totals: Vec<u8> = totals.iter().flat_map(|total| total.to_le_bytes()).collect();
    forged.section(4, 0, &totals);
    forged.bytes
}

fn table(clock: &ManualClock) -> RouteTable {
    RouteTable::builder()
        .keep_alive(KEEP_ALIVE)
        .clock(clock.clone())
        .build()
}

type Content = HashMap<NodeId, Vec<([String; 3], SystemTime)>>;

fn content(table: &RouteTable) -> Content {
    let mut content = Content::new();
    table.for_each_route(|node, route| {
        let details = table.proxy(route.proxy).expect("its routes are reported");
        let strings = [details.id, details.cluster_name, details.addr].map(Into::into);
        content
            .entry(node.clone())
            .or_default()
            .push((strings, route.last_refresh));
    });
    content
}

/// Reads a snapshot into a new table. What is good is written and read again; what is not leaves nothing behind.
fn read(bytes: &[u8], ages: Ages) {
    let clock = ManualClock::new();
    let new = table(&clock);
    let Ok(report) = new.read_snapshot_with(bytes, ages) else {
        assert_eq!((new.len(), new.stats().proxies, new.stats().records), (0, 0, 0));
        return;
    };
    assert_eq!(report.routes, report.inserted + report.known + report.expired);
    assert_eq!(
        (new.len() as u64, new.stats().proxies as u64),
        (report.inserted, report.proxies)
    );
    let content = content(&new);
    assert_eq!(content.values().map(Vec::len).sum::<usize>(), new.len());
    assert!(
        content
            .iter()
            .all(|(node, routes)| new.get_proxies(node).len() == routes.len())
    );

    let mut written = Vec::new();
    new.write_snapshot(&mut written).expect("a vector takes all");
    let again = table(&clock);
    again
        .read_snapshot(written.as_slice())
        .expect("it was written just now");
    assert!(
        self::content(&again) == content,
        "written and read again, it is another one"
    );
}

/// Reads a snapshot into a table that has something, and little room.
fn merge(bytes: &[u8]) {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1));
    let builder = RouteTable::builder().keep_alive(KEEP_ALIVE).clock(clock);
    let full = builder.max_routes(4).max_proxies(3).build();
    let proxy = Proxy {
        id: "a",
        cluster_name: "",
        addr: "a:1",
    };
    let proxy = full.register_proxy(&proxy).expect("there is room");
    let nodes = ["a", "00000000-0000-0000-0000-000000000000"].map(|id| id.parse::<NodeId>().expect("an ID"));
    nodes
        .iter()
        .for_each(|node| _ = full.add_node(node, proxy).expect("there is room"));
    let before = content(&full);
    match full.read_snapshot(bytes) {
        Ok(report) => {
            assert_eq!(full.len() as u64, 2 + report.inserted);
            assert!(full.len() <= 4 && full.stats().proxies <= 3);
            assert!(
                nodes
                    .iter()
                    .all(|node| full.get_proxies(node).iter().any(|route| route.proxy == proxy))
            );
        }
        Err(_) => assert!(
            content(&full) == before && full.stats().proxies == 1,
            "a snapshot was refused, and changed something"
        ),
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((how, rest)) = data.split_first() else { return };
    let forged;
    let bytes = if how & 1 == 0 {
        rest
    } else {
        forged = forge(rest);
        &forged
    };
    let ages = if how & 2 == 0 { Ages::Frozen } else { Ages::Continue };
    read(bytes, ages);
    merge(bytes);
});
