//! Requests of `nodetracker.v1`, parsed into the table's types.
//!
//! An error names the field, and the position in a list.

use nodetracker::{MAX_TEXT, NodeId, Proxy, TextError};
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;
use tonic::Status;
use uuid::Uuid;

use crate::convert::status;
use crate::limits::MAX_BATCH_NODES;

/// Bytes of a UUID.
const UUID: usize = 16;

/// Parses the field `node`.
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
        Some(Id::Name(name)) => name.parse().map_err(|error| status::node_id("node.name", error)),
    }
}

/// Parses the field `nodes`.
pub(crate) fn nodes(nodes: Option<v1::NodeIds>) -> Result<Vec<NodeId>, Status> {
    let mut parsed = Vec::new();
    nodes_into(&nodes.unwrap_or_default(), "nodes", MAX_BATCH_NODES, &mut parsed)?;
    Ok(parsed)
}

/// Appends the nodes of `field` to a vector: UUIDs first, then names.
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
            .map_err(|error| status::node_id(format_args!("{field}.names[{at}]"), error))?;
        parsed.push(node);
    }
    Ok(())
}

/// Splits packed elements, which all have the same size.
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

/// Parses the field `proxy`. The table checks the proxy's strings.
pub(crate) fn proxy(proxy: Option<&v1::Proxy>) -> Result<Proxy<'_>, Status> {
    proxy
        .map(as_proxy)
        .ok_or_else(|| Status::invalid_argument("proxy is not set"))
}

/// Borrows a proxy in the table's form.
pub(crate) fn as_proxy(proxy: &v1::Proxy) -> Proxy<'_> {
    Proxy {
        id: &proxy.proxy_id,
        cluster_name: &proxy.cluster_name,
        addr: &proxy.addr,
    }
}

/// Checks the ID of the proxy that reports, which may be empty.
pub(crate) fn reporter_id(id: String) -> Result<String, Status> {
    match id.len() {
        ..=MAX_TEXT => Ok(id),
        len => Err(status::text("reporter_id", TextError::TooLong { len })),
    }
}

/// Parses the field `proxy_id` of a proxy that may be unknown.
pub(crate) fn proxy_id(id: &str) -> Result<&str, Status> {
    let reason = match id.len() {
        0 => TextError::Empty,
        1..=MAX_TEXT => return Ok(id),
        len => TextError::TooLong { len },
    };
    Err(status::text("proxy_id", reason))
}
