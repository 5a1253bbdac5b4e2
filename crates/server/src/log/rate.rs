//! A limit on the lines from each place in the code.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::log::queue::Queue;

/// Lines from one place in the code within [`PERIOD`].
const LIMIT: u32 = 20;

/// The time after which a place may log again.
pub(super) const PERIOD: Duration = Duration::from_secs(1);

/// Leaves out events of a place in the code that has logged too often within a second.
#[derive(Debug)]
pub(super) struct RateLimit {
    call_sites: Mutex<HashMap<Identifier, CallSite>>,
    queue: Arc<Queue>,
}

/// The lines of one place since the beginning of its period.
#[derive(Debug)]
struct CallSite {
    begin: Instant,
    lines: u32,
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
        let place = call_sites.entry(place).or_insert(CallSite { begin: now, lines: 0 });
        if now.saturating_duration_since(place.begin) >= PERIOD {
            *place = CallSite { begin: now, lines: 0 };
        }
        place.lines = place.lines.saturating_add(1);
        place.lines <= LIMIT
    }
}

impl<S: Subscriber> Layer<S> for RateLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let may_log = self.count(event.metadata().callsite(), Instant::now());
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
        assert_eq!(logged(0, begin + PERIOD), LIMIT);
    }
}
