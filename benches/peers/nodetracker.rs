//! The table itself.

use std::hint::black_box;
use std::time::SystemTime;

use nodetracker::{Added, Builder, NodeId, Proxy, ProxyRef, Route, RouteHandle, RouteTable, Routes};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::peers::{ContestantKind, Peer, Setting};
use crate::support::steps::{BATCH, Step};

/// Records per step of the sweeper.
const STEP: usize = 1_024;

pub(crate) struct Nodetracker {
    table: RouteTable,
    proxies: Vec<ProxyRef>,
}

impl Nodetracker {
    pub(crate) fn table(&self) -> &RouteTable {
        &self.table
    }
}

/// The limits are far.
pub(crate) fn builder(setting: &Setting) -> Builder {
    RouteTable::builder().keep_alive(setting.keep_alive).max_routes(1 << 28)
}

impl Peer for Nodetracker {
    const NAME: &'static str = "nodetracker";
    const KIND: ContestantKind = ContestantKind::Table;

    type PeerRoutes = Routes;

    fn new(setting: &Setting) -> Self {
        let builder = builder(setting);
        let table = match &setting.clock {
            Some(clock) => builder.clock(clock.clone()).build().expect("possible limits"),
            None => builder.build().expect("possible limits"),
        };
        let register = |number| {
            let proxy = Proxy {
                id: &format!("proxy-{number}"),
                cluster_name: "main",
                addr: "10.0.0.1:3080",
            };
            table.register_proxy(&proxy).expect("the limit is far")
        };
        let proxies = (0..setting.proxies).map(register).collect();
        Self { table, proxies }
    }

    #[inline]
    fn look_up(&self, node: Uuid) -> Self::PeerRoutes {
        self.table.get_proxies(&NodeId::from(node))
    }

    #[inline]
    fn add(&self, node: Uuid, proxy: u32) -> Option<Added> {
        self.table
            .add_node(&NodeId::from(node), self.proxies[proxy as usize])
            .ok()
    }

    fn remove_node(&self, node: Uuid) -> bool {
        self.table.remove_node(&NodeId::from(node))
    }

    fn remove_proxy(&self, proxy: u32) {
        self.table.remove_proxy(self.proxies[proxy as usize]);
    }

    fn sweep(&self, mut step: impl FnMut()) -> usize {
        let mut removed = 0;
        loop {
            let report = self.table.sweep(STEP);
            step();
            removed += report.removed;
            if report.round_completed {
                return removed;
            }
        }
    }

    fn plain(&self, answer: &Self::PeerRoutes) -> Vec<(u32, u64)> {
        let plain = |route: &Route| {
            let proxy = self.proxies.iter().position(|&proxy| proxy == route.proxy);
            let since = route.last_refresh.duration_since(SystemTime::UNIX_EPOCH);
            let proxy = proxy.expect("a route's proxy is registered");
            (proxy as u32, since.map_or(0, |since| since.as_millis() as u64))
        };
        answer.iter().map(plain).collect()
    }

    #[inline]
    fn look_up_batch(&self, nodes: &[Step]) {
        self.table
            .get_proxies_batch(&ids(nodes))
            .for_each(|routes| _ = black_box(routes));
    }

    fn announce(&self, nodes: &[Step]) -> Vec<u64> {
        let Some(first) = nodes.first() else { return Vec::new() };
        let added = self
            .table
            .add_nodes_with_handles(&ids(nodes), self.proxies[first.proxy as usize])
            .expect("the limits are far");
        added.handles.into_iter().map(RouteHandle::to_bits).collect()
    }

    #[inline]
    fn heartbeat(&self, nodes: &[Step], handles: &[u64]) {
        let Some(first) = nodes.first() else { return };
        let handles: SmallVec<[RouteHandle; BATCH]> = handles.iter().copied().map(RouteHandle::from_bits).collect();
        let refreshed = self.table.refresh_routes(&handles, self.proxies[first.proxy as usize]);
        assert_eq!(
            refreshed.map(|refreshed| refreshed.refreshed),
            Ok(nodes.len()),
            "no route is gone"
        );
    }
}

fn ids(nodes: &[Step]) -> SmallVec<[NodeId; BATCH]> {
    nodes.iter().map(|step| NodeId::from(step.node)).collect()
}
