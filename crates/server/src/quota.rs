//! Quotas: the share that one client may have of the limits over all clients.
//!
//! A limit over all clients protects the server, but does not protect the clients from each other: the first client
//! could use up the limit. So a client has at most a share of each limit ([`Limits::max_share_per_client`]): of
//! connections, memory, watches, and watched nodes. The table itself counts the routes and the proxies of a client
//! ([`Caller::client`](crate::auth::Caller::client)). A client is an address; see [`ClientKey`].
//!
//! The acceptor registers each connection with its client, which is one look-up under a mutex. From then on, the
//! connection has a reference to its client's counters. When the connection and its calls have ended, one more look-up
//! removes the registration. The server keeps no state of a client without connections.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::client_key::ClientKey;
use crate::idle::{Evictable, IdleConnections, ask_clients};
use crate::limits::{ASK_INTERVAL, Limits, MAKE_ROOM_INTERVAL, MAX_CONNECTION_WAIT, MAX_WAITING_PER_CLIENT};
use crate::refusal::Reason;

/// The most that a client may have. `usize::MAX` is no limit, and so is [`Semaphore::MAX_PERMITS`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares {
    pub(crate) connections: usize,
    pub(crate) memory: usize,
    pub(crate) watches: usize,
    pub(crate) watched_size: usize,
}

impl Shares {
    pub(crate) fn new(limits: &Limits) -> Self {
        let share = |all: usize| match limits.max_share_per_client {
            100.. => usize::MAX,
            percent => (all.saturating_mul(percent as usize) / 100).max(1),
        };
        Self {
            connections: share(limits.max_connections as usize).min(Semaphore::MAX_PERMITS),
            memory: share(limits.memory),
            watches: share(limits.max_watches),
            watched_size: share(limits.max_watched_size),
        }
    }
}

/// The quotas of all clients of a server.
#[derive(Debug)]
pub(crate) struct Quotas {
    shares: Shares,
    clients: Mutex<HashMap<ClientKey, Registered, ahash::RandomState>>,
    /// The clients so far. Relaxed: counted under the lock of `clients`.
    registrations: AtomicU64,
    /// When the connections of all clients were last asked.
    last_asked: Mutex<Option<Instant>>,
}

/// A client that has connections.
#[derive(Debug)]
struct Registered {
    connections: usize,
    /// The number of clients that were registered before.
    number: u64,
    client: Arc<Client>,
}

/// The state of one client. The counters are Relaxed: they guard no data.
#[derive(Debug)]
struct Client {
    shares: Shares,
    /// A permit for each connection that the client may still open.
    slots: Arc<Semaphore>,
    /// A permit for each further connection that may wait for a slot.
    waiting: Arc<Semaphore>,
    idle: Arc<IdleConnections>,
    last_asked: Mutex<Option<Instant>>,
    memory: AtomicUsize,
    watches: AtomicUsize,
    watched_size: AtomicUsize,
}

