//! The calls of `WatchService`.

use std::pin::Pin;
use std::time::Duration;

use crate::connect::channel::Channel;
use futures_util::stream::{self, Stream, StreamExt, TryStreamExt};
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_response::Message;
use nodetracker_proto::v1::watch_service_client::WatchServiceClient;
use tokio::time::timeout;
use tonic::Status;

/// The messages of one watch.
pub(crate) type Messages = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

/// Begins a watch when the stream is first polled.
pub(crate) fn watch(channel: &Channel, request: v1::WatchRequest) -> Messages {
    let mut client = WatchServiceClient::new(channel.clone());
    let open = async move { client.watch(request).await.map(tonic::Response::into_inner) };
    stream::once(open).try_flatten().boxed()
}

/// Returns the place of the latest change in a tracker's log. The log then has every change that the tracker made until
/// some milliseconds before the call.
///
/// The call is a watch of one node, which ends at once: the snapshot of one node ends at the log's present end.
pub(crate) async fn place(channel: &Channel, limit: Duration) -> Result<v1::WatchPlace, Status> {
    let request = v1::WatchRequest {
        nodes: Some(v1::NodeIds {
            uuids: vec![0; 16],
            names: Vec::new(),
        }),
        accepts_resync: true,
        ..v1::WatchRequest::default()
    };
    let mut messages = watch(channel, request);
    let end = async {
        while let Some(response) = messages.try_next().await? {
            if let Some(Message::SnapshotEnd(end)) = response.message {
                return Ok(v1::WatchPlace {
                    generation: end.generation,
                    sequence: end.sequence,
                });
            }
        }
        Err(Status::unavailable("the watch ended before its snapshot"))
    };
    let late = |_| Err(Status::deadline_exceeded(format!("no snapshot within {limit:?}")));
    timeout(limit, end).await.unwrap_or_else(late)
}
