//! Which session owns each proxy: of one incarnation, only the latest session acts.
//!
//! A session acts under the lock of its [`Ownership`]. A hello holds the lock of the previous session while it begins
//! its incarnation and takes over. So each message of the previous session is done before the takeover, or is rejected.
//!
//! No wait is longer than one message takes. A hello waits for a message of the same proxy, and delays no other proxy
//! meanwhile. Hellos and ends of sessions wait for each other. The lock of a session is taken before the lock of all
//! owners.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nodetracker_proto::v1::SessionSupersededReason;

/// The owner of every proxy that has an open session.
#[derive(Debug, Default)]
pub(crate) struct SessionOwners(Mutex<Owners>);

#[derive(Debug, Default)]
struct Owners {
    /// By the proxy's ID.
    by_proxy: HashMap<Box<str>, Arc<Ownership>>,
    /// Set once the tracker is about to stop: how long the sessions have left.
    go_away: Option<Duration>,
}

/// A session's right to act for its proxy, until another session takes over.
#[derive(Debug)]
pub(crate) struct Ownership {
    incarnation: NonZeroU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    superseded: Option<Superseded>,
    /// Set from the time that the tracker is about to stop until the session has sent it.
    go_away: Option<Duration>,
    /// Woken by the takeover, and when the tracker is about to stop.
    waker: Option<Waker>,
}

/// A message that a session has to send without a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Notice {
    /// Another session has taken over.
    Superseded(Superseded),
    /// The tracker serves the session for this long, and then stops.
    GoAway(Duration),
}

/// Why a session no longer acts, and the latest incarnation of its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superseded {
    pub(crate) reason: SessionSupersededReason,
    pub(crate) latest: NonZeroU64,
}

