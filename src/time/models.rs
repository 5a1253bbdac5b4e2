//! Loom models of the first calls after a stop, and of a hold; see `src/shard/models.rs`.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::ManualClock;
use crate::sync::epoch;

const HEARTBEAT: u64 = 10;

/// Both calls find a word from before the stop, or one finds the grace that the other began.
#[test]
fn of_the_first_calls_after_a_stop_none_expires_a_route() {
    epoch::check(3, || {
        let clock = ManualClock::new();
        let time = Arc::new(Time::new(Box::new(clock.clone())));
        time.set_longest_step(HEARTBEAT);
        clock.advance(Duration::from_millis(HEARTBEAT));
        let before = time.now().tick;
        clock.advance(Duration::from_millis(100 * HEARTBEAT));
        let after = before + 100 * HEARTBEAT;
        let look_up = move |time: &Time| {
            let now = time.now();
            assert_eq!((now.expiry, now.tick), (before, after));
        };
        let other = thread::spawn({
            let time = Arc::clone(&time);
            move || look_up(&time)
        });
        look_up(&time);
        other.join().expect("it ends");
        clock.advance(Duration::from_millis(HEARTBEAT));
        let now = time.now();
        assert_eq!((now.expiry, now.tick), (after + HEARTBEAT, after + HEARTBEAT));
    });
}

/// The clock advances, and is read, before, during and after the hold. Each CAS of the hold may meet that of a reading.
#[test]
fn expiry_never_decreases_while_a_hold_begins_and_ends() {
    epoch::check(3, || {
        let clock = ManualClock::new();
        let time = Arc::new(Time::new(Box::new(clock.clone())));
        let other = thread::spawn({
            let time = Arc::clone(&time);
            move || {
                let before = time.now();
                clock.advance(Duration::from_millis(1));
                let after = time.now();
                assert!(before.expiry <= after.expiry && after.expiry <= after.tick);
                after
            }
        });
        let before = time.now();
        let is_held = time.hold(HEARTBEAT);
        let during = time.now();
        assert!(before.expiry <= during.expiry && during.expiry <= during.tick);
        if is_held {
            assert!(during.expiry <= before.tick + 1);
            assert!(time.hold_left() > 0);
        }
        time.release();
        assert_eq!(time.hold_left(), 0);
        let last = time.now();
        assert!(during.expiry <= last.expiry && last.expiry == last.tick);
        assert!(other.join().expect("it ends").expiry <= time.now().expiry);
    });
}
