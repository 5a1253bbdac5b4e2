//! Measures how much of the server's memory an idle connection, a session and a watch take.
//!
//! ```console
//! $ cargo build --release -p nodetracker-server --bins --examples
//! $ target/release/examples/footprint [--server FILE] [--count N]
//! ```
//!
//! For each kind of client, the program starts a server, and opens some clients so that the server's own memory has
//! settled. Then the program opens many more clients. The printed table has the growth of the server's memory for each
//! of these clients. The kernel's memory for the sockets is not included. The program reads `/proc`, so it needs Linux.
//! The program ends by itself.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Parser;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::{api, v1};
use prost::Message;
use tokio::time::sleep;

use client::attackers::grow;
use client::memory::{Memory, memory};
use client::wire::{ADD_NODES, Client, GET, Messages, SESSION, WATCH, call, connect, framed, request};
use client::{Failure, Server, node, node_ids, proxy};

/// Clients that are opened before the measurement.
const WARM_UP: usize = 200;

/// How long the server has to settle before its memory is read. Its allocator gives memory back after a second or so.
const SETTLING: Duration = Duration::from_secs(3);

/// Calls of one connection that stay open.
const STREAMS: usize = 50;

#[derive(Debug, Parser)]
#[command(about = "Measures the server's memory for each idle connection, session and watch")]
struct Options {
    /// The server's command
    #[arg(long, default_value = "target/release/nodetracker")]
    server: PathBuf,
    /// Clients of each kind; a tenth for the kind with 256 calls
    #[arg(long, default_value_t = 2_000)]
    count: usize,
    /// Only the kinds whose name contains this text
    #[arg(long, default_value = "")]
    only: String,
}

/// The calls of a client after it has connected.
#[derive(Debug, Clone, Copy)]
enum ClientKind {
    Nothing,
    Call,
    ManyCalls,
    Session,
    /// A watch of this many nodes, or of all.
    Watch(Option<u32>),
}

/// A client that stays.
enum Held {
    Connection {
        _client: Client,
    },
    Session {
        _client: Client,
        _requests: h2::SendStream<Bytes>,
        _answers: Messages,
    },
    Watch {
        _client: Client,
        _messages: Messages,
    },
}

/// The rows of the table: a name, the kind of client, and how many clients share a connection.
const ROWS: [(&str, ClientKind, usize); 9] = [
    ("a connection that has made no call", ClientKind::Nothing, 1),
    ("a connection that has made one call", ClientKind::Call, 1),
    ("a connection that once had 256 calls", ClientKind::ManyCalls, 1),
    ("a session with one node, on its own connection", ClientKind::Session, 1),
    (
        "a session with one node, 50 on a connection",
        ClientKind::Session,
        STREAMS,
    ),
    (
        "a watch of all nodes, on its own connection",
        ClientKind::Watch(None),
        1,
    ),
    (
        "a watch of all nodes, 50 on a connection",
        ClientKind::Watch(None),
        STREAMS,
    ),
    (
        "a watch of 1 node, 50 on a connection",
        ClientKind::Watch(Some(1)),
        STREAMS,
    ),
    (
        "a watch of 100 nodes, 50 on a connection",
        ClientKind::Watch(Some(100)),
        STREAMS,
    ),
];

async fn open(client: &mut Client, kind: ClientKind, number: u32) -> Result<Held, Failure> {
    let get = api::GetProxiesRequest {
        node_id: "a node".into(),
    };
    match kind {
        ClientKind::Nothing => {}
        ClientKind::Call => _ = call(client, GET, &get).await?,
        ClientKind::ManyCalls => grow(client, &get).await?,
        ClientKind::Session => return session(client, number).await,
        ClientKind::Watch(nodes) => {
            let request = v1::WatchRequest {
                nodes: nodes.map(|count| node_ids((0..count).map(node))),
                ..v1::WatchRequest::default()
            };
            let mut messages = Messages::begin(client, WATCH, &request).await?;
            messages.next().await?.ok_or("the watch ended")?;
            return Ok(Held::Watch {
                _client: client.clone(),
                _messages: messages,
            });
        }
    }
    Ok(Held::Connection {
        _client: client.clone(),
    })
}

/// Begins a session with one node.
async fn session(client: &mut Client, number: u32) -> Result<Held, Failure> {
    let request_of = |request| v1::SessionRequest {
        sequence: 0,
        request: Some(request),
    };
    let hello = v1::SessionHello {
        proxy: Some(proxy(number)),
        incarnation: 1,
        ..v1::SessionHello::default()
    };
    let up = v1::SessionNodesUp {
        nodes: Some(node_ids(std::iter::once(node(number)))),
    };
    *client = client.clone().ready().await?;
    let (response, mut requests) = client.send_request(request(SESSION).body(())?, false)?;
    requests.send_data(framed(&request_of(Request::Hello(hello))), false)?;
    requests.send_data(framed(&request_of(Request::NodesUp(up))), false)?;
    let mut answers = Messages::of(response.await?)?;
    for _ in 0..2 {
        let answer = answers.next().await?.ok_or("the session ended")?;
        v1::SessionResponse::decode(answer.as_slice())?;
    }
    Ok(Held::Session {
        _client: client.clone(),
        _requests: requests,
        _answers: answers,
    })
}

/// Opens clients, and returns the server's memory afterwards.
async fn open_all(
    server: &Server,
    (kind, streams): (ClientKind, usize),
    numbers: std::ops::Range<usize>,
    held: &mut Vec<Held>,
) -> Result<Memory, Failure> {
    let mut client = None;
    for number in numbers {
        let client = match &mut client {
            Some(client) if number % streams != 0 => client,
            client => client.insert(connect(&server.addr).await?),
        };
        held.push(open(client, kind, number as u32).await?);
    }
    sleep(SETTLING).await;
    memory(server.pid())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    println!("| client | RSS, kB | PSS, kB | of these in huge pages, kB |");
    println!("| --- | --- | --- | --- |");
    for (name, kind, streams) in ROWS.into_iter().filter(|(name, ..)| name.contains(&options.only)) {
        // Connections that once had many calls would take too much memory.
        let count = match kind {
            ClientKind::ManyCalls => options.count / 10,
            _ => options.count,
        };
        let server = Server::start(
            &options.server,
            &["--max-routes", "1000000", "--max-share-per-client", "100"],
        )?;
        let mut client = connect(&server.addr).await?;
        let request = v1::AddNodesRequest {
            nodes: Some(node_ids((0..1_000).map(node))),
            proxy: Some(proxy(1_000_000)),
        };
        call(&mut client, ADD_NODES, &request).await?;
        let mut held = Vec::new();
        let before = open_all(&server, (kind, streams), 0..WARM_UP, &mut held).await?;
        let after = open_all(&server, (kind, streams), WARM_UP..WARM_UP + count, &mut held).await?;
        let each = |before: u64, after: u64| (after as f64 - before as f64) / count as f64;
        println!(
            "| {name} | {:.1} | {:.1} | {:.1} |",
            each(before.rss, after.rss),
            each(before.pss, after.pss),
            each(before.huge, after.huge),
        );
        drop(held);
        server.stop()?;
    }
    Ok(())
}
