//! `RouteService`: reports and look-ups of proxies.

use std::sync::Arc;

use bytes::Bytes;
use nodetracker::{AddedNodes, MAX_ROUTES_PER_NODE, ReportNodesError, RouteTable};
use nodetracker_proto::v1;
use tonic::Status;
use tracing::info;

use crate::auth::UncheckedWrite;
use crate::convert::encode::{self, RoutesEncoder};
use crate::convert::{parse, status};
use crate::grpc::handler::CallContext;
use crate::limits::{MAX_REPLY_SIZE, NODE_WORK, ROUTE_WORK};
use crate::log::peer;
use crate::refusal::{Reason, Refusals};
use crate::rpc::complaints::Complaints;
use crate::turns::Parts;

/// The service.
#[derive(Debug)]
pub(crate) struct Routes {
    table: Arc<RouteTable>,
    complaints: Arc<Complaints>,
    refusals: Arc<Refusals>,
}

impl Routes {
    pub(crate) fn new(table: Arc<RouteTable>, complaints: Arc<Complaints>, refusals: Arc<Refusals>) -> Self {
        Self {
            table,
            complaints,
            refusals,
        }
    }

    pub(crate) async fn add_nodes(
        &self,
        request: UncheckedWrite<'_, v1::AddNodesRequest>,
        context: &mut CallContext,
    ) -> Result<v1::AddNodesResponse, Status> {
        let client = request.client();
        let request = request.for_proxy(|request| request.proxy.as_ref().map_or("", |proxy| &proxy.proxy_id))?;
        // Parse the nodes first: a bad node must not leave its proxy registered.
        let nodes = parse::nodes(request.nodes)?;
        let proxy = parse::proxy(request.proxy.as_ref())?;
        let mut added = AddedNodes::default();
        let parts = Parts::new(NODE_WORK);
        loop {
            let rest = &nodes[added.len()..];
            let part = &rest[..rest.len().min(parts.next(&context.turns).await)];
            match self.table.report_nodes(part, proxy.of_client(client)) {
                Ok(part) => {
                    added.inserted += part.inserted;
                    added.refreshed += part.refreshed;
                }
                Err(ReportNodesError::Nodes(mut error)) => {
                    error.added += added.len();
                    return Err(status::report_nodes(&self.refusals, "proxy.", error.into()));
                }
                Err(error) => return Err(status::report_nodes(&self.refusals, "proxy.", error)),
            }
            if added.len() == nodes.len() {
                break;
            }
        }
        Ok(v1::AddNodesResponse {
            // A request has at most MAX_BATCH_NODES nodes.
            inserted_count: added.inserted as u32,
            refreshed_count: added.refreshed as u32,
        })
    }

    pub(crate) fn get_proxies(&self, request: v1::GetProxiesRequest) -> Result<v1::GetProxiesResponse, Status> {
        let node = parse::node(request.node)?;
        let routes = self.table.resolve(&node).into_iter().map(|route| v1::Route {
            proxy: Some(encode::proxy(route.details)),
            last_refresh_time: Some(encode::time(route.last_refresh)),
        });
        Ok(v1::GetProxiesResponse {
            routes: routes.collect(),
        })
    }

    /// Returns an encoded `BatchGetProxiesResponse`, with its prefix.
    pub(crate) async fn batch_get_proxies(
        &self,
        request: v1::BatchGetProxiesRequest,
        context: &mut CallContext,
    ) -> Result<Bytes, Status> {
        let nodes = parse::nodes(request.nodes)?;
        let mut response = RoutesEncoder::new(&self.table, nodes.len());
        context.reply.grow_to(response.size())?;
        let mut parts = Parts::new(NODE_WORK + MAX_ROUTES_PER_NODE * ROUTE_WORK);
        let mut rest = &*nodes;
        while !rest.is_empty() {
            let part = rest.len().min(parts.next(&context.turns).await);
            let (mut read, mut work) = (0, 0);
            for routes in self.table.get_proxies_batch(&rest[..part]) {
                response.push(&routes);
                read += 1;
                work += NODE_WORK + routes.len() * ROUTE_WORK;
                if Parts::is_enough(work) {
                    break;
                }
            }
            rest = &rest[read..];
            parts.done(read, work);
            let size = response.size();
            if size > MAX_REPLY_SIZE {
                return Err(self.refusals.refuse(Reason::ReplySize).status(format!(
                    "the answer is larger than {MAX_REPLY_SIZE} bytes after {} nodes: ask for fewer",
                    response.nodes()
                )));
            }
            context.reply.grow_in_turn(size, &context.turns).await?;
        }
        Ok(response.finish())
    }

