//! The commands that ask a running server.

pub(crate) mod admin;

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use nodetracker_proto::api;
use nodetracker_proto::api::node_tracker_service_client::NodeTrackerServiceClient;
use serde::Serialize;
use thiserror::Error;
use tokio::time::timeout;
use tonic::Status;

use crate::dial::{Target, Transport};

/// How long connecting, and then the call, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which server to ask.
#[derive(Debug, Args)]
pub(crate) struct Where {
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
    node: String,
    /// The ID of the proxy that can reach it
    proxy_id: String,
    /// The proxy's address, HOST:PORT
    proxy_addr: String,
    /// The cluster that the proxy belongs to
    #[arg(long, value_name = "NAME", default_value = "")]
    cluster: String,
    #[command(flatten)]
    at: Where,
}

/// Arguments of `get`.
#[derive(Debug, Args)]
pub(crate) struct Get {
    /// The node's ID
    node: String,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    at: Where,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub(crate) struct Rm {
    /// The node's ID
    node: String,
    #[command(flatten)]
    at: Where,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Format {
    /// Aligned columns
    #[default]
    Table,
    /// An array of objects
    Json,
}

/// Why a command did not do what it was asked, in one line.
#[derive(Debug, Error)]
pub(crate) enum QueryError {
    #[error("{addr}: {reason}")]
    Dial { addr: Target, reason: String },
    #[error("{addr}: {code}: {message}")]
    Call {
        addr: Target,
        code: String,
        message: String,
    },
    #[error("{0}")]
    Usage(&'static str),
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl Where {
    async fn connect(&self) -> Result<NodeTrackerServiceClient<Transport>, QueryError> {
        let transport = self.dial().await?;
        Ok(NodeTrackerServiceClient::with_origin(transport, self.addr.origin()))
    }

    /// A connection, for the client of any service.
    async fn dial(&self) -> Result<Transport, QueryError> {
        match (self.addr.tls, &self.ca_file) {
            (true, None) => return Err(QueryError::Usage("--addr https://… needs --ca-file")),
            (false, Some(_)) => return Err(QueryError::Usage("--ca-file needs --addr https://…")),
            _ => {}
        }
        let dialed = timeout(PATIENCE, self.addr.dial(self.ca_file.as_deref())).await;
        dialed
            .unwrap_or_else(|_| Err(format!("cannot connect within {PATIENCE:?}")))
            .map_err(|reason| QueryError::Dial {
                addr: self.addr.clone(),
                reason,
            })
    }

    async fn call<T>(&self, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, QueryError> {
        let answer = timeout(PATIENCE, call).await;
        match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("no answer within {PATIENCE:?}")))) {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(QueryError::Call {
                addr: self.addr.clone(),
                code: code_name(status.code()),
                message: message(&status),
            }),
        }
    }
}

pub(crate) async fn add(add: Add) -> Result<(), QueryError> {
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
        cluster_name: cluster,
        addr: proxy_addr,
    };
    let mut client = at.connect().await?;
    at.call(client.add_node(request)).await?;
    Ok(())
}

pub(crate) async fn rm(rm: Rm) -> Result<(), QueryError> {
    let mut client = rm.at.connect().await?;
    rm.at
        .call(client.remove_node(api::RemoveNodeRequest { node_id: rm.node }))
        .await?;
    Ok(())
}

pub(crate) async fn get(get: Get) -> Result<(), QueryError> {
    let mut client = get.at.connect().await?;
    let answer = get
        .at
        .call(client.get_proxies(api::GetProxiesRequest {
            node_id: get.node.clone(),
        }))
        .await?;
    if answer.proxy_details.is_empty() {
        let _ = writeln!(
            io::stderr(),
            "nodetracker: no proxy is known to reach node {}",
            get.node
        );
    }
    let mut out = io::stdout().lock();
    match get.format {
        Format::Table => write_table(&mut out, &answer.proxy_details, SystemTime::now())?,
        Format::Json => write_json(&mut out, &answer.proxy_details)?,
    }
    Ok(out.flush()?)
}

/// An element of the JSON array: the wire's fields under the wire's names.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    cluster_name: &'a str,
    addr: &'a str,
    updated_at: Option<String>,
}

