//! The figures of the tabs as one JSON object, with names that stay.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::cli::commands::top::model::{Model, Quantile};
use crate::cli::commands::top::scrape::BUILD_INFO;
use crate::cli::commands::top::tabs::Tab;

/// Whole numbers below this bound are exact.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// Returns a number, without a fraction if it is whole. `null` if the figure is missing.
pub(super) fn number(value: Option<f64>) -> Value {
    match value {
        Some(value) if value.fract() == 0.0 && value.abs() < EXACT => Value::from(value as i64),
        value => value.into(),
    }
}

/// Returns the numbers of the values of a label.
pub(super) fn numbers(by: &BTreeMap<Vec<&str>, f64>) -> Value {
    let numbers = by.iter().map(|(label, &value)| (label.concat(), number(Some(value))));
    Value::Object(numbers.collect())
}

/// Returns the seconds of a latency. A latency in the last bucket is the bucket's lower bound, as in PromQL.
pub(super) fn seconds(quantile: Option<Quantile>) -> Value {
    number(quantile.map(|(Quantile::About(seconds) | Quantile::Above(seconds))| seconds))
}

/// Returns the figures of the tabs. `alerts` has the names of the rows that are marked.
pub(super) fn object(tabs: &[Tab], model: &Model) -> Map<String, Value> {
    let mut object = Map::new();
    let mut alerts = Vec::new();
    for table in tabs.iter().map(|tab| tab.table(model)) {
        let mut list = Vec::new();
        for row in table.rows {
            if row.is_alert {
                alerts.extend(row.fields.first().map(|(name, _)| name.clone()));
            }
            match table.list {
                Some(_) => list.push(Value::Object(row.fields.into_iter().collect())),
                None => object.extend(row.fields),
            }
        }
        if let Some(name) = table.list {
            object.insert(name.to_owned(), list.into());
        }
    }
    // Several tabs have the same row.
    alerts.sort();
    alerts.dedup();
    object.insert("alerts".to_owned(), alerts.into());
    if let Some(interval) = model.interval() {
        let version = interval.values(BUILD_INFO, &["version"]).into_keys().next();
        object.insert("version".to_owned(), version.map(|version| version.concat()).into());
        object.insert("interval_seconds".to_owned(), interval.elapsed().as_secs_f64().into());
    }
    object
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use clap::ValueEnum;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::cli::commands::top::figures::{NONE, age, bytes, count, latency, percent, rate};
    use crate::cli::commands::top::model::tests::scrape;
    use crate::cli::commands::top::view::lines;

    /// A page of a tracker with each metric that `top` reads, after this many seconds.
    pub(crate) fn page(seconds: u32) -> String {
        let method = "service=\"nodetracker.v1.RouteService\",method=\"GetProxies\"";
        format!(
            "\
nodetracker_build_info{{version=\"0.1.0\"}} 1
process_start_time_seconds 1.6999e9
nodetracker_routes 1234567
nodetracker_routes_limit 1300000
nodetracker_nodes 1200000
nodetracker_proxies 100
nodetracker_proxies_limit 1000
nodetracker_sessions 90
nodetracker_calls_total{{{method},code=\"OK\"}} {0}
nodetracker_calls_total{{{method},code=\"NOT_FOUND\"}} {1}
nodetracker_calls_total{{service=\"nodetracker.v1.SessionService\",method=\"Session\",code=\"OK\"}} 4
nodetracker_calls_total{{service=\"nodetracker.v1.WatchService\",method=\"Watch\",code=\"CANCELLED\"}} 6
nodetracker_call_duration_seconds_bucket{{{method},le=\"0.25\"}} {0}
nodetracker_call_duration_seconds_bucket{{{method},le=\"+Inf\"}} {2}
nodetracker_session_messages_total{{kind=\"heartbeat\"}} {2}
nodetracker_session_messages_total{{kind=\"hello\"}} {1}
nodetracker_connections 200
nodetracker_connections_limit 1000
nodetracker_accepted_connections_total {1}
nodetracker_handshake_failures_total{{reason=\"tls\"}} 3
nodetracker_expiry_held{{cause=\"brake\"}} 1
nodetracker_expiry_hold_remaining_seconds 90
nodetracker_refusals_total{{reason=\"watches\"}} {1}
nodetracker_snapshot_timestamp_seconds 1699999988
nodetracker_snapshot_bytes 51200000
nodetracker_snapshot_failures_total 2
nodetracker_snapshot_failing 0
nodetracker_certificate_reload_failing 0
nodetracker_certificate_expiry_timestamp_seconds{{file=\"a.pem\"}} 1.701e9
process_cpu_seconds_total {3}
process_resident_memory_bytes 1e8
nodetracker_swept_routes_total{{cause=\"expired\"}} {1}
nodetracker_table_bytes{{part=\"records\"}} 4e7
nodetracker_table_bytes{{part=\"indexes\"}} 2e7
nodetracker_table_bytes{{part=\"strings\"}} 3e6
nodetracker_text_limit_bytes 1e9
nodetracker_watches 8
nodetracker_watches_limit 20
nodetracker_watched_bytes 3200
nodetracker_watched_limit_bytes 64000000
nodetracker_watch_lost_places_total 9
nodetracker_watch_resyncs_total 10
nodetracker_keep_alive_seconds 300
nodetracker_effective_keep_alive_seconds 400
nodetracker_sweep_visits_total {2}
nodetracker_sweep_rounds_total 11
nodetracker_sweep_seconds_total {3}
nodetracker_garbage_objects 12
nodetracker_garbage_bytes 1e6
nodetracker_client_memory_bytes 45089
nodetracker_client_memory_limit_bytes 536870912
process_threads 13
process_open_fds 14
process_max_fds 1024
nodetracker_restored_routes 15",
            1000 * seconds,
            2 * seconds,
            1200 * seconds,
            f64::from(seconds) / 4.0,
        )
    }

    /// A model after two scrapes, two seconds apart.
    pub(crate) fn model(page: impl Fn(u32) -> String) -> Model {
        let start = Instant::now();
        let mut model = Model::default();
        for seconds in [0, 2] {
            let at = start + Duration::from_secs(seconds.into());
            model.push(Ok(scrape(at, &page(seconds))), at);
        }
        model
    }

    #[test]
    fn the_object_has_the_figures_of_the_text() {
        let model = model(page);
        let text: String = Tab::value_variants().iter().map(|&tab| lines(tab, &model)).collect();
        let object = Value::Object(object(Tab::value_variants(), &model));
        let read = |pointer: &str| object.pointer(pointer).and_then(Value::as_f64);
        let of_limit = |name: &str| {
            let [value, limit] = [format!("/{name}"), format!("/{name}_limit")].map(|pointer| read(&pointer));
            let part = value.zip(limit).map(|(value, limit)| value / limit);
            format!("{} of {} ({})", count(value), count(limit), percent(part))
        };
        let size_of_limit = |name: &str| {
            let [used, limit] = ["bytes", "limit_bytes"].map(|field| read(&format!("/{name}_{field}")));
            format!("{} of {}", bytes(used), bytes(limit))
        };
        let rows = [
            ("Uptime", age(read("/uptime_seconds"))),
            ("Routes", of_limit("routes")),
            ("Nodes", count(read("/nodes"))),
            (
                "Proxies",
                format!(
                    "{}, {} with a session",
                    count(read("/proxies")),
                    count(read("/sessions"))
                ),
            ),
            ("Calls", rate(read("/calls_per_second"))),
            ("Calls that failed", rate(read("/failed_calls_per_second"))),
            (
                "Latency, p99 of all calls",
                latency(read("/p99_seconds").map(Quantile::Above)),
            ),
            ("Messages of sessions", rate(read("/session_messages_per_second"))),
            ("Connections", of_limit("connections")),
            (
                "Failed handshakes",
                format!(
                    "{}, {sum} since the start: tls {sum}",
                    rate(read("/handshake_failures_per_second")),
                    sum = count(read("/handshake_failures/tls"))
                ),
            ),
            (
                "Expiry",
                format!("HELD (brake), for at most {}", age(read("/expiry_hold_left_seconds"))),
            ),
            (
                "Refusals",
                format!(
                    "{}, {sum} since the start: watches {sum}",
                    rate(read("/refusals_per_second")),
                    sum = count(read("/refusals/watches"))
                ),
            ),
            (
                "Snapshot",
                format!(
                    "{} ago, {}, {} FAILED",
                    age(read("/snapshot_age_seconds")),
                    bytes(read("/last_snapshot_bytes")),
                    count(read("/snapshot_failures"))
                ),
            ),
            (
                "Certificate",
                format!(
                    "{} days left: a.pem",
                    count(read("/certificate_left_seconds").map(|left| (left / 86_400.0).floor()))
                ),
            ),
            ("CPU", format!("{} of a core", percent(read("/cpu_cores")))),
            ("Memory of the process", bytes(read("/resident_memory_bytes"))),
            ("Routes of a proxy, mean", count(read("/routes_per_proxy"))),
            (
                "Sessions that begin",
                rate(read("/session_messages_per_second_by_kind/hello")),
            ),
            (
                "  heartbeat",
                rate(read("/session_messages_per_second_by_kind/heartbeat")),
            ),
            ("Sessions", count(read("/sessions"))),
            (
                "Sessions that ended",
                format!("OK {}", count(read("/ended_sessions/OK"))),
            ),
            ("Watches", of_limit("watches")),
            ("Nodes that watches name", size_of_limit("watched")),
            ("Memory of names and addresses", size_of_limit("text")),
            (
                "Watches that ended",
                format!("CANCELLED {}", count(read("/ended_watches/CANCELLED"))),
            ),
            ("Watches that lost their place", count(read("/watch_lost_places"))),
            ("Parts sent again to watches", count(read("/watch_resyncs"))),
            ("Refused: more watches", count(read("/refusals/watches"))),
            ("New connections", rate(read("/accepted_connections_per_second"))),
            ("Keep-alive interval", age(read("/keep_alive_seconds"))),
            (
                "Greatest age of a returned route",
                age(read("/effective_keep_alive_seconds")),
            ),
            ("Visits of the sweeper", rate(read("/sweep_visits_per_second"))),
            ("Rounds of the sweeper", count(read("/sweep_rounds"))),
            ("Sweeper, share of a core", percent(read("/sweeper_cores"))),
            ("Routes swept, expired", rate(read("/swept_routes_per_second/expired"))),
            ("Memory of the table", bytes(read("/table_bytes"))),
            ("  records", bytes(read("/table_bytes_by_part/records"))),
            ("  indexes", bytes(read("/table_bytes_by_part/indexes"))),
            (
                "Garbage",
                format!(
                    "{} objects, {}",
                    count(read("/garbage_objects")),
                    bytes(read("/garbage_bytes"))
                ),
            ),
            ("Memory of clients", size_of_limit("client_memory")),
            ("Threads", count(read("/threads"))),
            ("Open files", of_limit("open_files")),
            ("Routes restored at the start", count(read("/restored_routes"))),
        ];
        for (name, value) in rows {
            assert!(!value.contains(NONE), "{name}: {value}\n{object:#}");
            let has_row = text.lines().any(|line| {
                let cells = line.get(2..).and_then(|line| line.strip_prefix(name));
                cells.is_some_and(|cells| cells.starts_with("  ") && cells.trim_start() == value)
            });
            assert!(has_row, "{name}  {value}\n{text}");
        }

        let method = &object["methods"][0];
        assert_eq!(
            (&method["service"], &method["method"]),
            (&json!("nodetracker.v1.RouteService"), &json!("GetProxies"))
        );
        let figure = |name| method[name].as_f64();
        let calls = [
            rate(figure("calls_per_second")),
            rate(figure("failed_calls_per_second")),
            latency(figure("p50_seconds").map(Quantile::About)),
            latency(figure("p90_seconds").map(Quantile::Above)),
            latency(figure("p99_seconds").map(Quantile::Above)),
        ];
        let row = text.lines().find(|line| line.starts_with("  Route/GetProxies"));
        let cells: Vec<_> = row
            .expect("a row")
            .split("  ")
            .filter(|cell| !cell.is_empty())
            .collect();
        assert_eq!(cells[1..].iter().map(|cell| cell.trim()).collect::<Vec<_>>(), calls);

        assert_eq!(
            object["alerts"],
            json!(["certificate_left_seconds", "expiry_hold", "refusals", "routes"])
        );
        assert_eq!(
            (&object["version"], &object["interval_seconds"], &object["expiry_hold"]),
            (&json!("0.1.0"), &json!(2.0), &json!("brake"))
        );
    }

    #[test]
    fn a_name_has_one_value_and_each_figure_has_a_name() {
        let model = model(page);
        let mut values = BTreeMap::new();
        for &tab in Tab::value_variants() {
            let table = tab.table(&model);
            for row in table.rows {
                assert!(!row.fields.is_empty(), "{:?}", row.cells);
                if table.list.is_none() {
                    for (name, value) in row.fields {
                        let before = values.insert(name.clone(), value.clone());
                        assert!(before.is_none_or(|before| before == value), "{name}");
                    }
                }
            }
        }
    }

    #[test]
    fn figures_that_are_missing_are_null() {
        let model = model(|_| "nodetracker_proxies 0\nnodetracker_routes 0".to_owned());
        let object = object(Tab::value_variants(), &model);
        for name in [
            "calls_per_second",
            "routes_limit",
            "routes_per_proxy",
            "p99_seconds",
            "version",
            "snapshot_age_seconds",
        ] {
            assert_eq!(object.get(name), Some(&Value::Null), "{name}");
        }
        assert_eq!(object["methods"], json!([]));
    }

    /// Keeps the table in the README equal to the code.
    #[test]
    fn the_readme_lists_each_name() {
        let readme = include_str!("../../../../README.md");
        let (_, section) = readme.split_once("## `nodetracker top`").expect("the section");
        let (section, _) = section.split_once("\n## ").expect("another section");
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2));
        let names: Vec<_> = names.collect();
        let mut object = object(Tab::value_variants(), &model(page));
        for name in &names {
            object.remove(*name).unwrap_or_else(|| panic!("no {name}"));
        }
        assert!(object.is_empty(), "{object:?}");
    }
}
