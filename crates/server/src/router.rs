//! Which service a request is for, and the deadline that every call has.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use nodetracker::RouteTable;
use nodetracker_proto::api::node_tracker_service_server::{NodeTrackerServiceServer, SERVICE_NAME};
use tokio::time::Sleep;
use tonic::body::Body;
use tonic::{Code, Status};
use tower_service::Service;

use crate::service::Tracker;

/// Every service of the port. Cheap to clone: each connection has its own.
#[derive(Debug, Clone)]
pub(crate) struct Router {
    api: NodeTrackerServiceServer<Tracker>,
    deadline: Duration,
}

impl Router {
    /// Returns the services that answer from a table; `deadline` is how long a request may take to arrive.
    pub(crate) fn new(table: Arc<RouteTable>, deadline: Duration) -> Self {
        Self {
            api: Tracker::service(table),
            deadline,
        }
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
            SERVICE_NAME if Tracker::METHODS.contains(&method) => {
                Call::running(self.api.clone().call(request), self.deadline)
            }
            SERVICE_NAME => Call::unimplemented(format!("service {SERVICE_NAME} has no method {:?}", shown(method))),
            _ => Call::unimplemented(format!("there is no service {:?}", shown(service))),
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
        call: Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>,
        deadline: Duration,
        /// Set up when the call first has to wait. Nearly none does: its request came in one piece.
        timer: Option<Pin<Box<Sleep>>>,
    },
}

impl Call {
    fn running(
        call: Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>,
        deadline: Duration,
    ) -> Self {
        Self(State::Running {
            call,
            deadline,
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
            State::Running { call, deadline, timer } => match call.as_mut().poll(cx) {
                Poll::Ready(Ok(response)) => with_grpc_codes(response),
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
/// OUT_OF_RANGE, which nothing else here does.
fn with_grpc_codes(mut response: Response<Body>) -> Response<Body> {
    if let Some(code) = response.headers_mut().get_mut(Status::GRPC_STATUS)
        && Code::from_bytes(code.as_bytes()) == Code::OutOfRange
    {
        *code = (Code::ResourceExhausted as i32).into();
    }
    response
}
