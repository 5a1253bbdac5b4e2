//! A limit on the lines from each place in the code.
//!
//! A place may log [`LIMIT`] lines at once. After that, it may log a line in each [`PERIOD`]. So a flood that does not
//! end writes at most 86,400 lines a day from one place. A place that was quiet may log at once again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::log::SELF_LIMITED;
use crate::log::queue::Queue;

/// Lines that one place in the code may log at once.
const LIMIT: u32 = 20;

/// The time after which a place may log one more line.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// Leaves out events of a place in the code that has logged too often. Refusals have a limit of their own at the level
/// info, so that the log can name more clients.
#[derive(Debug)]
pub(super) struct RateLimit {
    call_sites: Mutex<HashMap<Identifier, CallSite>>,
    queue: Arc<Queue>,
}

/// The lines that one place may still log.
#[derive(Debug)]
struct CallSite {
    left: u32,
    /// The time up to which `left` counts the periods.
    at: Instant,
}

impl RateLimit {
    /// Returns a limit that reports the events that it leaves out to `queue`.
    pub(super) fn new(queue: Arc<Queue>) -> Self {
        Self {
            call_sites: Mutex::default(),
            queue,
        }
    }

    /// Counts a line. Returns whether the place may log the line.
    fn count(&self, place: Identifier, now: Instant) -> bool {
        let mut call_sites = self.call_sites.lock().unwrap_or_else(PoisonError::into_inner);
        let place = call_sites.entry(place).or_insert(CallSite { left: LIMIT, at: now });
        let passed = now.saturating_duration_since(place.at).as_nanos() / PERIOD.as_nanos();
        match u32::try_from(passed) {
            Ok(periods) if place.left.saturating_add(periods) < LIMIT => {
                place.left += periods;
                place.at += periods * PERIOD;
            }
            _ => *place = CallSite { left: LIMIT, at: now },
        }
        let may_log = place.left > 0;
        place.left = place.left.saturating_sub(1);
        may_log
    }
}

impl<S: Subscriber> Layer<S> for RateLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() == SELF_LIMITED && *metadata.level() <= Level::INFO {
            return true;
        }
        let may_log = self.count(metadata.callsite(), Instant::now());
        if !may_log {
            self.queue.add_repeated();
        }
        may_log
    }
}

#[cfg(test)]
mod tests {
    use tracing::callsite::Callsite;
    use tracing::metadata::Kind;

    use super::*;

    #[test]
    fn each_place_has_a_limit_for_each_second() {
        let limit = RateLimit::new(Arc::new(Queue::default()));
        let begin = Instant::now();
        let call_sites = [
            tracing::callsite! { name: "one", kind: Kind::EVENT, fields: message },
            tracing::callsite! { name: "two", kind: Kind::EVENT, fields: message },
        ];
        let logged = |place: usize, at| {
            let place = call_sites[place].metadata().callsite();
            (0..2 * LIMIT).filter(|_| limit.count(place.clone(), at)).count() as u32
        };
        assert_eq!(logged(0, begin), LIMIT);
        assert_eq!(logged(0, begin + PERIOD / 2), 0);
        assert_eq!(logged(1, begin + PERIOD / 2), LIMIT);
        // Later, a line for each period.
        assert_eq!(logged(0, begin + PERIOD), 1);
        assert_eq!(logged(1, begin + 3 * PERIOD), 2);
        assert_eq!(logged(0, begin + 100 * PERIOD), LIMIT);
    }

    #[test]
    fn a_place_that_logs_without_end_has_a_line_each_second() {
        let limit = RateLimit::new(Arc::new(Queue::default()));
        let begin = Instant::now();
        let place = tracing::callsite! { name: "one", kind: Kind::EVENT, fields: message };
        let place = place.metadata().callsite();
        let logged = (0..1_000_000)
            .map(|millis| begin + Duration::from_millis(millis))
            .filter(|&at| limit.count(place.clone(), at))
            .count();
        assert!((1000..=1000 + LIMIT as usize).contains(&logged), "{logged}");
    }
}
