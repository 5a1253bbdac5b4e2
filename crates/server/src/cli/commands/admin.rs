//! The commands that call a running tracker's `AdminService`.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{io, iter};

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::v1::node_id::Id;
use serde::Serialize;

use crate::cli::client::Transport;
use crate::cli::commands::{CommandError, TrackerArgs, generation, node_name, routes};
use crate::cli::print::{Format, PagedOutput, Print, ProxyRow, RouteRow, age, rfc3339, size, time};
use crate::cli::remark;
use crate::config;

/// Arguments of `explain`.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The node's ID
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    node: String,
    #[command(flatten)]
    print: Print,
}

/// Arguments of `nodes`.
#[derive(Debug, Args)]
pub(crate) struct Nodes {
    /// Only nodes that have a route through the proxy with this ID
    #[arg(long, value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
    proxy: Option<String>,
    #[command(flatten)]
    print: Print,
}

/// Arguments of `proxies`.
#[derive(Debug, Args)]
pub(crate) struct Proxies {
    #[command(flatten)]
    print: Print,
}

/// Arguments of `rm-proxy`.
#[derive(Debug, Args)]
pub(crate) struct RmProxy {
    /// The proxy's ID
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    proxy_id: String,
    #[command(flatten)]
    print: Print,
}

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub(crate) struct Stats {
    #[command(flatten)]
    print: Print,
}

impl TrackerArgs {
    pub(crate) async fn admin(&self) -> Result<AdminServiceClient<Transport>, CommandError> {
        Ok(self.admin_over(self.transport().await?))
    }

    /// Returns a client over a connection.
    pub(crate) fn admin_over(&self, connection: Transport) -> AdminServiceClient<Transport> {
        AdminServiceClient::with_origin(connection, self.addr.origin())
    }
}

pub(crate) async fn explain(explain: Explain) -> Result<(), CommandError> {
    let Print { format, at } = explain.print;
    let node = v1::NodeId {
        id: Some(Id::Name(explain.node.clone())),
    };
    let mut client = at.admin().await?;
    let response = at.call(client.explain(v1::ExplainRequest { node: Some(node) })).await?;
    if response.routes.is_empty() {
        remark(&format!("nothing is known of node {}", explain.node));
    }
    let routes: Vec<_> = response
        .routes
        .into_iter()
        .map(|route| RouteRow {
            node: None,
            verdict: Some(verdict(route.verdict())),
            complaint: route.complaint.map(Into::into),
            proxy: route.proxy.unwrap_or_default().into(),
            last_refresh_time: time(route.last_refresh_time),
            age_seconds: duration(route.age).map(|age| age.as_secs_f64()),
        })
        .collect();
    let heading = ["PROXY", "CLUSTER", "ADDR", "UPDATED", "AGE", "VERDICT"];
    format.print(Some(heading), &routes, |route| {
        let age = route.age_seconds.map(|seconds| age(Duration::from_secs_f64(seconds)));
        [
            route.proxy.proxy_id.clone(),
            route.proxy.cluster_name.clone(),
            route.proxy.addr.clone(),
            route.updated(),
            age.unwrap_or_default(),
            route.verdict_and_complaints(),
        ]
    })
}

