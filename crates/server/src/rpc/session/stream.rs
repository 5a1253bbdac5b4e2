//! A session's stream: the next request is read once the response to the previous request was taken.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_response::Response;
use prost::Message;
use tokio::task::coop::poll_proceed;
use tokio::time::{Instant, Sleep, sleep_until};
use tokio_stream::Stream;
use tonic::{Status, Streaming};

use crate::grpc::status::correct_status;
use crate::rpc::session::message;
use crate::rpc::session::state::{Session, Step};
use crate::turns::{TurnFuture, Turns};

/// The responses of one session.
pub(crate) struct SessionStream {
    requests: Streaming<Bytes>,
    session: Session,
    turns: Turns,
    /// The request that waits for its turn.
    waiting: Option<(Bytes, TurnFuture)>,
    /// Ends no later than the client's time and the stream's silence, and is extended then. So most messages leave it
    /// alone.
    timer: Pin<Box<Sleep>>,
    /// How long the client may be silent.
    idle_timeout: Duration,
    idle_until: Instant,
    /// How long the stream may be silent.
    keep_alive: Duration,
    /// `None` before the first response.
    silent_until: Option<Instant>,
    /// Set when the client's time is over, until the requests that have arrived are read.
    last_look: Option<LastLook>,
    progress: Progress,
}

type LastLook = Pin<Box<dyn Future<Output = ()> + Send>>;

/// How far the stream is.
enum Progress {
    Open,
    /// Only this status is left to be sent.
    Ending(Status),
    Ended,
}

impl SessionStream {
    /// Returns the responses to `requests`. The first request must arrive within `hello`. If the stream sends nothing
    /// for `keep_alive`, it sends a keep-alive.
    pub(crate) fn new(
        requests: Streaming<Bytes>,
        session: Session,
        turns: Turns,
        hello: Duration,
        keep_alive: Duration,
    ) -> Self {
        let idle_until = Instant::now() + hello;
        Self {
            requests,
            session,
            turns,
            waiting: None,
            timer: Box::pin(sleep_until(idle_until)),
            idle_timeout: hello,
            idle_until,
            keep_alive,
            silent_until: None,
            last_look: None,
            progress: Progress::Open,
        }
    }

    /// Waits for the next step, or for the end of the stream.
    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Step>, Status>> {
        if let Poll::Ready(step) = self.session.poll_notice(cx) {
            self.has_sent(Instant::now());
            return Poll::Ready(Ok(Some(step)));
        }
        if let Some((_, turn)) = &mut self.waiting {
            // The timer is not polled meanwhile: the client is not silent.
            ready!(turn.as_mut().poll(cx));
            let request = self.waiting.take().map(|(request, _)| request);
            return Poll::Ready(self.on_request(request.unwrap_or_default()).map(Some));
        }
        match Pin::new(&mut self.requests).poll_next(cx) {
            Poll::Ready(Some(request)) => {
                let request = request.map_err(|status| correct_status(status, self.session.refusals()))?;
                match self.turns.begin(message::work(&request)) {
                    None => Poll::Ready(self.on_request(request).map(Some)),
                    Some(turn) => {
                        self.waiting = Some((request, turn));
                        // Polls the turn.
                        self.poll_step(cx)
                    }
                }
            }
            Poll::Ready(None) => Poll::Ready(Ok(None)),
            Poll::Pending => self.poll_timer(cx),
        }
    }

    /// Decodes and handles a request in its turn.
    fn on_request(&mut self, request: Bytes) -> Result<Step, Status> {
        // The handles of a heartbeat are not copied: they stay in the request's bytes. INTERNAL, as in `grpc::frame`.
        let request = v1::SessionRequest::decode(request).map_err(|error| Status::internal(error.to_string()))?;
        let step = self.session.on_request(request)?;
        let now = Instant::now();
        self.last_look = None;
        if let Some(idle_timeout) = self.session.idle_timeout() {
            self.idle_timeout = idle_timeout;
            // A time that `Instant` cannot represent never comes.
            self.idle_until = now.checked_add(idle_timeout).unwrap_or(now + FAR);
        }
        self.has_sent(now);
        Ok(step)
    }