/// Locks a mutex, poisoned or not: no critical section here leaves its data half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SessionOwners {
    /// Makes a new session the owner of a proxy, if `begin` succeeds. The previous session does not act while `begin`
    /// runs, nor after a success.
    pub(crate) fn take_over<T, E>(
        &self,
        proxy_id: &str,
        incarnation: NonZeroU64,
        begin: impl FnOnce() -> Result<T, E>,
    ) -> Result<(Arc<Ownership>, T), E> {
        let owner = |owners: &Owners| owners.by_proxy.get(proxy_id).map(Arc::clone);
        let mut previous = owner(&lock(&self.0));
        let (mut owners, state) = loop {
            // Waits for the message that the previous session handles now.
            let state = previous.as_ref().map(|previous| (previous, lock(&previous.state)));
            let owners = lock(&self.0);
            let now = owner(&owners);
            if now.as_ref().map(Arc::as_ptr) == previous.as_ref().map(Arc::as_ptr) {
                break (owners, state);
            }
            // Another session has begun or ended meanwhile.
            drop((owners, state));
            previous = now;
        };
        let begun = begin()?;
        if let Some((previous, mut state)) = state {
            let reason = if previous.incarnation == incarnation {
                SessionSupersededReason::NewerSession
            } else {
                SessionSupersededReason::NewerIncarnation
            };
            let latest = incarnation;
            state.superseded = Some(Superseded { reason, latest });
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
        let state = State {
            go_away: owners.go_away,
            ..State::default()
        };
        let ownership = Arc::new(Ownership {
            incarnation,
            state: Mutex::new(state),
        });
        owners.by_proxy.insert(proxy_id.into(), Arc::clone(&ownership));
        Ok((ownership, begun))
    }

    /// Returns the number of proxies that have an owner.
    pub(crate) fn count(&self) -> usize {
        lock(&self.0).by_proxy.len()
    }

    /// Ends an ownership. Does nothing if another session has taken over.
    pub(crate) fn release(&self, proxy_id: &str, ownership: &Arc<Ownership>) {
        let owners = &mut lock(&self.0).by_proxy;
        if owners
            .get(proxy_id)
            .is_some_and(|current| Arc::ptr_eq(current, ownership))
        {
            owners.remove(proxy_id);
            // Memory follows the number of open sessions, not its peak.
            if owners.len() < owners.capacity() / 4 {
                let capacity = 2 * owners.len();
                owners.shrink_to(capacity);
            }
        }
    }

    /// Asks all sessions, also those that begin later, to go to another tracker within `time_left`. Costs some
    /// microseconds for each hundred sessions.
    pub(crate) fn go_away(&self, time_left: Duration) {
        let mut owners = lock(&self.0);
        owners.go_away = Some(time_left);
        let all: Vec<_> = owners.by_proxy.values().map(Arc::clone).collect();
        drop(owners);
        for ownership in all {
            let mut state = lock(&ownership.state);
            state.go_away = Some(time_left);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Ownership {
    /// Runs `act` if the session still owns its proxy. No other session takes over meanwhile.
    pub(crate) fn run_if_owner<T>(&self, act: impl FnOnce() -> T) -> Result<T, Superseded> {
        let state = lock(&self.state);
        match state.superseded {
            Some(superseded) => Err(superseded),
            None => Ok(act()),
        }
    }

    /// Waits until another session takes over, or until the tracker is about to stop.
    pub(crate) fn poll_notice(&self, cx: &mut Context<'_>) -> Poll<Notice> {
        let mut state = lock(&self.state);
        if let Some(superseded) = state.superseded {
            return Poll::Ready(Notice::Superseded(superseded));
        }
        if let Some(time_left) = state.go_away.take() {
            return Poll::Ready(Notice::GoAway(time_left));
        }
        if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;
    use std::task::Wake;
    use std::thread;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn take_over(owners: &SessionOwners, incarnation: u64) -> Arc<Ownership> {
        let incarnation = NonZeroU64::new(incarnation).expect("not zero");
        let taken = owners.take_over("proxy", incarnation, || Ok::<_, ()>(()));
        taken.expect("the incarnation begins").0
    }

    #[test]
    fn the_latest_session_owns_the_proxy_and_the_previous_session_is_woken() {
        let owners = SessionOwners::default();
        let first = take_over(&owners, 1);
        assert_eq!(first.run_if_owner(|| 5), Ok(5));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert_eq!(first.poll_notice(&mut cx), Poll::Pending);

        // A session that does not begin takes nothing over.
        let refused = owners.take_over("proxy", NonZeroU64::MIN, || Err::<(), _>("stale"));
        assert_eq!(refused.expect_err("it is refused"), "stale");
        assert_eq!(first.run_if_owner(|| 5), Ok(5));
        assert!(!woken.0.load(Ordering::Relaxed));

        let second = take_over(&owners, 1);
        let superseded = |reason, latest| Superseded {
            reason,
            latest: NonZeroU64::new(latest).expect("not zero"),
        };
        let to_second = superseded(SessionSupersededReason::NewerSession, 1);
        assert!(woken.0.load(Ordering::Relaxed));
        assert_eq!(
            first.run_if_owner(|| unreachable!("it is superseded")),
            Err::<(), _>(to_second)
        );
        assert_eq!(first.poll_notice(&mut cx), Poll::Ready(Notice::Superseded(to_second)));

        let third = take_over(&owners, 2);
        let to_third = superseded(SessionSupersededReason::NewerIncarnation, 2);
        assert_eq!(second.poll_notice(&mut cx), Poll::Ready(Notice::Superseded(to_third)));
        assert_eq!(third.poll_notice(&mut cx), Poll::Pending);
    }

    #[test]
    fn each_session_is_asked_once_to_go_away() {
        let owners = SessionOwners::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let first = take_over(&owners, 1);
        assert_eq!(first.poll_notice(&mut cx), Poll::Pending);
        let left = Duration::from_secs(5);
        owners.go_away(left);
        assert!(woken.0.load(Ordering::Relaxed));
        assert_eq!(first.run_if_owner(|| 5), Ok(5), "the session continues");
        // A session that begins meanwhile.
        let second = take_over(&owners, 1);
        for _ in 0..2 {
            assert!(matches!(first.poll_notice(&mut cx), Poll::Ready(Notice::Superseded(_))));
        }
        assert_eq!(second.poll_notice(&mut cx), Poll::Ready(Notice::GoAway(left)));
        assert_eq!(second.poll_notice(&mut cx), Poll::Pending);
    }

    #[test]
    fn a_session_that_ends_leaves_nothing_behind() {
        let owners = SessionOwners::default();
        let first = take_over(&owners, 1);
        let second = take_over(&owners, 1);
        owners.release("proxy", &first);
        assert_eq!(lock(&owners.0).by_proxy.len(), 1, "another session owns the proxy");
        owners.release("proxy", &second);
        owners.release("proxy", &second);
        assert_eq!(lock(&owners.0).by_proxy.len(), 0);
    }

    #[test]
    fn memory_follows_the_number_of_open_sessions() {
        let owners = SessionOwners::default();
        let names: Vec<_> = (0..10_000).map(|number| format!("proxy-{number}")).collect();
        let take_over = |name: &String| owners.take_over(name, NonZeroU64::MIN, || Ok::<_, ()>(()));
        let taken: Vec<_> = names
            .iter()
            .map(|name| take_over(name).expect("the incarnation begins").0)
            .collect();
        for (left, (name, ownership)) in names.iter().zip(&taken).enumerate().rev() {
            owners.release(name, ownership);
            let owners = &lock(&owners.0).by_proxy;
            assert_eq!(owners.len(), left);
            assert!(owners.capacity() <= 4 * left + 4, "{} for {left}", owners.capacity());
        }
    }

    #[test]
    fn a_message_under_way_is_done_before_another_session_begins() {
        let owners = SessionOwners::default();
        let first = take_over(&owners, 1);
        let (begun, begins) = mpsc::channel();
        thread::scope(|scope| {
            first
                .run_if_owner(|| {
                    let owners = &owners;
                    scope.spawn(move || {
                        let begin = || begun.send(()).map_err(|_| ());
                        owners.take_over("proxy", NonZeroU64::MIN, begin).map(|_| ())
                    });
                    // The map, this thread, and the hello.
                    while Arc::strong_count(&first) < 3 {
                        thread::yield_now();
                    }
                    // Meanwhile, other proxies' sessions begin and end.
                    let (other, ()) = owners
                        .take_over("other", NonZeroU64::MIN, || Ok::<_, ()>(()))
                        .expect("the incarnation begins");
                    owners.release("other", &other);
                    // The thread would not need long to begin.
                    let has_begun = begins.recv_timeout(Duration::from_millis(20)).is_ok();
                    assert!(!has_begun, "it has begun meanwhile");
                })
                .expect("the first session owns the proxy");
            begins.recv().expect("it begins once the message is done");
        });
        assert!(first.run_if_owner(|| ()).is_err());
    }
}
