//! `AdminService`: listings, explanations, statistics, the removal of a proxy, the log level, and the stop of the
//! tracker, for operators.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use nodetracker::{
    ExpiryHold, HoldCause, MAX_ROUTES_PER_NODE, MemoryUse, NodeCursor, NodePage, ProxyCursor, ProxyDetails, ProxyRef,
    RouteTable, Stats, Verdict,
};
use nodetracker_proto::v1;
use tonic::Status;
use tracing::{Level, debug, enabled, warn};

use crate::convert::encode::{self, MAX_NODE_SIZE, RoutesEncoder};
use crate::convert::parse;
use crate::grpc::handler::CallContext;
use crate::limits::{
    EXPLAIN_WORK, MAX_PAGE_SIZE, MAX_REPLY_SIZE, MAX_TABLE_PAGES, NODE_WORK, ROUTE_WORK, STATS_WORK, TABLE_PAGE_SLOTS,
};
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
        // A call that changes nothing may come again and again.
        match removed {
            true => warn!(peer = peer::field(), caller = %context.caller, removed, "AdminService.RemoveProxy: {id:?}"),
            false => debug!(caller = %context.caller, removed, "AdminService.RemoveProxy: {id:?}"),
        }
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
        let mut slots = 0;
        let next = loop {
            // A node more never exceeds the limit.
            let room = (MAX_REPLY_SIZE - page.size()) / MAX_NODE_SIZE;
            let part = parts.next(&context.turns).await;
            let asked = room.min(part).min(most - page.nodes());
            let part = NodesPart::read(&self.table, &from, asked, wanted);
            part.page
                .nodes
                .iter()
                .for_each(|node| page.push_node(&node.node, &node.routes));
            parts.done(part.read, part.work);
            context.reply.grow_in_turn(page.size(), &context.turns).await?;
            slots += part.slots;
            let has_room = page.nodes() < most && page.size() + MAX_NODE_SIZE <= MAX_REPLY_SIZE;
            match part.page.next {
                Some(next) if has_room && slots < MAX_TABLE_PAGES * TABLE_PAGE_SLOTS => from = next,
                next => break next,
            }
        };
        Ok(page.finish_with(&self.node_pages.write(next)))
    }

    pub(crate) async fn explain(
        &self,
        request: v1::ExplainRequest,
        context: &mut CallContext,
    ) -> Result<v1::ExplainResponse, Status> {
        let node = parse::node(request.node)?;
        context.turns.take(EXPLAIN_WORK).await;
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

    pub(crate) async fn stats(
        &self,
        _: v1::StatsRequest,
        context: &mut CallContext,
    ) -> Result<v1::StatsResponse, Status> {
        context.turns.take(STATS_WORK).await;
        // Each call reads a part of all shards, so each call is made once.
        let (stats, memory_use) = (self.table.stats(), self.table.memory_use());
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
            resources: Resource::ALL
                .iter()
                .map(|&resource| self.resource(resource, &stats, &memory_use))
                .collect(),
        })
    }

    fn resource(&self, resource: Resource, stats: &Stats, memory_use: &MemoryUse) -> v1::ResourceUse {
        let usage = self.statistics.usage(resource, stats, memory_use);
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

/// The nodes that a list reads in one turn.
struct NodesPart {
    page: NodePage,
    /// The nodes that were read. Few of them may be on the page.
    read: usize,
    work: usize,
    /// About how many slots of the table were read.
    slots: usize,
}

impl NodesPart {
    /// Reads nodes, up to `most` nodes with a route through `wanted`, or with any route. Stops once the work
    /// [is enough](Parts::is_enough): if few nodes have a route of the proxy, the table reads many nodes for each that
    /// it returns.
    fn read(table: &RouteTable, from: &NodeCursor, most: usize, wanted: Option<ProxyRef>) -> Self {
        let (mut read, mut work) = (0, 0);
        let page = table.try_nodes_page(from, most, |_, routes| {
            read += 1;
            work += NODE_WORK + routes.len() * ROUTE_WORK;
            let takes = wanted.is_none_or(|wanted| routes.iter().any(|route| route.proxy == wanted));
            match Parts::is_enough(work) {
                false => ControlFlow::Continue(takes),
                true => ControlFlow::Break(takes),
            }
        });
        let is_short = page.nodes.len() < most.max(1) && !Parts::is_enough(work);
        Self {
            page,
            read,
            work,
            slots: if is_short { TABLE_PAGE_SLOTS } else { read },
        }
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
    use crate::limits::{WORK_PER_PART, WORK_PER_PASS};
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

    /// Otherwise one turn would read up to 16,000 nodes, and a client that cancels its call then would not pay for
    /// them.
    #[test]
    fn a_list_reads_as_many_nodes_at_a_time_as_its_turn_pays_for() {
        const NODES: usize = 5_000;
        let table = RouteTable::new();
        let [wanted, other] = ["wanted", "other"].map(|id| {
            let proxy = Proxy {
                id,
                cluster_name: "",
                addr: "proxy:1",
            };
            table.register_proxy(&proxy).expect("there is room")
        });
        for number in 0..NODES {
            let node = format!("node-{number}").parse().expect("a name");
            let proxy = if number % 1_000 == 0 { wanted } else { other };
            table.add_node(&node, proxy).expect("there is room");
        }
        for most in [1, 7, 125, 1_000] {
            let (mut read, mut found, mut slots) = (0, 0, 0);
            let mut from = Some(NodeCursor::default());
            while let Some(cursor) = from {
                let part = NodesPart::read(&table, &cursor, most, Some(wanted));
                assert!(part.work < WORK_PER_PART + NODE_WORK + ROUTE_WORK, "{}", part.work);
                assert_eq!(part.work, part.read * (NODE_WORK + ROUTE_WORK));
                (read, found, slots) = (read + part.read, found + part.page.nodes.len(), slots + part.slots);
                from = part.page.next;
            }
            assert_eq!((read, found), (NODES, NODES / 1_000));
            // Only the last part, which ends with the table, may count as a whole page of the table.
            assert!(slots <= NODES + TABLE_PAGE_SLOTS, "{slots}");
        }
    }

    #[tokio::test]
    async fn calls_that_read_much_of_the_table_have_their_price() {
        let methods = methods_of(Arc::new(RouteTable::new()));
        let node = v1::NodeId {
            id: Some(v1::node_id::Id::Name("node".into())),
        };
        let explain = v1::ExplainRequest { node: Some(node) };
        let calls = [
            ("Stats", v1::StatsRequest::default().encode_to_vec(), STATS_WORK),
            ("Explain", explain.encode_to_vec(), EXPLAIN_WORK),
        ];
        for (name, request, work) in calls {
            let number = methods.find(&format!("/nodetracker.v1.AdminService/{name}"));
            let Handler::Unary(handler) = &methods.rows()[number.expect("a method")].handler else {
                panic!("{name} has another handler");
            };
            let worker = Arc::default();
            let context = CallContext {
                caller: Arc::new(Caller::unrestricted()),
                turns: Turns::of_one_client(Arc::clone(&worker)),
                reply: SendBudget::default().try_reserve().expect("all is free"),
            };
            handler(request.into(), context).await.expect("a reply");
            assert_eq!(worker.spent(), work, "{name}");
        }
    }
}
