//! The framings of a request. Nearly all requests come in one frame, which takes the fast path; all others get the same
//! replies.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use prost::Message;
use tonic::Code;

use crate::support::{ADD, Ended, Raw, Running, add, ended, framed, grpc};

const STATS: &str = "/nodetracker.v1.AdminService/Stats";
const SESSION: &str = "/nodetracker.v1.SessionService/Session";
const WATCH: &str = "/nodetracker.v1.WatchService/Watch";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// What is sent on a stream, step by step.
enum Step {
    Data(Vec<u8>),
    /// Waits until the server has read all that was sent.
    Settle,
    Trailers,
}
use Step::{Data, Settle, Trailers};

async fn call(raw: &mut Raw, steps: Vec<Step>) -> Ended {
    call_method(raw, ADD, steps).await
}

async fn call_method(raw: &mut Raw, path: &str, steps: Vec<Step>) -> Ended {
    let (response, mut stream) = raw.open(path).await;
    let last = steps.len() - 1;
    for (at, step) in steps.into_iter().enumerate() {
        match step {
            Data(bytes) => stream.send_data(bytes.into(), at == last).unwrap(),
            Settle => raw.settle().await,
            Trailers => {
                let trailer = ("x-checksum".parse().unwrap(), HeaderValue::from_static("1"));
                stream.send_trailers(HeaderMap::from_iter([trailer])).unwrap();
            }
        }
    }
    ended(response).await
}

#[tokio::test]
async fn a_request_is_answered_alike_however_it_arrives() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    let request = framed(&add("node-1", "proxy-1", "proxy:1").encode_to_vec());
    let (one, two) = request.split_at(12);
    let ways = [
        ("in one frame", vec![Data(request.clone())]),
        ("in two frames", vec![Data(one.into()), Data(two.into())]),
        (
            "in two frames, the second one late",
            vec![Data(one.into()), Settle, Data(two.into())],
        ),
        ("late", vec![Settle, Data(request.clone())]),
        (
            "with an empty frame behind",
            vec![Data(request.clone()), Data(Vec::new())],
        ),
        (
            "with an empty frame late",
            vec![Data(request.clone()), Settle, Data(Vec::new())],
        ),
        ("with trailers", vec![Data(request.clone()), Trailers]),
        ("with trailers late", vec![Data(request.clone()), Settle, Trailers]),
    ];
    let good = Ended {
        http: 200,
        grpc: Some(0),
        message: String::new(),
    };
    for (way, steps) in ways {
        assert_eq!(call(&mut raw, steps).await, good, "{way}");
        assert!(server.table.remove_node(&"node-1".parse().unwrap()), "{way}");
    }
}

#[tokio::test]
async fn what_is_no_message_is_refused_and_changes_nothing() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    let message = add("node-1", "proxy-1", "proxy:1").encode_to_vec();
    let with_flag = |flag| {
        let mut frame = framed(&message);
        frame[0] = flag;
        frame
    };
    let ways = [
        ("half a prefix", framed(&message)[..3].to_vec(), "Unexpected EOF"),
        ("too short", framed(&message)[..20].to_vec(), "Unexpected EOF"),
        ("compressed", with_flag(1), "compressed-flag"),
        ("an unknown flag", with_flag(7), "invalid compression flag: 7"),
        ("not protobuf", framed(&[0xff; 20]), "decode"),
    ];
    let nothing = call(&mut raw, vec![Data(Vec::new())]).await;
    assert_eq!(nothing.grpc, Some(Code::Unimplemented as i32), "{nothing:?}");
    for (way, body, error) in ways {
        let ended = call(&mut raw, vec![Data(body)]).await;
        assert_eq!(ended.grpc, Some(Code::Internal as i32), "{way}: {ended:?}");
        assert!(ended.message.contains(error), "{way}: {ended:?}");
    }

    assert_eq!(server.table.stats().nodes, 0);
}

/// Calls a method with a header more.
async fn call_with(raw: &mut Raw, path: &str, name: &'static str, value: &str) -> Ended {
    let mut request = grpc(path);
    request.headers_mut().insert(name, value.parse().unwrap());
    raw.requests = raw.requests.clone().ready().await.unwrap();
    let (response, mut stream) = raw.requests.send_request(request, false).unwrap();
    // An error means that the server has answered already.
    let _ = stream.send_data(Bytes::from(framed(&[])), true);
    ended(response).await
}

#[tokio::test]
async fn every_method_refuses_compressed_requests_alike() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    let mut refusals = BTreeSet::new();
    for path in [ADD, STATS, SESSION, WATCH, HEALTH] {
        // The message is not compressed, but if it were, the server could not decompress it.
        let ended = call_with(&mut raw, path, "grpc-encoding", "gzip").await;
        assert_eq!(ended.grpc, Some(Code::Unimplemented as i32), "{path}: {ended:?}");
        refusals.insert(ended.message);
    }
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert_eq!(
        call_with(&mut raw, STATS, "grpc-encoding", "identity").await.grpc,
        Some(0)
    );
}

#[tokio::test]
async fn a_second_message_of_a_unary_request_is_refused() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for path in [ADD, STATS, WATCH, HEALTH] {
        let two = framed(&[]).repeat(2);
        let ways = [
            ("in one frame", vec![Data(two)]),
            ("in two frames", vec![Data(framed(&[])), Data(framed(&[]))]),
            ("late", vec![Data(framed(&[])), Settle, Data(framed(&[]))]),
            ("cut off", vec![Data(framed(&[])), Data(framed(&[])[..4].to_vec())]),
        ];
        for (way, steps) in ways {
            let ended = call_method(&mut raw, path, steps).await;
            let code = if way == "cut off" {
                Code::Internal
            } else {
                Code::Unimplemented
            };
            assert_eq!(ended.grpc, Some(code as i32), "{path} {way}: {ended:?}");
        }
    }
}
