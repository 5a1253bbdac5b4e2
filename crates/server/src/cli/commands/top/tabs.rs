//! The tabs: which figures each shows. A row that an operator should look at is marked, as the alerts of `ops/alerts.yaml`
//! have it.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use clap::ValueEnum;

use crate::cli::commands::top::figures::{NONE, age, bytes, count, latency, percent, rate};
use crate::cli::commands::top::model::{CALLS, Interval, METHOD, Model};
use crate::cli::print::visible;

/// A tab, in the order of the number keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Tab {
    Overview,
    Calls,
    Proxies,
    Sessions,
    Memory,
}

/// What a tab shows.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// The heading of each column. Empty if the rows are names with values.
    pub(super) heading: Vec<&'static str>,
    pub(super) rows: Vec<Row>,
    /// A line below the rows.
    pub(super) note: String,
}

/// A row of a table.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// The name, and then the figures.
    pub(super) cells: Vec<String>,
    /// Rates of earlier intervals, the oldest first.
    pub(super) rates: Vec<f64>,
    /// Whether an operator should look at the row.
    pub(super) is_alert: bool,
}

impl Row {
    fn new(name: &str, value: String) -> Self {
        Self {
            cells: vec![name.to_owned(), value],
            ..Self::default()
        }
    }

    fn rates(self, rates: Vec<f64>) -> Self {
        Self { rates, ..self }
    }

    fn alert_if(self, is_alert: bool) -> Self {
        Self { is_alert, ..self }
    }
}

impl Tab {
    /// Returns the title on the screen.
    pub(super) fn title(self) -> &'static str {
        match self {
            Tab::Overview => "Overview",
            Tab::Calls => "Calls",
            Tab::Proxies => "Proxies",
            Tab::Sessions => "Sessions and watches",
            Tab::Memory => "Sweep and memory",
        }
    }

    /// Returns what the tab shows.
    pub(super) fn table(self, model: &Model) -> Table {
        let Some(interval) = model.interval() else {
            return Table::default();
        };
        let from = From { model, interval };
        match self {
            Tab::Overview => from.overview(),
            Tab::Calls => from.calls(),
            Tab::Proxies => from.proxies(),
            Tab::Sessions => from.sessions(),
            Tab::Memory => from.memory(),
        }
    }
}

const SESSION_MESSAGES: &str = "nodetracker_session_messages_total";
const ACCEPTED: &str = "nodetracker_accepted_connections_total";
const HANDSHAKE_FAILURES: &str = "nodetracker_handshake_failures_total";
const REFUSALS: &str = "nodetracker_refusals_total";
const SWEPT: &str = "nodetracker_swept_routes_total";

/// The most methods that are shown. A tracker has some 20.
const MAX_METHODS: usize = 500;

/// A day in seconds.
const DAY: f64 = 86_400.0;

/// The source of the figures.
struct From<'m> {
    model: &'m Model,
    interval: Interval<'m>,
}

