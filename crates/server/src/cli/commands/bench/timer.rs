//! A timer with a resolution of microseconds. tokio's timers have a resolution of a millisecond, which is longer than
//! most calls take.

use std::io;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::time::{Instant, sleep_until};

/// Waits for points in time.
pub(super) trait Timer: Send {
    /// Waits until a point in time. May be cancelled.
    fn until(&mut self, at: Instant) -> impl Future<Output = ()> + Send;
}

/// A timer of the kernel.
#[derive(Debug)]
pub(super) struct KernelTimer {
    /// The timer's file, which has the number of expiries to read. A pipe's receiver can read any such file; tokio's
    /// `AsyncFd` needs unsafe code.
    file: Receiver,
    /// When the timer will expire, if it is set.
    set_to: Option<Instant>,
}

impl KernelTimer {
    /// Creates a timer. Must be called within a tokio runtime.
    pub(super) fn new() -> io::Result<Self> {
        let file = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        Ok(Self {
            file: Receiver::from_owned_fd_unchecked(file)?,
            set_to: None,
        })
    }

    fn set(&mut self, at: Instant, now: Instant) -> io::Result<()> {
        let wait = at - now;
        let time = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: wait.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.file, TimerfdTimerFlags::empty(), &time)?;
        self.set_to = Some(at);
        Ok(())
    }
}

impl Timer for KernelTimer {
    async fn until(&mut self, at: Instant) {
        loop {
            let now = Instant::now();
            if at <= now {
                return;
            }
            if self.set_to != Some(at) && self.set(at, now).is_err() {
                return sleep_until(at).await;
            }
            let read = self.file.read(&mut [0; 8]).await;
            self.set_to = None;
            if read.is_err() {
                return sleep_until(at).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_timer_waits_and_can_be_set_again() {
        let mut timer = KernelTimer::new().unwrap();
        let begin = Instant::now();
        tokio::select! {
            biased;
            () = timer.until(begin + Duration::from_secs(3600)) => panic!("too early"),
            () = std::future::ready(()) => {}
        }
        for micros in [0, 100, 100, 2_000, 300] {
            let at = begin + Duration::from_micros(micros);
            timer.until(at).await;
            assert!(Instant::now() >= at);
        }
    }
}
