//! The acceptor: one loop for the whole server.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::limits::{ACCEPT_BACKOFF, MAX_ACCEPT_BACKOFF};
use crate::server::worker::Workers;

/// Accepts for ever. A connection is accepted once there is a place for it; until then it waits in the kernel's
/// backlog.
pub(crate) async fn accept(listener: &TcpListener, workers: &mut Workers, places: &Arc<Semaphore>) -> Infallible {
    let mut backoff = Backoff::default();
    let all = places.available_permits();
    let mut full = false;
    loop {
        match places.available_permits() {
            0 if !full => {
                full = true;
                warn!("{all} connections, which is the limit: further ones have to wait");
            }
            // Not told again until it was clearly over: connections come and go at the limit.
            free if free > all / 8 => full = false,
            _ => {}
        }
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(places).acquire_owned().await else {
            continue;
        };
        match listener.accept().await.and_then(|(stream, _)| {
            stream.set_nodelay(true)?;
            stream.into_std()
        }) {
            Ok(stream) => {
                backoff = Backoff::default();
                workers.hand_over(stream, place);
            }
            // The client is gone again, which says nothing about the next one.
            Err(error) if of_connection(&error) => debug!(%error, "a connection was lost before it was served"),
            // Out of descriptors or memory. The connection stays in the backlog, so trying again at once would only
            // burn a core.
            Err(error) => {
                let pause = backoff.next();
                warn!(%error, "cannot accept connections, trying again in {pause:?}");
                sleep(pause).await;
            }
        }
    }
}

fn of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput | NotConnected
    )
}

/// The pauses between failures to accept.
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
