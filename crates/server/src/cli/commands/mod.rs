//! The commands that call a running tracker.
//!
//! | module | commands |
//! | --- | --- |
//! | this module | `add`, `get`, `rm`, `health` |
//! | [`admin`], [`operate`] | the commands of operators |
//! | [`watch`] | `watch`, which follows the table |
//! | [`top`] | `top`, which shows the metrics |
//! | [`bench`] | `bench`, which loads a tracker and measures it |

pub(crate) mod admin;
pub(crate) mod bench;
pub(crate) mod operate;
pub(crate) mod top;
pub(crate) mod watch;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use nodetracker_proto::api;
use nodetracker_proto::api::node_tracker_service_client::NodeTrackerServiceClient;
use nodetracker_proto::v1;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::route_service_client::RouteServiceClient;
use nodetracker_tls::client::{ClientFile, ClientFiles, client_config};
use procfs::ProcError;
use rustls::ClientConfig;
use serde::Serialize;
use thiserror::Error;
use tokio::time::timeout;
use tonic::Status;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use uuid::Uuid;

use crate::cli::client::{Target, Transport};
use crate::cli::print::{Print, ProxyRow, RouteRow, age, rfc3339, time};
use crate::cli::remark;
use crate::cli::signals::ReceivedSignal;
use crate::config::duration;

/// The address of the tracker.
#[derive(Debug, Clone, Args)]
pub(crate) struct TrackerArgs {
    /// The server: HOST:PORT or :PORT, http://HOST:PORT, or https://HOST:PORT with --ca-file
    #[arg(long, env = "NODETRACKER_ADDR", value_name = "ADDR", default_value = crate::config::DEFAULT_LISTEN_ADDR)]
    addr: Target,
    /// PEM file with the only authorities to trust; needed for https
    #[arg(long, env = "NODETRACKER_CA_FILE", hide_env_values = true, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// PEM file with the certificate to present, and then its issuers; for a tracker with client_auth
    #[arg(
        long,
        env = "NODETRACKER_CERT_FILE",
        hide_env_values = true,
        value_name = "FILE",
        requires = "key_file"
    )]
    cert_file: Option<PathBuf>,
    /// PEM file with the private key of --cert-file
    #[arg(
        long,
        env = "NODETRACKER_KEY_FILE",
        hide_env_values = true,
        value_name = "FILE",
        requires = "cert_file"
    )]
    key_file: Option<PathBuf>,
    /// How long the connection may take, and then each call, or the answer to a ping during a watch
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = timeout_value)]
    timeout: Duration,
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The node's ID
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    node: String,
    /// The ID of the proxy that can reach the node
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    proxy_id: String,
    /// The proxy's address, HOST:PORT
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    proxy_addr: String,
    /// The cluster that the proxy belongs to; without this flag, the proxy gets an empty cluster
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    cluster: Option<String>,
    #[command(flatten)]
    print: Print,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The node's ID
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    node: String,
    #[command(flatten)]
    print: Print,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The node's ID
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    node: String,
    #[command(flatten)]
    print: Print,
}

/// Arguments of `health`.
#[derive(Debug, Args)]
pub(crate) struct Health {
    #[command(flatten)]
    print: Print,
}

