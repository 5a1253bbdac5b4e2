//! Proxies. Each is stored once, under a number that the routes' words hold.
//!
//! # Life of a number
//!
//! ```text
//!            register                   idle for an interval and a round
//!   FREE ───────────────▶ ALIVE ──────────────────────────────▶ CLOSING
//!    ▲                    │     ◀──── in use again, or still has routes ────────┘  │
//!    │       remove_proxy │                                                       │ grace, then a full round
//!    │                    ▼                                                       │ without a route
//!    └───────────────── DEAD ◀────────────────────────────────────────────────────┘
//!      grace, a full round, and grace again; the generation grows
//! ```
//!
//! Look-ups skip routes whose proxy is DEAD or FREE, so removing a proxy is one store, however many routes it has. Only
//! an ALIVE proxy gets new routes: [`add_node`](crate::RouteTable::add_node) checks that under the same epoch pin as
//! its CAS, and makes a CLOSING proxy ALIVE. So once a grace period has passed since the number left ALIVE, no thread
//! can still add a route to it. A sweep that *starts* then and visits every shard has removed, or at least seen, each
//! of its routes. Only then is a CLOSING number known to be idle. A DEAD number waits for another grace period. A
//! look-up may have read one of these routes before the sweep removed it, and not have resolved the number yet. After
//! that, another proxy may get the number.
//!
//! SAFETY comments cite two rules:
//!
//! * N1: *A number's ID is written before the life that makes the number ALIVE* (Release), and does not change until
//!   the number is FREE. So a thread that loads the life (Acquire) reads the ID that belongs to it.
//! * N2: *An ID is freed only a grace period after its number became DEAD.* So a thread that found the
//!   number under a pin may read the ID until it unpins.
//!
//! A number is free again at most 15 rounds of the sweeper after its proxy was removed or replaced. A thread that stays
//! inside a call delays this. The steps take three rounds. The grace periods take the others: the pins of one round
//! advance the epoch once or twice.
//!
//! # The lock
//!
//! A registration, a takeover and a removal change the proxies with a lock held ([`Registry`],
//! [`RegistryGuard`](owner::RegistryGuard)). So does the sweeper, but it skips its step if another thread has the lock.
//! Most holders have the lock for some microseconds. The longest step replaces the array of one part of the map of IDs
//! ([`ids`]); no step takes time in proportion to all proxies. No other call waits for the lock, even if its holder has
//! stopped. Calls on routes and calls that only read ([`find`]) do not wait. A registration or an incarnation that
//! changes nothing does not wait either.
//!
//! # Incarnations
//!
//! A proxy that [begins a greater incarnation](crate::RouteTable::begin_incarnation) gets another number. Its old
//! number becomes DEAD, as if the proxy were removed, except that the ID has the new number from the same moment on
//! ([`takeover`]). So every rule for a removed proxy holds for the old incarnation. An addition may pass the check of
//! the old reference just before that moment, and do its CAS after it. Its route then has a DEAD number, which no other
//! proxy gets before a grace period and a full round are over. So no call returns the route, and the sweeper removes
//! it. [`incarnations`] remembers the latest incarnation of each ID.

pub(crate) mod begin;
mod client;
mod clients;
mod cluster_names;
mod details;
pub(crate) mod ended;
mod entry;
mod find;
mod grace_period;
pub(crate) mod id;
mod ids;
pub(crate) mod incarnations;
mod intern;
mod lifecycle;
#[cfg(all(test, loom))]
mod models;
mod owner;
pub(crate) mod register;
mod registry;
mod restarts;
pub(crate) mod route_counts;
mod takeover;
mod unlinked;

use std::sync::{Arc, atomic};

use compact_str::CompactString;

use crate::liveness::{Holder, Liveness};
use crate::mem::thin_str::ThinStr;
use crate::proxies::begin::{most_numbers, most_numbers_for_new};
use crate::proxies::cluster_names::ClusterNames;
use crate::proxies::details::Addr;
use crate::proxies::entry::{Numbers, ProxyEntry};
use crate::proxies::grace_period::GracePeriods;
use crate::proxies::ids::Ids;
use crate::proxies::registry::Registry;
use crate::proxies::route_counts::RouteCounts;
use crate::proxies::takeover::Takeover;
use crate::sync::{AtomicUsize, Guard, Mutex, Ordering};
use crate::types::proxy::{ProxyDetails, ProxyRef};

