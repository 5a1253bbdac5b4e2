//! The cost of polls: how many rings they read, and how often they pin.

use std::cell::Cell;

use super::*;

/// What this thread did.
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

/// Polls. Returns the result of `poll`, how many rings it read, and how often it pinned.
fn cost(subscription: &mut Subscription<'_>, most: usize) -> (Result<usize, Lagged>, Cost) {
    COST.take();
    let polled = subscription.poll(most, |_| ());
    (polled, COST.take())
}

#[test]
fn a_poll_without_changes_reads_no_ring_and_does_not_pin() {
    let feed = Feed::default();
    let mut subscription = feed.subscribe();
    assert_eq!(subscription.poll(9, |_| ()), Ok(0));
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
            assert_eq!(subscription.poll(9, |_| ()), Ok(0));
            assert_eq!(cost(subscription, 9), (Ok(0), Cost::default()), "it is idle");
        }
        for ring in [0, RINGS - 1] {
            feed.mark(ring, &pin(), || event(round));
        }
        for subscription in &mut subscriptions {
            assert_eq!(subscription.poll(0, |_| ()), Ok(0));
            assert_eq!(subscription.poll(1, |_| ()), Ok(1));
            assert_eq!(subscription.poll(9, |_| ()), Ok(1));
        }
    }
}

/// Only the first change of a burst changes the word.
#[test]
fn a_burst_of_changes_clears_idle_once() {
    let feed = Feed::default();
    let mut subscription = feed.subscribe();
    assert_eq!(subscription.poll(9, |_| ()), Ok(0));
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
    assert_eq!(subscription.poll(9, |_| ()), Ok(0));
    for number in 0..10 {
        feed.mark(7, &pin(), || event(number));
    }
    let mut taken = Vec::new();
    for most in [usize::MAX, 1, 5, 9, 9] {
        _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            subscription.poll(most, |event| {
                taken.push(event.clone());
                assert!(taken.len() % 3 != 0, "a panic that is meant to be");
            })
        }));
    }
    assert_eq!(taken, (0..10).map(event).collect::<Vec<_>>());
    assert_eq!(subscription.poll(9, |_| ()), Ok(0));
}

/// The figures of the documentation.
#[test]
fn rings_take_the_memory_that_their_documentation_says() {
    assert_eq!((RINGS, RING), (257, 512));
    assert_eq!(size_of::<RingEntry>(), 48);
    let places = RINGS * RING * size_of::<AtomicPtr<RingEntry>>();
    let entries = RINGS * RING * size_of::<RingEntry>();
    const MIB: usize = 1 << 20;
    assert_eq!((places / MIB, (places + entries) / MIB), (1, 7));
}
