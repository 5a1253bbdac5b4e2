//! The state machine of a session, without its stream: each request has its response at once.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nodetracker::{
    AddError, AddHandlesError, AddedHandles, BeginError, ClientId, Incarnation, ProxyRef, StaleIncarnation,
};
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use nodetracker_proto::v1::{self, SessionRefusal, SessionSupersededReason};
use tonic::Status;
use tracing::debug;

use crate::auth::Caller;
use crate::connection_counters::{ConnectionCounters, SessionMessage};
use crate::convert::{parse, status};
use crate::limits::{MAX_MESSAGE_SIZE, MAX_SESSION_HANDLES, MAX_SESSION_NODES};
use crate::refusal::{Reason, Refusals};
use crate::rpc::session::Shared;
use crate::rpc::session::message::{self, Scratch, with_scratch};
use crate::rpc::session::owner::{Notice, Ownership, Superseded};

/// The response to a request, and whether the session continues.
#[derive(Debug)]
pub(crate) enum Step {
    Continue(v1::SessionResponse),
    /// The session ends with this status after the response.
    End(v1::SessionResponse, Result<(), Status>),
}

/// One client's session. The [module](super) describes its states.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    caller: Arc<Caller>,
    counters: Arc<ConnectionCounters>,
    /// `None` while BEGUN. After the end nothing is polled any more.
    open: Option<Open>,
}

/// The state of an open session.
#[derive(Debug)]
struct Open {
    /// The proxy of the hello.
    details: v1::Proxy,
    incarnation: NonZeroU64,
    client: Option<ClientId>,
    proxy: ProxyRef,
    ownership: Arc<Ownership>,
    /// The last heartbeat interval that was sent.
    announced_interval: Duration,
}

/// Why the session ends instead of acting on a request.
enum Failure {
    Superseded(Superseded),
    /// The table did not register the proxy.
    NotRegistered(BeginError),
}

impl From<Superseded> for Failure {
    fn from(superseded: Superseded) -> Self {
        Failure::Superseded(superseded)
    }
}

impl From<BeginError> for Failure {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Stale(stale) => Failure::Superseded(superseded_by(stale)),
            error => Failure::NotRegistered(error),
        }
    }
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>, caller: Arc<Caller>, counters: Arc<ConnectionCounters>) -> Self {
        Self {
            shared,
            caller,
            counters,
            open: None,
        }
    }

    /// Returns the counters of the server's refusals.
    pub(crate) fn refusals(&self) -> &Refusals {
        &self.shared.refusals
    }

    /// Logs why the session ends early.
    pub(crate) fn log_failure(&self, status: &Status) {
        let proxy = self.open.as_ref().map(|open| open.details.proxy_id.as_str());
        debug!(proxy, code = ?status.code(), error = status.message(), "a session failed");
    }

    /// Returns how long the client may be silent from now on, once it has said hello.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.open.as_ref().map(|_| self.shared.table.keep_alive())
    }

    /// Waits until another session takes over, or until the tracker is about to stop.
    pub(crate) fn poll_notice(&self, cx: &mut Context<'_>) -> Poll<Step> {
        match &self.open {
            Some(open) => open.ownership.poll_notice(cx).map(|notice| match notice {
                Notice::Superseded(superseded) => end_superseded(0, superseded),
                Notice::GoAway(time_left) => Step::Continue(response(0, go_away(time_left))),
            }),
            None => Poll::Pending,
        }
    }

    /// Acts on a request.
    ///
    /// # Errors
    ///
    /// The session ends with the status and without a response. The table is unchanged.
    pub(crate) fn on_request(&mut self, request: v1::SessionRequest) -> Result<Step, Status> {
        let sequence = request.sequence;
        let Some(request) = request.request else {
            return Err(Status::invalid_argument("request is missing"));
        };
        let kind = kind_of(&request);
        self.counters.session_messages(kind).add(1);
        match (&mut self.open, request) {
            (None, Request::Hello(hello)) => self.hello(sequence, hello),
            (None, _) => Err(Status::invalid_argument(format!("{} came before hello", kind.name()))),
            (Some(_), Request::Hello(_)) => Err(Status::invalid_argument("hello came a second time")),
            (Some(open), request) => open.on_request(sequence, &request, &self.shared),
        }
    }

    fn hello(&mut self, sequence: u64, hello: v1::SessionHello) -> Result<Step, Status> {
        let shared = &self.shared;
        let (proxy, incarnation) = message::hello(&hello)?;
        self.caller.check_proxy(proxy.id).inspect_err(|denied| {
            shared.refusals.refuse_for(Reason::Denied, Some(&denied.message()));
        })?;
        let client = self.caller.client();
        let begin = || shared.table.begin_incarnation(proxy.of_client(client), incarnation);
        let begun = shared.owners.take_over(proxy.id, incarnation, begin);
        let (ownership, begun) = match begun.map_err(Failure::from) {
            Ok(taken) => taken,
            Err(failure) => return failure.end(sequence, &shared.refusals),
        };
        let announced_interval = shared.heartbeat_interval();
        let welcome = v1::SessionWelcome {
            generation: shared.instance_id.get(),
            heartbeat_interval: to_wire(announced_interval),
            handles_hold: hello.has_handles && hello.generation == shared.instance_id.get() && begun.is_resumed,
            limits: Some(v1::SessionLimits {
                max_nodes: MAX_SESSION_NODES as u32,
                max_handles: MAX_SESSION_HANDLES as u32,
                max_message_bytes: MAX_MESSAGE_SIZE as u32,
                idle_timeout: to_wire(shared.table.keep_alive()),
            }),
        };
        debug!(
            proxy = proxy.id,
            incarnation,
            resumed = begun.is_resumed,
            "a session begins"
        );
        self.open = Some(Open {
            details: hello.proxy.unwrap_or_default(),
            incarnation,
            client,
            proxy: begun.proxy,
            ownership,
            announced_interval,
        });
        Ok(Step::Continue(response(sequence, Response::Welcome(welcome))))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            debug!(proxy = open.details.proxy_id, "a session is over");
            self.shared.owners.release(&open.details.proxy_id, &open.ownership);
        }
    }
}

