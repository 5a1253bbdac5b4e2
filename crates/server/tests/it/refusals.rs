//! Refusals: each refusal is counted under its reason, and has a retry delay if waiting helps.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use nodetracker::RouteTable;
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_server::{Limits, limits};
use prost::Message;
use tonic::Status;
use tonic_types::StatusExt;

use crate::support::{ADD, Raw, Running, framed, grpc, refused, run, stdout};

const ADD_NODES: &str = "/nodetracker.v1.RouteService/AddNodes";
const BATCH: &str = "/nodetracker.v1.RouteService/BatchGetProxies";
const SESSION: &str = "/nodetracker.v1.SessionService/Session";
const WATCH: &str = "/nodetracker.v1.WatchService/Watch";

/// Makes a call, and returns the headers and the trailers of its response.
async fn call(raw: &mut Raw, request: http::Request<()>, body: Vec<u8>) -> HeaderMap {
    raw.requests = raw.requests.clone().ready().await.unwrap();
    let (response, mut stream) = raw.requests.send_request(request, false).unwrap();
    // An error means that the server has answered already.
    let _ = stream.send_data(Bytes::from(body), true);
    let response = response.await.unwrap();
    let mut headers = response.headers().clone();
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let len = data.unwrap().len();
        body.flow_control().release_capacity(len).unwrap();
    }
    headers.extend(body.trailers().await.unwrap().unwrap_or_default());
    headers
}

/// Returns the delay of the `google.rpc.RetryInfo` in a response, or `None` without a `RetryInfo`.
fn retry_delay(headers: &HeaderMap) -> Option<Duration> {
    let status = Status::from_header_map(headers).expect("a status");
    assert_eq!(
        status.details().is_empty(),
        !headers.contains_key("grpc-status-details-bin")
    );
    status.get_details_retry_info()?.retry_delay
}

fn proxy(id: &str) -> Option<v1::Proxy> {
    Some(v1::Proxy {
        proxy_id: id.into(),
        cluster_name: "cluster".into(),
        addr: "proxy:1".into(),
    })
}

fn names(count: usize, len: usize) -> Option<v1::NodeIds> {
    Some(v1::NodeIds {
        uuids: vec![],
        names: (0..count).map(|number| format!("{number:0>len$}")).collect(),
    })
}

fn add_nodes(id: &str, nodes: Option<v1::NodeIds>) -> Vec<u8> {
    let proxy = proxy(id);
    framed(&v1::AddNodesRequest { proxy, nodes }.encode_to_vec())
}

fn requests(requests: Vec<Request>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        let request = Some(request);
        bytes.extend(framed(&v1::SessionRequest { sequence: 1, request }.encode_to_vec()));
    }
    bytes
}

fn hello(id: &str) -> Request {
    Request::Hello(v1::SessionHello {
        proxy: proxy(id),
        incarnation: 1,
        ..v1::SessionHello::default()
    })
}

#[tokio::test]
async fn a_table_without_room_for_text_refuses_new_proxies() {
    let builder = RouteTable::builder().max_text_bytes(1);
    let server = Running::with_table(builder.build().expect("possible limits")).await;
    let mut raw = Raw::connect(server.addr).await;
    let headers = call(&mut raw, grpc(ADD_NODES), add_nodes("proxy-1", names(1, 1))).await;
    assert_eq!(headers["grpc-status"], "8", "{headers:?}");
    assert_eq!(retry_delay(&headers), Some(Duration::from_secs(10)));
    assert_eq!(refused(&server.stats().await, "table_memory"), 1);
}

