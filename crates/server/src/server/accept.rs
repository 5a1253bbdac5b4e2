//! The acceptor: one loop for the whole server, which hands connections to the workers.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_immediate;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::http2::idle::IdleConnections;
use crate::limits::{ACCEPT_BACKOFF, MAKE_ROOM_INTERVAL, MAX_ACCEPT_BACKOFF};
use crate::refusal::{Reason, Refusals};
use crate::server::listen::Listeners;
use crate::server::worker::Workers;

/// Accepts connections. Never returns. If none of `slots` is free, one connection waits here, and the others in the kernel's
/// backlog.
pub(super) async fn accept(
    listeners: &mut Listeners,
    workers: &mut Workers,
    slots: &Arc<Semaphore>,
    idle: &IdleConnections,
    refusals: &Refusals,
) -> Infallible {
    let mut backoff = Backoff::default();
    let mut slots = Slots {
        free: slots,
        limit: slots.available_permits(),
        is_full: false,
    };
    loop {
        match listeners.accept().await.and_then(|(stream, peer)| {
            stream.set_nodelay(true)?;
            Ok((stream.into_std()?, peer))
        }) {
            Ok((stream, peer)) => {
                backoff = Backoff::default();
                let slot = slots.take(idle, refusals).await;
                workers.hand_over(stream, peer, slot);
            }
            // This client is gone; the next client may be fine.
            Err(error) if concerns_one_connection(&error) => {
                debug!(%error, "a connection was lost before it was served")
            }
            // Descriptors or memory ran out. The connection stays in the backlog, so an immediate retry would burn a core.
            Err(error) => {
                let pause = backoff.next();
                refusals.refuse(Reason::Accept);
                warn!(%error, "cannot accept connections, trying again in {pause:?}");
                idle.make_room(1);
                sleep(pause).await;
            }
        }
    }
}

/// The slots of connections.
struct Slots<'s> {
    free: &'s Arc<Semaphore>,
    limit: usize,
    /// Set when no slot is free, and cleared when many slots are free.
    is_full: bool,
}

impl Slots<'_> {
    /// Waits for a free slot. Idle connections make room meanwhile, an eighth of all at a time.
    async fn take(&mut self, idle: &IdleConnections, refusals: &Refusals) -> OwnedSemaphorePermit {
        let mut slot = pin!(Arc::clone(self.free).acquire_owned());
        if let Some(slot) = poll_immediate(slot.as_mut()).await {
            self.is_full &= self.free.available_permits() <= self.limit / 8;
            return slot.expect("the semaphore is never closed");
        }
        refusals.refuse(Reason::Connections);
        // The warning is repeated only after many slots were free: connections come and go at the limit.
        if !self.is_full {
            self.is_full = true;
            let limit = self.limit;
            warn!("connection limit ({limit}) reached; new connections wait until idle ones have made room");
        }
        loop {
            idle.make_room(self.limit.div_ceil(8));
            if let Ok(slot) = timeout(MAKE_ROOM_INTERVAL, slot.as_mut()).await {
                return slot.expect("the semaphore is never closed");
            }
        }
    }
}

/// Reports whether an error to accept concerns one connection, not the listener.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput | NotConnected
    )
}

/// The pause after a failure to accept, which doubles with each failure in a row.
struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(ACCEPT_BACKOFF)
    }
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(MAX_ACCEPT_BACKOFF);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
