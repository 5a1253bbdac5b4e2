//! A loom model of the first calls after a stop; see `src/shard/models.rs`.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::ManualClock;

const HEARTBEAT: u64 = 10;

#[test]
fn of_the_first_calls_after_a_stop_none_expires_a_route() {
    loom::model(|| {
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