impl From<'_> {
    fn overview(&self) -> Table {
        let state = match &self.interval.scrape().not_ready {
            None => Row::new("State", "ready".to_owned()),
            Some(reason) => Row::new("State", format!("NOT READY: {reason}")).alert_if(true),
        };
        rows(vec![
            state,
            Row::new("Uptime", age(self.since("process_start_time_seconds"))),
            self.routes(),
            self.value("Nodes", "nodetracker_nodes"),
            self.proxies_with_sessions(),
            self.rate("Calls", CALLS),
            self.errors(),
            Row::new("Latency, p99 of all calls", latency(self.interval.latency(0.99, None))),
            self.rate("Messages of sessions", SESSION_MESSAGES),
            self.of_limit(
                "Connections",
                "nodetracker_connections",
                "nodetracker_connections_limit",
                0.9,
            ),
            self.counted("Failed handshakes", HANDSHAKE_FAILURES, "reason"),
            self.expiry(),
            self.refusals(),
            self.snapshot(),
            self.certificate(),
            self.cpu(),
            self.resident_memory(),
        ])
    }

    fn calls(&self) -> Table {
        let ended = self.interval.values(CALLS, &METHOD);
        let rates = self.interval.rates(CALLS, &METHOD);
        let errors = self.errors_by(&METHOD);
        let methods = ended.len();
        let mut called: Vec<_> = ended
            .into_iter()
            .filter(|&(_, calls)| calls > 0.0)
            .map(|(method, _)| method)
            .collect();
        let rate_of = |method: &Vec<&str>| rates.get(method).copied();
        called.sort_by(|one, other| rate_of(other).unwrap_or(0.0).total_cmp(&rate_of(one).unwrap_or(0.0)));
        let not_called = methods - called.len();
        let rows = called.into_iter().take(MAX_METHODS).map(|names| {
            let method = [names[0], names[1]];
            let quantile = |of| latency(self.interval.latency(of, Some(method)));
            let errors = rate_of(&names).map(|_| errors.get(&names).copied().unwrap_or(0.0));
            Row {
                cells: vec![
                    short_name(method),
                    rate(rate_of(&names)),
                    rate(errors),
                    quantile(0.5),
                    quantile(0.9),
                    quantile(0.99),
                ],
                rates: self.model.rates(CALLS, &method),
                is_alert: false,
            }
        });
        Table {
            heading: vec!["METHOD", "CALLS", "ERRORS", "P50", "P90", "P99"],
            rows: rows.collect(),
            note: format!("{not_called} methods had no call. A stream counts when it ends, and has no latency."),
        }
    }

    fn proxies(&self) -> Table {
        let proxies = self.interval.value("nodetracker_proxies");
        let routes = self.interval.value("nodetracker_routes");
        let mean = proxies.zip(routes).map(|(proxies, routes)| routes / proxies);
        let of_removed = ["proxy_removed"];
        Table {
            note: "The metrics have totals only. `nodetracker proxies` lists each proxy with its routes.".to_owned(),
            ..rows(vec![
                self.proxies_with_sessions(),
                self.routes(),
                Row::new("Routes of a proxy, mean", count(mean)),
                self.messages("Sessions that begin", "hello"),
                self.messages("Proxies that drain", "drain"),
                self.by("Routes of removed proxies, swept", SWEPT, "cause", "proxy_removed")
                    .rates(self.model.rates(SWEPT, &of_removed)),
                self.refused("Refused: routes of a proxy", "proxy_routes"),
                self.refused("Refused: more proxies", "table_proxies"),
                self.part("Memory of the proxies", "proxies"),
                self.part("Memory of names and addresses", "strings"),
            ])
        }
    }

    fn sessions(&self) -> Table {
        rows(vec![
            self.value("Sessions", "nodetracker_sessions"),
            self.rate("Messages of sessions", SESSION_MESSAGES),
            self.messages("  hello", "hello"),
            self.messages("  nodes up", "nodes_up"),
            self.messages("  heartbeat", "heartbeat"),
            self.messages("  nodes down", "nodes_down"),
            self.messages("  drain", "drain"),
            self.ended("Sessions that ended", "Session"),
            self.value("Watches", "nodetracker_watches"),
            self.ended("Watches that ended", "Watch"),
            self.value("Watches that lost their place", "nodetracker_watch_lost_places_total"),
            self.value("Parts sent again to watches", "nodetracker_watch_resyncs_total"),
            self.refused("Refused: more watches", "watches"),
            self.of_limit(
                "Connections",
                "nodetracker_connections",
                "nodetracker_connections_limit",
                0.9,
            ),
            self.rate("New connections", ACCEPTED),
            self.counted("Failed handshakes", HANDSHAKE_FAILURES, "reason"),
        ])
    }

    fn memory(&self) -> Table {
        let sweeper = self.interval.rate("nodetracker_sweep_seconds_total");
        let garbage = self.interval.value("nodetracker_garbage_objects");
        let garbage_bytes = bytes(self.interval.value("nodetracker_garbage_bytes"));
        rows(vec![
            Row::new(
                "Keep-alive interval",
                age(self.interval.value("nodetracker_keep_alive_seconds")),
            ),
            Row::new(
                "Greatest age of a returned route",
                age(self.interval.value("nodetracker_effective_keep_alive_seconds")),
            ),
            self.expiry(),
            self.rate("Visits of the sweeper", "nodetracker_sweep_visits_total"),
            self.value("Rounds of the sweeper", "nodetracker_sweep_rounds_total"),
            Row::new("Sweeper, share of a core", percent(sweeper)),
            self.by("Routes swept, expired", SWEPT, "cause", "expired"),
            self.by("Routes swept, of removed proxies", SWEPT, "cause", "proxy_removed"),
            Row::new(
                "Memory of the table",
                bytes(self.interval.value("nodetracker_table_bytes")),
            ),
            self.part("  records", "records"),
            self.part("  indexes", "indexes"),
            self.part("  lists, strings, proxies, feed", "lists strings proxies feed"),
            Row::new("Garbage", format!("{} objects, {garbage_bytes}", count(garbage))),
            self.client_memory(),
            self.resident_memory(),
            self.cpu(),
            self.value("Threads", "process_threads"),
            self.of_limit("Open files", "process_open_fds", "process_max_fds", 0.9),
            self.snapshot(),
            self.value("Routes restored at the start", "nodetracker_restored_routes"),
        ])
    }

    fn value(&self, name: &str, metric: &str) -> Row {
        Row::new(name, count(self.interval.value(metric)))
    }

    fn rate(&self, name: &str, metric: &'static str) -> Row {
        Row::new(name, rate(self.interval.rate(metric))).rates(self.model.rates(metric, &[]))
    }

    /// Returns the rate of a counter for one value of a label.
    fn by(&self, name: &str, metric: &'static str, label: &str, value: &str) -> Row {
        let rates = self.interval.rates(metric, &[label]);
        Row::new(name, rate(rates.get(&[value][..]).copied())).rates(self.model.rates(metric, &[value]))
    }

    /// Returns the rate of a counter, its sum since the start, and the sums by a label that are not zero.
    fn counted(&self, name: &str, metric: &'static str, label: &str) -> Row {
        let mut sums: Vec<_> = self.interval.values(metric, &[label]).into_iter().collect();
        sums.retain(|&(_, sum)| sum > 0.0);
        sums.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let parts: Vec<_> = sums
            .iter()
            .map(|(value, sum)| format!("{} {}", visible(&value.concat()), count(Some(*sum))))
            .collect();
        let mut text = rate(self.interval.rate(metric));
        text += &format!(", {} since the start", count(self.interval.value(metric)));
        if !parts.is_empty() {
            text += &format!(": {}", parts.join(", "));
        }
        Row::new(name, text).rates(self.model.rates(metric, &[]))
    }

    /// Returns a value beside its limit. Marks the row if the value is more than a part of the limit.
    fn of_limit(&self, name: &str, metric: &str, limit: &str, alert: f64) -> Row {
        let (value, limit) = (self.interval.value(metric), self.interval.value(limit));
        let part = value.zip(limit).map(|(value, limit)| value / limit);
        let text = format!("{} of {} ({})", count(value), count(limit), percent(part));
        Row::new(name, text).alert_if(part.is_some_and(|part| part > alert))
    }

    fn routes(&self) -> Row {
        self.of_limit("Routes", "nodetracker_routes", "nodetracker_routes_limit", 0.9)
    }

    fn proxies_with_sessions(&self) -> Row {
        let [proxies, sessions] =
            ["nodetracker_proxies", "nodetracker_sessions"].map(|metric| self.interval.value(metric));
        Row::new(
            "Proxies",
            format!("{}, {} with a session", count(proxies), count(sessions)),
        )
    }

    fn messages(&self, name: &str, kind: &str) -> Row {
        self.by(name, SESSION_MESSAGES, "kind", kind)
    }

    /// Returns how many streams of a method have ended, by code.
    fn ended(&self, name: &str, method: &str) -> Row {
        let calls = self.interval.values(CALLS, &["method", "code"]);
        let ended = calls
            .iter()
            .filter(|(labels, count)| labels[0] == method && **count > 0.0);
        let texts: Vec<_> = ended
            .map(|(labels, calls)| format!("{} {}", visible(labels[1]), count(Some(*calls))))
            .collect();
        Row::new(
            name,
            if texts.is_empty() {
                "0".to_owned()
            } else {
                texts.join(", ")
            },
        )
    }

    fn refused(&self, name: &str, reason: &str) -> Row {
        let counts = self.interval.values(REFUSALS, &["reason"]);
        let rates = self.interval.rates(REFUSALS, &["reason"]);
        let is_alert = rates.get(&[reason][..]).is_some_and(|&rate| rate > 0.0);
        Row::new(name, count(counts.get(&[reason][..]).copied())).alert_if(is_alert)
    }

    fn refusals(&self) -> Row {
        let is_alert = self.interval.rate(REFUSALS).is_some_and(|rate| rate > 0.0);
        self.counted("Refusals", REFUSALS, "reason").alert_if(is_alert)
    }

    /// Returns the bytes of parts of the table, which are separated by spaces.
    fn part(&self, name: &str, parts: &str) -> Row {
        let sizes = self.interval.values("nodetracker_table_bytes", &["part"]);
        let size: Option<f64> = parts.split(' ').map(|part| sizes.get(&[part][..]).copied()).sum();
        Row::new(name, bytes(size))
    }

    /// Returns the rates of calls that failed, although their clients did not cancel them.
    fn errors_by(&self, by: &[&str]) -> BTreeMap<Vec<&str>, f64> {
        let labels = [by, &["code"]].concat();
        let mut errors = BTreeMap::new();
        for (mut values, rate) in self.interval.rates(CALLS, &labels) {
            if !matches!(values.pop(), Some("OK" | "CANCELLED")) {
                *errors.entry(values).or_default() += rate;
            }
        }
        errors
    }

    fn errors(&self) -> Row {
        let calls = self.interval.rate(CALLS);
        let errors = calls.map(|_| self.errors_by(&[]).into_values().sum());
        let mut rates = self.interval.rates(CALLS, &["code"]);
        rates.retain(|code, _| matches!(code[0], "INTERNAL" | "UNKNOWN" | "DATA_LOSS"));
        let share = calls.map(|calls| rates.values().sum::<f64>() / calls);
        Row::new("Calls that failed", rate(errors)).alert_if(share.is_some_and(|share| share > 0.01))
    }

    fn expiry(&self) -> Row {
        let causes = self.interval.values("nodetracker_expiry_held", &["cause"]);
        let held = causes.iter().find(|&(_, &held)| held > 0.0);
        let text = match held {
            None => "not held".to_owned(),
            Some((cause, _)) => {
                let left = age(self.interval.value("nodetracker_expiry_hold_remaining_seconds"));
                format!("HELD ({}), for at most {left}", visible(&cause.concat()))
            }
        };
        Row::new("Expiry", text).alert_if(held.is_some_and(|(cause, _)| cause[0] == "brake"))
    }

    fn snapshot(&self) -> Row {
        let (Some(written), failures) = (
            self.interval.value("nodetracker_snapshot_timestamp_seconds"),
            self.interval.value("nodetracker_snapshot_failures_total"),
        ) else {
            return Row::new("Snapshot", "off (no data_dir)".to_owned());
        };
        let since = self.since("nodetracker_snapshot_timestamp_seconds").unwrap_or_default();
        let mut text = match written {
            0.0 => "none yet".to_owned(),
            _ => {
                let size = bytes(self.interval.value("nodetracker_snapshot_bytes"));
                format!("{} ago, {size}", age(Some(since)))
            }
        };
        if let Some(failures) = failures.filter(|&failures| failures > 0.0) {
            text += &format!(", {} FAILED", count(Some(failures)));
        }
        Row::new("Snapshot", text).alert_if(written > 0.0 && since > DAY / 96.0)
    }

    fn certificate(&self) -> Row {
        let expiries = self
            .interval
            .values("nodetracker_certificate_expiry_timestamp_seconds", &["file"]);
        let Some((file, expiry)) = expiries.into_iter().min_by(|(_, one), (_, other)| one.total_cmp(other)) else {
            return Row::new("Certificate", "none (plaintext)".to_owned());
        };
        let days = (expiry - self.now()) / DAY;
        let text = match days >= 0.0 {
            true => format!("{} days left: {}", count(Some(days.floor())), visible(&file.concat())),
            false => format!("EXPIRED: {}", visible(&file.concat())),
        };
        Row::new("Certificate", text).alert_if(days < 14.0)
    }

    fn client_memory(&self) -> Row {
        let [used, limit] = [
            "nodetracker_client_memory_bytes",
            "nodetracker_client_memory_limit_bytes",
        ]
        .map(|metric| self.interval.value(metric));
        let is_alert = used.zip(limit).is_some_and(|(used, limit)| used > 0.8 * limit);
        Row::new("Memory of clients", format!("{} of {}", bytes(used), bytes(limit))).alert_if(is_alert)
    }

    fn resident_memory(&self) -> Row {
        Row::new(
            "Memory of the process",
            bytes(self.interval.value("process_resident_memory_bytes")),
        )
    }

    fn cpu(&self) -> Row {
        const SECONDS: &str = "process_cpu_seconds_total";
        let share = percent(self.interval.rate(SECONDS));
        let text = if share == NONE {
            share
        } else {
            format!("{share} of a core")
        };
        Row::new("CPU", text).rates(self.model.rates(SECONDS, &[]))
    }

    /// Returns the seconds since the time that a metric has.
    fn since(&self, metric: &str) -> Option<f64> {
        Some(self.now() - self.interval.value(metric)?)
    }

    /// Returns the time of the scrape in seconds since 1970.
    fn now(&self) -> f64 {
        let time = self.interval.scrape().time;
        time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }
}

