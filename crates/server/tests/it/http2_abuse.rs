//! Abuse of HTTP/2, with frames that no client library would send. Each attack costs the attacker its connection or its
//! call, and other clients nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use nodetracker::{NodeId, Proxy, RouteTable};
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_server::{Drained, Limits, limits};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::support::{ADD, Raw, Running, SOON, ended, framed, refused};

const BATCH: &str = "/nodetracker.v1.RouteService/BatchGetProxies";
const LIST: &str = "/nodetracker.v1.AdminService/ListProxies";
const SESSION: &str = "/nodetracker.v1.SessionService/Session";
const WATCH: &str = "/nodetracker.v1.WatchService/Watch";

/// Types of frames.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// Settings.
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Errors.
const FLOW_CONTROL_ERROR: u32 = 3;
const FRAME_SIZE_ERROR: u32 = 6;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame that the server has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Frame {
    /// The error of a RST_STREAM or GOAWAY.
    fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A client that sends frames as they are, and does nothing by itself.
struct Frames(TcpStream);

impl Frames {
    /// Connects, with these settings.
    async fn connect(addr: SocketAddr, settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (id, value) in settings {
            payload.extend(id.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut frames = Self(stream);
        frames.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        frames.send(&frame(SETTINGS, 0, 0, &payload)).await;
        frames
    }

    /// Sends bytes. If the server has closed the connection, the next read reports the end.
    async fn send(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes).await;
    }

    /// The next frame; `None` once the server has hung up.
    async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let [l1, l2, l3, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, l1, l2, l3]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        Some(Frame {
            kind,
            flags,
            stream: u32::from_be_bytes(stream),
            payload,
        })
    }

    /// The next frame of a type.
    async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Waits until the server has read all bytes so far. Returns the frames that the server sent before.
    async fn settle(&mut self) -> Vec<Frame> {
        self.send(&frame(PING, 0, 0, b"settling")).await;
        let mut before: Vec<Frame> = Vec::new();
        loop {
            let Some(frame) = self.next().await else {
                let ends = before.iter().filter(|frame| frame.kind == GOAWAY).map(Frame::error);
                panic!(
                    "the server hung up after {} frames: {:?}",
                    before.len(),
                    ends.collect::<Vec<_>>()
                );
            };
            if (frame.kind, frame.flags) == (PING, ACK) {
                return before;
            }
            before.push(frame);
        }
    }

    /// Waits until the server closes the connection. Returns the server's error, or `None` if the error was lost: bytes
    /// that arrive after the close reset the connection.
    async fn hung_up(&mut self) -> Option<u32> {
        let goaway = self.next_of(GOAWAY).await?;
        while self.next().await.is_some() {}
        Some(goaway.error())
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The header block of a gRPC request.
fn request(path: &str) -> Vec<u8> {
    // From HPACK's static table: POST, http; the names of :authority, :path and content-type.
    let mut block = vec![0x83, 0x86];
    for (name, value) in [
        (&[0x01][..], "tracker"),
        (&[0x04], path),
        (&[0x0f, 0x10], "application/grpc"),
        (b"\x00\x02te", "trailers"),
    ] {
        block.extend(name);
        block.push(u8::try_from(value.len()).unwrap());
        block.extend(value.as_bytes());
    }
    block
}

/// A request's head.
fn head(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request(path))
}

/// A whole request.
fn call(stream: u32, path: &str, message: &[u8]) -> Vec<u8> {
    let mut frames = head(stream, path);
    frames.extend(frame(DATA, END_STREAM, stream, &framed(message)));
    frames
}

/// The numbers of this many streams.
fn streams(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|at| 2 * at + 1)
}

/// The streams that frames of a type came on.
fn of(frames: &[Frame], kind: u8) -> BTreeSet<u32> {
    let of_kind = frames.iter().filter(|frame| frame.kind == kind);
    of_kind.map(|frame| frame.stream).collect()
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_one_by_one() {
    const BEYOND: u32 = 20;
    let server = Running::start().await;
    let mut client = Frames::connect(server.addr, &[]).await;
    for stream in streams(limits::MAX_CONCURRENT_STREAMS + BEYOND) {
        client.send(&head(stream, ADD)).await;
    }
    let refused = client.settle().await;
    let beyond: BTreeSet<_> = streams(limits::MAX_CONCURRENT_STREAMS + BEYOND)
        .skip(limits::MAX_CONCURRENT_STREAMS as usize)
        .collect();
    assert_eq!(of(&refused, RST_STREAM), beyond);
    let resets = refused.iter().filter(|frame| frame.kind == RST_STREAM);
    assert!(resets.clone().all(|reset| reset.error() == REFUSED_STREAM));
    // The others are served, and make room for new ones.
    client.send(&frame(DATA, END_STREAM, 1, &framed(&[]))).await;
    assert_eq!(client.next_of(HEADERS).await.unwrap().stream, 1);
    let next = 2 * (limits::MAX_CONCURRENT_STREAMS + BEYOND) + 1;
    client.send(&call(next, ADD, &[])).await;
    assert_eq!(client.next_of(HEADERS).await.unwrap().stream, next);
    server.assert_serves().await;
}

#[tokio::test]
async fn refusals_come_to_an_end() {
    let server = Running::start().await;
    let mut client = Frames::connect(server.addr, &[]).await;
    let refusals = u32::try_from(limits::MAX_LOCAL_ERROR_RESETS).unwrap();
    for stream in streams(limits::MAX_CONCURRENT_STREAMS + refusals + 1) {
        client.send(&head(stream, ADD)).await;
    }
    assert_eq!(client.hung_up().await, Some(ENHANCE_YOUR_CALM));
    // h2 closes the connection just before it reports the flood, so the count may come a moment later.
    let counted = async { while refused(&server.stats().await, "frame_flood") == 0 {} };
    timeout(Duration::from_secs(10), counted)
        .await
        .expect("the flood was not counted");
    assert_eq!(refused(&server.stats().await, "frame_flood"), 1);
    server.assert_serves().await;
}

/// "MadeYouReset": the client breaks rules so that the server resets the stream. The stream no longer counts, but the
/// server still works on its call.
#[tokio::test]
async fn resets_that_the_client_provokes_come_to_an_end() {
    let overflow = |stream| frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes());
    let server = Running::start().await;
    for path in [ADD, WATCH] {
        let mut client = Frames::connect(server.addr, &[]).await;
        let mut resets = 0;
        for stream in streams(u32::MAX / 2) {
            client.send(&[head(stream, path), overflow(stream)].concat()).await;
            let end = loop {
                match client.next().await.expect("the server says why it hangs up") {
                    frame if matches!(frame.kind, RST_STREAM | GOAWAY) => break frame,
                    _ => {}
                }
            };
            if end.kind == GOAWAY {
                assert_eq!(end.error(), ENHANCE_YOUR_CALM);
                break;
            }
            assert_eq!((end.stream, end.error()), (stream, FLOW_CONTROL_ERROR));
            resets += 1;
        }
        assert_eq!(resets, limits::MAX_LOCAL_ERROR_RESETS);
    }
    // A frame that breaks a rule of the connection ends the connection at once.
    let mut client = Frames::connect(server.addr, &[]).await;
    let nothing = frame(WINDOW_UPDATE, 0, 1, &[0; 4]);
    client.send(&[head(1, ADD), nothing].concat()).await;
    assert!(client.hung_up().await.is_some());
    // Data after the end of a request whose watch is still open.
    let mut client = Frames::connect(server.addr, &[]).await;
    client.send(&call(1, WATCH, &[])).await;
    client.next_of(HEADERS).await.unwrap();
    client.send(&frame(DATA, 0, 1, &framed(&[]))).await;
    assert!(client.hung_up().await.is_some());
    server.assert_serves().await;
}

/// A watch and a call with half a request share the connection with all the calls that are cancelled.
#[tokio::test]
async fn cancelled_calls_cost_their_connection_nothing() {
    const VOLLEYS: usize = 20;
    let server = Running::start().await;
    let mut client = Frames::connect(server.addr, &[]).await;
    client.settle().await;
    client.send(&call(1, WATCH, &[])).await;
    client.next_of(DATA).await.unwrap();
    client.send(&head(3, ADD)).await;
    let others = limits::MAX_CONCURRENT_STREAMS as usize - 2;
    let mut numbers = (5..).step_by(2);
    for _ in 0..VOLLEYS {
        let volley: Vec<u32> = numbers.by_ref().take(others).collect();
        let heads = volley.iter().flat_map(|&stream| head(stream, ADD));
        let cancel = |stream| frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes());
        let cancels = volley.iter().flat_map(|&stream| cancel(stream));
        // The server sees no call before its cancellation.
        client.send(&heads.chain(cancels).collect::<Vec<_>>()).await;
        let came = client.settle().await;
        assert_eq!(of(&came, GOAWAY), BTreeSet::new());
    }
    client.send(&frame(DATA, END_STREAM, 3, &framed(&[]))).await;
    assert_eq!(client.next_of(HEADERS).await.unwrap().stream, 3);
    let proxy = Proxy {
        id: "proxy",
        cluster_name: "cluster",
        addr: "proxy:3080",
    };
    server.table.report_node(&"n".parse().unwrap(), &proxy).unwrap();
    assert_eq!(client.next_of(DATA).await.unwrap().stream, 1);
}

