//! Whether a tracker should get calls, and how near it is: a state machine.
//!
//! A tracker is unhealthy if too many calls and probes in a row had no answer. It is unhealthy, too, if it answered the
//! last probe with `NOT_SERVING`: such a tracker stops soon, but nothing failed. Each probe is a call of
//! `grpc.health.v1`. A healthy tracker is probed at an interval, so that a dead tracker is noticed before a call needs
//! it. After a failure, the probes follow a [`Backoff`]. One answer ends all failures.

use std::time::{Duration, Instant};

use crate::backoff::{Backoff, Limits, SHORTEST};
use crate::clock::bounded;

/// When a tracker counts as unhealthy, and how often it is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HealthConfig {
    /// How many calls and probes in a row without an answer make a tracker unhealthy. 0 means 1.
    pub unhealthy_after: u32,
    /// The mean time between two probes of a tracker that answers. Each wait differs from the mean by up to a quarter,
    /// so that many clients spread their probes. An interval below a millisecond counts as a millisecond.
    pub interval: Duration,
    /// A probe without an answer for this long has failed.
    pub timeout: Duration,
    /// The waits between probes of a tracker that does not answer.
    pub backoff: Limits,
}

impl Default for HealthConfig {
    /// Unhealthy after 2 failures; a probe each 5 s, which may take 1 s; after failures, waits from 100 ms to 5 s.
    fn default() -> Self {
        Self {
            unhealthy_after: 2,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            backoff: Limits {
                base: Duration::from_millis(100),
                max: Duration::from_secs(5),
            },
        }
    }
}

/// What happened to a tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The tracker answered a call, with a result or an error.
    CallAnswered,
    /// A call got no answer: the tracker could not be reached, ended the call, or took too long.
    CallFailed,
    /// The tracker answered a probe that it serves, after this time.
    ProbeServing(Duration),
    /// The tracker answered a probe that it does not serve.
    ProbeNotServing,
    /// A probe got no answer.
    ProbeFailed,
}

/// The health of one tracker.
#[derive(Debug, Clone)]
pub struct Health {
    config: HealthConfig,
    backoff: Backoff,
    random: fastrand::Rng,
    /// Calls and probes since the last answer.
    failures: u32,
    is_serving: bool,
    round_trip: Option<Duration>,
    /// `None` while a probe is in flight.
    next_probe: Option<Instant>,
}

impl Health {
    /// Returns the health of a tracker that counts as healthy until its first probe, which is due now. Trackers with
    /// the same seed draw the same waits.
    #[must_use]
    pub fn new(now: Instant, config: HealthConfig, seed: u64) -> Self {
        let interval = bounded(config.interval).max(SHORTEST);
        Self {
            config: HealthConfig { interval, ..config },
            backoff: Backoff::new(config.backoff, seed),
            random: fastrand::Rng::with_seed(seed),
            failures: 0,
            is_serving: true,
            round_trip: None,
            next_probe: Some(now),
        }
    }

    /// Whether the tracker should get calls.
    #[must_use]
    pub fn is_healthy(&self) -> bool {
        self.is_serving && self.failures < self.config.unhealthy_after.max(1)
    }

