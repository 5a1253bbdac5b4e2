//! The attacks. Each attack runs in its own process until the process is killed.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use nodetracker::MAX_ROUTES_PER_NODE;
use nodetracker_proto::v1::session_request::Request as SessionMessage;
use nodetracker_proto::v1::watch_response::Message as WatchMessage;
use nodetracker_proto::{api, v1};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};
use tonic::transport::Endpoint;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use uuid::Uuid;

use crate::client::role::say;
use crate::client::wire::{
    ADD, ADD_NODES, BATCH, Client, GET, HEALTH_WATCH, LIST, Messages, REFLECTION, SESSION, WATCH, ask, call, connect,
    connect_from, connect_with, framed, open, request, routes, source,
};
use crate::client::{Failure, KEEP_ALIVE, Session, node, node_ids};

/// The nodes of the table under attack, by number.
pub(crate) const NODES: u32 = 100_000;
/// The address of the attackers. The neighbour has another address, and so its own share of every limit.
const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
/// The first nodes of the table have 64 routes each.
const HEAVY: u32 = 1_000;

/// The server's options during [`EXPIRY`]: a short keep-alive interval, and no brake that holds expiry.
pub(crate) const EXPIRING: &[&str] = &[KEEP_ALIVE, "20s", "--expiry-brake-percent", "100"];

/// The attack that needs a server with the options [`EXPIRING`].
pub(crate) const EXPIRY: &str = "expiry";

/// The attacks on watches. Ten watches of all nodes are open during these attacks.
pub(crate) const ON_WATCHES: [&str; 3] = ["flaps", "moves", EXPIRY];

/// The rows without an attack. [`BUSY`] shows how much the neighbour waits for a core that other processes use,
/// although these processes have the lowest priority, and the server has no work for them.
pub(crate) const CONTROLS: [&str; 2] = ["nothing", BUSY];
const BUSY: &str = "busy";

/// The attacks: a name and a description.
pub(crate) const ATTACKS: &[(&str, &str)] = &[
    ("nothing", "no attack, for comparison"),
    (
        BUSY,
        "no attack: a thread for each core computes, at the attackers' priority",
    ),
    (
        "refused-batches-10",
        "10 connections, 4 batches each of 4,096 times one node with 64 routes",
    ),
    ("refused-batches-100", "the same with 100 connections"),
    ("refused-batches-400", "the same with 400 connections"),
    (
        "refused-batches-mixed",
        "100 connections, 4 batches each, in which 7 unknown nodes precede each 125 times the node with 64 routes",
    ),
    (
        "large-replies",
        "100 connections, 256 batches each, replies of 3 MB, none is read",
    ),
    (
        "lists",
        "100 connections list nodes with 64 routes, 4 pages each at a time",
    ),
    (
        "lists-filtered",
        "100 connections list the nodes of a proxy that has one node in a hundred, 4 pages each at a time",
    ),
    (
        "small-replies",
        "400 connections, 256 look-ups each of a node with 64 routes, no reply is read",
    ),
    ("headers", "400 connections, 256 open calls each with 6 kB of headers"),
    (
        "half-requests",
        "200 connections, 64 batches each of 200 kB without the last byte",
    ),
    (
        "unread-streams",
        "200 connections, 64 health watches, 64 reflection streams and 64 sessions each, 1,000 requests on a stream, \
         no reply is read",
    ),
    ("watches", "10 connections, 200 watches each, none is read"),
    ("adds", "20 connections add 4,096 new nodes at a time"),
    (
        "sessions",
        "400 connections, a session each that adds and removes 2,048 nodes at full speed",
    ),
    ("connections", "2,000 connections that do nothing"),
    ("calls", "400 connections, 64 small calls in flight each"),
    (
        "grown",
        "2,000 connections that once had 256 calls in flight, and then do nothing",
    ),
    ("flaps", "a session adds and removes 2,000 nodes of one shard"),
    (
        "moves",
        "a proxy with 1,000 nodes alternates its address, 16 calls in flight",
    ),
    (EXPIRY, "1,000,000 routes expire at once, with a keep-alive of 20 s"),
];