#[tokio::test]
async fn a_flood_of_cancelled_calls_ends() {
    let server = Running::start().await;
    for message in [None, Some(&[][..])] {
        let mut client = Frames::connect(server.addr, &[]).await;
        client.settle().await;
        let mut numbers = streams(u32::MAX / 2);
        let mut sent = 0;
        loop {
            let volley = numbers.by_ref().take(64).flat_map(|stream| {
                let mut frames = message.map_or_else(|| head(stream, ADD), |message| call(stream, ADD, message));
                frames.extend(frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes()));
                frames
            });
            if client.0.write_all(&volley.collect::<Vec<_>>()).await.is_err() {
                break;
            }
            sent += 64;
            assert!(sent < 1_000_000, "the flood does not end");
        }
        assert!(refused(&server.stats().await, "cancelled_calls") > 0);
        server.assert_serves().await;
    }
}

#[tokio::test]
async fn headers_that_never_end_are_not_waited_for() {
    /// A header of the static table, which is one byte.
    const HEADER: u8 = 0x90;
    let server = Running::start().await;
    for size in [0, 1, limits::MAX_FRAME_SIZE as usize] {
        let mut client = Frames::connect(server.addr, &[]).await;
        client.send(&frame(HEADERS, 0, 1, &request(ADD))).await;
        client
            .send(&frame(CONTINUATION, 0, 1, &vec![HEADER; size]).repeat(100))
            .await;
        // The client sends nothing more: these frames are enough.
        let error = client.hung_up().await;
        assert!(matches!(error, None | Some(ENHANCE_YOUR_CALM)), "{size}: {error:?}");
    }
    server.assert_serves().await;
}

