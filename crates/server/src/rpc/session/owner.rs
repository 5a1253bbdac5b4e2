//! Which session speaks for each proxy.
//!
//! A session holds its [`Voice`]'s lock while it does what a message asks for. A hello holds the lock of the session before
//! it while it begins its incarnation and takes over; so each message of that one is done before, or refused. Nobody waits
//! for longer than one message takes: messages for a hello of the same proxy, hellos and ends of sessions for each other.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use nodetracker_proto::v1::SessionSupersededReason;

/// The voice of every open session, by the ID of its proxy.
#[derive(Debug, Default)]
pub(crate) struct Voices(Mutex<HashMap<Box<str>, Arc<Voice>>>);

/// The right of a session to speak for its proxy, until another one takes it.
#[derive(Debug)]
pub(crate) struct Voice {
    incarnation: NonZeroU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    lost: Option<Superseded>,
    /// Whom to wake when it is lost.
    waker: Option<Waker>,
}

/// Why a session speaks no more, and the latest incarnation of its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superseded {
    pub(crate) reason: SessionSupersededReason,
    pub(crate) latest: NonZeroU64,
}

/// Whoever panicked with the lock leaves nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Voices {
    /// Takes the voice from the session that has it, if `begin` succeeds. No message of that session is done while `begin`
    /// runs, and none is from then on.
    pub(crate) fn take<T, E>(
        &self,
        proxy_id: &str,
        incarnation: NonZeroU64,
        begin: impl FnOnce() -> Result<T, E>,
    ) -> Result<(Arc<Voice>, T), E> {
        let mut voices = lock(&self.0);
        let before = voices.get(proxy_id).map(Arc::clone);
        let state = before.as_ref().map(|before| (before, lock(&before.state)));
        let begun = begin()?;
        if let Some((before, mut state)) = state {
            let reason = if before.incarnation == incarnation {
                SessionSupersededReason::NewerSession
            } else {
                SessionSupersededReason::NewerIncarnation
            };
            let latest = incarnation;
            state.lost = Some(Superseded { reason, latest });
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        }
        let voice = Arc::new(Voice {
            incarnation,
            state: Mutex::default(),
        });
        voices.insert(proxy_id.into(), Arc::clone(&voice));
        Ok((voice, begun))
    }

    /// Gives a voice up.
    pub(crate) fn leave(&self, proxy_id: &str, voice: &Arc<Voice>) {
        let mut voices = lock(&self.0);
        if voices.get(proxy_id).is_some_and(|current| Arc::ptr_eq(current, voice)) {
            voices.remove(proxy_id);
            if voices.len() < voices.capacity() / 4 {
                let capacity = 2 * voices.len();
                voices.shrink_to(capacity);
            }
        }
    }
}

impl Voice {
    /// Does something as the proxy's latest session, or nothing.
    pub(crate) fn speak<T>(&self, what: impl FnOnce() -> T) -> Result<T, Superseded> {
        let state = lock(&self.state);
        match state.lost {
            Some(superseded) => Err(superseded),
            None => Ok(what()),
        }
    }

    /// Waits until the voice is lost.
    pub(crate) fn poll_lost(&self, cx: &mut Context<'_>) -> Poll<Superseded> {
        let mut state = lock(&self.state);
        if let Some(superseded) = state.lost {
            return Poll::Ready(superseded);
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
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn take(voices: &Voices, incarnation: u64) -> Arc<Voice> {
        let incarnation = NonZeroU64::new(incarnation).expect("not zero");
        let taken = voices.take("proxy", incarnation, || Ok::<_, ()>(()));
        taken.expect("it begins").0
    }

    #[test]
    fn the_latest_session_speaks_and_the_one_before_is_woken() {
        let voices = Voices::default();
        let first = take(&voices, 1);
        assert_eq!(first.speak(|| 5), Ok(5));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        assert_eq!(first.poll_lost(&mut cx), Poll::Pending);

        // One that does not begin takes nothing.
        let refused = voices.take("proxy", NonZeroU64::MIN, || Err::<(), _>("stale"));
        assert_eq!(refused.expect_err("it is refused"), "stale");
        assert_eq!(first.speak(|| 5), Ok(5));
        assert!(!woken.0.load(Ordering::Relaxed));

        let second = take(&voices, 1);
        let lost = |reason, latest| Superseded {
            reason,
            latest: NonZeroU64::new(latest).expect("not zero"),
        };
        let to_second = lost(SessionSupersededReason::NewerSession, 1);
        assert!(woken.0.load(Ordering::Relaxed));
        assert_eq!(first.speak(|| unreachable!("it is lost")), Err::<(), _>(to_second));
        assert_eq!(first.poll_lost(&mut cx), Poll::Ready(to_second));

        let third = take(&voices, 2);
        let to_third = lost(SessionSupersededReason::NewerIncarnation, 2);
        assert_eq!(second.poll_lost(&mut cx), Poll::Ready(to_third));
        assert_eq!(third.poll_lost(&mut cx), Poll::Pending);
    }

    #[test]
    fn a_session_that_leaves_leaves_nothing_behind() {
        let voices = Voices::default();
        let first = take(&voices, 1);
        let second = take(&voices, 1);
        voices.leave("proxy", &first);
        assert_eq!(lock(&voices.0).len(), 1, "it was another one's");
        voices.leave("proxy", &second);
        voices.leave("proxy", &second);
        assert_eq!(lock(&voices.0).len(), 0);
    }

    #[test]
    fn the_most_sessions_that_there_ever_were_take_no_memory_for_ever() {
        let voices = Voices::default();
        let names: Vec<_> = (0..10_000).map(|number| format!("proxy-{number}")).collect();
        let take = |name: &String| voices.take(name, NonZeroU64::MIN, || Ok::<_, ()>(()));
        let taken: Vec<_> = names.iter().map(|name| take(name).expect("it begins").0).collect();
        for (left, (name, voice)) in names.iter().zip(&taken).enumerate().rev() {
            voices.leave(name, voice);
            let voices = lock(&voices.0);
            assert_eq!(voices.len(), left);
            assert!(voices.capacity() <= 4 * left + 4, "{} for {left}", voices.capacity());
        }
    }

    #[test]
    fn a_message_under_way_is_done_before_another_session_begins() {
        let voices = Voices::default();
        let first = take(&voices, 1);
        let (begun, begins) = mpsc::channel();
        thread::scope(|scope| {
            first
                .speak(|| {
                    let voices = &voices;
                    scope.spawn(move || {
                        let begin = || begun.send(()).map_err(|_| ());
                        voices.take("proxy", NonZeroU64::MIN, begin).map(|_| ())
                    });
                    let has_begun = |wait| begins.recv_timeout(wait).is_ok();
                    while voices.0.try_lock().is_ok() {
                        assert!(!has_begun(Duration::ZERO), "it has begun meanwhile");
                        thread::yield_now();
                    }
                    // It takes the voice, and would not need long to begin.
                    assert!(!has_begun(Duration::from_millis(20)), "it has begun meanwhile");
                })
                .expect("it speaks");
            begins.recv().expect("it begins once the message is done");
        });
        assert!(first.speak(|| ()).is_err());
    }
}
