//! From a request to its reply: checks that the request is gRPC, finds the method, and limits how long the request takes.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{Method as HttpMethod, Request, Response, StatusCode, header};
use nodetracker_proto::Raw;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use crate::grpc::drain_body::end_on_drain;
use crate::grpc::handler::{BoxedResponse, CallContext, Handler, UnaryHandler};
use crate::grpc::method::{MethodTable, split};
use crate::grpc::request::{ENCODING, RequestBody, receive, refuse_compression};
use crate::grpc::send_budget::SendBudget;
use crate::grpc::status::correct_response;
use crate::grpc::unary::{self, FirstFrame};
use crate::limits::{BYTES_PER_WORK, CALL_MEMORY, CALL_WORK, WAITING_CALL_WORK};
use crate::memory::ConnectionMemory;
use crate::turns::Turns;

/// Routes the requests of all connections. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    methods: Arc<MethodTable>,
    /// How long a request may take to arrive.
    deadline: Duration,
}

impl Router {
    /// Returns a router to `methods`; `deadline` is how long a request may take to arrive.
    pub(crate) fn new(methods: MethodTable, deadline: Duration) -> Self {
        Self {
            methods: Arc::new(methods),
            deadline,
        }
    }

    /// Returns a router to the same methods for one connection, whose reply streams end when `draining` is cancelled.
    pub(crate) fn for_connection(
        self,
        draining: CancellationToken,
        memory: ConnectionMemory,
        turns: Turns,
    ) -> ConnectionRouter {
        ConnectionRouter {
            methods: self.methods,
            deadline: self.deadline,
            draining,
            budget: SendBudget::new(memory),
            turns,
        }
    }
}

/// Routes the requests of one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionRouter {
    methods: Arc<MethodTable>,
    deadline: Duration,
    /// Cancelled when the connection drains.
    draining: CancellationToken,
    budget: SendBudget,
    turns: Turns,
}

/// A request that was looked at. It has no headers: a client could make the server hold megabytes of them.
#[derive(Debug)]
pub(crate) struct Accepted {
    target: Target,
    body: RecvStream,
}

#[derive(Debug)]
enum Target {
    /// The number of the method.
    Method(usize),
    /// The reply, whatever the body is.
    Refused(Box<Response<Body>>),
}

impl ConnectionRouter {
    /// Finds the method that a request names.
    pub(crate) fn accept(&self, request: Request<RecvStream>) -> Accepted {
        let target = self.target(&request);
        let body = request.into_body();
        Accepted { target, body }
    }

    fn target<B>(&self, request: &Request<B>) -> Target {
        if let Some(refusal) = refuse_non_grpc(request) {
            return Target::Refused(Box::new(refusal));
        }
        let Some(method) = self.methods.find(request.uri().path()) else {
            return refused(self.unknown(request.uri().path()));
        };
        match request.headers().get(ENCODING) {
            Some(encoding) if encoding != "identity" => refused(refuse_compression()),
            _ => Target::Method(method),
        }
    }

    /// Calls the method of a request. Adds the work that the call has done to `work`.
    pub(crate) fn call(&self, Accepted { target, mut body }: Accepted, work: &mut usize) -> Call {
        *work += CALL_WORK;
        let number = match target {
            Target::Method(number) => number,
            Target::Refused(refusal) => return Call::Done(Reply::Response(refusal)),
        };
        let method = &self.methods.rows()[number];
        let frame = match &method.handler {
            Handler::Immediate(handler) => match unary::first_frame(&mut body) {
                FirstFrame::Message(message) => {
                    let replied = handler(&message);
                    let replied = replied.and_then(|reply| Ok(self.budget.charge(reply)?));
                    let reply_len = replied.as_ref().map_or(0, Bytes::len);
                    *work += (message.len() + reply_len) / BYTES_PER_WORK;
                    return Call::Done(replied.into());
                }
                FirstFrame::Other(frame) => frame,
            },
            Handler::Unary(_) | Handler::Streaming(_) => None,
        };
        *work += WAITING_CALL_WORK;
        let charge = match self.memory().charge(CALL_MEMORY) {
            Ok(charge) => charge,
            Err(full) => return Call::Done(Err(Status::from(full)).into()),
        };
        let body = RequestBody::new(frame, body, charge, method.max_request);
        Call::Pending(match &method.handler {
            Handler::Immediate(handler) => {
                let handler = Arc::clone(handler);
                let call = self.clone().receive(body, method.max_request);
                let budget = self.budget.clone();
                Box::pin(async move {
                    let replied = async { Ok(budget.charge(handler(&call.await?)?)?) };
                    replied.await.into()
                })
            }
            Handler::Unary(handler) => Box::pin(self.clone().unary(Arc::clone(handler), body, method.max_request)),
            Handler::Streaming(handler) => {
                let request = Request::post(method.path).body(body).expect("a path of the table");
                let response = handler(request, method.max_request, self);
                Box::pin(self.clone().streaming(response))
            }
        })
    }

