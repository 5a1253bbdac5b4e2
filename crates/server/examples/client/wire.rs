//! A client on the wire: h2 without tonic, so that an attacker can stop anywhere in a call.

use std::net::IpAddr;
use std::sync::OnceLock;

use bytes::Bytes;
use h2::client::SendRequest;
use nodetracker_proto::v1;
use prost::Message;
use tokio::net::{TcpSocket, TcpStream};

use crate::client::Failure;

pub(crate) const ADD: &str = "/api.NodeTrackerService/AddNode";
pub(crate) const GET: &str = "/api.NodeTrackerService/GetProxies";
pub(crate) const REMOVE: &str = "/api.NodeTrackerService/RemoveNode";
pub(crate) const ADD_NODES: &str = "/nodetracker.v1.RouteService/AddNodes";
pub(crate) const BATCH: &str = "/nodetracker.v1.RouteService/BatchGetProxies";
pub(crate) const LIST: &str = "/nodetracker.v1.AdminService/ListNodes";
pub(crate) const STATS: &str = "/nodetracker.v1.AdminService/Stats";
pub(crate) const REMOVE_PROXY: &str = "/nodetracker.v1.AdminService/RemoveProxy";
pub(crate) const WATCH: &str = "/nodetracker.v1.WatchService/Watch";
pub(crate) const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";
pub(crate) const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
pub(crate) const SESSION: &str = "/nodetracker.v1.SessionService/Session";

pub(crate) type Client = SendRequest<Bytes>;

/// Bytes of replies that may wait in the client.
const WINDOW: u32 = 8 << 20;

/// The address from which this process connects.
static SOURCE: OnceLock<IpAddr> = OnceLock::new();

/// Connects from this address from now on.
pub(crate) fn connect_from(source: IpAddr) {
    _ = SOURCE.set(source);
}

pub(crate) fn source() -> Option<IpAddr> {
    SOURCE.get().copied()
}

pub(crate) async fn open(addr: &str) -> Result<TcpStream, Failure> {
    let socket = TcpSocket::new_v4()?;
    if let Some(source) = source() {
        socket.bind((source, 0).into())?;
    }
    let stream = socket.connect(addr.parse()?).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) async fn connect(addr: &str) -> Result<Client, Failure> {
    connect_with(addr, WINDOW).await
}

/// Connects a client that takes this many bytes of each reply before it reads.
pub(crate) async fn connect_with(addr: &str, stream_window: u32) -> Result<Client, Failure> {
    let stream = open(addr).await?;
    let mut builder = h2::client::Builder::new();
    builder
        .initial_connection_window_size(WINDOW)
        .initial_window_size(stream_window)
        // Many small replies may wait at a time.
        .data_frame_budget(WINDOW as usize);
    let (client, connection) = builder.handshake(stream).await?;
    tokio::spawn(connection);
    Ok(client)
}

pub(crate) fn request(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://tracker{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

pub(crate) fn framed(message: &impl Message) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend((message.encoded_len() as u32).to_be_bytes());
    message.encode(&mut bytes).expect("a vector grows");
    bytes.into()
}

fn is_ok(headers: &http::HeaderMap) -> bool {
    headers.get("grpc-status").is_none_or(|status| status == "0")
}

/// Makes a call, and returns its reply with the prefix. A call that was refused is an error.
pub(crate) async fn call(client: &mut Client, path: &str, message: &impl Message) -> Result<Bytes, Failure> {
    *client = client.clone().ready().await?;
    let (response, mut stream) = client.send_request(request(path).body(())?, false)?;
    stream.send_data(framed(message), true)?;
    let response = response.await?;
    if !is_ok(response.headers()) {
        return Err("refused".into());
    }
    let mut body = response.into_body();
    let mut reply = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        reply.extend(data);
    }
    match body.trailers().await? {
        Some(trailers) if !is_ok(&trailers) => Err("refused".into()),
        _ => Ok(reply.into()),
    }
}

/// Makes a call, and decodes its reply.
pub(crate) async fn ask<M: Message + Default>(
    client: &mut Client,
    path: &str,
    message: &impl Message,
) -> Result<M, Failure> {
    let reply = call(client, path, message).await?;
    Ok(M::decode(reply.get(5..).ok_or("an empty reply")?)?)
}

/// The messages of a stream of replies.
pub(crate) struct Messages {
    body: h2::RecvStream,
    received: Vec<u8>,
}

impl Messages {
    /// Begins a call with one request and many replies.
    pub(crate) async fn begin(client: &mut Client, path: &str, message: &impl Message) -> Result<Self, Failure> {
        *client = client.clone().ready().await?;
        let (response, mut stream) = client.send_request(request(path).body(())?, false)?;
        stream.send_data(framed(message), true)?;
        Self::of(response.await?)
    }

    /// Reads the replies of a call that has begun.
    pub(crate) fn of(response: http::Response<h2::RecvStream>) -> Result<Self, Failure> {
        if !is_ok(response.headers()) {
            return Err("refused".into());
        }
        Ok(Self {
            body: response.into_body(),
            received: Vec::new(),
        })
    }

    /// Returns the next message without its prefix, or `None` at the end of the stream.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        loop {
            if let Some((&[_, len @ ..], _)) = self.received.split_first_chunk::<5>() {
                let end = 5 + u32::from_be_bytes(len) as usize;
                if self.received.len() >= end {
                    let rest = self.received.split_off(end);
                    let message = std::mem::replace(&mut self.received, rest);
                    return Ok(Some(message[5..].to_vec()));
                }
            }
            let Some(data) = self.body.data().await else {
                return Ok(None);
            };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            self.received.extend(data);
        }
    }
}

/// Returns how many routes the server has, until they are removed or swept.
pub(crate) async fn routes(client: &mut Client) -> Result<u64, Failure> {
    let stats: v1::StatsResponse = ask(client, STATS, &v1::StatsRequest {}).await?;
    Ok(stats.route_count)
}
