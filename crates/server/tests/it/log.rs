//! The log: clients cannot fill it, lines name the client, and an unread log stops nothing.

use std::io::{self, Write};

use nodetracker_proto::v1;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{ADD, Process, Raw, framed, nodetracker, run, stderr};

/// The bytes that a pipe of Linux holds.
const PIPE_SIZE: usize = 64 * 1024;

/// HTTP/2's preface, and an empty SETTINGS frame.
const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn other_crates_do_not_log() {
    const PING_ACK: &[u8] = b"\0\0\x08\x06\x01\0\0\0\0unasked!";
    const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0answered";
    let server = Process::serve(&[]);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    client
        .write_all(&[BEGIN, PING_ACK, PING_ACK, PING].concat())
        .await
        .unwrap();
    // The server has read everything once it answers the ping.
    let mut answers = Vec::new();
    while !answers.windows(8).any(|bytes| bytes == b"answered") {
        assert_ne!(client.read_buf(&mut answers).await.unwrap(), 0);
    }
    drop(client);
    server.signal("TERM");
    let (_, log) = server.wait().await;
    assert!(!log.contains("PING"), "{log}");
}

#[tokio::test]
async fn lines_about_a_connection_name_the_client() {
    let mut server = Process::serve(&["--log-level", "debug"]);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: tracker\r\n\r\n")
        .await
        .unwrap();
    let log = server.logged("did not begin with HTTP/2");
    let line = log.lines().next_back().unwrap();
    assert!(line.contains(&client.local_addr().unwrap().to_string()), "{line}");
}

/// Makes a call that is refused, and returns once the server has replied.
async fn refused_call(server: &Process) {
    let mut raw = Raw::connect(server.addr).await;
    let refused = raw
        .call(ADD, framed(&vec![0; nodetracker_server::limits::MAX_MESSAGE_SIZE + 1]))
        .await;
    assert_eq!(refused.grpc, Some(8), "{refused:?}");
}

/// Returns the sum of the counts in all lines at the level info about a reason.
fn counted(log: &str, reason: &str) -> usize {
    let reason = format!("reason=\"{reason}\" count=");
    let counts = log.lines().filter_map(|line| line.split_once(&reason));
    counts
        .map(|(_, rest)| rest.split(' ').next().unwrap().parse::<usize>().unwrap())
        .sum()
}

#[tokio::test]
async fn a_refusal_is_logged_with_its_reason_and_client_and_a_flood_is_counted() {
    const REFUSALS: usize = 50;
    let mut server = Process::serve(&[]);
    for _ in 0..REFUSALS {
        refused_call(&server).await;
    }
    let mut log = server.logged("refused: ");
    let line = log.lines().next_back().unwrap();
    assert!(
        line.contains(" INFO refused: A request message is too large."),
        "{line}"
    );
    assert!(
        line.contains("reason=\"message_size\" count=1 peer=127.0.0.1:"),
        "{line}"
    );
    server.signal("TERM");
    log += &server.wait().await.1;
    // Few lines, which count every refusal: the last line is due at the stop.
    assert!(log.matches("refused: ").count() <= 4, "{log}");
    assert_eq!(counted(&log, "message_size"), REFUSALS, "{log}");

    // A second signal ends the server at once. The counts are logged nevertheless.
    let mut server = Process::serve(&["--shutdown-delay", "1h"]);
    for _ in 0..REFUSALS {
        refused_call(&server).await;
    }
    server.signal("TERM");
    let mut log = server.logged("NOT_SERVING for");
    server.signal("TERM");
    log += &server.wait().await.1;
    assert_eq!(counted(&log, "message_size"), REFUSALS, "{log}");

    let mut server = Process::serve(&["--log-level", "debug"]);
    refused_call(&server).await;
    refused_call(&server).await;
    let log = server.logged(" DEBUG connection{peer=127.0.0.1:");
    let line = log.lines().find(|line| line.contains(" INFO connection{")).unwrap();
    assert_eq!(line.matches("peer=").count(), 1, "{line}");
}

