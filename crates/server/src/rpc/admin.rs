//! `AdminService`: listings, explanations, statistics, the removal of a proxy, the log level, and the stop of the
//! tracker, for operators.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nodetracker::{
    ExpiryHold, HoldCause, MAX_ROUTES_PER_NODE, NodeCursor, ProxyCursor, ProxyDetails, RouteTable, Verdict,
};
use nodetracker_proto::v1;
use tonic::Status;
use tracing::{Level, enabled, warn};

use crate::convert::encode::{self, MAX_NODE_SIZE, RoutesEncoder};
use crate::convert::parse;
use crate::grpc::handler::CallContext;
use crate::limits::{MAX_PAGE_SIZE, MAX_REPLY_SIZE, MAX_TABLE_PAGES, NODE_WORK, ROUTE_WORK};
use crate::log::{self, peer};
use crate::rpc::instance_id::InstanceId;
use crate::rpc::page_token::PageTokens;
use crate::rpc::resources::Resource;
use crate::rpc::shutdown::DrainRequest;
use crate::rpc::statistics::Statistics;
use crate::snapshot_status::SnapshotStatus;
use crate::turns::Parts;

/// The service.
#[derive(Debug)]
pub(crate) struct Admin {
    table: Arc<RouteTable>,
    instance_id: InstanceId,
    proxy_pages: PageTokens,
    node_pages: PageTokens,
    statistics: Arc<Statistics>,
    drain: DrainRequest,
}

impl Admin {
    /// Returns the service.
    pub(crate) fn new(instance_id: InstanceId, statistics: Arc<Statistics>, drain: DrainRequest) -> Self {
        Self {
            table: Arc::clone(&statistics.table),
            instance_id,
            proxy_pages: PageTokens::new(instance_id),
            node_pages: PageTokens::new(instance_id),
            statistics,
            drain,
        }
    }

    pub(crate) async fn remove_proxy(
        &self,
        request: v1::RemoveProxyRequest,
        context: &mut CallContext,
    ) -> Result<v1::RemoveProxyResponse, Status> {
        let id = parse::proxy_id(&request.proxy_id)?;
        let removed = self.table.remove_proxy_by_id(id);
        warn!(peer = peer::field(), caller = %context.caller, removed, "AdminService.RemoveProxy: {id:?}");
        Ok(v1::RemoveProxyResponse { removed })
    }

    pub(crate) async fn list_proxies(
        &self,
        request: v1::ListProxiesRequest,
        context: &mut CallContext,
    ) -> Result<v1::ListProxiesResponse, Status> {
        let from: ProxyCursor = self.proxy_pages.read(&request.page_token)?;
        let most = page_size(request.page_size);
        context.turns.take(most * NODE_WORK).await;
        let page = self.table.proxies_page(from, most);
        let counts: Vec<_> = page
            .proxies
            .iter()
            .map(|(proxy, _)| self.table.route_count(*proxy))
            .collect();
        // Without a limit, the table counts no proxy's routes. A proxy that was removed meanwhile has no count.
        let counts = if counts.iter().any(Option::is_some) {
            counts
        } else {
            Vec::new()
        };
        Ok(v1::ListProxiesResponse {
            route_counts: counts.into_iter().map(|count| count.unwrap_or(0) as u64).collect(),
            proxies: page
                .proxies
                .into_iter()
                .map(|(_, details)| encode::proxy(details))
                .collect(),
            next_page_token: self.proxy_pages.write(page.next),
        })
    }

    /// Returns an encoded `ListNodesResponse`, with its prefix.
    pub(crate) async fn list_nodes(
        &self,
        request: v1::ListNodesRequest,
        context: &mut CallContext,
    ) -> Result<Bytes, Status> {
        let mut from: NodeCursor = self.node_pages.read(&request.page_token)?;
        let most = page_size(request.page_size);
        let wanted = match request.proxy_id.as_str() {
            "" => None,
            id => match self.table.find_proxy(parse::proxy_id(id)?) {
                Some(proxy) => Some(proxy),
                // An unknown proxy has no routes.
                None => return Ok(RoutesEncoder::new(&self.table, 0).finish()),
            },
        };
        let mut page = RoutesEncoder::new(&self.table, 0);
        let mut parts = Parts::new(NODE_WORK + MAX_ROUTES_PER_NODE * ROUTE_WORK);
        let mut short_parts = 0;
        let next = loop {
            // A node more never exceeds the limit.
            let room = (MAX_REPLY_SIZE - page.size()) / MAX_NODE_SIZE;
            let part = parts.next(&context.turns).await;
            let asked = room.min(part).min(most - page.nodes());
            let (mut read, mut work) = (0, 0);
            let part = self.table.nodes_page(&from, asked, |_, routes| {
                read += 1;
                work += NODE_WORK + routes.len() * ROUTE_WORK;
                wanted.is_none_or(|wanted| routes.iter().any(|route| route.proxy == wanted))
            });
            part.nodes
                .iter()
                .for_each(|node| page.push_node(&node.node, &node.routes));
            parts.done(read, work);
            // If few nodes have a route of the proxy, the table reads many nodes for each that it returns.
            Parts::pay_rest(&context.turns, work).await;
            context.reply.grow_in_turn(page.size(), &context.turns).await?;
            short_parts += usize::from(part.nodes.len() < asked);
            let has_room = page.nodes() < most && page.size() + MAX_NODE_SIZE <= MAX_REPLY_SIZE;
            match part.next {
                Some(next) if has_room && short_parts < MAX_TABLE_PAGES => from = next,
                next => break next,
            }
        };
        Ok(page.finish_with(&self.node_pages.write(next)))
    }

