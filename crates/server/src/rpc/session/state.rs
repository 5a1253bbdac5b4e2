//! A session without its stream: each request is answered at once.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use nodetracker::{AddError, AddNodesError, BeginError, Incarnation, ProxyRef, StaleIncarnation};
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use nodetracker_proto::v1::{self, SessionRefusal, SessionSupersededReason};
use tonic::Status;

use crate::convert::{parse, status};
use crate::limits::{MAX_MESSAGE_SIZE, MAX_SESSION_HANDLES, MAX_SESSION_NODES};
use crate::rpc::session::Shared;
use crate::rpc::session::message::{self, Scratch, with_scratch};
use crate::rpc::session::owner::{Superseded, Voice};

/// The answer to a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The session goes on.
    Next(v1::SessionResponse),
    /// The session ends, as the result says.
    Last(v1::SessionResponse, Result<(), Status>),
}

/// One client's session, in the states that the [module](super) tells.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Arc<Shared>,
    /// `None` while BEGUN. What comes after the end, nobody asks for.
    open: Option<Open>,
}

/// What is known since the hello.
#[derive(Debug)]
struct Open {
    /// As the hello told it.
    details: v1::Proxy,
    incarnation: NonZeroU64,
    proxy: ProxyRef,
    voice: Arc<Voice>,
    /// The heartbeat interval that the client was told last.
    told: Duration,
}

/// Why a request was not done.
enum Refused {
    Superseded(Superseded),
    /// There is no room for the proxy.
    NoRoom(Status),
}

impl From<Superseded> for Refused {
    fn from(superseded: Superseded) -> Self {
        Refused::Superseded(superseded)
    }
}

impl From<BeginError> for Refused {
    fn from(error: BeginError) -> Self {
        match error {
            BeginError::Stale(stale) => Refused::Superseded(superseded_by(stale)),
            error => Refused::NoRoom(status::begin("hello.proxy.", error)),
        }
    }
}

impl Session {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, open: None }
    }

    /// How long the client may be silent from now on, if it has said hello.
    pub(crate) fn idle_timeout(&self) -> Option<Duration> {
        self.open.as_ref().map(|_| self.shared.table.keep_alive())
    }

    /// Waits until another session has taken over.
    pub(crate) fn poll_superseded(&self, cx: &mut Context<'_>) -> Poll<Answer> {
        match &self.open {
            Some(open) => open.voice.poll_lost(cx).map(|superseded| last(0, superseded)),
            None => Poll::Pending,
        }
    }

    /// Does what a request asks for.
    ///
    /// # Errors
    ///
    /// The status that the session ends with, with no answer. Nothing was done.
    pub(crate) fn on_request(&mut self, request: v1::SessionRequest) -> Result<Answer, Status> {
        let sequence = request.sequence;
        let Some(request) = request.request else {
            return Err(Status::invalid_argument("request is missing"));
        };
        match (&mut self.open, request) {
            (None, Request::Hello(hello)) => self.hello(sequence, hello),
            (None, other) => Err(Status::invalid_argument(format!(
                "{} came before hello",
                name_of(&other)
            ))),
            (Some(_), Request::Hello(_)) => Err(Status::invalid_argument("hello came a second time")),
            (Some(open), request) => open.on_request(sequence, &request, &self.shared),
        }
    }

    fn hello(&mut self, sequence: u64, hello: v1::SessionHello) -> Result<Answer, Status> {
        let shared = &self.shared;
        let (proxy, incarnation) = message::hello(&hello)?;
        let begin = || shared.table.begin_incarnation(&proxy, incarnation);
        let (voice, begun) = match shared.voices.take(proxy.id, incarnation, begin).map_err(Refused::from) {
            Ok(taken) => taken,
            Err(refused) => return refused.ends(sequence),
        };
        let told = shared.heartbeat_interval();
        let welcome = v1::SessionWelcome {
            generation: shared.instance_id.get(),
            heartbeat_interval: wire(told),
            handles_hold: hello.has_handles && hello.generation == shared.instance_id.get() && begun.is_resumed,
            limits: Some(v1::SessionLimits {
                max_nodes: MAX_SESSION_NODES as u32,
                max_handles: MAX_SESSION_HANDLES as u32,
                max_message_bytes: MAX_MESSAGE_SIZE as u32,
                idle_timeout: wire(shared.table.keep_alive()),
            }),
        };
        self.open = Some(Open {
            details: hello.proxy.unwrap_or_default(),
            incarnation,
            proxy: begun.proxy,
            voice,
            told,
        });
        Ok(next(sequence, Response::Welcome(welcome)))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            self.shared.voices.leave(&open.details.proxy_id, &open.voice);
        }
    }
}

impl Refused {
    fn ends(self, sequence: u64) -> Result<Answer, Status> {
        match self {
            Refused::Superseded(superseded) => Ok(last(sequence, superseded)),
            Refused::NoRoom(status) => Err(status),
        }
    }
}

