//! How the server stops: after the calls in flight, at the deadline, or at once.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use nodetracker::RouteTable;
use nodetracker_server::{Drained, Limits};
use tokio::net::TcpStream;

use crate::support::{Ended, Process, Raw, Running, config_file, ended, framed, run, stderr, stdout};

/// A call that the server has begun to read.
pub(crate) struct InFlight {
    raw: Raw,
    response: h2::client::ResponseFuture,
    stream: h2::SendStream<Bytes>,
    rest: Bytes,
}

impl InFlight {
    pub(crate) async fn start(addr: SocketAddr) -> Self {
        let mut raw = Raw::connect(addr).await;
        let (response, mut stream) = raw.open("/api.NodeTrackerService/GetProxies").await;
        let mut body = Bytes::from(framed(b"\x0a\x06node-1"));
        stream.send_data(body.split_to(7), false).unwrap();
        raw.settle().await;
        Self {
            raw,
            response,
            stream,
            rest: body,
        }
    }

    pub(crate) async fn finish(mut self) -> Ended {
        self.stream.send_data(self.rest, true).unwrap();
        let ended = ended(self.response).await;
        drop(self.raw);
        ended
    }
}

const OK: Ended = Ended {
    http: 200,
    grpc: Some(0),
    message: String::new(),
};

#[tokio::test]
async fn a_call_in_flight_is_finished() {
    for signal in ["TERM", "INT"] {
        let mut server = Process::serve(&[]);
        let call = InFlight::start(server.addr).await;
        server.signal(signal);
        let log = server.logged("have up to");
        assert!(log.contains(&format!("SIG{signal}: stopping")), "{log}");
        let refused = TcpStream::connect(server.addr).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(call.finish().await, OK);
        let (status, log) = server.wait().await;
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(log.trim_end().ends_with("INFO stopped"), "{log}");
    }
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    for (signal, code) in [("TERM", 143), ("INT", 130)] {
        let mut server = Process::serve(&[]);
        let _call = InFlight::start(server.addr).await;
        server.signal("TERM");
        server.logged("have up to");
        server.signal(signal);
        let (status, log) = server.wait().await;
        assert_eq!(status.code(), Some(code), "{log}");
    }
}

#[tokio::test]
async fn during_the_shutdown_delay_calls_are_served_and_the_health_is_not_serving() {
    let mut server = Process::serve(&["--shutdown-delay", "1h"]);
    let addr = server.addr.to_string();
    server.signal("TERM");
    server.logged("SIGTERM: stopping");
    server.logged("NOT_SERVING for 1h");
    let health = run(&["health", "--addr", &addr]);
    assert_eq!(stdout(&health), "NOT_SERVING\n", "{}", stderr(&health));
    let added = run(&["add", "node-1", "proxy-1", "proxy:1", "--addr", &addr]);
    assert!(added.status.success(), "{}", stderr(&added));
    server.signal("TERM");
    assert_eq!(server.wait().await.0.code(), Some(143));
}

#[tokio::test]
async fn the_shutdown_delay_ends() {
    let (_folder, file) = config_file("node_tracker_service:\n  shutdown_delay: 10ms\n");
    let mut server = Process::serve(&["--config", file.to_str().unwrap()]);
    server.signal("TERM");
    server.logged("NOT_SERVING for 10ms");
    let (status, log) = server.wait().await;
    assert_eq!(status.code(), Some(0), "{log}");
}

#[tokio::test]
async fn idle_and_silent_connections_do_not_hold_it_up() {
    let server = Running::start().await;
    let idle = server.client().await;
    let _silent = TcpStream::connect(server.addr).await.unwrap();
    server.assert_serves().await;
    assert_eq!(server.stop().await, Drained::Completely);
    drop(idle);
}

#[tokio::test]
async fn calls_that_take_too_long_are_cut() {
    let server = Running::with(
        RouteTable::new(),
        Limits {
            drain: Duration::from_millis(20),
            ..Limits::default()
        },
    )
    .await;
    let call = InFlight::start(server.addr).await;
    assert_eq!(server.stop().await, Drained::Cut { connections: 1 });
    assert!(call.response.await.is_err());
}

#[tokio::test]
async fn a_dropped_server_serves_nobody() {
    let server = Running::start().await;
    let addr = server.addr;
    let call = InFlight::start(addr).await;
    server.abort().await;
    assert!(call.response.await.is_err());
    assert_eq!(
        TcpStream::connect(addr).await.unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
}
