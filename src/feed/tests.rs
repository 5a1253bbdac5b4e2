//! The cost of polls: how many rings they read, and how often they pin.

use std::cell::Cell;

use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::*;
use crate::feed::ring::RingEntry;
use crate::sync::{AtomicPtr, pin};

/// What this thread has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Cost {
    looks: usize,
    pins: usize,
}

thread_local! {
    static COST: Cell<Cost> = const { Cell::new(Cost { looks: 0, pins: 0 }) };
}

fn add(looks: usize, pins: usize) {
    let so_far = COST.get();
    COST.set(Cost {
        looks: so_far.looks + looks,
        pins: so_far.pins + pins,
    });
}

pub(super) fn looked() {
    add(1, 0);
}

pub(super) fn pinned() {
    add(0, 1);
}

fn event(number: u128) -> Event {
    Event::Node {
        node: uuid::Uuid::from_u128(number).into(),
        reason: Reason::Added,
    }
}

/// Counts how often it is woken.
#[derive(Default)]
struct Woken(std::sync::atomic::AtomicUsize);

impl Woken {
    /// How often it was woken since the last call.
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn poll(subscription: &mut Subscription<'_>, waker: &Waker) -> Poll<()> {
    subscription.poll_ready(&mut Context::from_waker(waker))
}

/// Polls. Returns the result of `poll`, how many rings it read, and how often it pinned.
fn cost(subscription: &mut Subscription<'_>, most: usize) -> (Result<usize, Lagged>, Cost) {
    COST.take();
    let polled = subscription.drain_events(most, |_| ());
    (polled, COST.take())
}

#[test]
fn a_poll_without_changes_reads_no_ring_and_does_not_pin() {
    let feed = Feed::default();
    let mut subscription = feed.subscribe();
    assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
    assert_eq!(cost(&mut subscription, 9), (Ok(0), Cost { looks: 0, pins: 0 }));
}

#[test]
fn a_poll_pins_once_for_many_events_and_not_for_rings_without_any() {
    let feed = Feed::default();
    let mut subscription = feed.subscribe();
    for number in 0..64 {
        feed.mark(1, &pin(), || event(number));
    }
    let (polled, Cost { pins, .. }) = cost(&mut subscription, usize::MAX);
    assert_eq!((polled, pins), (Ok(64), 2));
}

#[test]
fn an_idle_subscriber_takes_each_change_and_goes_idle_again() {
    let feed = Feed::default();
    let mut subscriptions = [feed.subscribe(), feed.subscribe()];
    for round in 0..4 {
        for subscription in &mut subscriptions {
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
            assert_eq!(cost(subscription, 9), (Ok(0), Cost::default()), "it is idle");
        }
        for ring in [0, RINGS - 1] {
            feed.mark(ring, &pin(), || event(round));
        }
        for subscription in &mut subscriptions {
            assert_eq!(subscription.drain_events(0, |_| ()), Ok(0));
            assert_eq!(subscription.drain_events(1, |_| ()), Ok(1));
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(1));
        }
    }
}

/// Only the first change of a burst changes the word.
#[test]
fn a_burst_of_changes_clears_idle_once() {
    let feed = Feed::default();
    let mut subscription = feed.subscribe();
    assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
    assert_eq!(feed.state.load(Ordering::Relaxed), IDLE);
    for number in 0..100 {
        feed.mark(0, &pin(), || event(number));
        assert_eq!(feed.state.load(Ordering::Relaxed), IDLE + 1);
    }
}

#[test]
fn a_panic_loses_no_event_but_the_one_that_was_taken() {
    let feed = Feed::default();
    let mut subscription = feed.subscribe();
    assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
    for number in 0..10 {
        feed.mark(7, &pin(), || event(number));
    }
    let mut taken = Vec::new();
    for most in [usize::MAX, 1, 5, 9, 9] {
        _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            subscription.drain_events(most, |event| {
                taken.push(event.clone());
                assert!(taken.len() % 3 != 0, "a panic that is meant to be");
            })
        }));
    }
    assert_eq!(taken, (0..10).map(event).collect::<Vec<_>>());
    assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
}

/// The figures in the docs of `Subscription`.
#[test]
fn rings_take_the_memory_that_their_documentation_says() {
    assert_eq!((RINGS, RING), (257, 512));
    assert_eq!(size_of::<RingEntry>(), 40);
    let places = RINGS * RING * size_of::<AtomicPtr<RingEntry>>();
    let entries = RINGS * RING * size_of::<RingEntry>();
    const MIB: usize = 1 << 20;
    assert_eq!((places / MIB, (places + entries) / MIB), (1, 6));
}

#[test]
fn a_wait_ends_at_a_change_or_at_its_timeout() {
    let feed = Feed::default();
    let mut subscription = feed.subscribe();
    assert!(subscription.wait(Duration::MAX), "nobody has looked yet");
    assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
    assert!(!subscription.wait(Duration::ZERO));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            assert!(subscription.wait(Duration::MAX));
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(1));
        });
        feed.mark(0, &pin(), || event(1));
        waiting.join().expect("the change ends the wait");
    });
}

