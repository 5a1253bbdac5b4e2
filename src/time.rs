//! Ticks: the table's own time, in milliseconds; and the tick up to which routes expire, which stands still after a
//! stop.
//!
//! A process that was stopped (SIGSTOP, a suspended or migrated machine, swapping) has received no heartbeats, and the
//! clock has advanced meanwhile. Without a grace, the first look-up after the stop would find every route expired.
//!
//! A [`SweepPace`](crate::SweepPace) reads the clock several times in each heartbeat interval, a third of the
//! keep-alive interval. So if no call read the clock for longer than a heartbeat interval, the process was stopped or
//! the clock jumped. The first call after the stop notices the stop: each call compares the clock with the last tick
//! that was seen. That call begins a grace, before it or any other call acts on the new time.
//!
//! During the grace, [`Now::expiry`] stays at the last tick before the stop, so no further route expires. [`Now::tick`]
//! continues, so ages are true and refreshes get the real time. The effective keep-alive interval is the set interval
//! plus the difference between the two ticks. When the clock has advanced by a heartbeat interval, `expiry` becomes
//! equal to `tick` again. `expiry` never decreases, so an expired route never becomes valid again. Therefore a longer
//! effective interval needs no grace period of the epoch (see `keep_alive.rs`).
//!
//! The grace always ends: the time that passes without a further stop counts down the grace. A further stop restarts
//! the grace, but only [`MAX_RESTARTS`] times.
//!
//! The expiry brake (`brake.rs`) holds expiry in the same way, for longer. After a stop during a hold or a grace, at
//! least a heartbeat interval is left. A restart is like a stop from the time when the snapshot was written:
//! [`Ages::Grace`](crate::snapshot::Ages::Grace) holds expiry at that time for a keep-alive interval.
//!
//! One word has both the last tick that was seen and the ticks that are left of the grace or hold, so one CAS decides.
//! The fast path is one load and one comparison. The word equals the clock's tick if no grace or hold is left and no
//! millisecond has passed.

#[cfg(all(test, loom))]
mod models;

use std::sync::atomic;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::clock::Clock;
use crate::sync::{AtomicU64, Ordering};
use crate::word::{LAST_TICK, TIME_BITS};

/// The tick at which a table starts: 24.8 days, so that a new table can load ages of up to 24.8 days.
const FIRST_TICK: u64 = 1 << 31;

/// How far the wall clock may drift from the ticks before their relation is set again.
const WALL_TOLERANCE_MS: u64 = 50;

/// The most time between the readings of the two clocks for the wall clock's reading to be used, and the number of
/// tries. Times of day are wrong by at most the sum of this and the tolerance.
const WALL_ERROR_MS: u64 = 10;
const WALL_TRIES: usize = 4;

/// The longest grace or hold: 18.6 hours.
const MAX_GRACE: u64 = (1 << (64 - TIME_BITS)) - 1;

/// A time without a reading is no stop if it is shorter than this, even if the heartbeat interval is shorter. The
/// system may run other threads meanwhile.
const LEAST_STOP: u64 = if cfg!(loom) { 1 } else { 100 };

/// How many stops may restart one grace or hold.
const MAX_RESTARTS: u32 = 8;

/// The time of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// The present tick.
    pub(crate) tick: u64,
    /// The tick that decides what is expired: earlier than `tick` in a grace or hold, otherwise the same.
    pub(crate) expiry: u64,
}

impl Now {
    /// By how many ticks the effective keep-alive interval is longer than the interval that was set.
    #[inline]
    pub(crate) fn raise(self) -> u64 {
        self.tick - self.expiry
    }

    /// The time of a call that refreshes nothing and returns no age. Only the tick of expiry counts, so a look-up
    /// computes no raise.
    #[inline]
    pub(crate) fn of_look_up(self) -> Self {
        Self {
            tick: self.expiry,
            expiry: self.expiry,
        }
    }
}

