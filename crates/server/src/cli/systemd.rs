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

/// Reports that the tracker stops, once it does. The service manager then waits for `limit`, and a little longer.
pub(super) async fn report_stop(stopping: CancellationToken, limit: Duration) -> Infallible {
    stopping.cancelled().await;
    let limit = limit.saturating_add(STOP_MARGIN).as_micros();
    notify(&[
        NotifyState::Stopping,
        NotifyState::Status("finishing the calls in flight"),
        NotifyState::ExtendTimeoutUsec(u32::try_from(limit).unwrap_or(u32::MAX)),
    ]);
    pending().await
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
