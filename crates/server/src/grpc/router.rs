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
use crate::grpc::handler::{BoxedResponse, Handler, ImmediateHandler};
use crate::grpc::method::{MethodTable, ReplyKind, split};
use crate::grpc::request::{RequestBody, receive};
use crate::grpc::send_budget::SendBudget;
use crate::grpc::status::correct_response;
use crate::grpc::unary::{self, FastPath};

/// Routes the requests of one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    methods: Arc<MethodTable>,
    /// How long a request may take to arrive.
    deadline: Duration,
    /// Cancelled when the connection drains.
    draining: CancellationToken,
    budget: SendBudget,
}

impl Router {
    /// Returns a router to `methods`; `deadline` is how long a request may take to arrive.
    pub(crate) fn new(methods: MethodTable, deadline: Duration) -> Self {
        Self {
            methods: Arc::new(methods),
            deadline,
            draining: CancellationToken::new(),
            budget: SendBudget::default(),
        }
    }

    /// Returns a router to the same methods for one connection, whose reply streams end when `draining` is cancelled.
    pub(crate) fn for_connection(self, draining: CancellationToken) -> Self {
        Self {
            draining,
            budget: SendBudget::default(),
            ..self
        }
    }

    /// Calls the method that a request names. If the call takes the fast path, adds the bytes of the request to `size`.
    pub(crate) fn call(&self, request: Request<RecvStream>, size: &mut usize) -> Call {
        if let Some(refusal) = refuse_non_grpc(&request) {
            return Call::Done(refusal.into());
        }
        let Some(method) = self.methods.find(request.uri().path()) else {
            return Call::Done(self.unknown(request.uri().path()).into_http().into());
        };
        let reply = method.reply;
        match &method.handler {
            Handler::Immediate(handler) => match unary::try_fast_path(&**handler, reply, request, &self.budget, size) {
                FastPath::Replied(replied) => Call::Done(replied.into()),
                FastPath::NotTaken(request) => {
                    let call = self
                        .clone()
                        .immediate(Arc::clone(handler), method.max_request, reply, *request);
                    Call::Pending(Box::pin(call))
                }
            },
            Handler::Deferred(handler) => {
                let response = handler(request.map(RequestBody::new), method.max_request, &self.budget);
                Call::Pending(Box::pin(self.clone().deferred(response, reply)))
            }
        }
    }

    /// Calls an immediate handler on the slow path.
    async fn immediate(
        self,
        handler: Arc<ImmediateHandler>,
        max_request: usize,
        reply: ReplyKind,
        request: Request<RequestBody>,
    ) -> Reply {
        let replied = async {
            let message = self.in_time(receive(Raw, request, max_request)).await??;
            unary::call_when_affordable(&*handler, reply, &message, &self.budget).await
        };
        replied.await.into()
    }

    /// Waits for the response of a deferred handler.
    async fn deferred(self, response: BoxedResponse, reply: ReplyKind) -> Reply {
        let reservation = match reply {
            ReplyKind::LargeUnary => Some(self.budget.reserve().await),
            ReplyKind::Unary | ReplyKind::Streaming => None,
        };
        match self.in_time(response).await {
            Ok(response) => {
                let response = end_on_drain(correct_response(response), &self.draining);
                match reservation {
                    Some(reservation) => reservation.charge_body(response),
                    None => response,
                }
            }
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
        Status::unimplemented(match self.methods.first_of(service).map(|known| &known.handler) {
            None => format!("there is no service {:?}", shortened(service)),
            Some(Handler::Immediate(_)) => format!("service {service} has no method {:?}", shortened(method)),
            // The message that services with deferred methods have always sent.
            Some(Handler::Deferred(_)) => "the service has no such method".to_owned(),
        })
    }
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