    pub(crate) fn budget(&self) -> &SendBudget {
        &self.budget
    }

    pub(crate) fn turns(&self) -> &Turns {
        &self.turns
    }

    fn memory(&self) -> &ConnectionMemory {
        self.budget.memory()
    }

    /// Receives the one message of a request.
    async fn receive(self, mut body: RequestBody, max_request: usize) -> Result<Bytes, Status> {
        if let Some(message) = body.whole_message() {
            return Ok(message);
        }
        self.in_time(receive(Raw, body, max_request)).await?
    }

    /// Calls a unary handler once its request has arrived, the worker has time, and the send budget covers the reply.
    async fn unary(self, handler: Arc<UnaryHandler>, body: RequestBody, max_request: usize) -> Reply {
        let replied = async {
            let message = self.clone().receive(body, max_request).await?;
            self.turns.take(CALL_WORK + message.len() / BYTES_PER_WORK).await;
            let context = CallContext {
                turns: self.turns.clone(),
                reply: self.budget.reserve().await,
            };
            handler(message, context).await
        };
        replied.await.into()
    }

    /// Waits for the response of a streaming handler.
    async fn streaming(self, response: BoxedResponse) -> Reply {
        match self.in_time(response).await {
            Ok(response) => end_on_drain(correct_response(response), &self.draining),
            Err(late) => late.into_http(),
        }
        .into()
    }

    /// Waits until a request has arrived, up to the deadline.
    async fn in_time<T>(&self, arrival: impl Future<Output = T>) -> Result<T, Status> {
        let deadline = self.deadline;
        let late = |_| Status::deadline_exceeded(format!("the request did not arrive within {deadline:?}"));
        timeout(deadline, arrival).await.map_err(late)
    }

    /// Returns the status for a path that is not in the table.
    fn unknown(&self, path: &str) -> Status {
        let (service, method) = split(path);
        Status::unimplemented(match self.methods.has_service(service) {
            false => format!("there is no service {:?}", shortened(service)),
            true => format!("service {service} has no method {:?}", shortened(method)),
        })
    }
}

fn refused(status: Status) -> Target {
    Target::Refused(Box::new(correct_response(status.into_http())))
}

/// A call in progress.
pub(crate) enum Call {
    Done(Reply),
    Pending(Pin<Box<dyn Future<Output = Reply> + Send>>),
}

/// The reply to a call.
pub(crate) enum Reply {
    /// One encoded message of a successful call.
    Message(Bytes),
    /// Any other response. Boxed: it is rare, and large to move.
    Response(Box<Response<Body>>),
}

impl From<Result<Bytes, Status>> for Reply {
    fn from(replied: Result<Bytes, Status>) -> Self {
        match replied {
            Ok(message) => Self::Message(message),
            Err(status) => correct_response(status.into_http()).into(),
        }
    }
}

impl From<Response<Body>> for Reply {
    fn from(response: Response<Body>) -> Self {
        Self::Response(Box::new(response))
    }
}

/// Returns the part of a name that an error message repeats.
fn shortened(name: &str) -> &str {
    const MOST: usize = 100;
    name.char_indices().nth(MOST).map_or(name, |(end, _)| &name[..end])
}

/// Returns the response to a request that is HTTP/2 but not gRPC: an HTTP status, as gRPC specifies.
fn refuse_non_grpc<B>(request: &Request<B>) -> Option<Response<Body>> {
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .map(|value| value.as_bytes());
    let format = content_type.and_then(|value| value.strip_prefix(b"application/grpc"));
    let status = if request.method() != HttpMethod::POST {
        StatusCode::METHOD_NOT_ALLOWED
    } else if !matches!(format, Some([] | [b'+' | b';', ..])) {
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    } else {
        return None;
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    Some(response)
}
