//! gRPC's framing: a message with its five-byte prefix, and the head and the trailers of a successful response.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Response, header};
use prost::Message;
use tonic::Status;

/// Bytes before each message: a flag for compression, and the message's length.
pub(crate) const PREFIX: usize = 5;

/// Decodes a message without its prefix.
pub(crate) fn decode<M: Message + Default>(message: &[u8]) -> Result<M, Status> {
    // INTERNAL is gRPC's code for it; tonic replies the same.
    M::decode(message).map_err(|error| Status::internal(error.to_string()))
}

/// Encodes a message with its prefix.
pub(crate) fn encode(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    if len == 0 {
        return Bytes::from_static(&[0; PREFIX]);
    }
    let mut bytes = BytesMut::with_capacity(PREFIX + len);
    bytes.put_u8(0);
    // MAX_REPLY_SIZE is far below u32::MAX.
    bytes.put_u32(len as u32);
    message.encode_raw(&mut bytes);
    bytes.freeze()
}

/// Returns the message in a DATA frame if the frame is exactly one uncompressed message.
pub(crate) fn whole_message(frame: &[u8]) -> Option<&[u8]> {
    match frame.split_first_chunk::<PREFIX>()? {
        ([0, len @ ..], message) if u32::from_be_bytes(*len) as usize == message.len() => Some(message),
        _ => None,
    }
}

/// Returns the head of a successful response.
pub(crate) fn head() -> Response<()> {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}

/// Returns the trailers of a successful response.
pub(crate) fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}
