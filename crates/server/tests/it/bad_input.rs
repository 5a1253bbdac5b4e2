//! Invalid requests: the status is right, nothing is stored, and the next call is served.

use nodetracker::RouteTable;
use nodetracker_proto::api;
use nodetracker_server::limits::MAX_MESSAGE_SIZE;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::Code;

use crate::support::{ADD, Ended, Raw, Running, add, ended, framed, grpc, proxies};

/// A method of each service that takes its requests in a way of its own.
const OF_EACH_KIND: [&str; 5] = [
    ADD,
    "/nodetracker.v1.RouteService/BatchGetProxies",
    "/nodetracker.v1.AdminService/Stats",
    "/nodetracker.v1.WatchService/Watch",
    "/nodetracker.v1.SessionService/Session",
];

#[tokio::test]
async fn bad_fields_are_named_as_on_the_wire() {
    let server = Running::start().await;
    let mut client = server.client().await;
    let long = "x".repeat(256);
    let with = |change: &dyn Fn(&mut api::AddNodeRequest)| {
        let mut request = add("node-1", "proxy-1", "proxy:1");
        change(&mut request);
        request
    };
    for (request, message) in [
        (with(&|r| r.node_id.clear()), "node_id is empty"),
        (
            with(&|r| r.node_id = long.clone()),
            "node_id is 256 bytes long, the limit is 255",
        ),
        (
            with(&|r| r.node_id = "a\nb".into()),
            "node_id has the control character '\\n' at byte 1",
        ),
        (with(&|r| r.proxy_id.clear()), "proxy_id is empty"),
        (
            with(&|r| r.proxy_id = long.clone()),
            "proxy_id is 256 bytes long, the limit is 255",
        ),
        (
            with(&|r| r.proxy_id = "\0".into()),
            "proxy_id has the control character '\\0' at byte 0",
        ),
        (
            with(&|r| r.cluster_name = long.clone()),
            "cluster_name is 256 bytes long, the limit is 255",
        ),
        (
            with(&|r| r.cluster_name = "ab\u{7f}".into()),
            "cluster_name has the control character '\\u{7f}' at byte 2",
        ),
        (with(&|r| r.addr.clear()), "addr is empty"),
        (
            with(&|r| r.addr = format!("{long}:1")),
            "addr is 258 bytes long, the limit is 255",
        ),
        (
            with(&|r| r.addr = "a\t:1".into()),
            "addr has the control character '\\t' at byte 1",
        ),
        (with(&|r| r.addr = "proxy".into()), "addr is not host:port"),
        (with(&|r| r.addr = "proxy:port".into()), "addr is not host:port"),
        (with(&|r| r.addr = ":1".into()), "addr is not host:port"),
        (with(&|r| r.addr = "proxy:65536".into()), "addr is not host:port"),
        (with(&|r| r.addr = "proxy:0".into()), "addr is not host:port"),
        (
            with(&|r| r.addr = "0.0.0.0:3080".into()),
            "addr has an unspecified address, which no proxy can dial",
        ),
        (
            with(&|r| r.addr = "[::]:3080".into()),
            "addr has an unspecified address, which no proxy can dial",
        ),
        (
            with(&|r| r.addr = "*:3080".into()),
            "addr has the character '*' at byte 0, which no host has",
        ),
        (
            with(&|r| r.addr = "prox\u{200b}y:3080".into()),
            "addr has the character '\\u{200b}' at byte 4, which no host has",
        ),
    ] {
        let status = client.add_node(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, message));
    }
    for node_id in ["", long.as_str()] {
        let status = client
            .get_proxies(api::GetProxiesRequest {
                node_id: node_id.into(),
            })
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("node_id is "), "{}", status.message());
        let status = client
            .remove_node(api::RemoveNodeRequest {
                node_id: node_id.into(),
            })
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("node_id is "), "{}", status.message());
    }
    let stats = server.table.stats();
    assert_eq!((stats.routes, stats.proxies), (0, 0));

    let largest = "x".repeat(255);
    client
        .add_node(add(&largest, &largest, &format!("{}:1", "x".repeat(253))))
        .await
        .unwrap();
    assert_eq!(proxies(&mut client, &largest).await, [largest.as_str()]);
}

