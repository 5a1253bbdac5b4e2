//! The acceptor: one loop for the whole server, which hands connections to the workers.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_immediate;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};

use crate::client_key::ClientKey;
use crate::limits::{ACCEPT_BACKOFF, ASK_INTERVAL, MAKE_ROOM_INTERVAL, MAX_ACCEPT_BACKOFF, MAX_WAITING};
use crate::log::peer::with_peer;
use crate::quota::Quotas;
use crate::refusal::{Reason, Refusals};
use crate::server::listen::Listeners;
use crate::server::worker::{Incoming, Workers};

/// Accepts connections. Never returns. If none of `slots` is free, one connection waits here, and the others in the
/// kernel's backlog. If the client of a connection has its share of the slots, the connection waits without delaying
/// other clients. `max_connections` is the number of all slots, free or not.
pub(super) async fn accept(
    listeners: &mut Listeners,
    workers: &mut Workers,
    slots: &Arc<Semaphore>,
    max_connections: usize,
    quotas: &Arc<Quotas>,
    refusals: &Refusals,
) -> Infallible {
    let mut backoff = Backoff::default();
    let mut slots = Slots::new(slots, max_connections);
    let mut waiting = Waiting::default();
    loop {
        let accepted = tokio::select! {
            // Waiting connections first: otherwise a flood of new connections would delay them.
            biased;
            waited = waiting.next() => {
                match waited {
                    Waited::HasSlot(incoming, client_slot) => {
                        let slot = slots.take(incoming.peer, quotas, refusals).await;
                        workers.hand_over(incoming, [slot, client_slot]);
                    }
                    Waited::Closed(peer) => refuse(Reason::AddressConnections, peer, refusals),
                }
                continue;
            }
            accepted = listeners.accept() => accepted,
        };
        match accepted.and_then(|(stream, peer)| {
            stream.set_nodelay(true)?;
            Ok((stream.into_std()?, peer))
        }) {
            Ok((stream, peer)) => {
                backoff = Backoff::default();
                let client = quotas.register(ClientKey::from(peer.ip()));
                let client_slot = client.try_slot();
                let incoming = Incoming { stream, peer, client };
                match client_slot {
                    Some(client_slot) => {
                        let slot = slots.take(incoming.peer, quotas, refusals).await;
                        workers.hand_over(incoming, [slot, client_slot]);
                    }
                    None => waiting.push(incoming, refusals),
                }
            }
            // This client is gone; the next client may be fine.
            Err(error) if concerns_one_connection(&error) => {
                debug!(%error, "a connection was lost before it was served")
            }
            // Descriptors or memory ran out. The connection stays in the backlog, so an immediate retry would burn a
            // core.
            Err(error) => {
                let pause = backoff.next();
                refusals.refuse(Reason::Accept);
                warn!(%error, "cannot accept connections, trying again in {pause:?}");
                quotas.make_room(1);
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
    /// The connections that were last asked to make room, and when.
    asked: Option<(usize, Instant)>,
}

impl<'s> Slots<'s> {
    fn new(free: &'s Arc<Semaphore>, limit: usize) -> Self {
        Self {
            free,
            limit,
            is_full: false,
            asked: None,
        }
    }

    /// Asks idle connections to make room, unless they were asked before within [`ASK_INTERVAL`]. The acceptor does not
    /// know how many new connections wait in the kernel. So it first asks one connection, and then twice as many each
    /// time, up to an eighth of all connections. It begins with one again if no new connection came for
    /// [`MAKE_ROOM_INTERVAL`].
    fn make_room(&mut self, quotas: &Quotas) -> bool {
        let last = self.asked.filter(|(_, when)| when.elapsed() < MAKE_ROOM_INTERVAL);
        let part = last.map_or(1, |(part, _)| 2 * part).min(self.part());
        let is_asked = quotas.make_room(part);
        if is_asked {
            self.asked = Some((part, Instant::now()));
        }
        is_asked
    }

    /// Returns the most connections that are asked at a time.
    fn part(&self) -> usize {
        self.limit.div_ceil(8)
    }

    /// Waits for a free slot for a client. Idle connections make room meanwhile. If too few connections are idle,
    /// connections of the client with the most connections make room: a client may keep a call in flight on each
    /// connection.
    async fn take(&mut self, peer: SocketAddr, quotas: &Quotas, refusals: &Refusals) -> OwnedSemaphorePermit {
        let mut slot = pin!(Arc::clone(self.free).acquire_owned());
        if let Some(slot) = poll_immediate(slot.as_mut()).await {
            self.is_full &= self.free.available_permits() <= self.limit / 8;
            return slot.expect("the semaphore is never closed");
        }
        refuse(Reason::Connections, peer, refusals);
        // The warning is repeated only after many slots were free: connections come and go at the limit.
        if !self.is_full {
            self.is_full = true;
            let limit = self.limit;
            warn!("connection limit ({limit}) reached; new connections wait until idle connections have made room");
        }
        let mut largest_due = Instant::now() + MAKE_ROOM_INTERVAL;
        loop {
            // Connections that come one after the other share a question: it wakes many connections.
            let wait = match self.make_room(quotas) {
                true => MAKE_ROOM_INTERVAL,
                false => ASK_INTERVAL,
            };
            if let Ok(slot) = timeout(wait, slot.as_mut()).await {
                return slot.expect("the semaphore is never closed");
            }
            if Instant::now() >= largest_due {
                quotas.make_room_of_largest(self.part());
                largest_due += MAKE_ROOM_INTERVAL;
            }
        }
    }
}

/// The connections that wait because their client has its share of the slots.
#[derive(Default)]
struct Waiting {
    tasks: JoinSet<Waited>,
}

/// The result of a wait for a slot.
enum Waited {
    HasSlot(Incoming, OwnedSemaphorePermit),
    /// The connection of this client is closed.
    Closed(SocketAddr),
}

impl Waiting {
    /// Lets a connection wait until its client has a slot, or closes the connection if too many wait.
    fn push(&mut self, incoming: Incoming, refusals: &Refusals) {
        let permit = incoming.client.try_wait();
        if permit.is_none() || self.tasks.len() >= MAX_WAITING {
            return refuse(Reason::AddressConnections, incoming.peer, refusals);
        }
        self.tasks.spawn(async move {
            let waited = wait(incoming).await;
            drop(permit);
            waited
        });
    }

    /// Returns the result of the next connection that ends its wait. Never returns if no connection waits.
    async fn next(&mut self) -> Waited {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(waited)) => return waited,
                // A task that panicked has closed its connection.
                Some(Err(_)) => {}
                None => pending().await,
            }
        }
    }
}