    /// Waits until the client has been silent for too long, or the stream has.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Step>, Status>> {
        loop {
            if let Some(last_look) = &mut self.last_look {
                ready!(last_look.as_mut().poll(cx));
                let message = format!("no message came for {:?}", self.idle_timeout);
                return Poll::Ready(Err(Status::deadline_exceeded(message)));
            }
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if now >= self.idle_until {
                self.last_look = Some(Box::pin(self.turns.clone().input_is_read()));
            } else if self.silent_until.is_some_and(|until| now >= until) {
                self.has_sent(now);
                return Poll::Ready(Ok(Some(Step::Continue(keep_alive()))));
            } else {
                let until = self.next_event();
                self.timer.as_mut().reset(until);
            }
        }
    }

    /// Notes that a response was sent.
    fn has_sent(&mut self, now: Instant) {
        self.silent_until = now.checked_add(self.keep_alive);
        let until = self.next_event();
        if until < self.timer.deadline() || self.timer.is_elapsed() {
            self.timer.as_mut().reset(until);
        }
    }

    fn next_event(&self) -> Instant {
        self.silent_until
            .map_or(self.idle_until, |silent| silent.min(self.idle_until))
    }
}

fn keep_alive() -> v1::SessionResponse {
    v1::SessionResponse {
        sequence: 0,
        response: Some(Response::KeepAlive(v1::SessionKeepAlive {})),
    }
}

/// Thirty years.
const FAR: Duration = Duration::from_secs(86_400 * 365 * 30);

