//! The outcomes of the calls of one thread, or of a whole phase.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::cli::commands::bench::schedule::Due;
use crate::cli::commands::{code_name, message};
use crate::grpc::call_counters::CODES;

/// The longest latency that the histogram has, in nanoseconds. Longer latencies count as this latency.
const LONGEST: u64 = 3_600_000_000_000;

/// Three significant digits: a latency is at most 0.1 % off.
const DIGITS: u8 = 3;

/// Different messages of errors that are kept.
const MAX_ERRORS: usize = 20;

/// A call that the generator began later than this after its time counts as late.
pub(super) const LATE: Duration = Duration::from_millis(1);

/// How a call ended: with this many routes reported or found, or with an error.
pub(super) type Outcome = Result<u32, Status>;

/// The outcomes of calls.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    /// Nanoseconds since the calls were due. Has the calls that succeeded, those without a reply in time, and those
    /// that waited and were never sent. An error that comes at once would make the server look fast.
    pub(super) latencies: Histogram<u64>,
    /// Measured calls by the number of their status.
    codes: [u64; CODES],
    /// Measured calls that failed, by status and message.
    pub(super) errors: BTreeMap<String, u64>,
    /// Measured calls that were due but never sent.
    pub(super) unsent: u64,
    /// Connections that broke.
    pub(super) lost_connections: u64,
    /// Routes that the measured calls reported or found.
    pub(super) routes: u64,
    /// Routes that the measured calls should have reported or found, but did not.
    pub(super) missing_routes: u64,
    /// All calls that ended, with those of the warm-up.
    pub(super) ended: u64,
    /// Measured calls that the generator began late, although there was room for them.
    pub(super) late: u64,
    /// By how much the generator was late at worst.
    pub(super) worst_lateness: Duration,
    /// When the first measured call was due, and when the last measured call ended.
    pub(super) span: Option<(Instant, Instant)>,
}

impl Tally {
    pub(super) fn new() -> Self {
        Self {
            latencies: Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds are constant and in order"),
            codes: [0; CODES],
            errors: BTreeMap::new(),
            unsent: 0,
            lost_connections: 0,
            routes: 0,
            missing_routes: 0,
            ended: 0,
            late: 0,
            worst_lateness: Duration::ZERO,
            span: None,
        }
    }

    /// Counts a call that the generator began at `now`, and could have begun at `possible`, when the call was due and
    /// there was room for the call.
    pub(super) fn began(&mut self, due: Due, possible: Instant, now: Instant) {
        if due.is_measured {
            let lateness = now.saturating_duration_since(possible);
            self.late += u64::from(lateness > LATE);
            self.worst_lateness = self.worst_lateness.max(lateness);
        }
    }

    /// Counts the end of a call that should have been about this many routes.
    pub(super) fn ended(&mut self, due: Due, routes: u32, outcome: &Outcome, now: Instant) {
        self.ended += 1;
        if !due.is_measured {
            return;
        }
        let code = match outcome {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        };
        self.codes[code as usize] += 1;
        match outcome {
            Ok(done) => {
                self.routes += u64::from(*done);
                self.missing_routes += u64::from(routes.saturating_sub(*done));
            }
            Err(status) => self.failed(status),
        }
        if matches!(code, Code::Ok | Code::DeadlineExceeded) {
            self.waited(due, now);
        }
        self.span(due, now);
    }

    fn failed(&mut self, status: &Status) {
        let error = format!("{}: {}", code_name(status.code()), message(status));
        if self.errors.len() < MAX_ERRORS || self.errors.contains_key(&error) {
            *self.errors.entry(error).or_default() += 1;
        }
    }

    /// Counts a call that was due before `now`, and will never be sent.
    pub(super) fn unsent(&mut self, due: Due, now: Instant) {
        if due.is_measured {
            self.unsent += 1;
            self.waited(due, now);
            self.span(due, now);
        }
    }

    fn waited(&mut self, due: Due, now: Instant) {
        let latency = now.saturating_duration_since(due.at).as_nanos();
        self.latencies
            .saturating_record(latency.clamp(1, LONGEST.into()) as u64);
    }

    fn span(&mut self, due: Due, now: Instant) {
        let (begin, end) = self.span.unwrap_or((due.at, now));
        self.span = Some((begin.min(due.at), end.max(now)));
    }

    /// Adds the calls of another thread.
    pub(super) fn add(&mut self, other: &Self) {
        // All histograms have the same bounds.
        let _ = self.latencies.add(&other.latencies);
        for (count, more) in self.codes.iter_mut().zip(other.codes) {
            *count += more;
        }
        for (error, count) in &other.errors {
            *self.errors.entry(error.clone()).or_default() += count;
        }
        self.unsent += other.unsent;
        self.lost_connections += other.lost_connections;
        self.routes += other.routes;
        self.missing_routes += other.missing_routes;
        self.ended += other.ended;
        self.late += other.late;
        self.worst_lateness = self.worst_lateness.max(other.worst_lateness);
        self.span = match (self.span, other.span) {
            (Some((begin, end)), Some((other_begin, other_end))) => Some((begin.min(other_begin), end.max(other_end))),
            (span, other) => span.or(other),
        };
    }