impl Quotas {
    /// Returns the quotas of a server with these limits.
    pub(crate) fn new(limits: &Limits) -> Arc<Self> {
        Arc::new(Self {
            shares: Shares::new(limits),
            clients: Mutex::default(),
            registrations: AtomicU64::new(0),
            last_asked: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ClientKey, Registered, ahash::RandomState>> {
        // No critical section here leaves the map half changed.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a connection of a client.
    pub(crate) fn register(self: &Arc<Self>, key: ClientKey) -> ClientQuota {
        let mut clients = self.lock();
        let registered = clients.entry(key).or_insert_with(|| Registered {
            connections: 0,
            number: self.registrations.fetch_add(1, Ordering::Relaxed),
            client: Arc::new(Client::new(self.shares)),
        });
        registered.connections += 1;
        let client = Arc::clone(&registered.client);
        drop(clients);
        ClientQuota(Arc::new(Registration {
            quotas: Arc::clone(self),
            key,
            client,
        }))
    }

    /// Asks up to `connections` idle connections to end, first those of the clients with the most connections. Does
    /// nothing if connections of all clients were asked within [`ASK_INTERVAL`]. Reports whether they are asked.
    pub(crate) fn make_room(&self, connections: usize) -> bool {
        let is_due = is_due(&self.last_asked, ASK_INTERVAL);
        if is_due {
            self.ask_idle(connections);
        }
        is_due
    }

    fn ask_idle(&self, connections: usize) {
        let of_client = |registered: &Registered| (registered.number, Arc::clone(&registered.client.idle));
        let clients: Vec<_> = self.lock().values().map(of_client).collect();
        ask_clients(clients.into_iter(), connections);
    }

    /// Asks up to `connections` connections of the client with the most connections to end, idle or not. The client
    /// keeps as many connections as each client would have if all had the same number. If all have the same number, the
    /// clients that have come first end one connection each. Otherwise an attacker with many addresses could shut new
    /// clients out.
    pub(crate) fn make_room_of_largest(&self, connections: usize) {
        let clients = self.lock();
        let all: usize = clients.values().map(|registered| registered.connections).sum();
        let Some(largest) = clients.values().max_by_key(|registered| registered.connections) else {
            return;
        };
        let beyond = largest.connections - all.div_ceil(clients.len()).min(largest.connections);
        if beyond > 0 {
            return largest.client.idle.ask_busy(connections.min(beyond));
        }
        if clients.len() == 1 {
            return;
        }
        let with_most = clients
            .values()
            .filter(|client| client.connections == largest.connections);
        let mut with_most: Vec<_> = with_most.collect();
        with_most.sort_unstable_by_key(|registered| registered.number);
        for registered in with_most.into_iter().take(connections) {
            registered.client.idle.ask_busy(1);
        }
    }
}

impl Client {
    fn new(shares: Shares) -> Self {
        Self {
            shares,
            slots: Arc::new(Semaphore::new(shares.connections)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING_PER_CLIENT)),
            idle: Arc::default(),
            last_asked: Mutex::default(),
            memory: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            watched_size: AtomicUsize::new(0),
        }
    }
}

/// Reports whether connections were last asked longer than `interval` ago. If so, notes that they are asked now.
fn is_due(last_asked: &Mutex<Option<Instant>>, interval: Duration) -> bool {
    let mut last = last_asked.lock().unwrap_or_else(PoisonError::into_inner);
    let is_due = last.is_none_or(|last| last.elapsed() >= interval);
    if is_due {
        *last = Some(Instant::now());
    }
    is_due
}

/// The registration of one connection.
#[derive(Debug)]
struct Registration {
    quotas: Arc<Quotas>,
    key: ClientKey,
    client: Arc<Client>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut clients = self.quotas.lock();
        let Some(registered) = clients.get_mut(&self.key) else {
            return;
        };
        registered.connections -= 1;
        if registered.connections == 0 {
            clients.remove(&self.key);
            // The memory of the map follows the number of clients, not the peak of that number.
            if clients.len() < clients.capacity() / 4 {
                let capacity = 2 * clients.len();
                clients.shrink_to(capacity);
            }
        }
    }
}

/// The quota of one client, for one of its connections and the calls of this connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ClientQuota(Arc<Registration>);

impl ClientQuota {
    fn client(&self) -> &Client {
        &self.0.client
    }

    /// Returns the identity of the client.
    pub(crate) fn key(&self) -> ClientKey {
        self.0.key
    }

    /// Registers the connection for the client with this [identity](crate::auth::Caller::identity), which has a quota
    /// of its own.
    pub(crate) fn certified(&self, identity: u64) -> Self {
        self.0.quotas.register(ClientKey::Certified(identity))
    }

    /// Takes a slot for a connection. Returns `None` if no slot is free.
    pub(crate) fn try_slot(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.client().slots).try_acquire_owned().ok()
    }

    /// Waits for a slot for a connection, for [`MAX_CONNECTION_WAIT`]. Idle connections of the client make room
    /// meanwhile.
    pub(crate) async fn wait_for_slot(&self) -> Option<OwnedSemaphorePermit> {
        let until = Instant::now() + MAX_CONNECTION_WAIT;
        let mut slot = pin!(Arc::clone(&self.client().slots).acquire_owned());
        while Instant::now() < until {
            self.make_room();
            let next = until.min(Instant::now() + MAKE_ROOM_INTERVAL);
            if let Ok(slot) = timeout_at(next, slot.as_mut()).await {
                return slot.ok();
            }
        }
        None
    }

    /// Takes a permit for a connection that waits for a slot. Returns `None` if [`MAX_WAITING_PER_CLIENT`] connections
    /// wait.
    pub(crate) fn try_wait(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.client().waiting).try_acquire_owned().ok()
    }

