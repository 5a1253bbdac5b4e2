//! Parsing of a session's messages. A message is parsed in full before the session acts on it.
//!
//! An error names the field by its path in `session.proto`.

use std::cell::RefCell;
use std::num::NonZeroU64;

use nodetracker::{NodeId, Proxy, RouteHandle};
use nodetracker_proto::v1;
use tonic::Status;

use crate::convert::parse;
use crate::limits::{
    BYTES_PER_WORK, CALL_WORK, HANDLES_PER_WORK, MAX_INCARNATION, MAX_SESSION_HANDLES, MAX_SESSION_NODES, NODE_WORK,
};

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

/// Fields of `SessionRequest`.
const NODES_UP: u64 = 3;
const HEARTBEAT: u64 = 4;
const NODES_DOWN: u64 = 5;

/// Fields of `NodeIds`.
const UUIDS: u64 = 1;
const NAMES: u64 = 2;

/// Bytes of a UUID.
const UUID: usize = 16;

/// Returns the work of an encoded request. Decodes only the fields that are needed to count the elements, because the
/// work must be known before the turn.
pub(crate) fn work(request: &[u8]) -> usize {
    let elements: usize = fields(request)
        .map(|(field, payload)| match field {
            NODES_UP | NODES_DOWN => NODE_WORK * fields(payload).map(|(_, nodes)| node_count(nodes)).sum::<usize>(),
            HEARTBEAT => payload.len() / HANDLE / HANDLES_PER_WORK,
            _ => 0,
        })
        .sum();
    CALL_WORK + request.len() / BYTES_PER_WORK + elements
}

/// Returns the number of nodes in an encoded `NodeIds`; an estimate if the number exceeds the limit for a message.
fn node_count(nodes: &[u8]) -> usize {
    let mut count = 0;
    for (field, payload) in fields(nodes) {
        count += match field {
            UUIDS => payload.len() / UUID,
            NAMES => 1,
            _ => 0,
        };
        if count > MAX_SESSION_NODES {
            return count + nodes.len() / UUID;
        }
    }
    count
}

/// Returns the numbers and the bytes of the fields that have a length, up to the first malformed field.
fn fields(mut bytes: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    const VARINT: u64 = 0;
    const FIXED_64: u64 = 1;
    const WITH_LENGTH: u64 = 2;
    const FIXED_32: u64 = 5;
    std::iter::from_fn(move || {
        loop {
            let key = varint(&mut bytes)?;
            let skipped = match key & 7 {
                VARINT => {
                    varint(&mut bytes)?;
                    0
                }
                FIXED_64 => 8,
                FIXED_32 => 4,
                WITH_LENGTH => {
                    let len = usize::try_from(varint(&mut bytes)?).ok()?;
                    let (payload, rest) = bytes.split_at_checked(len)?;
                    bytes = rest;
                    return Some((key >> 3, payload));
                }
                _ => return None,
            };
            bytes = bytes.get(skipped..)?;
        }
    })
}

/// Reads a number of up to ten bytes, with seven bits in each.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
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
    if incarnation > MAX_INCARNATION {
        return Err(Status::invalid_argument(format!(
            "hello.incarnation is {incarnation}, the limit is {MAX_INCARNATION}"
        )));
    }
    Ok((parse::as_proxy(proxy), incarnation))
}

#[cfg(test)]
mod tests {
    use nodetracker_proto::v1::session_request::Request;
    use prost::Message;

    use super::*;

    fn work_of(request: Request) -> usize {
        let request = v1::SessionRequest {
            sequence: u64::MAX,
            request: Some(request),
        };
        let bytes = request.encode_to_vec();
        work(&bytes) - CALL_WORK - bytes.len() / BYTES_PER_WORK
    }

    #[test]
    fn each_node_and_each_handle_has_its_work() {
        let nodes = |uuids: usize, names: usize| {
            Some(v1::NodeIds {
                uuids: vec![7; uuids * UUID],
                names: vec!["node".into(); names],
            })
        };
        let up = |uuids, names| {
            Request::NodesUp(v1::SessionNodesUp {
                nodes: nodes(uuids, names),
            })
        };
        assert_eq!(work_of(up(300, 200)), 500 * NODE_WORK);
        assert_eq!(work_of(up(0, MAX_SESSION_NODES)), MAX_SESSION_NODES * NODE_WORK);
        assert!(work_of(up(0, 3 * MAX_SESSION_NODES)) > MAX_SESSION_NODES * NODE_WORK);
        assert_eq!(work_of(up(0, 0)), 0);
        let down = v1::SessionNodesDown { nodes: nodes(3, 4) };
        assert_eq!(work_of(Request::NodesDown(down)), 7 * NODE_WORK);
        let heartbeat = v1::SessionHeartbeat {
            handles: vec![7; MAX_SESSION_HANDLES * HANDLE].into(),
        };
        assert_eq!(
            work_of(Request::Heartbeat(heartbeat)),
            MAX_SESSION_HANDLES / HANDLES_PER_WORK
        );
        assert_eq!(work_of(Request::Drain(v1::SessionDrain {})), 0);
    }

    #[test]
    fn malformed_requests_have_some_work() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..10_000 {
            let len = random.usize(..100);
            let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(len).collect();
            assert!(work(&bytes) >= CALL_WORK);
        }
        for bytes in [
            &[0xff; 20][..],
            &[0x1a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1],
            &[9],
        ] {
            assert_eq!(work(bytes), CALL_WORK);
        }
    }
}
