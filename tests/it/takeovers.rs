//! A proxy begins one greater incarnation after the other. Readers never miss it.

use std::num::NonZeroU64;
use std::thread;
use std::time::Duration;

use crate::common::gate::Gate;
use crate::common::proxy;
use nodetracker::{BeginError, ProxyCursor, RouteTable};

const TAKEOVERS: u64 = 20_000;
/// Proxies that do not change, registered before and after the proxy that begins incarnations.
const OTHERS: usize = 300;

fn number(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).expect("not zero")
}

/// Lets a proxy begin one incarnation after the other. Calls `look` meanwhile, at least once.
fn during_takeovers(look: impl Fn(&RouteTable) + Sync) {
    // An interval that no test outlives: the sweeper drops no proxy.
    let table = RouteTable::builder()
        .keep_alive(Duration::from_secs(1 << 20))
        .build()
        .expect("possible limits");
    for other in 0..OTHERS {
        let begun = table.begin_incarnation(&proxy(&format!("other-{other}")), number(1));
        begun.expect("there is room");
    }
    table
        .begin_incarnation(&proxy("restarts"), number(1))
        .expect("there is room");
    let gate = Gate::new(2);
    thread::scope(|scope| {
        let (pass, table) = (gate.pass(), &table);
        let restarts = scope.spawn(move || {
            pass.wait();
            for incarnation in 2..TAKEOVERS * crate::common::scale() as u64 {
                let begun = table.begin_incarnation(&proxy("restarts"), number(incarnation));
                assert!(!begun.expect("there is room").is_resumed);
                table.sweep(1_000);
            }
        });
        gate.pass().wait();
        while !restarts.is_finished() {
            look(table);
        }
        look(table);
    });
}

#[test]
fn a_proxy_that_is_replaced_is_found() {
    during_takeovers(|table| {
        for _ in 0..1_000 {
            assert!(table.find_proxy("restarts").is_some());
        }
    });
}

#[test]
fn a_proxy_that_is_replaced_is_counted_once() {
    during_takeovers(|table| {
        for _ in 0..100 {
            assert_eq!(table.stats().proxies, OTHERS + 1);
        }
    });
}

#[test]
fn a_proxy_that_is_replaced_is_listed_once() {
    during_takeovers(|table| {
        let (mut found, mut from) = (0, Some(ProxyCursor::default()));
        while let Some(cursor) = from {
            let page = table.proxies_page(cursor, 50);
            found += page
                .proxies
                .iter()
                .filter(|(_, details)| details.id() == "restarts")
                .count();
            from = page.next;
        }
        assert_eq!(found, 1);
    });
}

#[test]
fn a_proxy_that_is_replaced_is_in_a_snapshot_with_an_incarnation() {
    during_takeovers(|table| {
        let mut bytes = Vec::new();
        let size = table.write_snapshot(&mut bytes).expect("memory can be written to");
        assert_eq!(size.proxies, OTHERS as u64 + 1);
        let read = RouteTable::new();
        read.read_snapshot(bytes.as_slice()).expect("a good snapshot");
        let found = read.find_proxy("restarts").expect("it was registered all the while");
        let incarnation = read.incarnation(found).expect("it had one all the while");
        if let Some(older) = NonZeroU64::new(incarnation.get() - 1) {
            let late = read.begin_incarnation(&proxy("restarts"), older);
            assert!(
                matches!(late, Err(BeginError::Stale(_))),
                "{late:?} after {incarnation}"
            );
        }
    });
}
