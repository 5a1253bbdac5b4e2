//! The commands that call a running tracker: here those of the frozen contract, in [`admin`] those for operators.

pub(crate) mod admin;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use nodetracker_proto::api;
use nodetracker_proto::api::node_tracker_service_client::NodeTrackerServiceClient;
use thiserror::Error;
use tokio::time::timeout;
use tonic::Status;

use crate::cli::client::{Target, Transport};
use crate::cli::print::{Print, ProxyRow, RouteRow, dash, rfc3339, time};
use crate::cli::remark;
use crate::tls;

/// How long connecting may take, and then the call.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The address of the tracker.
#[derive(Debug, Args)]
pub(crate) struct TrackerArgs {
    /// The server: HOST:PORT, http://HOST:PORT, or https://HOST:PORT with --ca-file
    #[arg(long, value_name = "ADDR", default_value = crate::config::DEFAULT_LISTEN_ADDR)]
    addr: Target,
    /// PEM file with the authorities that may vouch for an https server
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// Arguments of `add`.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The node's ID
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    node: String,
    /// The ID of the proxy that can reach it
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    proxy_id: String,
    /// The proxy's address, HOST:PORT
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    proxy_addr: String,
    /// The cluster that the proxy belongs to
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    cluster: Option<String>,
    #[command(flatten)]
    at: TrackerArgs,
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
    at: TrackerArgs,
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
        let usage = |reason: &str| Err(CommandError::Usage(reason.to_owned()));
        let tls = match (self.addr.tls, &self.ca_file) {
            (true, None) => return usage("--addr https://… needs --ca-file"),
            (false, Some(_)) => return usage("--ca-file needs --addr https://…"),
            (false, None) => None,
            (true, Some(file)) => match tls::client_config(file) {
                Ok(config) => Some(config),
                Err(reason) => return usage(&format!("--ca-file: {reason}")),
            },
        };
        let connected = timeout(CALL_TIMEOUT, self.addr.connect(tls)).await;
        connected
            .unwrap_or_else(|_| Err(format!("cannot connect within {CALL_TIMEOUT:?}")))
            .map_err(|reason| CommandError::Connect {
                addr: self.addr.clone(),
                reason,
            })
    }

    async fn call<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, CommandError> {
        let response = timeout(CALL_TIMEOUT, call).await;
        match response.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {CALL_TIMEOUT:?}"))))
        {
            Ok(response) => Ok(response.into_inner()),
            // Only a status of the transport, not of the tracker, has a source.
            Err(status) => match std::error::Error::source(&status).is_some() && self.addr.speaks_tls().await {
                true => Err(CommandError::Connect {
                    addr: self.addr.clone(),
                    reason: format!("the server speaks TLS: use --addr https://{} and --ca-file", self.addr),
                }),
                false => Err(CommandError::Call {
                    addr: self.addr.clone(),
                    code: code_name(status.code()),
                    message: message(&status),
                }),
            },
        }
    }
}

pub(crate) async fn add(add: Add) -> Result<(), CommandError> {
    let Add {
        node,
        proxy_id,
        proxy_addr,
        cluster,
        at,
    } = add;
    let request = api::AddNodeRequest {
        node_id: node,
        proxy_id,
        cluster_name: cluster.unwrap_or_default(),
        addr: proxy_addr,
    };
    let mut client = at.connect().await?;
    at.call(client.add_node(request)).await?;
    Ok(())
}

pub(crate) async fn rm(rm: Rm) -> Result<(), CommandError> {
    let mut client = rm.at.connect().await?;
    rm.at
        .call(client.remove_node(api::RemoveNodeRequest { node_id: rm.node }))
        .await?;
    Ok(())
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
        .map_or_else(|| dash(""), |at| format!("{} ({})", rfc3339(at), age(now, at)));
    [proxy_id, cluster_name, addr, updated]
}

/// Formats an age in its two largest units. The tracker's clock may be ahead of this machine's.
fn age(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m {}s ago", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m ago", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h ago", seconds / 86400, seconds / 3600 % 24),
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
proxy-1           10.0.0.1:3080  2021-11-23T00:00:00.042Z (1m 39s ago)
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
    fn age_has_two_units() {
        let ages = [
            (0, "0s ago"),
            (59, "59s ago"),
            (61, "1m 1s ago"),
            (7260, "2h 1m ago"),
            (93_600, "1d 2h ago"),
        ];
        for (seconds, expected) in ages {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(age(now, SystemTime::UNIX_EPOCH), expected);
        }
        assert_eq!(age(SystemTime::UNIX_EPOCH, SystemTime::now()), "0s ago");
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
            "https://a.example:443",
        ] {
            assert!(text.parse::<Target>().is_ok(), "{text}");
        }
        for text in [
            "",
            "localhost",
            ":1",
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
