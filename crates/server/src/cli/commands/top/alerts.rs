//! Test: `top` marks a row for each alert of `ops/alerts.yaml`.

use std::time::Duration;

use clap::ValueEnum;
use tokio::time::Instant;

use crate::cli::commands::top::json;
use crate::cli::commands::top::model::Model;
use crate::cli::commands::top::model::tests::scrape;
use crate::cli::commands::top::tabs::Tab;

/// Each alert, with the first figure of the row that shows the alert, and the samples of a tracker with the alert.
/// `None`: `top` reports by itself that it cannot read the metrics. `@` stands for a number that grows.
const ALERTS: &[(&str, Option<&str>, &str)] = &[
    ("TrackerDown", None, ""),
    ("TrackerNotReady", Some("ready"), "nodetracker_ready 0"),
    (
        "TrackerExpiryBrake",
        Some("expiry_hold"),
        "nodetracker_expiry_held{cause=\"brake\"} 1",
    ),
    (
        "TrackerGarbageGrows",
        Some("garbage_objects"),
        "nodetracker_garbage_bytes 257@",
    ),
    (
        "TrackerSweeperStopped",
        Some("sweep_visits_per_second"),
        "nodetracker_sweep_visits_total 7",
    ),
    (
        "TrackerCertificateExpires",
        Some("certificate_left_seconds"),
        "nodetracker_certificate_expiry_timestamp_seconds{file=\"a\"} 1701000000",
    ),
    (
        "TrackerCertificateReloadFails",
        Some("certificate_left_seconds"),
        "nodetracker_certificate_reload_failing 1",
    ),
    (
        "TrackerRefuses",
        Some("refusals"),
        "nodetracker_refusals_total{reason=\"accept\"} @",
    ),
    (
        "TrackerDeniesClients",
        Some("refusals"),
        "nodetracker_refusals_total{reason=\"denied\"} @",
    ),
    (
        "TrackerHandshakesFail",
        Some("handshake_failures"),
        "nodetracker_handshake_failures_total{reason=\"tls_alert\"} @",
    ),
    (
        "TrackerHandshakesFail",
        Some("handshake_failures"),
        "nodetracker_handshake_failures_total{reason=\"tls\"} @",
    ),
    (
        "TrackerCallsFail",
        Some("failed_calls_per_second"),
        "nodetracker_calls_total{code=\"INTERNAL\"} @",
    ),
    (
        "TrackerSnapshotTooOld",
        Some("snapshot_age_seconds"),
        "nodetracker_snapshot_timestamp_seconds 1699999000",
    ),
    (
        "TrackerSnapshotsFail",
        Some("snapshot_age_seconds"),
        "nodetracker_snapshot_failures_total @",
    ),
    (
        "TrackerSnapshotsFail",
        Some("snapshot_age_seconds"),
        "nodetracker_snapshot_failing 1",
    ),
    (
        "TrackerWatchesLosePlaces",
        Some("watch_lost_places"),
        "nodetracker_watch_lost_places_total @",
    ),
    ("TrackerNearMaxRoutes", Some("routes"), "nodetracker_routes 901"),
    ("TrackerNearMaxProxies", Some("proxies"), "nodetracker_proxies 91"),
    (
        "TrackerNearMaxText",
        Some("text_bytes"),
        "nodetracker_table_bytes{part=\"strings\"} 91",
    ),
    (
        "TrackerNearMaxConnections",
        Some("connections"),
        "nodetracker_connections 91",
    ),
    ("TrackerNearMaxWatches", Some("watches"), "nodetracker_watches 91"),
    (
        "TrackerNearMaxWatchedNodes",
        Some("watched_bytes"),
        "nodetracker_watched_bytes 91",
    ),
    (
        "TrackerNearMemoryBudget",
        Some("client_memory_bytes"),
        "nodetracker_client_memory_bytes 81",
    ),
    ("TrackerNearMaxOpenFiles", Some("open_files"), "process_open_fds 922"),
];

/// The samples of a tracker without an alert.
const GOOD: &str = "\
nodetracker_ready 1
nodetracker_routes 900
nodetracker_routes_limit 1000
nodetracker_garbage_bytes 255@
nodetracker_sweep_visits_total @
nodetracker_certificate_expiry_timestamp_seconds{file=\"a\"} 2000000000
nodetracker_certificate_reload_failing 0
nodetracker_refusals_total{reason=\"accept\"} 9
nodetracker_refusals_total{reason=\"denied\"} 9
nodetracker_handshake_failures_total{reason=\"tls_alert\"} 9
nodetracker_handshake_failures_total{reason=\"tls\"} 9
nodetracker_handshake_failures_total{reason=\"closed\"} @
nodetracker_calls_total{code=\"INTERNAL\"} 9
nodetracker_calls_total{code=\"OK\"} @
nodetracker_snapshot_interval_seconds 60
nodetracker_snapshot_timestamp_seconds 1699999900
nodetracker_snapshot_failures_total 9
nodetracker_snapshot_failing 0
nodetracker_watch_lost_places_total 9
nodetracker_proxies 90
nodetracker_proxies_limit 100
nodetracker_table_bytes{part=\"strings\"} 90
nodetracker_table_bytes{part=\"records\"} 500
nodetracker_text_limit_bytes 100
nodetracker_watches 90
nodetracker_watches_limit 100
nodetracker_watched_bytes 90
nodetracker_watched_limit_bytes 100
nodetracker_connections 90
nodetracker_connections_limit 100
nodetracker_client_memory_bytes 80
nodetracker_client_memory_limit_bytes 100
process_open_fds 921
process_max_fds 1024";

/// The marked rows, after some scrapes of a good tracker with these samples in place of its own.
fn marked(samples: &str) -> Vec<String> {
    let names: Vec<_> = samples.lines().filter_map(|line| line.rsplit_once(' ')).collect();
    let has = |line: &&str| names.iter().any(|(name, _)| line.starts_with(&format!("{name} ")));
    let good = GOOD.lines().filter(|line| !has(line));
    let page = good.chain(samples.lines()).collect::<Vec<_>>().join("\n");
    let mut model = Model::default();
    let start = Instant::now();
    for second in 0..7 {
        let at = start + Duration::from_secs(second);
        let mut scrape = scrape(at, &page.replace('@', &format!("{second}00000")));
        scrape.not_ready = page.contains("nodetracker_ready 0").then(|| "starting".to_owned());
        model.push(Ok(scrape), at);
    }
    let object = json::object(Tab::value_variants(), &model);
    let marked = object["alerts"].as_array().expect("a list").iter();
    marked.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

#[test]
fn each_alert_marks_its_row_and_no_other_row() {
    assert_eq!(marked(""), [""; 0]);
    for &(alert, row, samples) in ALERTS {
        assert_eq!(marked(samples), row.into_iter().collect::<Vec<_>>(), "{alert}");
    }
}

#[test]
fn every_alert_is_listed() {
    let rules = include_str!("../../../../ops/alerts.yaml");
    let rules: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
        .collect();
    let mut listed: Vec<_> = ALERTS.iter().map(|&(alert, ..)| alert).collect();
    listed.dedup();
    assert_eq!(listed, rules);
}