fn write_json(out: &mut impl Write, proxies: &[api::ProxyDetails]) -> io::Result<()> {
    let rows: Vec<_> = proxies
        .iter()
        .map(|proxy| Row {
            id: &proxy.id,
            cluster_name: &proxy.cluster_name,
            addr: &proxy.addr,
            updated_at: updated_at(proxy).map(rfc3339),
        })
        .collect();
    serde_json::to_writer_pretty(&mut *out, &rows)?;
    writeln!(out)
}

fn write_table(out: &mut impl Write, proxies: &[api::ProxyDetails], now: SystemTime) -> io::Result<()> {
    let mut rows = vec![["PROXY", "CLUSTER", "ADDR", "UPDATED"].map(str::to_owned)];
    rows.extend(proxies.iter().map(|proxy| {
        let updated = updated_at(proxy).map_or("-".into(), |at| format!("{} ({})", rfc3339(at), age(now, at)));
        [
            proxy.id.clone(),
            proxy.cluster_name.clone(),
            proxy.addr.clone(),
            updated,
        ]
    }));
    write_columns(out, &rows)
}

/// Writes rows whose columns are aligned.
fn write_columns<const N: usize>(out: &mut impl Write, rows: &[[String; N]]) -> io::Result<()> {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    for row in rows {
        for (at, (text, width)) in row.iter().zip(widths).enumerate() {
            match at + 1 == N {
                // Nothing follows that would have to be aligned.
                true => writeln!(out, "{text}")?,
                false => write!(out, "{text:width$}  ")?,
            }
        }
    }
    Ok(())
}

fn updated_at(proxy: &api::ProxyDetails) -> Option<SystemTime> {
    SystemTime::try_from(proxy.updated_at?).ok()
}

/// To the millisecond, in UTC.
fn rfc3339(time: SystemTime) -> String {
    // Formatting fails for years before 1970 and after 9999.
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_millis(time.clamp(SystemTime::UNIX_EPOCH, latest)).to_string()
}

/// How long ago, in its two largest units. The server's clock may be ahead of ours.
fn age(now: SystemTime, then: SystemTime) -> String {
    let seconds = now.duration_since(then).unwrap_or_default().as_secs();
    match seconds {
        0..60 => format!("{seconds}s ago"),
        60..3600 => format!("{}m {}s ago", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h {}m ago", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d {}h ago", seconds / 86400, seconds / 3600 % 24),
    }
}

/// The name of a code as gRPC's documentation writes it: `INVALID_ARGUMENT`.
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

/// A status's message and what caused it, in one line.
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
    message.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn table_is_aligned() {
        let mut out = Vec::new();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_637_625_700);
        let proxies = [
            proxy("proxy-1", "", "10.0.0.1:3080", 1_637_625_600),
            proxy("p2", "root", "p2:1", 1_637_625_698),
        ];
        write_table(&mut out, &proxies, now).unwrap();
        let expected = "\
PROXY    CLUSTER  ADDR           UPDATED
proxy-1           10.0.0.1:3080  2021-11-23T00:00:00.042Z (1m 39s ago)
p2       root     p2:1           2021-11-23T00:01:38.042Z (1s ago)
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn times_that_no_server_should_send_are_printed_somehow() {
        let mut out = Vec::new();
        let absurd = [i64::MIN, -1, 253_402_300_800, i64::MAX].map(|seconds| proxy("p", "", "p:1", seconds));
        write_table(&mut out, &absurd, SystemTime::UNIX_EPOCH).unwrap();
        write_json(&mut out, &absurd).unwrap();
        let none = api::ProxyDetails {
            updated_at: None,
            ..absurd[0].clone()
        };
        write_table(&mut out, &[none], SystemTime::UNIX_EPOCH).unwrap();
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