impl Failure {
    fn end(self, sequence: u64, refusals: &Refusals) -> Result<Step, Status> {
        match self {
            Failure::Superseded(superseded) => Ok(end_superseded(sequence, superseded)),
            Failure::NotRegistered(error) => Err(status::begin(refusals, "hello.proxy.", error)),
        }
    }
}

impl Open {
    fn on_request(&mut self, sequence: u64, request: &Request, shared: &Shared) -> Result<Step, Status> {
        with_scratch(|scratch| {
            // The whole message is checked before the table changes.
            match request {
                Request::NodesUp(up) => message::nodes(up.nodes.as_ref(), "nodes_up.nodes", scratch)?,
                Request::NodesDown(down) => message::nodes(down.nodes.as_ref(), "nodes_down.nodes", scratch)?,
                Request::Heartbeat(heartbeat) => message::handles(heartbeat, scratch)?,
                Request::Hello(_) | Request::Drain(_) => {}
            }
            let ownership = Arc::clone(&self.ownership);
            let done = ownership.run_if_owner(|| match request {
                Request::NodesUp(_) => self.nodes_up(scratch, shared),
                Request::Heartbeat(_) => self.heartbeat(scratch, shared),
                Request::NodesDown(_) => self.nodes_down(scratch, shared),
                Request::Drain(_) | Request::Hello(_) => self.drain(shared),
            });
            match (request, done.map_err(Failure::from).flatten()) {
                (Request::Drain(_), Ok(done)) => Ok(Step::End(response(sequence, done), Ok(()))),
                (_, Ok(done)) => Ok(Step::Continue(response(sequence, done))),
                (_, Err(failure)) => failure.end(sequence, &shared.refusals),
            }
        })
    }

    /// Resumes the incarnation, in case the table has dropped the proxy.
    fn resume(&mut self, shared: &Shared) -> Result<Incarnation, Failure> {
        let proxy = parse::as_proxy(&self.details);
        let begun = shared
            .table
            .resume_incarnation(proxy.of_client(self.client), self.incarnation)?;
        self.proxy = begun.proxy;
        Ok(begun)
    }

