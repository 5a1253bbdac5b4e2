//! What a run measured, as text in the shape of ghz's report, or as JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::cli::commands::CommandError;
use crate::cli::commands::bench::Mode;
use crate::cli::commands::bench::generator::Measured;
use crate::cli::commands::bench::plot;
use crate::cli::commands::bench::schedule::Pace;
use crate::cli::commands::bench::tally::{LATE, Tally, per_second};
use crate::cli::commands::bench::work::Population;

/// The percentiles of ghz, and two more.
const PERCENTS: [f64; 9] = [10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99];

/// Buckets of the printed histogram.
const BUCKETS: u64 = 10;

/// The longest bar of the printed histogram, in characters.
const BAR: u64 = 40;

/// How a run was set up.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) mode: Mode,
    pub(super) pace: Pace,
    /// Successful calls per second of the closed loop before, if there was one.
    pub(super) maximum: Option<f64>,
    pub(super) connections: u32,
    pub(super) in_flight: u32,
    pub(super) population: Population,
    pub(super) was_interrupted: bool,
}

/// The report. In JSON, latencies and times are in seconds.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    mode: &'static str,
    /// `open` (at a constant rate) or `closed` (the maximum).
    #[serde(rename = "loop")]
    kind: &'static str,
    /// Calls per second that the run should make; none in a closed loop.
    target_rate: Option<f64>,
    /// Successful calls per second of the closed loop before, if the rate is a part of this maximum.
    maximum_rate: Option<f64>,
    connections: u32,
    in_flight: u32,
    nodes: u32,
    proxies: u32,
    batch_size: u32,
    seed: u64,
    /// Whether a signal ended the run before its time.
    was_interrupted: bool,
    /// Calls that ended, well or not.
    count: u64,
    /// Calls that were due but were not sent in time.
    unsent_count: u64,
    /// Connections that broke, and made no further calls.
    lost_connections: u64,
    total_seconds: f64,
    calls_per_second: f64,
    routes_per_second: f64,
    /// Routes that successful calls did not find or refresh.
    missing_routes: u64,
    slowest_seconds: f64,
    fastest_seconds: f64,
    average_seconds: f64,
    histogram: Vec<Bucket>,
    latencies: Vec<Percentile>,
    /// Calls by the name of their status.
    status_codes: BTreeMap<String, u64>,
    /// Calls that failed, by status and message.
    errors: BTreeMap<String, u64>,
    generator: Generator,
    /// The server's CPU time for each call.
    server_cpu_seconds_per_call: Option<f64>,
    #[serde(skip)]
    spectrum: Vec<(f64, f64)>,
}

/// Calls with a latency above that of the bucket before.
#[derive(Debug, Serialize)]
struct Bucket {
    up_to_seconds: f64,
    count: u64,
}

#[derive(Debug, Serialize)]
struct Percentile {
    percent: f64,
    seconds: f64,
}

/// How well the generator itself did.
#[derive(Debug, Serialize)]
struct Generator {
    /// Calls that the generator began more than a millisecond late.
    late_count: u64,
    worst_lateness_seconds: f64,
    /// How many cores were busy with the generator.
    cores: f64,
}

impl Report {
    pub(super) fn new(settings: &Settings, Measured { tally, cpu }: &Measured) -> Self {
        let latencies = &tally.latencies;
        let percentile = |percent| Percentile {
            percent,
            seconds: seconds(latencies.value_at_percentile(percent)),
        };
        let Population {
            seed,
            nodes,
            proxies,
            batch_size,
        } = settings.population;
        let (kind, target_rate) = match settings.pace {
            Pace::Open(rate) => ("open", Some(rate)),
            Pace::Closed => ("closed", None),
        };
        Self {
            mode: settings.mode.name(),
            kind,
            target_rate,
            maximum_rate: settings.maximum,
            connections: settings.connections,
            in_flight: settings.in_flight,
            nodes,
            proxies,
            batch_size,
            seed,
            was_interrupted: settings.was_interrupted,
            count: tally.count(),
            unsent_count: tally.unsent,
            lost_connections: tally.lost_connections,
            total_seconds: tally.total().as_secs_f64(),
            calls_per_second: tally.rate(),
            routes_per_second: per_second(tally.routes, tally.total()),
            missing_routes: tally.missing_routes,
            slowest_seconds: seconds(latencies.max()),
            fastest_seconds: if latencies.is_empty() {
                0.0
            } else {
                seconds(latencies.min())
            },
            average_seconds: latencies.mean() / 1e9,
            histogram: buckets(tally),
            latencies: PERCENTS.map(percentile).into(),
            status_codes: tally.statuses(),
            errors: tally.errors.clone(),
            generator: Generator {
                late_count: tally.late,
                worst_lateness_seconds: tally.worst_lateness.as_secs_f64(),
                cores: ratio(cpu.generator, cpu.elapsed),
            },
            server_cpu_seconds_per_call: cpu
                .server
                .map(|server| server.as_secs_f64() / tally.ended.max(1) as f64),
            spectrum: plot::spectrum(latencies),
        }
    }

