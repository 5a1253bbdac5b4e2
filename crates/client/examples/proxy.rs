//! A proxy: accepts agents, reports their nodes to a tracker, and reaches every node of the fleet.
//!
//! ```console
//! $ cargo run -p nodetracker-client --example proxy -- proxy-1 127.0.0.1 4000 127.0.0.1:3029
//! ```
//!
//! The arguments are the proxy's ID, its host, the first of three ports (for agents, for peers and for clients), and
//! the tracker. A client sends a node's ID and a line feed; the bytes that follow go to the node:
//! `(echo node-1; cat) | nc 127.0.0.1 4002`.

use std::{env, error::Error, io, time::Duration};

use nodetracker_client::Proxy;
use nodetracker_client::proxy::{Dialer, ProxyService, ProxyServiceConfig};
use nodetracker_client::transport::tcp::{TcpAcceptor, TcpTransport};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [id, host, port, tracker] = &args[..] else {
        return Err("expected ID HOST PORT TRACKER".into());
    };
    let (port, mut listeners) = (port.parse::<u16>()?, Vec::new());
    for number in 0..3 {
        let port = port.checked_add(number).ok_or("PORT is at most 65533")?;
        listeners.push(TcpListener::bind((host.as_str(), port)).await?);
    }
    run(id, listeners, tracker).await
}

/// Serves agents, peers and clients.
pub(crate) async fn run(id: &str, listeners: Vec<TcpListener>, tracker: &str) -> Result<(), Box<dyn Error>> {
    let [agents, peers, clients] = listeners.try_into().map_err(|_| "expected three listeners")?;
    let (addr, cluster_name) = (&peers.local_addr()?.to_string(), "main");
    let proxy = Proxy { id, cluster_name, addr };
    let config = ProxyServiceConfig::new(proxy, "example", vec![tracker.parse()?]);
    let [agents, peers] = [agents, peers].map(TcpAcceptor::plaintext);
    let service = ProxyService::start(config, agents, peers, TcpTransport::default())?;
    loop {
        tokio::select! {
            accepted = clients.accept() => match accepted {
                Ok((client, _)) => drop(tokio::spawn(log(serve(client, service.dialer().clone())))),
                // For example, too many open files.
                Err(error) => {
                    eprintln!("no client is accepted: {error}");
                    sleep(Duration::from_millis(100)).await;
                }
            },
            _ = tokio::signal::ctrl_c() => break,
            superseded = service.superseded() => return Err(superseded.into()),
        }
    }
    Ok(service.stop(Duration::from_secs(5), Duration::from_secs(10)).await?)
}

async fn log(served: impl Future<Output = io::Result<()>>) {
    if let Err(error) = served.await {
        eprintln!("a client is not served: {error}");
    }
}

/// Connects a client to the node that the client names.
async fn serve(client: TcpStream, dialer: Dialer) -> io::Result<()> {
    let (mut client, mut name) = (BufReader::new(client), String::new());
    (&mut client).take(256).read_line(&mut name).await?;
    let node = name.trim_end().parse().map_err(io::Error::other)?;
    let mut dialed = dialer.dial(&node).await.map_err(io::Error::other)?;
    copy_bidirectional(&mut client, &mut dialed.stream).await.map(drop)
}
