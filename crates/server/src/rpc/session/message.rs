//! Parsing of a session's messages. A message is parsed in full before the session acts on it.
//!
//! An error names the field by its path in `session.proto`.

use std::cell::RefCell;
use std::num::NonZeroU64;

use nodetracker::{NodeId, Proxy, RouteHandle};
use nodetracker_proto::v1;
use tonic::Status;

use crate::convert::parse;
use crate::limits::{MAX_SESSION_HANDLES, MAX_SESSION_NODES};

/// Bytes of a handle.
const HANDLE: usize = size_of::<RouteHandle>();

/// The elements of a parsed message. Reused for the next message.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) handles: Vec<RouteHandle>,
}

/// Lends the thread's scratch space, which grows to the size of the largest message.
pub(crate) fn with_scratch<T>(f: impl FnOnce(&mut Scratch) -> T) -> T {
    thread_local! {
        static SCRATCH: RefCell<Scratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(f)
}

/// Parses the nodes of `field` into `scratch`.
pub(crate) fn nodes(ids: Option<&v1::NodeIds>, field: &str, scratch: &mut Scratch) -> Result<(), Status> {
    scratch.nodes.clear();
    match ids {
        Some(ids) => parse::nodes_into(ids, field, MAX_SESSION_NODES, &mut scratch.nodes),
        None => Ok(()),
    }
}

/// Parses the handles of a heartbeat into `scratch`.
pub(crate) fn handles(heartbeat: &v1::SessionHeartbeat, scratch: &mut Scratch) -> Result<(), Status> {
    scratch.handles.clear();
    let handles = parse::elements::<HANDLE>(&heartbeat.handles, || "heartbeat.handles".into())?;
    let count = handles.len();
    if count > MAX_SESSION_HANDLES {
        let message = format!("heartbeat.handles has {count} handles, the limit is {MAX_SESSION_HANDLES}");
        return Err(Status::invalid_argument(message));
    }
    scratch.handles.extend(
        handles
            .iter()
            .map(|bits| RouteHandle::from_bits(u64::from_le_bytes(*bits))),
    );
    Ok(())
}

/// Encodes handles.
pub(crate) fn encode_handles<'a>(handles: impl ExactSizeIterator<Item = &'a RouteHandle>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HANDLE * handles.len());
    handles.for_each(|handle| bytes.extend(handle.to_bits().to_le_bytes()));
    bytes
}

/// Parses the proxy and the incarnation of a hello. The table checks the proxy's strings.
pub(crate) fn hello(hello: &v1::SessionHello) -> Result<(Proxy<'_>, NonZeroU64), Status> {
    let Some(proxy) = &hello.proxy else {
        return Err(Status::invalid_argument("hello.proxy is missing"));
    };
    let Some(incarnation) = NonZeroU64::new(hello.incarnation) else {
        return Err(Status::invalid_argument("hello.incarnation is 0"));
    };
    Ok((parse::as_proxy(proxy), incarnation))
}