    pub(crate) async fn remove_nodes(
        &self,
        request: UncheckedWrite<'_, v1::RemoveNodesRequest>,
        context: &mut CallContext,
    ) -> Result<v1::RemoveNodesResponse, Status> {
        let request = request.for_proxy(|request| &request.proxy_id)?;
        let nodes = parse::nodes(request.nodes)?;
        let by_proxy = match request.proxy_id.as_str() {
            "" => None,
            // An unknown proxy has no routes.
            id => Some(self.table.find_proxy(parse::proxy_id(id)?)),
        };
        let mut response = v1::RemoveNodesResponse::default();
        let parts = Parts::new(NODE_WORK);
        let mut part_ends = 0;
        for (at, node) in nodes.iter().enumerate() {
            if at == part_ends {
                part_ends += parts.next(&context.turns).await;
            }
            let removed = match by_proxy {
                None => self.table.remove_node(node),
                Some(proxy) => proxy.is_some_and(|proxy| self.table.remove_route(node, proxy)),
            };
            if removed {
                response.removed_count += 1;
            } else {
                response.absent_indexes.push(at as u32);
            }
        }
        // Without certificates, the line would have no client.
        if by_proxy.is_none() && context.caller.is_identified() {
            let (peer, removed) = (peer::field(), response.removed_count);
            info!(peer, caller = %context.caller, removed, "RouteService.RemoveNodes: of all proxies");
        }
        Ok(response)
    }

    /// Records a complaint about another proxy's route. The caller's own ID counts as the reporter.
    pub(crate) fn report_unreachable(
        &self,
        request: UncheckedWrite<'_, v1::ReportUnreachableRequest>,
    ) -> Result<v1::ReportUnreachableResponse, Status> {
        let (request, own) = request.for_own_proxy();
        let node = parse::node(request.node)?;
        let proxy_id = parse::proxy_id(&request.proxy_id)?;
        let reporter_id = match own {
            Some(own) => own.to_owned(),
            None => parse::reporter_id(request.reporter_id)?,
        };
        // Without the texts of the routes, which would cost more than the price of a small call.
        let is_returned = self.table.find_proxy(proxy_id).is_some_and(|proxy| {
            let routes = self.table.get_proxies(&node);
            routes.iter().any(|route| route.proxy == proxy)
        });
        if is_returned {
            let keep_alive = self.table.keep_alive();
            self.complaints.add(node, request.proxy_id, reporter_id, keep_alive);
        }
        Ok(v1::ReportUnreachableResponse { is_returned })
    }
}

#[cfg(test)]
mod tests {
    use nodetracker::{NodeId, Proxy};
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

    /// A part assumes that its nodes have as many routes as the nodes before.
    #[tokio::test]
    async fn nodes_with_many_routes_after_nodes_without_routes_have_their_price() {
        const ROUNDS: usize = 10;
        let table = Arc::new(RouteTable::new());
        let heavy: NodeId = "heavy".parse().expect("a name");
        for number in 0..MAX_ROUTES_PER_NODE {
            let proxy = Proxy {
                id: &format!("proxy-{number}"),
                cluster_name: "",
                addr: "proxy:1",
            };
            table.report_node(&heavy, &proxy).expect("there is room");
        }
        let methods = methods_of(table);
        let number = methods.find("/nodetracker.v1.RouteService/BatchGetProxies");
        let Handler::Unary(handler) = &methods.rows()[number.expect("a method")].handler else {
            panic!("BatchGetProxies has another handler");
        };
        // As many as the first part has, and then as many as the second part would have.
        let round = [vec!["absent"; 7], vec!["heavy"; 125]].concat();
        let nodes = round.repeat(ROUNDS);
        let request = v1::BatchGetProxiesRequest {
            nodes: Some(v1::NodeIds {
                uuids: Vec::new(),
                names: nodes.iter().map(|&name| name.to_owned()).collect(),
            }),
        };
        let context = CallContext {
            caller: Arc::new(Caller::unrestricted()),
            turns: Turns::of_one_client(Arc::default()),
            reply: SendBudget::default().try_reserve().expect("all is free"),
        };
        let batch = tokio::spawn(handler(request.encode_to_vec().into(), context));
        let mut passes = 0;
        while !batch.is_finished() {
            yield_now().await;
            passes += 1;
        }
        let reply = batch.await.expect("no panic").expect("a reply");
        let reply = v1::BatchGetProxiesResponse::decode(&reply[PREFIX..]).expect("a message");
        let routes: Vec<_> = reply.nodes.iter().map(|node| node.routes.len()).collect();
        let expected: Vec<_> = nodes
            .iter()
            .map(|&name| if name == "heavy" { MAX_ROUTES_PER_NODE } else { 0 })
            .collect();
        assert_eq!(routes, expected);
        let work = nodes.len() * NODE_WORK + routes.iter().sum::<usize>() * ROUTE_WORK;
        // Each part may exceed its turn by a node.
        assert!(passes >= work / WORK_PER_PASS * 3 / 4, "{passes} passes for {work}");
    }
}
