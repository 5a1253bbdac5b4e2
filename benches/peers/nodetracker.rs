//! The table itself.

use std::time::SystemTime;

use nodetracker::{Added, NodeId, Proxy, ProxyRef, Route, RouteTable};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::peers::{Peer, Setting};

/// Records per step of the sweeper.
const STEP: usize = 1_024;

pub(crate) struct Nodetracker {
    table: RouteTable,
    proxies: Vec<ProxyRef>,
}

impl Peer for Nodetracker {
    const NAME: &'static str = "nodetracker";

    type Answer = SmallVec<[Route; 2]>;

    fn new(setting: &Setting) -> Self {
        let builder = RouteTable::builder().keep_alive(setting.keep_alive).max_routes(1 << 28);
        let table = match &setting.clock {
            Some(clock) => builder.clock(clock.clone()).build(),
            None => builder.build(),
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
    fn look_up(&self, node: Uuid) -> Self::Answer {
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

    fn plain(&self, answer: &Self::Answer) -> Vec<(u32, u64)> {
        let plain = |route: &Route| {
            let proxy = self.proxies.iter().position(|&proxy| proxy == route.proxy);
            let since = route.last_refresh.duration_since(SystemTime::UNIX_EPOCH);
            let proxy = proxy.expect("a route's proxy is registered");
            (proxy as u32, since.map_or(0, |since| since.as_millis() as u64))
        };
        answer.iter().map(plain).collect()
    }
}