    /// Asks idle connections of all clients to end: an eighth of all connections, and of this client an eighth of its
    /// share. Does each at most once in each [`MAKE_ROOM_INTERVAL`].
    pub(crate) fn make_room_of_all(&self) {
        let quotas = &self.0.quotas;
        if is_due(&quotas.last_asked, MAKE_ROOM_INTERVAL) {
            let connections: usize = quotas.lock().values().map(|registered| registered.connections).sum();
            quotas.ask_idle(connections.div_ceil(8));
        }
        self.make_room();
    }

    /// Asks idle connections of this client to end: an eighth of its share, at most once in each
    /// [`MAKE_ROOM_INTERVAL`].
    pub(crate) fn make_room(&self) {
        let client = self.client();
        if is_due(&client.last_asked, MAKE_ROOM_INTERVAL) {
            client.idle.ask(client.shares.connections.div_ceil(8));
        }
    }

    /// Returns the connection as one that can be asked to make room, from now on.
    pub(crate) fn evictable(&self) -> Evictable {
        Evictable::new(&self.client().idle)
    }

    /// Reports whether the client may hold this many more bytes.
    pub(crate) fn has_memory(&self, bytes: usize) -> bool {
        let client = self.client();
        // Two threads can exceed the share together, by one charge each.
        client.memory.load(Ordering::Relaxed).saturating_add(bytes) <= client.shares.memory
    }

