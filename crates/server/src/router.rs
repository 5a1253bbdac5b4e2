//! Which service a request is for, and the deadline that every call has.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use nodetracker::RouteTable;
use nodetracker_proto::api::node_tracker_service_server::{NodeTrackerServiceServer, SERVICE_NAME};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service;

use crate::leaving::ends_with;
use crate::service::Tracker;
use crate::services::{BoxedCall, Services};

/// Every service of the port. Cheap to clone: each connection has its own.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    api: NodeTrackerServiceServer<Tracker>,
    services: Arc<Services>,
    deadline: Duration,
    /// Cancelled once the connection has to end.
    leaving: CancellationToken,
}

impl Router {
    /// Returns the frozen service, answering from a table, and others beside it; `deadline` is how long a request may take
    /// to arrive.
    pub(crate) fn new(table: Arc<RouteTable>, services: Services, deadline: Duration) -> Self {
        Self {
            api: Tracker::service(table),
            services: Arc::new(services),
            deadline,
            leaving: CancellationToken::new(),
        }
    }

    /// The same services for one connection, whose streams of answers end when `leaving` is cancelled.
    pub(crate) fn for_connection(self, leaving: CancellationToken) -> Self {
        Self { leaving, ..self }
    }
}

impl hyper::service::Service<Request<Incoming>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Call;

    fn call(&self, request: Request<Incoming>) -> Call {
        if let Some(refusal) = not_grpc(&request) {
            return Call::done(refusal);
        }
        let path = request.uri().path();
        let (service, method) = path
            .strip_prefix('/')
            .and_then(|path| path.split_once('/'))
            .unwrap_or((path, ""));
        match service {
            // The frozen service first: nearly every call is one of its.
            SERVICE_NAME if Tracker::METHODS.contains(&method) => {
                Call::running(self.api.clone().call(request), self.deadline, None)
            }
            SERVICE_NAME => Call::unimplemented(format!("service {SERVICE_NAME} has no method {:?}", shown(method))),
            _ => match self.services.get(service) {
                Some(service) => Call::running(service(request), self.deadline, Some(self.leaving.clone())),
                None => Call::unimplemented(format!("there is no service {:?}", shown(service))),
            },
        }
    }
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
pub(crate) struct Call(State);

enum State {
    Done(Option<Response<Body>>),
    Running {
        call: BoxedCall,
        deadline: Duration,
        /// What may end the answer, where it can be a stream.
        leaving: Option<CancellationToken>,
        /// Set up when the call first has to wait. Nearly none does: its request came in one piece.
        timer: Option<Pin<Box<Sleep>>>,
    },
}

impl Call {
    fn running(call: BoxedCall, deadline: Duration, leaving: Option<CancellationToken>) -> Self {
        Self(State::Running {
            call,
            deadline,
            leaving,
            timer: None,
        })
    }

    fn done(response: Response<Body>) -> Self {
        Self(State::Done(Some(response)))
    }

    fn unimplemented(message: String) -> Self {
        Self::done(Status::unimplemented(message).into_http())
    }
}

impl Future for Call {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = match &mut self.0 {
            State::Done(response) => response.take().expect("a future is not polled after it was ready"),
            State::Running {
                call,
                deadline,
                leaving,
                timer,
            } => match call.as_mut().poll(cx) {
                Poll::Ready(Ok(response)) => match leaving {
                    None => with_grpc_codes(response),
                    Some(leaving) => ends_with(with_grpc_codes(response), leaving),
                },
                Poll::Pending => {
                    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(*deadline)));
                    ready!(timer.as_mut().poll(cx));
                    Status::deadline_exceeded(format!("the request did not arrive within {deadline:?}")).into_http()
                }
            },
        };
        Poll::Ready(Ok(response))
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
