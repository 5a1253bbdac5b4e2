//! When calls are due.
//!
//! In an open loop, call `n` is due `n / rate` after the begin, even if earlier calls have no reply yet. In a closed
//! loop, a call is due as soon as its lane has room for the call.
//!
//! The calls are numbered over all lanes. Lane `l` of `L` makes the calls `l`, `l + L`, `l + 2 L` and so on, so the
//! calls of all lanes alternate evenly.

use std::str::FromStr;
use std::time::Duration;

use tokio::time::Instant;

/// The greatest rate, in calls a second.
const MAX_RATE: f64 = 100e6;

/// Calls that are due later than this are due at this time. A sum with a longer time could overflow.
const FAR: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// The flag `--rate`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Rate {
    /// Calls a second.
    PerSecond(f64),
    /// A part of the maximum, which a closed loop measures first.
    OfMaximum(f64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, greatest, rate): (_, _, fn(f64) -> Self) = match text.strip_suffix('%') {
            Some(percent) => (percent, 100.0, |percent| Self::OfMaximum(percent / 100.0)),
            None => (text, MAX_RATE, Self::PerSecond),
        };
        match number.parse() {
            Ok(number) if number > 0.0 && number <= greatest => Ok(rate(number)),
            _ => Err(format!(
                "expected calls per second up to {MAX_RATE}, as in 5000, or a part of the maximum, as in 50%"
            )),
        }
    }
}

/// What decides when calls are due.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pace {
    /// An open loop of this many calls a second, over all lanes.
    Open(f64),
    /// A closed loop.
    Closed,
}

/// How many calls a phase measures.
#[derive(Debug, Clone, Copy)]
pub(super) enum Extent {
    For(Duration),
    Calls(u64),
}

/// A part of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Phase {
    pub(super) pace: Pace,
    /// How long calls are made before they are measured.
    pub(super) warm_up: Duration,
    pub(super) extent: Extent,
}

/// A call, and when it should begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Instant,
    pub(super) number: u64,
    /// Whether the warm-up is over.
    pub(super) is_measured: bool,
}

/// The schedule of one lane.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    phase: Phase,
    begin: Instant,
    lane: u64,
    lanes: u64,
    next_number: u64,
    /// Calls after the warm-up, so far.
    measured: u64,
}

impl Schedule {
    pub(super) fn new(phase: Phase, begin: Instant, lane: u64, lanes: u64) -> Self {
        Self {
            phase,
            begin,
            lane,
            lanes,
            next_number: lane,
            measured: 0,
        }
    }

    /// Returns the next call, or `None` if there is no further call. In a closed loop, the call is due now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Due> {
        let Phase { pace, warm_up, extent } = self.phase;
        let number = self.next_number;
        let (at, is_measured) = match pace {
            Pace::Open(rate) => (
                self.begin + time_of(number, rate),
                number >= warm_up_calls(warm_up, rate),
            ),
            Pace::Closed => {
                let at = now.max(self.begin);
                (at, at >= self.begin + warm_up)
            }
        };
        let is_over = match extent {
            Extent::For(duration) => at >= self.begin + warm_up + duration,
            Extent::Calls(calls) => is_measured && self.measured == self.share(calls),
        };
        if is_over {
            return None;
        }
        self.next_number += self.lanes;
        self.measured += u64::from(is_measured);
        Some(Due {
            at,
            number,
            is_measured,
        })
    }

    /// Returns how many of the measured calls the lane makes.
    fn share(&self, calls: u64) -> u64 {
        // The lane that makes the first measured call is the first lane that gets one of the rest.
        let first = match self.phase.pace {
            Pace::Open(rate) => warm_up_calls(self.phase.warm_up, rate) % self.lanes,
            Pace::Closed => 0,
        };
        let place = (self.lane + self.lanes - first) % self.lanes;
        calls / self.lanes + u64::from(place < calls % self.lanes)
    }

    /// Returns when the last call is due. `None` in a closed loop, which has no calls that wait.
    pub(super) fn end(&self) -> Option<Instant> {
        let Pace::Open(rate) = self.phase.pace else {
            return None;
        };
        let warm_up = self.phase.warm_up;
        Some(match self.phase.extent {
            Extent::For(duration) => self.begin + warm_up + duration,
            Extent::Calls(calls) => self.begin + time_of(warm_up_calls(warm_up, rate).saturating_add(calls), rate),
        })
    }
}