fn rows(rows: Vec<Row>) -> Table {
    Table {
        rows,
        ..Table::default()
    }
}

/// Returns a short name of a method. The services of other packages keep their names.
fn short_name([service, method]: [&str; 2]) -> String {
    let short = service
        .strip_prefix("nodetracker.v1.")
        .or_else(|| service.strip_prefix("api."));
    let short = short
        .and_then(|service| service.strip_suffix("Service"))
        .unwrap_or(service);
    visible(&format!("{short}/{method}"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::cli::commands::top::model::tests::scrape;

    /// The row with a name after two scrapes, a second apart.
    fn row(tab: Tab, name: &str, pages: [&str; 2]) -> (String, bool) {
        let mut model = Model::default();
        let mut now = Instant::now();
        for page in pages {
            model.push(Ok(scrape(now, page)), now);
            now += Duration::from_secs(1);
        }
        let rows = tab.table(&model).rows;
        let row = rows
            .into_iter()
            .find(|row| row.cells[0] == name)
            .expect("the tab has the row");
        (row.cells[1].clone(), row.is_alert)
    }

    fn overview(name: &str, page: &str) -> (String, bool) {
        row(Tab::Overview, name, [page, page])
    }

    #[test]
    fn rows_are_marked_as_the_alerts_have_it() {
        let connections = |open| format!("nodetracker_connections {open}\nnodetracker_connections_limit 100");
        assert_eq!(
            overview("Connections", &connections(90)),
            ("90 of 100 (90 %)".to_owned(), false)
        );
        assert_eq!(
            overview("Connections", &connections(91)),
            ("91 of 100 (91 %)".to_owned(), true)
        );

        let held = |cause| {
            format!("nodetracker_expiry_held{{cause=\"{cause}\"}} 1\nnodetracker_expiry_hold_remaining_seconds 61")
        };
        assert_eq!(
            overview("Expiry", &held("brake")),
            ("HELD (brake), for at most 1m 1s".to_owned(), true)
        );
        assert_eq!(
            overview("Expiry", &held("restart")),
            ("HELD (restart), for at most 1m 1s".to_owned(), false)
        );

        // The scrapes are at 1.7e9 seconds since 1970.
        let certificate = |expiry: f64| {
            format!(
                "nodetracker_certificate_expiry_timestamp_seconds{{file=\"a\"}} {expiry}
nodetracker_certificate_expiry_timestamp_seconds{{file=\"b\"}} 2e9"
            )
        };
        assert_eq!(
            overview("Certificate", &certificate(1.7e9 + 15.5 * DAY)),
            ("15 days left: a".to_owned(), false)
        );
        assert_eq!(
            overview("Certificate", &certificate(1.7e9 + 13.0 * DAY)),
            ("13 days left: a".to_owned(), true)
        );
        assert_eq!(
            overview("Certificate", &certificate(1.6e9)),
            ("EXPIRED: a".to_owned(), true)
        );
        assert_eq!(overview("Certificate", "up 1"), ("none (plaintext)".to_owned(), false));

        let snapshot = |written, failures| {
            format!(
                "nodetracker_snapshot_timestamp_seconds {written}
nodetracker_snapshot_bytes 51200000
nodetracker_snapshot_failures_total {failures}"
            )
        };
        assert_eq!(
            overview("Snapshot", &snapshot(1_699_999_988, 0)),
            ("12s ago, 51.2 MB".to_owned(), false)
        );
        assert_eq!(
            overview("Snapshot", &snapshot(1_699_999_000, 2)),
            ("16m 40s ago, 51.2 MB, 2 FAILED".to_owned(), true)
        );
        assert_eq!(
            overview("Snapshot", &snapshot(0, 1)),
            ("none yet, 1 FAILED".to_owned(), false)
        );
        assert_eq!(overview("Snapshot", "up 1"), ("off (no data_dir)".to_owned(), false));
    }

    #[test]
    fn refusals_are_counted_by_reason_and_marked_while_they_happen() {
        let page = |watches| {
            format!(
                "{REFUSALS}{{reason=\"accept\"}} 2\n{REFUSALS}{{reason=\"watches\"}} {watches}\n{REFUSALS}{{reason=\"x\"}} 0"
            )
        };
        let text = "5.0/s, 1,007 since the start: watches 1,005, accept 2".to_owned();
        assert_eq!(row(Tab::Overview, "Refusals", [&page(1000), &page(1005)]), (text, true));
        assert!(!row(Tab::Overview, "Refusals", [&page(1000), &page(1000)]).1);
    }

    #[test]
    fn calls_that_clients_cancelled_are_no_failures() {
        let page = |calls: [u32; 4]| {
            let codes = ["OK", "CANCELLED", "NOT_FOUND", "INTERNAL"];
            let lines = codes.iter().zip(calls);
            let line = |(code, calls)| format!("{CALLS}{{service=\"s\",method=\"m\",code=\"{code}\"}} {calls}");
            lines.map(line).collect::<Vec<_>>().join("\n")
        };
        let none = page([0; 4]);
        let failed = |calls| row(Tab::Overview, "Calls that failed", [&none, &page(calls)]);
        assert_eq!(failed([100, 50, 3, 0]), ("3.0/s".to_owned(), false));
        assert_eq!(failed([100, 50, 0, 3]), ("3.0/s".to_owned(), true));
        assert_eq!(failed([0; 4]), ("0/s".to_owned(), false));
    }

    #[test]
    fn names_of_methods_are_short_and_differ() {
        let names = [
            (["api.NodeTrackerService", "GetProxies"], "NodeTracker/GetProxies"),
            (["nodetracker.v1.RouteService", "GetProxies"], "Route/GetProxies"),
            (["grpc.health.v1.Health", "Check"], "grpc.health.v1.Health/Check"),
            (["unknown", "unknown"], "unknown/unknown"),
            (["a\u{202e}", ""], r"a\u{202e}/"),
        ];
        for (method, name) in names {
            assert_eq!(short_name(method), name);
        }
    }
}