fn proxy(number: u32) -> Option<v1::Proxy> {
    Some(v1::Proxy {
        proxy_id: format!("proxy-{number}-{}", "x".repeat(200)),
        cluster_name: "main".into(),
        addr: format!("{}.example:3080", "y".repeat(200)),
    })
}

fn nodes(numbers: impl Iterator<Item = u32>) -> Option<v1::NodeIds> {
    Some(node_ids(numbers.map(node)))
}

/// Adds some nodes through one proxy, or refreshes them.
pub(crate) async fn add(addr: &str, numbers: Range<u32>) -> Result<(), Failure> {
    let mut client = connect(addr).await?;
    for first in numbers.clone().step_by(4_000) {
        let request = v1::AddNodesRequest {
            nodes: nodes(first..numbers.end.min(first + 4_000)),
            proxy: proxy(0),
        };
        call(&mut client, ADD_NODES, &request).await?;
    }
    Ok(())
}

/// Adds the nodes, or refreshes them.
pub(crate) async fn fill(addr: &str) -> Result<(), Failure> {
    add(addr, 0..NODES).await?;
    let mut client = connect(addr).await?;
    for number in 0..MAX_ROUTES_PER_NODE as u32 {
        let request = v1::AddNodesRequest {
            nodes: nodes(0..HEAVY),
            proxy: proxy(number),
        };
        call(&mut client, ADD_NODES, &request).await?;
    }
    Ok(())
}

/// Reports whether all nodes have routes, and the first nodes 64 routes each.
pub(crate) async fn is_intact(addr: &str) -> Result<bool, Failure> {
    let mut client = connect(addr).await?;
    // A reply has room for as many nodes with 64 routes.
    for first in (0..NODES).step_by(1_000) {
        let part = first..NODES.min(first + 1_000);
        let request = v1::BatchGetProxiesRequest {
            nodes: nodes(part.clone()),
        };
        let reply: v1::BatchGetProxiesResponse = ask(&mut client, BATCH, &request).await?;
        let has_routes = |(number, node): (u32, &v1::NodeRoutes)| {
            let least = if number < HEAVY { MAX_ROUTES_PER_NODE } else { 1 };
            node.routes.len() >= least
        };
        if reply.nodes.len() != part.len() || !part.zip(&reply.nodes).all(has_routes) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Attacks until the process is killed. Prints "on" when the attack has begun, and "off" if the attack ends.
pub(crate) async fn attack(name: &str, addr: &str) -> Result<(), Failure> {
    connect_from(ATTACKER);
    match name {
        "flaps" => loop {
            // If the server refuses or ends the session, another session begins.
            let ended = flap(addr).await;
            eprintln!("{ended:?}");
            sleep(Duration::from_millis(100)).await;
        },
        EXPIRY => return expire(addr).await,
        BUSY => {
            for _ in 0..std::thread::available_parallelism()?.get() {
                std::thread::spawn(|| {
                    loop {
                        std::hint::spin_loop();
                    }
                });
            }
        }
        _ => {}
    }
    let connections = match name {
        "moves" => 1,
        "refused-batches-10" | "watches" => 10,
        "adds" => 20,
        "half-requests" | "unread-streams" => 200,
        "refused-batches-400" | "small-replies" | "headers" | "calls" | "sessions" => 400,
        "connections" | "grown" => 2_000,
        "nothing" | BUSY => 0,
        _ => 100,
    };
    for number in 0..connections {
        let (name, addr) = (name.to_owned(), addr.to_owned());
        tokio::task::spawn_local(async move {
            loop {
                // If the server closes the connection, the attacker opens another.
                let _ = attacker(&name, &addr, number).await;
                sleep(Duration::from_millis(100)).await;
            }
        });
    }
    // The attackers connect first.
    sleep(Duration::from_secs(1)).await;
    say("on");
    std::future::pending().await
}

async fn session(addr: &str, number: u32) -> Result<Session, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))?.local_address(source());
    let channel = endpoint.connect().await?;
    Session::begin(channel, number).await
}

