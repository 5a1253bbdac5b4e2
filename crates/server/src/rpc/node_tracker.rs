//! `api.NodeTrackerService`, the frozen contract.
//!
//! Its calls name no incarnation of the proxy, so they act for the current incarnation, even if they arrive late; see
//! [`RouteTable::begin_incarnation`].

use std::sync::Arc;

use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_proto::api;
use tonic::Status;

use crate::auth::UncheckedWrite;
use crate::convert::status;
use crate::refusal::Refusals;

/// The service.
#[derive(Debug)]
pub(crate) struct NodeTracker {
    table: Arc<RouteTable>,
    refusals: Arc<Refusals>,
}

impl NodeTracker {
    pub(crate) fn new(table: Arc<RouteTable>, refusals: Arc<Refusals>) -> Self {
        Self { table, refusals }
    }

    // `load/instructions` finds this function and `get_proxies` by name, so they must not be inlined.
    #[inline(never)]
    pub(crate) fn add_node(
        &self,
        request: UncheckedWrite<'_, api::AddNodeRequest>,
    ) -> Result<api::AddNodeResponse, Status> {
        let client = request.client();
        let request = request.for_proxy(|request| &request.proxy_id)?;
        // Parse the node first: a bad node must not leave its proxy registered.
        let node = node_id(&request.node_id)?;
        let proxy = Proxy {
            id: &request.proxy_id,
            cluster_name: &request.cluster_name,
            addr: &request.addr,
        };
        self.table
            .report_node(&node, proxy.of_client(client))
            .map_err(|error| status::report(&self.refusals, "", error))?;
        Ok(api::AddNodeResponse {})
    }

    #[inline(never)]
    pub(crate) fn get_proxies(&self, request: api::GetProxiesRequest) -> Result<api::GetProxiesResponse, Status> {
        let node = node_id(&request.node_id)?;
        let details = self.table.resolve(&node).into_iter().map(|route| {
            let (id, cluster_name, addr) = route.details.into_parts();
            api::ProxyDetails {
                id,
                cluster_name,
                addr,
                updated_at: Some(route.last_refresh.into()),
            }
        });
        Ok(api::GetProxiesResponse {
            proxy_details: details.collect(),
        })
    }

    /// Removes the routes of a node: all of them, or the route through the only proxy for which the caller may write.
    pub(crate) fn remove_node(
        &self,
        request: UncheckedWrite<'_, api::RemoveNodeRequest>,
    ) -> Result<api::RemoveNodeResponse, Status> {
        let (request, own_proxy) = request.for_own_proxy();
        let node = node_id(&request.node_id)?;
        match own_proxy.map(|id| self.table.find_proxy(id)) {
            None => _ = self.table.remove_node(&node),
            Some(Some(proxy)) => _ = self.table.remove_route(&node, proxy),
            // A proxy that is not registered has no routes.
            Some(None) => {}
        }
        Ok(api::RemoveNodeResponse {})
    }
}

fn node_id(text: &str) -> Result<NodeId, Status> {
    text.parse().map_err(|error| status::node_id("node_id", error))
}
