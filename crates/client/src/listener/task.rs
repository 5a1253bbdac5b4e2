//! The task of one agent: moves messages between the control stream and the link.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use nodetracker::NodeId;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::debug;

use crate::clock::now;
use crate::control::frames::{self, MAX_AGENT_MESSAGE, MessageWriter};
use crate::control::proto::{AgentMessage, GoodbyeReason, Hello};
use crate::listener::agent_listener::{Phase, Shared, Status};
use crate::listener::link::{AgentLink, LinkEvent};
use crate::listener::nodes::Held;
use crate::transport::Tunnel;
use crate::transport::slots::Slot;

/// The longest time to write the last messages.
const LAST_WRITE_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves the agent at the other end of a tunnel until the tunnel ends.
pub(super) async fn run(shared: &Arc<Shared>, tunnel: Arc<dyn Tunnel>, _slot: Slot) {
    match Agent::new(shared, tunnel, now()).serve().await {
        Ok(reason) => debug!("a tunnel was closed: {reason}"),
        Err(error) => debug!("a tunnel has ended: {error}"),
    }
}

struct Agent {
    shared: Arc<Shared>,
    link: AgentLink,
    tunnel: Arc<dyn Tunnel>,
    phase: Phase,
    /// The latest shedding that this agent has heard of.
    shed: u64,
    node: Option<NodeId>,
    held: Option<Held>,
    leaves: bool,
}

impl Agent {
    fn new(shared: &Arc<Shared>, tunnel: Arc<dyn Tunnel>, now: std::time::Instant) -> Self {
        let status = shared.status.borrow().clone();
        Self {
            shared: Arc::clone(shared),
            link: AgentLink::new(now, shared.times(), status.list),
            tunnel,
            phase: status.phase,
            shed: status.shed.number,
            node: None,
            held: None,
            leaves: false,
        }
    }

    /// Returns why the tunnel was closed.
    async fn serve(mut self) -> io::Result<String> {
        let ended = || io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended");
        let control = tokio::select! {
            control = timeout(self.shared.config.handshake_timeout, self.tunnel.accept()) => control?,
            () = self.shared.closing() => return Ok("the listener closes".to_owned()),
        };
        let (mut reader, mut writer) = frames::split::<AgentMessage>(control.ok_or_else(ended)?, MAX_AGENT_MESSAGE);
        let mut status = self.shared.status.subscribe();
        status.mark_changed();
        let tunnel = Arc::clone(&self.tunnel);
        let mut is_written = true;
        loop {
            if let Some(reason) = self.advance(now()) {
                let _ = timeout(LAST_WRITE_TIMEOUT, write_all(&mut self.link, &mut writer)).await;
                return Ok(reason);
            }
            if is_written && let Some(message) = self.link.poll_transmit() {
                writer.queue(&message).await?;
                is_written = false;
            }
            let due = self.link.next_timeout().unwrap_or_else(now).into();
            let limit = match self.phase {
                Phase::Closing(limit) => Some(limit),
                _ => None,
            };
            tokio::select! {
                written = writer.flush(), if !is_written => {
                    written?;
                    is_written = true;
                }
                message = reader.next(), if is_written => self.link.handle(now(), message?),
                () = sleep_until(due) => {}
                // The listener has the sender.
                _ = status.changed() => self.follow(&status.borrow_and_update()),
                stream = tunnel.accept() => {
                    stream.ok_or_else(ended)?;
                    return Ok("the agent has opened a second stream".to_owned());
                }
                () = tunnel.until_at_most(1), if self.leaves => return Ok("the agent has left".to_owned()),
                () = tunnel.until_at_most(1), if limit.is_some() => self.stop(),
                () = sleep_until(limit.unwrap_or_else(Instant::now)), if limit.is_some() => self.stop(),
            }
        }
    }

    /// Does what is due. Returns the reason if the tunnel must be closed.
    fn advance(&mut self, now: std::time::Instant) -> Option<String> {
        self.link.bytes_received(self.tunnel.last_received());
        while let Some(event) = self.link.poll_event(now) {
            if let Some(reason) = self.event(event) {
                // Streams must not be opened on this tunnel any more.
                self.held = None;
                return Some(reason);
            }
        }
        None
    }

    /// Acts on an event. Returns the reason if the tunnel must be closed.
    fn event(&mut self, event: LinkEvent) -> Option<String> {
        match event {
            LinkEvent::Hello(hello) => match self.check_hello(&hello) {
                Ok(node) => {
                    self.node = Some(node);
                    self.link.welcome(self.shared.config.proxy.clone());
                }
                Err((reason, text)) => self.refuse(reason, &text),
            },
            LinkEvent::Claimed if matches!(self.shared.status.borrow().phase, Phase::Closing(_)) => self.stop(),
            LinkEvent::Claimed => {
                self.held = self
                    .node
                    .as_ref()
                    .and_then(|node| self.shared.nodes.hold(node, &self.tunnel));
                if self.held.is_none() {
                    self.refuse(GoodbyeReason::TooManyTunnels, "");
                    return None;
                }
                self.shared.counters.claimed.fetch_add(1, Relaxed);
                if let Phase::Draining(window) = self.phase {
                    self.link.reconnect(window);
                }
            }
            LinkEvent::Seen => self.held.iter().for_each(Held::seen),
            LinkEvent::Left => {
                self.held = None;
                self.leaves = true;
            }
            LinkEvent::Closed(reason) => return Some(reason),
        }
        None
    }

    /// Checks whether the agent may claim this proxy.
    fn check_hello(&self, hello: &Hello) -> Result<NodeId, (GoodbyeReason, String)> {
        if self.phase != Phase::Serving {
            return Err((GoodbyeReason::Draining, String::new()));
        }
        let invalid = |error: nodetracker::NodeIdError| (GoodbyeReason::InvalidHello, error.to_string());
        let node: NodeId = hello.node_id.parse().map_err(invalid)?;
        let cluster = &self.shared.config.cluster;
        if !cluster.is_empty() && *cluster != hello.cluster_name {
            let text = format!(
                "the agent is of cluster {:?}, this proxy of cluster {cluster:?}",
                hello.cluster_name
            );
            return Err((GoodbyeReason::InvalidHello, text));
        }
        (self.shared.verify)(&node.to_string(), self.tunnel.peer_certificates())
            .map_err(|reason| (GoodbyeReason::NotAllowed, reason))?;
        Ok(node)
    }

    fn refuse(&mut self, reason: GoodbyeReason, text: &str) {
        self.shared.counters.refused.fetch_add(1, Relaxed);
        self.link.refuse(reason, text);
    }

    fn stop(&mut self) {
        self.link.refuse(GoodbyeReason::Stopping, "");
    }

    fn follow(&mut self, status: &Status) {
        self.link.set_list(Arc::clone(&status.list));
        self.link.ping_within(status.ping_within);
        let is_shed = std::mem::replace(&mut self.shed, status.shed.number) != status.shed.number;
        if is_shed && self.held.is_some() && fastrand::f64() < status.shed.share {
            self.link.reconnect(status.shed.window);
        }
        let is_new = std::mem::replace(&mut self.phase, status.phase) != status.phase;
        match status.phase {
            Phase::Draining(window) if is_new && self.held.is_some() => self.link.reconnect(window),
            Phase::Closing(_) => self.held = None,
            _ => {}
        }
    }
}

async fn write_all(link: &mut AgentLink, writer: &mut MessageWriter) -> io::Result<()> {
    while let Some(message) = link.poll_transmit() {
        writer.queue(&message).await?;
    }
    writer.flush().await
}

#[cfg(test)]
pub(super) mod simulated;
