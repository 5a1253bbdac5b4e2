//! Quotas: one address cannot use up the share of other addresses.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nodetracker::RouteTable;
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use nodetracker_proto::v1::watch_service_client::WatchServiceClient;
use nodetracker_server::{Config, Limits, limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use crate::slow_clients::PREFACE;
use crate::support::{ADD, Raw, Running, SOON, framed, refused};

/// Too long for a limit to matter.
const LATE: Duration = Duration::from_secs(1000);

const GREEDY: &str = "127.0.0.1";
const OTHER: &str = "127.0.0.2";

async fn stream_from(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
    socket.connect(to).await.unwrap()
}

async fn channel_from(from: &str, to: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{to}")).unwrap();
    let from: IpAddr = from.parse().unwrap();
    endpoint.local_address(Some(from)).connect().await.unwrap()
}

async fn stats(server: &Running) -> v1::StatsResponse {
    let mut admin = AdminServiceClient::new(channel_from(OTHER, server.addr).await);
    admin.stats(v1::StatsRequest {}).await.unwrap().into_inner()
}

/// A server whose addresses have two connections each, of four.
async fn server() -> Running {
    let limits = Limits {
        max_connections: 4,
        call: LATE,
        ..Limits::default()
    };
    Running::with(RouteTable::new(), limits).await
}

/// Returns whether the server has sent any bytes.
async fn is_served(stream: &TcpStream) -> bool {
    timeout(SOON / 50, stream.readable()).await.is_ok()
}

/// Opens a connection that is not idle: a call is in flight.
async fn busy(server: &Running) -> Raw {
    let mut raw = Raw::connect(server.addr).await;
    let (response, stream) = raw.open(ADD).await;
    raw.settle().await;
    // Dropped, both would cancel the call.
    std::mem::forget((response, stream));
    raw
}

#[tokio::test]
async fn connections_over_the_share_of_an_address_wait_and_others_do_not_wait_behind_them() {
    let server = server().await;
    let first = busy(&server).await;
    let mut second = busy(&server).await;
    let mut waiting = Vec::new();
    for _ in 0..limits::MAX_WAITING_PER_CLIENT {
        let mut stream = stream_from(GREEDY, server.addr).await;
        stream.write_all(PREFACE).await.unwrap();
        waiting.push(stream);
    }
    // One connection more than may wait is closed.
    let mut closed = stream_from(GREEDY, server.addr).await;
    let read = closed.read(&mut [0; 100]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    // Meanwhile, other addresses are served.
    let mut other = Raw::over(stream_from(OTHER, server.addr).await).await;
    let invalid = Some(Code::InvalidArgument as i32);
    assert_eq!(other.call(ADD, framed(&[])).await.grpc, invalid);
    assert_eq!(refused(&stats(&server).await, "address_connections"), 1);
    second.settle().await;
    for stream in &waiting {
        assert!(!is_served(stream).await);
    }
    // The connection that has waited the longest gets the slot of a connection that ends.
    first.connection.abort();
    waiting[0].readable().await.unwrap();
    for stream in &waiting[1..] {
        assert!(!is_served(stream).await);
    }
    assert_eq!(refused(&stats(&server).await, "connections"), 0);
}

#[tokio::test]
async fn an_idle_connection_of_the_same_address_makes_room() {
    let server = server().await;
    let mut busy = busy(&server).await;
    let mut other = Raw::over(stream_from(OTHER, server.addr).await).await;
    other.settle().await;
    let mut idle = Raw::connect(server.addr).await;
    idle.settle().await;
    let mut third = Raw::connect(server.addr).await;
    third.settle().await;
    idle.connection.await.unwrap().unwrap();
    busy.settle().await;
    // The idle connection of another address stays.
    other.settle().await;
    assert_eq!(refused(&stats(&server).await, "address_connections"), 0);
}

#[tokio::test]
async fn an_address_has_a_share_of_the_watches() {
    let limits = Limits {
        max_share_per_client: 1,
        ..Limits::default()
    };
    let server = Running::with(RouteTable::new(), limits).await;
    let mut watches = Vec::new();
    let status = loop {
        let mut client = WatchServiceClient::new(channel_from(GREEDY, server.addr).await);
        let mut refused = None;
        for _ in 0..limits::MAX_WATCHES_PER_CONNECTION {
            match client.watch(v1::WatchRequest::default()).await {
                Ok(watch) => watches.push(watch),
                Err(status) => refused = Some(status),
            }
        }
        if let Some(status) = refused {
            break status;
        }
    };
    assert_eq!(watches.len(), Limits::default().max_watches / 100);
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "your address has 100 watches, which is the limit");
    assert!(status.get_details_retry_info().is_some());
    let mut other = WatchServiceClient::new(channel_from(OTHER, server.addr).await);
    let _watch = other.watch(v1::WatchRequest::default()).await.unwrap();
    assert_eq!(refused(&stats(&server).await, "address_watches"), 28);
    watches.pop();
    let mut again = WatchServiceClient::new(channel_from(GREEDY, server.addr).await);
    while again.watch(v1::WatchRequest::default()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_address_has_a_share_of_the_routes_and_of_the_proxies() {
    let config = [("max_routes", "100"), ("max_proxies", "10")]
        .into_iter()
        .fold(Config::default(), |config, (key, value)| {
            config.with(key, value).unwrap()
        });
    let server = Running::with_table(config.table().build().unwrap()).await;
    let add = async |from: &str, proxy: usize, nodes: std::ops::Range<usize>| {
        let mut client = RouteServiceClient::new(channel_from(from, server.addr).await);
        let proxy = v1::Proxy {
            proxy_id: format!("{from}-{proxy}"),
            cluster_name: "cluster".into(),
            addr: "10.0.0.1:3080".into(),
        };
        let nodes = v1::NodeIds {
            uuids: vec![],
            names: nodes.map(|node| format!("{from}-{node}")).collect(),
        };
        let request = v1::AddNodesRequest {
            proxy: Some(proxy),
            nodes: Some(nodes),
        };
        client
            .add_nodes(request)
            .await
            .map(|reply| reply.into_inner().inserted_count)
    };
    for proxy in 0..5 {
        assert_eq!(add(GREEDY, proxy, 10 * proxy..10 * proxy + 10).await.unwrap(), 10);
    }
    for (proxy, reason, message) in [
        (
            0,
            "client_routes",
            "the proxy's client has its maximum of 50 routes, after 0 nodes",
        ),
        (
            5,
            "client_proxies",
            "the client has its maximum of 5 proxies, and of removed proxies until they are swept",
        ),
    ] {
        let status = add(GREEDY, proxy, 50..51).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::ResourceExhausted, message));
        let delay = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
        assert_eq!(delay, Some(Duration::from_secs(10)));
        assert_eq!(refused(&stats(&server).await, reason), 1);
    }
    for proxy in 0..5 {
        assert_eq!(add(OTHER, proxy, 10 * proxy..10 * proxy + 10).await.unwrap(), 10);
    }
}
