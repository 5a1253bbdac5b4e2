//! The metrics of the server.
//!
//! [`table::METRICS`] has a row for each metric. Nothing is added up while calls run: at each scrape, the rows read the
//! counters and figures that the server keeps anyway.

mod process;
mod reading;
mod samples;
mod table;

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::{Registry, Unit};

pub(crate) use crate::server::metrics::reading::Sources;

use crate::server::metrics::process::ProcessReader;
use crate::server::metrics::reading::Reading;
use crate::server::metrics::samples::{MetricKind, Samples};
use crate::server::metrics::table::{METRICS, Metric};

/// The format of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Prometheus's text format, version 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0 as text.
    OpenMetrics,
}

impl Format {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Format::Prometheus => prometheus_text::CONTENT_TYPE,
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The metrics of one server.
#[derive(Debug)]
pub(crate) struct Metrics(Registry);

impl Metrics {
    pub(crate) fn new(sources: Sources) -> Self {
        let mut registry = Registry::default();
        let process = ProcessReader::default();
        registry.register_collector(Box::new(Rows { sources, process }));
        Self(registry)
    }

    /// Returns all metrics as text. Takes less than two milliseconds, even without optimization. A kernel before 6.2
    /// counts the open files one by one, so the figures of the process are kept for a while.
    pub(crate) fn encode(&self, format: Format) -> String {
        let mut page = String::new();
        let encoded = match format {
            Format::Prometheus => prometheus_text::encode(&mut page, &self.0),
            Format::OpenMetrics => text::encode(&mut page, &self.0),
        };
        encoded.expect("a String takes everything");
        page
    }
}

/// Reads the sources at each scrape.
#[derive(Debug)]
struct Rows {
    sources: Sources,
    process: ProcessReader,
}

impl Collector for Rows {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let reading = Reading::new(&self.sources, &self.process);
        for metric in METRICS.iter().filter(|metric| (metric.applies)(&reading)) {
            let (name, unit) = metric.name_and_unit();
            let samples = &mut Samples {
                encoder: encoder.encode_descriptor(name, metric.help, unit.as_ref(), metric.kind.to_type())?,
                kind: metric.kind,
                labels: metric.labels,
            };
            (metric.write)(&reading, samples)?;
        }
        Ok(())
    }
}

