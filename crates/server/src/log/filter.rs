//! The filter of the log's lines, which may change while the process runs.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::sleep;
use tracing::callsite::rebuild_interest_cache;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata, Subscriber, enabled, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::Context;

use crate::log::level::LogLevel;

/// Lets the lines through that the current level asks for. Clones share the level.
#[derive(Debug, Clone)]
pub(super) struct Filter(Arc<RwLock<Targets>>);

impl Filter {
    /// Calls a function with the current targets.
    fn with<T>(&self, call: impl FnOnce(&Targets) -> T) -> T {
        call(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Each place in the code remembers the answer until the level changes, so the lock costs nothing for each line.
impl<S: Subscriber> Layer<S> for Filter {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        self.with(|targets| Layer::<S>::register_callsite(targets, metadata))
    }

    fn enabled(&self, metadata: &Metadata<'_>, context: Context<'_, S>) -> bool {
        self.with(|targets| Layer::<S>::enabled(targets, metadata, context))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.with(|targets| Layer::<S>::max_level_hint(targets))
    }
}

/// The level of the process's log. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct LevelControl(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    filter: Filter,
    /// The level that the process began with.
    configured: LogLevel,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    level: LogLevel,
    /// How often the level was set.
    changes: u64,
    /// The task that returns to the configured level.
    reset: Option<AbortHandle>,
}

impl LevelControl {
    /// Returns the control of a log that begins with a level.
    pub(super) fn new(level: LogLevel) -> Self {
        Self(Arc::new(Shared {
            filter: Filter(Arc::new(RwLock::new(level.targets().clone()))),
            configured: level.clone(),
            state: Mutex::new(State {
                level,
                changes: 0,
                reset: None,
            }),
        }))
    }

    /// Returns the filter, which follows the level.
    pub(super) fn filter(&self) -> Filter {
        self.0.filter.clone()
    }

    /// Sets the level, or the configured level for `None`. After `period`, the configured level returns, unless the
    /// level is set again before. Without a period, the level stays. Returns the level before.
    ///
    /// # Panics
    ///
    /// Panics if there is a period and the caller is outside of a runtime.
    pub(crate) fn set(&self, level: Option<LogLevel>, period: Option<Duration>) -> LogLevel {
        self.change(&mut self.lock(), level, period)
    }

    fn change(&self, state: &mut State, level: Option<LogLevel>, period: Option<Duration>) -> LogLevel {
        let level = level.unwrap_or_else(|| self.0.configured.clone());
        let line = format!("the log level was {}, and is now {level}", state.level);
        // The change may switch the line off, or on.
        let was_logged = enabled!(Level::WARN);
        if was_logged {
            warn!("{line}");
        }
        if let Some(reset) = state.reset.take() {
            reset.abort();
        }
        state.changes += 1;
        state.reset = period.map(|period| {
            let (control, changes) = (self.clone(), state.changes);
            let reset = tokio::spawn(async move {
                sleep(period).await;
                control.end_period(changes);
            });
            reset.abort_handle()
        });
        *self.0.filter.0.write().unwrap_or_else(PoisonError::into_inner) = level.targets().clone();
        let before = std::mem::replace(&mut state.level, level);
        // Asks the filter again for each place in the code.
        rebuild_interest_cache();
        if !was_logged {
            warn!("{line}");
        }
        before
    }

    /// Returns to the configured level after the period of a change. The level may have been set again, too late to
    /// abort the task of this period.
    fn end_period(&self, changes: u64) {
        let mut state = self.lock();
        if state.changes == changes {
            self.change(&mut state, None, None);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;
    use tokio::time::advance;
    use tracing::dispatcher;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn level(text: &str) -> LogLevel {
        text.parse().unwrap()
    }

    #[test]
    fn a_change_reaches_places_that_have_logged_before() {
        let control = LevelControl::new(level("info"));
        let logger = tracing_subscriber::registry().with(control.filter());
        dispatcher::with_default(&logger.into(), || {
            let has_debug = || enabled!(Level::DEBUG);
            assert!(!has_debug());
            assert_eq!(control.set(Some(level("debug")), None), level("info"));
            assert!(has_debug());
            assert_eq!(control.set(None, None), level("debug"));
            assert!(!has_debug());
        });
    }

    #[tokio::test(start_paused = true)]
    async fn a_level_with_a_period_ends_unless_it_is_set_again() {
        let control = LevelControl::new(level("info"));
        let now = || control.lock().level.to_string();
        control.set(Some(level("debug")), Some(MINUTE));
        sleep(MINUTE / 2).await;
        control.set(Some(level("warn")), Some(MINUTE));
        sleep(MINUTE * 3 / 4).await;
        assert_eq!(now(), "warn", "the first period is over, the second is not");
        advance(MINUTE / 2).await;
        yield_now().await;
        assert_eq!(now(), "info");
        control.set(Some(level("debug")), Some(MINUTE));
        control.set(Some(level("error")), None);
        sleep(2 * MINUTE).await;
        assert_eq!(now(), "error");
    }

    #[tokio::test]
    async fn a_period_that_ends_too_late_changes_nothing() {
        let control = LevelControl::new(level("info"));
        control.set(Some(level("debug")), Some(MINUTE));
        let first = control.lock().changes;
        control.set(Some(level("warn")), Some(MINUTE));
        control.end_period(first);
        let state = control.lock();
        assert_eq!(state.level, level("warn"));
        assert!(state.reset.as_ref().is_some_and(|reset| !reset.is_finished()));
    }
}
