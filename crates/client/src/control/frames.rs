//! Messages on a stream of bytes, each preceded by its length.

use std::io;
use std::marker::PhantomData;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use prost::Message;
use tokio::io::{ReadHalf, WriteHalf};
use tokio_util::codec::{FramedRead, FramedWrite, LengthDelimitedCodec};

use crate::transport::TunnelStream;

/// The longest message of an agent, in bytes.
pub(crate) const MAX_AGENT_MESSAGE: usize = 4 << 10;

/// The longest message of a proxy, in bytes. A list of 512 proxies with the longest IDs and versions needs 272 KB.
pub(crate) const MAX_PROXY_MESSAGE: usize = 320 << 10;

/// Splits a control stream. Messages that come in have at most `max_received` bytes.
pub(crate) fn split<T: Message + Default>(
    stream: TunnelStream,
    max_received: usize,
) -> (MessageReader<T>, MessageWriter) {
    let (read, write) = tokio::io::split(stream);
    let codec = |max| LengthDelimitedCodec::builder().max_frame_length(max).new_codec();
    let reader = MessageReader {
        frames: FramedRead::with_capacity(read, codec(max_received), 1 << 10),
        message: PhantomData,
    };
    let writer = MessageWriter {
        frames: FramedWrite::new(write, codec(MAX_PROXY_MESSAGE)),
    };
    (reader, writer)
}

/// Reads messages.
pub(crate) struct MessageReader<T> {
    frames: FramedRead<ReadHalf<TunnelStream>, LengthDelimitedCodec>,
    message: PhantomData<T>,
}

impl<T: Message + Default> MessageReader<T> {
    /// Returns the next message. Dropping the future loses no message.
    ///
    /// # Errors
    ///
    /// If the stream has ended or failed, or if the message is too long or cannot be decoded.
    pub(crate) async fn next(&mut self) -> io::Result<T> {
        let frame = self.frames.next().await.ok_or(io::ErrorKind::UnexpectedEof)??;
        T::decode(frame).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Writes messages.
pub(crate) struct MessageWriter {
    frames: FramedWrite<WriteHalf<TunnelStream>, LengthDelimitedCodec>,
}

impl MessageWriter {
    /// Queues a message, which [`MessageWriter::flush`] writes.
    ///
    /// # Errors
    ///
    /// If the stream has failed, or if the message is too long.
    pub(crate) async fn queue(&mut self, message: &impl Message) -> io::Result<()> {
        self.frames.feed(Bytes::from(message.encode_to_vec())).await
    }

    /// Writes the queued messages. Dropping the future loses nothing, and a later call continues.
    ///
    /// # Errors
    ///
    /// If the stream has failed.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        SinkExt::<Bytes>::flush(&mut self.frames).await
    }
}
