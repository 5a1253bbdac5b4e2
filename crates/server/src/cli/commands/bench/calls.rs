//! A lane that makes unary calls.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::timeout;
use tonic::Status;

use crate::cli::commands::bench::connection::{Connection, Failed};
use crate::cli::commands::bench::lane::{Ended, Lane};
use crate::cli::commands::bench::schedule::Due;
use crate::cli::commands::bench::work::{Population, Work, nodes_done};
use crate::config::duration;

/// A call, and whether the connection is lost.
type Call = Pin<Box<dyn Future<Output = (Ended, bool)> + Send>>;

/// Unary calls of one connection.
pub(super) struct Calls {
    connection: Arc<Connection>,
    work: Work,
    population: Population,
    timeout: Duration,
    in_flight: FuturesUnordered<Call>,
    is_lost: bool,
}

impl Calls {
    pub(super) fn new(connection: Connection, work: Work, population: Population, timeout: Duration) -> Self {
        Self {
            connection: Arc::new(connection),
            work,
            population,
            timeout,
            in_flight: FuturesUnordered::new(),
            is_lost: false,
        }
    }
}

impl Lane for Calls {
    fn send(&mut self, due: Due) {
        let request = self.work.request(&self.population, due.number);
        let connection = Arc::clone(&self.connection);
        let limit = self.timeout;
        self.in_flight.push(Box::pin(async move {
            let reply = timeout(limit, connection.call(request.method, request.message)).await;
            let (outcome, is_lost) = match reply {
                Ok(Ok(reply)) => (Ok(nodes_done(request.method, request.nodes, reply)), false),
                Ok(Err(Failed { status, is_lost })) => (Err(status), is_lost),
                Err(_) => (Err(late(limit)), false),
            };
            let routes = request.nodes;
            (Ended { due, routes, outcome }, is_lost)
        }));
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    async fn ended(&mut self) -> Ended {
        match self.in_flight.next().await {
            Some((ended, is_lost)) => {
                self.is_lost |= is_lost;
                ended
            }
            // Nothing is in flight, so nothing ends.
            None => std::future::pending().await,
        }
    }

    fn is_lost(&self) -> bool {
        self.is_lost
    }
}

/// The outcome of a call without a reply in time.
pub(super) fn late(limit: Duration) -> Status {
    Status::deadline_exceeded(format!("no reply within {}", duration::format(limit)))
}
