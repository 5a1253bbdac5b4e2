//! Nodes and proxies as messages, and back.

use nodetracker::{NodeId, NodeIdError, Proxy, ProxyDetails, Uuid};
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;

/// Why a message names no node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidNode {
    /// The message has no ID.
    #[error("the ID is missing")]
    Missing,
    /// The UUID has another length.
    #[error("the UUID has {0} bytes, expected 16")]
    Uuid(usize),
    /// The name is not acceptable.
    #[error(transparent)]
    Name(#[from] NodeIdError),
}

pub(crate) fn node(node: &NodeId) -> v1::NodeId {
    let id = match node.as_uuid() {
        Some(uuid) => Id::Uuid(uuid.as_bytes().to_vec()),
        None => Id::Name(node.to_string()),
    };
    v1::NodeId { id: Some(id) }
}

pub(crate) fn node_id(node: Option<&v1::NodeId>) -> Result<NodeId, InvalidNode> {
    match node.and_then(|node| node.id.as_ref()) {
        None => Err(InvalidNode::Missing),
        Some(Id::Uuid(bytes)) => match Uuid::from_slice(bytes) {
            Ok(uuid) => Ok(uuid.into()),
            Err(_) => Err(InvalidNode::Uuid(bytes.len())),
        },
        Some(Id::Name(name)) => Ok(name.parse()?),
    }
}

pub(crate) fn proxy(proxy: &Proxy<'_>) -> v1::Proxy {
    v1::Proxy {
        proxy_id: proxy.id.to_owned(),
        cluster_name: proxy.cluster_name.to_owned(),
        addr: proxy.addr.to_owned(),
    }
}

pub(crate) fn proxy_details(proxy: &v1::Proxy) -> ProxyDetails {
    Proxy {
        id: &proxy.proxy_id,
        cluster_name: &proxy.cluster_name,
        addr: &proxy.addr,
    }
    .into()
}
