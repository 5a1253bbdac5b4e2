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

/// The field `nodes`.
pub(crate) fn nodes(nodes: Option<v1::NodeIds>) -> Result<Vec<NodeId>, Status> {
    let mut parsed = Vec::new();
    nodes_into(&nodes.unwrap_or_default(), "nodes", MAX_BATCH_NODES, &mut parsed)?;
    Ok(parsed)
}

/// Puts the nodes of `field` into a vector: UUIDs first, then names.
pub(crate) fn nodes_into(
    nodes: &v1::NodeIds,
    field: &str,
    most: usize,
    parsed: &mut Vec<NodeId>,
) -> Result<(), Status> {
    let uuids = elements::<UUID>(&nodes.uuids, || format!("{field}.uuids"))?;
    let count = uuids.len() + nodes.names.len();
    if count > most {
        return Err(Status::invalid_argument(format!(
            "{field} has {count} nodes, the limit is {most}"
        )));
    }
    parsed.reserve(count);
    parsed.extend(uuids.iter().map(|bytes| NodeId::from(Uuid::from_bytes(*bytes))));
    for (at, name) in nodes.names.iter().enumerate() {
        let node = name
            .parse()
            .map_err(|NodeIdError(reason)| Status::invalid_argument(format!("{field}.names[{at}] {reason}")))?;
        parsed.push(node);
    }
    Ok(())
}

/// Elements of one size that were packed one right after the other.
pub(crate) fn elements<const SIZE: usize>(
    packed: &[u8],
    field: impl FnOnce() -> String,
) -> Result<&[[u8; SIZE]], Status> {
    let (elements, rest) = packed.as_chunks::<SIZE>();
    if rest.is_empty() {
        return Ok(elements);
    }
    let (field, len) = (field(), packed.len());
    Err(Status::invalid_argument(format!(
        "{field} is {len} bytes long, which is no multiple of {SIZE}"
    )))
}

/// The field `proxy`; what it has in it is checked by the table.
pub(crate) fn proxy(proxy: Option<&v1::Proxy>) -> Result<Proxy<'_>, Status> {
    proxy
        .map(as_proxy)
        .ok_or_else(|| Status::invalid_argument("proxy is not set"))
}

/// A proxy as the table takes it.
pub(crate) fn as_proxy(proxy: &v1::Proxy) -> Proxy<'_> {
    Proxy {
        id: &proxy.proxy_id,
        cluster_name: &proxy.cluster_name,
        addr: &proxy.addr,
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

/// Why a proxy was refused; `path` leads to its fields.
pub(crate) fn refused_proxy(error: RegisterError, path: &str) -> Status {
    match error {
        RegisterError::Invalid { field, reason } => {
            Status::invalid_argument(format!("{path}{} {reason}", proxy_field(field)))
        }
        error => Status::resource_exhausted(error.to_string()),
    }
}

/// What a proxy's field is called in every service, the frozen one's messages too.
pub(crate) fn proxy_field(field: ProxyField) -> &'static str {
    match field {
        ProxyField::Id => "proxy_id",
        ProxyField::ClusterName => "cluster_name",
        ProxyField::Addr => "addr",
    }
}