    /// The time that a probe takes if nothing delays the probe. `None` before the first answer.
    #[must_use]
    pub fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// When [`poll_probe`](Self::poll_probe) begins the next probe. `None` while a probe is in flight.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        self.next_probe
    }

    /// Returns whether to send a probe now. After `true`, the caller reports the probe's result with
    /// [`handle`](Self::handle).
    pub fn poll_probe(&mut self, now: Instant) -> bool {
        let is_due = self.next_probe.is_some_and(|at| at <= now);
        if is_due {
            self.next_probe = None;
        }
        is_due
    }

    /// Takes an input.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::CallAnswered => self.answered(),
            Input::CallFailed => {
                let was_healthy = self.is_healthy();
                self.failures = self.failures.saturating_add(1);
                // The failures of further calls do not bring the probes of an unhealthy tracker closer.
                if was_healthy && !self.is_healthy() {
                    let retry = now + self.backoff.next_wait();
                    self.next_probe = self.next_probe.map(|at| at.min(retry));
                }
            }
            Input::ProbeServing(took) => {
                self.answered();
                self.is_serving = true;
                self.round_trip = Some(self.round_trip.map_or(took, |before| smooth(before, took)));
                self.next_probe = Some(now + self.interval());
            }
            Input::ProbeNotServing => {
                self.answered();
                self.is_serving = false;
                self.next_probe = Some(now + self.interval());
            }
            Input::ProbeFailed => {
                self.failures = self.failures.saturating_add(1);
                self.next_probe = Some(now + self.backoff.next_wait());
            }
        }
    }

    fn answered(&mut self) {
        self.failures = 0;
        self.backoff.reset();
    }

    fn interval(&mut self) -> Duration {
        self.config.interval.mul_f64(0.75 + self.random.f64() / 2.0)
    }
}

