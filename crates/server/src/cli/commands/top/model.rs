//! What the last two scrapes show: values, rates and quantiles, and the rates of earlier intervals.
//!
//! Rates are those of Prometheus' `rate` over two samples: the increase of a counter, divided by the time between the
//! samples. If a counter is lower than before, or the tracker has restarted, the counter began at zero again.

use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Entry};
use std::time::Duration;

use tokio::time::Instant;

use crate::cli::commands::top::open_metrics::Labels;
use crate::cli::commands::top::scrape::{Scrape, ScrapeError};

/// The most rates that a track keeps.
const TRACK_LENGTH: usize = 512;

/// The most tracks. A tracker has some 40.
const MAX_TRACKS: usize = 1000;

/// The counters whose rates are tracked: the metric, and the labels that divide it.
const TRACKED: &[(&str, &[&str])] = &[
    (CALLS, &[]),
    (CALLS, &METHOD),
    (SESSION_MESSAGES, &[]),
    (SESSION_MESSAGES, &["kind"]),
    (ACCEPTED, &[]),
    (HANDSHAKE_FAILURES, &[]),
    (REFUSALS, &[]),
    (SWEPT, &["cause"]),
    (SWEEP_VISITS, &[]),
    (LOST_PLACES, &[]),
    (SNAPSHOT_FAILURES, &[]),
    (CPU_SECONDS, &[]),
];

pub(super) const CALLS: &str = "nodetracker_calls_total";
pub(super) const SESSION_MESSAGES: &str = "nodetracker_session_messages_total";
pub(super) const ACCEPTED: &str = "nodetracker_accepted_connections_total";
pub(super) const HANDSHAKE_FAILURES: &str = "nodetracker_handshake_failures_total";
pub(super) const REFUSALS: &str = "nodetracker_refusals_total";
pub(super) const SWEPT: &str = "nodetracker_swept_routes_total";
pub(super) const SWEEP_VISITS: &str = "nodetracker_sweep_visits_total";
pub(super) const LOST_PLACES: &str = "nodetracker_watch_lost_places_total";
pub(super) const SNAPSHOT_FAILURES: &str = "nodetracker_snapshot_failures_total";
pub(super) const CPU_SECONDS: &str = "process_cpu_seconds_total";
const DURATIONS: &str = "nodetracker_call_duration_seconds_bucket";

/// The labels of a method.
pub(super) const METHOD: [&str; 2] = ["service", "method"];

/// The scrapes and the rates of earlier intervals.
#[derive(Debug, Default)]
pub(super) struct Model {
    before: Option<Scrape>,
    latest: Option<Scrape>,
    tracks: BTreeMap<(&'static str, Vec<String>), VecDeque<f64>>,
    failure: Option<Failure>,
}

/// Why there are no newer figures.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    reason: ScrapeError,
    since: Instant,
}

impl Model {
    /// Adds the result of an attempt to read the metrics.
    pub(super) fn push(&mut self, scraped: Result<Scrape, ScrapeError>, now: Instant) {
        match scraped {
            Ok(scrape) => {
                self.failure = None;
                self.before = self.latest.replace(scrape);
                self.track();
            }
            Err(reason) => {
                let since = self.latest.as_ref().map(|latest| latest.at);
                let since = self.failure.as_ref().map(|failure| failure.since).or(since);
                let since = since.unwrap_or(now);
                self.failure = Some(Failure { reason, since });
            }
        }
    }

    /// Returns why the last attempt failed, and how old the figures are.
    pub(super) fn failure(&self, now: Instant) -> Option<(&ScrapeError, Duration)> {
        let failure = self.failure.as_ref()?;
        Some((&failure.reason, now.duration_since(failure.since)))
    }