/// The present time, for decisions about age.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    /// The tick one keep-alive interval ago.
    pub(crate) interval_ago: u64,
}

impl Moment {
    pub(crate) fn new(now: u64, keep_alive: u64) -> Self {
        let interval_ago = now.saturating_sub(keep_alive);
        Self { now, interval_ago }
    }
}

/// All proxies of a table.
#[derive(Debug)]
pub(crate) struct Proxies {
    numbers: Arc<Numbers>,
    /// `None` if the table does not limit proxies or clients.
    route_counts: Option<RouteCounts>,
    ids: Ids,
    takeover: Takeover,
    clusters: Arc<ClusterNames>,
    registry: Mutex<Registry>,
    /// How many threads wait for the lock: a hint for the sweeper, so not an atomic of loom's.
    waiting: atomic::AtomicUsize,
    /// How many incarnations are known: a figure for display, so not an atomic of loom's either.
    known: atomic::AtomicUsize,
    /// How many proxies are ALIVE or CLOSING.
    registered: AtomicUsize,
    grace: GracePeriods,
    limits: ProxyLimits,
}

/// The limits that the proxies keep.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProxyLimits {
    /// The most proxies, at most [`PROXY_NUMBERS`](crate::word::PROXY_NUMBERS).
    pub(crate) proxies: usize,
    /// The most routes of each proxy.
    pub(crate) routes_each: Option<usize>,
    /// The most proxies of each client.
    pub(crate) of_client: Option<usize>,
    /// The most routes of each client.
    pub(crate) routes_of_client: Option<usize>,
    /// The most bytes of text.
    pub(crate) text_bytes: usize,
}

impl ProxyLimits {
    fn has_counts(&self) -> bool {
        self.routes_each.or(self.of_client).or(self.routes_of_client).is_some()
    }

    /// Limits of a table that limits only the number of proxies.
    #[cfg(test)]
    pub(crate) fn of(proxies: usize) -> Self {
        Self {
            proxies,
            routes_each: None,
            of_client: None,
            routes_of_client: None,
            text_bytes: usize::MAX,
        }
    }
}

impl Liveness for Proxies {
    #[inline]
    fn has(&self, proxy: u32) -> bool {
        self.numbers.life(proxy).is_some_and(|life| life.get().has_routes())
    }

    fn has_room(&self, proxy: u32) -> Result<(), Holder> {
        self.route_counts
            .as_ref()
            .map_or(Ok(()), |counts| counts.has_room(proxy))
    }

    fn has_text_room(&self, len: usize) -> bool {
        ThinStr::has_room(len, self.limits.text_bytes)
    }

    #[inline]
    fn reserve(&self, proxy: u32) -> Result<(), Holder> {
        self.route_counts
            .as_ref()
            .map_or(Ok(()), |counts| counts.reserve(proxy))
    }

    fn count(&self, proxy: u32, more: i32) {
        if let Some(counts) = &self.route_counts {
            counts.add(proxy, more);
        }
    }

    fn left(&self, proxy: u32, tick: u64) {
        self.count(proxy, -1);
        self.touch(proxy, tick);
    }
}

impl Proxies {
    pub(crate) fn new(limits: ProxyLimits) -> Self {
        let most = most_numbers(limits.proxies) as u32;
        let numbers = Arc::new(Numbers::new(most));
        let registry = Registry::default();
        Self {
            ids: Ids::new(Arc::clone(&numbers)),
            takeover: Takeover::default(),
            route_counts: limits
                .has_counts()
                .then(|| RouteCounts::new(limits.routes_each, limits.routes_of_client, most)),
            numbers,
            clusters: registry.clusters(),
            registry: Mutex::new(registry),
            waiting: atomic::AtomicUsize::new(0),
            known: atomic::AtomicUsize::new(0),
            registered: AtomicUsize::new(0),
            grace: GracePeriods::default(),
            limits,
        }
    }

