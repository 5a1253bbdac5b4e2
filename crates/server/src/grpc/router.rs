//! From a request to its reply: checks the head, finds the method, and limits how long the request and the handler take.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{Request, Response};
use nodetracker_proto::Raw;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::body::Body;

use crate::grpc::drain_body::end_on_drain;
use crate::grpc::handler::Handler;
use crate::grpc::head;
use crate::grpc::method::{MethodTable, ReplyKind, split};
use crate::grpc::request::{RequestBody, receive};
use crate::grpc::send_budget::SendBudget;
use crate::grpc::status::correct_response;
use crate::grpc::unary::{self, FastPath};

/// Routes the requests of one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    methods: Arc<MethodTable>,
    /// How long a request may take to arrive, and a handler to complete.
    deadline: Duration,
    /// Cancelled when the connection drains.
    draining: CancellationToken,
    budget: SendBudget,
}

impl Router {
    /// Returns a router to `methods`; `deadline` is how long a request may take to arrive, and then its handler to complete.
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
        let timeout = match head::check(&request) {
            Ok(timeout) => timeout,
            Err(refusal) => return Call::Done(Reply::Response(refusal)),
        };
        let Some(method) = self.methods.find(request.uri().path()) else {
            return Call::Done(self.unknown(request.uri().path()).into_http().into());
        };
        let (reply, max_request) = (method.reply, method.max_request);
        let pending: PendingReply = match &method.handler {
            Handler::Immediate(handler) => match unary::try_fast_path(&**handler, reply, request, &self.budget, size) {
                FastPath::Replied(replied) => return Call::Done(replied.into()),
                FastPath::NotTaken(request) => {
                    let (router, handler) = (self.clone(), Arc::clone(handler));
                    Box::pin(async move {
                        let handle = |message: Bytes| ready(handler(&message));
                        router.unary(reply, max_request, *request, handle).await.into()
                    })
                }
            },
            Handler::Deferred(handler) => {
                let (router, handler) = (self.clone(), Arc::clone(handler));
                let request = request.map(RequestBody::new);
                Box::pin(async move {
                    let handle = |message| async { router.in_time("the call was not done", handler(message)).await? };
                    router.unary(reply, max_request, request, handle).await.into()
                })
            }
            Handler::Streaming(handler) => {
                let (router, handler) = (self.clone(), Arc::clone(handler));
                let request = request.map(RequestBody::new);
                Box::pin(async move {
                    let response = handler(request, max_request, &router.budget);
                    let response = router
                        .in_time(NOT_ARRIVED, response)
                        .await
                        .unwrap_or_else(Status::into_http);
                    end_on_drain(correct_response(response), &router.draining).into()
                })
            }
        };
        Call::Pending {
            reply: pending,
            // A time that `Instant` cannot represent never comes.
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
        }
    }

    /// Receives the message of a unary call, and handles it as soon as the budget covers the reply.
    async fn unary<F: Future<Output = Result<Bytes, Status>>>(
        &self,
        reply: ReplyKind,
        max_request: usize,
        request: Request<RequestBody>,
        handle: impl FnOnce(Bytes) -> F,
    ) -> Result<Bytes, Status> {
        let message = self.in_time(NOT_ARRIVED, receive(Raw, request, max_request)).await??;
        if reply != ReplyKind::LargeUnary {
            return handle(message).await;
        }
        let mut reservation = self.budget.reserve().await;
        handle(message).await.map(|reply| reservation.charge(reply))
    }

    /// Waits for a part of a call, up to the server's own deadline. `late` says what did not happen.
    async fn in_time<T>(&self, late: &str, part: impl Future<Output = T>) -> Result<T, Status> {
        let deadline = self.deadline;
        let late = |_| Status::deadline_exceeded(format!("{late} within {deadline:?}"));
        timeout(deadline, part).await.map_err(late)
    }

    /// Returns the status for a path that is not in the table.
    fn unknown(&self, path: &str) -> Status {
        let (service, method) = split(path);
        Status::unimplemented(match self.methods.first_of(service).map(|known| &known.handler) {
            None => format!("there is no service {:?}", shortened(service)),
            Some(Handler::Immediate(_)) => format!("service {service} has no method {:?}", shortened(method)),
            // The message that services with deferred methods have always sent.
            Some(Handler::Deferred(_) | Handler::Streaming(_)) => "the service has no such method".to_owned(),
        })
    }
}

const NOT_ARRIVED: &str = "the request did not arrive";

/// A call in progress.
pub(crate) enum Call {
    Done(Reply),
    Pending {
        reply: PendingReply,
        /// The client's deadline.
        deadline: Option<Instant>,
    },
}

/// A reply that has to wait, for its request or for its handler.
pub(crate) type PendingReply = Pin<Box<dyn Future<Output = Reply> + Send>>;

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