    /// Returns the figures of the last interval. `None` before the first scrape.
    pub(super) fn interval(&self) -> Option<Interval<'_>> {
        Some(Interval {
            before: self.before.as_ref(),
            now: self.latest.as_ref()?,
        })
    }

    /// Returns the rates of a [tracked](TRACKED) counter, the oldest first.
    pub(super) fn rates(&self, metric: &'static str, values: &[&str]) -> Vec<f64> {
        let key = (metric, values.iter().map(|&value| value.to_owned()).collect());
        self.tracks.get(&key).into_iter().flatten().copied().collect()
    }

    fn track(&mut self) {
        let (Some(before), Some(now)) = (&self.before, &self.latest) else {
            return;
        };
        let interval = Interval {
            before: Some(before),
            now,
        };
        for track in self.tracks.values_mut() {
            track.push_back(0.0);
            if track.len() > TRACK_LENGTH {
                track.pop_front();
            }
        }
        for &(metric, by) in TRACKED {
            for (values, rate) in interval.rates(metric, by) {
                let key = (metric, values.into_iter().map(str::to_owned).collect());
                let has_room = self.tracks.len() < MAX_TRACKS;
                match self.tracks.entry(key) {
                    Entry::Occupied(track) => track.into_mut().back_mut().into_iter().for_each(|last| *last = rate),
                    Entry::Vacant(place) if has_room => _ = place.insert(VecDeque::from([rate])),
                    Entry::Vacant(_) => {}
                }
            }
        }
    }
}

/// The figures between two scrapes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interval<'m> {
    /// `None` after the first scrape: there are values, and no rates.
    before: Option<&'m Scrape>,
    now: &'m Scrape,
}

impl<'m> Interval<'m> {
    pub(super) fn scrape(&self) -> &'m Scrape {
        self.now
    }

    /// Returns the sum of a metric over all its series. `None` if the page has no series of the metric.
    pub(super) fn value(&self, metric: &str) -> Option<f64> {
        self.values(metric, &[]).into_values().next()
    }

    /// Returns the sums of a metric over the series with equal values of the labels `by`.
    pub(super) fn values(&self, metric: &str, by: &[&str]) -> BTreeMap<Vec<&'m str>, f64> {
        sum(self.now.page.series(metric), by)
    }

    /// Returns by how much a metric has changed since the scrape before. `None` before the second scrape.
    pub(super) fn change(&self, metric: &str) -> Option<f64> {
        let before = Interval {
            before: None,
            now: self.before?,
        };
        Some(self.value(metric)? - before.value(metric)?)
    }

    /// Returns how often a counter was increased in each second. `None` before the second scrape.
    pub(super) fn rate(&self, metric: &str) -> Option<f64> {
        self.rates(metric, &[]).into_values().next()
    }

    /// Returns the rates of a counter, as `sum by (by) (rate(metric))` in PromQL.
    pub(super) fn rates(&self, metric: &str, by: &[&str]) -> BTreeMap<Vec<&'m str>, f64> {
        let mut rates = sum(self.increases(metric), by);
        let seconds = self.elapsed().as_secs_f64();
        rates.values_mut().for_each(|rate| *rate /= seconds);
        rates
    }

    /// Returns a quantile of the latencies of the interval's calls, of a method or of all methods. `None` if no call
    /// has ended.
    pub(super) fn latency(&self, quantile_of: f64, method: Option<[&str; 2]>) -> Option<Quantile> {
        let is_wanted = |labels: &Labels| {
            method.is_none_or(|method| {
                METHOD
                    .iter()
                    .zip(method)
                    .all(|(&name, value)| label(labels, name) == value)
            })
        };
        let buckets = sum(
            self.increases(DURATIONS).filter(|(labels, _)| is_wanted(labels)),
            &["le"],
        );
        let bound = |(bound, count): (Vec<&str>, f64)| Some((bound.first()?.parse().ok()?, count));
        quantile(quantile_of, buckets.into_iter().filter_map(bound).collect())
    }

    /// Returns how much the series of a counter have grown. Empty before the second scrape.
    fn increases(&self, metric: &str) -> impl Iterator<Item = (&'m Labels, f64)> {
        let before = self.before.filter(|before| before.at < self.now.at);
        let has_restarted = before.is_some_and(|before| start_of(before) != start_of(self.now));
        let series = before.is_some().then(|| self.now.page.series(metric));
        series.into_iter().flatten().map(move |(labels, now)| {
            // A series that was not there had no events.
            let earlier = before.filter(|_| !has_restarted);
            let earlier = earlier
                .and_then(|before| before.page.get(metric, labels))
                .unwrap_or(0.0);
            (labels, if now < earlier { now } else { now - earlier })
        })
    }

    /// Returns the time between the scrapes. Zero after the first scrape.
    pub(super) fn elapsed(&self) -> Duration {
        self.before
            .map_or(Duration::ZERO, |before| self.now.at.duration_since(before.at))
    }
}

/// Returns when the tracker of a scrape started.
fn start_of(scrape: &Scrape) -> Option<f64> {
    scrape.page.value("process_start_time_seconds")
}