/// Ticks that never decrease, and their relation to the wall clock.
#[derive(Debug)]
pub(crate) struct Time {
    clock: Box<dyn Clock>,
    /// The clock's reading at `FIRST_TICK`.
    origin: Duration,
    /// The latest tick that was seen, and above it the ticks that are left of a grace or hold.
    seen: AtomicU64,
    /// The tick of expiry while a grace or hold is left.
    stopped_at: AtomicU64,
    /// How many stops have restarted this grace or hold. An atomic of `std` even under loom: the count orders nothing.
    restarts: atomic::AtomicU32,
    /// The heartbeat interval in ticks if a sweeper reads the clock more often, otherwise `u64::MAX`.
    longest_step: AtomicU64,
    /// Milliseconds since the Unix epoch at tick zero, plus 2^62 so that the value is not negative.
    wall_of_zero: AtomicU64,
}

const WALL_OFFSET: u64 = 1 << 62;

impl Time {
    pub(crate) fn new(clock: Box<dyn Clock>) -> Self {
        let time = Self {
            origin: clock.monotonic(),
            clock,
            seen: AtomicU64::new(FIRST_TICK),
            stopped_at: AtomicU64::new(0),
            restarts: atomic::AtomicU32::new(0),
            longest_step: AtomicU64::new(u64::MAX),
            wall_of_zero: AtomicU64::new(0),
        };
        time.look_at_the_wall();
        time
    }

    /// The present time. If the clock goes backwards, this stays at the latest tick that any thread saw. It also stays
    /// at [`LAST_TICK`], 8.7 years after the table was made.
    #[inline]
    pub(crate) fn now(&self) -> Now {
        let tick = self.reading();
        // Relaxed: a tick orders nothing, and no grace is left. Coherence ensures that a later call sees no earlier
        // tick.
        if self.seen.load(Ordering::Relaxed) == tick {
            return Now { tick, expiry: tick };
        }
        self.advance(tick)
    }

    /// Advances the latest tick that was seen to `tick`, unless it is later.
    #[cold]
    fn advance(&self, tick: u64) -> Now {
        // Acquire, here and on failure: pairs with the CAS, so that a thread that sees a grace sees its `stopped_at`.
        let mut word = self.seen.load(Ordering::Acquire);
        loop {
            let (seen, left) = (word & LAST_TICK, word >> TIME_BITS);
            if tick <= seen {
                return self.at(seen, left);
            }
            let left_now = self.grace_after(tick - seen, left);
            if left == 0 && left_now > 0 {
                // `fetch_max`: another thread may have begun this grace or a later grace. Even if the CAS below fails,
                // `seen` was a tick of expiry. Relaxed: the CAS publishes it.
                self.stopped_at.fetch_max(seen, Ordering::Relaxed);
            }
            // Release: publishes `stopped_at`.
            let advanced =
                self.seen
                    .compare_exchange(word, left_now << TIME_BITS | tick, Ordering::Release, Ordering::Acquire);
            match advanced {
                Ok(_) => {
                    if left_now > 0 && left_now >= left {
                        // Relaxed: the count orders nothing.
                        let restarts = if left == 0 {
                            0
                        } else {
                            self.restarts.load(Ordering::Relaxed) + 1
                        };
                        self.restarts.store(restarts, Ordering::Relaxed);
                    }
                    return self.at(tick, left_now);
                }
                Err(won) => word = won,
            }
        }
    }

    /// Returns how many ticks are left of a grace or hold after a step of the clock.
    fn grace_after(&self, step: u64, left: u64) -> u64 {
        // Relaxed, both: `longest_step` is one value, from any pause of the sweeper; the count of restarts orders
        // nothing.
        let longest_step = self.longest_step.load(Ordering::Relaxed);
        let may_grow = || left == 0 || self.restarts.load(Ordering::Relaxed) < MAX_RESTARTS;
        if step > longest_step && may_grow() {
            left.max(longest_step.min(MAX_GRACE))
        } else {
            left.saturating_sub(step)
        }
    }

