//! loom models of the change feed, named after the property that each shows; see `src/shard/models.rs`.

use std::num::NonZeroU64;

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::feed::ring::Ring;
use crate::sync::{epoch, pin};
use crate::types::proxy::ProxyRef;
use crate::{ManualClock, Proxy, RouteTable};

fn event(number: u128) -> Event {
    Event::Node {
        node: uuid::Uuid::from_u128(number).into(),
        reason: Reason::Added,
    }
}

fn push(ring: &Ring, number: u128) {
    ring.push(event(number), &pin());
}

/// The invariants at rest: the head has counted every push, and the last entries are in their places.
fn check(ring: &Ring, pushed: u64) {
    let guard = pin();
    assert_eq!(ring.head.load(Ordering::Acquire), pushed);
    for number in pushed.saturating_sub(RING as u64)..pushed {
        let entry = ring.entry(number, &guard).1.expect("a change was pushed");
        assert_eq!(entry.number, number, "a place has not the change that is due there");
    }
}

#[test]
fn a_change_that_was_overtaken_by_a_round_of_the_ring_is_not_lost() {
    epoch::check(3, || {
        let ring = Arc::new(Ring::new(RING));
        let slow = thread::spawn({
            let ring = Arc::clone(&ring);
            move || push(&ring, 9)
        });
        for number in 0..3 {
            push(&ring, number);
        }
        slow.join().expect("it ends");
        check(&ring, 4);
    });
}

#[test]
fn a_subscriber_misses_no_change_of_two_writers() {
    epoch::check(3, || {
        let feed = Arc::new(Feed::default());
        let mut subscription = feed.subscribe();
        let writers = [1, 2].map(|number| {
            let feed = Arc::clone(&feed);
            thread::spawn(move || feed.mark(0, &pin(), || event(number)))
        });
        let mut seen = Vec::new();
        let mut poll = |last: bool| {
            let polled = subscription.drain_events(9, |event| seen.push(event.clone()));
            polled.expect("the ring has room for both");
            assert!(seen.len() == 2 || !last, "changes were missed: {seen:?}");
        };
        // Lets a writer run first: loom does not find this point by itself.
        thread::yield_now();
        poll(false);
        writers.into_iter().for_each(|writer| writer.join().expect("it ends"));
        poll(true);
        assert_ne!(seen[0], seen[1]);
    });
}

/// Polls in its own thread, which has not seen the ring's places when it yields. After a yield, loom returns no value
/// older than the thread has seen.
#[test]
fn a_subscriber_that_keeps_up_sees_each_change() {
    epoch::check(3, || {
        let feed = Arc::new(Feed::default());
        // Allocate the rings before the threads start.
        drop(feed.subscribe());
        let subscriber = thread::spawn({
            let feed = Arc::clone(&feed);
            move || {
                let mut subscription = feed.subscribe();
                thread::yield_now();
                let polled = subscription.drain_events(9, |polled| assert_eq!(*polled, event(1)));
                assert!(polled.is_ok(), "the ring has room for it");
            }
        });
        let writer = thread::spawn({
            let feed = Arc::clone(&feed);
            move || feed.mark(0, &pin(), || event(1))
        });
        subscriber.join().expect("it ends");
        writer.join().expect("it ends");
    });
}

/// Three changes in a ring of two places. The writer replaces the first entry, and retires it, before or while the
/// subscriber reads it.
#[test]
fn a_subscriber_that_is_overtaken_gets_an_error_or_every_change() {
    epoch::check(3, || {
        let feed = Arc::new(Feed::default());
        let mut subscription = feed.subscribe();
        let writer = thread::spawn({
            let feed = Arc::clone(&feed);
            move || (0..3).for_each(|number| feed.mark(0, &pin(), || event(number)))
        });
        // Lets the writer run first.
        thread::yield_now();
        let mut seen = Vec::new();
        let first = subscription.drain_events(9, |event| seen.push(event.clone()));
        writer.join().expect("it ends");
        let second = subscription.drain_events(9, |event| seen.push(event.clone()));
        if first.is_ok() && second.is_ok() {
            assert_eq!(seen, [event(0), event(1), event(2)]);
        }
    });
}

