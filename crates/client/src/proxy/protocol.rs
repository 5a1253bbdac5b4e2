//! The beginning of each stream between proxies: one request, and one answer.

use std::io;

use nodetracker::NodeId;
use nodetracker_proto::peer::v1 as proto;
pub use nodetracker_proto::peer::v1::RefusalReason;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::control::cut;
use crate::transport::TunnelStream;
use crate::wire;

/// The longest message, in bytes.
pub const MAX_MESSAGE: usize = 4 << 10;

/// Writes a message.
pub(super) async fn send(stream: &mut TunnelStream, message: &impl Message) -> io::Result<()> {
    let len = message.encoded_len();
    let prefix = u32::try_from(len).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(size_of::<u32>() + len);
    bytes.extend(prefix.to_be_bytes());
    message.encode(&mut bytes).map_err(io::Error::other)?;
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Reads a message, and no byte after the message: the bytes after it are of another protocol.
pub(super) async fn receive<T: Message + Default>(stream: &mut TunnelStream) -> io::Result<T> {
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let len = stream.read_u32().await?;
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    if len > MAX_MESSAGE {
        return Err(invalid(format!(
            "a message of {len} bytes, and the maximum is {MAX_MESSAGE}"
        )));
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).await?;
    T::decode(bytes.as_slice()).map_err(|error| invalid(error.to_string()))
}

pub(super) fn ping(presence: Option<proto::Presence>) -> proto::PeerRequest {
    let request = Some(proto::peer_request::Request::Ping(proto::Ping { presence }));
    proto::PeerRequest { request }
}

pub(super) fn dial(node: &NodeId, origin: &str) -> proto::PeerRequest {
    let dial = proto::Dial {
        node: Some(wire::node(node)),
        origin_proxy_id: origin.to_owned(),
        hop_count: 0,
    };
    let request = Some(proto::peer_request::Request::Dial(dial));
    proto::PeerRequest { request }
}

pub(super) fn refused(reason: RefusalReason, text: &str) -> proto::PeerResponse {
    let refused = proto::Refused {
        reason: reason.into(),
        text: cut(text).to_owned(),
    };
    let response = Some(proto::peer_response::Response::Refused(refused));
    proto::PeerResponse { response }
}