impl Open {
    fn on_request(&mut self, sequence: u64, request: &Request, shared: &Shared) -> Result<Answer, Status> {
        with_scratch(|scratch| {
            // All of it is checked before anything is done.
            match request {
                Request::NodesUp(up) => message::nodes(up.nodes.as_ref(), "nodes_up.nodes", scratch)?,
                Request::NodesDown(down) => message::nodes(down.nodes.as_ref(), "nodes_down.nodes", scratch)?,
                Request::Heartbeat(heartbeat) => message::handles(heartbeat, scratch)?,
                Request::Hello(_) | Request::Drain(_) => {}
            }
            let voice = Arc::clone(&self.voice);
            let done = voice.speak(|| match request {
                Request::NodesUp(_) => self.nodes_up(scratch, shared),
                Request::Heartbeat(_) => self.heartbeat(scratch, shared),
                Request::NodesDown(_) => self.nodes_down(scratch, shared),
                Request::Drain(_) | Request::Hello(_) => self.drain(shared),
            });
            match (request, done.map_err(Refused::from).flatten()) {
                (Request::Drain(_), Ok(response)) => Ok(Answer::Last(answer(sequence, response), Ok(()))),
                (_, Ok(response)) => Ok(next(sequence, response)),
                (_, Err(refused)) => refused.ends(sequence),
            }
        })
    }

    /// Goes on with the incarnation, where the table may not have the proxy any more.
    fn resume(&mut self, shared: &Shared) -> Result<Incarnation, Refused> {
        let begun = shared
            .table
            .resume_incarnation(&parse::as_proxy(&self.details), self.incarnation)?;
        self.proxy = begun.proxy;
        Ok(begun)
    }

    fn nodes_up(&mut self, scratch: &mut Scratch, shared: &Shared) -> Result<Response, Refused> {
        let refusal = loop {
            scratch.handles.clear();
            let added = shared
                .table
                .add_nodes_with_handles(&scratch.nodes, self.proxy, &mut scratch.handles);
            match added.map_err(|AddNodesError { error, .. }| error) {
                Ok(_) => break SessionRefusal::Unspecified,
                Err(AddError::UnknownProxy) => _ = self.resume(shared)?,
                Err(AddError::TooManyRoutes { .. }) => break SessionRefusal::TooManyRoutes,
                Err(_) => break SessionRefusal::OutOfMemory,
            }
        };
        Ok(Response::Handles(v1::SessionHandles {
            handles: message::bytes_of(scratch.handles.iter()),
            refusal: refusal.into(),
        }))
    }

    fn heartbeat(&mut self, scratch: &mut Scratch, shared: &Shared) -> Result<Response, Refused> {
        let Scratch { handles, gone, .. } = scratch;
        gone.clear();
        let refreshed = shared.table.refresh_routes(handles, self.proxy, gone);
        // One without handles tells the table that the proxy lives, which its routes do otherwise.
        let is_there = match refreshed {
            Ok(_) if !handles.is_empty() => true,
            Ok(_) | Err(_) => self.resume(shared)?.is_resumed,
        };
        if !is_there {
            return Ok(Response::Resync(v1::SessionResync {}));
        }
        let interval = shared.heartbeat_interval();
        let is_news = std::mem::replace(&mut self.told, interval) != interval;
        Ok(Response::Ack(v1::SessionAck {
            gone_handles: message::bytes_of(gone.iter().map(|&at| &handles[at])),
            heartbeat_interval: is_news.then(|| wire(interval)).flatten(),
        }))
    }

    fn nodes_down(&mut self, scratch: &mut Scratch, shared: &Shared) -> Result<Response, Refused> {
        self.resume(shared)?;
        for node in &scratch.nodes {
            shared.table.remove_route(node, self.proxy);
        }
        Ok(Response::Ack(v1::SessionAck::default()))
    }

    fn drain(&mut self, shared: &Shared) -> Result<Response, Refused> {
        // Also where the table has dropped the proxy: what ends is the incarnation.
        self.resume(shared)?;
        shared.table.remove_proxy(self.proxy);
        Ok(Response::Ack(v1::SessionAck::default()))
    }
}

fn answer(sequence: u64, response: Response) -> v1::SessionResponse {
    v1::SessionResponse {
        sequence,
        response: Some(response),
    }
}

fn next(sequence: u64, response: Response) -> Answer {
    Answer::Next(answer(sequence, response))
}

/// Tells a client that another session speaks for its proxy.
fn last(sequence: u64, Superseded { reason, latest }: Superseded) -> Answer {
    let why = match reason {
        SessionSupersededReason::NewerSession => format!("incarnation {latest} has begun a newer session"),
        SessionSupersededReason::ProxyRemoved => format!("incarnation {latest} is over: the proxy was removed"),
        _ => format!("incarnation {latest} of the proxy has begun"),
    };
    let response = Response::Superseded(v1::SessionSuperseded {
        reason: reason.into(),
        latest_incarnation: latest.get(),
    });
    Answer::Last(answer(sequence, response), Err(Status::failed_precondition(why)))
}

fn superseded_by(StaleIncarnation { latest, is_over, .. }: StaleIncarnation) -> Superseded {
    let reason = if is_over {
        SessionSupersededReason::ProxyRemoved
    } else {
        SessionSupersededReason::NewerIncarnation
    };
    Superseded { reason, latest }
}

/// The field that a request is.
fn name_of(request: &Request) -> &'static str {
    match request {
        Request::Hello(_) => "hello",
        Request::NodesUp(_) => "nodes_up",
        Request::Heartbeat(_) => "heartbeat",
        Request::NodesDown(_) => "nodes_down",
        Request::Drain(_) => "drain",
    }
}

/// A duration as it is sent; `None` for one of more than 292 billion years.
fn wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