#[tokio::test]
async fn a_full_table_is_resource_exhausted() {
    let server = Running::with_table(
        RouteTable::builder()
            .max_routes(1)
            .max_proxies(1)
            .build()
            .expect("possible limits"),
    )
    .await;
    let mut client = server.client().await;
    client.add_node(add("node-1", "proxy-1", "proxy:1")).await.unwrap();
    let status = client.add_node(add("node-2", "proxy-1", "proxy:1")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "the table holds its maximum of 1 routes");
    let status = client.add_node(add("node-1", "proxy-2", "proxy:1")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        status.message(),
        "the table has no room for another proxy: it holds up to 1, and removed proxies until they are swept"
    );
    // A refresh needs no free place.
    client.add_node(add("node-1", "proxy-1", "proxy:1")).await.unwrap();
    assert_eq!(server.table.len(), 1);
}

#[tokio::test]
async fn broken_messages_get_a_status() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;

    let not_protobuf = raw.call(ADD, framed(&[0xff; 20])).await;
    assert_eq!(not_protobuf.grpc, Some(Code::Internal as i32), "{not_protobuf:?}");
    let not_utf8 = raw.call(ADD, framed(&[0x0a, 2, 0xc3, 0x28])).await;
    assert_eq!(not_utf8.grpc, Some(Code::Internal as i32), "{not_utf8:?}");

    let mut cut_short = framed(&[0; 100]);
    cut_short.truncate(50);
    let cut_short = raw.call(ADD, cut_short).await;
    assert_eq!(cut_short.grpc, Some(Code::Internal as i32), "{cut_short:?}");
    let no_message = raw.call(ADD, Vec::new()).await;
    assert_eq!(no_message.grpc, Some(Code::Unimplemented as i32), "{no_message:?}");

    let oversized = raw.call(ADD, framed(&vec![0; MAX_MESSAGE_SIZE + 1])).await;
    assert_eq!(oversized.grpc, Some(Code::ResourceExhausted as i32), "{oversized:?}");
    let mut compressed = framed(&[0; 100]);
    compressed[0] = 1;
    let compressed = raw.call(ADD, compressed).await;
    assert_eq!(compressed.grpc, Some(Code::Internal as i32), "{compressed:?}");

    // The same connection serves further calls.
    let node = get_request("node-1");
    assert_eq!(
        raw.call("/api.NodeTrackerService/GetProxies", framed(&node)).await.grpc,
        Some(0)
    );
    assert!(server.table.is_empty());
    assert_eq!(server.table.stats().proxies, 0);
    server.assert_serves().await;
}

/// A `GetProxiesRequest` as bytes: field 1, a string.
fn get_request(node: &str) -> Vec<u8> {
    let mut message = vec![0x0a, u8::try_from(node.len()).unwrap()];
    message.extend(node.as_bytes());
    message
}

#[tokio::test]
async fn unknown_services_and_methods_are_unimplemented() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for (path, message) in [
        (
            "/api.NodeTrackerService/Add",
            "service api.NodeTrackerService has no method \"Add\"",
        ),
        (
            "/api.NodeTrackerService/",
            "service api.NodeTrackerService has no method \"\"",
        ),
        (
            "/api.NodeTrackerService/AddNode/",
            "service api.NodeTrackerService has no method \"AddNode/\"",
        ),
        ("/api.Other/AddNode", "there is no service \"api.Other\""),
        ("/", "there is no service \"/\""),
    ] {
        let unimplemented = Ended {
            http: 200,
            grpc: Some(Code::Unimplemented as i32),
            message: message.into(),
        };
        assert_eq!(raw.call(path, framed(&[])).await, unimplemented, "{path}");
    }
    // The message repeats only the first 100 bytes of a name.
    let long = raw.call(&format!("/{}/Method", "x".repeat(4000)), framed(&[])).await;
    assert_eq!(long.message.len(), "there is no service \"\"".len() + 100);
    server.assert_serves().await;
}