impl Stream for SessionStream {
    type Item = Result<v1::SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match std::mem::replace(&mut self.progress, Progress::Ended) {
            Progress::Open => {}
            Progress::Ending(status) => return Poll::Ready(Some(Err(status))),
            Progress::Ended => return Poll::Ready(None),
        }
        self.progress = Progress::Open;
        // A client that sends without a pause must not occupy the thread.
        let proceed = ready!(poll_proceed(cx));
        let step = ready!(self.poll_step(cx));
        proceed.made_progress();
        match step {
            Ok(Some(Step::Continue(response))) => Poll::Ready(Some(Ok(response))),
            Ok(Some(Step::End(response, end))) => {
                let end = end.inspect_err(|status| self.session.log_failure(status));
                self.progress = end.err().map_or(Progress::Ended, Progress::Ending);
                Poll::Ready(Some(Ok(response)))
            }
            Ok(None) => {
                self.progress = Progress::Ended;
                Poll::Ready(None)
            }
            Err(status) => {
                self.session.log_failure(&status);
                self.progress = Progress::Ended;
                Poll::Ready(Some(Err(status)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use http_body::Frame;
    use nodetracker::RouteTable;
    use nodetracker_proto::Raw;
    use nodetracker_proto::v1::session_request::Request;
    use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
    use tokio::task::yield_now;
    use tokio::time::advance;
    use tokio_stream::StreamExt;
    use tonic::Code;

    use super::*;
    use crate::auth::Caller;
    use crate::grpc::frame;
    use crate::grpc::handler::RequestsContext;
    use crate::limits::{Limits, MAX_SESSION_NODES, NODE_WORK, WORK_PER_PASS};
    use crate::rpc::instance_id::InstanceId;
    use crate::rpc::session::Sessions;

    const KEEP_ALIVE: Duration = Duration::from_secs(60);

    /// The requests that a client sends.
    struct Requests(UnboundedReceiver<Bytes>);

    impl http_body::Body for Requests {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0
                .poll_recv(cx)
                .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    /// A session, and its client's side.
    fn session() -> (UnboundedSender<Bytes>, SessionStream) {
        session_with(Turns::of_one_client(Arc::default()))
    }

    fn session_with(turns: Turns) -> (UnboundedSender<Bytes>, SessionStream) {
        let (_, client, stream) = session_of(turns);
        (client, stream)
    }

    /// A session, its client's side, and its service.
    fn session_of(turns: Turns) -> (Sessions, UnboundedSender<Bytes>, SessionStream) {
        let table = RouteTable::builder()
            .keep_alive(KEEP_ALIVE)
            .build()
            .expect("possible limits");
        let sessions = Sessions::new(Arc::new(table), InstanceId::draw(), Arc::default(), &Limits::default());
        let (client, requests) = unbounded_channel();
        let requests = Streaming::new_request(Raw, Requests(requests), None, None);
        let context = RequestsContext {
            caller: Arc::new(Caller::unrestricted()),
            turns,
            counters: Arc::default(),
        };
        let stream = sessions.session(requests, context);
        (sessions, client, stream)
    }

    fn request(request: Request) -> Bytes {
        frame::encode(&v1::SessionRequest {
            sequence: 1,
            request: Some(request),
        })
    }

    fn hello() -> Bytes {
        let proxy = v1::Proxy {
            proxy_id: "proxy".into(),
            cluster_name: "cluster".into(),
            addr: "proxy:3080".into(),
        };
        request(Request::Hello(v1::SessionHello {
            proxy: Some(proxy),
            incarnation: 1,
            ..v1::SessionHello::default()
        }))
    }

    /// Polls a stream once: a response, or the code that ends it.
    fn poll(stream: &mut SessionStream) -> Poll<Result<Option<Response>, Code>> {
        let polled = Pin::new(stream).poll_next(&mut Context::from_waker(Waker::noop()));
        polled.map(|item| match item {
            Some(Ok(response)) => Ok(response.response),
            Some(Err(status)) => Err(status.code()),
            None => Ok(None),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn what_arrived_while_the_process_was_stopped_is_read_before_silence_is_judged() {
        let (client, mut stream) = session();
        client.send(hello()).unwrap();
        assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Welcome(_))))));
        for _ in 0..3 {
            assert_eq!(poll(&mut stream), Poll::Pending);
            advance(2 * KEEP_ALIVE).await;
            // The timer runs first, the socket is read next.
            assert_eq!(poll(&mut stream), Poll::Pending);
            client
                .send(request(Request::Heartbeat(v1::SessionHeartbeat::default())))
                .unwrap();
            assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Ack(_))))));
        }
        advance(2 * KEEP_ALIVE).await;
        let ended = stream.next().await.expect("a status");
        assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn what_waits_for_the_turn_of_its_connection_is_read_before_silence_is_judged() {
        let worker = Arc::default();
        let turns = Turns::of_one_client(Arc::clone(&worker));
        let (client, mut stream) = session_with(turns.clone());
        client.send(hello()).unwrap();
        assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Welcome(_))))));
        // The connection has read a part of its input, and waits for its next turn behind many others.
        let _others: Vec<_> = (0..200)
            .map(|_| Turns::of_one_client(Arc::clone(&worker)).next())
            .collect();
        let turn = turns.next();
        advance(2 * KEEP_ALIVE).await;
        let next = tokio::spawn(async move { stream.next().await });
        turn.await.unwrap();
        client
            .send(request(Request::Heartbeat(v1::SessionHeartbeat::default())))
            .unwrap();
        turns.end(&turns.small_calls(true), 0, true);
        let next = next.await.unwrap().expect("a response").unwrap();
        assert!(matches!(next.response, Some(Response::Ack(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_is_asked_once_to_go_away_and_continues() {
        let (sessions, client, mut stream) = session_of(Turns::of_one_client(Arc::default()));
        let left = Duration::from_secs(5);
        let go_away = Response::GoAway(v1::SessionGoAway {
            time_left: left.try_into().ok(),
        });
        sessions.go_away(left);
        // Before the hello, the client has no session.
        assert_eq!(poll(&mut stream), Poll::Pending);
        client.send(hello()).unwrap();
        assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Welcome(_))))));
        assert_eq!(poll(&mut stream), Poll::Ready(Ok(Some(go_away))));
        assert_eq!(poll(&mut stream), Poll::Pending);
        client
            .send(request(Request::Heartbeat(v1::SessionHeartbeat::default())))
            .unwrap();
        assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Ack(_))))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_waits_for_its_turn_and_its_client_is_not_silent() {
        let turns = Turns::of_one_client(Arc::default());
        let (client, mut stream) = session_with(turns.clone());
        client.send(hello()).unwrap();
        assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Welcome(_))))));
        // The pass is used up, and another task of the connection is in the queue.
        turns.take(WORK_PER_PASS).await;
        let mut first = turns.begin(WORK_PER_PASS).expect("the pass is used up");
        assert!(
            first
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        );
        client
            .send(request(Request::Heartbeat(v1::SessionHeartbeat::default())))
            .unwrap();
        for _ in 0..3 {
            assert_eq!(poll(&mut stream), Poll::Pending);
            advance(KEEP_ALIVE).await;
        }
        drop(first);
        assert!(matches!(
            stream.next().await.expect("an answer").unwrap().response,
            Some(Response::Ack(_))
        ));
        // The client has its whole time again.
        advance(KEEP_ALIVE / 3).await;
        assert_eq!(poll(&mut stream), Poll::Pending);
    }

    /// Otherwise a call that arrives meanwhile would wait for all of them.
    #[tokio::test]
    async fn full_messages_of_many_connections_take_many_passes() {
        const SESSIONS: usize = 50;
        let worker = Arc::default();
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..SESSIONS {
            let (client, mut stream) = session_with(Turns::of_one_client(Arc::clone(&worker)));
            client.send(hello()).unwrap();
            assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Welcome(_))))));
            let nodes = (0..MAX_SESSION_NODES as u128).flat_map(u128::to_be_bytes);
            let up = v1::SessionNodesUp {
                nodes: Some(v1::NodeIds {
                    uuids: nodes.collect(),
                    names: vec![],
                }),
            };
            client.send(request(Request::NodesUp(up))).unwrap();
            let done = Arc::clone(&done);
            tokio::spawn(async move {
                let response = stream.next().await.expect("a response").unwrap().response;
                assert!(matches!(response, Some(Response::Handles(_))));
                done.fetch_add(1, Ordering::Relaxed);
                drop(client);
            });
        }
        let of_pass = WORK_PER_PASS.div_ceil(MAX_SESSION_NODES * NODE_WORK);
        let mut before = 0;
        while before < SESSIONS {
            yield_now().await;
            let now = done.load(Ordering::Relaxed);
            assert!(now - before <= of_pass, "{now} after {before}");
            before = now;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn keep_alives_are_sent_after_silence_only() {
        let keep_alive = Poll::Ready(Ok(Some(Response::KeepAlive(v1::SessionKeepAlive {}))));
        let silence = Limits::default().stream_keep_alive;
        let (client, mut stream) = session();
        assert_eq!(poll(&mut stream), Poll::Pending);
        client.send(hello()).unwrap();
        assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Welcome(_))))));
        for _ in 0..2 {
            advance(silence / 2).await;
            assert_eq!(poll(&mut stream), Poll::Pending);
            client
                .send(request(Request::Heartbeat(v1::SessionHeartbeat::default())))
                .unwrap();
            assert!(matches!(poll(&mut stream), Poll::Ready(Ok(Some(Response::Ack(_))))));
            advance(silence - Duration::from_millis(10)).await;
            assert_eq!(poll(&mut stream), Poll::Pending);
            advance(Duration::from_millis(20)).await;
            assert_eq!(poll(&mut stream), keep_alive);
            assert_eq!(poll(&mut stream), Poll::Pending);
        }
    }
}