    /// Charges bytes to the client.
    pub(crate) fn charge(&self, bytes: usize) {
        self.client().memory.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives bytes back.
    pub(crate) fn release(&self, bytes: usize) {
        self.client().memory.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts a watch, whose nodes take `size` bytes. The caller serializes all calls of this function.
    ///
    /// # Errors
    ///
    /// Returns the reason and a message. The message has the number that reached the limit.
    pub(crate) fn take_watch(&self, size: usize) -> Result<(), (Reason, String)> {
        let client = self.client();
        let (watches, watched) = (
            client.watches.load(Ordering::Relaxed),
            client.watched_size.load(Ordering::Relaxed),
        );
        let Shares {
            watches: most_watches,
            watched_size: most_size,
            ..
        } = client.shares;
        if watches >= most_watches {
            return Err((
                Reason::AddressWatches,
                format!("{} has {watches} watches", self.name_for_client()),
            ));
        }
        if watched.saturating_add(size) > most_size {
            let message = format!(
                "the nodes of the watches of {} take {watched} bytes of {most_size}",
                self.name_for_client()
            );
            return Err((Reason::AddressWatchedNodes, message));
        }
        client.watches.fetch_add(1, Ordering::Relaxed);
        client.watched_size.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    /// Returns how a message to the client names the client.
    fn name_for_client(&self) -> &'static str {
        match self.key() {
            ClientKey::Certified(_) => "your certificate",
            ClientKey::V4(_) | ClientKey::V6(_) => "your address",
        }
    }

    /// Ends the count of a watch, whose nodes take `size` bytes.
    pub(crate) fn release_watch(&self, size: usize) {
        self.client().watches.fetch_sub(1, Ordering::Relaxed);
        self.client().watched_size.fetch_sub(size, Ordering::Relaxed);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use futures_util::FutureExt;
    use std::net::IpAddr;

    use super::*;
    use crate::idle::Question;

    impl ClientQuota {
        /// Returns the connections of the client.
        pub(crate) fn idle(&self) -> &Arc<IdleConnections> {
            &self.client().idle
        }

        /// Returns the quota of a client that is alone and has no limits.
        pub(crate) fn alone() -> Self {
            Quotas::new(&limits(100)).register(ClientKey::V6(1))
        }
    }

    fn limits(max_share_per_client: u32) -> Limits {
        Limits {
            max_connections: 10,
            memory: 1000,
            max_share_per_client,
            ..Limits::default()
        }
    }

    fn key(addr: &str) -> ClientKey {
        ClientKey::from(addr.parse::<IpAddr>().expect("an address"))
    }

    #[test]
    fn a_client_is_an_address_or_a_network_of_ipv6() {
        assert_eq!(key("10.0.0.1"), key("::ffff:10.0.0.1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
        // A customer of a provider has 256 networks of 64 bits.
        assert_eq!(key("2001:db8:0:100::1"), key("2001:db8:0:1ff::1"));
        assert_ne!(key("2001:db8:0:100::1"), key("2001:db8:0:200::1"));
    }

    #[test]
    fn a_certified_client_has_a_quota_of_its_own_at_any_address() {
        let quotas = Quotas::new(&limits(50));
        let [here, there] = ["10.0.0.1", "10.0.0.2"].map(|addr| quotas.register(key(addr)));
        here.charge(500);
        let proxy = here.certified(1);
        assert!(!here.has_memory(1) && proxy.has_memory(500));
        proxy.charge(500);
        assert!(!there.certified(1).has_memory(1));
        assert!(there.certified(2).has_memory(500) && there.has_memory(500));
    }

    #[test]
    fn clients_leave_nothing_behind() {
        let quotas = Quotas::new(&limits(50));
        let registered: Vec<_> = (0..100_000)
            .map(|client| quotas.register(ClientKey::V6(client % 50_000)))
            .collect();
        assert_eq!(quotas.lock().len(), 50_000);
        // A call that outlives its connection keeps the counters.
        let late = registered[0].clone();
        late.charge(500);
        drop(registered);
        assert!(!quotas.register(ClientKey::V6(0)).has_memory(1));
        late.release(500);
        drop(late);
        let clients = quotas.lock();
        assert_eq!(clients.len(), 0);
        assert!(clients.capacity() < 100, "{}", clients.capacity());
    }

    #[test]
    fn a_client_has_a_share_and_leaves_the_rest() {
        let quotas = Quotas::new(&limits(50));
        let greedy: Vec<_> = (0..20).map(|_| quotas.register(key("10.0.0.1"))).collect();
        let slots: Vec<_> = greedy.iter().filter_map(ClientQuota::try_slot).collect();
        assert_eq!(slots.len(), 5);
        let other = quotas.register(key("10.0.0.2"));
        let _ = other.try_slot().expect("another address has its own share");
        drop(slots);
        let _ = greedy[9].try_slot().expect("slots are free again");

        assert!(greedy[0].has_memory(500) && !greedy[0].has_memory(501));
        greedy[0].charge(400);
        assert!(greedy[1].has_memory(100) && !greedy[1].has_memory(101));
        assert!(other.has_memory(500));

        for _ in 0..Limits::default().max_watches / 2 {
            greedy[0].take_watch(0).expect("a watch is free");
        }
        let (reason, message) = greedy[1].take_watch(0).expect_err("the share is used up");
        assert_eq!(
            (reason, &*message),
            (Reason::AddressWatches, "your address has 5000 watches")
        );
        other
            .take_watch(Limits::default().max_watched_size / 2)
            .expect("a watch is free");
        let (reason, _) = other.take_watch(1).expect_err("the share is used up");
        assert_eq!(reason, Reason::AddressWatchedNodes);
        greedy[1].release_watch(0);
        greedy[2].take_watch(0).expect("a watch is free again");
    }

    #[test]
    fn a_share_is_at_least_one_and_all_is_no_limit() {
        let quotas = Quotas::new(&limits(1));
        let client = quotas.register(key("10.0.0.1"));
        let slot = client.try_slot().expect("one");
        assert!(client.try_slot().is_none());
        drop(slot);
        let quotas = Quotas::new(&limits(100));
        let client = quotas.register(key("10.0.0.1"));
        let slots: Vec<_> = (0..100).filter_map(|_| client.try_slot()).collect();
        assert_eq!(slots.len(), 100);
        assert!(client.has_memory(1_000_000));
    }

    /// Reports whether a connection is asked.
    fn is_asked(connection: &Evictable) -> Option<Question> {
        pin!(connection.asked()).now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_asked_now_and_then() {
        let quotas = Quotas::new(&limits(100));
        let [client, other] = ["10.0.0.1", "10.0.0.2"].map(|addr| quotas.register(key(addr)));
        let (asked, others) = (client.evictable(), other.evictable());
        for _ in 0..3 {
            client.make_room();
            assert!(is_asked(&asked).is_some_and(|question| !question.has_to_end(false)));
            client.make_room();
            assert!(is_asked(&asked).is_none());
            tokio::time::advance(MAKE_ROOM_INTERVAL).await;
        }
        assert!(is_asked(&others).is_none());
        for _ in 0..3 {
            assert!(quotas.make_room(1) && !quotas.make_room(1));
            let ended = [&asked, &others]
                .map(|connection| is_asked(connection).is_some_and(|question| question.has_to_end(true)));
            assert!(ended[0] != ended[1], "one connection is enough");
            tokio::time::advance(ASK_INTERVAL).await;
        }
    }

    /// Otherwise a client could push out the idle connections of all others with its busy connections.
    #[test]
    fn idle_connections_of_the_client_with_the_most_connections_make_room_first() {
        let quotas = Quotas::new(&limits(100));
        let connect = |client| {
            let quota = quotas.register(ClientKey::V6(client));
            let connection = quota.evictable();
            (client, quota, connection)
        };
        // The first client has three connections for each of the others' one. Two of three are busy.
        let connections: Vec<_> = (0..400).map(|n| connect(if n % 4 == 0 { n } else { 1 })).collect();
        let is_idle = |number: usize| number % 4 < 2;
        quotas.make_room(150);
        let mut ended = Vec::new();
        // A connection that is not idle passes the question on.
        for _ in 0..400 {
            for (number, (client, _, connection)) in connections.iter().enumerate() {
                if is_asked(connection).is_some_and(|question| question.has_to_end(is_idle(number))) {
                    ended.push(*client);
                }
            }
        }
        let of_first = ended.iter().filter(|&&client| client == 1).count();
        assert_eq!((of_first, ended.len()), (100, 150));
        assert!(ended[..100].iter().all(|&client| client == 1));
    }

    #[test]
    fn the_client_with_the_most_connections_makes_room_and_keeps_an_equal_part() {
        let quotas = Quotas::new(&limits(100));
        let of = |number| key(if number < 8 { "10.0.0.1" } else { "10.0.0.2" });
        let registered: Vec<_> = (0..10).map(|number| quotas.register(of(number))).collect();
        let connections: Vec<_> = registered.iter().map(ClientQuota::evictable).collect();
        for (most, end) in [(2, 2), (100, 3)] {
            quotas.make_room_of_largest(most);
            let asked = connections.iter().map(is_asked);
            let ended: Vec<_> = asked
                .map(|asked| asked.is_some_and(|asked| asked.has_to_end(false)))
                .collect();
            assert_eq!(ended.iter().filter(|&&ends| ends).count(), end, "{ended:?}");
            assert!(!ended[8] && !ended[9]);
        }
    }

    #[test]
    fn of_equal_clients_the_oldest_make_room() {
        let quotas = Quotas::new(&limits(100));
        let addrs = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
        let equal = addrs.map(|addr| quotas.register(key(addr)));
        let connections = equal.each_ref().map(ClientQuota::evictable);
        quotas.make_room_of_largest(2);
        let ended = connections
            .each_ref()
            .map(|connection| is_asked(connection).is_some_and(|question| question.has_to_end(false)));
        assert_eq!(ended, [true, true, false]);
        // A client that is alone would only replace its own connections.
        drop(equal);
        let alone = quotas.register(key("10.0.0.1"));
        let connection = alone.evictable();
        quotas.make_room_of_largest(100);
        assert!(is_asked(&connection).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_without_memory_asks_all_clients_now_and_then() {
        let quotas = Quotas::new(&limits(100));
        let [client, other] = ["10.0.0.1", "10.0.0.2"].map(|addr| quotas.register(key(addr)));
        let others = other.evictable();
        for _ in 0..3 {
            client.make_room_of_all();
            assert!(is_asked(&others).is_some_and(|question| !question.has_to_end(false)));
            client.make_room_of_all();
            assert!(is_asked(&others).is_none());
            tokio::time::advance(MAKE_ROOM_INTERVAL).await;
        }
    }
}
