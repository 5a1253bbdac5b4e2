//! Which nodes the operations are on, and in which order.
//!
//! The order is an array that an operation's loop reads from the front to the end. So the processor fetches the keys
//! ahead, and only the table's own misses are measured.

use uuid::Builder;
use uuid::Uuid;

/// Nodes in a batch.
pub(crate) const BATCH: usize = 64;

/// One operation's node, and the proxy that has its route.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) node: Uuid,
    pub(crate) proxy: u32,
}

/// An endless sequence of different nodes. Another `seed` gives other nodes.
pub(crate) fn stream(proxies: u32, seed: u64) -> impl Iterator<Item = Step> {
    let mut random = fastrand::Rng::with_seed(seed);
    std::iter::repeat_with(move || Step {
        node: Builder::from_random_bytes(random.u128(..).to_ne_bytes()).into_uuid(),
        proxy: random.u32(..proxies),
    })
}

/// This many different nodes.
pub(crate) fn nodes(count: usize, proxies: u32, seed: u64) -> Vec<Step> {
    stream(proxies, seed).take(count).collect()
}

/// Each node once, in random order.
pub(crate) fn uniform(nodes: &[Step]) -> Vec<Step> {
    let mut steps = nodes.to_vec();
    fastrand::Rng::with_seed(2).shuffle(&mut steps);
    steps
}

/// As many steps as nodes, the node of rank `r` with a probability in proportion to `r^-0.99`.
pub(crate) fn zipf(nodes: &[Step]) -> Vec<Step> {
    let mut sum = 0.0;
    let cumulated: Vec<f64> = (1..=nodes.len())
        .map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        })
        .collect();
    let mut random = fastrand::Rng::with_seed(3);
    let draw = |_| {
        let at = random.f64() * sum;
        nodes[cumulated.partition_point(|&up_to| up_to < at).min(nodes.len() - 1)]
    };
    (0..nodes.len()).map(draw).collect()
}

/// The nodes in random order, but grouped by proxy, as sessions name them.
pub(crate) fn by_proxy(nodes: &[Step]) -> Vec<Step> {
    let mut steps = uniform(nodes);
    steps.sort_by_key(|step| step.proxy);
    steps
}

/// Batches of at most [`BATCH`], each of one proxy.
pub(crate) fn batches(by_proxy: &[Step]) -> impl Iterator<Item = &[Step]> {
    by_proxy
        .chunk_by(|a, b| a.proxy == b.proxy)
        .flat_map(|session| session.chunks(BATCH))
}

/// A short name of a size.
pub(crate) fn size_name(nodes: usize) -> String {
    match nodes {
        n if n % 1_000_000 == 0 => format!("{}M", n / 1_000_000),
        n if n % 1_000 == 0 => format!("{}k", n / 1_000),
        n => n.to_string(),
    }
}

/// The numbers of nodes to measure with, from `NODES`, separated by commas; by default, `default`.
pub(crate) fn sizes(default: &[usize]) -> Vec<usize> {
    let Ok(list) = std::env::var("NODES") else {
        return default.to_vec();
    };
    let parse = |size: &str| {
        let (digits, unit) = match size.trim() {
            size if size.ends_with('k') => (&size[..size.len() - 1], 1_000),
            size if size.ends_with('M') => (&size[..size.len() - 1], 1_000_000),
            size => (size, 1),
        };
        let count: usize = digits.parse().expect("NODES is a list like 100k,1M,10M");
        count * unit
    };
    list.split(',').map(parse).collect()
}