impl Metric {
    /// Splits the name into its beginning and its unit. The encoder adds the unit, and `_total` to the name of a
    /// counter.
    fn name_and_unit(&self) -> (&'static str, Option<Unit>) {
        let name = match self.kind {
            MetricKind::Counter => self.name.trim_end_matches("_total"),
            MetricKind::Gauge | MetricKind::Histogram => self.name,
        };
        match name.rsplit_once('_') {
            Some((name, "seconds")) => (name, Some(Unit::Seconds)),
            Some((name, "bytes")) => (name, Some(Unit::Bytes)),
            _ => (name, None),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use nodetracker::RouteTable;
    use rcgen::generate_simple_self_signed;
    use tokio::time::Instant;
    use tonic::Code;

    use super::*;
    use crate::config::{Config, Keypair, Origin, Setting};
    use crate::connection_counters::{HandshakeFailure, SessionMessage};
    use crate::grpc::call_counters::CallStart;
    use crate::grpc::worker_counters::WorkerCounters;
    use crate::limits::Limits;
    use crate::memory::MemoryBudget;
    use crate::rpc::instance_id::InstanceId;
    use crate::rpc::methods::methods;
    use crate::rpc::shutdown::DrainRequest;
    use crate::rpc::watch::Watches;
    use crate::server::diag::Readiness;
    use crate::tls::Certificates;

    /// The table of the documentation, as the rows say.
    fn documented() -> String {
        let mut text = String::from("| name | type | labels | unit | meaning |\n| --- | --- | --- | --- | --- |\n");
        for metric in METRICS {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let (_, unit) = metric.name_and_unit();
            let condition = match metric.condition {
                "" => String::new(),
                condition => format!("; only {condition}"),
            };
            text += &format!(
                "| `{}` | {} | {} | {} | {}{condition} |\n",
                metric.name,
                metric.kind.to_type().as_str(),
                labels.join(", "),
                unit.as_ref().map_or("", Unit::as_str),
                metric.help
            );
        }
        text
    }

    #[test]
    fn every_metric_is_documented() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let text = std::fs::read_to_string(file).expect("the file is there");
        let table = documented();
        assert!(text.contains(&table), "docs/metrics.md lacks this table:\n{table}");
    }

    #[test]
    fn names_are_as_prometheus_asks() {
        let mut families = BTreeSet::new();
        for metric in METRICS {
            let name = metric.name;
            assert_eq!(name.ends_with("_total"), metric.kind == MetricKind::Counter, "{name}");
            let is_ours = name.starts_with("nodetracker_") || name.starts_with("process_");
            assert!(
                is_ours && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{name}"
            );
            assert!(
                !metric.help.ends_with('.') && !metric.help.contains(['\n', '\\']),
                "{name}"
            );
            // OpenMetrics: a counter's samples have the name of its family and `_total`.
            assert!(families.insert(name.trim_end_matches("_total")), "{name}");
        }
    }

    /// The sources of a server with everything that adds metrics.
    fn sources() -> (Sources, tempfile::TempDir) {
        let folder = tempfile::tempdir().expect("a folder");
        let setting = |name: &str| Setting {
            value: folder.path().join(name),
            origin: Origin::Flag("https_keypairs"),
        };
        let pair = Keypair {
            key_file: setting("key"),
            cert_file: setting("certificate"),
        };
        let made = generate_simple_self_signed(["tracker".to_owned()]).expect("a certificate");
        std::fs::write(&pair.key_file.value, made.signing_key.serialize_pem()).expect("a file");
        std::fs::write(&pair.cert_file.value, made.cert.pem()).expect("a file");

        let config = Config {
            keypairs: vec![pair],
            ..Config::default()
        };
        let table = Arc::new(RouteTable::new());
        let limits = Limits::default();
        let instance_id = InstanceId::draw();
        let watches = Watches::new(Arc::clone(&table), instance_id, &limits);
        let memory = MemoryBudget::new(1 << 20, Arc::default());
        let drain = DrainRequest::new(Duration::ZERO, limits.drain);
        let (methods, _, statistics) = methods(
            &table,
            &watches,
            instance_id,
            &memory,
            Some(Arc::default()),
            &limits,
            &drain,
        );
        let sources = Sources {
            statistics,
            counters: (0..3).map(|_| WorkerCounters::new(&methods)).collect(),
            methods: Arc::new(methods),
            sweeps: Arc::default(),
            readiness: Arc::<Readiness>::default(),
            max_connections: 77,
            certificates: Certificates::load(&config).expect("a good pair"),
            snapshot_interval: Duration::from_secs(90),
        };
        (sources, folder)
    }

    #[tokio::test(start_paused = true)]
    async fn a_page_has_every_metric_with_its_labels() {
        let (sources, _folder) = sources();
        let call = CallStart {
            method: 0,
            arrived: Instant::now(),
        };
        tokio::time::advance(Duration::from_micros(100)).await;
        sources.counters[0].calls.replied(call, Code::Ok);
        sources.counters[2].calls.replied(call, Code::Ok);
        sources.counters[2].calls.replied(call, Code::ResourceExhausted);
        for worker in [0, 2] {
            let connections = &sources.counters[worker].connections;
            connections.accepted.add(2);
            connections.session_messages(SessionMessage::Heartbeat).add(3);
        }
        sources.counters[1]
            .connections
            .handshake_failures(HandshakeFailure::ClientCertificate)
            .add(1);
        let snapshots = sources.statistics.snapshots.as_ref().expect("they are there");
        snapshots.restored(55);
        snapshots.succeeded(99, Duration::from_millis(1_500));
        snapshots.failed();
        let metrics = Metrics::new(sources);

        let page = metrics.encode(Format::Prometheus);
        for metric in METRICS {
            let name = metric.name;
            let kind = metric.kind.to_type();
            assert!(
                page.contains(&format!("# TYPE {name} {}\n", kind.as_str())),
                "{name}:\n{page}"
            );
            assert!(
                page.contains(&format!("# HELP {name} {}\n", metric.help)),
                "{name}:\n{page}"
            );
            let sample = match metric.kind {
                MetricKind::Histogram => format!("{name}_bucket{{"),
                _ if metric.labels.is_empty() => format!("{name} "),
                _ => format!("{name}{{{}=\"", metric.labels[0]),
            };
            assert!(page.lines().any(|line| line.starts_with(&sample)), "{sample}\n{page}");
        }
        for line in [
            "nodetracker_ready 0",
            "nodetracker_connections_limit 77",
            "nodetracker_certificate_reload_failing 0",
            "nodetracker_snapshot_interval_seconds 90.0",
            "nodetracker_snapshot_bytes 99",
            "nodetracker_snapshot_duration_seconds 1.5",
            "nodetracker_snapshots_total 1",
            "nodetracker_restored_routes 55",
            "nodetracker_accepted_connections_total 4",
            "nodetracker_handshake_failures_total{reason=\"client_certificate\"} 1",
            "nodetracker_handshake_failures_total{reason=\"tls\"} 0",
            "nodetracker_session_messages_total{kind=\"heartbeat\"} 6",
            "nodetracker_session_messages_total{kind=\"drain\"} 0",
            "nodetracker_snapshot_failures_total 1",
            "nodetracker_calls_total{service=\"api.NodeTrackerService\",method=\"AddNode\",code=\"OK\"} 2",
            "nodetracker_calls_total{service=\"api.NodeTrackerService\",method=\"AddNode\",code=\"RESOURCE_EXHAUSTED\"} 1",
            "nodetracker_calls_total{service=\"nodetracker.v1.WatchService\",method=\"Watch\",code=\"OK\"} 0",
            "nodetracker_call_duration_seconds_bucket{service=\"api.NodeTrackerService\",method=\"AddNode\",le=\"6.5536e-05\"} 0",
            "nodetracker_call_duration_seconds_bucket{service=\"api.NodeTrackerService\",method=\"AddNode\",le=\"0.000131072\"} 3",
            "nodetracker_call_duration_seconds_bucket{service=\"api.NodeTrackerService\",method=\"AddNode\",le=\"+Inf\"} 3",
            "nodetracker_call_duration_seconds_count{service=\"api.NodeTrackerService\",method=\"AddNode\"} 3",
        ] {
            assert!(page.lines().any(|exposed| exposed == line), "{line}\n{page}");
        }
        assert!(!page.contains("nodetracker_call_duration_seconds_count{service=\"nodetracker.v1.WatchService\""));
        // rcgen's certificates are valid until the year 4096.
        let expiry = page
            .lines()
            .find(|line| line.starts_with("nodetracker_certificate_expiry_timestamp_seconds{file="));
        let expiry = expiry.and_then(|line| line.rsplit_once(' ')).expect("a sample").1;
        assert!(expiry.parse::<f64>().expect("a number") > 60e9, "{expiry}");

        let page = metrics.encode(Format::OpenMetrics);
        assert!(page.ends_with("\n# EOF\n"), "{page}");
        assert!(page.contains("# TYPE nodetracker_refusals counter\n"), "{page}");
        assert!(page.contains("# UNIT nodetracker_sweep_seconds seconds\n"), "{page}");
        assert!(
            page.contains("\nnodetracker_refusals_total{reason=\"watches\"} 0\n"),
            "{page}"
        );
    }
}