    pub(crate) async fn explain(
        &self,
        request: v1::ExplainRequest,
        _: &mut CallContext,
    ) -> Result<v1::ExplainResponse, Status> {
        let node = parse::node(request.node)?;
        let keep_alive = self.table.keep_alive();
        let complaint = |proxy: &ProxyDetails| {
            let complaint = self.statistics.complaints.get(&node, proxy.id(), keep_alive)?;
            Some(v1::Complaint {
                last_time: Some(encode::time(complaint.time)),
                reporter_id: complaint.reporter_id,
                count: complaint.count,
            })
        };
        let routes = self.table.explain(&node).into_iter().map(|route| v1::ExplainedRoute {
            complaint: route.proxy.as_ref().and_then(complaint),
            proxy: route.proxy.map(encode::proxy),
            last_refresh_time: Some(encode::time(route.last_refresh)),
            age: Some(encode::duration(route.age)),
            verdict: verdict(route.verdict).into(),
        });
        Ok(v1::ExplainResponse {
            routes: routes.collect(),
            keep_alive: Some(encode::duration(keep_alive)),
            effective_keep_alive: Some(encode::duration(self.table.effective_keep_alive())),
        })
    }

    pub(crate) async fn stats(&self, _: v1::StatsRequest, _: &mut CallContext) -> Result<v1::StatsResponse, Status> {
        let stats = self.table.stats();
        let Statistics {
            watches,
            sessions,
            memory,
            ..
        } = &*self.statistics;
        let counts = memory.refusals().counts();
        let refusals = counts
            .filter(|&(_, count)| count > 0)
            .map(|(reason, count)| v1::RefusalCount {
                reason: reason.name().into(),
                count,
            });
        Ok(v1::StatsResponse {
            route_count: stats.routes as u64,
            node_count: stats.nodes as u64,
            proxy_count: stats.proxies as u64,
            record_count: stats.records as u64,
            generation: self.instance_id.get(),
            uptime: Some(encode::duration(self.statistics.uptime())),
            keep_alive: Some(encode::duration(self.table.keep_alive())),
            version: env!("CARGO_PKG_VERSION").into(),
            watch_count: watches.count() as u32,
            connection_count: memory.connections() as u32,
            session_count: sessions.count() as u32,
            client_memory_bytes: memory.used() as u64,
            client_memory_limit_bytes: memory.limit() as u64,
            effective_keep_alive: Some(encode::duration(stats.effective_keep_alive)),
            expiry_hold: expiry_hold(stats.expiry_hold).into(),
            expiry_hold_left: stats.expiry_hold.map(|hold| encode::duration(hold.left)),
            refusals: refusals.collect(),
            snapshots: self.statistics.snapshots.as_deref().map(snapshot_stats),
            resources: Resource::ALL.iter().map(|&resource| self.resource(resource)).collect(),
        })
    }

    fn resource(&self, resource: Resource) -> v1::ResourceUse {
        let usage = self.statistics.usage(resource);
        let or_zero = |limit: Option<usize>| limit.map_or(0, |limit| limit as u64);
        v1::ResourceUse {
            resource: resource.name().into(),
            used: usage.used as u64,
            limit: or_zero(usage.limit),
            client_limit: or_zero(usage.client_limit),
            proxy_limit: or_zero(usage.proxy_limit),
        }
    }

    /// Asks the server to stop. The reply is sent first: the server finishes the calls in flight.
    pub(crate) async fn drain(
        &self,
        _: v1::DrainRequest,
        context: &mut CallContext,
    ) -> Result<v1::DrainResponse, Status> {
        if !self.drain.is_requested() {
            warn!(peer = peer::field(), caller = %context.caller, "AdminService.Drain: stopping");
        }
        self.drain.request();
        Ok(v1::DrainResponse {
            generation: self.instance_id.get(),
            shutdown_delay: Some(encode::duration(self.drain.shutdown_delay)),
            drain_limit: Some(encode::duration(self.drain.drain_limit)),
        })
    }

