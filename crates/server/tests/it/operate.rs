//! The commands that change how a tracker works: `drain` and `log-level`.

use std::time::Duration;

use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use nodetracker_proto::v1::session_service_client::SessionServiceClient;
use nodetracker_server::Drained;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use crate::support::{Process, Raw, Running, run, stderr, stdout};

/// A session that has begun. It stays open while the sender lives.
struct Session {
    _requests: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
}

impl Session {
    async fn begin(channel: Channel) -> Self {
        let hello = v1::SessionHello {
            proxy: Some(crate::v1::proxy("proxy-1")),
            incarnation: 1,
            ..v1::SessionHello::default()
        };
        let (requests, sent) = mpsc::channel(1);
        let hello = v1::SessionRequest {
            sequence: 1,
            request: Some(Request::Hello(hello)),
        };
        requests.send(hello).await.unwrap();
        let mut client = SessionServiceClient::new(channel);
        let mut session = Self {
            answers: client.session(ReceiverStream::new(sent)).await.unwrap().into_inner(),
            _requests: requests,
        };
        assert!(matches!(session.next().await, (1, Response::Welcome(_))));
        session
    }

    async fn next(&mut self) -> (u64, Response) {
        let answer = self.answers.message().await.unwrap().expect("an answer");
        (answer.sequence, answer.response.expect("a response"))
    }
}

async fn channel(server: &Process) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addr)).unwrap();
    endpoint.connect().await.unwrap()
}

fn go_away(left: Duration) -> (u64, Response) {
    let time_left = left.try_into().ok();
    (0, Response::GoAway(v1::SessionGoAway { time_left }))
}

#[tokio::test]
async fn a_drain_tells_sessions_to_go_serves_for_the_delay_and_ends_the_tracker() {
    let mut server = Process::serve(&["--shutdown-delay", "300ms"]);
    let addr = server.addr.to_string();
    let mut session = Session::begin(channel(&server).await).await;
    let drained = spawn_blocking({
        let addr = addr.clone();
        move || run(&["drain", "--format", "json", "--addr", &addr])
    });
    assert_eq!(session.next().await, go_away(Duration::from_millis(300)));
    let log = server.logged("NOT_SERVING for 300ms");
    assert!(log.contains("AdminService.Drain: stopping peer=127.0.0.1:"), "{log}");
    let ended = session.answers.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable);
    let drained = drained.await.unwrap();
    assert_eq!((drained.status.code(), stderr(&drained)), (Some(0), String::new()));
    let json: serde_json::Value = serde_json::from_str(&stdout(&drained)).unwrap();
    assert_eq!(
        (&json["shutdown_delay_seconds"], &json["closed"], &json["restarted"]),
        (&0.3.into(), &true.into(), &false.into())
    );
    let (status, log) = server.wait().await;
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(TcpStream::connect(&addr).await.is_err());
}

