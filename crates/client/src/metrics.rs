//! Metrics for Prometheus and OpenMetrics, of the feature `metrics`.
//!
//! Each part is a [`Collector`]. Register the parts in the [`Registry`](prometheus_client::registry::Registry) of your
//! program. Nothing is added up while the parts work. At each scrape, the metrics come from the figures that the parts
//! keep anyway. If a program has several parts of one kind, register each in a sub-registry with a label of its own.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use nodetracker_client::pool::{AgentPool, PoolConfig, Target};
//! use nodetracker_client::transport::tcp::TcpTransport;
//! use prometheus_client::encoding::prometheus_text;
//! use prometheus_client::registry::Registry;
//!
//! let pool = AgentPool::start(PoolConfig::new("node-1".parse()?), TcpTransport::default());
//! pool.handle().add_target(Target::new("main", "127.0.0.1:1"));
//! let mut registry = Registry::default();
//! registry.register_collector(Box::new(pool.handle().clone()));
//!
//! let mut page = String::new();
//! prometheus_text::encode(&mut page, &registry)?;
//! assert!(page.contains(r#"nodetracker_pool_tunnels{cluster="main",state="connecting"} 1"#));
//! # Ok(())
//! # }
//! ```
//!
#![doc = include_str!("metrics.md")]

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::cache::{CacheStats, RouteCache};
use crate::client::{TrackerClient, TrackerStats};
use crate::listener::{AgentListener, ListenerStats};
use crate::pool::{PoolHandle, PoolStats, StateCounts};
use crate::proxy::service::Routes;
use crate::proxy::{Dialer, DialerStats, PeerServer, PeerServerStats, ProxyMetrics};
use crate::replica::{Replica, Stats as ReplicaStats, Status as ReplicaStatus};
use crate::session::{ProxySession, SessionState, SessionStats};

/// A metric of a source `S`.
struct Row<S> {
    /// Without the `_total` of a counter.
    name: &'static str,
    help: &'static str,
    value: Value<S>,
}

enum Value<S> {
    Counter(fn(&S) -> u64),
    Gauge(fn(&S) -> u64),
    Seconds(fn(&S) -> Option<Duration>),
}

const fn counter<S>(name: &'static str, help: &'static str, value: fn(&S) -> u64) -> Row<S> {
    let value = Value::Counter(value);
    Row { name, help, value }
}

const fn gauge<S>(name: &'static str, help: &'static str, value: fn(&S) -> u64) -> Row<S> {
    let value = Value::Gauge(value);
    Row { name, help, value }
}

const fn seconds<S>(name: &'static str, help: &'static str, value: fn(&S) -> Option<Duration>) -> Row<S> {
    let value = Value::Seconds(value);
    Row { name, help, value }
}

impl<S> Row<S> {
    fn metric_type(&self) -> MetricType {
        match self.value {
            Value::Counter(_) => MetricType::Counter,
            Value::Gauge(_) | Value::Seconds(_) => MetricType::Gauge,
        }
    }
}

/// Rows whose names begin with a prefix: the kind, the rest of the name, the help, and the value.
macro_rules! rows {
    ($prefix:literal; $($kind:ident $name:ident: $help:literal, $value:expr;)+) => {
        &[$($kind(concat!($prefix, stringify!($name)), $help, $value)),+]
    };
}

