//! The acceptor: one loop for the whole server, which hands connections to the workers.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::limits::{ACCEPT_BACKOFF, MAX_ACCEPT_BACKOFF};
use crate::server::listen::Listeners;
use crate::server::worker::Workers;

/// Accepts connections. Never returns. A connection waits in the kernel's backlog until one of `slots` is free.
pub(super) async fn accept(listeners: &mut Listeners, workers: &mut Workers, slots: &Arc<Semaphore>) -> Infallible {
    let mut backoff = Backoff::default();
    let limit = slots.available_permits();
    let mut is_full = false;
    loop {
        match slots.available_permits() {
            0 if !is_full => {
                is_full = true;
                warn!("{limit} connections, which is the limit: further ones have to wait");
            }
            // The warning is repeated only after many slots were free: connections come and go at the limit.
            free if free > limit / 8 => is_full = false,
            _ => {}
        }
        // The semaphore is never closed.
        let Ok(slot) = Arc::clone(slots).acquire_owned().await else {
            continue;
        };
        match listeners.accept().await.and_then(|(stream, peer)| {
            stream.set_nodelay(true)?;
            Ok((stream.into_std()?, peer))
        }) {
            Ok((stream, peer)) => {
                backoff = Backoff::default();
                workers.hand_over(stream, peer, slot);
            }
            // This client is gone; the next client may be fine.
            Err(error) if concerns_one_connection(&error) => {
                debug!(%error, "a connection was lost before it was served")
            }
            // Descriptors or memory ran out. The connection stays in the backlog, so an immediate retry would burn a core.
            Err(error) => {
                let pause = backoff.next();
                warn!(%error, "cannot accept connections, trying again in {pause:?}");
                sleep(pause).await;
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
