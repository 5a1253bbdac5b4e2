//! A lane that sends heartbeats in a proxy's session.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use h2::SendStream;
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use prost::Message;
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::cli::commands::bench::calls::late;
use crate::cli::commands::bench::connection::{Connection, Failed, Messages};
use crate::cli::commands::bench::lane::{Ended, Lane};
use crate::cli::commands::bench::schedule::Due;
use crate::cli::commands::bench::work::Population;
use crate::grpc::frame;

/// Bytes of a handle.
const HANDLE: usize = 8;

/// A heartbeat without its answer.
#[derive(Debug, Clone, Copy)]
struct Heartbeat {
    due: Due,
    sent: Instant,
    routes: u32,
}

/// The session of one proxy.
#[derive(Debug)]
pub(super) struct Session {
    requests: SendStream<Bytes>,
    answers: Messages,
    timeout: Duration,
    /// The heartbeats, which are sent round and round.
    messages: Vec<(Bytes, u32)>,
    next_message: usize,
    in_flight: VecDeque<Heartbeat>,
    /// Why the session is over.
    failure: Option<Status>,
}

impl Session {
    /// Begins the session of a proxy, and announces the proxy's share of the nodes.
    pub(super) async fn begin(
        connection: Connection,
        population: &Population,
        proxy: u32,
        timeout: Duration,
    ) -> Result<Self, Failed> {
        let hello = v1::SessionHello {
            proxy: Some(population.proxy(proxy)),
            incarnation: incarnation(),
            ..v1::SessionHello::default()
        };
        let begin = connection.session(request(Request::Hello(hello)));
        let (requests, answers) = in_time(begin, Instant::now(), timeout).await?;
        let mut session = Self {
            requests,
            answers,
            timeout,
            messages: Vec::new(),
            next_message: 0,
            in_flight: VecDeque::new(),
            failure: None,
        };
        let welcome = session.answer(Instant::now()).await?;
        let Response::Welcome(v1::SessionWelcome { limits, .. }) = welcome else {
            return Err(unexpected(&welcome));
        };
        let limits = limits.unwrap_or_default();
        let first =
            |proxy: u32| (u64::from(population.nodes) * u64::from(proxy) / u64::from(population.proxies)) as u32;
        let handles = session
            .announce(population, first(proxy), first(proxy + 1), limits.max_nodes)
            .await?;
        let size = HANDLE * population.batch_size.min(limits.max_handles).max(1) as usize;
        session.messages = heartbeats(handles, size);
        Ok(session)
    }

    /// Announces nodes, and returns their handles.
    async fn announce(
        &mut self,
        population: &Population,
        begin: u32,
        end: u32,
        max_nodes: u32,
    ) -> Result<Bytes, Failed> {
        let mut handles = BytesMut::new();
        let size = max_nodes.max(1);
        for first in (begin..end).step_by(size as usize) {
            let nodes = first..first.saturating_add(size).min(end);
            let expected = HANDLE * nodes.len();
            let nodes = Some(population.node_ids(nodes));
            let up = request(Request::NodesUp(v1::SessionNodesUp { nodes }));
            self.requests.send_data(up, false)?;
            match self.answer(Instant::now()).await? {
                Response::Handles(up) if up.handles.len() == expected => handles.extend_from_slice(&up.handles),
                Response::Handles(up) => {
                    let refusal = up.refusal().as_str_name();
                    return Err(Status::failed_precondition(format!("the tracker refused nodes: {refusal}")).into());
                }
                other => return Err(unexpected(&other)),
            }
        }
        Ok(handles.freeze())
    }

    /// Waits for the answer to a request that was sent then, up to the limit. May be cancelled, and then loses nothing.
    async fn answer(&mut self, sent: Instant) -> Result<Response, Failed> {
        let limit = self.timeout;
        in_time(self.next_answer(), sent, limit).await
    }

    async fn next_answer(&mut self) -> Result<Response, Failed> {
        loop {
            let Some(message) = self.answers.next().await? else {
                return Err(Status::unavailable("the session ended").into());
            };
            let answer = v1::SessionResponse::decode(message)
                .map_err(|error| Status::internal(format!("the answer is malformed: {error}")))?;
            match answer.response {
                // These answer no request; a newer tracker may send others.
                Some(Response::KeepAlive(_) | Response::GoAway(_)) | None => {}
                Some(response) => return Ok(response),
            }
        }
    }

    /// Waits for the answer to the oldest heartbeat, and returns how many of its routes were refreshed.
    async fn acked(&mut self, heartbeat: Heartbeat) -> Result<u32, Failed> {
        match self.answer(heartbeat.sent).await? {
            Response::Ack(ack) => Ok(heartbeat
                .routes
                .saturating_sub((ack.gone_handles.len() / HANDLE) as u32)),
            Response::Resync(_) => Ok(0),
            other => Err(unexpected(&other)),
        }
    }
}

impl Lane for Session {
    fn send(&mut self, due: Due) {
        let (message, routes) = self.messages[self.next_message].clone();
        self.next_message = (self.next_message + 1) % self.messages.len();
        // An error reaches the answers, too.
        let _ = self.requests.send_data(message, false);
        let sent = Instant::now();
        self.in_flight.push_back(Heartbeat { due, sent, routes });
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    async fn ended(&mut self) -> Ended {
        let Some(&heartbeat) = self.in_flight.front() else {
            return std::future::pending().await;
        };
        let outcome = match &self.failure {
            Some(status) => Err(status.clone()),
            None => self.acked(heartbeat).await.map_err(|failed| failed.status),
        };
        // Answers have the order of the requests. So if one answer is missing, the session cannot assign the later
        // answers.
        self.failure = outcome.as_ref().err().cloned();
        self.in_flight.pop_front();
        let Heartbeat { due, routes, .. } = heartbeat;
        Ended { due, routes, outcome }
    }

    fn is_lost(&self) -> bool {
        self.failure.is_some()
    }
}

/// Waits up to a limit for the answer to a request that was sent then.
async fn in_time<T>(
    answer: impl Future<Output = Result<T, Failed>>,
    sent: Instant,
    limit: Duration,
) -> Result<T, Failed> {
    let answer = timeout_at(sent + limit, answer).await;
    answer.unwrap_or_else(|_| Err(late(limit).into()))
}

/// Returns an incarnation that is greater than those of earlier runs.
fn incarnation() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since_1970.as_micros() as u64
}

fn request(request: Request) -> Bytes {
    frame::encode(&v1::SessionRequest {
        sequence: 0,
        request: Some(request),
    })
}

/// Returns heartbeats of this many bytes of handles, and the number of routes of each.
fn heartbeats(mut handles: Bytes, size: usize) -> Vec<(Bytes, u32)> {
    let mut messages = Vec::new();
    while !handles.is_empty() {
        let handles = handles.split_to(size.min(handles.len()));
        let routes = (handles.len() / HANDLE) as u32;
        messages.push((request(Request::Heartbeat(v1::SessionHeartbeat { handles })), routes));
    }
    messages
}

fn unexpected(answer: &Response) -> Failed {
    match answer {
        Response::Superseded(_) => Status::failed_precondition("another session has replaced this session"),
        _ => Status::internal("the answer does not belong to its request"),
    }
    .into()
}