/// The table is one word here: the subscriber reads it after it has subscribed, the writer marks after it has written
/// it.
#[test]
fn of_a_writer_and_a_new_subscriber_one_sees_the_other() {
    epoch::check(3, || {
        let feed = Arc::new(Feed::default());
        // Allocate the rings before the threads start.
        drop(feed.subscribe());
        let word = Arc::new(AtomicU64::new(0));
        let writer = thread::spawn({
            let (feed, word) = (Arc::clone(&feed), Arc::clone(&word));
            move || {
                let guard = pin();
                word.store(1, Ordering::Release);
                feed.mark(0, &guard, || event(1));
            }
        });
        let mut subscription = feed.subscribe();
        let read = word.load(Ordering::Acquire);
        writer.join().expect("it ends");
        let taken = subscription.drain_events(9, |_| ()).expect("there is one change");
        assert!(read == 1 || taken == 1, "the change is neither read nor taken");
    });
}

/// Two subscribers, so that one finds IDLE set by the other, or set again after the change.
#[test]
fn an_idle_subscriber_misses_no_change() {
    epoch::check(3, || {
        let feed = Arc::new(Feed::default());
        // Allocate the rings before the threads start.
        let mut subscription = feed.subscribe();
        let writer = thread::spawn({
            let feed = Arc::clone(&feed);
            move || feed.mark(1, &pin(), || event(1))
        });
        let other = thread::spawn({
            let feed = Arc::clone(&feed);
            move || {
                let mut subscription = feed.subscribe();
                // Act as if the subscription had begun before the change.
                subscription.next.fill(0);
                let mut taken = 0;
                for _ in 0..2 {
                    taken += subscription.drain_events(9, |_| ()).expect("there is one change");
                }
                (taken, subscription.idle_in)
            }
        });
        let mut taken = subscription.drain_events(9, |_| ()).expect("there is one change");
        writer.join().expect("it ends");
        let (taken_by_other, idle_in) = other.join().expect("it ends");
        assert!(
            taken_by_other == 1 || idle_in != Some(feed.state.load(Ordering::Relaxed)),
            "the other one is idle for good"
        );
        taken += subscription.drain_events(9, |_| ()).expect("there is one change");
        assert_eq!(taken, 1, "the change is missed");
    });
}

/// Makes `change` to a registered proxy while a subscriber polls. Calls `check` with each event. At least one execution
/// must have an event during the change.
fn during(
    change: impl Fn(&RouteTable, ProxyRef) + Send + Sync + Copy + 'static,
    check: impl Fn(&RouteTable, &Event) + Send + Sync + 'static,
) {
    let reported = std::sync::atomic::AtomicBool::new(false);
    let reported = std::sync::Arc::new(reported);
    let was_reported = std::sync::Arc::clone(&reported);
    epoch::check(2, move || {
        let table = Arc::new(
            RouteTable::builder()
                .clock(ManualClock::new())
                .build()
                .expect("possible limits"),
        );
        let first = table.begin_incarnation(&proxy("a:1"), NonZeroU64::MIN);
        let first = first.expect("there is room").proxy;
        // Allocate the rings before the threads start.
        let mut subscription = table.subscribe();
        let writer = thread::spawn({
            let table = Arc::clone(&table);
            move || change(&table, first)
        });
        // Lets the writer run first: loom does not find this point by itself.
        thread::yield_now();
        let mut taken = 0;
        let mut poll = |is_under_way: bool| {
            let polled = subscription.drain_events(9, |event| {
                // Relaxed: one OS thread.
                reported.fetch_or(is_under_way, std::sync::atomic::Ordering::Relaxed);
                check(&table, event);
            });
            taken += polled.expect("there is one change");
        };
        poll(true);
        writer.join().expect("it ends");
        poll(false);
        assert_eq!(taken, 1, "one change is one event");
    });
    // Relaxed: one OS thread.
    let was_reported = was_reported.load(std::sync::atomic::Ordering::Relaxed);
    assert!(was_reported, "no event came while the change was under way");
}

fn proxy(addr: &str) -> Proxy<'_> {
    Proxy {
        id: "proxy",
        cluster_name: "",
        addr,
    }
}