    fn nodes_up(&mut self, scratch: &mut Scratch, shared: &Shared) -> Result<Response, Failure> {
        let (handles, refusal) = loop {
            let (handles, error) = match shared.table.add_nodes_with_handles(&scratch.nodes, self.proxy) {
                Ok(AddedHandles { handles, .. }) => break (handles, SessionRefusal::Unspecified),
                Err(AddHandlesError { handles, error, .. }) => (handles, error),
            };
            match error {
                AddError::UnknownProxy => _ = self.resume(shared)?,
                AddError::TooManyRoutes { .. } => {
                    shared.refusals.refuse(Reason::TableRoutes);
                    break (handles, SessionRefusal::TooManyRoutes);
                }
                AddError::TooManyRoutesOfProxy { .. } => {
                    shared.refusals.refuse(Reason::ProxyRoutes);
                    break (handles, SessionRefusal::TooManyRoutesOfProxy);
                }
                AddError::TooManyRoutesOfClient { .. } => {
                    shared.refusals.refuse(Reason::ClientRoutes);
                    break (handles, SessionRefusal::TooManyRoutesOfClient);
                }
                _ => {
                    shared.refusals.refuse(Reason::TableMemory);
                    break (handles, SessionRefusal::OutOfMemory);
                }
            }
        };
        Ok(Response::Handles(v1::SessionHandles {
            handles: message::encode_handles(handles.iter()),
            refusal: refusal.into(),
        }))
    }

    fn heartbeat(&mut self, scratch: &mut Scratch, shared: &Shared) -> Result<Response, Failure> {
        let handles = &scratch.handles;
        let refreshed = shared.table.refresh_routes(handles, self.proxy);
        // A heartbeat without handles refreshes the proxy itself. Otherwise its routes keep it registered.
        let is_registered = (refreshed.is_ok() && !handles.is_empty()) || self.resume(shared)?.is_resumed;
        if !is_registered {
            return Ok(Response::Resync(v1::SessionResync {}));
        }
        // If the refresh failed, the next heartbeat reports the handles whose routes are gone.
        let refreshed = refreshed.unwrap_or_default();
        let interval = shared.heartbeat_interval();
        let has_changed = std::mem::replace(&mut self.announced_interval, interval) != interval;
        Ok(Response::Ack(v1::SessionAck {
            gone_handles: message::encode_handles(refreshed.gone.iter().map(|&at| &handles[at])),
            heartbeat_interval: has_changed.then(|| to_wire(interval)).flatten(),
        }))
    }

    fn nodes_down(&mut self, scratch: &mut Scratch, shared: &Shared) -> Result<Response, Failure> {
        self.resume(shared)?;
        for node in &scratch.nodes {
            shared.table.remove_route(node, self.proxy);
        }
        Ok(Response::Ack(v1::SessionAck::default()))
    }

    fn drain(&mut self, shared: &Shared) -> Result<Response, Failure> {
        // Even if the table has dropped the proxy: the drain ends the incarnation.
        self.resume(shared)?;
        shared.table.remove_proxy(self.proxy);
        Ok(Response::Ack(v1::SessionAck::default()))
    }
}

fn response(sequence: u64, response: Response) -> v1::SessionResponse {
    v1::SessionResponse {
        sequence,
        response: Some(response),
    }
}

/// Ends a session that no longer owns its proxy.
fn end_superseded(sequence: u64, Superseded { reason, latest }: Superseded) -> Step {
    let why = match reason {
        SessionSupersededReason::NewerSession => format!("incarnation {latest} has begun a newer session"),
        SessionSupersededReason::ProxyRemoved => format!("incarnation {latest} is over: the proxy was removed"),
        _ => format!("incarnation {latest} of the proxy has begun"),
    };
    let superseded = Response::Superseded(v1::SessionSuperseded {
        reason: reason.into(),
        latest_incarnation: latest.get(),
    });
    Step::End(response(sequence, superseded), Err(Status::failed_precondition(why)))
}

fn go_away(time_left: Duration) -> Response {
    Response::GoAway(v1::SessionGoAway {
        time_left: to_wire(time_left),
    })
}

fn superseded_by(StaleIncarnation { latest, is_over, .. }: StaleIncarnation) -> Superseded {
    let reason = if is_over {
        SessionSupersededReason::ProxyRemoved
    } else {
        SessionSupersededReason::NewerIncarnation
    };
    Superseded { reason, latest }
}

fn kind_of(request: &Request) -> SessionMessage {
    match request {
        Request::Hello(_) => SessionMessage::Hello,
        Request::NodesUp(_) => SessionMessage::NodesUp,
        Request::Heartbeat(_) => SessionMessage::Heartbeat,
        Request::NodesDown(_) => SessionMessage::NodesDown,
        Request::Drain(_) => SessionMessage::Drain,
    }
}

/// Encodes a duration. Returns `None` for more than 292 billion years.
fn to_wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
