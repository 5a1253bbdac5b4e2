//! Which service a request is for, and the deadline that every call has.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};

use crate::leaving::ends_with;
use crate::services::{BoxedCall, Kind, Services};
use crate::unary::{self, Arriving, Way};

/// Every service of the port. Cheap to clone: each connection has its own.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    services: Arc<Services>,
    deadline: Duration,
    /// Cancelled once the connection has to end.
    leaving: CancellationToken,
}

impl Router {
    /// Returns a router to the services; `deadline` is how long a request may take to arrive.
    pub(crate) fn new(services: Services, deadline: Duration) -> Self {
        Self {
            services: Arc::new(services),
            deadline,
            leaving: CancellationToken::new(),
        }
    }

    /// The same services for one connection, whose streams of answers end when `leaving` is cancelled.
    pub(crate) fn for_connection(self, leaving: CancellationToken) -> Self {
        Self { leaving, ..self }
    }

    /// Calls what a request is for.
    pub(crate) fn call(&self, request: Request<RecvStream>) -> Called {
        if let Some(refusal) = not_grpc(&request) {
            return Called::Response(refusal);
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
            Kind::Generated(call) => return self.wait_for(call(request.map(Arriving::new))),
        };
        let Some(method) = unary.methods().iter().find(|known| **known == method) else {
            return unimplemented(format!("service {name} has no method {:?}", shown(method)));
        };
        match unary::answer(&**unary, method, request) {
            Way::Short(Ok(message)) => Called::Message(message),
            Way::Short(Err(status)) => Called::Response(status.into_http()),
            Way::Long(request) => self.wait_for(unary::collect(Arc::clone(unary), method, *request)),
        }
    }

    fn wait_for(&self, call: BoxedCall) -> Called {
        Called::Waiting(Call {
            call,
            deadline: self.deadline,
            leaving: self.leaving.clone(),
            timer: None,
        })
    }
}

/// What came of a request.
pub(crate) enum Called {
    /// The call went well, and this is its answer, encoded.
    Message(Bytes),
    /// This is the answer.
    Response(Response<Body>),
    /// The answer is on its way.
    Waiting(Call),
}

fn unimplemented(message: String) -> Called {
    Called::Response(Status::unimplemented(message).into_http())
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

/// A call on its way to a response.
pub(crate) struct Call {
    call: BoxedCall,
    deadline: Duration,
    /// What may end the answer, where it is a stream.
    leaving: CancellationToken,
    /// Set up when the call first has to wait. Nearly none does: its request came in one piece.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for Call {
    type Output = Response<Body>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Response<Body>> {
        let deadline = self.deadline;
        Poll::Ready(match self.call.as_mut().poll(cx) {
            Poll::Ready(Ok(response)) => ends_with(with_grpc_codes(response), &self.leaving),
            Poll::Pending => {
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(deadline)));
                ready!(timer.as_mut().poll(cx));
                Status::deadline_exceeded(format!("the request did not arrive within {deadline:?}")).into_http()
            }
        })
    }
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