    pub(crate) async fn set_log_level(
        &self,
        request: v1::SetLogLevelRequest,
        context: &mut CallContext,
    ) -> Result<v1::SetLogLevelResponse, Status> {
        let level = match request.level.as_str() {
            "" => None,
            level => Some(level.parse().map_err(|error| invalid("level", error))?),
        };
        let period = match request.period.map(Duration::try_from) {
            None => None,
            Some(Ok(period)) if !period.is_zero() => Some(period),
            Some(_) => return Err(invalid("period", "is not longer than zero".to_owned())),
        };
        let Some(control) = log::level() else {
            return Err(Status::failed_precondition(
                "the tracker is part of a program with a log of its own",
            ));
        };
        let line = || warn!(peer = peer::field(), caller = %context.caller, "AdminService.SetLogLevel");
        // The level may switch this line off, or on.
        let was_logged = enabled!(Level::WARN);
        if was_logged {
            line();
        }
        let previous_level = control.set(level, period).to_string();
        if !was_logged {
            line();
        }
        Ok(v1::SetLogLevelResponse { previous_level })
    }
}

fn invalid(field: &str, reason: String) -> Status {
    Status::invalid_argument(format!("{field}: {reason}"))
}

/// Returns the number of elements for the field `page_size`.
fn page_size(asked: u32) -> usize {
    match asked as usize {
        1..MAX_PAGE_SIZE => asked as usize,
        _ => MAX_PAGE_SIZE,
    }
}

fn expiry_hold(hold: Option<ExpiryHold>) -> v1::ExpiryHold {
    match hold.map(|hold| hold.cause) {
        Some(HoldCause::Stop) => v1::ExpiryHold::Stop,
        Some(HoldCause::Brake) => v1::ExpiryHold::Brake,
        Some(HoldCause::Restart) => v1::ExpiryHold::Restart,
        _ => v1::ExpiryHold::Unspecified,
    }
}

fn verdict(verdict: Verdict) -> v1::Verdict {
    match verdict {
        Verdict::Returned => v1::Verdict::Returned,
        Verdict::Held => v1::Verdict::Held,
        Verdict::Restored => v1::Verdict::Restored,
        Verdict::Expired => v1::Verdict::Expired,
        Verdict::ProxyRemoved => v1::Verdict::ProxyRemoved,
        _ => v1::Verdict::Unspecified,
    }
}

fn snapshot_stats(status: &SnapshotStatus) -> v1::SnapshotStats {
    v1::SnapshotStats {
        last_time: status.last_success().map(encode::time),
        last_bytes: status.bytes(),
        last_duration: Some(encode::duration(status.duration())),
        success_count: status.successes(),
        failure_count: status.failures(),
        failing: status.is_failing(),
        restored_route_count: status.restored_routes(),
    }
}

#[cfg(test)]
mod tests {
    use nodetracker::Proxy;
    use prost::Message;
    use tokio::task::yield_now;

    use super::*;
    use crate::auth::Caller;
    use crate::grpc::frame::PREFIX;
    use crate::grpc::handler::Handler;
    use crate::grpc::send_budget::SendBudget;
    use crate::limits::WORK_PER_PASS;
    use crate::rpc::methods::methods_of;
    use crate::turns::Turns;

    /// Otherwise a page for which the table reads many nodes would delay other calls.
    #[tokio::test]
    async fn nodes_that_are_read_and_not_returned_have_their_price() {
        const NODES: usize = 20_000;
        let table = Arc::new(RouteTable::new());
        for number in 0..NODES {
            let proxy = Proxy {
                id: if number == 0 { "wanted" } else { "other" },
                cluster_name: "",
                addr: "proxy:1",
            };
            let node = format!("node-{number}").parse().expect("a name");
            table.report_node(&node, &proxy).expect("there is room");
        }
        let methods = methods_of(table);
        let number = methods.find("/nodetracker.v1.AdminService/ListNodes");
        let Handler::Unary(handler) = &methods.rows()[number.expect("a method")].handler else {
            panic!("ListNodes has another handler");
        };
        let request = v1::ListNodesRequest {
            proxy_id: "wanted".into(),
            ..v1::ListNodesRequest::default()
        };
        let context = CallContext {
            caller: Arc::new(Caller::unrestricted()),
            turns: Turns::of_one_client(Arc::default()),
            reply: SendBudget::default().try_reserve().expect("all is free"),
        };
        let listing = tokio::spawn(handler(request.encode_to_vec().into(), context));
        let mut passes = 0;
        while !listing.is_finished() {
            yield_now().await;
            passes += 1;
        }
        let page = listing.await.expect("no panic").expect("a page");
        let page = v1::ListNodesResponse::decode(&page[PREFIX..]).expect("a message");
        assert_eq!((page.nodes.len(), &*page.next_page_token), (1, ""));
        // Each pass begins at most one part beyond its work.
        assert!(passes >= NODES * NODE_WORK / WORK_PER_PASS / 2, "{passes} passes");
    }
}