#[tokio::test]
async fn each_refused_call_is_counted_under_its_reason() {
    let table = RouteTable::builder()
        .max_routes(1000)
        .max_proxies(64)
        .build()
        .expect("possible limits");
    let server = Running::with_table(table).await;
    for number in 0..64 {
        let proxy = server.table.register_proxy(&nodetracker::Proxy {
            id: &format!("proxy-{number}"),
            cluster_name: "cluster",
            addr: "proxy:1",
        });
        server.table.add_node(&"0".parse().unwrap(), proxy.unwrap()).unwrap();
    }
    let mut raw = Raw::connect(server.addr).await;
    let mut large = grpc(ADD);
    let metadata = "x".repeat(limits::MAX_METADATA_SIZE);
    large.headers_mut().insert("x-large", metadata.parse().unwrap());
    let long = vec![0; limits::MAX_MESSAGE_SIZE + 1];
    let watch_long = vec![0; limits::MAX_BATCH_MESSAGE_SIZE + 1];
    let same = v1::BatchGetProxiesRequest {
        nodes: Some(v1::NodeIds {
            uuids: vec![],
            names: vec!["0".into(); 4096],
        }),
    };
    // Waiting helps if the table is full.
    let delay = |reason: &str| reason.starts_with("table").then_some(Duration::from_secs(10));
    let up = Request::NodesUp(v1::SessionNodesUp {
        nodes: names(limits::MAX_SESSION_NODES, 5),
    });
    for (request, body, code, reason) in [
        (large, framed(&[]), 8, "metadata_size"),
        (grpc(ADD), framed(&long), 8, "message_size"),
        (grpc(SESSION), framed(&long), 8, "message_size"),
        (grpc(WATCH), framed(&watch_long), 8, "message_size"),
        (grpc("/grpc.health.v1.Health/Watch"), framed(&long), 8, "message_size"),
        (grpc(BATCH), framed(&same.encode_to_vec()), 8, "reply_size"),
        (grpc(ADD_NODES), add_nodes("proxy-1", names(2000, 4)), 8, "table_routes"),
        (grpc(ADD_NODES), add_nodes("proxy-x", names(1, 1)), 8, "table_proxies"),
        (grpc(SESSION), requests(vec![hello("proxy-x")]), 8, "table_proxies"),
        // The response to the message has the refusal, and the session continues.
        (grpc(SESSION), requests(vec![hello("proxy-1"), up]), 0, "table_routes"),
    ] {
        let before = refused(&server.stats().await, reason);
        let path = request.uri().path().to_owned();
        let headers = call(&mut raw, request, body).await;
        assert_eq!(headers["grpc-status"], *code.to_string(), "{path}: {headers:?}");
        assert_eq!(refused(&server.stats().await, reason), before + 1, "{path}: {reason}");
        let delay = delay(reason).filter(|_| code != 0);
        assert_eq!(retry_delay(&headers), delay, "{path}: {headers:?}");
    }
    let stats = server.stats().await;
    let total: u64 = stats.refusals.iter().map(|refusals| refusals.count).sum();
    assert_eq!(total, 10, "{stats:?}");

    let addr = server.addr.to_string();
    let table = tokio::task::spawn_blocking(move || stdout(&run(&["stats", "--addr", &addr]))).await;
    let table = table.unwrap();
    let line = |name: &str| table.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    assert_eq!(line("refusals  "), Some("10"), "{table}");
    assert_eq!(line("refusals: message_size"), Some("4"), "{table}");
    let addr = server.addr.to_string();
    let json = move || stdout(&run(&["stats", "--format", "json", "--addr", &addr]));
    let json = tokio::task::spawn_blocking(json).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let expected = serde_json::json!({
        "message_size": 4, "metadata_size": 1, "reply_size": 1, "table_proxies": 2, "table_routes": 2,
    });
    assert_eq!(json["refusals"], expected);
}

#[tokio::test]
async fn a_connection_has_all_its_watches_whatever_other_calls_it_has() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    // Calls whose requests do not arrive.
    let mut calls = Vec::new();
    for _ in 0..limits::MAX_WATCHES_PER_CONNECTION {
        calls.push(raw.open(ADD).await);
    }
    let mut watches = Vec::new();
    for _ in 0..limits::MAX_WATCHES_PER_CONNECTION {
        let (response, mut stream) = raw.open(WATCH).await;
        stream.send_data(framed(&[]).into(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.headers().get("grpc-status"), None, "{} watches", watches.len());
        watches.push(response);
    }
    let headers = call(&mut raw, grpc(WATCH), framed(&[])).await;
    assert_eq!(headers["grpc-status"], "8");
    assert_eq!(retry_delay(&headers), Some(Duration::from_secs(10)));
    assert_eq!(refused(&server.stats().await, "connection_watches"), 1);
    watches.pop();
    raw.settle().await;
    let (response, mut stream) = raw.open(WATCH).await;
    stream.send_data(framed(&[]).into(), true).unwrap();
    assert_eq!(response.await.unwrap().headers().get("grpc-status"), None);
}

/// If the budget has no room for the messages of a watch, the watch ends with the refusal in its trailers. A call gets
/// the refusal in its first headers.
#[tokio::test]
async fn a_stream_that_ends_for_lack_of_memory_has_a_retry_delay() {
    let limits = Limits {
        memory: 2 << 20,
        ..Limits::default()
    };
    let server = Running::with(RouteTable::new(), limits).await;
    let mut raw = Raw::connect(server.addr).await;
    let (response, mut stream) = raw.open(WATCH).await;
    stream.send_data(framed(&[]).into(), true).unwrap();
    let watch = response.await.unwrap();
    // Requests that announce a message, and never send it, take all the memory of the connection.
    let begun = [&[0][..], &60_000_u32.to_be_bytes(), &[7]].concat();
    let mut calls = Vec::new();
    for _ in 0..100 {
        let (response, mut stream) = raw.open(ADD).await;
        stream.send_data(begun.clone().into(), false).unwrap();
        calls.push((response, stream));
    }
    let (refused_call, _stream) = calls.pop().unwrap();
    let refused_call = refused_call.await.unwrap();
    assert_eq!(refused_call.headers()["grpc-status"], "8");
    assert_eq!(retry_delay(refused_call.headers()), Some(Duration::from_secs(1)));

    let proxy = server.table.register_proxy(&nodetracker::Proxy {
        id: "proxy-1",
        cluster_name: "cluster",
        addr: "proxy:1",
    });
    let proxy = proxy.unwrap();
    for number in 0..1000 {
        let node = format!("{number:0>200}");
        server.table.add_node(&node.parse().unwrap(), proxy).unwrap();
    }
    let mut body = watch.into_body();
    while let Some(data) = body.data().await {
        let len = data.unwrap().len();
        body.flow_control().release_capacity(len).unwrap();
    }
    let trailers = body.trailers().await.unwrap().unwrap();
    assert_eq!(trailers["grpc-status"], "8");
    assert_eq!(retry_delay(&trailers), Some(Duration::from_secs(1)));
}