/// Counts and logs a refusal of a client whose connection has no worker.
fn refuse(reason: Reason, peer: SocketAddr, refusals: &Refusals) {
    with_peer(Some(peer), || refusals.refuse(reason));
}

/// Waits until a client has a slot.
async fn wait(incoming: Incoming) -> Waited {
    let slot = incoming.client.wait_for_slot().await;
    match slot {
        Some(slot) => Waited::HasSlot(incoming, slot),
        None => Waited::Closed(incoming.peer),
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
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::grpc::method::MethodTable;
    use crate::http2::connection::{self, tests::context};
    use crate::limits::{Limits, MAX_CONNECTION_WAIT, MAX_WAITING_PER_CLIENT};
    use crate::tls::Certificates;

    /// A connection over the loopback interface, and its client's side.
    fn incoming(quotas: &Arc<Quotas>, client: u64) -> (Incoming, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let stream = TcpStream::connect(listener.local_addr().expect("an address")).expect("the port is open");
        let (accepted, peer) = listener.accept().expect("a client has connected");
        let client = quotas.register(ClientKey::V6(client));
        let incoming = Incoming {
            stream: accepted,
            peer,
            client,
        };
        (incoming, stream)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_over_the_share_waits_for_a_slot_and_is_closed_at_last() {
        let limits = Limits {
            max_connections: 2,
            ..Limits::default()
        };
        let quotas = Quotas::new(&limits);
        let refusals = Refusals::default();
        let mut waiting = Waiting::default();
        let client = quotas.register(ClientKey::V6(1));
        let slot = client.try_slot().expect("one slot");
        let held = client.evictable();

        let begin = Instant::now();
        waiting.push(incoming(&quotas, 1).0, &refusals);
        assert!(matches!(waiting.next().await, Waited::Closed(_)));
        assert_eq!(begin.elapsed(), MAX_CONNECTION_WAIT);
        assert!(!held.asked().await.has_to_end(false));

        // Another connection of the client ends meanwhile.
        waiting.push(incoming(&quotas, 1).0, &refusals);
        assert!(timeout(MAKE_ROOM_INTERVAL, waiting.next()).await.is_err());
        drop(slot);
        let Waited::HasSlot(_, slot) = waiting.next().await else {
            panic!("a slot is free");
        };

        // Few wait.
        for number in 0..MAX_WAITING_PER_CLIENT + 5 {
            waiting.push(incoming(&quotas, 1).0, &refusals);
            assert!(waiting.tasks.len() <= MAX_WAITING_PER_CLIENT, "{number}");
        }
        let closed = refusals
            .counts()
            .find(|&(reason, _)| reason == Reason::AddressConnections);
        assert_eq!(closed, Some((Reason::AddressConnections, 5)));
        // The places are free again afterwards.
        for _ in 0..MAX_WAITING_PER_CLIENT {
            assert!(matches!(waiting.next().await, Waited::Closed(_)));
        }
        waiting.push(incoming(&quotas, 1).0, &refusals);
        assert_eq!(waiting.tasks.len(), 1);
        drop(slot);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_many_busy_connections_makes_room() {
        let quotas = Quotas::new(&Limits::default());
        let free = Arc::new(Semaphore::new(8));
        let mut held: Vec<_> = (0..8)
            .map(|_| {
                (
                    quotas.register(ClientKey::V6(1)),
                    Arc::clone(&free).try_acquire_owned().expect("a slot"),
                )
            })
            .collect();
        let (new, _client) = incoming(&quotas, 2);
        let connection = held[0].0.evictable();
        let waiting = tokio::spawn(async move {
            let mut slots = Slots::new(&free, 8);
            slots.take(new.peer, &quotas, &Refusals::default()).await
        });
        let begin = Instant::now();
        while !connection.asked().await.has_to_end(false) {}
        assert_eq!(begin.elapsed(), MAKE_ROOM_INTERVAL);
        held.pop();
        let _slot = waiting.await.expect("a slot is free");
    }

    /// Clients of different addresses that send nothing must not shut others out.
    #[tokio::test(start_paused = true)]
    async fn connections_whose_clients_send_nothing_make_room() {
        let (certificates, _) = Certificates::valid_until(std::time::SystemTime::now() + Duration::from_secs(3600));
        for tls in [None, Some(certificates)] {
            let quotas = Quotas::new(&Limits::default());
            let free = Arc::new(Semaphore::new(4));
            let (_draining, mut context) = context(MethodTable::new(Vec::new()), Limits::default());
            context.tls = tls;
            let mut silent = Vec::new();
            for number in 0..4 {
                let (Incoming { stream, client, .. }, of_client) = incoming(&quotas, number);
                stream.set_nonblocking(true).expect("a socket");
                let slot = Arc::clone(&free).try_acquire_owned().expect("a slot");
                let client_slot = client.try_slot().expect("a slot");
                let context = context.clone();
                tokio::spawn(async move {
                    connection::serve(stream, client, client_slot, context, number).await;
                    drop(slot);
                });
                silent.push(of_client);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            let (new, _of_client) = incoming(&quotas, 9);
            let mut slots = Slots::new(&free, 4);
            let refusals = Refusals::default();
            let slot = timeout(Duration::from_secs(2), slots.take(new.peer, &quotas, &refusals));
            let _slot = slot.await.expect("a connection without a client has made room");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn few_idle_connections_make_room_for_few_new_connections_and_many_for_many() {
        const ALL: usize = 100;
        let quotas = Quotas::new(&Limits::default());
        let free = Arc::new(Semaphore::new(ALL));
        let held: Vec<_> = (0..ALL as u64)
            .map(|number| {
                let quota = quotas.register(ClientKey::V6(number));
                let slot = Arc::clone(&free).try_acquire_owned().expect("a slot");
                tokio::spawn(async move {
                    while !quota.evictable().asked().await.has_to_end(true) {}
                    drop(slot);
                })
            })
            .collect();
        tokio::task::yield_now().await;
        let ended = || held.iter().filter(|connection| connection.is_finished()).count();
        let mut slots = Slots::new(&free, ALL);
        let refusals = Refusals::default();
        let mut taken = Vec::new();
        let begin = Instant::now();
        for (number, expected) in [(1, 1), (2, 3), (3, 3), (4, 7), (7, 7), (8, 15), (16, 28), (28, 28)] {
            while taken.len() < number {
                taken.push(slots.take(([127, 0, 0, 1], 1).into(), &quotas, &refusals).await);
            }
            sleep(Duration::from_millis(1)).await;
            assert_eq!(ended(), expected, "{number}");
        }
        assert!(begin.elapsed() < MAKE_ROOM_INTERVAL);
        // Later, a new connection is alone again.
        sleep(MAKE_ROOM_INTERVAL).await;
        taken.push(slots.take(([127, 0, 0, 1], 1).into(), &quotas, &refusals).await);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(ended(), 29);
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_clients_few_connections_wait() {
        let limits = Limits {
            max_connections: 1,
            ..Limits::default()
        };
        let quotas = Quotas::new(&limits);
        let mut waiting = Waiting::default();
        let mut held = Vec::new();
        for number in 0..2 * MAX_WAITING as u64 {
            let client = quotas.register(ClientKey::V6(number));
            held.push((client.try_slot(), client));
            waiting.push(incoming(&quotas, number).0, &Refusals::default());
        }
        assert_eq!(waiting.tasks.len(), MAX_WAITING);
    }

    /// The acceptor begins again after a panic, while connections have slots.
    #[tokio::test(start_paused = true)]
    async fn an_acceptor_that_begins_at_the_limit_asks_connections_to_make_room() {
        let quotas = Quotas::new(&Limits::default());
        let held = quotas.register(ClientKey::V6(1));
        let idle = held.evictable();
        let slots = Arc::new(Semaphore::new(1));
        let slot = Arc::clone(&slots).try_acquire_owned().expect("a slot");
        let mut listeners = Listeners::bind("127.0.0.1:0").await.expect("a port is free");
        let _client = TcpStream::connect(listeners.addrs()[0]).expect("the port is open");
        let (_draining, context) = context(MethodTable::new(Vec::new()), Limits::default());
        let mut workers = Workers::start(&context).expect("threads");
        let refusals = Refusals::default();
        tokio::select! {
            never = accept(&mut listeners, &mut workers, &slots, 1, &quotas, &refusals) => match never {},
            question = timeout(MAKE_ROOM_INTERVAL, idle.asked()) => {
                assert!(question.expect("nobody is asked").has_to_end(true));
            }
        }
        drop(slot);
    }

    #[test]
    fn backoff_doubles_up_to_its_limit() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..9).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
    }
}
