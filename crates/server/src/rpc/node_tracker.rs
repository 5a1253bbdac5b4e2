//! `api.NodeTrackerService`: parse at the edge, call the table, answer.
//!
//! Its calls tell no incarnation of the proxy. They speak for the current one, late or not; see
//! [`RouteTable::begin_incarnation`].

use std::sync::Arc;

use bytes::Bytes;
use nodetracker::{AddError, NodeId, Proxy, RegisterError, ReportError, RouteTable};
use nodetracker_proto::api;
use nodetracker_proto::api::node_tracker_service_server::SERVICE_NAME;
use tonic::Status;

use crate::convert::parse::proxy_field;
use crate::grpc::unary::{self, Unary};

/// Answers the frozen contract from a table.
#[derive(Debug)]
pub(crate) struct Tracker {
    table: Arc<RouteTable>,
}

impl Tracker {
    /// Answers from a table.
    pub(crate) fn new(table: Arc<RouteTable>) -> Self {
        Self { table }
    }

    // Not inlined, nor is the other one, so that `load/instructions` can tell what is theirs.
    #[inline(never)]
    fn add(&self, request: &api::AddNodeRequest) -> Result<api::AddNodeResponse, Status> {
        // The node first: a bad one must not leave its proxy behind.
        let node = node_id(&request.node_id)?;
        let proxy = Proxy {
            id: &request.proxy_id,
            cluster_name: &request.cluster_name,
            addr: &request.addr,
        };
        self.table.report_node(&node, &proxy).map_err(refused)?;
        Ok(api::AddNodeResponse {})
    }

    #[inline(never)]
    fn get(&self, request: &api::GetProxiesRequest) -> Result<api::GetProxiesResponse, Status> {
        let node = node_id(&request.node_id)?;
        let details = self.table.resolve(&node).into_iter().map(|route| api::ProxyDetails {
            id: route.details.id.into(),
            cluster_name: route.details.cluster_name.into(),
            addr: route.details.addr.into(),
            updated_at: Some(route.last_refresh.into()),
        });
        Ok(api::GetProxiesResponse {
            proxy_details: details.collect(),
        })
    }

    fn remove(&self, request: &api::RemoveNodeRequest) -> Result<api::RemoveNodeResponse, Status> {
        let node = node_id(&request.node_id)?;
        self.table.remove_node(&node);
        Ok(api::RemoveNodeResponse {})
    }
}

impl Unary for Tracker {
    fn name(&self) -> &'static str {
        SERVICE_NAME
    }

    fn methods(&self) -> &'static [&'static str] {
        &["AddNode", "GetProxies", "RemoveNode"]
    }

    fn unary(&self, method: &'static str, message: &[u8]) -> Result<Bytes, Status> {
        match method {
            "AddNode" => unary::call(message, |request| self.add(&request)),
            "GetProxies" => unary::call(message, |request| self.get(&request)),
            "RemoveNode" => unary::call(message, |request| self.remove(&request)),
            _ => Err(Status::unimplemented(method)),
        }
    }
}

fn node_id(text: &str) -> Result<NodeId, Status> {
    text.parse()
        .map_err(|nodetracker::NodeIdError(reason)| Status::invalid_argument(format!("node_id {reason}")))
}

/// Names the field as the wire does, which is what the caller filled in.
fn refused(error: ReportError) -> Status {
    match error {
        ReportError::Proxy(RegisterError::Invalid { field, reason }) => {
            Status::invalid_argument(format!("{} {reason}", proxy_field(field)))
        }
        ReportError::Proxy(RegisterError::TooManyProxies { .. })
        | ReportError::Route(AddError::TooManyRoutes { .. } | AddError::OutOfMemory) => {
            Status::resource_exhausted(error.to_string())
        }
        error => Status::internal(error.to_string()),
    }
}