    fn at(&self, tick: u64, left: u64) -> Now {
        let expiry = match left {
            0 => tick,
            // Relaxed: `advance` loaded or stored the grace's word after `stopped_at` was raised. It is later than
            // `tick` only if a later grace has begun meanwhile.
            _ => self.stopped_at.load(Ordering::Relaxed).min(tick),
        };
        Now { tick, expiry }
    }

    /// Holds expiry at the present tick for the next `most` ticks, or until [`release`](Self::release). Returns
    /// `false`, and does nothing, if there is a grace or a hold.
    pub(crate) fn hold(&self, most: u64) -> bool {
        let tick = self.now().tick;
        // Relaxed: this call reads no `stopped_at`.
        let word = self.seen.load(Ordering::Relaxed);
        // If the tick has advanced, or a grace has begun, the next step of the sweeper tries again.
        if word != tick {
            return false;
        }
        // Relaxed, both: as in `advance`.
        self.stopped_at.fetch_max(tick, Ordering::Relaxed);
        self.restarts.store(0, Ordering::Relaxed);
        // Release: publishes `stopped_at`. Pairs with the loads in `advance`.
        let held = most.min(MAX_GRACE) << TIME_BITS | tick;
        self.seen
            .compare_exchange(word, held, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    /// Holds expiry at the tick `since`, which may be earlier than the table, or at a later tick of an earlier hold.
    /// The hold lasts for the next `most` ticks, or longer if a longer grace or hold is left. The table has no routes,
    /// so no expired route becomes valid again.
    pub(crate) fn hold_since(&self, since: u64, most: u64) {
        self.now();
        // Relaxed, both: as in `hold`.
        self.stopped_at.fetch_max(since, Ordering::Relaxed);
        self.restarts.store(0, Ordering::Relaxed);
        let most = most.min(MAX_GRACE);
        // Release: publishes `stopped_at`, as in `hold`. Relaxed: this call reads no `stopped_at`.
        _ = self.seen.fetch_update(Ordering::Release, Ordering::Relaxed, |word| {
            Some((word >> TIME_BITS).max(most) << TIME_BITS | word & LAST_TICK)
        });
    }

    /// Ends a hold or a grace.
    pub(crate) fn release(&self) {
        // Relaxed, both: the update publishes no `stopped_at`, and orders nothing.
        _ = self
            .seen
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| Some(word & LAST_TICK));
    }

    /// Returns how many ticks are left of a grace or hold.
    pub(crate) fn hold_left(&self) -> u64 {
        self.now();
        // Relaxed: one value.
        self.seen.load(Ordering::Relaxed) >> TIME_BITS
    }

    /// Sets the heartbeat interval, in ticks. From now on, a sweeper reads the clock more often, and a longer time
    /// without a reading is a stop. With `u64::MAX`, no time is.
    pub(crate) fn set_longest_step(&self, ticks: u64) {
        // The time since the last reading is not a stop if no thread was bound to read the clock.
        self.now();
        // Relaxed: as in `grace_after`.
        self.longest_step.store(ticks.max(LEAST_STOP), Ordering::Relaxed);
    }

    /// The tick that the clock reads, even if it went backwards.
    #[inline]
    fn reading(&self) -> u64 {
        let since = self.clock.monotonic().saturating_sub(self.origin);
        let ms = since
            .as_secs()
            .saturating_mul(1_000)
            .saturating_add(u64::from(since.subsec_millis()));
        ms.min(LAST_TICK - FIRST_TICK) + FIRST_TICK
    }

    /// A tick as a time of day.
    pub(crate) fn wall(&self, tick: u64) -> SystemTime {
        // Relaxed: one value, from any reading of the wall clock.
        let ms = self
            .wall_of_zero
            .load(Ordering::Relaxed)
            .wrapping_add(tick)
            .wrapping_sub(WALL_OFFSET) as i64;
        after_epoch(ms)
    }

    /// The wall clock, in milliseconds since the Unix epoch.
    pub(crate) fn wall_clock(&self) -> i64 {
        match self.clock.wall().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_millis()).unwrap_or(i64::MAX / 4),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX / 4),
        }
    }

    /// Sets the relation between ticks and the wall clock again if the wall clock was stepped. Otherwise keeps the
    /// relation, so that the time of day of a route's refresh stays the same.
    pub(crate) fn look_at_the_wall(&self) {
        if let Some(wall_of_zero) = self.wall_of_zero_now() {
            // Relaxed, both: as in `wall`.
            if self.wall_of_zero.load(Ordering::Relaxed).abs_diff(wall_of_zero) > WALL_TOLERANCE_MS {
                self.wall_of_zero.store(wall_of_zero, Ordering::Relaxed);
            }
        }
    }

    /// The wall clock at tick zero, from a reading of both clocks. `None` if too much time passed between the readings
    /// at each try, unless there is no earlier value.
    fn wall_of_zero_now(&self) -> Option<u64> {
        let read = |_| {
            let before = self.reading();
            let wall = self.wall_clock() as u64;
            let apart = self.reading().saturating_sub(before);
            (apart, WALL_OFFSET.wrapping_add(wall).wrapping_sub(before + apart / 2))
        };
        let mut best = read(0);
        for again in 1..WALL_TRIES {
            if best.0 <= WALL_ERROR_MS {
                break;
            }
            best = best.min(read(again));
        }
        // Relaxed: as in `wall`.
        let is_first = self.wall_of_zero.load(Ordering::Relaxed) == 0;
        (best.0 <= WALL_ERROR_MS || is_first).then_some(best.1)
    }
}

