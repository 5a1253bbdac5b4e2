//! Any bytes as a snapshot, as they are or under checksums that are right. See `fuzz/README.md`.
#![no_main]

#[path = "../../tests/common/content.rs"]
mod content;

use std::time::Duration;

use content::content;
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

/// Sections that the input describes. Each has its kind and number of items in a byte, the length of its payload in
/// another, and the payload. The last byte is the number of routes.
fn forge(mut input: &[u8]) -> Vec<u8> {
    let mut forged = Forged::default();
    let mut header = b"\x89NTRACK\n\x02\0\0\0".to_vec();
    header.extend(1_637_625_600_000_i64.to_le_bytes());
    forged.part(&header);
    let mut totals = [0_u64; 4];
    totals[2] = input.split_off_last().copied().unwrap_or(0).into();
    while let [first, len, rest @ ..] = input {
        let (kind, items) = (first % 4 + 1, u32::from(first / 4));
        let (payload, rest) = rest.split_at(rest.len().min(usize::from(*len)));
        forged.section(kind, items, payload);
        totals[[0, 1, 1, 3][usize::from(kind - 1)]] += u64::from(items);
        input = rest;
    }
    let totals: Vec<u8> = totals.iter().flat_map(|total| total.to_le_bytes()).collect();
    forged.section(5, 0, &totals);
    forged.bytes
}

/// A snapshot of valid parts: a few proxies, then a node for every four bytes or more. Names, nodes and routes may
/// occur twice.
fn compose(input: &[u8]) -> Vec<u8> {
    let mut bytes = input.iter().copied();
    let mut next = || bytes.next();
    let proxies = next().unwrap_or(0) % 4 + 1;
    let mut forged = Forged::default();
    forged.part(
        &[
            b"\x89NTRACK\n\x02\0\0\0".as_slice(),
            &1_637_625_600_000_i64.to_le_bytes(),
        ]
        .concat(),
    );
    let mut payload = Vec::new();
    for _ in 0..proxies {
        payload.extend([1, b'a' + next().unwrap_or(0) % 8, 0, 3]);
        payload.extend(b"a:1\0");
    }
    forged.section(1, proxies.into(), &payload);
    // Nodes with a UUID, and with a name: how many, and their items.
    let mut nodes = [(0, Vec::new()), (0, Vec::new())];
    let mut routes = 0_u64;
    while let Some(node) = next() {
        let is_name = node % 2 == 1;
        let (count, items) = &mut nodes[usize::from(is_name)];
        *count += 1;
        items.extend(if is_name {
            vec![2, b'n', b'0' + node / 2 % 64]
        } else {
            vec![node; 16]
        });
        let some = next().unwrap_or(0) % 4 + 1;
        items.push(some);
        for _ in 0..some {
            items.push(next().unwrap_or(0) % proxies);
            // An age, in one byte or two.
            match next().unwrap_or(0) {
                age @ ..0x80 => items.push(age),
                age => items.extend([age, 1]),
            }
        }
        routes += u64::from(some);
    }
    for ((count, items), kind) in nodes.iter().zip(2..) {
        if *count > 0 {
            forged.section(kind, *count, items);
        }
    }
    let totals = [proxies.into(), u64::from(nodes[0].0 + nodes[1].0), routes, 0];
    let totals: Vec<u8> = totals.iter().flat_map(|total| total.to_le_bytes()).collect();
    forged.section(5, 0, &totals);
    forged.bytes
}

fn table(clock: &ManualClock) -> RouteTable {
    RouteTable::builder()
        .keep_alive(KEEP_ALIVE)
        .clock(clock.clone())
        .build().expect("possible limits")
}

/// Reads a snapshot into a new table. A valid snapshot is written and read again; an invalid snapshot leaves no trace.
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

/// Reads a snapshot into a table that has routes, and little room.
fn merge(bytes: &[u8]) {
    let clock = ManualClock::new();
    clock.advance(Duration::from_secs(1));
    let builder = RouteTable::builder().keep_alive(KEEP_ALIVE).clock(clock);
    let full = builder.max_routes(4).max_proxies(3).build().expect("possible limits");
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
    let bytes = match how & 3 {
        0 => rest.to_vec(),
        1 => forge(rest),
        _ => compose(rest),
    };
    let ages = [Ages::Frozen, Ages::Continue, Ages::Grace][usize::from(how >> 2) % 3];
    read(&bytes, ages);
    merge(&bytes);
});
