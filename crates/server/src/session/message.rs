//! Taking messages apart, and checking all of one before anything is done. What is wrong is told with the path of the field,
//! as `session.proto` names it.

use std::cell::RefCell;
use std::num::NonZeroU64;

use nodetracker::{NodeId, NodeIdError, Proxy, ProxyField, RegisterError, RouteHandle};
use nodetracker_proto::v1;
use tonic::Status;
use uuid::Uuid;

use crate::limits::{MAX_SESSION_HANDLES, MAX_SESSION_NODES};

/// Bytes of a handle.
const HANDLE: usize = size_of::<RouteHandle>();
/// Bytes of a UUID.
const UUID: usize = size_of::<Uuid>();

/// What a message is taken apart into, to be used for the next one again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) handles: Vec<RouteHandle>,
    /// Positions among `handles`.
    pub(crate) gone: Vec<usize>,
}

/// Lends the thread's scratch space, which grows to what the largest message needs.
pub(crate) fn with_scratch<T>(f: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(f)
}

/// Puts the nodes that `field` has into `scratch`.
pub(crate) fn nodes(ids: Option<&v1::NodeIds>, field: &str, scratch: &mut Scratch) -> Result<(), Status> {
    scratch.nodes.clear();
    let Some(ids) = ids else { return Ok(()) };
    let uuids = whole_elements(&ids.uuids, UUID, || format!("{field}.nodes.uuids"))?;
    let count = uuids + ids.names.len();
    if count > MAX_SESSION_NODES {
        let message = format!("{field}.nodes has {count} nodes, the limit is {MAX_SESSION_NODES}");
        return Err(Status::invalid_argument(message));
    }
    let (uuids, _) = ids.uuids.as_chunks::<UUID>();
    scratch
        .nodes
        .extend(uuids.iter().map(|bytes| NodeId::from(Uuid::from_bytes(*bytes))));
    for (at, name) in ids.names.iter().enumerate() {
        let node = name
            .parse()
            .map_err(|NodeIdError(reason)| Status::invalid_argument(format!("{field}.nodes.names[{at}] {reason}")))?;
        scratch.nodes.push(node);
    }
    Ok(())
}

/// Puts the handles of a heartbeat into `scratch`.
pub(crate) fn handles(heartbeat: &v1::SessionHeartbeat, scratch: &mut Scratch) -> Result<(), Status> {
    scratch.handles.clear();
    let count = whole_elements(&heartbeat.handles, HANDLE, || "heartbeat.handles".into())?;
    if count > MAX_SESSION_HANDLES {
        let message = format!("heartbeat.handles has {count} handles, the limit is {MAX_SESSION_HANDLES}");
        return Err(Status::invalid_argument(message));
    }
    let (handles, _) = heartbeat.handles.as_chunks::<HANDLE>();
    scratch.handles.extend(
        handles
            .iter()
            .map(|bits| RouteHandle::from_bits(u64::from_le_bytes(*bits))),
    );
    Ok(())
}

/// Handles as they are sent.
pub(crate) fn bytes_of<'a>(handles: impl ExactSizeIterator<Item = &'a RouteHandle>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HANDLE * handles.len());
    handles.for_each(|handle| bytes.extend(handle.to_bits().to_le_bytes()));
    bytes
}

/// How many elements of `size` bytes there are.
fn whole_elements(bytes: &[u8], size: usize, field: impl FnOnce() -> String) -> Result<usize, Status> {
    if !bytes.len().is_multiple_of(size) {
        let (field, len) = (field(), bytes.len());
        let message = format!("{field} is {len} bytes long, which is no multiple of {size}");
        return Err(Status::invalid_argument(message));
    }
    Ok(bytes.len() / size)
}

/// The proxy and the incarnation of a hello. The proxy's strings are checked by the table.
pub(crate) fn hello(hello: &v1::SessionHello) -> Result<(Proxy<'_>, NonZeroU64), Status> {
    let Some(proxy) = &hello.proxy else {
        return Err(Status::invalid_argument("hello.proxy is missing"));
    };
    let Some(incarnation) = NonZeroU64::new(hello.incarnation) else {
        return Err(Status::invalid_argument("hello.incarnation is 0"));
    };
    Ok((as_proxy(proxy), incarnation))
}

pub(crate) fn as_proxy(proxy: &v1::Proxy) -> Proxy<'_> {
    Proxy {
        id: &proxy.proxy_id,
        cluster_name: &proxy.cluster_name,
        addr: &proxy.addr,
    }
}

/// Why a hello's proxy was not registered.
pub(crate) fn refused(error: RegisterError) -> Status {
    match error {
        RegisterError::Invalid { field, reason } => {
            let field = match field {
                ProxyField::Id => "proxy_id",
                ProxyField::ClusterName => "cluster_name",
                ProxyField::Addr => "addr",
            };
            Status::invalid_argument(format!("hello.proxy.{field} {reason}"))
        }
        error => Status::resource_exhausted(error.to_string()),
    }
}
