//! Proxies and details keep changing. A table keeps memory only for the registered proxies. A single test, because the
//! allocator counts the whole process.

mod common;
#[allow(dead_code, reason = "a test uses a part of what it shares with the benches")]
#[path = "../benches/support/counting.rs"]
mod counting;

use std::alloc::System;
use std::time::Duration;

use common::{scale, sweep_fully};
use counting::Counting;
use nodetracker::{Added, ManualClock, NodeId, Proxy, ProxyRef, RegisterError, RouteTable};
use uuid::Uuid;

#[global_allocator]
static ALLOCATOR: Counting<System> = Counting(System);

const INTERVAL: Duration = Duration::from_secs(10);
const MAX_PROXIES: usize = 1_000;
/// How many proxies are registered in a normal run. At any time, the table has a fortieth of them at most.
const STRANGERS: u128 = 40_000;
/// Garbage of the last few hundred operations, which comes and goes. The strangers' details take 20 times as much.
const SLACK: usize = 256 << 10;

struct Arena {
    table: RouteTable,
    clock: ManualClock,
    node: NodeId,
    next: u128,
}

impl Arena {
    fn new() -> Self {
        let clock = ManualClock::new();
        let builder = RouteTable::builder().keep_alive(INTERVAL).clock(clock.clone());
        Self {
            table: builder.max_proxies(MAX_PROXIES).build().expect("possible limits"),
            clock,
            node: Uuid::from_u128(1).into(),
            next: 0,
        }
    }

    /// Registers a proxy that was never there, a UUID or a name, of a cluster and with an address that never were.
    fn stranger(&mut self) -> Result<ProxyRef, RegisterError> {
        self.next += 1;
        let number = self.next;
        let id = if number.is_multiple_of(2) {
            Uuid::from_u128(number).to_string()
        } else {
            format!("proxy-{number}")
        };
        self.register(&id, number)
    }

    fn register(&self, id: &str, number: u128) -> Result<ProxyRef, RegisterError> {
        self.table.register_proxy(&Proxy {
            id,
            cluster_name: &format!("cluster {number} of many, with a name that is stored apart"),
            addr: &format!("host-{number}.example:3080"),
        })
    }

    /// Frees the numbers of removed or idle proxies. Some numbers may stay in use.
    fn sweep(&self) {
        (0..4).for_each(|_| sweep_fully(&self.table));
    }

    /// Continues until this many strangers came. Compares the bytes in use after the first tenth with later counts.
    fn stays_flat(mut self, what: &str, mut round: impl FnMut(&mut Self)) {
        let strangers = STRANGERS * scale() as u128;
        let (mut first, mut most) = (0, 0);
        while self.next < strangers {
            let before = self.next;
            round(&mut self);
            assert!(
                self.next > before,
                "{what}: there was no room for anyone after {before} strangers"
            );
            most = most.max(counting::live());
            if self.next < strangers / 10 {
                first = most;
            }
        }
        println!("{what}: {first} bytes at first, {most} at most");
        assert!(
            most <= first + SLACK,
            "{what}: {first} bytes at first, {most} after {strangers} strangers"
        );
    }
}

#[test]
fn strangers_without_end_take_no_more_than_those_that_are_there() {
    Arena::new().stays_flat("removed", |arena| {
        while let Ok(proxy) = arena.stranger() {
            assert_eq!(arena.table.add_node(&arena.node, proxy), Ok(Added::Inserted));
            assert!(arena.table.remove_proxy(proxy));
        }
        arena.sweep();
    });
    Arena::new().stays_flat("dropped by the sweeper", |arena| {
        while arena.stranger().is_ok() {}
        arena.clock.advance(2 * INTERVAL);
        arena.sweep();
    });
    Arena::new().stays_flat("refused", |arena| {
        while arena.stranger().is_ok() {}
        for _ in 0..MAX_PROXIES {
            let refused = arena.stranger();
            assert_eq!(refused, Err(RegisterError::TooManyProxies { limit: MAX_PROXIES }));
        }
    });
    Arena::new().stays_flat("new details of the same", |arena| {
        for _ in 0..MAX_PROXIES {
            arena.next += 1;
            arena.register("proxy", arena.next).expect("there is room");
        }
        assert_eq!(arena.table.stats().proxies, 1);
    });
}