/// Finds 2,000 nodes of one shard, and then adds and removes them at full speed.
async fn flap(addr: &str) -> Result<(), Failure> {
    const ADDED: u32 = 400_000;
    const FLAPPING: usize = 2_000;
    let first = 2_000_000_000;
    let mut all = session(addr, 5_000).await?;
    let added: Vec<_> = (first..first + ADDED).map(node).collect();
    all.announce(&added).await?;
    // Other nodes stay as they are: a further route of a node with 64 routes displaces a route.
    let added: HashSet<_> = added.into_iter().collect();
    let mut shards: HashMap<u32, Vec<Uuid>> = HashMap::new();
    let mut client = connect(addr).await?;
    let mut messages = Messages::begin(&mut client, WATCH, &v1::WatchRequest::default()).await?;
    while let Some(message) = messages.next().await? {
        match v1::WatchResponse::decode(message.as_slice())?.message {
            Some(WatchMessage::Snapshot(snapshot)) => {
                let ids = snapshot.nodes.iter().filter_map(|node| node.node.as_ref()?.id.as_ref());
                let uuids = ids.filter_map(|id| match id {
                    v1::node_id::Id::Uuid(bytes) => Uuid::from_slice(bytes).ok(),
                    v1::node_id::Id::Name(_) => None,
                });
                let flapping = uuids.filter(|uuid| added.contains(uuid));
                shards.entry(snapshot.part).or_default().extend(flapping);
            }
            Some(WatchMessage::SnapshotEnd(_)) => break,
            _ => {}
        }
    }
    drop((messages, client));
    let largest = shards
        .values()
        .max_by_key(|nodes| nodes.len())
        .ok_or("an empty table")?;
    let flapping = largest.get(..FLAPPING).ok_or("no shard has so many nodes")?;
    let mut session = session(addr, 5_001).await?;
    say("on");
    loop {
        session.announce(flapping).await?;
        session.withdraw(flapping).await?;
    }
}

/// Adds a million nodes at once. Reports when the nodes begin to expire, and when all have expired.
async fn expire(addr: &str) -> Result<(), Failure> {
    let mut client = connect(addr).await?;
    let before = routes(&mut client).await?;
    let first = 1_000_000_000;
    for number in 0..10 {
        let mut session = session(addr, 6_000 + number).await?;
        let added: Vec<_> = (0..100_000)
            .map(|node| first + number * 100_000 + node)
            .map(node)
            .collect();
        session.announce(&added).await?;
    }
    let full = before + 1_000_000;
    let mut is_on = false;
    loop {
        sleep(Duration::from_millis(20)).await;
        let routes = routes(&mut client).await?;
        // Probes of the watches and other nodes are added and removed meanwhile.
        if !is_on && routes + 1_000 < full {
            is_on = true;
            say("on");
        }
        if is_on && routes < before + 1_000 {
            say("off");
            return std::future::pending().await;
        }
    }
}