pub(crate) async fn nodes(nodes: Nodes) -> Result<(), CommandError> {
    let Print { format, at } = nodes.print;
    let mut client = at.admin().await?;
    let mut answer = PagedOutput::new(format, Some(["NODE", "PROXY", "CLUSTER", "ADDR", "UPDATED"]));
    let mut empty = true;
    let mut request = v1::ListNodesRequest {
        proxy_id: nodes.proxy.clone().unwrap_or_default(),
        ..v1::ListNodesRequest::default()
    };
    loop {
        let page = at.call(client.list_nodes(request.clone())).await?;
        let mut rows = Vec::new();
        for node in &page.nodes {
            rows.extend(routes(node, &page.proxies).map(|route| RouteRow {
                node: Some(node_name(node.node.as_ref())),
                ..route
            }));
        }
        empty &= rows.is_empty();
        answer.push(&mut io::stdout().lock(), &rows, |route| {
            [
                route.node.clone().unwrap_or_default(),
                route.proxy.proxy_id.clone(),
                route.proxy.cluster_name.clone(),
                route.proxy.addr.clone(),
                route.updated(),
            ]
        })?;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if empty {
        match nodes.proxy {
            None => remark("no node has a route"),
            Some(proxy) => remark(&format!("no node has a route through proxy {proxy}")),
        }
    }
    Ok(answer.finish(&mut io::stdout().lock())?)
}

pub(crate) async fn proxies(proxies: Proxies) -> Result<(), CommandError> {
    let Print { format, at } = proxies.print;
    let mut client = at.admin().await?;
    let mut answer = PagedOutput::new(format, Some(["PROXY", "CLUSTER", "ADDR", "ROUTES"]));
    let mut empty = true;
    let mut request = v1::ListProxiesRequest::default();
    loop {
        let page = at.call(client.list_proxies(request.clone())).await?;
        // A tracker of an earlier version sends no counts.
        let counts = page.route_counts.into_iter().map(Some).chain(iter::repeat(None));
        let rows = page
            .proxies
            .into_iter()
            .zip(counts)
            .map(|(proxy, routes)| CountedProxy {
                proxy: proxy.into(),
                routes,
            });
        let rows: Vec<_> = rows.collect();
        empty &= rows.is_empty();
        answer.push(&mut io::stdout().lock(), &rows, |CountedProxy { proxy, routes }| {
            let routes = routes.map(|routes| routes.to_string()).unwrap_or_default();
            [
                proxy.proxy_id.clone(),
                proxy.cluster_name.clone(),
                proxy.addr.clone(),
                routes,
            ]
        })?;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if empty {
        remark("no proxy is registered");
    }
    Ok(answer.finish(&mut io::stdout().lock())?)
}

pub(crate) async fn rm_proxy(rm_proxy: RmProxy) -> Result<(), CommandError> {
    let RmProxy {
        proxy_id,
        print: Print { format, at },
    } = rm_proxy;
    let mut client = at.admin().await?;
    let request = v1::RemoveProxyRequest {
        proxy_id: proxy_id.clone(),
    };
    let removed = at.call(client.remove_proxy(request)).await?.removed;
    if !removed {
        remark(&format!("proxy {proxy_id} was not registered"));
    }
    format.done(&RemovedProxy { proxy_id, removed })
}

/// What `rm-proxy` did, in JSON.
#[derive(Serialize)]
struct RemovedProxy {
    proxy_id: String,
    removed: bool,
}

/// A proxy with the number of its routes.
#[derive(Serialize)]
struct CountedProxy {
    #[serde(flatten)]
    proxy: ProxyRow,
    #[serde(skip_serializing_if = "Option::is_none")]
    routes: Option<u64>,
}

#[derive(Serialize)]
struct StatsRow {
    routes: u64,
    nodes: u64,
    proxies: u64,
    records: u64,
    watches: u32,
    connections: u32,
    sessions: u32,
    client_memory_bytes: u64,
    client_memory_limit_bytes: u64,
    /// The number of refusals, by reason.
    refusals: BTreeMap<String, u64>,
    /// The shared resources, by name.
    resources: BTreeMap<String, UsageRow>,
    keep_alive_seconds: Option<f64>,
    effective_keep_alive_seconds: Option<f64>,
    expiry_hold: &'static str,
    expiry_hold_left_seconds: Option<f64>,
    restored_routes: u64,
    last_snapshot_time: Option<String>,
    last_snapshot_bytes: u64,
    last_snapshot_seconds: f64,
    snapshots: u64,
    snapshot_failures: u64,
    snapshots_failing: bool,
    /// Whether the tracker writes snapshots. JSON has no such field: its readers have the configuration.
    #[serde(skip)]
    has_snapshots: bool,
    uptime_seconds: Option<f64>,
    generation: String,
    version: String,
}

/// How much of a resource is in use, and its limits; 0 is no limit.
#[derive(Serialize)]
struct UsageRow {
    used: u64,
    limit: u64,
    client_limit: u64,
    proxy_limit: u64,
}

impl UsageRow {
    fn text(&self) -> String {
        let limits = [
            (self.limit, ""),
            (self.client_limit, " for a client"),
            (self.proxy_limit, " for a proxy"),
        ];
        let limits = limits.into_iter().filter(|&(most, _)| most > 0);
        let limits: Vec<_> = limits.map(|(most, of)| format!("{most}{of}")).collect();
        match limits.is_empty() {
            true => self.used.to_string(),
            false => format!("{} of {}", self.used, limits.join(", ")),
        }
    }
}

pub(crate) async fn stats(stats: Stats) -> Result<(), CommandError> {
    let Print { format, at } = stats.print;
    let mut client = at.admin().await?;
    let stats = at.call(client.stats(v1::StatsRequest {})).await?;
    let hold_left = duration(stats.expiry_hold_left);
    let (hold, held) = match stats.expiry_hold() {
        v1::ExpiryHold::Unspecified => ("none", "no"),
        v1::ExpiryHold::Stop => ("stop", "after a stop"),
        v1::ExpiryHold::Brake => ("brake", "by the brake"),
        v1::ExpiryHold::Restart => ("restart", "after a restart"),
    };
    let has_snapshots = stats.snapshots.is_some();
    let snapshots = stats.snapshots.unwrap_or_default();
    let row = StatsRow {
        has_snapshots,
        restored_routes: snapshots.restored_route_count,
        last_snapshot_time: time(snapshots.last_time).map(rfc3339),
        last_snapshot_bytes: snapshots.last_bytes,
        last_snapshot_seconds: duration(snapshots.last_duration).unwrap_or_default().as_secs_f64(),
        snapshots: snapshots.success_count,
        snapshot_failures: snapshots.failure_count,
        snapshots_failing: snapshots.failing,
        routes: stats.route_count,
        nodes: stats.node_count,
        proxies: stats.proxy_count,
        records: stats.record_count,
        watches: stats.watch_count,
        connections: stats.connection_count,
        sessions: stats.session_count,
        client_memory_bytes: stats.client_memory_bytes,
        client_memory_limit_bytes: stats.client_memory_limit_bytes,
        refusals: stats
            .refusals
            .into_iter()
            .map(|refusals| (refusals.reason, refusals.count))
            .collect(),
        resources: stats
            .resources
            .into_iter()
            .map(|usage| {
                let row = UsageRow {
                    used: usage.used,
                    limit: usage.limit,
                    client_limit: usage.client_limit,
                    proxy_limit: usage.proxy_limit,
                };
                (usage.resource, row)
            })
            .collect(),
        keep_alive_seconds: duration(stats.keep_alive).map(|interval| interval.as_secs_f64()),
        effective_keep_alive_seconds: duration(stats.effective_keep_alive).map(|interval| interval.as_secs_f64()),
        expiry_hold: hold,
        expiry_hold_left_seconds: hold_left.map(|left| left.as_secs_f64()),
        uptime_seconds: duration(stats.uptime).map(|uptime| uptime.as_secs_f64()),
        generation: generation(stats.generation),
        version: stats.version,
    };
    match format {
        Format::Json => format.print(None::<[&str; 0]>, &[row], |_| []),
        Format::Table => {
            let keep_alive = duration(stats.keep_alive).map(config::duration::format);
            let effective = duration(stats.effective_keep_alive).map(config::duration::format);
            let uptime = duration(stats.uptime).map(age);
            let held = match hold_left.map(config::duration::format) {
                Some(left) => format!("{held}, for at most {left}"),
                None => held.to_owned(),
            };
            let lines = [
                ("routes", row.routes.to_string()),
                ("nodes", row.nodes.to_string()),
                ("proxies", row.proxies.to_string()),
                ("records", row.records.to_string()),
                ("watches", row.watches.to_string()),
                ("connections", row.connections.to_string()),
                ("sessions", row.sessions.to_string()),
                ("client memory", size(row.client_memory_bytes)),
                ("client memory limit", size(row.client_memory_limit_bytes)),
                ("keep-alive", keep_alive.unwrap_or_default()),
                ("effective keep-alive", effective.unwrap_or_default()),
                ("expiry held", held),
                ("restored routes", row.restored_routes.to_string()),
                ("snapshot", last_snapshot(&row)),
                ("uptime", uptime.unwrap_or_default()),
                ("generation", row.generation),
                ("version", row.version),
                ("refusals", row.refusals.values().sum::<u64>().to_string()),
            ];
            let lines = lines.map(|(name, value)| (name.to_owned(), value)).into_iter();
            let refusals = row
                .refusals
                .iter()
                .map(|(reason, count)| (format!("refusals: {reason}"), count.to_string()));
            let resources = row
                .resources
                .iter()
                .map(|(resource, usage)| (format!("use: {resource}"), usage.text()));
            let lines: Vec<_> = lines.chain(refusals).chain(resources).collect();
            format.print(None, &lines, |(name, value)| [name.clone(), value.clone()])
        }
    }
}

/// Describes the last snapshot.
fn last_snapshot(row: &StatsRow) -> String {
    let last = match &row.last_snapshot_time {
        Some(time) => format!("{time}, {}", size(row.last_snapshot_bytes)),
        None if row.has_snapshots => "none".to_owned(),
        None => "off (no data_dir)".to_owned(),
    };
    match row.snapshots_failing {
        true => format!("{last}; the next snapshot cannot be written, see the log"),
        false => last,
    }
}

fn verdict(verdict: v1::Verdict) -> &'static str {
    match verdict {
        v1::Verdict::Returned => "returned",
        v1::Verdict::Held => "returned (held)",
        v1::Verdict::Restored => "returned (restored, not confirmed since)",
        v1::Verdict::Expired => "expired",
        v1::Verdict::ProxyRemoved => "proxy removed",
        v1::Verdict::Unspecified => "unknown",
    }
}

pub(crate) fn duration(duration: Option<prost_types::Duration>) -> Option<Duration> {
    Duration::try_from(duration?).ok()
}
