//! An agent: keeps its node reachable through a proxy, and forwards each stream to a local service.
//!
//! ```console
//! $ cargo run -p nodetracker-client --example agent -- node-1 127.0.0.1:3024 127.0.0.1:22
//! ```
//!
//! The arguments are the node, the address of the proxies' load balancer, and the service.

use std::env;
use std::error::Error;

use nodetracker_client::pool::{AgentPool, LastErrors, PoolConfig, Target};
use nodetracker_client::transport::tcp::TcpTransport;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [node, proxies, service] = &args[..] else {
        return Err("expected NODE PROXIES SERVICE".into());
    };

    let mut pool = AgentPool::new(PoolConfig::new(node.parse()?), TcpTransport::default());
    pool.handle().add_target(Target::new("main", proxies));
    let mut status = pool.handle().status();
    tokio::spawn(async move {
        let mut shown = LastErrors::new();
        while let Ok(status) = status.wait_for(|status| status.last_errors != shown).await {
            shown = status.last_errors.clone();
            for (target, error) in &shown {
                eprintln!("no tunnel to {}: {error}", target.addr);
            }
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
