//! Clients that are slow, silent, or too many: the server still serves the others.

use std::process::Command;
use std::time::Duration;

use nodetracker::RouteTable;
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_server::{Limits, limits};
use rustix::process::{Resource, Rlimit, prlimit};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;

use crate::support::{ADD, Process, Raw, Running, SOON, add, connect, ended, framed, grpc, refused};

/// Too long for a limit to matter.
const LATE: Duration = Duration::from_secs(1000);

const WATCH: &str = "/nodetracker.v1.WatchService/Watch";

/// What a client has to begin with: HTTP/2's magic bytes, and its settings.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn silent_clients_are_hung_up_on() {
    let server = Running::with(
        RouteTable::new(),
        Limits {
            handshake: SOON,
            ..Limits::default()
        },
    )
    .await;
    for bytes in [&b""[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    server.assert_serves().await;
}

#[tokio::test]
async fn clients_that_do_not_answer_pings_are_hung_up_on() {
    const PING: u8 = 6;
    const ACK: u8 = 1;
    let server = Running::with(
        RouteTable::new(),
        Limits {
            ping_interval: SOON / 10,
            ping_timeout: SOON,
            ..Limits::default()
        },
    )
    .await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    // A client that answers is not silent: the server pings it again and again.
    let mut answered = 0;
    while answered < 3 {
        let mut frame = vec![0; 9];
        stream.read_exact(&mut frame).await.unwrap();
        let len = usize::from(frame[2]);
        frame.resize(9 + len, 0);
        stream.read_exact(&mut frame[9..]).await.unwrap();
        if frame[3] == PING && frame[4] & ACK == 0 {
            frame[4] |= ACK;
            stream.write_all(&frame).await.unwrap();
            answered += 1;
        }
    }
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert_eq!(rest.get(3), Some(&PING), "it was asked before");
    server.assert_serves().await;
}

#[tokio::test]
async fn a_request_that_never_ends_is_answered() {
    let server = Running::with(
        RouteTable::new(),
        Limits {
            call: SOON,
            ..Limits::default()
        },
    )
    .await;
    let mut raw = Raw::connect(server.addr).await;
    let (response, mut stream) = raw.open(ADD).await;
    stream
        .send_data(framed(&[0; 100])[..50].to_vec().into(), false)
        .unwrap();
    assert_eq!(ended(response).await.grpc, Some(Code::DeadlineExceeded as i32));
    assert_eq!(
        raw.call(ADD, framed(&[])).await.grpc,
        Some(Code::InvalidArgument as i32)
    );
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let server = Running::with(
        RouteTable::new(),
        Limits {
            max_connections: 1,
            max_share_per_client: 100,
            ..Limits::default()
        },
    )
    .await;
    let mut first = Raw::connect(server.addr).await;
    // A call in flight, so the connection is not idle.
    let _call = first.open(ADD).await;
    first.settle().await;
    // The kernel takes it, and the server does not.
    let mut second = TcpStream::connect(server.addr).await.unwrap();
    second.write_all(PREFACE).await.unwrap();
    let mut byte = [0];
    let answer = second.read_exact(&mut byte);
    assert!(timeout(SOON, answer).await.is_err(), "it was served");
    first.settle().await;
    first.connection.abort();
    second.read_exact(&mut byte).await.unwrap();
    drop(second);
    assert!(refused(&server.stats().await, "connections") > 0);
}

#[tokio::test]
async fn old_connections_are_asked_to_leave() {
    let server = Running::with(
        RouteTable::new(),
        Limits {
            handshake: SOON,
            max_connection_age: 2 * SOON,
            ..Limits::default()
        },
    )
    .await;
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    // GOAWAY without an error ends the connection in order.
    connection.await.unwrap();
    drop(requests);
    server.assert_serves().await;
}

#[tokio::test]
async fn settings_say_the_limits() {
    let server = Running::start().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    stream.write_all(PREFACE).await.unwrap();
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 4, "not SETTINGS");
    let mut settings = vec![0; usize::from(head[2])];
    stream.read_exact(&mut settings).await.unwrap();
    let value = |id: u16| {
        settings
            .chunks_exact(6)
            .find(|setting| setting[..2] == id.to_be_bytes())
            .map(|setting| u32::from_be_bytes(setting[2..].try_into().unwrap()))
    };
    assert_eq!(value(3), Some(limits::MAX_CONCURRENT_STREAMS));
    assert_eq!(value(4), Some(limits::STREAM_WINDOW));
    assert_eq!(value(5), Some(limits::MAX_FRAME_SIZE));
    assert_eq!(value(6), Some(limits::MAX_HEADER_LIST_SIZE));
}

