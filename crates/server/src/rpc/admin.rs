//! `AdminService`: what operators ask for.

use std::sync::Arc;
use std::time::Instant;

use nodetracker::{NodeCursor, ProxyCursor, RouteTable, Verdict};
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_server::{AdminService, AdminServiceServer};
use prost::Message;
use tonic::{Request, Response, Status};

use crate::convert::encode::{self as answer, Collector};
use crate::convert::parse;
use crate::limits::{MAX_ANSWER_SIZE, MAX_MESSAGE_SIZE, MAX_PAGE_SIZE, MAX_TABLE_PAGES};
use crate::rpc::instance_id::Generation;
use crate::rpc::page_token as token;
use crate::rpc::watch::Watches;

/// Answers from a table, and of the tracker that it belongs to.
#[derive(Debug)]
pub(crate) struct Admin {
    table: Arc<RouteTable>,
    watches: Arc<Watches>,
    generation: Generation,
    started: Instant,
}

impl Admin {
    /// Returns the service of a tracker that starts now, its message limit set.
    pub(crate) fn service(
        table: Arc<RouteTable>,
        watches: Arc<Watches>,
        generation: Generation,
    ) -> AdminServiceServer<Self> {
        let admin = Self {
            table,
            watches,
            generation,
            started: Instant::now(),
        };
        AdminServiceServer::new(admin).max_decoding_message_size(MAX_MESSAGE_SIZE)
    }

    /// A page of nodes, `most` at most, and where the next one begins.
    async fn nodes(
        &self,
        mut from: NodeCursor,
        most: usize,
        proxy_id: &str,
    ) -> Result<(v1::ListNodesResponse, Option<NodeCursor>), Status> {
        let wanted = match proxy_id {
            "" => None,
            id => match self.table.find_proxy(parse::proxy_id(id)?) {
                Some(proxy) => Some(proxy),
                // It has no routes.
                None => return Ok(Default::default()),
            },
        };
        let mut collector = Collector::new(&self.table);
        let mut answer = v1::ListNodesResponse::default();
        let mut pages = 0;
        let next = loop {
            let page = self.table.nodes_page(&from, most - answer.nodes.len(), |_, routes| {
                wanted.is_none_or(|wanted| routes.iter().any(|route| route.proxy == wanted))
            });
            let nodes = page.nodes.iter().map(|node| collector.node(&node.node, &node.routes));
            // All of its proxies may have been removed since.
            answer.nodes.extend(nodes.filter(|node| !node.routes.is_empty()));
            pages += 1;
            match page.next {
                Some(next) if answer.nodes.len() < most && pages < MAX_TABLE_PAGES => from = next,
                next => break next,
            }
            // Let the other calls of this worker have their turn.
            tokio::task::yield_now().await;
        };
        answer.proxies = collector.proxies();
        Ok((answer, next))
    }
}

/// What the field `page_size` asks for.
fn page_size(asked: u32) -> usize {
    match asked as usize {
        1..MAX_PAGE_SIZE => asked as usize,
        _ => MAX_PAGE_SIZE,
    }
}

#[tonic::async_trait]
impl AdminService for Admin {
    async fn remove_proxy(
        &self,
        request: Request<v1::RemoveProxyRequest>,
    ) -> Result<Response<v1::RemoveProxyResponse>, Status> {
        let id = parse::proxy_id(&request.get_ref().proxy_id)?;
        let removed = self.table.remove_proxy_by_id(id);
        Ok(Response::new(v1::RemoveProxyResponse { removed }))
    }

    async fn list_proxies(
        &self,
        request: Request<v1::ListProxiesRequest>,
    ) -> Result<Response<v1::ListProxiesResponse>, Status> {
        let request = request.get_ref();
        let from: ProxyCursor = token::read(self.generation, &request.page_token)?;
        let page = self.table.proxies_page(from, page_size(request.page_size));
        Ok(Response::new(v1::ListProxiesResponse {
            proxies: page
                .proxies
                .into_iter()
                .map(|(_, details)| answer::proxy(details))
                .collect(),
            next_page_token: token::write(self.generation, page.next),
        }))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let request = request.into_inner();
        let from: NodeCursor = token::read(self.generation, &request.page_token)?;
        let mut most = page_size(request.page_size);
        loop {
            let (mut answer, next) = self.nodes(from.clone(), most, &request.proxy_id).await?;
            // Many routes of each node, through proxies with long names. A single node's fit.
            if answer.encoded_len() > MAX_ANSWER_SIZE && most > 1 {
                most /= 2;
                continue;
            }
            answer.next_page_token = token::write(self.generation, next);
            return Ok(Response::new(answer));
        }
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Result<Response<v1::ExplainResponse>, Status> {
        let node = parse::node(request.into_inner().node)?;
        let routes = self.table.explain(&node).into_iter().map(|route| v1::ExplainedRoute {
            proxy: route.proxy.map(answer::proxy),
            last_refresh_time: Some(answer::time(route.last_refresh)),
            age: Some(answer::duration(route.age)),
            verdict: verdict(route.verdict).into(),
        });
        Ok(Response::new(v1::ExplainResponse {
            routes: routes.collect(),
            keep_alive: Some(answer::duration(self.table.keep_alive())),
        }))
    }

    async fn stats(&self, _request: Request<v1::StatsRequest>) -> Result<Response<v1::StatsResponse>, Status> {
        let stats = self.table.stats();
        Ok(Response::new(v1::StatsResponse {
            route_count: stats.routes as u64,
            node_count: stats.nodes as u64,
            proxy_count: stats.proxies as u64,
            record_count: stats.records as u64,
            generation: self.generation.get(),
            uptime: Some(answer::duration(self.started.elapsed())),
            keep_alive: Some(answer::duration(self.table.keep_alive())),
            version: env!("CARGO_PKG_VERSION").into(),
            watch_count: self.watches.count() as u32,
        }))
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