    /// Fails if a call failed or was not sent.
    pub(super) fn outcome(&self) -> Result<(), CommandError> {
        let succeeded = self.status_codes.get("OK").copied().unwrap_or_default();
        let all = self.count + self.unsent_count;
        match all - succeeded {
            0 => Ok(()),
            failed => Err(CommandError::Failed(format!("{failed} of {all} calls failed"))),
        }
    }

    /// Returns the drawing of the latencies, as SVG.
    pub(super) fn plot(&self) -> String {
        plot::draw(&self.title(), &self.spectrum)
    }

    fn title(&self) -> String {
        let load = match self.target_rate {
            Some(rate) => format!("open loop at {rate:.0} calls/s"),
            None => "closed loop, as many calls as possible".to_owned(),
        };
        let maximum = self
            .maximum_rate
            .map_or_else(String::new, |rate| format!(" (maximum {rate:.0})"));
        let (connections, in_flight) = (self.connections, self.in_flight);
        format!(
            "{}, {load}{maximum}, {connections} connections, up to {in_flight} in flight on each",
            self.mode
        )
    }
}

/// Divides the latencies into buckets of the same width.
fn buckets(tally: &Tally) -> Vec<Bucket> {
    let (min, max) = (tally.latencies.min(), tally.latencies.max());
    if tally.latencies.is_empty() {
        return Vec::new();
    }
    let mut below = 0;
    (0..=BUCKETS)
        .map(|bucket| {
            let up_to = min + (max - min) * bucket / BUCKETS;
            let all = tally.latencies.count_between(0, up_to);
            let count = all - below;
            below = all;
            Bucket {
                up_to_seconds: seconds(up_to),
                count,
            }
        })
        .collect()
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn ratio(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() {
        0.0
    } else {
        part.as_secs_f64() / whole.as_secs_f64()
    }
}

fn millis(seconds: f64) -> String {
    format!("{:.3} ms", 1e3 * seconds)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.title())?;
        writeln!(
            f,
            "{} nodes through {} proxies, {} in each call, seed {}",
            self.nodes, self.proxies, self.batch_size, self.seed
        )?;
        if self.was_interrupted {
            writeln!(f, "interrupted: the figures end at the signal")?;
        }

        writeln!(f, "\nSummary:")?;
        let mut line = |name: &str, value: String| writeln!(f, "  {:17} {value}", format!("{name}:"));
        line("Count", self.count.to_string())?;
        line("Total", format!("{:.2} s", self.total_seconds))?;
        line("Slowest", millis(self.slowest_seconds))?;
        line("Fastest", millis(self.fastest_seconds))?;
        line("Average", millis(self.average_seconds))?;
        line("Requests/sec", format!("{:.2}", self.calls_per_second))?;
        line("Routes/sec", format!("{:.2}", self.routes_per_second))?;
        if self.unsent_count > 0 {
            let unsent = self.unsent_count;
            line(
                "Not sent",
                format!("{unsent} calls were due and could not begin in time"),
            )?;
        }
        if self.lost_connections > 0 {
            let lost = self.lost_connections;
            line("Lost", format!("{lost} connections broke and made no further calls"))?;
        }
        if self.missing_routes > 0 {
            line("Missing", format!("{} routes were not there", self.missing_routes))?;
        }
        if let Some(seconds) = self.server_cpu_seconds_per_call {
            line("Server CPU", format!("{:.2} us for each call", 1e6 * seconds))?;
        }
        let Generator {
            late_count,
            worst_lateness_seconds,
            cores,
        } = self.generator;
        line("Generator", format!("{:.0} % of a core", 100.0 * cores))?;
        if self.target_rate.is_some() {
            let worst = millis(worst_lateness_seconds);
            line(
                "Generator late",
                format!("{worst} at worst, {late_count} calls by more than {LATE:?}"),
            )?;
        }

        writeln!(f, "\nResponse time histogram:")?;
        let most = self
            .histogram
            .iter()
            .map(|bucket| bucket.count)
            .max()
            .unwrap_or_default();
        for Bucket { up_to_seconds, count } in &self.histogram {
            let bar = "∎".repeat((count * BAR).div_ceil(most.max(1)) as usize);
            writeln!(
                f,
                "  {:>13} {:>11} |{bar}",
                millis(*up_to_seconds),
                format!("[{count}]")
            )?;
        }

        writeln!(f, "\nLatency distribution:")?;
        for Percentile { percent, seconds } in &self.latencies {
            writeln!(f, "  {percent:>5} % in {}", millis(*seconds))?;
        }

        writeln!(f, "\nStatus code distribution:")?;
        for (code, count) in &self.status_codes {
            writeln!(f, "  {:20} {count} responses", format!("[{code}]"))?;
        }
        if !self.errors.is_empty() {
            writeln!(f, "\nError distribution:")?;
            for (error, count) in &self.errors {
                writeln!(f, "  {:20} {error}", format!("[{count}]"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tonic::Status;

    use super::*;
    use crate::cli::commands::bench::cpu::CpuUse;
    use crate::cli::commands::bench::schedule::Due;

    fn report(tally: Tally) -> Report {
        let settings = Settings {
            mode: Mode::Unary,
            pace: Pace::Open(500.0),
            maximum: Some(1000.0),
            connections: 10,
            in_flight: 100,
            population: Population {
                seed: 47,
                nodes: 1000,
                proxies: 7,
                batch_size: 1,
            },
            was_interrupted: true,
        };
        let cpu = CpuUse {
            elapsed: Duration::from_secs(2),
            generator: Duration::from_secs(1),
            server: Some(Duration::from_millis(8)),
        };
        Report::new(&settings, &Measured { tally, cpu })
    }

    /// Three quick calls and a slow call, an error, and a call that was not sent.
    fn tally() -> Tally {
        let begin = Instant::now();
        let due = Due {
            at: begin,
            number: 0,
            is_measured: true,
        };
        let mut tally = Tally::new();
        tally.began(due, begin, begin + Duration::from_micros(1500));
        for millis in [1, 1, 2, 8] {
            tally.ended(due, 1, &Ok(1), begin + Duration::from_millis(millis));
        }
        tally.ended(due, 1, &Err(Status::unavailable("gone")), begin);
        tally.unsent(due, begin + Duration::from_millis(10));
        tally
    }

    #[test]
    fn the_text_has_the_shape_of_ghz() {
        let expected = "\
unary, open loop at 500 calls/s (maximum 1000), 10 connections, up to 100 in flight on each
1000 nodes through 7 proxies, 1 in each call, seed 47
interrupted: the figures end at the signal

Summary:
  Count:            5
  Total:            0.01 s
  Slowest:          10.002 ms
  Fastest:          1.000 ms
  Average:          4.400 ms
  Requests/sec:     500.00
  Routes/sec:       400.00
  Not sent:         1 calls were due and could not begin in time
  Server CPU:       1600.00 us for each call
  Generator:        50 % of a core
  Generator late:   1.500 ms at worst, 1 calls by more than 1ms

Response time histogram:
       1.000 ms         [2] |∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎
       1.900 ms         [0] |
       2.800 ms         [1] |∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎
       3.701 ms         [0] |
       4.601 ms         [0] |
       5.501 ms         [0] |
       6.401 ms         [0] |
       7.302 ms         [0] |
       8.202 ms         [1] |∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎
       9.102 ms         [0] |
      10.002 ms         [1] |∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎∎

Latency distribution:
     10 % in 1.000 ms
     25 % in 1.000 ms
     50 % in 2.001 ms
     75 % in 8.004 ms
     90 % in 10.002 ms
     95 % in 10.002 ms
     99 % in 10.002 ms
   99.9 % in 10.002 ms
  99.99 % in 10.002 ms

Status code distribution:
  [OK]                 4 responses
  [UNAVAILABLE]        1 responses

Error distribution:
  [1]                  UNAVAILABLE: gone
";
        assert_eq!(report(tally()).to_string(), expected);
    }

    #[test]
    fn a_run_with_a_failed_or_an_unsent_call_failed() {
        let error = report(tally()).outcome().unwrap_err();
        assert_eq!(error.to_string(), "2 of 6 calls failed");
        let nothing = report(Tally::new());
        nothing.outcome().unwrap();
        assert!(nothing.to_string().contains("  Count:            0\n"));
        assert!(nothing.plot().ends_with("</svg>\n"));
    }
}