#[tokio::test]
async fn floods_of_empty_and_of_tiny_data_frames_end() {
    let server = Running::start().await;
    // A session whose answers are not read takes no more requests.
    for (path, count, size) in [(ADD, 200, 0), (SESSION, 4096, 1)] {
        let mut client = Frames::connect(server.addr, &[(INITIAL_WINDOW_SIZE, 0)]).await;
        client.send(&head(1, path)).await;
        client.send(&frame(DATA, 0, 1, &vec![0; size]).repeat(count)).await;
        let error = client.hung_up().await;
        assert!(matches!(error, None | Some(ENHANCE_YOUR_CALM)), "{size}: {error:?}");
    }
    server.assert_serves().await;
}

#[tokio::test]
async fn a_frame_over_the_limit_breaks_the_connection() {
    let server = Running::start().await;
    let mut client = Frames::connect(server.addr, &[]).await;
    client.send(&head(1, ADD)).await;
    let large = vec![0; limits::MAX_FRAME_SIZE as usize + 1];
    client.send(&frame(DATA, 0, 1, &large)).await;
    let error = client.hung_up().await;
    assert!(matches!(error, None | Some(FRAME_SIZE_ERROR)), "{error:?}");
    server.assert_serves().await;
}

/// Frames that are answered, again and again, by a client that does not read the answers.
#[tokio::test]
async fn floods_that_are_not_read_are_not_read_either() {
    let server = Running::with(
        RouteTable::new(),
        Limits {
            ping_interval: SOON / 10,
            ping_timeout: SOON,
            ..Limits::default()
        },
    )
    .await;
    for flood in [frame(PING, 0, 0, b"flooding"), frame(SETTINGS, 0, 0, &[])] {
        let mut client = Frames::connect(server.addr, &[]).await;
        let flood = flood.repeat(1000);
        // The server would have to keep answers that it cannot send, so it stops reading. Then the client counts as
        // silent.
        while client.0.write_all(&flood).await.is_ok() {}
    }
    server.assert_serves().await;
}

/// Returns a server and a request. The request looks one node up many times, so the answer is large.
async fn with_large_answers() -> (Running, Vec<u8>) {
    const TIMES: usize = 1500;
    let server = Running::start().await;
    let node: NodeId = "n".parse().unwrap();
    for number in 0..64 {
        let proxy = Proxy {
            id: &format!("proxy-{number}"),
            cluster_name: "cluster",
            addr: "proxy:3080",
        };
        server.table.report_node(&node, &proxy).unwrap();
    }
    let nodes = v1::NodeIds {
        uuids: Vec::new(),
        names: vec!["n".into(); TIMES],
    };
    let request = v1::BatchGetProxiesRequest { nodes: Some(nodes) };
    (server, request.encode_to_vec())
}