#[tokio::test]
async fn headers_over_the_limit_break_one_call_only() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    let (watched, mut watch) = raw.open(WATCH).await;
    watch.send_data(framed(&[]).into(), true).unwrap();
    let mut watched = watched.await.unwrap().into_body();
    #[expect(clippy::async_yields_async, reason = "the call ends later")]
    let mut with_metadata = async |size| {
        let mut request = grpc(ADD);
        request
            .headers_mut()
            .insert("x-large", "x".repeat(size).parse().unwrap());
        raw.requests = raw.requests.clone().ready().await.unwrap();
        raw.requests.send_request(request, true).unwrap().0
    };
    for size in [limits::MAX_METADATA_SIZE, 33_000, 65_536, 300_000, 1_000_000] {
        let ended = ended(with_metadata(size).await).await;
        assert_eq!(ended.grpc, Some(Code::ResourceExhausted as i32), "{size}: {ended:?}");
        assert!(ended.message.contains("metadata"), "{ended:?}");
    }
    // Beyond that h2 refuses the call itself, with the HTTP status for it.
    let response = with_metadata(limits::MAX_HEADER_LIST_SIZE as usize).await;
    assert_eq!(response.await.unwrap().status(), 431);
    assert_eq!(
        raw.call(ADD, framed(&[])).await.grpc,
        Some(Code::InvalidArgument as i32)
    );
    // The watch of the same connection has begun, and still gets each change.
    let mut client = server.client().await;
    client.add_node(add("node-1", "proxy-1", "proxy:1")).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(7).any(|text| text == b"proxy-1") {
        let part = watched.data().await.expect("the watch is open").unwrap();
        watched.flow_control().release_capacity(part.len()).unwrap();
        seen.extend(part);
    }
}

#[tokio::test]
async fn running_out_of_descriptors_is_survived() {
    let mut server = Process::serve(&[]);
    // The server has adapted its limit of connections to the limit that it had at the start.
    let server_id = rustix::process::Pid::from_raw(server.id().try_into().unwrap());
    let few = Rlimit {
        current: Some(48),
        maximum: Some(48),
    };
    prlimit(server_id, Resource::Nofile, few).unwrap();
    let mut flood = Vec::new();
    for _ in 0..64 {
        flood.push(TcpStream::connect(server.addr).await.unwrap());
    }
    server.logged("cannot accept connections");
    drop(flood);
    let mut client = connect(server.addr).await;
    client.add_node(add("node-1", "proxy-1", "proxy:1")).await.unwrap();
}

