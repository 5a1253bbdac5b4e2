//! An agent: keeps its node reachable through a proxy, and forwards each stream to a local service.
//!
//! ```console
//! $ cargo run -p nodetracker-client --example agent -- node-1 127.0.0.1:3024 127.0.0.1:22
//! ```
//!
//! The arguments are the node, the address of the proxies' load balancer, and the service.

use std::{env, error::Error};

use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
use nodetracker_client::transport::tcp::TcpTransport;
use tokio::{io::copy_bidirectional, net::TcpStream};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    run(env::args().skip(1).collect()).await
}

pub(crate) async fn run(args: Vec<String>) -> Result<(), Box<dyn Error>> {
    let [node, proxies, service] = args.try_into().map_err(|_| "expected NODE PROXIES SERVICE")?;
    let mut pool = AgentPool::start(PoolConfig::new(node.parse()?), TcpTransport::default());
    pool.handle().add_target(Target::new("main", proxies));
    let mut status = pool.handle().status();
    tokio::spawn(async move {
        while let Some(status) = status.changed().await {
            eprintln!("tunnels: {:?}, errors: {:?}", status.counts, status.last_errors);
        }
    });
    while let Some(mut incoming) = pool.accept().await {
        let service = service.clone();
        tokio::spawn(async move {
            let mut local = TcpStream::connect(service).await?;
            copy_bidirectional(&mut incoming.stream, &mut local).await
        });
    }
    Ok(())
}