#[tokio::test]
async fn answers_that_are_not_read_are_bounded() {
    const ASKED: u32 = 12;
    const TURNS: u32 = 40;
    let (server, message) = with_large_answers().await;
    // The requests fit into the connection's first window: the client below waits for no update.
    assert!(ASKED as usize * message.len() < 60_000);
    let mut raw = Raw::connect(server.addr).await;
    let (response, mut stream) = raw.open(BATCH).await;
    stream.send_data(framed(&message).into(), true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let mut size = 0;
    while let Some(data) = body.data().await {
        size += data.as_ref().unwrap().len();
        body.flow_control().release_capacity(data.unwrap().len()).unwrap();
    }

    for pieces in [1, 2] {
        let mut client = Frames::connect(server.addr, &[(INITIAL_WINDOW_SIZE, 0)]).await;
        client.settle().await;
        let asked: Vec<_> = streams(ASKED).collect();
        for &stream in &asked {
            let body = framed(&message);
            let (first, last) = body.split_at(body.len() / pieces);
            client.send(&head(stream, BATCH)).await;
            if last.is_empty() {
                client.send(&frame(DATA, END_STREAM, stream, first)).await;
            } else {
                client.send(&frame(DATA, 0, stream, first)).await;
                client.send(&frame(DATA, END_STREAM, stream, last)).await;
            }
        }
        // The server answers as many calls as there is room for, and no further call in many turns.
        let mut came = Vec::new();
        while (of(&came, HEADERS).len() + 1) * size <= limits::SEND_BUDGET - limits::MAX_REPLY_SIZE {
            came.extend(client.settle().await);
        }
        for _ in 0..TURNS {
            came.extend(client.settle().await);
        }
        let answered = of(&came, HEADERS).len();
        assert!(answered * size <= limits::SEND_BUDGET, "{answered} of {size} bytes");
        assert_eq!(of(&came, DATA), BTreeSet::new());

        // Small answers do not wait, but other large answers do. Each of these streams has a window of its own.
        let [small, list, watch] = [0, 2, 4].map(|more| 2 * ASKED + 1 + more);
        for (stream, path) in [(small, ADD), (list, LIST), (watch, WATCH)] {
            client.send(&call(stream, path, &[])).await;
            client
                .send(&frame(WINDOW_UPDATE, 0, stream, &1000_u32.to_be_bytes()))
                .await;
        }
        let mut came = Vec::new();
        for _ in 0..TURNS {
            came.extend(client.settle().await);
        }
        assert_eq!(of(&came, HEADERS), BTreeSet::from([small, watch]));
        assert_eq!(of(&came, DATA), BTreeSet::new());

        // An answer that the client cancels or reads makes room.
        for &stream in &asked {
            client.send(&frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())).await;
        }
        let mut came = BTreeSet::new();
        while came != BTreeSet::from([list, watch]) {
            came.insert(client.next_of(DATA).await.unwrap().stream);
        }
        server.assert_serves().await;
    }
}

#[tokio::test]
async fn a_client_that_reads_gets_as_many_large_answers_as_it_asks_for() {
    let (server, message) = with_large_answers().await;
    let mut raw = Raw::connect(server.addr).await;
    let mut responses = Vec::new();
    for _ in 0..40 {
        let (response, mut stream) = raw.open(BATCH).await;
        stream.send_data(framed(&message).into(), true).unwrap();
        responses.push(ended(response));
    }
    for ended in join_all(responses).await {
        assert_eq!(ended.grpc, Some(0));
    }
}

#[tokio::test]
async fn what_waits_ends_with_its_connection() {
    let (server, message) = with_large_answers().await;
    let mut client = Frames::connect(server.addr, &[(INITIAL_WINDOW_SIZE, 0)]).await;
    client.settle().await;
    // As in `answers_that_are_not_read_are_bounded`.
    const CALLS: u32 = 12;
    assert!(CALLS as usize * message.len() < 60_000);
    for stream in streams(CALLS) {
        client.send(&call(stream, BATCH, &message)).await;
    }
    client.send(&call(2 * CALLS + 1, WATCH, &[])).await;
    client.settle().await;
    let mut admin = AdminServiceClient::new(server.channel().await);
    let mut watches = async || {
        let stats = admin.stats(v1::StatsRequest {}).await.unwrap();
        stats.into_inner().watch_count
    };
    while watches().await != 1 {}
    drop(client);
    while watches().await != 0 {}
    assert_eq!(server.stop().await, Drained::Completely);
}
