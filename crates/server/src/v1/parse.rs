//! Requests of `nodetracker.v1`, turned into the table's types; what is wrong is named by its field, and in a list by its
//! position.

use nodetracker::{MAX_TEXT, NodeId, NodeIdError, Proxy, ProxyField, RegisterError, TextError};
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;
use tonic::Status;
use uuid::Uuid;

use crate::limits::MAX_BATCH_NODES;

const UUID: usize = 16;

/// The field `node`.
pub(crate) fn node(node: Option<v1::NodeId>) -> Result<NodeId, Status> {
    match node.and_then(|node| node.id) {
        None => Err(Status::invalid_argument("node is not set")),
        Some(Id::Uuid(bytes)) => match Uuid::from_slice(&bytes) {
            Ok(uuid) => Ok(uuid.into()),
            Err(_) => Err(Status::invalid_argument(format!(
                "node.uuid has {} bytes, not {UUID}",
                bytes.len()
            ))),
        },
        Some(Id::Name(name)) => name
            .parse()
            .map_err(|NodeIdError(reason)| Status::invalid_argument(format!("node.name {reason}"))),
    }
}

/// The field `nodes`: UUIDs first, then names.
pub(crate) fn nodes(nodes: Option<v1::NodeIds>) -> Result<Vec<NodeId>, Status> {
    let v1::NodeIds { uuids, names } = nodes.unwrap_or_default();
    let (uuids, rest) = uuids.as_chunks::<UUID>();
    if !rest.is_empty() {
        let len = uuids.len() * UUID + rest.len();
        return Err(Status::invalid_argument(format!(
            "nodes.uuids has {len} bytes, which is no multiple of {UUID}"
        )));
    }
    let count = uuids.len() + names.len();
    if count > MAX_BATCH_NODES {
        return Err(Status::invalid_argument(format!(
            "nodes has {count} nodes, the limit is {MAX_BATCH_NODES}"
        )));
    }
    let mut nodes = Vec::with_capacity(count);
    nodes.extend(uuids.iter().map(|bytes| NodeId::from(Uuid::from_bytes(*bytes))));
    for (at, name) in names.iter().enumerate() {
        match name.parse() {
            Ok(node) => nodes.push(node),
            Err(NodeIdError(reason)) => {
                return Err(Status::invalid_argument(format!("nodes.names[{at}] {reason}")));
            }
        }
    }
    Ok(nodes)
}

/// The field `proxy`; what it has in it is checked by the table.
pub(crate) fn proxy(proxy: Option<&v1::Proxy>) -> Result<Proxy<'_>, Status> {
    match proxy {
        None => Err(Status::invalid_argument("proxy is not set")),
        Some(proxy) => Ok(Proxy {
            id: &proxy.proxy_id,
            cluster_name: &proxy.cluster_name,
            addr: &proxy.addr,
        }),
    }
}

/// The field `proxy_id`, where it names a proxy that may or may not be known.
pub(crate) fn proxy_id(id: &str) -> Result<&str, Status> {
    let reason = match id.len() {
        0 => TextError::Empty,
        1..=MAX_TEXT => return Ok(id),
        len => TextError::TooLong { len },
    };
    Err(Status::invalid_argument(format!("proxy_id {reason}")))
}

/// Why the field `proxy` was refused.
pub(crate) fn refused_proxy(error: RegisterError) -> Status {
    match error {
        RegisterError::Invalid { field, reason } => {
            let field = match field {
                ProxyField::Id => "proxy_id",
                ProxyField::ClusterName => "cluster_name",
                ProxyField::Addr => "addr",
            };
            Status::invalid_argument(format!("proxy.{field} {reason}"))
        }
        error => Status::resource_exhausted(error.to_string()),
    }
}