    /// The entry of `proxy`, if it is still registered.
    fn current(&self, proxy: ProxyRef) -> Option<ProxyEntry<'_>> {
        self.numbers
            .get(proxy.number)
            .filter(|entry| entry.life().is_same_proxy(proxy.life))
    }

    /// Whether `proxy` may get routes, from now to the end of the caller's pin. A proxy that was about to be dropped
    /// stays registered.
    #[inline]
    pub(crate) fn takes_routes(&self, proxy: ProxyRef) -> bool {
        self.numbers
            .life(proxy.number)
            .is_some_and(|life| life.revive(proxy.life))
    }

    /// Records a use of a proxy.
    pub(crate) fn touch(&self, number: u32, tick: u64) {
        if let Some(entry) = self.numbers.get(number) {
            entry.touch(tick);
        }
    }

    /// The reference of a route's number, if its proxy is registered.
    #[inline]
    pub(crate) fn reference(&self, number: u32) -> Option<ProxyRef> {
        let life = self.numbers.life(number)?.get();
        life.has_routes().then(|| ProxyRef {
            number,
            life: life.alive(),
        })
    }

    pub(crate) fn details(&self, proxy: ProxyRef, guard: &Guard) -> Option<ProxyDetails> {
        self.current(proxy)?;
        self.last_details(proxy, guard)
    }

    /// The details of a proxy that was registered when the guard was pinned, or later.
    pub(crate) fn last_details(&self, proxy: ProxyRef, guard: &Guard) -> Option<ProxyDetails> {
        let entry = self.numbers.get(proxy.number)?;
        let (cluster_name, addr) = self.look_up_details(entry, guard)?;
        Some(ProxyDetails {
            id: entry.id(guard).to_compact_string(),
            cluster_name: cluster_name.into(),
            addr: addr.to_compact_string(),
        })
    }

    /// The name of the cluster and the address, unless the number is FREE.
    fn look_up_details<'g>(&'g self, entry: ProxyEntry<'g>, guard: &'g Guard) -> Option<(&'g str, Addr<'g>)> {
        // SAFETY: `ProxyEntry::details` loaded the word with Acquire under the guard (D1), and the entry belongs to
        // these clusters.
        unsafe { entry.details().look_up(&self.clusters, guard) }
    }

    /// The ID of a proxy that was registered when the guard was pinned, or later.
    pub(crate) fn id(&self, proxy: ProxyRef, guard: &Guard) -> CompactString {
        self.numbers
            .get(proxy.number)
            .map_or_else(CompactString::default, |entry| entry.id(guard).to_compact_string())
    }

    /// The number of registered proxies.
    pub(crate) fn len(&self) -> usize {
        // Relaxed: as in `register_locked`; without the lock, a figure for display.
        self.registered.load(Ordering::Relaxed)
    }

    /// The number of known incarnations, when the registry's lock was last released.
    pub(crate) fn incarnations(&self) -> usize {
        // Relaxed: a figure for display.
        self.known.load(Ordering::Relaxed)
    }

    /// The bytes of the numbers, of their counts of routes, and of the map of IDs.
    pub(crate) fn bytes(&self, guard: &Guard) -> usize {
        let counts = self.route_counts.as_ref().map_or(0, RouteCounts::bytes);
        self.numbers.bytes() + counts + self.ids.bytes(guard)
    }

    /// Whether there is room for this many new proxies, and for this many that replace their older incarnation.
    pub(crate) fn has_room(&self, new: usize, replacing: usize) -> bool {
        let registry = self.registry.lock();
        let numbers = match new {
            0 => most_numbers(self.limit()),
            _ => most_numbers_for_new(self.limit()),
        };
        new <= self.limit().saturating_sub(self.len()) && new + replacing <= registry.room(numbers)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limits.proxies
    }

    pub(crate) fn limits(&self) -> ProxyLimits {
        self.limits
    }

    /// How many routes each proxy has; `None` if the table does not limit proxies or clients.
    pub(crate) fn route_counts(&self) -> Option<&RouteCounts> {
        self.route_counts.as_ref()
    }
}