/// Why a command failed, in one line.
#[derive(Debug, Error)]
pub(crate) enum CommandError {
    #[error("{addr}: {reason}")]
    Connect { addr: Target, reason: String },
    #[error("{addr}: {code}: {message}")]
    Call {
        addr: Target,
        code: String,
        message: String,
    },
    #[error("{0}")]
    Usage(String),
    #[error("the tracker is not serving")]
    NotServing,
    #[error("the tracker has not closed its port within {0}")]
    StillOpen(String),
    #[error("cannot listen for signals: {0}")]
    Signals(io::Error),
    #[error("{}: ended at once", .0.name)]
    Interrupted(ReceivedSignal),
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    #[error("cannot create a timer: {0}")]
    Timer(io::Error),
    #[error("cannot read the CPU time: {0}")]
    CpuTime(ProcError),
    /// The command failed for a reason that no other variant has.
    #[error("{0}")]
    Failed(String),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl TrackerArgs {
    async fn connect(&self) -> Result<NodeTrackerServiceClient<Transport>, CommandError> {
        let transport = self.transport().await?;
        Ok(NodeTrackerServiceClient::with_origin(transport, self.addr.origin()))
    }

    /// Connects, for the client of any service.
    async fn transport(&self) -> Result<Transport, CommandError> {
        let tls = self.tls()?;
        self.connected(self.addr.connect(tls, self.timeout)).await
    }

    /// Waits for a connection, up to the limit.
    async fn connected<T>(&self, connect: impl Future<Output = Result<T, String>>) -> Result<T, CommandError> {
        let reason = match timeout(self.timeout, connect).await {
            Ok(Ok(connection)) => return Ok(connection),
            Ok(Err(reason)) => self.refused_certificate().await.unwrap_or(reason),
            Err(_) => format!("cannot connect within {}", self.limit()),
        };
        let addr = self.addr.clone();
        Err(CommandError::Connect { addr, reason })
    }

    /// Returns the configuration for TLS. `None` for plaintext.
    fn tls(&self) -> Result<Option<Arc<ClientConfig>>, CommandError> {
        let usage = |reason: &str| Err(CommandError::Usage(reason.to_owned()));
        match (self.addr.tls, &self.ca_file) {
            (true, None) => usage("--addr https://… needs --ca-file"),
            (false, Some(_)) => usage("--ca-file or NODETRACKER_CA_FILE needs --addr https://…"),
            (false, None) if self.cert_file.is_some() => {
                usage("--cert-file or NODETRACKER_CERT_FILE needs --addr https://…")
            }
            (false, None) => Ok(None),
            (true, Some(ca)) => {
                let keypair = self.key_file.as_deref().zip(self.cert_file.as_deref());
                let config = client_config(&ClientFiles { ca, keypair });
                config.map(Some).map_err(|error| {
                    let flag = match error.file {
                        ClientFile::Ca => "--ca-file",
                        ClientFile::Certificate => "--cert-file",
                        ClientFile::Key => "--key-file",
                    };
                    CommandError::Usage(format!("{flag}: {error}"))
                })
            }
        }
    }

    /// Asks whether the tracker broke off because of the command's certificate. Returns a message then.
    async fn refused_certificate(&self) -> Option<String> {
        let alert = self.addr.certificate_alert(self.tls().ok()??).await?;
        Some(match self.cert_file {
            None => format!("the tracker needs a certificate: use --cert-file and --key-file: {alert}"),
            Some(_) => format!("the tracker refuses the certificate of --cert-file: {alert}"),
        })
    }

    async fn call<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, CommandError> {
        match self.answer(call).await {
            Ok(answer) => Ok(answer),
            Err(status) => Err(self.failed(status).await),
        }
    }

    /// As [`call`](Self::call), for callers that look at the status.
    async fn answer<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
        let late = |_| Err(Status::deadline_exceeded(format!("no answer within {}", self.limit())));
        let response = timeout(self.timeout, call).await.unwrap_or_else(late)?;
        Ok(response.into_inner())
    }

    /// Reports whether the tracker of a connection has closed its port.
    async fn has_closed_port(&self, connection: &Transport) -> bool {
        connection.has_closed_port(self.timeout).await
    }

    fn origin(&self) -> http::Uri {
        self.addr.origin()
    }

    fn limit(&self) -> String {
        duration::format(self.timeout)
    }

    async fn failed(&self, status: Status) -> CommandError {
        // Only a status of the transport, not of the tracker, has a source.
        if std::error::Error::source(&status).is_some() && self.addr.speaks_tls().await {
            return CommandError::Connect {
                addr: self.addr.clone(),
                reason: format!("the server speaks TLS: use --addr https://{} and --ca-file", self.addr),
            };
        }
        if std::error::Error::source(&status).is_some()
            && let Some(reason) = self.refused_certificate().await
        {
            let addr = self.addr.clone();
            return CommandError::Connect { addr, reason };
        }
        CommandError::Call {
            addr: self.addr.clone(),
            code: code_name(status.code()),
            message: message(&status),
        }
    }
}

/// What `add` did, in JSON.
#[derive(Debug, Serialize)]
struct Added {
    node: String,
    #[serde(flatten)]
    proxy: ProxyRow,
}

/// What `rm` did, in JSON.
#[derive(Debug, Serialize)]
struct Removed {
    node: String,
    removed: bool,
}

/// The tracker's health, in JSON.
#[derive(Debug, Serialize)]
struct HealthRow {
    status: &'static str,
}

