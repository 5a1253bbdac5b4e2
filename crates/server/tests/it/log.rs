//! The log: clients cannot fill it, lines name the client, and an unread log stops nothing.

use std::io::{self, Write};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Process, nodetracker, run, stderr};

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
    let mut server = Process::serve(&["--log-filter", "nodetracker=debug"]);
    let mut client = TcpStream::connect(server.addr).await.unwrap();
    client
        .write_all(b"GET / HTTP/1.1\r\nHost: tracker\r\n\r\n")
        .await
        .unwrap();
    let log = server.logged("did not begin with HTTP/2");
    let line = log.lines().next_back().unwrap();
    assert!(line.contains(&client.local_addr().unwrap().to_string()), "{line}");
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