/// Connections that cannot end must not take the descriptors of the diagnostics port and of the snapshots.
#[tokio::test]
async fn connections_leave_descriptors_for_probes_and_snapshots() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new("sh");
    let serve = "ulimit -n 400 && exec \"$0\" serve --listen-addr 127.0.0.1:0 --diag-addr 127.0.0.1:0 \
                 --log-level debug --snapshot-interval 1s --max-share-per-client 100 --data-dir \"$1\"";
    command.args(["-c", serve, env!("CARGO_BIN_EXE_nodetracker")]);
    command.arg(folder.path());
    let mut server = Process::spawn(command);
    let log = server.logged("metrics are on ");
    let diag = log.lines().next_back().unwrap().rsplit_once(' ').unwrap().1.to_owned();
    // Each connection has a call in flight.
    let mut busy = Vec::new();
    for _ in 0..600 {
        let stream = TcpStream::connect(server.addr).await.unwrap();
        busy.push(tokio::spawn(async move {
            let mut raw = Raw::try_over(stream).await.ok()?;
            let call = raw.open(ADD).await;
            Some((raw, call))
        }));
    }
    server.logged("connection limit (");
    let health = async {
        let mut probe = TcpStream::connect(&diag).await.unwrap();
        probe.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").await.unwrap();
        let mut page = String::new();
        probe.read_to_string(&mut page).await.unwrap();
        page
    };
    let page = timeout(Duration::from_secs(5), health)
        .await
        .expect("the probe has a reply");
    assert!(page.starts_with("HTTP/1.1 200 "), "{page}");
    let log = server.logged(": wrote 0 routes");
    assert!(!log.contains("cannot be written"), "{log}");
}

#[tokio::test]
async fn idle_connections_make_room() {
    let server = Running::with(
        RouteTable::new(),
        Limits {
            max_connections: 2,
            max_share_per_client: 100,
            call: LATE,
            ..Limits::default()
        },
    )
    .await;
    // One client has a call in flight, and the other client has none.
    let mut busy = Raw::connect(server.addr).await;
    let (_response, _stream) = busy.open(ADD).await;
    busy.settle().await;
    let mut idle = Raw::connect(server.addr).await;
    idle.settle().await;
    let mut third = Raw::connect(server.addr).await;
    third.settle().await;
    idle.connection.await.unwrap().unwrap();
    busy.settle().await;
    assert_eq!(
        third.call(ADD, framed(&[])).await.grpc,
        Some(Code::InvalidArgument as i32)
    );
}

#[tokio::test]
async fn requests_that_never_end_take_a_share_of_the_memory_and_no_more() {
    const MEGABYTE: usize = 1 << 20;
    let server = Running::with(
        RouteTable::new(),
        Limits {
            memory: 8 * MEGABYTE,
            max_share_per_client: 100,
            call: LATE,
            ..Limits::default()
        },
    )
    .await;
    // Each request announces 200 kB, and sends one byte.
    let begun = [&[0][..], &200_000_u32.to_be_bytes(), &[7]].concat();
    let mut attackers = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::connect(server.addr).await;
        let mut calls = Vec::new();
        for _ in 0..limits::MAX_CONCURRENT_STREAMS {
            let (response, mut stream) = raw.open("/nodetracker.v1.RouteService/AddNodes").await;
            stream.send_data(begun.clone().into(), false).unwrap();
            calls.push((response, stream));
        }
        // If the budget has no room for the streams of a connection, the connection ends after its calls were refused.
        let _ = raw.try_settle().await;
        attackers.push((raw, calls));
    }
    let mut admin = AdminServiceClient::new(server.channel().await);
    // Of the thousand calls, few fit. The calls wait for their turns before they are looked at.
    let stats = loop {
        let stats = admin.stats(v1::StatsRequest {}).await.unwrap().into_inner();
        assert!(stats.client_memory_bytes <= 16 * MEGABYTE as u64, "{stats:?}");
        if refused(&stats, "connection_memory") + refused(&stats, "client_memory") > 900 {
            break stats;
        }
    };
    assert_eq!(stats.client_memory_limit_bytes, 8 * MEGABYTE as u64);
    assert!(stats.client_memory_bytes > 4 * MEGABYTE as u64, "{stats:?}");
    let (_, calls) = &mut attackers[3];
    let (last, _) = calls.pop().unwrap();
    assert_eq!(ended(last).await.grpc, Some(Code::ResourceExhausted as i32));
    server.assert_serves().await;
    drop(attackers);
    while admin
        .stats(v1::StatsRequest {})
        .await
        .unwrap()
        .into_inner()
        .client_memory_bytes
        > MEGABYTE as u64
    {
        tokio::task::yield_now().await;
    }
}