pub(crate) async fn add(add: Add) -> Result<(), CommandError> {
    let Add {
        node,
        proxy_id,
        proxy_addr,
        cluster,
        print: Print { format, at },
    } = add;
    let added = Added {
        node: node.clone(),
        proxy: ProxyRow {
            proxy_id: proxy_id.clone(),
            cluster_name: cluster.clone().unwrap_or_default(),
            addr: proxy_addr.clone(),
        },
    };
    let request = api::AddNodeRequest {
        node_id: node,
        proxy_id,
        cluster_name: cluster.unwrap_or_default(),
        addr: proxy_addr,
    };
    let mut client = at.connect().await?;
    at.call(client.add_node(request)).await?;
    format.done(&added)
}

/// Removes a node with `RouteService`: in the frozen contract, the answer does not say whether the node had routes.
pub(crate) async fn rm(rm: Rm) -> Result<(), CommandError> {
    let Rm {
        node,
        print: Print { format, at },
    } = rm;
    let mut client = RouteServiceClient::with_origin(at.transport().await?, at.origin());
    let request = v1::RemoveNodesRequest {
        nodes: Some(v1::NodeIds {
            names: vec![node.clone()],
            ..v1::NodeIds::default()
        }),
        ..v1::RemoveNodesRequest::default()
    };
    let removed = at.call(client.remove_nodes(request)).await?.removed_count > 0;
    if !removed {
        remark(&format!("node {node} had no routes"));
    }
    format.done(&Removed { node, removed })
}

pub(crate) async fn health(health: Health) -> Result<(), CommandError> {
    let Print { format, at } = health.print;
    let mut client = HealthClient::with_origin(at.transport().await?, at.origin());
    let response = at.call(client.check(HealthCheckRequest::default())).await?;
    let row = HealthRow {
        status: response.status().as_str_name(),
    };
    format.print(None, &[row], |row| [row.status.to_owned()])?;
    match response.status() {
        ServingStatus::Serving => Ok(()),
        _ => Err(CommandError::NotServing),
    }
}

pub(crate) async fn get(get: Get) -> Result<(), CommandError> {
    let Get { node, print } = get;
    let mut client = print.at.connect().await?;
    let request = api::GetProxiesRequest { node_id: node.clone() };
    let response = print.at.call(client.get_proxies(request)).await?;
    if response.proxy_details.is_empty() {
        remark(&format!("no proxy is known to reach node {node}"));
    }
    let routes: Vec<_> = response.proxy_details.into_iter().map(route).collect();
    print
        .format
        .print(Some(HEADING), &routes, |route| columns(route, SystemTime::now()))
}

fn route(proxy: api::ProxyDetails) -> RouteRow {
    RouteRow {
        proxy: ProxyRow {
            proxy_id: proxy.id,
            cluster_name: proxy.cluster_name,
            addr: proxy.addr,
        },
        last_refresh_time: time(proxy.updated_at),
        ..RouteRow::default()
    }
}

const HEADING: [&str; 4] = ["PROXY", "CLUSTER", "ADDR", "UPDATED"];

fn columns(route: &RouteRow, now: SystemTime) -> [String; 4] {
    let ProxyRow {
        proxy_id,
        cluster_name,
        addr,
    } = route.proxy.clone();
    let updated = route
        .last_refresh_time
        // The tracker's clock may be ahead of this machine's.
        .map(|at| (at, now.duration_since(at).unwrap_or_default()))
        .map_or_else(String::new, |(at, since)| {
            format!("{} ({} ago)", rfc3339(at), age(since))
        });
    [proxy_id, cluster_name, addr, updated]
}

/// Returns the routes of a node in a message that has many nodes.
fn routes(node: &v1::NodeRoutes, proxies: &[v1::Proxy]) -> impl Iterator<Item = RouteRow> {
    node.routes.iter().map(|route| RouteRow {
        proxy: proxies
            .get(route.proxy_index as usize)
            .cloned()
            .unwrap_or_default()
            .into(),
        last_refresh_time: time(route.last_refresh_time),
        ..RouteRow::default()
    })
}

/// Returns a node's ID as text.
fn node_name(node: Option<&v1::NodeId>) -> String {
    match node.and_then(|node| node.id.as_ref()) {
        Some(Id::Uuid(bytes)) => Uuid::from_slice(bytes).map_or_else(|_| String::new(), |uuid| uuid.to_string()),
        Some(Id::Name(name)) => name.clone(),
        None => String::new(),
    }
}