    /// Returns how many measured calls ended, well or not.
    pub(super) fn count(&self) -> u64 {
        self.codes.iter().sum()
    }

    /// Returns how many measured calls succeeded.
    pub(super) fn succeeded(&self) -> u64 {
        self.codes[Code::Ok as usize]
    }

    /// Returns the measured calls by the name of their status.
    pub(super) fn statuses(&self) -> BTreeMap<String, u64> {
        let by_name = (0..)
            .zip(self.codes)
            .map(|(code, count)| (code_name(Code::from_i32(code)), count));
        by_name.filter(|(_, count)| *count > 0).collect()
    }

    /// Returns the message of some error, or an empty text.
    pub(super) fn first_error(&self) -> &str {
        self.errors.keys().next().map_or("", String::as_str)
    }

    /// Returns the time from the first measured call to the end of the last.
    pub(super) fn total(&self) -> Duration {
        self.span.map_or(Duration::ZERO, |(begin, end)| end - begin)
    }

    /// Returns the measured calls that ended, per second.
    pub(super) fn rate(&self) -> f64 {
        per_second(self.count(), self.total())
    }

    /// Returns the measured calls that succeeded, per second.
    pub(super) fn success_rate(&self) -> f64 {
        per_second(self.succeeded(), self.total())
    }
}

/// Returns a rate, or zero if no time passed.
pub(super) fn per_second(count: u64, time: Duration) -> f64 {
    if time.is_zero() {
        0.0
    } else {
        count as f64 / time.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_come_at_once_do_not_shorten_the_latencies() {
        let begin = Instant::now();
        let due = Due {
            at: begin,
            number: 0,
            is_measured: true,
        };
        let second = Duration::from_secs(1);
        let mut tally = Tally::new();
        tally.ended(due, 1, &Ok(1), begin + second);
        tally.ended(due, 1, &Err(Status::unavailable("gone")), begin);
        tally.ended(due, 1, &Err(Status::deadline_exceeded("no reply")), begin + 2 * second);
        tally.unsent(due, begin + 3 * second);
        assert_eq!(tally.latencies.len(), 3);
        assert!(tally.latencies.min() > 990_000_000, "{}", tally.latencies.min());
        let counts = [("DEADLINE_EXCEEDED", 1), ("OK", 1), ("UNAVAILABLE", 1)];
        assert_eq!(
            tally.statuses(),
            counts.map(|(name, count)| (name.to_owned(), count)).into()
        );
        assert_eq!((tally.count(), tally.succeeded(), tally.unsent), (3, 1, 1));
        assert_eq!(tally.total(), 3 * second);
        assert!((tally.success_rate() - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_warm_up_counts_for_nothing_but_the_number_of_calls() {
        let now = Instant::now();
        let due = Due {
            at: now,
            number: 0,
            is_measured: false,
        };
        let mut tally = Tally::new();
        tally.began(due, now, now + 2 * LATE);
        tally.ended(due, 1, &Ok(0), now);
        tally.unsent(due, now);
        assert_eq!(
            (tally.ended, tally.late, tally.unsent, tally.missing_routes),
            (1, 0, 0, 0)
        );
        assert_eq!((tally.latencies.len(), tally.total()), (0, Duration::ZERO));
    }

    #[test]
    fn threads_are_added_up() {
        let begin = Instant::now();
        let second = Duration::from_secs(1);
        let due = |seconds: u32| Due {
            at: begin + seconds * second,
            number: 0,
            is_measured: true,
        };
        let (mut sum, mut other) = (Tally::new(), Tally::new());
        sum.ended(due(1), 2, &Ok(1), begin + 2 * second);
        other.ended(due(0), 2, &Ok(2), begin + second);
        other.began(due(0), begin, begin + second);
        sum.add(&other);
        assert_eq!((sum.count(), sum.routes, sum.missing_routes), (2, 3, 1));
        assert_eq!((sum.late, sum.worst_lateness), (1, second));
        assert_eq!(sum.total(), 2 * second);
        assert!((sum.rate() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_number_of_different_errors_is_bounded() {
        let now = Instant::now();
        let due = Due {
            at: now,
            number: 0,
            is_measured: true,
        };
        let mut tally = Tally::new();
        for _ in 0..2 {
            for number in 0..100 {
                tally.ended(due, 1, &Err(Status::internal(format!("error {number}"))), now);
            }
        }
        assert_eq!(tally.errors.len(), MAX_ERRORS);
        assert!(tally.errors.values().all(|count| *count == 2));
        assert_eq!(tally.statuses()["INTERNAL"], 200);
    }
}
