//! The load that trains a profile-guided build: the calls of proxies and clients, each kind in about its usual share.
//!
//! ```console
//! $ target/debug/examples/train target/release/nodetracker
//! ```
//!
//! Nearly all of the load is single calls to many nodes, on 10 connections with 1, 10 and 100 calls in flight each.
//! Batches, sessions, a watch, and calls that fail show their paths to the compiler. They are few, so that single calls
//! stay frequent beside their loops. The load runs in plaintext and over TLS. The program ends by itself, and stops the
//! server with SIGTERM: then an instrumented server writes its profile.

#[allow(dead_code, reason = "the other examples use the rest")]
mod client;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use nodetracker_proto::api;
use nodetracker_proto::api::node_tracker_service_client::NodeTrackerServiceClient;
use nodetracker_proto::v1;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use nodetracker_proto::v1::watch_response::Message;
use nodetracker_proto::v1::watch_service_client::WatchServiceClient;
use tokio::task::JoinSet;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Streaming};

use client::{Failure, PIPELINE, Server, Session, all, node, node_ids, proxy};

const CONNECTIONS: u32 = 10;

/// After this time, the program assumes that a call hangs.
const TIME_LIMIT: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Parser)]
#[command(about = "Puts a server under a load like real use")]
struct Options {
    /// The server's command
    server: PathBuf,
    /// AddNode calls, and as many GetProxies, for each number of calls in flight
    #[arg(long, default_value_t = 60_000)]
    calls: u32,
    /// Nodes that the calls are about
    #[arg(long, default_value_t = 100_000)]
    nodes: u32,
}

/// Where calls go to, and how.
struct Target {
    endpoint: Endpoint,
}

impl Target {
    fn plain(server: &Server) -> Result<Self, Failure> {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.addr))?;
        Ok(Self { endpoint })
    }

    fn tls(server: &Server, certificate: &str) -> Result<Self, Failure> {
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(certificate));
        let endpoint = Endpoint::from_shared(format!("https://{}", server.addr))?.tls_config(config)?;
        Ok(Self { endpoint })
    }

    async fn connect(&self) -> Result<Channel, Failure> {
        Ok(self.endpoint.connect().await?)
    }
}

/// The node of a call. Successive calls are far apart in the table, as the heartbeats of nodes are.
fn nth(call: u32, options: &Options) -> u32 {
    (u64::from(call) * 7_919 % u64::from(options.nodes)) as u32
}

async fn add(channel: Channel, calls: impl Iterator<Item = u32>, options: &Options) -> Result<(), Failure> {
    let mut client = NodeTrackerServiceClient::new(channel);
    for call in calls {
        let number = nth(call, options);
        let by = proxy(number % 100);
        let request = api::AddNodeRequest {
            node_id: node(number).to_string(),
            proxy_id: by.proxy_id,
            cluster_name: by.cluster_name,
            addr: by.addr,
        };
        client.add_node(request).await?;
    }
    Ok(())
}

/// Looks up nodes; one of five is not known.
async fn get(channel: Channel, calls: impl Iterator<Item = u32>, options: &Options) -> Result<(), Failure> {
    let mut client = NodeTrackerServiceClient::new(channel);
    for call in calls {
        let number = nth(call, options);
        let number = if call % 5 == 0 { number + options.nodes } else { number };
        let node_id = node(number).to_string();
        client.get_proxies(api::GetProxiesRequest { node_id }).await?;
    }
    Ok(())
}

/// Makes the calls of both kinds on every connection, each `in_flight` at a time.
async fn single_calls(target: &Target, in_flight: u32, calls: u32, options: &Options) -> Result<(), Failure> {
    let lanes = CONNECTIONS * in_flight;
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(target.connect().await?);
    }
    for adding in [true, false] {
        let mut tasks = JoinSet::new();
        for lane in 0..lanes {
            let channel = channels[(lane % CONNECTIONS) as usize].clone();
            let calls = (lane..calls).step_by(lanes as usize);
            let options = options.clone();
            tasks.spawn(async move {
                if adding {
                    add(channel, calls, &options).await
                } else {
                    get(channel, calls, &options).await
                }
            });
        }
        all(tasks).await?;
    }
    Ok(())
}