/// One connection of an attack.
async fn attacker(name: &str, addr: &str, number: u32) -> Result<(), Failure> {
    if name == "connections" {
        let mut stream = open(addr).await?;
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await?;
        let _ = stream.read_to_end(&mut Vec::new()).await;
        return Ok(());
    }
    if name == "sessions" {
        const NODES_EACH: u32 = 2_048;
        let mut session = session(addr, 8_000 + number).await?;
        let first = NODES + number * NODES_EACH;
        let own: Vec<_> = (first..first + NODES_EACH).map(node).collect();
        loop {
            session.announce(&own).await?;
            session.withdraw(&own).await?;
        }
    }
    if name == "unread-streams" {
        return unread_streams(addr, number).await;
    }
    let client = connect(addr).await?;
    let heavy = v1::BatchGetProxiesRequest {
        nodes: nodes(std::iter::repeat_n(0, 4_096)),
    };
    let third = v1::BatchGetProxiesRequest {
        nodes: nodes(std::iter::repeat_n(0, 1_600)),
    };
    // As many unknown nodes as the server reads in the first turn, and as many nodes as it would read in the next turn.
    let mixed = v1::BatchGetProxiesRequest {
        nodes: nodes((0..4_096).map(|at| if at % 132 < 7 { u32::MAX } else { 0 })),
    };
    let get = api::GetProxiesRequest {
        node_id: "neighbour".into(),
    };
    match name {
        "refused-batches-10" | "refused-batches-100" | "refused-batches-400" => {
            in_flight(client, 4, async |mut client| {
                call(&mut client, BATCH, &heavy).await.map(drop)
            })
            .await
        }
        "refused-batches-mixed" => {
            in_flight(client, 4, async |mut client| {
                call(&mut client, BATCH, &mixed).await.map(drop)
            })
            .await
        }
        "lists" | "lists-filtered" => {
            let last = proxy(MAX_ROUTES_PER_NODE as u32 - 1).unwrap_or_default();
            let list = v1::ListNodesRequest {
                page_size: 1_000,
                proxy_id: if name == "lists" { String::new() } else { last.proxy_id },
                ..Default::default()
            };
            in_flight(client, 4, async |mut client| {
                call(&mut client, LIST, &list).await.map(drop)
            })
            .await
        }
        "calls" => {
            in_flight(client, 64, async |mut client| {
                call(&mut client, GET, &get).await.map(drop)
            })
            .await
        }
        "grown" => {
            grow(&client, &get).await?;
            // Wait until the server closes the connection. Then `ready` fails.
            loop {
                sleep(Duration::from_secs(5)).await;
                client.clone().ready().await?;
            }
        }
        "moves" => {
            let mut moving = proxy(7_000).unwrap_or_default();
            let add = v1::AddNodesRequest {
                nodes: nodes(1_500_000_000..1_500_001_000),
                proxy: Some(moving.clone()),
            };
            call(&mut client.clone(), ADD_NODES, &add).await?;
            let moves = [0, 1].map(|address| {
                moving.addr = format!("address-{address}:3080");
                api::AddNodeRequest {
                    node_id: node(1_500_000_000).to_string(),
                    proxy_id: moving.proxy_id.clone(),
                    cluster_name: moving.cluster_name.clone(),
                    addr: moving.addr.clone(),
                }
            });
            in_flight(client, 16, async |mut client| {
                call(&mut client, ADD, &moves[0]).await?;
                call(&mut client, ADD, &moves[1]).await.map(drop)
            })
            .await
        }
        "adds" => {
            let mut client = client;
            for round in 0.. {
                let first = NODES + number * 10_000_000 + round * 4_096;
                let add = v1::AddNodesRequest {
                    nodes: nodes(first..first + 4_096),
                    proxy: proxy(1_000 + number),
                };
                // The server refuses calls when the table is full. If the connection ends, another begins.
                if let Err(error) = call(&mut client, ADD_NODES, &add).await
                    && error.is::<h2::Error>()
                {
                    return Err(error);
                }
            }
            Ok(())
        }
        "large-replies" => unread(client, 256, request(BATCH), framed(&third), true).await,
        "small-replies" => {
            let heavy = v1::GetProxiesRequest {
                node: Some(v1::NodeId {
                    id: Some(v1::node_id::Id::Uuid(node(0).into_bytes().to_vec())),
                }),
            };
            let path = "/nodetracker.v1.RouteService/GetProxies";
            unread(client, 256, request(path), framed(&heavy), true).await
        }
        "watches" => unread(client, 200, request(WATCH), framed(&v1::WatchRequest::default()), true).await,
        "headers" => {
            let request = request(ADD).header("x-filler", "f".repeat(6_000));
            unread(client, 256, request, Bytes::new(), false).await
        }
        "half-requests" => {
            let add = v1::AddNodesRequest {
                nodes: Some(v1::NodeIds {
                    uuids: Vec::new(),
                    names: (0..4_000).map(|name| format!("{name:050}")).collect(),
                }),
                proxy: proxy(1),
            };
            let whole = framed(&add);
            unread(client, 64, request(ADD_NODES), whole.slice(..whole.len() - 1), false).await
        }
        _ => Err("unknown attack".into()),
    }
}

