//! A server with little address space, as under `ulimit -v`, during floods that need more than all of it.

use std::net::SocketAddr;
use std::process::Command;

use bytes::Bytes;
use h2::SendStream;
use h2::client::ResponseFuture;
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use nodetracker_server::limits::MAX_CONCURRENT_STREAMS;
use prost::Message;
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Process, Raw, channel, framed, grpc, refused};

/// In the unit of `ulimit -v`.
const KIBIBYTES: usize = 1 << 20;
const NODES: usize = 1_000;
/// The addresses of the attackers, whose shares together are all of the memory.
const ADDRESSES: u8 = 4;
const CONNECTIONS: usize = 12;

const ADD_NODES: &str = "/nodetracker.v1.RouteService/AddNodes";
const GET_PROXIES: &str = "/nodetracker.v1.RouteService/BatchGetProxies";

/// Connects from a loopback address of its own.
async fn connect_from(address: u8, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 1, address], 0).into()).unwrap();
    socket.connect(server).await.unwrap()
}

fn nodes(count: usize) -> v1::NodeIds {
    v1::NodeIds {
        uuids: (1..=count as u128).flat_map(u128::to_be_bytes).collect(),
        names: vec![],
    }
}

/// Begins as many of these calls as the server lets the client begin, at most `calls`. Reads no reply.
async fn begin(
    raw: &mut Raw,
    path: &str,
    calls: usize,
    body: &[u8],
    ends: bool,
) -> Vec<(ResponseFuture, SendStream<Bytes>)> {
    let mut begun = Vec::new();
    for _ in 0..calls {
        let Ok(requests) = raw.requests.clone().ready().await else {
            break;
        };
        raw.requests = requests;
        let Ok((response, mut stream)) = raw.requests.send_request(grpc(path), false) else {
            break;
        };
        // An error means that the server has refused the call.
        let _ = stream.send_data(body.to_vec().into(), ends);
        begun.push((response, stream));
    }
    begun
}

#[tokio::test]
async fn a_server_with_little_address_space_outlives_floods() {
    let script = format!("ulimit -v {KIBIBYTES} && exec \"$0\" serve --listen-addr 127.0.0.1:0");
    let mut command = Command::new("sh");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_nodetracker")]);
    let server = Process::spawn(command);
    let neighbour = channel(server.addr).await;
    let mut routes = RouteServiceClient::new(neighbour.clone());
    let mut admin = AdminServiceClient::new(neighbour);
    let add = v1::AddNodesRequest {
        nodes: Some(nodes(NODES)),
        proxy: Some(v1::Proxy {
            proxy_id: "proxy-1".into(),
            cluster_name: "cluster".into(),
            addr: "proxy:1".into(),
        }),
    };
    routes.add_nodes(add.clone()).await.unwrap();

    // The header announces a message of 200 kB, and only its first byte arrives.
    let announced = [&[0][..], &200_000_u32.to_be_bytes(), &[7]].concat();
    let get = v1::BatchGetProxiesRequest {
        nodes: Some(nodes(NODES)),
    };
    // As many of these requests as fit into the window of a connection; the replies stay unread.
    let asked = framed(&get.encode_to_vec());
    let mut held = Vec::new();
    for connection in 0..CONNECTIONS {
        for address in 1..=ADDRESSES {
            let stream = connect_from(address, server.addr).await;
            // A connection for which there is no memory ends.
            let Ok(mut raw) = Raw::try_over(stream).await else {
                continue;
            };
            let calls = match connection % 2 {
                0 => begin(&mut raw, ADD_NODES, MAX_CONCURRENT_STREAMS as usize, &announced, false).await,
                _ => begin(&mut raw, GET_PROXIES, 60_000 / asked.len(), &asked, true).await,
            };
            held.push((raw, calls));
        }
        routes.add_nodes(add.clone()).await.unwrap();
    }
    // The calls of the flood wait for their turns before they are looked at.
    let stats = loop {
        let stats = admin.stats(v1::StatsRequest {}).await.unwrap().into_inner();
        let reasons = ["connection_memory", "address_memory", "client_memory"];
        if reasons.map(|reason| refused(&stats, reason)).iter().sum::<u64>() > 1_000 {
            break stats;
        }
    };
    assert!(
        stats.client_memory_bytes <= 2 * stats.client_memory_limit_bytes,
        "{stats:?}"
    );
    assert_eq!((stats.node_count, stats.route_count), (NODES as u64, NODES as u64));
    let found = routes.batch_get_proxies(get).await.unwrap().into_inner();
    assert!(found.nodes.iter().all(|node| node.routes.len() == 1));
    drop(held);
}
