//! The tabs: the rows of each, as text and as JSON. A row is marked if an operator should look at the row. The bounds
//! are those of the alerts in `ops/alerts.yaml`.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use clap::ValueEnum;
use serde_json::Value;

use crate::cli::commands::top::figures::{NONE, age, bytes, count, latency, percent, rate};
use crate::cli::commands::top::json::{number, numbers, seconds};
use crate::cli::commands::top::model::{
    ACCEPTED, CALLS, CPU_SECONDS, HANDSHAKE_FAILURES, Interval, LOST_PLACES, METHOD, Model, REFUSALS, SESSION_MESSAGES,
    SNAPSHOT_FAILURES, SWEEP_VISITS, SWEPT,
};
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
    /// The name of the list in JSON, if each row is an object of a list.
    pub(super) list: Option<&'static str>,
}

/// A row of a table.
#[derive(Debug, Default)]
pub(super) struct Row {
    /// The name, and then the figures.
    pub(super) cells: Vec<String>,
    /// The same figures in JSON, by their names. The first name is that of the row.
    pub(super) fields: Vec<(String, Value)>,
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

    /// Adds a figure in JSON.
    fn field(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.fields.push((name.into(), value.into()));
        self
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

    /// Reports whether an operator should look at a row of the tab.
    pub(super) fn is_alert(self, model: &Model) -> bool {
        self.table(model).rows.iter().any(|row| row.is_alert)
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

/// The most methods that are shown. A tracker has some 20.
const MAX_METHODS: usize = 500;

/// The part of a limit above which a row is marked.
const NEAR_LIMIT: f64 = 0.9;

/// The part of the calls that may fail by a fault of the tracker or of a client.
const MAX_FAILED: f64 = 0.01;

/// The bytes of garbage from which a growth is an alert.
const MUCH_GARBAGE: f64 = 256e6;

/// How often watches may lose their places, per second: 5 times in 15 minutes.
const MAX_LOST_PLACES: f64 = 5.0 / 900.0;

/// The sweeper has stopped if it has not visited any of the routes for this many seconds. It takes a turn each second.
const LONGEST_SWEEP_PAUSE: f64 = 5.0;

/// A day in seconds.
const DAY: f64 = 86_400.0;

/// The source of the figures.
struct From<'m> {
    model: &'m Model,
    interval: Interval<'m>,
}

impl From<'_> {
    fn overview(&self) -> Table {
        let p99 = self.interval.latency(0.99, None);
        rows(vec![
            self.state(),
            self.seconds("Uptime", "uptime_seconds", self.since("process_start_time_seconds")),
            self.routes(),
            self.value("Nodes", "nodes", "nodetracker_nodes"),
            self.proxies_with_sessions(),
            self.rate("Calls", "calls_per_second", CALLS),
            self.errors(),
            Row::new("Latency, p99 of all calls", latency(p99)).field("p99_seconds", seconds(p99)),
            self.session_messages(),
            self.connections(),
            self.handshake_failures(),
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
            let calls = rate_of(&names);
            let errors = calls.map(|_| errors.get(&names).copied().unwrap_or(0.0));
            let quantiles = [0.5, 0.9, 0.99].map(|of| self.interval.latency(of, Some(method)));
            let [p50, p90, p99] = quantiles.map(latency);
            let row = Row {
                cells: vec![short_name(method), rate(calls), rate(errors), p50, p90, p99],
                rates: self.model.rates(CALLS, &method),
                ..Row::default()
            };
            let [p50, p90, p99] = quantiles.map(seconds);
            row.field("service", method[0])
                .field("method", method[1])
                .field("calls_per_second", number(calls))
                .field("failed_calls_per_second", number(errors))
                .field("p50_seconds", p50)
                .field("p90_seconds", p90)
                .field("p99_seconds", p99)
        });
        Table {
            heading: vec!["METHOD", "CALLS", "ERRORS", "P50", "P90", "P99"],
            rows: rows.collect(),
            note: format!("{not_called} methods had no call. A stream counts when it ends, and has no latency."),
            list: Some("methods"),
        }
    }

    fn proxies(&self) -> Table {
        let proxies = self.interval.value("nodetracker_proxies");
        let routes = self.interval.value("nodetracker_routes");
        let mean = proxies.zip(routes).map(|(proxies, routes)| routes / proxies);
        Table {
            note: "Totals only: `nodetracker proxies` lists each proxy with its routes.".to_owned(),
            ..rows(vec![
                self.proxies_with_sessions(),
                self.routes(),
                Row::new("Routes of a proxy, mean", count(mean)).field("routes_per_proxy", number(mean)),
                self.messages("Sessions that begin", "hello"),
                self.messages("Proxies that drain", "drain"),
                self.swept("Routes of removed proxies, swept", "proxy_removed"),
                self.refused("Refused: routes of a proxy", "proxy_routes"),
                self.refused("Refused: routes of a client", "client_routes"),
                self.refused("Refused: more proxies", "table_proxies"),
                self.refused("Refused: more proxies of a client", "client_proxies"),
                self.part("Memory of the proxies", "proxies"),
                self.text(),
            ])
        }
    }

    fn sessions(&self) -> Table {
        rows(vec![
            self.value("Sessions", "sessions", "nodetracker_sessions"),
            self.session_messages(),
            self.messages("  hello", "hello"),
            self.messages("  nodes up", "nodes_up"),
            self.messages("  heartbeat", "heartbeat"),
            self.messages("  nodes down", "nodes_down"),
            self.messages("  drain", "drain"),
            self.ended(
                "Sessions that ended",
                "ended_sessions",
                ["nodetracker.v1.SessionService", "Session"],
            ),
            self.of_limit(
                "Watches",
                "watches",
                ["nodetracker_watches", "nodetracker_watches_limit"],
            ),
            self.watched_nodes(),
            self.ended(
                "Watches that ended",
                "ended_watches",
                ["nodetracker.v1.WatchService", "Watch"],
            ),
            self.lost_places(),
            self.value(
                "Parts sent again to watches",
                "watch_resyncs",
                "nodetracker_watch_resyncs_total",
            ),
            self.refused("Refused: more watches", "watches"),
            self.connections(),
            self.rate("New connections", "accepted_connections_per_second", ACCEPTED),
            self.handshake_failures(),
        ])
    }

    fn memory(&self) -> Table {
        let sweeper = self.interval.rate("nodetracker_sweep_seconds_total");
        rows(vec![
            self.seconds(
                "Keep-alive interval",
                "keep_alive_seconds",
                self.interval.value("nodetracker_keep_alive_seconds"),
            ),
            self.seconds(
                "Greatest age of a returned route",
                "effective_keep_alive_seconds",
                self.interval.value("nodetracker_effective_keep_alive_seconds"),
            ),
            self.expiry(),
            self.sweep_visits(),
            self.value(
                "Rounds of the sweeper",
                "sweep_rounds",
                "nodetracker_sweep_rounds_total",
            ),
            Row::new("Sweeper, share of a core", percent(sweeper)).field("sweeper_cores", number(sweeper)),
            self.swept("Routes swept, expired", "expired"),
            self.swept("Routes swept, of removed proxies", "proxy_removed"),
            self.size("Memory of the table", "table_bytes", "nodetracker_table_bytes"),
            self.part("  records", "records"),
            self.part("  indexes", "indexes"),
            self.part("  lists, strings, proxies, feed", "lists strings proxies feed"),
            self.garbage(),
            self.client_memory(),
            self.resident_memory(),
            self.cpu(),
            self.value("Threads", "threads", "process_threads"),
            self.of_limit("Open files", "open_files", ["process_open_fds", "process_max_fds"]),
            self.snapshot(),
            self.value(
                "Routes restored at the start",
                "restored_routes",
                "nodetracker_restored_routes",
            ),
        ])
    }

    fn value(&self, name: &str, field: &str, metric: &str) -> Row {
        let value = self.interval.value(metric);
        Row::new(name, count(value)).field(field, number(value))
    }

    fn seconds(&self, name: &str, field: &str, seconds: Option<f64>) -> Row {
        Row::new(name, age(seconds)).field(field, number(seconds))
    }

    fn size(&self, name: &str, field: &str, metric: &str) -> Row {
        let size = self.interval.value(metric);
        Row::new(name, bytes(size)).field(field, number(size))
    }

    fn rate(&self, name: &str, field: &str, metric: &'static str) -> Row {
        let per_second = self.interval.rate(metric);
        Row::new(name, rate(per_second))
            .field(field, number(per_second))
            .rates(self.model.rates(metric, &[]))
    }

    /// Returns the rate of a counter for one value of a label.
    fn by(&self, name: &str, field: &str, metric: &'static str, label: &str, value: &str) -> Row {
        let rates = self.interval.rates(metric, &[label]);
        Row::new(name, rate(rates.get(&[value][..]).copied()))
            .field(field, numbers(&rates))
            .rates(self.model.rates(metric, &[value]))
    }

    /// Returns the rate of a counter, its sum since the start, and the sums by reason that are not zero.
    fn counted(&self, name: &str, field: &str, metric: &'static str) -> Row {
        let by_reason = self.interval.values(metric, &["reason"]);
        let mut sums: Vec<_> = by_reason.iter().filter(|&(_, &sum)| sum > 0.0).collect();
        sums.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let parts: Vec<_> = sums
            .into_iter()
            .map(|(reason, &sum)| format!("{} {}", visible(&reason.concat()), count(Some(sum))))
            .collect();
        let per_second = self.interval.rate(metric);
        let mut text = rate(per_second);
        text += &format!(", {} since the start", count(self.interval.value(metric)));
        if !parts.is_empty() {
            text += &format!(": {}", parts.join(", "));
        }
        Row::new(name, text)
            .field(field, numbers(&by_reason))
            .field(format!("{field}_per_second"), number(per_second))
            .rates(self.model.rates(metric, &[]))
    }

    /// Returns a value beside its limit. Marks the row if the value is [near the limit](NEAR_LIMIT).
    fn of_limit(&self, name: &str, field: &str, metrics: [&str; 2]) -> Row {
        let [value, limit] = metrics.map(|metric| self.interval.value(metric));
        Row::new(name, count_of_limit(value, limit))
            .field(field, number(value))
            .field(format!("{field}_limit"), number(limit))
            .alert_if(is_above(value, limit, NEAR_LIMIT))
    }

    /// Returns bytes beside their limit. Marks the row if the bytes are above a part of the limit.
    fn size_of_limit(&self, name: &str, field: &str, used: Option<f64>, limit: &str, most: f64) -> Row {
        let limit = self.interval.value(limit);
        Row::new(name, format!("{} of {}", bytes(used), bytes(limit)))
            .field(format!("{field}_bytes"), number(used))
            .field(format!("{field}_limit_bytes"), number(limit))
            .alert_if(is_above(used, limit, most))
    }

    fn state(&self) -> Row {
        let reason = self.interval.scrape().not_ready.as_deref();
        let text = reason.map_or_else(|| "ready".to_owned(), |reason| format!("NOT READY: {reason}"));
        Row::new("State", text)
            .field("ready", reason.is_none())
            .field("not_ready_reason", reason)
            .alert_if(reason.is_some())
    }

    fn routes(&self) -> Row {
        self.of_limit("Routes", "routes", ["nodetracker_routes", "nodetracker_routes_limit"])
    }

    fn connections(&self) -> Row {
        let metrics = ["nodetracker_connections", "nodetracker_connections_limit"];
        self.of_limit("Connections", "connections", metrics)
    }

    fn proxies_with_sessions(&self) -> Row {
        let metrics = [
            "nodetracker_proxies",
            "nodetracker_proxies_limit",
            "nodetracker_sessions",
        ];
        let [proxies, limit, sessions] = metrics.map(|metric| self.interval.value(metric));
        let is_alert = is_above(proxies, limit, NEAR_LIMIT);
        let proxies_text = if is_alert {
            count_of_limit(proxies, limit)
        } else {
            count(proxies)
        };
        Row::new("Proxies", format!("{proxies_text}, {} with a session", count(sessions)))
            .field("proxies", number(proxies))
            .field("proxies_limit", number(limit))
            .field("sessions", number(sessions))
            .alert_if(is_alert)
    }

    fn session_messages(&self) -> Row {
        self.rate("Messages of sessions", "session_messages_per_second", SESSION_MESSAGES)
    }

    fn messages(&self, name: &str, kind: &str) -> Row {
        let field = "session_messages_per_second_by_kind";
        self.by(name, field, SESSION_MESSAGES, "kind", kind)
    }

    fn swept(&self, name: &str, cause: &str) -> Row {
        self.by(name, "swept_routes_per_second", SWEPT, "cause", cause)
    }

    fn handshake_failures(&self) -> Row {
        // The other reasons are the clients' affair, such as probes that close the connection.
        let rates = self.interval.rates(HANDSHAKE_FAILURES, &["reason"]);
        let is_alert = ["tls_alert", "tls"]
            .iter()
            .any(|reason| rates.get(&[*reason][..]).is_some_and(|&rate| rate > 0.0));
        self.counted("Failed handshakes", "handshake_failures", HANDSHAKE_FAILURES)
            .alert_if(is_alert)
    }

    /// Returns how many streams of a method have ended, by code.
    fn ended(&self, name: &str, field: &str, method: [&str; 2]) -> Row {
        let mut by_code = BTreeMap::new();
        for (labels, calls) in self.interval.values(CALLS, &["service", "method", "code"]) {
            if labels[..2] == method && calls > 0.0 {
                by_code.insert(vec![labels[2]], calls);
            }
        }
        let texts: Vec<_> = by_code
            .iter()
            .map(|(code, &calls)| format!("{} {}", visible(&code.concat()), count(Some(calls))))
            .collect();
        let text = if texts.is_empty() {
            "0".to_owned()
        } else {
            texts.join(", ")
        };
        Row::new(name, text).field(field, numbers(&by_code))
    }

    fn refused(&self, name: &str, reason: &str) -> Row {
        let counts = self.interval.values(REFUSALS, &["reason"]);
        let rates = self.interval.rates(REFUSALS, &["reason"]);
        Row::new(name, count(counts.get(&[reason][..]).copied()))
            .field("refusals", numbers(&counts))
            .alert_if(rates.get(&[reason][..]).is_some_and(|&rate| rate > 0.0))
    }

    fn refusals(&self) -> Row {
        let is_alert = self.interval.rate(REFUSALS).is_some_and(|rate| rate > 0.0);
        self.counted("Refusals", "refusals", REFUSALS).alert_if(is_alert)
    }

    /// Returns the bytes of parts of the table, which are separated by spaces.
    fn part(&self, name: &str, parts: &str) -> Row {
        let sizes = self.interval.values("nodetracker_table_bytes", &["part"]);
        let size: Option<f64> = parts.split(' ').map(|part| sizes.get(&[part][..]).copied()).sum();
        Row::new(name, bytes(size)).field("table_bytes_by_part", numbers(&sizes))
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
        Row::new("Calls that failed", rate(errors))
            .field("failed_calls_per_second", number(errors))
            .alert_if(share.is_some_and(|share| share > MAX_FAILED))
    }

    fn expiry(&self) -> Row {
        let causes = self.interval.values("nodetracker_expiry_held", &["cause"]);
        let held = causes.iter().find(|&(_, &held)| held > 0.0);
        let cause = held.map(|(cause, _)| cause.concat());
        let left = self.interval.value("nodetracker_expiry_hold_remaining_seconds");
        let left = left.filter(|_| cause.is_some());
        let text = match &cause {
            None => "not held".to_owned(),
            Some(cause) => format!("HELD ({}), for at most {}", visible(cause), age(left)),
        };
        let is_alert = cause.as_deref() == Some("brake");
        Row::new("Expiry", text)
            .field("expiry_hold", cause.unwrap_or_else(|| "none".to_owned()))
            .field("expiry_hold_left_seconds", number(left))
            .alert_if(is_alert)
    }

    fn lost_places(&self) -> Row {
        let is_alert = self
            .interval
            .rate(LOST_PLACES)
            .is_some_and(|rate| rate > MAX_LOST_PLACES);
        self.value("Watches that lost their place", "watch_lost_places", LOST_PLACES)
            .alert_if(is_alert)
    }

    fn sweep_visits(&self) -> Row {
        let row = self.rate("Visits of the sweeper", "sweep_visits_per_second", SWEEP_VISITS);
        let intervals = (LONGEST_SWEEP_PAUSE / self.interval.elapsed().as_secs_f64())
            .ceil()
            .max(1.0) as usize;
        let has_stopped =
            row.rates.len() >= intervals && row.rates.iter().rev().take(intervals).all(|&rate| rate == 0.0);
        let has_routes = self.interval.value("nodetracker_routes") > Some(0.0);
        row.alert_if(has_stopped && has_routes)
    }

    fn garbage(&self) -> Row {
        const BYTES: &str = "nodetracker_garbage_bytes";
        let objects = self.interval.value("nodetracker_garbage_objects");
        let size = self.interval.value(BYTES);
        let grows = self.interval.change(BYTES) > Some(0.0);
        Row::new("Garbage", format!("{} objects, {}", count(objects), bytes(size)))
            .field("garbage_objects", number(objects))
            .field("garbage_bytes", number(size))
            .alert_if(size > Some(MUCH_GARBAGE) && grows)
    }

    fn snapshot(&self) -> Row {
        const TIME: &str = "nodetracker_snapshot_timestamp_seconds";
        let written = self.interval.value(TIME);
        let failures = self.interval.value(SNAPSHOT_FAILURES);
        let is_failing = self
            .interval
            .value("nodetracker_snapshot_failing")
            .map(|failing| failing > 0.0);
        let has_failed = self.model.rates(SNAPSHOT_FAILURES, &[]).iter().any(|&rate| rate > 0.0);
        let size = self.interval.value("nodetracker_snapshot_bytes");
        // The time is 0 if no snapshot was written.
        let since = self.since(TIME).filter(|_| written > Some(0.0));
        let mut text = match (written, since) {
            (None, _) => "off (no data_dir)".to_owned(),
            (Some(_), None) => "none yet".to_owned(),
            (Some(_), Some(_)) => format!("{} ago, {}", age(since), bytes(size)),
        };
        if let Some(failures) = failures.filter(|&failures| failures > 0.0) {
            text += &format!(", {} FAILED", count(Some(failures)));
        }
        let interval = self
            .interval
            .value("nodetracker_snapshot_interval_seconds")
            .unwrap_or(0.0);
        // Until the first snapshot, the start counts.
        let waited = since.or_else(|| self.since("process_start_time_seconds"));
        let is_late = waited.is_some_and(|waited| waited > 3.0 * interval + 300.0);
        Row::new("Snapshot", text)
            .field("snapshot_age_seconds", number(since))
            .field("last_snapshot_bytes", number(size))
            .field("snapshot_failures", number(failures))
            .field("snapshots_failing", is_failing)
            .alert_if(written.is_some() && (is_late || has_failed || is_failing == Some(true)))
    }

    fn certificate(&self) -> Row {
        let expiries = self
            .interval
            .values("nodetracker_certificate_expiry_timestamp_seconds", &["file"]);
        let first = expiries.into_iter().min_by(|(_, one), (_, other)| one.total_cmp(other));
        let file = first.as_ref().map(|(file, _)| file.concat());
        let left = first.map(|(_, expiry)| expiry - self.now());
        let days = left.map(|left| left / DAY);
        let is_failing = self
            .interval
            .value("nodetracker_certificate_reload_failing")
            .map(|failing| failing > 0.0);
        let mut text = match (&file, days) {
            (Some(file), Some(days)) if days >= 0.0 => {
                format!("{} days left: {}", count(Some(days.floor())), visible(file))
            }
            (Some(file), _) => format!("EXPIRED: {}", visible(file)),
            (None, _) => "none (plaintext)".to_owned(),
        };
        if is_failing == Some(true) {
            text += ", the files CANNOT BE LOADED";
        }
        Row::new("Certificate", text)
            .field("certificate_left_seconds", number(left))
            .field("certificate_file", file)
            .field("certificate_reload_failing", is_failing)
            .alert_if(days.is_some_and(|days| days < 14.0) || is_failing == Some(true))
    }

    fn client_memory(&self) -> Row {
        let used = self.interval.value("nodetracker_client_memory_bytes");
        let limit = "nodetracker_client_memory_limit_bytes";
        self.size_of_limit("Memory of clients", "client_memory", used, limit, 0.8)
    }

    fn text(&self) -> Row {
        let sizes = self.interval.values("nodetracker_table_bytes", &["part"]);
        let used = sizes.get(&["strings"][..]).copied();
        let name = "Memory of names and addresses";
        self.size_of_limit(name, "text", used, "nodetracker_text_limit_bytes", NEAR_LIMIT)
    }

    fn watched_nodes(&self) -> Row {
        let used = self.interval.value("nodetracker_watched_bytes");
        let limit = "nodetracker_watched_limit_bytes";
        self.size_of_limit("Nodes that watches name", "watched", used, limit, NEAR_LIMIT)
    }

    fn resident_memory(&self) -> Row {
        self.size(
            "Memory of the process",
            "resident_memory_bytes",
            "process_resident_memory_bytes",
        )
    }

    fn cpu(&self) -> Row {
        let cores = self.interval.rate(CPU_SECONDS);
        let share = percent(cores);
        let text = if share == NONE {
            share
        } else {
            format!("{share} of a core")
        };
        Row::new("CPU", text)
            .field("cpu_cores", number(cores))
            .rates(self.model.rates(CPU_SECONDS, &[]))
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

fn count_of_limit(value: Option<f64>, limit: Option<f64>) -> String {
    let part = value.zip(limit).map(|(value, limit)| value / limit);
    format!("{} of {} ({})", count(value), count(limit), percent(part))
}

/// Reports whether a value is above a part of its limit.
fn is_above(value: Option<f64>, limit: Option<f64>, part: f64) -> bool {
    value.zip(limit).is_some_and(|(value, limit)| value > part * limit)
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

        let proxies =
            |proxies| format!("nodetracker_proxies {proxies}\nnodetracker_proxies_limit 100\nnodetracker_sessions 7");
        assert_eq!(
            overview("Proxies", &proxies(90)),
            ("90, 7 with a session".to_owned(), false)
        );
        assert_eq!(
            overview("Proxies", &proxies(91)),
            ("91 of 100 (91 %), 7 with a session".to_owned(), true)
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

        let snapshot_each = |interval, written, failures| {
            format!(
                "process_start_time_seconds 1699999000
nodetracker_snapshot_interval_seconds {interval}
nodetracker_snapshot_timestamp_seconds {written}
nodetracker_snapshot_bytes 51200000
nodetracker_snapshot_failures_total {failures}"
            )
        };
        let snapshot = |written, failures| snapshot_each(60, written, failures);
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
            ("none yet, 1 FAILED".to_owned(), true)
        );
        assert_eq!(overview("Snapshot", &snapshot(0, 0)), ("none yet".to_owned(), true));
        assert_eq!(
            overview("Snapshot", &snapshot_each(3600, 0, 0)),
            ("none yet".to_owned(), false)
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
    fn watches_that_ended_are_those_of_the_tracker_and_not_of_its_health() {
        let ended =
            |service, code, count| format!("{CALLS}{{service=\"{service}\",method=\"Watch\",code=\"{code}\"}} {count}");
        let page = [
            ended("nodetracker.v1.WatchService", "OK", 2),
            ended("nodetracker.v1.WatchService", "CANCELLED", 1),
            ended("grpc.health.v1.Health", "UNAVAILABLE", 40),
        ]
        .join("\n");
        let text = "CANCELLED 1, OK 2".to_owned();
        assert_eq!(row(Tab::Sessions, "Watches that ended", [&page, &page]).0, text);
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