/// Sends many requests on streams whose replies have no window.
async fn unread_streams(addr: &str, number: u32) -> Result<(), Failure> {
    const STREAMS: usize = 64;
    const REQUESTS: usize = 1_000;
    let client = connect_with(addr, 0).await?;
    let list = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let list = framed(&list).repeat(REQUESTS).into();
    // A health watch takes one request: the default message.
    let health = unread(
        client.clone(),
        STREAMS,
        request(HEALTH_WATCH),
        Bytes::from_static(&[0; 5]),
        true,
    );
    let reflection = unread(client.clone(), STREAMS, request(REFLECTION), list, false);
    let sessions = (0..STREAMS as u32).map(|session| {
        let message = |request| {
            framed(&v1::SessionRequest {
                sequence: 0,
                request: Some(request),
            })
        };
        let hello = message(SessionMessage::Hello(v1::SessionHello {
            proxy: proxy(10_000 + number * STREAMS as u32 + session),
            incarnation: 1,
            ..Default::default()
        }));
        let heartbeats = message(SessionMessage::Heartbeat(v1::SessionHeartbeat::default())).repeat(REQUESTS);
        let body = [hello, heartbeats.into()].concat().into();
        unread(client.clone(), 1, request(SESSION), body, false)
    });
    tokio::try_join!(health, reflection, futures_util::future::try_join_all(sessions))?;
    Ok(())
}

/// Makes 256 calls at one time, and waits for their replies.
pub(crate) async fn grow(client: &Client, message: &impl Message) -> Result<(), Failure> {
    let calls = (0..256).map(|_| async { call(&mut client.clone(), GET, message).await.map(drop) });
    futures_util::future::try_join_all(calls).await.map(drop)
}

/// Keeps a number of calls in flight. Repeats calls that fail.
async fn in_flight(
    client: Client,
    calls: usize,
    one: impl AsyncFn(Client) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let calls = (0..calls).map(|_| async {
        loop {
            if one(client.clone()).await.is_err_and(|error| error.is::<h2::Error>()) {
                return;
            }
        }
    });
    futures_util::future::join_all(calls).await;
    Ok(())
}

/// Makes calls and reads no reply, until the connection is closed. Repeats calls that the server refuses.
async fn unread(
    client: Client,
    calls: usize,
    request: http::request::Builder,
    body: Bytes,
    ends: bool,
) -> Result<(), Failure> {
    let request = request.body(())?;
    let calls = (0..calls).map(|_| async {
        loop {
            let mut client = client.clone().ready().await?;
            let (response, mut stream) = client.send_request(request.clone(), false)?;
            stream.send_data(body.clone(), ends)?;
            let mut response = response.await?;
            if response.headers().contains_key("grpc-status") {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
            // This may read the first frame, but releases no flow-control window.
            let _ = timeout(Duration::from_secs(60), std::future::pending::<()>()).await;
            let _ = response.body_mut();
        }
        #[allow(unreachable_code, reason = "gives the block its type")]
        Ok::<(), Failure>(())
    });
    futures_util::future::join_all(calls).await;
    Ok(())
}