#[test]
fn waits_that_end_by_a_timeout_leave_one_waiter() {
    let feed = Feed::default();
    let mut subscriptions = [feed.subscribe(), feed.subscribe()];
    for round in 0..3 {
        for subscription in &mut subscriptions {
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
            for _ in 0..100 {
                assert!(!subscription.wait(Duration::ZERO));
            }
        }
        assert_eq!(feed.waiters.len(), 2);
        feed.mark(0, &pin(), || event(round));
        assert_eq!(feed.waiters.len(), 0);
        for subscription in &mut subscriptions {
            assert_eq!(
                subscription.poll_ready(&mut Context::from_waker(Waker::noop())),
                Poll::Ready(())
            );
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(1));
        }
    }
}

/// The nodes of waiters hold the wakers of tasks, so the tasks would stay allocated.
#[test]
fn subscriptions_that_are_dropped_leave_few_waiters() {
    let feed = Feed::default();
    let task = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&task));
    for live in [0, 100] {
        let mut waiting: Vec<_> = (0..live).map(|_| feed.subscribe()).collect();
        for subscription in &mut waiting {
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
            assert!(poll(subscription, Waker::noop()).is_pending());
        }
        for _ in 0..10_000 {
            let mut subscription = feed.subscribe();
            assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
            assert!(poll(&mut subscription, &waker).is_pending());
            drop(subscription);
            assert_eq!(Arc::strong_count(&task), 2, "a dropped subscription keeps its waker");
        }
        let left = feed.waiters.len();
        assert!(left <= 2 * live + 64, "{left} waiters of {live} subscriptions");
    }
}

/// A subscriber that is woken because others were dropped waits again.
#[test]
fn a_subscriber_waits_on_although_others_are_dropped() {
    let feed = Feed::default();
    let mut subscription = feed.subscribe();
    assert_eq!(subscription.drain_events(9, |_| ()), Ok(0));
    let task = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&task));
    assert!(poll(&mut subscription, &waker).is_pending());
    let mut woken = 0;
    for _ in 0..1_000 {
        let mut other = feed.subscribe();
        assert_eq!(other.drain_events(9, |_| ()), Ok(0));
        assert!(poll(&mut other, Waker::noop()).is_pending());
        drop(other);
        if task.take() > 0 {
            woken += 1;
            assert!(poll(&mut subscription, &waker).is_pending(), "nothing has changed");
        }
    }
    assert!((1..20).contains(&woken), "woken {woken} times");
    feed.mark(0, &pin(), || event(1));
    assert_eq!(task.take(), 1);
    assert!(poll(&mut subscription, &waker).is_ready());
}

/// Panics when it is woken.
struct Panics;

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a panic that is meant to be");
    }
}

#[test]
fn a_waker_that_panics_keeps_no_other_waker_from_being_woken() {
    let feed = Feed::default();
    let task = Arc::new(Woken::default());
    let woken = Waker::from(Arc::clone(&task));
    let panics = Waker::from(Arc::new(Panics));
    // Two of the wakers panic, and the last waiter is on top of the stack.
    let wakers = [&woken, &panics, &woken, &panics, &woken];
    let mut subscriptions = wakers.map(|_| feed.subscribe());
    for round in 0..3 {
        for (subscription, waker) in subscriptions.iter_mut().zip(wakers) {
            while subscription.drain_events(9, |_| ()) != Ok(0) {}
            assert!(poll(subscription, waker).is_pending());
        }
        let mark = || feed.mark(0, &pin(), || event(round));
        let marked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(mark));
        assert!(marked.is_err(), "the writer gets the panic");
        assert_eq!(task.take(), 3, "round {round}");
        assert_eq!(feed.waiters.len(), 0);
    }
}

/// The thread that drops a subscription wakes the other subscribers. If it panics already, a second panic would end the
/// process.
#[test]
fn a_waker_that_panics_keeps_no_subscription_from_being_dropped() {
    let feed = Feed::default();
    let mut waiting = feed.subscribe();
    assert_eq!(waiting.drain_events(9, |_| ()), Ok(0));
    assert!(poll(&mut waiting, &Waker::from(Arc::new(Panics))).is_pending());
    for _ in 0..100 {
        let mut other = feed.subscribe();
        assert_eq!(other.drain_events(9, |_| ()), Ok(0));
        assert!(poll(&mut other, Waker::noop()).is_pending());
    }
    assert!(feed.waiters.len() < 100, "nobody was woken");
}

#[cfg(feature = "stream")]
#[test]
fn a_stream_has_each_event_and_each_loss() {
    use std::pin::Pin;

    use futures_core::Stream;

    let feed = Feed::new(2);
    let mut subscription = feed.subscribe();
    let mut next = || Pin::new(&mut subscription).poll_next(&mut Context::from_waker(Waker::noop()));
    assert!(next().is_pending());
    (0..2).for_each(|number| feed.mark(3, &pin(), || event(number)));
    assert_eq!(next(), Poll::Ready(Some(Ok(event(0)))));
    assert_eq!(next(), Poll::Ready(Some(Ok(event(1)))));
    assert!(next().is_pending());
    (2..5).for_each(|number| feed.mark(3, &pin(), || event(number)));
    let lost = LostChanges::OfPart(3);
    assert_eq!(next(), Poll::Ready(Some(Err(Lagged { lost }))));
    assert!(next().is_pending());
}