#[tokio::test]
async fn a_signal_tells_sessions_to_go_too() {
    let server = Process::serve(&[]);
    let mut session = Session::begin(channel(&server).await).await;
    server.signal("TERM");
    assert_eq!(session.next().await, go_away(Duration::ZERO));
    assert_eq!(session.answers.message().await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(server.wait().await.0.code(), Some(0));
}

#[tokio::test]
async fn a_drain_waits_no_longer_than_asked() {
    let mut server = Process::serve(&["--shutdown-delay", "1h"]);
    let addr = server.addr.to_string();
    let not_waited = run(&["drain", "--wait", "0s", "--format", "json", "--addr", &addr]);
    assert_eq!(not_waited.status.code(), Some(0), "{}", stderr(&not_waited));
    let json: serde_json::Value = serde_json::from_str(&stdout(&not_waited)).unwrap();
    assert_eq!(json["closed"], false);
    let late = run(&["drain", "--wait", "200ms", "--addr", &addr]);
    assert_eq!((late.status.code(), stdout(&late)), (Some(1), String::new()));
    assert_eq!(
        stderr(&late),
        "nodetracker: the tracker has not closed its port within 200ms\n"
    );
    let health = run(&["health", "--addr", &addr]);
    assert_eq!(stdout(&health), "NOT_SERVING\n");
    server.signal("TERM");
    server.logged("SIGTERM: stopping");
    server.signal("TERM");
    assert_eq!(server.wait().await.0.code(), Some(143));
}

#[tokio::test]
async fn a_server_in_a_program_drains_when_it_is_asked() {
    let server = Running::start().await;
    let mut admin = AdminServiceClient::new(server.channel().await);
    let response = admin.drain(v1::DrainRequest {}).await.unwrap().into_inner();
    assert_ne!(response.generation, 0);
    assert_eq!(response.shutdown_delay, Some(prost_types::Duration::default()));
    assert_eq!(server.ended().await, Drained::Completely);
}

#[tokio::test]
async fn a_level_that_cannot_be_used_is_named() {
    let server = Running::start().await;
    let mut admin = AdminServiceClient::new(server.channel().await);
    let mut refused = async |level: &str, period| {
        let level = level.to_owned();
        let status = admin
            .set_log_level(v1::SetLogLevelRequest { level, period })
            .await
            .unwrap_err();
        (status.code(), status.message().to_owned())
    };
    let reason = "level: \"verbose\" is neither off, error, warn, info or debug, nor TARGET= and one of these";
    assert_eq!(
        refused("verbose", None).await,
        (Code::InvalidArgument, reason.to_owned())
    );
    for seconds in [-1, 0] {
        let period = prost_types::Duration { seconds, nanos: 0 };
        let reason = "period: is not longer than zero".to_owned();
        assert_eq!(refused("debug", Some(period)).await, (Code::InvalidArgument, reason));
    }
    // The tests have no log of the server's.
    assert_eq!(refused("debug", None).await.0, Code::FailedPrecondition);

    let refused = run(&["log-level", "verbose"]);
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert!(
        stderr(&refused).contains("\"verbose\" is neither off"),
        "{}",
        stderr(&refused)
    );
}

#[tokio::test]
async fn a_level_that_is_raised_shows_connections_and_sessions_that_are_open() {
    let mut server = Process::serve(&[]);
    let addr = server.addr.to_string();
    let mut raw = Raw::connect(server.addr).await;
    raw.settle().await;
    let session = Session::begin(channel(&server).await).await;
    let set = |level: &str| {
        let set = run(&["log-level", level, "--format", "json", "--addr", &addr]);
        assert_eq!(set.status.code(), Some(0), "{}", stderr(&set));
        stdout(&set)
    };
    assert_eq!(set("debug"), "{\"previous_level\":\"info\"}\n");
    assert!(server.logged("is now debug").contains("the log level was info"));
    raw.call(
        "/nodetracker.v1.RouteService/GetProxies",
        crate::support::framed(b"\x0a\x00"),
    )
    .await;
    let log = server.logged("GetProxies failed");
    let line = log.lines().next_back().unwrap();
    assert!(line.contains(" DEBUG connection{peer=127.0.0.1:"), "{line}");
    assert!(line.contains("code=InvalidArgument"), "{line}");
    drop(session);
    // The client's tasks need this thread to end the session.
    let read = move || {
        let log = server.logged("a session is over");
        (server, log)
    };
    let (server, log) = spawn_blocking(read).await.unwrap();
    assert!(log.contains("proxy=\"proxy-1\""), "{log}");
    assert_eq!(set("default"), "{\"previous_level\":\"debug\"}\n");
    raw.call(
        "/nodetracker.v1.RouteService/GetProxies",
        crate::support::framed(b"\x0a\x00"),
    )
    .await;
    server.signal("TERM");
    let (_, log) = server.wait().await;
    assert!(!log.contains("GetProxies failed"), "{log}");
}

#[test]
fn a_level_may_last_for_a_while() {
    let mut server = Process::serve(&["--log-level", "warn"]);
    let addr = server.addr.to_string();
    let set = run(&["log-level", "debug,h2=info", "--for", "50ms", "--addr", &addr]);
    assert_eq!((set.status.code(), stdout(&set)), (Some(0), String::new()));
    server.logged("the log level was warn, and is now debug,h2=info");
    server.logged("the log level was debug,h2=info, and is now warn");
    let refused = run(&["log-level", "debug", "--for", "0s", "--addr", &addr]);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
}
