//! The data that the programs put into a table. Each key and address is computed from a number, so no key is kept, and
//! nothing here is on the heap.

use std::io::Write;
use std::time::Duration;

use nodetracker::{Added, ManualClock, NodeId, Proxy, ProxyRef, RouteTable};
use uuid::Uuid;

/// The number of proxies, unless a program has another number.
pub(crate) const PROXIES: u64 = 1_000;

/// How old a route may become in the programs.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(300);

const SEED: u64 = 0x006E_6F64_6573_2121;
const PROXY_SEED: u64 = 0x0070_726F_7869_6573;

/// The output of splitmix64 whose state has been advanced `n` times.
fn splitmix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add((n + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn uuid(seed: u64, n: u64) -> Uuid {
    let bits = u128::from(splitmix(seed, 2 * n)) << 64 | u128::from(splitmix(seed, 2 * n + 1));
    uuid::Builder::from_random_bytes(bits.to_ne_bytes()).into_uuid()
}

/// The ID of the `n`th node, a random UUID.
pub(crate) fn node(n: u64) -> NodeId {
    uuid(SEED, n).into()
}

/// Writes into the caller's buffer, and returns the written text.
macro_rules! text {
    ($buffer:expr, $($format:tt)+) => {{
        let mut rest = &mut $buffer[..];
        let room = rest.len();
        write!(rest, $($format)+).expect("the buffer is long enough");
        let written = room - rest.len();
        std::str::from_utf8(&$buffer[..written]).expect("it was written as text")
    }};
}

/// The ID of the `n`th node that has a name, of 20 bytes.
pub(crate) fn named_node(n: u64) -> NodeId {
    let mut buffer = [0; 32];
    text!(buffer, "node-{n:07}.cluster").parse().expect("it is a good name")
}

/// Registers the `n`th proxy of a cluster; each has an address of its own.
pub(crate) fn register(table: &RouteTable, n: u64) -> ProxyRef {
    let mut buffer = [0; 32];
    let [_, a, b, c] = (n as u32).to_be_bytes();
    register_at(table, n, text!(buffer, "10.{a}.{b}.{c}:3080"))
}

/// Registers the `n`th proxy, under an address.
pub(crate) fn register_at(table: &RouteTable, n: u64, addr: &str) -> ProxyRef {
    let mut id = [0; 36];
    let proxy = Proxy {
        id: uuid(PROXY_SEED, n).hyphenated().encode_lower(&mut id),
        cluster_name: "cluster",
        addr,
    };
    table.register_proxy(&proxy).expect("there is room for the proxy")
}

/// A table whose nodes are spread over [`PROXIES`] proxies, and its clock.
pub(crate) struct Fleet {
    pub(crate) table: RouteTable,
    pub(crate) clock: ManualClock,
    /// On the stack, so that they are not counted.
    proxies: [ProxyRef; PROXIES as usize],
}

impl Fleet {
    /// A table with proxies, and no routes.
    pub(crate) fn new() -> Self {
        let clock = ManualClock::new();
        let table = RouteTable::builder()
            .keep_alive(KEEP_ALIVE)
            .clock(clock.clone())
            .build()
            .expect("possible limits");
        let proxies = std::array::from_fn(|n| register(&table, n as u64));
        Self { table, clock, proxies }
    }

    /// A table with `nodes` nodes of one route each.
    pub(crate) fn with_nodes(nodes: u64) -> Self {
        let fleet = Self::new();
        (0..nodes).for_each(|n| _ = fleet.add(n));
        fleet
    }

    /// Adds or refreshes the `n`th node through its proxy.
    pub(crate) fn add(&self, n: u64) -> Added {
        self.add_through(&node(n), self.proxy(n))
    }

    /// Adds or refreshes the `n`th node through another proxy than [`add`](Self::add) does.
    pub(crate) fn add_second(&self, n: u64) -> Added {
        self.add_through(&node(n), self.proxy(n + 1))
    }

    pub(crate) fn add_through(&self, node: &NodeId, proxy: ProxyRef) -> Added {
        self.table.add_node(node, proxy).expect("there is room for the route")
    }

    /// The proxy of the `n`th node.
    pub(crate) fn proxy(&self, n: u64) -> ProxyRef {
        self.proxies[(n % PROXIES) as usize]
    }

    /// Takes the sweeper to the end of its round.
    pub(crate) fn sweep_round(&self) {
        while !self.table.sweep(usize::MAX).round_completed {}
    }
}