/// Moves a round trip towards a new measurement: down at once, and up by an eighth of the difference. A shorter time is
/// closer to the truth, because only delays make a time longer: the set-up of a connection, or a busy machine.
fn smooth(before: Duration, took: Duration) -> Duration {
    took.min(before + took.saturating_sub(before) / 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn health(now: Instant, seed: u64) -> Health {
        Health::new(now, HealthConfig::default(), seed)
    }

    #[test]
    fn failures_in_a_row_make_a_tracker_unhealthy_and_one_answer_ends_them() {
        let now = Instant::now();
        let mut health = health(now, 1);
        for answer in [Input::CallAnswered, Input::ProbeServing(SECOND), Input::CallAnswered] {
            health.handle(now, Input::CallFailed);
            assert!(health.is_healthy());
            health.handle(now, answer);
            health.handle(now, Input::CallFailed);
            assert!(health.is_healthy(), "an answer did not end the failures before");
            health.handle(now, Input::ProbeFailed);
            assert!(!health.is_healthy());
            health.handle(now, answer);
            assert!(health.is_healthy());
        }
    }

    #[test]
    fn a_tracker_that_does_not_serve_is_unhealthy_without_a_failure() {
        let now = Instant::now();
        let mut health = health(now, 2);
        assert!(health.poll_probe(now));
        health.handle(now, Input::ProbeNotServing);
        // Its calls still succeed, which does not mean that it serves.
        health.handle(now, Input::CallAnswered);
        assert!(!health.is_healthy());
        // Probed at the interval, not with the short waits after a failure.
        assert!(health.next_timeout().unwrap() >= now + health.config.interval * 3 / 4);
        health.handle(now, Input::ProbeServing(SECOND));
        assert!(health.is_healthy());
    }

    #[test]
    fn the_end_of_health_brings_the_next_probe_closer_once() {
        let now = Instant::now();
        let mut health = health(now, 3);
        assert!(health.poll_probe(now));
        health.handle(now, Input::ProbeServing(SECOND));
        health.handle(now, Input::CallFailed);
        assert!(health.next_timeout().unwrap() > now + SECOND);
        health.handle(now, Input::CallFailed);
        let next = health.next_timeout().unwrap();
        assert!(next <= now + health.config.backoff.base);
        for _ in 0..100 {
            health.handle(now, Input::CallFailed);
        }
        assert_eq!(health.next_timeout(), Some(next));
        // A call may fail while a probe is in flight. There is no second probe.
        assert!(health.poll_probe(next));
        health.handle(next, Input::CallFailed);
        assert!(!health.poll_probe(next + SECOND * 60));
    }

    #[test]
    fn a_round_trip_falls_at_once_and_rises_slowly() {
        let now = Instant::now();
        let mut health = health(now, 4);
        assert_eq!(health.round_trip(), None);
        for (took, round_trip) in [(80, 80), (8, 8), (16, 9), (9, 9), (5, 5)] {
            health.handle(now, Input::ProbeServing(Duration::from_millis(took)));
            assert_eq!(health.round_trip(), Some(Duration::from_millis(round_trip)));
        }
        health.handle(now, Input::ProbeFailed);
        assert_eq!(health.round_trip(), Some(Duration::from_millis(5)));
    }

    #[test]
    fn times_without_a_bound_are_no_error() {
        let now = Instant::now();
        let mut config = HealthConfig {
            interval: Duration::MAX,
            timeout: Duration::MAX,
            ..HealthConfig::default()
        };
        (config.backoff.base, config.backoff.max) = (Duration::MAX, Duration::MAX);
        let mut health = Health::new(now, config, 5);
        for input in [
            Input::ProbeServing(SECOND),
            Input::ProbeNotServing,
            Input::ProbeFailed,
            Input::ProbeFailed,
        ] {
            health.handle(now, input);
            assert!(health.next_timeout() > Some(now), "{input:?}");
        }
    }

    #[test]
    fn an_interval_of_zero_is_no_busy_loop() {
        let now = Instant::now();
        let config = HealthConfig {
            interval: Duration::ZERO,
            ..HealthConfig::default()
        };
        let mut health = Health::new(now, config, 6);
        for input in [Input::ProbeServing(SECOND), Input::ProbeNotServing] {
            health.handle(now, input);
            assert!(health.next_timeout() > Some(now), "{input:?}");
        }
    }

    /// A tracker that is up and down at random, and a client that makes calls at random. Returns the trace.
    fn simulate(seed: u64) -> Vec<(Duration, Input, bool)> {
        let mut random = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let mut now = start;
        let mut health = health(now, seed);
        let config = health.config;
        // An unhealthy tracker that is up is noticed after one more wait and one more probe.
        let noticed_after = config.backoff.max + config.timeout;
        // Each of the failures that it takes costs a probe that times out, and a wait after an answer or a failure.
        let lost_after = config.interval * 5 / 4 + (config.backoff.max + config.timeout) * config.unhealthy_after;
        let (mut is_up, mut since) = (true, now);
        let mut trace = Vec::new();
        for _ in 0..200 {
            // Longer than both bounds, or shorter.
            let until = now + SECOND.mul_f64(random.f64() * 40.0);
            let (mut probes, begin) = (0, now);
            loop {
                let call = now + SECOND.mul_f64(random.f64() * 10.0);
                let at = health.next_timeout().map_or(call, |at| at.max(now).min(call));
                if at > until {
                    break;
                }
                now = at;
                let input = if health.poll_probe(now) {
                    probes += 1;
                    if is_up {
                        let took = Duration::from_micros(random.u64(100..2000));
                        now += took;
                        Input::ProbeServing(took)
                    } else {
                        now += config.timeout;
                        Input::ProbeFailed
                    }
                } else if health.is_healthy() {
                    if is_up { Input::CallAnswered } else { Input::CallFailed }
                } else {
                    // An unhealthy tracker gets no calls.
                    continue;
                };
                health.handle(now, input);
                trace.push((now - start, input, health.is_healthy()));
                if is_up {
                    assert!(health.is_healthy() || now < since + noticed_after, "seed {seed}");
                } else {
                    assert!(!health.is_healthy() || now < since + lost_after, "seed {seed}");
                }
            }
            // Full jitter waits for half of the longest wait on average; the first waits are shorter.
            let most = 20.0 + (until - begin).as_secs_f64();
            assert!(f64::from(probes) < most, "seed {seed}: {probes} probes");
            now = now.max(until);
            is_up = !is_up;
            since = now;
        }
        trace
    }

    #[test]
    fn health_follows_a_tracker_that_comes_and_goes() {
        for seed in 0..300 {
            let trace = simulate(seed);
            assert!(trace.iter().any(|&(_, _, is_healthy)| !is_healthy), "seed {seed}");
            if seed % 50 == 0 {
                assert_eq!(trace, simulate(seed), "seed {seed} does not replay");
            }
        }
    }
}