/// Returns when a call is due, after the begin. Divides by the rate, since a multiple of the interval between two calls
/// would accumulate the interval's rounding to whole nanoseconds.
fn time_of(number: u64, rate: f64) -> Duration {
    Duration::try_from_secs_f64(number as f64 / rate).map_or(FAR, |time| time.min(FAR))
}

fn warm_up_calls(warm_up: Duration, rate: f64) -> u64 {
    (warm_up.as_secs_f64() * rate).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn numbers(phase: Phase, lanes: u64) -> Vec<Due> {
        let begin = Instant::now();
        let mut all: Vec<Due> = (0..lanes)
            .flat_map(|lane| {
                let mut schedule = Schedule::new(phase, begin, lane, lanes);
                std::iter::from_fn(move || schedule.next(begin))
            })
            .collect();
        all.sort_by_key(|due| due.number);
        all
    }

    #[test]
    fn the_calls_of_all_lanes_together_have_the_rate() {
        let phase = Phase {
            pace: Pace::Open(300.0),
            warm_up: SECOND / 2,
            extent: Extent::For(SECOND),
        };
        for lanes in [1, 7, 10, 1000] {
            let all = numbers(phase, lanes);
            assert_eq!(all.len(), 450, "{lanes}");
            assert_eq!(all.iter().filter(|due| due.is_measured).count(), 300);
            for (number, due) in (0..).zip(&all) {
                assert_eq!(due.number, number);
                let after = due.at - all[0].at;
                assert!(
                    after.abs_diff(SECOND * number as u32 / 300) < Duration::from_nanos(2),
                    "{after:?}"
                );
            }
        }
    }

    #[test]
    fn a_number_of_calls_is_met_exactly() {
        for (pace, warm_up) in [
            (Pace::Open(70.0), Duration::ZERO),
            (Pace::Open(70.0), SECOND),
            (Pace::Closed, Duration::ZERO),
        ] {
            for (calls, lanes) in [(0, 3), (1, 3), (100, 7), (99, 100)] {
                let phase = Phase {
                    pace,
                    warm_up,
                    extent: Extent::Calls(calls),
                };
                let measured = numbers(phase, lanes).iter().filter(|due| due.is_measured).count();
                assert_eq!(measured as u64, calls, "{pace:?} {warm_up:?} {lanes}");
            }
        }
    }

    #[test]
    fn a_closed_loop_is_due_at_once_and_ends_in_time() {
        let phase = Phase {
            pace: Pace::Closed,
            warm_up: SECOND,
            extent: Extent::For(SECOND),
        };
        let begin = Instant::now();
        let mut schedule = Schedule::new(phase, begin, 0, 1);
        let call = |number, at, is_measured| Due {
            at,
            number,
            is_measured,
        };
        assert_eq!(schedule.next(begin - SECOND), Some(call(0, begin, false)));
        assert_eq!(schedule.next(begin + SECOND), Some(call(1, begin + SECOND, true)));
        assert_eq!(schedule.next(begin + 2 * SECOND), None);
        assert_eq!(schedule.end(), None);
    }

    #[test]
    fn an_open_loop_ends_after_its_last_call() {
        for extent in [Extent::For(2 * SECOND), Extent::Calls(20)] {
            let phase = Phase {
                pace: Pace::Open(10.0),
                warm_up: SECOND,
                extent,
            };
            let begin = Instant::now();
            assert_eq!(Schedule::new(phase, begin, 0, 1).end(), Some(begin + 3 * SECOND));
        }
        let never = Phase {
            pace: Pace::Open(f64::MIN_POSITIVE),
            warm_up: SECOND,
            extent: Extent::Calls(u64::MAX),
        };
        assert_eq!(
            Schedule::new(never, Instant::now(), 1, 2)
                .end()
                .map(|end| end > Instant::now()),
            Some(true)
        );
    }

    #[test]
    fn rates_are_numbers_or_parts_of_the_maximum() {
        assert_eq!("5000".parse(), Ok(Rate::PerSecond(5000.0)));
        assert_eq!("0.5".parse(), Ok(Rate::PerSecond(0.5)));
        assert_eq!("50%".parse(), Ok(Rate::OfMaximum(0.5)));
        for bad in ["", "%", "0", "-1", "nan", "inf", "1e9", "101%", "0%", "5k", "5/s"] {
            bad.parse::<Rate>().expect_err(bad);
        }
    }
}