/// A time of day from milliseconds since the Unix epoch; the epoch if the time is out of range.
pub(crate) fn after_epoch(ms: i64) -> SystemTime {
    let since = Duration::from_millis(ms.unsigned_abs());
    let time = if ms >= 0 {
        UNIX_EPOCH.checked_add(since)
    } else {
        UNIX_EPOCH.checked_sub(since)
    };
    time.unwrap_or(UNIX_EPOCH)
}

/// Whole ticks, rounded up, so that no route expires too early.
pub(crate) fn ticks(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000))
        .unwrap_or(LAST_TICK)
        .min(LAST_TICK)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// The clock of a thread that is stopped for some milliseconds after each reading of the wall clock.
    #[derive(Debug)]
    struct Stopping {
        now_ms: Mutex<u64>,
        stops_ms: Mutex<Vec<u64>>,
    }

    impl Clock for std::sync::Arc<Stopping> {
        fn monotonic(&self) -> Duration {
            Duration::from_millis(*self.now_ms.lock().expect("no test panicked"))
        }

        fn wall(&self) -> SystemTime {
            let mut now = self.now_ms.lock().expect("no test panicked");
            let wall = UNIX_EPOCH + Duration::from_millis(1_000_000 + *now);
            *now += self.stops_ms.lock().expect("no test panicked").pop().unwrap_or(0);
            wall
        }
    }

    #[test]
    fn a_thread_that_is_stopped_between_two_clocks_shifts_no_time() {
        // Up to two readings, of four tries each.
        for stops in 0..=8 {
            let clock = std::sync::Arc::new(Stopping {
                now_ms: Mutex::new(0),
                stops_ms: Mutex::new(Vec::new()),
            });
            let time = Time::new(Box::new(std::sync::Arc::clone(&clock)));
            *clock.stops_ms.lock().expect("no test panicked") = vec![9_000; stops];
            for _ in 0..3 {
                time.look_at_the_wall();
                let shown = time.wall(time.reading());
                let real =
                    UNIX_EPOCH + Duration::from_millis(1_000_000 + *clock.now_ms.lock().expect("no test panicked"));
                let error = shown.duration_since(real).unwrap_or_else(|error| error.duration());
                assert!(
                    error <= Duration::from_millis(WALL_TOLERANCE_MS + WALL_ERROR_MS),
                    "{error:?} with {stops} stops"
                );
            }
        }
    }
}