async fn batches(target: &Target, options: &Options) -> Result<(), Failure> {
    let mut client = RouteServiceClient::new(target.connect().await?);
    let by = proxy(1);
    for first in (0..options.nodes).step_by(1000) {
        let last = options.nodes.min(first + 1000);
        let nodes = Some(node_ids((first..last).map(node)));
        client
            .add_nodes(v1::AddNodesRequest {
                proxy: Some(by.clone()),
                nodes: nodes.clone(),
            })
            .await?;
        client.batch_get_proxies(v1::BatchGetProxiesRequest { nodes }).await?;
        let removed = client
            .remove_nodes(v1::RemoveNodesRequest {
                nodes: Some(node_ids((first..first + 10).map(node))),
                proxy_id: by.proxy_id.clone(),
            })
            .await?;
        assert_eq!(removed.into_inner().removed_count, 10);
    }
    for number in 0..1000 {
        let uuid = v1::node_id::Id::Uuid(node(number).into_bytes().to_vec());
        let request = v1::GetProxiesRequest {
            node: Some(v1::NodeId { id: Some(uuid) }),
        };
        client.get_proxies(request).await?;
    }
    Ok(())
}

async fn sessions(target: &Target, options: &Options) -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    for by in 0..CONNECTIONS {
        let nodes: Vec<_> = (by..options.nodes).step_by(CONNECTIONS as usize).map(node).collect();
        let mut session = Session::begin(target.connect().await?, by).await?;
        tasks.spawn(async move {
            session.announce(&nodes).await?;
            session.beat(PIPELINE as u32).await
        });
    }
    all(tasks).await
}

/// Reads until `last` returns `true` for a message.
async fn read(watch: &mut Streaming<v1::WatchResponse>, mut last: impl FnMut(Message) -> bool) -> Result<(), Failure> {
    loop {
        let message = watch.message().await?.and_then(|response| response.message);
        if last(message.ok_or("the watch ended")?) {
            return Ok(());
        }
    }
}

/// Follows everything while nodes come and go.
async fn watch(target: &Target, options: &Options) -> Result<(), Failure> {
    let mut client = WatchServiceClient::new(target.connect().await?);
    let mut watch = client.watch(v1::WatchRequest::default()).await?.into_inner();
    read(&mut watch, |message| matches!(message, Message::SnapshotEnd(_))).await?;
    let mut client = NodeTrackerServiceClient::new(target.connect().await?);
    let mut changes = 0;
    for number in 0..1000 {
        let by = proxy(number % 100);
        let node_id = node(2 * options.nodes + number).to_string();
        let request = api::AddNodeRequest {
            node_id: node_id.clone(),
            proxy_id: by.proxy_id,
            cluster_name: by.cluster_name,
            addr: by.addr,
        };
        client.add_node(request).await?;
        client.remove_node(api::RemoveNodeRequest { node_id }).await?;
        changes += 2;
    }
    read(&mut watch, |message| {
        if let Message::Changes(some) = message {
            changes -= some.changes.len().min(changes);
        }
        changes == 0
    })
    .await
}

/// Calls that are answered with an error.
async fn errors(target: &Target) -> Result<(), Failure> {
    let mut client = NodeTrackerServiceClient::new(target.connect().await?);
    for _ in 0..500 {
        match client.add_node(api::AddNodeRequest::default()).await {
            Err(status) if status.code() == Code::InvalidArgument => {}
            other => return Err(format!("INVALID_ARGUMENT was expected: {other:?}").into()),
        }
    }
    Ok(())
}

async fn load(target: &Target, calls: u32, options: &Options) -> Result<(), Failure> {
    for in_flight in [1, 10, 100] {
        single_calls(target, in_flight, calls, options).await?;
    }
    batches(target, options).await?;
    sessions(target, options).await?;
    watch(target, options).await?;
    errors(target).await
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let options = Options::parse();
    let run = async {
        let server = Server::start(&options.server, &[])?;
        load(&Target::plain(&server)?, options.calls, &options).await?;
        server.stop()?;

        let folder = tempfile::tempdir()?;
        let certified = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let certificate = certified.cert.pem();
        fs::write(folder.path().join("key"), certified.signing_key.serialize_pem())?;
        fs::write(folder.path().join("cert"), &certificate)?;
        let config = folder.path().join("config");
        fs::write(
            &config,
            "node_tracker_service:\n  https_keypairs:\n  - key_file: key\n    cert_file: cert\n",
        )?;
        let server = Server::start(&options.server, &["--config", config.to_str().ok_or("not UTF-8")?])?;
        load(&Target::tls(&server, &certificate)?, options.calls / 5, &options).await?;
        server.stop()
    };
    tokio::time::timeout(TIME_LIMIT, run)
        .await
        .map_err(|_| "it takes too long")?
}
