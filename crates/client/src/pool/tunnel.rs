//! The task of one tunnel: moves messages between the control stream and the machine, and streams to the embedder.

use std::io;
use std::sync::Arc;

use proto::proxy_message::Message;
use tokio::sync::mpsc;

use crate::control::frames::{self, MAX_PROXY_MESSAGE};
use crate::control::proto;
use crate::pool::agent_pool::{IncomingStream, Shared};
use crate::pool::config::Target;
use crate::pool::machine::{Input, TunnelId};

/// Opens a tunnel, and serves the tunnel until it ends. The machine's [`Close`](crate::pool::machine::Action) aborts
/// the task.
pub(super) async fn run(
    shared: Arc<Shared>,
    id: TunnelId,
    target: Target,
    messages: mpsc::Receiver<proto::AgentMessage>,
    incoming: mpsc::Sender<IncomingStream>,
) {
    let Err(error) = serve(&shared, id, &target, messages, incoming).await;
    shared.input(id, Input::Ended(error.to_string()));
}

async fn serve(
    shared: &Arc<Shared>,
    id: TunnelId,
    target: &Target,
    mut messages: mpsc::Receiver<proto::AgentMessage>,
    incoming: mpsc::Sender<IncomingStream>,
) -> io::Result<std::convert::Infallible> {
    let tunnel = shared.transport.connect(&target.addr).await?;
    let control = tunnel.open().await?;
    let (mut reader, mut writer) = frames::split::<proto::ProxyMessage>(control, MAX_PROXY_MESSAGE);
    shared.opened(id, &tunnel);
    let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the tunnel has ended");
    let mut is_written = true;
    let mut proxy_id = None;
    let mut waiting: Option<IncomingStream> = None;
    loop {
        tokio::select! {
            message = messages.recv(), if is_written => {
                writer.queue(&message.ok_or_else(ended)?).await?;
                is_written = false;
            }
            written = writer.flush(), if !is_written => {
                written?;
                is_written = true;
            }
            message = reader.next() => {
                let message = message?;
                if let Some(Message::Welcome(proto::Welcome { proxy: Some(proxy), .. })) = &message.message {
                    (shared.verify)(&proxy.proxy_id, tunnel.peer_certificates()).map_err(io::Error::other)?;
                    proxy_id = Some(proxy.proxy_id.clone());
                }
                shared.input(id, Input::Received(message));
            }
            stream = tunnel.accept(), if waiting.is_none() && proxy_id.is_some() => {
                let (stream, proxy_id) = (stream.ok_or_else(ended)?, proxy_id.clone().unwrap_or_default());
                waiting = Some(IncomingStream { proxy_id, target: target.clone(), stream });
            }
            permit = incoming.reserve(), if waiting.is_some() => {
                // Without a receiver, the pool is being dropped.
                if let (Ok(permit), Some(stream)) = (permit, waiting.take()) {
                    permit.send(stream);
                }
            }
        }
    }
}