/// Returns the value of a label. A label that is missing is empty, as in PromQL.
fn label<'l>(labels: &'l Labels, name: &str) -> &'l str {
    labels.get(name).map_or("", String::as_str)
}

fn sum<'m>(series: impl Iterator<Item = (&'m Labels, f64)>, by: &[&str]) -> BTreeMap<Vec<&'m str>, f64> {
    let mut sums = BTreeMap::new();
    for (labels, value) in series {
        let group = by.iter().map(|name| label(labels, name)).collect();
        *sums.entry(group).or_default() += value;
    }
    sums
}

/// A quantile of a histogram.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Quantile {
    /// The quantile, as exact as the buckets allow.
    About(f64),
    /// The quantile is in the last bucket, above this bound.
    Above(f64),
}

/// Returns a quantile of a classic histogram, as Prometheus' `histogram_quantile`: linear within a bucket. A bucket is
/// its upper bound, and the count of all values up to this bound.
fn quantile(of: f64, mut buckets: Vec<(f64, f64)>) -> Option<Quantile> {
    buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
    let &(f64::INFINITY, total) = buckets.last()? else {
        return None;
    };
    let rank = of * total;
    let (mut lower, mut below) = (0.0, 0.0);
    for (upper, count) in buckets {
        if total > 0.0 && count >= rank && count > below {
            return Some(match upper {
                f64::INFINITY => Quantile::Above(lower),
                upper => Quantile::About(lower + (upper - lower) * (rank - below) / (count - below)),
            });
        }
        (lower, below) = (upper, count.max(below));
    }
    None
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::cli::commands::top::open_metrics::Page;

    /// Returns a scrape of a page without its last line.
    pub(crate) fn scrape(at: Instant, text: &str) -> Scrape {
        Scrape {
            at,
            time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            page: Page::parse(&format!("{text}\n# EOF\n")).expect("a good page"),
            not_ready: None,
        }
    }

    fn refusals(start: u32, counts: &[(&str, u32)]) -> String {
        let mut text = format!("process_start_time_seconds {start}\n");
        for (reason, count) in counts {
            text += &format!("{REFUSALS}{{reason=\"{reason}\"}} {count}\n");
        }
        text
    }

    /// The rates of two scrapes, two seconds apart.
    fn rates(before: &str, now: &str) -> Vec<(String, f64)> {
        let start = Instant::now();
        let (before, now) = (scrape(start, before), scrape(start + Duration::from_secs(2), now));
        let interval = Interval {
            before: Some(&before),
            now: &now,
        };
        let rates = interval.rates(REFUSALS, &["reason"]).into_iter();
        rates.map(|(reason, rate)| (reason.concat(), rate)).collect()
    }

    #[test]
    fn rates_are_increases_by_the_time_between_the_scrapes() {
        let before = refusals(1, &[("watches", 10), ("accept", 7)]);
        let now = refusals(1, &[("watches", 15), ("accept", 7), ("connections", 2)]);
        let expected = [("accept", 0.0), ("connections", 1.0), ("watches", 2.5)];
        assert_eq!(
            rates(&before, &now),
            expected.map(|(reason, rate)| (reason.to_owned(), rate))
        );
    }

    #[test]
    fn a_counter_that_began_again_has_grown_from_zero() {
        let before = refusals(1, &[("accept", 10)]);
        assert_eq!(
            rates(&before, &refusals(1, &[("accept", 4)])),
            [("accept".to_owned(), 2.0)]
        );
        // After a restart, the counter may be higher than before.
        assert_eq!(
            rates(&before, &refusals(2, &[("accept", 12)])),
            [("accept".to_owned(), 6.0)]
        );
    }

    #[test]
    fn the_first_scrape_has_values_and_no_rates() {
        let mut model = Model::default();
        let now = Instant::now();
        assert!(model.interval().is_none());
        model.push(Ok(scrape(now, &refusals(1, &[("accept", 10), ("watches", 2)]))), now);
        let interval = model.interval().expect("a scrape");
        assert_eq!((interval.value(REFUSALS), interval.rate(REFUSALS)), (Some(12.0), None));
        assert_eq!((interval.value("none"), interval.latency(0.5, None)), (None, None));
        assert_eq!(model.rates(REFUSALS, &[]), [0.0; 0]);
        // Nor have two scrapes of one time.
        model.push(Ok(scrape(now, &refusals(1, &[("accept", 11)]))), now);
        assert_eq!(model.interval().and_then(|interval| interval.rate(REFUSALS)), None);
    }

    #[test]
    fn tracks_keep_the_rates_of_earlier_intervals_up_to_their_length() {
        let mut model = Model::default();
        let start = Instant::now();
        let after = |seconds: u32| start + Duration::from_secs(seconds.into());
        for second in 0..3 {
            model.push(
                Ok(scrape(after(second), &refusals(1, &[("accept", second * second)]))),
                after(second),
            );
        }
        assert_eq!(model.rates(REFUSALS, &[]), [1.0, 3.0]);
        for second in 3..2000 {
            model.push(Ok(scrape(after(second), "")), after(second));
        }
        assert_eq!(model.rates(REFUSALS, &[]), [0.0; TRACK_LENGTH]);
    }

    #[test]
    fn figures_stay_and_age_while_the_tracker_is_lost() {
        let mut model = Model::default();
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let refused = ScrapeError::NoAnswer("refused".to_owned());
        let late = ScrapeError::NoAnswer("no answer".to_owned());
        model.push(Err(refused.clone()), start);
        assert_eq!(model.failure(after(3)), Some((&refused, Duration::from_secs(3))));
        model.push(Ok(scrape(after(4), "up 1")), after(4));
        assert_eq!(model.failure(after(4)), None);
        model.push(Err(refused), after(5));
        model.push(Err(late.clone()), after(6));
        assert_eq!(model.failure(after(6)), Some((&late, Duration::from_secs(2))));
        assert_eq!(model.interval().and_then(|interval| interval.value("up")), Some(1.0));
        model.push(Ok(scrape(after(7), "up 1")), after(7));
        assert_eq!(model.failure(after(7)), None);
    }

    #[test]
    fn quantiles_are_those_of_prometheus() {
        let buckets = |counts: [f64; 4]| {
            [1.0, 2.0, 4.0, f64::INFINITY]
                .into_iter()
                .zip(counts)
                .collect::<Vec<_>>()
        };
        let about = |value| Some(Quantile::About(value));
        assert_eq!(quantile(0.5, buckets([10.0, 20.0, 20.0, 20.0])), about(1.0));
        assert_eq!(quantile(0.75, buckets([10.0, 20.0, 20.0, 20.0])), about(1.5));
        assert_eq!(quantile(0.5, buckets([0.0, 0.0, 8.0, 8.0])), about(3.0));
        assert_eq!(quantile(0.05, buckets([10.0, 20.0, 20.0, 20.0])), about(0.1));
        assert_eq!(
            quantile(0.99, buckets([0.0, 0.0, 50.0, 100.0])),
            Some(Quantile::Above(4.0))
        );
        // No call, no buckets, no last bucket, no numbers.
        assert_eq!(quantile(0.5, buckets([0.0; 4])), None);
        assert_eq!(quantile(0.5, Vec::new()), None);
        assert_eq!(quantile(0.5, vec![(1.0, 5.0)]), None);
        assert_eq!(quantile(0.5, buckets([f64::NAN; 4])), None);
    }

    #[test]
    fn latencies_are_those_of_the_last_interval_and_of_one_method() {
        let page = |slow: u32, fast: u32| {
            let series = |method: &str, le: &str, count: u32| {
                format!("{DURATIONS}{{service=\"s\",method=\"{method}\",le=\"{le}\"}} {count}\n")
            };
            [
                series("Slow", "0.5", 0),
                series("Slow", "1.0", slow),
                series("Slow", "+Inf", slow),
                series("Fast", "0.5", fast),
                series("Fast", "1.0", fast),
                series("Fast", "+Inf", fast),
            ]
            .concat()
        };
        let mut model = Model::default();
        let start = Instant::now();
        model.push(Ok(scrape(start, &page(5, 1000))), start);
        model.push(Ok(scrape(start + Duration::from_secs(1), &page(15, 1030))), start);
        let interval = model.interval().expect("two scrapes");
        assert_eq!(interval.latency(0.5, Some(["s", "Slow"])), Some(Quantile::About(0.75)));
        assert_eq!(interval.latency(0.5, Some(["s", "Fast"])), Some(Quantile::About(0.25)));
        assert_eq!(interval.latency(0.75, None), Some(Quantile::About(0.5)));
        assert_eq!(interval.latency(0.5, Some(["s", "None"])), None);
    }
}