type Labels = Vec<(&'static str, String)>;

/// Writes the metrics of sources that differ in their labels.
fn write<S>(encoder: &mut DescriptorEncoder<'_>, rows: &[Row<S>], sources: &[(Labels, S)]) -> fmt::Result {
    for row in rows {
        let mut metric = encoder.encode_descriptor(row.name, row.help, None, row.metric_type())?;
        for (labels, source) in sources {
            let mut metric = metric.encode_family(labels)?;
            match row.value {
                Value::Counter(value) => metric.encode_counter::<NoLabelSet, _, f64>(&value(source), None)?,
                Value::Gauge(value) => metric.encode_gauge(&value(source))?,
                Value::Seconds(value) => {
                    if let Some(value) = value(source) {
                        metric.encode_gauge(&value.as_secs_f64())?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// A part with metrics.
trait Part {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result;
}

macro_rules! collectors {
    ($($part:ty)+) => {
        $(impl Collector for $part {
            fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
                self.write(&mut encoder)
            }
        })+
    };
}

collectors! {
    PoolHandle AgentListener ProxySession TrackerClient RouteCache Replica Dialer PeerServer ProxyMetrics
}

const TUNNELS: &[Row<usize>] = rows! { "nodetracker_pool_";
    gauge tunnels: "Tunnels of each cluster, by state", |count| *count as u64;
};

const POOL: &[Row<PoolStats>] = rows! { "nodetracker_pool_";
    counter attempts: "Attempts to open a tunnel", |stats| stats.attempts;
    counter failures: "Attempts that ended before a proxy's welcome", |stats| stats.failures;
    counter duplicates:
        "Attempts that reached a proxy to which the pool already had a tunnel", |stats| stats.duplicates;
    counter surplus: "Tunnels that were not wanted any more when the welcome came", |stats| stats.surplus;
    counter lost: "Tunnels with a proxy that have ended without a goodbye of this pool", |stats| stats.lost;
    counter broken: "Lost tunnels whose keep-alive had no answer", |stats| stats.broken;
    counter reconnects: "Reconnect signals of proxies", |stats| stats.reconnects;
    counter cut: "Tunnels that were closed before their streams had ended", |stats| stats.cut;
    counter ignored_proxies:
        "Entries of lists that were ignored: bad IDs, and more proxies than a pool remembers",
        |stats| stats.ignored_proxies;
};

impl Part for PoolHandle {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let status = self.status().latest();
        let of_cluster = |(cluster, counts): (&String, &StateCounts)| {
            let StateCounts {
                connecting,
                discovering,
                connected,
                discovered,
                disconnected,
            } = *counts;
            [
                ("connecting", connecting),
                ("discovering", discovering),
                ("connected", connected),
                ("discovered", discovered),
                ("disconnected", disconnected),
            ]
            .map(|(state, count)| {
                let labels = vec![("cluster", cluster.clone()), ("state", state.to_owned())];
                (labels, count)
            })
        };
        let tunnels: Vec<_> = status.counts.iter().flat_map(of_cluster).collect();
        write(encoder, TUNNELS, &tunnels)?;
        write(encoder, POOL, &[(Labels::new(), status.stats)])
    }
}

const LISTENER: &[Row<ListenerStats>] = rows! { "nodetracker_listener_";
    gauge agents: "Agents, those in the handshake among them", |stats| stats.agents as u64;
    gauge nodes: "Nodes with a tunnel", |stats| stats.nodes as u64;
    counter accepted: "Connections of agents that were accepted", |stats| stats.accepted;
    counter full: "Connections that were closed because there were too many agents", |stats| stats.full;
    counter failed: "TLS handshakes that failed, or that took too long", |stats| stats.failed;
    counter refused: "Agents that were refused", |stats| stats.refused;
    counter claimed: "Agents that have claimed this proxy", |stats| stats.claimed;
};

impl Part for AgentListener {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        write(encoder, LISTENER, &[(Labels::new(), self.stats())])
    }
}

const SESSION: &[Row<SessionStats>] = rows! { "nodetracker_session_";
    gauge open: "Whether the tracker has accepted the session", |stats| u64::from(stats.state == SessionState::Open);
    gauge settled:
        "Whether the tracker has confirmed every announcement and withdrawal", |stats| u64::from(stats.is_settled);
    gauge nodes: "Nodes that are up, and nodes whose routes must still be removed", |stats| stats.nodes as u64;
    seconds heartbeat_interval_seconds:
        "The heartbeat interval that the tracker dictates", |stats| stats.heartbeat_interval;
    counter sessions: "Sessions that the tracker accepted", |stats| stats.counters.sessions;
    counter full_announcements: "Times that all nodes had to be announced", |stats| stats.counters.full_announcements;
    counter lost_streams: "Streams that ended, or that could not begin", |stats| stats.counters.lost_streams;
    counter faults:
        "Streams that the proxy ended because of a fault of the tracker or the connection",
        |stats| stats.counters.faults;
    counter requests: "Requests of all kinds", |stats| stats.counters.requests;
    counter announced_nodes: "Nodes that the tracker accepted", |stats| stats.counters.announced_nodes;
    counter refused_nodes: "Nodes that the tracker had no room for", |stats| stats.counters.refused_nodes;
    counter withdrawn_nodes:
        "Nodes whose routes the tracker has removed because their tunnels ended",
        |stats| stats.counters.withdrawn_nodes;
    counter heartbeat_handles: "Handles in heartbeats", |stats| stats.counters.heartbeat_handles;
    counter gone_handles: "Handles that the tracker reported as gone", |stats| stats.counters.gone_handles;
    counter passes: "Passes over all nodes", |stats| stats.counters.passes;
};

impl Part for ProxySession {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of_tracker = |stats: SessionStats| (vec![("tracker", stats.tracker.to_string())], stats);
        let sessions: Vec<_> = self.stats().into_iter().map(of_tracker).collect();
        write(encoder, SESSION, &sessions)
    }
}

const TRACKER: &[Row<TrackerStats>] = rows! { "nodetracker_tracker_";
    gauge healthy: "Whether the tracker gets calls", |stats| u64::from(stats.is_healthy);
    seconds round_trip_seconds: "The time that a small call takes if nothing delays the call", |stats| stats.round_trip;
    counter attempts: "Attempts to make a call", |stats| stats.attempts;
    counter failed_attempts: "Attempts that got no answer", |stats| stats.failed_attempts;
    counter probes: "Probes of the tracker's health", |stats| stats.probes;
    counter failed_probes: "Probes that got no answer", |stats| stats.failed_probes;
    counter missed_writes: "Writes that another tracker has done and this tracker has not", |stats| stats.missed_writes;
};

impl Part for TrackerClient {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let of_tracker = |stats: TrackerStats| (vec![("tracker", stats.addr.to_string())], stats);
        let trackers: Vec<_> = self.stats().into_iter().map(of_tracker).collect();
        write(encoder, TRACKER, &trackers)
    }
}

const CACHE: &[Row<CacheStats>] = rows! { "nodetracker_cache_";
    gauge nodes: "Nodes whose answers are in the cache, roughly", |stats| stats.nodes;
    counter hits: "Look-ups with a fresh answer in the cache", |stats| stats.hits;
    counter misses: "Look-ups without a fresh answer in the cache", |stats| stats.misses;
    counter calls: "Calls to the tracker", |stats| stats.calls;
    counter failures: "Calls that failed", |stats| stats.failures;
    counter stale_answers: "Look-ups with a stale answer, because no tracker answered", |stats| stats.stale_answers;
    counter invalidations: "Invalidations of a node, of a proxy, or of all nodes", |stats| stats.invalidations;
    counter complaints: "Reports of unreachable nodes", |stats| stats.complaints;
};

impl Part for RouteCache {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        write(encoder, CACHE, &[(Labels::new(), self.stats())])
    }
}

const REPLICA: &[Row<(ReplicaStats, Option<Duration>)>] = rows! { "nodetracker_replica_";
    gauge following:
        "Whether the copy follows a tracker's changes",
        |(stats, _)| u64::from(stats.status == ReplicaStatus::Following);
    seconds staleness_seconds: "How far the copy may be behind the tracker", |(_, staleness)| *staleness;
    gauge routes: "Routes of the copy", |(stats, _)| stats.routes as u64;
    counter messages: "Messages of watches that were applied", |(stats, _)| stats.messages;
    counter snapshots: "Snapshots that became complete", |(stats, _)| stats.snapshots;
    counter resumes: "Watches that resumed without a snapshot", |(stats, _)| stats.resumes;
    counter lost_places: "Watches that could not resume", |(stats, _)| stats.lost_places;
    counter resyncs: "Resyncs that began", |(stats, _)| stats.resyncs;
    counter ended: "Watches that ended", |(stats, _)| stats.ended;
};

impl Part for Replica {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let figures = (self.stats(), self.staleness());
        write(encoder, REPLICA, &[(Labels::new(), figures)])
    }
}

