//! Which service a request is for, and the deadline that every call has.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use nodetracker_proto::Raw;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::grpc::drain_body::end_on_drain;
use crate::grpc::method::{BoxedCall, Kind, Services};
use crate::grpc::send_budget::SendBudget;
use crate::grpc::unary::{self, Arriving, Unary, Way};

/// Every service of the port. Cheap to clone: each connection has its own.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    services: Arc<Services>,
    deadline: Duration,
    /// Cancelled when the connection drains.
    draining: CancellationToken,
    /// For the answers that the connection's client has yet to read.
    budget: SendBudget,
}

impl Router {
    /// Returns a router to the services; `deadline` is how long a request may take to arrive.
    pub(crate) fn new(services: Services, deadline: Duration) -> Self {
        Self {
            services: Arc::new(services),
            deadline,
            draining: CancellationToken::new(),
            budget: SendBudget::default(),
        }
    }

    /// The same services for one connection, whose reply streams end when `draining` is cancelled.
    pub(crate) fn for_connection(self, draining: CancellationToken) -> Self {
        Self {
            draining,
            budget: SendBudget::default(),
            ..self
        }
    }

    /// Calls what a request is for. Adds the bytes of its message to `size` if it is answered the short way.
    pub(crate) fn call(&self, request: Request<RecvStream>, size: &mut usize) -> Called {
        if let Some(refusal) = not_grpc(&request) {
            return Called::Answered(refusal.into());
        }
        let path = request.uri().path();
        let (name, method) = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .unwrap_or((path, ""));
        let Some(service) = self.services.get(name) else {
            return unimplemented(format!("there is no service {:?}", shown(name)));
        };
        let unary = match &service.kind {
            Kind::Unary(unary) => unary,
            Kind::Generated { call, large } => {
                let call = call(request.map(Arriving::new), &self.budget);
                return Called::Waiting(Box::pin(self.clone().generated(call, *large)));
            }
        };
        let Some(method) = unary.methods().iter().find(|known| **known == method) else {
            return unimplemented(format!("service {name} has no method {:?}", shown(method)));
        };
        match unary::answer(&**unary, method, request, &self.budget, size) {
            Way::Short(answer) => Called::Answered(answer.into()),
            Way::Long(request) => Called::Waiting(Box::pin(self.clone().unary(Arc::clone(unary), method, *request))),
        }
    }

    /// Answers a unary call the long way.
    async fn unary(self, unary: Arc<dyn Unary>, method: &'static str, request: Request<Arriving>) -> Answer {
        let answer = async {
            let arriving = unary::message(Raw, request, unary.max_message_size());
            let message = self.in_time(arriving).await??;
            unary::call_later(&*unary, method, &message, &self.budget).await
        };
        answer.await.into()
    }

    /// Answers a call of a generated service.
    async fn generated(self, call: BoxedCall, large: bool) -> Answer {
        let reservation = match large {
            true => Some(self.budget.reserve().await),
            false => None,
        };
        match self.in_time(call).await {
            Ok(Ok(response)) => {
                let response = end_on_drain(with_grpc_codes(response), &self.draining);
                match reservation {
                    Some(reservation) => reservation.charge_body(response),
                    None => response,
                }
            }
            Err(late) => late.into_http(),
        }
        .into()
    }

    /// Waits for what needs nothing but the request.
    async fn in_time<T>(&self, arriving: impl Future<Output = T>) -> Result<T, Status> {
        let deadline = self.deadline;
        let late = |_| Status::deadline_exceeded(format!("the request did not arrive within {deadline:?}"));
        timeout(deadline, arriving).await.map_err(late)
    }
}

/// What came of a request.
pub(crate) enum Called {
    Answered(Answer),
    /// The answer is on its way.
    Waiting(Pin<Box<dyn Future<Output = Answer> + Send>>),
}

/// How a call is answered.
pub(crate) enum Answer {
    /// It went well, and this is its one message, encoded.
    Message(Bytes),
    /// In any other way. Boxed, since it is rare, and large to move about.
    Response(Box<Response<Body>>),
}

impl From<Result<Bytes, Status>> for Answer {
    fn from(answer: Result<Bytes, Status>) -> Self {
        match answer {
            Ok(message) => Self::Message(message),
            Err(status) => with_grpc_codes(status.into_http()).into(),
        }
    }
}

impl From<Response<Body>> for Answer {
    fn from(response: Response<Body>) -> Self {
        Self::Response(Box::new(response))
    }
}

fn unimplemented(message: String) -> Called {
    Called::Answered(Status::unimplemented(message).into_http().into())
}

/// As much of a name as an error message repeats.
fn shown(name: &str) -> &str {
    const MOST: usize = 100;
    name.char_indices().nth(MOST).map_or(name, |(end, _)| &name[..end])
}

/// Answers what is HTTP/2 and not gRPC the way the protocol asks for, with an HTTP status.
fn not_grpc<B>(request: &Request<B>) -> Option<Response<Body>> {
    let content_type = request
        .headers()
        .get(header::CONTENT_TYPE)
        .map(|value| value.as_bytes());
    let format = content_type.and_then(|value| value.strip_prefix(b"application/grpc"));
    let status = if request.method() != Method::POST {
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

/// gRPC's own list of codes says RESOURCE_EXHAUSTED for a message over the limit, and other servers do; tonic says
/// OUT_OF_RANGE, which nothing else here does. And for a method that a service does not have, tonic gives no message.
fn with_grpc_codes(mut response: Response<Body>) -> Response<Body> {
    let headers = response.headers_mut();
    let Some(code) = headers.get_mut(Status::GRPC_STATUS) else {
        return response;
    };
    match Code::from_bytes(code.as_bytes()) {
        Code::OutOfRange => *code = (Code::ResourceExhausted as i32).into(),
        Code::Unimplemented => {
            let message = HeaderValue::from_static("the service has no such method");
            headers.entry(Status::GRPC_MESSAGE).or_insert(message);
        }
        _ => {}
    }
    response
}
