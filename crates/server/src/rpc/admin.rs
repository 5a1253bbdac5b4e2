//! `AdminService`: listings, explanations, statistics, and the removal of a proxy, for operators.

use std::sync::Arc;
use std::time::Instant;

use nodetracker::{NodeCursor, ProxyCursor, RouteTable, Verdict};
use nodetracker_proto::v1;
use prost::Message;
use tonic::Status;

use crate::convert::encode::{self, RouteCollector};
use crate::convert::parse;
use crate::limits::{MAX_PAGE_SIZE, MAX_REPLY_SIZE, MAX_TABLE_PAGES};
use crate::rpc::instance_id::InstanceId;
use crate::rpc::page_token;
use crate::rpc::watch::Watches;

/// The service.
#[derive(Debug)]
pub(crate) struct Admin {
    table: Arc<RouteTable>,
    watches: Arc<Watches>,
    instance_id: InstanceId,
    started: Instant,
}

impl Admin {
    /// Returns the service of a tracker that starts now.
    pub(crate) fn new(table: Arc<RouteTable>, watches: Arc<Watches>, instance_id: InstanceId) -> Self {
        Self {
            table,
            watches,
            instance_id,
            started: Instant::now(),
        }
    }

    pub(crate) async fn remove_proxy(
        self: Arc<Self>,
        request: v1::RemoveProxyRequest,
    ) -> Result<v1::RemoveProxyResponse, Status> {
        let id = parse::proxy_id(&request.proxy_id)?;
        let removed = self.table.remove_proxy_by_id(id);
        Ok(v1::RemoveProxyResponse { removed })
    }

    pub(crate) async fn list_proxies(
        self: Arc<Self>,
        request: v1::ListProxiesRequest,
    ) -> Result<v1::ListProxiesResponse, Status> {
        let from: ProxyCursor = page_token::read(self.instance_id, &request.page_token)?;
        let page = self.table.proxies_page(from, page_size(request.page_size));
        Ok(v1::ListProxiesResponse {
            proxies: page
                .proxies
                .into_iter()
                .map(|(_, details)| encode::proxy(details))
                .collect(),
            next_page_token: page_token::write(self.instance_id, page.next),
        })
    }

    pub(crate) async fn list_nodes(
        self: Arc<Self>,
        request: v1::ListNodesRequest,
    ) -> Result<v1::ListNodesResponse, Status> {
        let from: NodeCursor = page_token::read(self.instance_id, &request.page_token)?;
        let mut most = page_size(request.page_size);
        loop {
            let (mut response, next) = self.nodes_page(from.clone(), most, &request.proxy_id).await?;
            // Nodes with many routes through proxies with long names can exceed the limit. A single node never does.
            if response.encoded_len() > MAX_REPLY_SIZE && most > 1 {
                most /= 2;
                continue;
            }
            response.next_page_token = page_token::write(self.instance_id, next);
            return Ok(response);
        }
    }

    pub(crate) async fn explain(self: Arc<Self>, request: v1::ExplainRequest) -> Result<v1::ExplainResponse, Status> {
        let node = parse::node(request.node)?;
        let routes = self.table.explain(&node).into_iter().map(|route| v1::ExplainedRoute {
            proxy: route.proxy.map(encode::proxy),
            last_refresh_time: Some(encode::time(route.last_refresh)),
            age: Some(encode::duration(route.age)),
            verdict: verdict(route.verdict).into(),
        });
        Ok(v1::ExplainResponse {
            routes: routes.collect(),
            keep_alive: Some(encode::duration(self.table.keep_alive())),
        })
    }

    pub(crate) async fn stats(self: Arc<Self>, _request: v1::StatsRequest) -> Result<v1::StatsResponse, Status> {
        let stats = self.table.stats();
        Ok(v1::StatsResponse {
            route_count: stats.routes as u64,
            node_count: stats.nodes as u64,
            proxy_count: stats.proxies as u64,
            record_count: stats.records as u64,
            generation: self.instance_id.get(),
            uptime: Some(encode::duration(self.started.elapsed())),
            keep_alive: Some(encode::duration(self.table.keep_alive())),
            version: env!("CARGO_PKG_VERSION").into(),
            watch_count: self.watches.count() as u32,
        })
    }

    /// Returns a page of at most `most` nodes, and the start of the next page.
    async fn nodes_page(
        &self,
        mut from: NodeCursor,
        most: usize,
        proxy_id: &str,
    ) -> Result<(v1::ListNodesResponse, Option<NodeCursor>), Status> {
        let wanted = match proxy_id {
            "" => None,
            id => match self.table.find_proxy(parse::proxy_id(id)?) {
                Some(proxy) => Some(proxy),
                // An unknown proxy has no routes.
                None => return Ok(Default::default()),
            },
        };
        let mut collector = RouteCollector::new(&self.table);
        let mut response = v1::ListNodesResponse::default();
        let mut pages = 0;
        let next = loop {
            let page = self.table.nodes_page(&from, most - response.nodes.len(), |_, routes| {
                wanted.is_none_or(|wanted| routes.iter().any(|route| route.proxy == wanted))
            });
            let nodes = page.nodes.iter().map(|node| collector.node(&node.node, &node.routes));
            // All proxies of a node may have been removed since the page was read.
            response.nodes.extend(nodes.filter(|node| !node.routes.is_empty()));
            pages += 1;
            match page.next {
                Some(next) if response.nodes.len() < most && pages < MAX_TABLE_PAGES => from = next,
                next => break next,
            }
            // Other calls of this worker take their turn.
            tokio::task::yield_now().await;
        };
        response.proxies = collector.proxies();
        Ok((response, next))
    }
}

/// Returns the number of elements for the field `page_size`.
fn page_size(asked: u32) -> usize {
    match asked as usize {
        1..MAX_PAGE_SIZE => asked as usize,
        _ => MAX_PAGE_SIZE,
    }
}

fn verdict(verdict: Verdict) -> v1::Verdict {
    match verdict {
        Verdict::Returned => v1::Verdict::Returned,
        Verdict::Expired => v1::Verdict::Expired,
        Verdict::ProxyRemoved => v1::Verdict::ProxyRemoved,
        _ => v1::Verdict::Unspecified,
    }
}
