//! The task that connects a machine to its trackers.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::panicking;

use nodetracker_proto::v1;
use nodetracker_proto::v1::session_service_client::SessionServiceClient;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tracing::{info, warn};

use crate::clock::now;
use crate::connect::addr::TrackerAddr;
use crate::connect::channel::{ConnectConfig, is_unreachable};
use crate::session::machine::{Event, Input, MAX_IN_FLIGHT, Machine, Superseded};
use crate::session::nodes::NodeSet;
use crate::session::stats::{SessionState, SessionStats};

/// The state that a task shares with the proxy's threads.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) nodes: Arc<NodeSet>,
    /// Notified when the nodes have changed, or a drain is wanted.
    pub(super) wake: Notify,
    /// A drain is wanted, or the session is over. Calls on nodes have no effect any more.
    pub(super) is_closed: AtomicBool,
}

/// Drives a machine until its session is over.
#[derive(Debug)]
pub(super) struct Shell {
    pub(super) machine: Machine,
    pub(super) shared: Arc<Shared>,
    pub(super) trackers: Vec<TrackerAddr>,
    pub(super) connect: ConnectConfig,
    pub(super) stats: watch::Sender<SessionStats>,
    /// The first task that is superseded sets this, for all tasks of the session.
    pub(super) superseded: watch::Sender<Option<Superseded>>,
}

/// A stream to a tracker.
struct Stream {
    requests: mpsc::Sender<v1::SessionRequest>,
    responses: Responses,
}

type Opening = Pin<Box<dyn Future<Output = Result<Streaming<v1::SessionResponse>, Status>> + Send>>;

enum Responses {
    Opening(Opening),
    Open(Box<Streaming<v1::SessionResponse>>),
}

impl Shell {
    pub(super) async fn run(mut self) {
        let mut superseded = self.superseded.subscribe();
        let mut stream = None;
        // Stays open while the nodes move to another tracker.
        let mut previous = None;
        loop {
            let now = now();
            if self.shared.is_closed.load(Ordering::Acquire) {
                self.machine.handle(now, Input::Drain);
            }
            self.machine.handle_timeout(now);
            loop {
                while let Some(event) = self.machine.poll_event() {
                    self.on_event(event, &mut stream, &mut previous);
                }
                let Some(request) = self.machine.poll_transmit(now) else {
                    break;
                };
                if let Some(Stream { requests, .. }) = &stream {
                    // There is room for all requests in flight. If the stream has ended, its status follows.
                    let _ = requests.try_send(request);
                }
            }
            if self.machine.has_ended() {
                return;
            }
            self.publish(match self.machine.is_open() {
                true => SessionState::Open,
                false => SessionState::Connecting,
            });
            let timeout = self.machine.next_timeout();
            tokio::select! {
                response = next(&mut stream) => self.on_response(response, &mut stream),
                () = sleep(timeout.map(Instant::from_std)) => {}
                () = self.shared.wake.notified() => {}
                found = superseded.wait_for(Option::is_some) => {
                    if let Some(superseded) = found.ok().and_then(|found| *found) {
                        self.publish(SessionState::Superseded(superseded));
                    }
                    return;
                }
            }
        }
    }

    fn on_event(&mut self, event: Event, stream: &mut Option<Stream>, previous: &mut Option<Stream>) {
        match event {
            Event::Connect {
                tracker,
                keeps_previous,
            } => {
                let Some(addr) = self.trackers.get(tracker) else { return };
                self.stats.send_modify(|stats| stats.tracker = addr.clone());
                *previous = stream.take().filter(|_| keeps_previous);
                *stream = Some(Stream::open(addr, &self.connect));
            }
            Event::Moved => *previous = None,
            Event::Disconnect(fault) => {
                *stream = None;
                self.on_loss(&fault.to_string());
            }
            Event::Superseded(superseded) => {
                warn!("{superseded}");
                self.superseded.send_replace(Some(superseded));
                self.publish(SessionState::Superseded(superseded));
            }
            Event::Drained => {
                info!("the session is drained");
                self.publish(SessionState::Drained);
            }
        }
    }

    fn on_response(&mut self, response: Result<v1::SessionResponse, Status>, stream: &mut Option<Stream>) {
        let input = match response {
            Ok(message) => Input::Message(message),
            Err(status) => {
                *stream = None;
                self.on_loss(&format!("{:?}: {}", status.code(), status.message()));
                match is_unreachable(&status) {
                    true => Input::Unreachable,
                    false => Input::Lost,
                }
            }
        };
        self.machine.handle(now(), input);
    }

    fn on_loss(&self, error: &str) {
        self.stats.send_modify(|stats| {
            warn!(tracker = %stats.tracker, "a session's stream is lost: {error}");
            stats.last_error = Some(error.into());
        });
    }

    fn publish(&self, state: SessionState) {
        let machine = &self.machine;
        let next = (state, machine.is_settled(), self.shared.nodes.len(), machine.counters());
        let interval = machine.heartbeat_interval();
        self.stats.send_if_modified(|stats| {
            let present = (stats.state, stats.is_settled, stats.nodes, stats.counters);
            let has_changed = next != present || stats.heartbeat_interval != interval;
            (stats.state, stats.is_settled, stats.nodes, stats.counters) = next;
            stats.heartbeat_interval = interval;
            has_changed
        });
    }
}

impl Drop for Shell {
    /// Closes the session when its task ends, also by a panic.
    fn drop(&mut self) {
        self.shared.is_closed.store(true, Ordering::Release);
        if panicking() {
            self.stats.send_modify(|stats| {
                stats.state = SessionState::Failed;
                stats.is_settled = false;
                stats.last_error = Some("the session's task has panicked".into());
            });
        }
    }
}

impl Stream {
    /// Opens a stream over a connection of its own.
    fn open(addr: &TrackerAddr, connect: &ConnectConfig) -> Self {
        let mut client = SessionServiceClient::new(connect.channel(addr));
        let (requests, sent) = mpsc::channel(MAX_IN_FLIGHT);
        let opening = async move { Ok(client.session(ReceiverStream::new(sent)).await?.into_inner()) };
        Self {
            requests,
            responses: Responses::Opening(Box::pin(opening)),
        }
    }

    /// Returns the next message. Nothing is lost if the call is dropped.
    async fn next(&mut self) -> Result<v1::SessionResponse, Status> {
        if let Responses::Opening(opening) = &mut self.responses {
            self.responses = Responses::Open(Box::new(opening.await?));
        }
        match &mut self.responses {
            Responses::Open(responses) => {
                let ended = || Status::unavailable("the tracker has ended the stream");
                responses.message().await?.ok_or_else(ended)
            }
            Responses::Opening(_) => pending().await,
        }
    }
}

async fn next(stream: &mut Option<Stream>) -> Result<v1::SessionResponse, Status> {
    match stream {
        Some(stream) => stream.next().await,
        None => pending().await,
    }
}

async fn sleep(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}
