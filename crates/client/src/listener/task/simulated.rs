//! An agent's task in a simulation: the caller moves the messages, and has the clock.

use std::io;
use std::time::Instant;

use async_trait::async_trait;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;

use super::*;
use crate::control::proto::ProxyMessage;
use crate::listener::AgentListener;
use crate::transport::TunnelStream;

/// The task of one agent, without I/O. Dropping the agent ends its task, as the end of the connection does.
pub(crate) struct SimulatedAgent {
    agent: Agent,
    tunnel: Arc<SimulatedTunnel>,
}

/// A tunnel without streams.
struct SimulatedTunnel {
    last_received: Mutex<Instant>,
}

impl SimulatedAgent {
    pub(crate) fn new(listener: &AgentListener, now: Instant) -> Self {
        let last_received = Mutex::new(now);
        let tunnel = Arc::new(SimulatedTunnel { last_received });
        let mut agent = Agent::new(&listener.shared, Arc::clone(&tunnel) as _, now);
        agent.follow(&listener.shared.status.borrow());
        Self { agent, tunnel }
    }

    pub(crate) fn handle(&mut self, now: Instant, message: AgentMessage) {
        *self.tunnel.last_received.lock() = now;
        self.agent.link.handle(now, message);
    }

    /// Notices a change of the listener's status.
    pub(crate) fn follow(&mut self) {
        let status = self.agent.shared.status.borrow().clone();
        self.agent.follow(&status);
    }

    /// Does what is due. Returns whether the tunnel must be closed after the messages. No stream is open.
    pub(crate) fn advance(&mut self, now: Instant) -> bool {
        if matches!(self.agent.phase, Phase::Closing(_)) {
            self.agent.stop();
        }
        self.agent.advance(now).is_some() || self.agent.leaves
    }

    pub(crate) fn poll_transmit(&mut self) -> Option<ProxyMessage> {
        self.agent.link.poll_transmit()
    }

    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.agent.link.next_timeout()
    }

    /// Whether the listener has this tunnel.
    pub(crate) fn is_held(&self) -> bool {
        self.agent.held.is_some()
    }
}

#[async_trait]
impl Tunnel for SimulatedTunnel {
    async fn open_leaving(&self, _: usize) -> io::Result<TunnelStream> {
        Err(io::ErrorKind::Unsupported.into())
    }

    async fn accept(&self) -> Option<TunnelStream> {
        None
    }

    fn open_streams(&self) -> usize {
        1
    }

    async fn until_at_most(&self, _: usize) {}

    fn last_received(&self) -> Instant {
        *self.last_received.lock()
    }

    fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        &[]
    }
}