/// Whatever a client is refused for, the operator finds the reason and the client in the log at the default level.
#[tokio::test]
async fn refusals_of_each_reason_have_a_line_of_their_own() {
    let mut server = Process::serve(&[
        "--max-routes",
        "1000",
        "--max-routes-per-proxy",
        "5000",
        "--max-proxies",
        "1",
        "--max-share-per-client",
        "100",
    ]);
    let mut raw = Raw::connect(server.addr).await;
    let add_nodes = |proxy: &str, nodes: usize| {
        let request = v1::AddNodesRequest {
            proxy: Some(v1::Proxy {
                proxy_id: proxy.into(),
                cluster_name: String::new(),
                addr: "proxy:1".into(),
            }),
            nodes: Some(v1::NodeIds {
                uuids: vec![],
                names: (0..nodes).map(|number| format!("node-{number}")).collect(),
            }),
        };
        framed(&request.encode_to_vec())
    };
    let long = framed(&vec![0; nodetracker_server::limits::MAX_MESSAGE_SIZE + 1]);
    let add_nodes_path = "/nodetracker.v1.RouteService/AddNodes";
    for (path, request, code, reason, text) in [
        (ADD, long, Some(8), "message_size", "A request message is too large."),
        (
            add_nodes_path,
            add_nodes("proxy-1", 2000),
            Some(8),
            "table_routes",
            "The table has its maximum of routes.",
        ),
        (
            add_nodes_path,
            add_nodes("proxy-2", 1),
            Some(8),
            "table_proxies",
            "The table has its maximum of proxies.",
        ),
    ] {
        let refused = raw.call(path, request).await;
        assert_eq!(refused.grpc, code, "{refused:?}");
        let log = server.logged(&format!("reason=\"{reason}\" count=1 peer=127.0.0.1:"));
        let line = log.lines().next_back().unwrap();
        assert!(line.contains(&format!(" INFO refused: {text} ")), "{line}");
    }
}

#[tokio::test]
async fn rust_log_counts_if_nothing_else_sets_the_level() {
    let serve = |rust_log: &str, args: &[&str]| {
        let mut command = nodetracker();
        command.args(["serve", "--listen-addr", "127.0.0.1:0"]).args(args);
        command.env("RUST_LOG", rust_log);
        Process::spawn(command)
    };
    async fn log_of(server: Process) -> String {
        let mut raw = Raw::connect(server.addr).await;
        raw.settle().await;
        drop(raw);
        server.signal("TERM");
        server.wait().await.1
    }
    // A level alone is for all crates.
    let all = log_of(serve("debug", &[])).await;
    assert!(all.contains("received frame=") || all.contains("h2"), "{all}");
    let none = log_of(serve("off", &[])).await;
    assert_eq!(none, "");
    let flag = log_of(serve("off", &["--log-level", "info"])).await;
    assert!(flag.contains("listening on"), "{flag}");
    let bad = log_of(serve("nodetracker=loud", &[])).await;
    assert!(
        bad.contains(" WARN RUST_LOG: \"nodetracker=loud\" is not a filter: "),
        "{bad}"
    );
    assert!(bad.contains(" INFO listening on"), "{bad}");
}

#[test]
fn a_log_that_cannot_be_written_stops_neither_calls_nor_the_server() {
    for stderr_is in ["2>/dev/full", "2>&-"] {
        let mut command = std::process::Command::new("sh");
        let script = format!("exec \"$0\" serve --listen-addr 127.0.0.1:0 --log-level debug {stderr_is}");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_nodetracker")]);
        let mut server = Process::spawn(command);
        let addr = server.addr.to_string();
        for _ in 0..3 {
            let added = run(&["add", "node-1", "proxy-1", "proxy:1", "--addr", &addr]);
            assert!(added.status.success(), "{}", stderr(&added));
        }
        server.signal("TERM");
        assert_eq!(server.exit_code(), Some(0), "{stderr_is}");
    }
}

#[test]
fn an_unread_log_stops_neither_calls_nor_the_server() {
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(&[b'x'; PIPE_SIZE]).unwrap();
    let mut command = nodetracker();
    command.args(["serve", "--listen-addr", "127.0.0.1:0"]);
    let mut server = Process::with_log(command, reader, writer);
    let added = run(&[
        "add",
        "node-1",
        "proxy-1",
        "proxy:1",
        "--addr",
        &server.addr.to_string(),
    ]);
    assert!(added.status.success(), "{}", stderr(&added));
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(0));
}
