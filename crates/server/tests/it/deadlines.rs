//! Deadlines: those of the client, and how long the server waits.

use std::time::Duration;

use bytes::Bytes;
use nodetracker::RouteTable;
use nodetracker_server::{Limits, limits};
use tonic::Code;

use crate::support::{ADD, Ended, Raw, Running, SOON, ended, framed, grpc};

const LIST: &str = "/nodetracker.v1.AdminService/ListProxies";
const STATS: &str = "/nodetracker.v1.AdminService/Stats";
const SESSION: &str = "/nodetracker.v1.SessionService/Session";
const WATCH: &str = "/nodetracker.v1.WatchService/Watch";
const CHECK: &str = "/grpc.health.v1.Health/Check";
const HEALTH_WATCH: &str = "/grpc.health.v1.Health/Watch";

/// Calls a method with a timeout. With `ends`, the request is one empty message; otherwise nothing is sent.
async fn call(raw: &mut Raw, path: &str, timeout: &str, ends: bool) -> Ended {
    let mut request = grpc(path);
    request.headers_mut().insert("grpc-timeout", timeout.parse().unwrap());
    raw.requests = raw.requests.clone().ready().await.unwrap();
    let (response, mut stream) = raw.requests.send_request(request, false).unwrap();
    if ends {
        // An error means that the server has answered already.
        let _ = stream.send_data(Bytes::from(framed(&[])), true);
    }
    ended(response).await
}

#[tokio::test]
async fn deadlines_end_calls_that_wait() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for path in [ADD, LIST, STATS, SESSION, WATCH, CHECK] {
        let ended = call(&mut raw, path, "20m", false).await;
        assert_eq!(ended.grpc, Some(Code::DeadlineExceeded as i32), "{path}: {ended:?}");
        assert!(ended.message.contains("deadline"), "{path}: {ended:?}");
    }
}

#[tokio::test]
async fn deadlines_end_streams() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for path in [WATCH, HEALTH_WATCH] {
        let ended = call(&mut raw, path, "20000u", true).await;
        assert_eq!(ended.grpc, Some(Code::DeadlineExceeded as i32), "{path}: {ended:?}");
    }
}

#[tokio::test]
async fn distant_deadlines_end_nothing() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for timeout in ["99999999H", "1M", "60S", "60000m"] {
        assert_eq!(call(&mut raw, STATS, timeout, true).await.grpc, Some(0), "{timeout}");
    }
}

#[tokio::test]
async fn malformed_timeouts_are_refused() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for timeout in ["", "S", "1", "1s", "-1S", "1.5S", "123456789n", " 1S"] {
        for path in [ADD, STATS] {
            let ended = call(&mut raw, path, timeout, true).await;
            assert_eq!(ended.grpc, Some(Code::Internal as i32), "{path} {timeout}: {ended:?}");
            assert!(ended.message.contains("grpc-timeout"), "{path} {timeout}: {ended:?}");
        }
    }
}

/// Requests that do not arrive take no room from the answers to other requests.
#[tokio::test]
async fn stalled_requests_do_not_hold_up_large_answers() {
    let limits = Limits {
        call: Duration::from_secs(60),
        ..Limits::default()
    };
    let server = Running::with(RouteTable::new(), limits).await;
    let mut raw = Raw::connect(server.addr).await;
    let mut stalled = Vec::new();
    for path in [STATS, LIST] {
        for _ in 0..2 * limits::SEND_BUDGET / limits::MAX_REPLY_SIZE {
            stalled.push(raw.open(path).await);
        }
    }
    raw.settle().await;
    let listed = raw.call(LIST, framed(&[]));
    let ended = tokio::time::timeout(20 * SOON, listed)
        .await
        .expect("it waits for requests");
    assert_eq!(ended.grpc, Some(0));
}