#[tokio::test]
async fn http2_without_grpc_gets_an_http_status() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    let mut get = grpc(ADD);
    *get.method_mut() = http::Method::GET;
    let mut json = grpc(ADD);
    json.headers_mut()
        .insert("content-type", "application/json".parse().unwrap());
    let mut web = grpc(ADD);
    web.headers_mut()
        .insert("content-type", "application/grpc-web".parse().unwrap());
    for (request, status) in [(get, 405), (json, 415), (web, 415)] {
        raw.requests = raw.requests.clone().ready().await.unwrap();
        let (response, _) = raw.requests.send_request(request, true).unwrap();
        assert_eq!(
            ended(response).await,
            Ended {
                http: status,
                grpc: None,
                message: String::new()
            }
        );
    }
    server.assert_serves().await;
}

#[tokio::test]
async fn what_says_that_it_is_compressed_is_unimplemented() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for path in OF_EACH_KIND {
        for (encoding, flag, code) in [("gzip", 1, Code::Unimplemented), ("identity", 1, Code::Internal)] {
            let mut request = grpc(path);
            request.headers_mut().insert("grpc-encoding", encoding.parse().unwrap());
            raw.requests = raw.requests.clone().ready().await.unwrap();
            let (response, mut stream) = raw.requests.send_request(request, false).unwrap();
            let mut message = framed(&[0; 100]);
            message[0] = flag;
            let _ = stream.send_data(message.into(), true);
            let response = response.await.unwrap();
            let accepted = response.headers().get("grpc-accept-encoding").cloned();
            let status = crate::support::status(response).await;
            assert_eq!(status.grpc, Some(code as i32), "{path} {encoding}: {status:?}");
            let reported = accepted.is_some_and(|accepted| accepted == "identity");
            assert_eq!(reported, code == Code::Unimplemented, "{path} {encoding}");
        }
    }
    server.assert_serves().await;
}

/// If a length exceeds the limit, the server answers at once: it neither waits for the message nor allocates memory.
#[tokio::test]
async fn a_length_over_the_limit_is_answered_before_the_message_comes() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    for path in OF_EACH_KIND {
        let (response, mut stream) = raw.open(path).await;
        stream.send_data(vec![0, 0xff, 0xff, 0xff, 0xff].into(), false).unwrap();
        let ended = ended(response).await;
        assert_eq!(ended.grpc, Some(Code::ResourceExhausted as i32), "{path}: {ended:?}");
    }
    server.assert_serves().await;
}

/// gRPC's clients send `te` to detect proxies that drop trailers. The server's answer does not depend on `te`.
#[tokio::test]
async fn a_call_without_te_is_served() {
    let server = Running::start().await;
    let mut raw = Raw::connect(server.addr).await;
    let mut request = grpc("/api.NodeTrackerService/GetProxies");
    request.headers_mut().remove("te");
    raw.requests = raw.requests.clone().ready().await.unwrap();
    let (response, mut stream) = raw.requests.send_request(request, false).unwrap();
    stream.send_data(framed(&get_request("node-1")).into(), true).unwrap();
    assert_eq!(ended(response).await.grpc, Some(0));
}

#[tokio::test]
async fn what_is_not_http2_is_hung_up_on() {
    let server = Running::start().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    let long_frame = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    for bytes in [
        b"GET / HTTP/1.1\r\nHost: tracker\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(4),
        vec![0; 1024],
        vec![0xff; 1024],
        [&preface[..], &[0xff; 64]].concat(),
        [&preface[..], &settings, &long_frame].concat(),
    ] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        // The server may send an error first. In any case, it closes the connection, perhaps by a reset.
        let _ = stream.read_to_end(&mut Vec::new()).await;
    }
    // Clients that disconnect in the middle of the preface, of the handshake, or of a frame.
    for bytes in [
        &preface[..10],
        &preface[..],
        &[&preface[..], &settings, &[0, 0, 9, 1]].concat(),
    ] {
        let mut stream = TcpStream::connect(server.addr).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        drop(stream);
    }
    server.assert_serves().await;
}
