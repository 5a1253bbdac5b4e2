//! A proxy: accepts agents, reports their nodes to a tracker, and reaches every node of the fleet.
//!
//! ```console
//! $ cargo run -p nodetracker-client --example proxy -- proxy-1 127.0.0.1 3024 127.0.0.1:3029
//! $ (echo node-1; cat) | nc 127.0.0.1 3026
//! ```
//!
//! The arguments are the proxy's ID, its host, the first of three ports (for agents, for peers and for clients), and
//! the tracker. A client sends the node's ID and a line feed, and then the bytes for the node.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use std::{env, io};

use nodetracker_client::Proxy;
use nodetracker_client::cache::{CacheConfig, RouteCache};
use nodetracker_client::client::{ClientOptions, TrackerClient};
use nodetracker_client::connect::addr::TrackerAddr;
use nodetracker_client::control::proto::ProxyInfo;
use nodetracker_client::listener::{AgentListener, ListenerConfig};
use nodetracker_client::proxy::{Dialer, DialerConfig, PeerServer, PeerServerConfig, ReportNodes};
use nodetracker_client::session::{ProxySession, SessionConfig};
use nodetracker_client::transport::tcp::{TcpAcceptor, TcpTransport};
use tokio::io::{AsyncReadExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [id, host, port, tracker] = &args[..] else {
        return Err("expected ID HOST PORT TRACKER".into());
    };
    let (port, tracker): (u16, TrackerAddr) = (port.parse()?, tracker.parse()?);
    let listen = async |port| TcpListener::bind((host.as_str(), port)).await;

    // The session reports the nodes of the agents.
    let peer_addr = format!("{host}:{}", port + 1);
    let config = SessionConfig::new(
        Proxy {
            id,
            cluster_name: "main",
            addr: &peer_addr,
        },
        vec![tracker.clone()],
    );
    let generation = config.incarnation;
    let session = Arc::new(ProxySession::begin(config)?);
    let info = ProxyInfo {
        proxy_id: id.clone(),
        generation,
        version: "example".into(),
    };
    let agents = AgentListener::new(ListenerConfig::new(info), ReportNodes(Arc::clone(&session)));
    let acceptor = TcpAcceptor::plaintext(listen(port).await?);
    tokio::spawn({
        let agents = agents.clone();
        async move { agents.serve(acceptor).await }
    });
    // Peers dial nodes here, and this proxy dials nodes at its peers.
    let peers = PeerServer::new(PeerServerConfig::new(id), agents.clone());
    let acceptor = TcpAcceptor::plaintext(listen(port + 1).await?);
    tokio::spawn(async move { peers.serve(acceptor).await });
    let options = ClientOptions {
        reporter_id: id.clone(),
        ..ClientOptions::default()
    };
    let client = TrackerClient::new(vec![tracker], options)?;
    let routes = RouteCache::new(Arc::new(client), CacheConfig::default());
    let dialer = Dialer::new(
        DialerConfig::new(id),
        agents.clone(),
        Arc::new(routes),
        TcpTransport::default(),
    );

    let clients = listen(port + 2).await?;
    loop {
        tokio::select! {
            accepted = clients.accept() => drop(tokio::spawn(serve(accepted?.0, dialer.clone()))),
            _ = tokio::signal::ctrl_c() => break,
            superseded = session.superseded() => return Err(superseded.into()),
        }
    }
    agents.drain(Duration::from_secs(5));
    agents.close(Duration::from_secs(10)).await;
    Ok(session.drain(Duration::from_secs(5)).await?)
}

/// Connects a client to the node that the client names.
async fn serve(mut client: TcpStream, dialer: Dialer) -> io::Result<()> {
    let mut name = Vec::new();
    loop {
        match client.read_u8().await? {
            b'\n' => break,
            byte if name.len() < 255 => name.push(byte),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
    }
    let node = String::from_utf8_lossy(&name).parse().map_err(io::Error::other)?;
    let mut dialed = dialer.dial(&node).await.map_err(io::Error::other)?;
    copy_bidirectional(&mut client, &mut dialed.stream).await.map(|_| ())
}
