//! gRPC over h2 without tonic's client, which takes two to three times the CPU of these calls.

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{Builder, SendRequest};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{Code, Status};

use crate::grpc::frame::PREFIX;

/// Bytes of replies that may wait in the client.
const WINDOW: u32 = 8 << 20;

/// A method that is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    AddNode,
    GetProxies,
    AddNodes,
    BatchGetProxies,
}

const SESSION: &str = "/nodetracker.v1.SessionService/Session";

impl Method {
    const ALL: [Self; 4] = [Self::AddNode, Self::GetProxies, Self::AddNodes, Self::BatchGetProxies];

    fn path(self) -> &'static str {
        match self {
            Self::AddNode => "/api.NodeTrackerService/AddNode",
            Self::GetProxies => "/api.NodeTrackerService/GetProxies",
            Self::AddNodes => "/nodetracker.v1.RouteService/AddNodes",
            Self::BatchGetProxies => "/nodetracker.v1.RouteService/BatchGetProxies",
        }
    }
}

/// A call, a stream or a connection that failed.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) status: Status,
    /// Whether the connection is of no further use.
    pub(super) is_lost: bool,
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self { status, is_lost: false }
    }
}

impl From<h2::Error> for Failed {
    fn from(error: h2::Error) -> Self {
        Self {
            status: Status::unavailable(error.to_string()),
            is_lost: !error.is_reset(),
        }
    }
}

/// A connection to a tracker.
#[derive(Debug)]
pub(super) struct Connection {
    client: SendRequest<Bytes>,
    /// The heads of the requests, in the order of [`Method::ALL`].
    heads: [Request<()>; Method::ALL.len()],
    session: Request<()>,
}

impl Connection {
    /// Begins HTTP/2. `origin` precedes the paths of the methods.
    pub(super) async fn over<S>(stream: S, origin: &Uri) -> Result<Self, String>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = Builder::new();
        builder
            .initial_connection_window_size(WINDOW)
            .initial_window_size(WINDOW)
            // Many small replies may wait at a time.
            .data_frame_budget(WINDOW as usize);
        let no_http2 = |error| format!("no HTTP/2: {error}");
        let (client, connection) = builder.handshake(stream).await.map_err(no_http2)?;
        // The connection's errors reach the calls that they break.
        tokio::spawn(connection);
        Ok(Self {
            client,
            heads: Method::ALL.map(|method| head(origin, method.path())),
            session: head(origin, SESSION),
        })
    }

    /// Makes a call, and returns the message of the reply.
    pub(super) async fn call(&self, method: Method, message: Bytes) -> Result<Bytes, Failed> {
        let mut client = self.client.clone().ready().await?;
        let (response, mut stream) = client.send_request(self.heads[method as usize].clone(), false)?;
        stream.send_data(message, true)?;
        let mut messages = Messages::of(response.await?)?;
        let message = messages.next().await?.unwrap_or_default();
        match messages.next().await? {
            None => Ok(message),
            Some(_) => Err(Status::internal("the reply has two messages").into()),
        }
    }

    /// Begins a session with its first message, which must come before the tracker replies.
    pub(super) async fn session(&self, first: Bytes) -> Result<(SendStream<Bytes>, Messages), Failed> {
        let mut client = self.client.clone().ready().await?;
        let (response, mut stream) = client.send_request(self.session.clone(), false)?;
        stream.send_data(first, false)?;
        Ok((stream, Messages::of(response.await?)?))
    }
}

fn head(origin: &Uri, path: &'static str) -> Request<()> {
    let mut parts = origin.clone().into_parts();
    parts.path_and_query = Some(http::uri::PathAndQuery::from_static(path));
    let mut head = Request::new(());
    *head.method_mut() = http::Method::POST;
    *head.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    let headers = head.headers_mut();
    headers.insert("content-type", http::HeaderValue::from_static("application/grpc"));
    headers.insert("te", http::HeaderValue::from_static("trailers"));
    head
}

/// The messages of a reply.
#[derive(Debug)]
pub(super) struct Messages {
    body: RecvStream,
    received: BytesMut,
}

impl Messages {
    fn of(response: Response<RecvStream>) -> Result<Self, Failed> {
        if response.status() != StatusCode::OK {
            return Err(Status::unknown(format!("HTTP status {}", response.status())).into());
        }
        // A reply without messages has its status in the head.
        check(response.headers())?;
        Ok(Self {
            body: response.into_body(),
            received: BytesMut::new(),
        })
    }

    /// Returns the next message, or `None` at the end, if the status is OK. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failed> {
        loop {
            if let Some((&[_, len @ ..], rest)) = self.received.split_first_chunk::<PREFIX>() {
                let len = u32::from_be_bytes(len) as usize;
                if rest.len() >= len {
                    self.received.advance(PREFIX);
                    return Ok(Some(self.received.split_to(len).freeze()));
                }
            }
            let Some(data) = self.body.data().await.transpose()? else {
                check(&self.body.trailers().await?.unwrap_or_default())?;
                return Ok(None);
            };
            self.body.flow_control().release_capacity(data.len())?;
            self.received.unsplit(data.into());
        }
    }
}

/// Fails if the headers or trailers have a status that is not OK.
fn check(headers: &HeaderMap) -> Result<(), Failed> {
    match Status::from_header_map(headers) {
        Some(status) if status.code() != Code::Ok => Err(status.into()),
        _ => Ok(()),
    }
}
