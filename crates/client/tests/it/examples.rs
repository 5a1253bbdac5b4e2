//! The examples: how long they are, and whether a node is reached through them.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Running, eventually};

#[allow(dead_code, reason = "`main` reads the arguments, and the tests call `run`")]
#[path = "../../examples/agent.rs"]
mod agent;
#[allow(dead_code, reason = "`main` reads the arguments, and the tests call `run`")]
#[path = "../../examples/proxy.rs"]
mod proxy;

fn lines_of_code(source: &str) -> usize {
    let lines = source.lines().map(str::trim);
    lines.filter(|line| !line.is_empty() && !line.starts_with("//")).count()
}

#[test]
fn the_examples_are_short() {
    let agent = lines_of_code(include_str!("../../examples/agent.rs"));
    let proxy = lines_of_code(include_str!("../../examples/proxy.rs"));
    assert!(agent < 30 && proxy < 60, "{agent} and {proxy} lines");
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    (listener, addr)
}

/// Starts the example of a proxy in a thread. Returns the addresses for agents and for clients.
async fn start_proxy(id: &'static str, tracker: &Running) -> (SocketAddr, SocketAddr) {
    let [(agents, for_agents), (peers, _), (clients, for_clients)] =
        [listener().await, listener().await, listener().await];
    let tracker = tracker.addr.to_string();
    let listeners = vec![agents, peers, clients];
    spawn_local(async move { proxy::run(id, listeners, &tracker).await });
    (for_agents, for_clients)
}

/// Runs the future of an example, whose errors are not `Send`, until the test ends.
fn spawn_local<T: 'static>(example: impl Future<Output = T> + 'static) {
    tokio::task::spawn_local(example);
}

#[tokio::test]
async fn a_node_is_reached_through_the_examples() {
    let local = tokio::task::LocalSet::new();
    local.run_until(reach_a_node()).await;
}

async fn reach_a_node() {
    let tracker = Running::start().await;
    let (agents, _) = start_proxy("proxy-1", &tracker).await;
    let (_, clients) = start_proxy("proxy-2", &tracker).await;
    let (service, addr) = listener().await;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = service.accept().await {
            stream.write_all(b"hello").await.unwrap();
        }
    });
    let args = ["node-1".to_owned(), agents.to_string(), addr.to_string()];
    spawn_local(agent::run(args.into()));
    eventually("a client of the other proxy reaches the node", async || {
        let mut client = TcpStream::connect(clients).await.unwrap();
        client.write_all(b"node-1\n").await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.is_ok() && answer == "hello"
    })
    .await;
}
