//! systemd: the sockets that it opens, the notifications that it expects, and its watchdog. Without systemd, or another
//! service manager with the same protocol, all of this does nothing.

use std::convert::Infallible;
use std::future::pending;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::server::Liveness;

/// Time that the end of the process may take beyond its own limits.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Returns the sockets that the service manager has opened for this process (`LISTEN_FDS`); none if it has opened none.
/// Removes the variable, so the process must have only one thread. An error says what was passed instead of a TCP
/// socket.
pub(super) fn sockets() -> Result<Vec<TcpListener>, String> {
    let mut passed = ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..passed.len() {
        let socket = passed.take_tcp_listener(number);
        sockets.extend(socket.map_err(|error| format!("LISTEN_FDS: {error}"))?);
    }
    Ok(sockets)
}

/// Reports that the tracker serves.
pub(super) fn ready(addrs: &[SocketAddr]) {
    let addrs: Vec<_> = addrs.iter().map(ToString::to_string).collect();
    let status = format!("listening on {}", addrs.join(" and "));
    notify(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Reports that the tracker reads its files again. [`reloaded`] follows.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "cannot read the clock for the service manager"),
    }
}

/// Reports that the tracker has read its files again, or continues to use the files that it has loaded.
pub(super) fn reloaded() {
    notify(&[NotifyState::Ready]);
}

/// The longest time that the tracker asks the service manager for at once. One notification has room for 71 minutes.
const LONGEST_EXTENSION: Duration = Duration::from_secs(3600);

/// Reports that the tracker stops, once it does. The service manager then waits for `limit`, and a little longer.
pub(super) async fn report_stop(stopping: CancellationToken, limit: Duration) -> Infallible {
    stopping.cancelled().await;
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing the calls in flight"),
    ]);
    extend(limit.saturating_add(STOP_MARGIN), |time| {
        notify(&[NotifyState::ExtendTimeoutUsec(time)]);
    })
    .await;
    pending().await
}

/// Asks for a time in microseconds, in parts: each part is asked for while half of the part before is left.
async fn extend(mut left: Duration, ask: impl Fn(u32)) {
    loop {
        let part = left.min(LONGEST_EXTENSION);
        // The number is below a u32.
        ask(part.as_micros() as u32);
        if part == left {
            return;
        }
        sleep(part / 2).await;
        left -= part / 2;
    }
}

/// Sends a sign of life twice within the watchdog's interval, if the service manager expects signs of life. This thread
/// and each worker must have run before each sign.
pub(super) async fn feed_watchdog(liveness: Liveness) -> Infallible {
    let interval = sd_notify::watchdog_enabled().filter(|interval| !interval.is_zero());
    match interval {
        Some(interval) => feed(interval, liveness, || notify(&[NotifyState::Watchdog])).await,
        None => pending().await,
    }
}

async fn feed(interval: Duration, liveness: Liveness, sign_of_life: impl Fn()) -> Infallible {
    loop {
        liveness.check().await;
        sign_of_life();
        sleep(interval / 2).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify the service manager (NOTIFY_SOCKET)");
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_long_stop_is_asked_for_in_parts() {
        let begun = tokio::time::Instant::now();
        for (seconds, parts) in [(0, 1), (65, 1), (3600, 1), (2 * 3600, 3), (24 * 3600, 47)] {
            let limit = Duration::from_secs(seconds);
            let asked = std::cell::RefCell::new(Vec::new());
            let start = tokio::time::Instant::now();
            extend(limit, |time| {
                let until = start.elapsed() + Duration::from_micros(time.into());
                let mut asked = asked.borrow_mut();
                // Each part is asked for before the part before ends.
                assert!(
                    asked
                        .last()
                        .is_none_or(|&before| start.elapsed() < before && before < until)
                );
                asked.push(until);
            })
            .await;
            let asked = asked.into_inner();
            assert_eq!((asked.len(), asked.last()), (parts, Some(&limit)), "{seconds}");
        }
        assert!(begun.elapsed() < Duration::from_secs(26 * 3600));
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_is_stuck_starves_the_watchdog() {
        const INTERVAL: Duration = Duration::from_secs(30);
        const TIME: Duration = Duration::from_secs(299);
        let signs = Cell::new(0);
        let count = || signs.set(signs.get() + 1);
        let (liveness, worker) = Liveness::of_stuck_worker();
        let fed = timeout(TIME, feed(INTERVAL, liveness, count)).await;
        assert_eq!((fed.is_err(), signs.get()), (true, 0));
        drop(worker);
        // Nothing keeps a worker that has ended.
        let (liveness, _) = Liveness::of_stuck_worker();
        let _ = timeout(TIME, feed(INTERVAL, liveness, count)).await;
        assert_eq!(signs.get(), 20);
    }
}