/// Spells a tracker's generation, everywhere in the output.
fn generation(generation: u64) -> String {
    format!("{generation:016x}")
}

fn timeout_value(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        Duration::ZERO => Err("no call is that fast".into()),
        timeout => Ok(timeout),
    }
}

/// Returns the name of a code in gRPC's documentation, such as `INVALID_ARGUMENT`.
fn code_name(code: tonic::Code) -> String {
    let mut name = String::new();
    for character in format!("{code:?}").chars() {
        if character.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(character.to_ascii_uppercase());
    }
    name
}

/// Returns a status's message and its causes, in one line.
fn message(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let cause = error.to_string();
        if !message.contains(&cause) {
            message = if message.is_empty() {
                cause
            } else {
                format!("{message}: {cause}")
            };
        }
        source = error.source();
    }
    message.replace("\r\n", " ").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::print::Format;

    fn proxy(id: &str, cluster: &str, addr: &str, seconds: i64) -> api::ProxyDetails {
        api::ProxyDetails {
            id: id.into(),
            cluster_name: cluster.into(),
            addr: addr.into(),
            updated_at: Some(prost_types::Timestamp {
                seconds,
                nanos: 42_000_000,
            }),
        }
    }

    #[test]
    fn tables_are_aligned_and_json_is_an_object_a_line() {
        let mut out = Vec::new();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_637_625_700);
        let proxies = [
            proxy("proxy-1", "", "10.0.0.1:3080", 1_637_625_600),
            proxy("p2", "root", "p2:1", 1_637_625_698),
        ];
        let routes = proxies.map(route);
        let write = |format: Format, out: &mut Vec<u8>| {
            let written = format.write(out, Some(HEADING), &routes, |route| columns(route, now));
            written.unwrap();
        };
        write(Format::Table, &mut out);
        let expected = "\
PROXY    CLUSTER  ADDR           UPDATED
proxy-1  -        10.0.0.1:3080  2021-11-23T00:00:00.042Z (1m 39s ago)
p2       root     p2:1           2021-11-23T00:01:38.042Z (1s ago)
";
        assert_eq!(String::from_utf8(out.clone()).unwrap(), expected);
        out.clear();
        write(Format::Json, &mut out);
        let expected = r#"{"proxy_id":"proxy-1","cluster_name":"","addr":"10.0.0.1:3080","last_refresh_time":"2021-11-23T00:00:00.042Z"}
{"proxy_id":"p2","cluster_name":"root","addr":"p2:1","last_refresh_time":"2021-11-23T00:01:38.042Z"}
"#;
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn absurd_times_are_printed() {
        let absurd = [i64::MIN, -1, 253_402_300_800, i64::MAX].map(|seconds| proxy("p", "", "p:1", seconds));
        let none = api::ProxyDetails {
            updated_at: None,
            ..absurd[0].clone()
        };
        let routes: Vec<_> = absurd.into_iter().chain([none]).map(route).collect();
        for (format, lines) in [(Format::Table, 6), (Format::Json, 5)] {
            let mut out = Vec::new();
            let row = |route: &RouteRow| columns(route, SystemTime::UNIX_EPOCH);
            format.write(&mut out, Some(HEADING), &routes, row).unwrap();
            assert_eq!(String::from_utf8(out).unwrap().lines().count(), lines);
        }
    }

    #[test]
    fn ages_are_spelled_like_flags() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (61, "1m 1s"),
            (7260, "2h 1m"),
            (93_600, "1d 2h"),
        ] {
            assert_eq!(age(Duration::from_millis(seconds * 1000 + 999)), expected);
        }
    }

    #[test]
    fn codes_have_their_documented_names() {
        assert_eq!(code_name(tonic::Code::InvalidArgument), "INVALID_ARGUMENT");
        assert_eq!(code_name(tonic::Code::Unavailable), "UNAVAILABLE");
    }

    #[test]
    fn targets_are_parsed() {
        for text in [
            "localhost:1",
            "http://localhost:1",
            "http://localhost:1/",
            "[::1]:1",
            ":1",
            "https://a.example:443",
        ] {
            assert!(text.parse::<Target>().is_ok(), "{text}");
        }
        for text in [
            "",
            "localhost",
            ":",
            "localhost:x",
            "ftp://localhost:1",
            "http://",
            "a b:1",
            "localhost:1/path",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