const DIALS: &[Row<u64>] = rows! { "nodetracker_dialer_";
    counter dials: "Dials, by result", |count| *count;
};

const DIALER: &[Row<DialerStats>] = rows! { "nodetracker_dialer_";
    gauge peers: "Tunnels to peers", |stats| stats.peers as u64;
    counter failed_attempts:
        "Attempts at a peer that failed, also in dials that succeeded", |stats| stats.failed_attempts;
};

impl Part for Dialer {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = self.stats();
        let dials = [
            ("local", stats.local),
            ("peer", stats.through_peers),
            ("failed", stats.failed),
        ];
        let dials = dials.map(|(result, count)| (vec![("result", result.to_owned())], count));
        write(encoder, DIALS, &dials)?;
        write(encoder, DIALER, &[(Labels::new(), stats)])
    }
}

const PEERS: &[Row<PeerServerStats>] = rows! { "nodetracker_peers_";
    gauge connected: "Peers", |stats| stats.peers as u64;
    counter full: "Connections that were closed because there were too many peers", |stats| stats.full;
    counter failed:
        "TLS handshakes that failed or took too long, and requests with an ID of another proxy", |stats| stats.failed;
    counter dialed: "Streams to nodes that were opened for peers", |stats| stats.dialed;
    counter refused: "Requests of peers that were refused", |stats| stats.refused;
};

impl Part for PeerServer {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        write(encoder, PEERS, &[(Labels::new(), self.stats())])
    }
}

impl Part for ProxyMetrics {
    fn write(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(parts) = self.0.upgrade() else { return Ok(()) };
        parts.sessions.current().write(encoder)?;
        parts.agents.write(encoder)?;
        parts.peers.write(encoder)?;
        parts.dialer.write(encoder)?;
        parts.client.write(encoder)?;
        match &parts.routes {
            Routes::Cache(cache) => cache.write(encoder),
            Routes::Replica(replica) => replica.write(encoder),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document<S>(labels: &str, rows: &[Row<S>]) -> String {
        let row = |row: &Row<S>| {
            let (kind, suffix) = match row.metric_type() {
                MetricType::Counter => ("counter", "_total"),
                _ => ("gauge", ""),
            };
            format!("| `{}{suffix}` | {kind} | {labels} | {} |\n", row.name, row.help)
        };
        rows.iter().map(row).collect()
    }

    #[test]
    fn the_documentation_has_each_metric() {
        let rows = [
            document("`cluster`, `state`", TUNNELS),
            document("", POOL),
            document("", LISTENER),
            document("`tracker`", SESSION),
            document("`tracker`", TRACKER),
            document("", CACHE),
            document("", REPLICA),
            document("`result`", DIALS),
            document("", DIALER),
            document("", PEERS),
        ];
        let table = format!(
            "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n{}",
            rows.concat()
        );
        assert_eq!(include_str!("metrics.md"), table, "src/metrics.md has to be:\n{table}");
    }
}