fn is_gone(table: &RouteTable, event: &Event) {
    match event {
        Event::ProxyRemoved { proxy, .. } => assert_eq!(table.proxy(*proxy), None, "it is there still"),
        event => panic!("{event:?}"),
    }
}

/// The subscriber polls between the writer's store of the removal and its mark. Few executions: the writer has the
/// registry's lock, and the subscriber reads only the ring and the life of the number.
#[test]
fn a_proxy_is_gone_when_its_removal_is_reported() {
    during(|table, proxy| assert!(table.remove_proxy(proxy)), is_gone);
}

/// The subscriber polls between the end of the older incarnation and the mark of the end.
#[test]
fn an_incarnation_is_gone_when_its_end_is_reported() {
    let begin = |table: &RouteTable, _| {
        let second = NonZeroU64::MIN.saturating_add(1);
        table.begin_incarnation(&proxy("a:1"), second).expect("there is room");
    };
    during(begin, is_gone);
}

/// The subscriber polls between the swap of the details and the mark.
#[test]
fn a_proxy_has_its_new_details_when_they_are_reported() {
    let register = |table: &RouteTable, _| _ = table.register_proxy(&proxy("a:2")).expect("there is room");
    during(register, |table, event| match event {
        Event::ProxyChanged { proxy } => {
            let details = table.proxy(*proxy).expect("it is registered");
            assert_eq!(details.addr, "a:2", "they are the old ones");
        }
        event => panic!("{event:?}"),
    });
}

/// Counts how often it is woken.
struct Woken(std::sync::atomic::AtomicUsize);

impl std::task::Wake for Woken {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A subscriber that has drained every event waits, while writers change the table: it is woken, or finds the change
/// itself. A second wait has another waker, as if a task had moved. If `is_one_dropped`, another subscription is
/// dropped while it waits.
fn waits(preemptions: usize, writers: u64, waits: usize, is_one_dropped: bool) {
    epoch::check(preemptions, move || {
        let feed = Arc::new(Feed::default());
        let mut subscription = feed.subscribe();
        let dropper = is_one_dropped.then(|| {
            let feed = Arc::clone(&feed);
            thread::spawn(move || {
                let mut other = feed.subscribe();
                other.drain_events(9, |_| ()).expect("the ring has room");
                let waker = std::task::Waker::noop();
                _ = other.poll_ready(&mut std::task::Context::from_waker(waker));
            })
        });
        let writers: Vec<_> = (0..writers)
            .map(|number| {
                let feed = Arc::clone(&feed);
                thread::spawn(move || feed.mark(0, &pin(), || event(number.into())))
            })
            .collect();
        let mut taken = 0;
        let mut woken = None;
        for _ in 0..waits {
            // Lets a writer run first: loom does not find this point by itself.
            thread::yield_now();
            let mut drain = || subscription.drain_events(9, |_| ()).expect("the ring has room");
            taken += drain();
            taken += drain();
            let counter = std::sync::Arc::new(Woken(0.into()));
            let waker = std::task::Waker::from(std::sync::Arc::clone(&counter));
            let ready = subscription.poll_ready(&mut std::task::Context::from_waker(&waker));
            woken = ready.is_pending().then_some(counter);
        }
        let count = writers.len();
        let others = writers.into_iter().chain(dropper);
        others.for_each(|other| other.join().expect("it ends"));
        let is_woken =
            woken.is_none_or(|counter: std::sync::Arc<Woken>| counter.0.load(std::sync::atomic::Ordering::Relaxed) > 0);
        assert!(is_woken || taken == count, "a change came, and the subscriber sleeps");
    });
}

/// The change comes before the drain, between the drain and the registration of the waker, or after the registration.
/// The subscriber waits once: a second wait would find a change that the first wait missed.
#[test]
fn a_subscriber_that_waits_is_woken_by_a_change() {
    waits(3, 1, 1, false);
}

#[test]
fn a_subscriber_that_waits_is_woken_by_one_of_two_changes() {
    waits(3, 2, 2, false);
}

/// The thread that drops the other subscription takes the stack of waiters, before or while the writer takes it.
#[test]
fn a_subscriber_that_waits_is_woken_although_another_one_is_dropped() {
    waits(2, 1, 2, true);
}
