//! Proxies: each is stored once, under a number that the routes' words hold.
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
//! Look-ups skip routes whose proxy is DEAD or FREE, so removing a proxy is one store, however many routes it has. Only an
//! ALIVE proxy gets new routes: [`add_node`](crate::RouteTable::add_node) checks that under the same epoch pin as its CAS,
//! and makes a CLOSING proxy ALIVE. So once a grace period has passed since the number left ALIVE, no thread is left that may
//! still add a route to it; a sweep that *starts* then and visits every shard has removed, or at least seen, each of its
//! routes. Only then is a CLOSING number known to be idle. A DEAD number waits for another grace period: a look-up may have
//! read one of these routes before the sweep removed it, and not have resolved the number yet. After that, another proxy may
//! get the number.
//!
//! A number is free again at most 15 rounds of the sweeper after its proxy was removed or replaced, unless a thread stays
//! inside a call meanwhile. The steps take three rounds. The grace periods take the others: the pins of one round advance the
//! epoch once or twice.
//!
//! # The lock
//!
//! A registration, a takeover and a removal change the proxies with a lock held ([`Registry`], [`Owner`]). So does the
//! sweeper, but it skips its step if another thread has the lock. Most holders have the lock for some microseconds. The
//! longest step replaces the array of one part of the map of IDs ([`ids`]); no step takes time in proportion to all proxies.
//! Nothing else waits for the lock, not even if its holder has stopped: not calls on routes, not calls that only read
//! ([`find`]), and not a registration or an incarnation that changes nothing.
//!
//! # Incarnations
//!
//! A proxy that [begins a greater incarnation](crate::RouteTable::begin_incarnation) gets another number. Its old number
//! becomes DEAD, as if the proxy were removed, except that the ID has the new number from the same moment on ([`takeover`]).
//! So all that holds for a removed proxy holds for the old incarnation. An addition may pass the check of the old reference
//! just before that moment, and do its CAS after it. Its route then has a number that is DEAD, and that no other proxy gets
//! before a grace period and a full round are over: no call returns the route, and the sweeper removes it. [`incarnations`]
//! remembers the latest incarnation of each ID.

mod entry;
mod find;
mod grace_period;
mod id;
mod ids;
mod incarnations;
mod intern;
#[cfg(all(test, loom))]
mod models;
mod registry;
mod takeover;
mod unlinked;

use std::cell::OnceCell;
use std::num::NonZeroU64;
use std::sync::{Arc, atomic};
use std::thread;

use compact_str::CompactString;

use crate::error::{BeginError, RegisterError};
use crate::liveness::{Census, Liveness};
use crate::proxies::entry::{Entry, Numbers};
use crate::proxies::grace_period::GracePeriods;
use crate::proxies::id::ProxyId;
use crate::proxies::ids::Ids;
use crate::proxies::incarnations::{Standing, standing_beside};
use crate::proxies::intern::{Addr, Clusters, Details};
use crate::proxies::registry::{Owner, Registry, Wait};
use crate::proxies::takeover::Takeover;
use crate::sync::{AtomicUsize, Guard, Mutex, Ordering, step};
use crate::types::proxy::{Proxy, ProxyDetails, ProxyRef};
use crate::word::PROXY_NUMBERS;

/// The time of now, for what depends on how long ago something was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moment {
    pub(crate) now: u64,
    /// A keep-alive interval ago.
    pub(crate) interval_ago: u64,
}

impl Moment {
    pub(crate) fn new(now: u64, keep_alive: u64) -> Self {
        let interval_ago = now.saturating_sub(keep_alive);
        Self { now, interval_ago }
    }
}

/// The result of beginning an incarnation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BegunIncarnation {
    pub(crate) proxy: ProxyRef,
    /// The incarnation had begun before, and its proxy was registered all the while.
    pub(crate) is_resumed: bool,
    /// The reference of an older incarnation, which was removed.
    pub(crate) replaced: Option<ProxyRef>,
}

/// The result that restoring a proxy would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prospect {
    /// The proxy would keep its reference.
    Known(ProxyRef),
    /// The proxy would get a new number.
    New,
    /// A later incarnation of the proxy has begun, or the proxy's own incarnation is over.
    Stale,
}

/// A round of the sweeper.
struct Round<'a> {
    proxies: &'a Proxies,
    round: u32,
}

impl Census for Round<'_> {
    #[inline]
    fn see(&mut self, proxy: u32) {
        if let Some(entry) = self.proxies.numbers.get(proxy) {
            entry.seen_in(self.round);
        }
    }

    /// Looks the number up once for both answers.
    #[inline]
    fn see_valid(&mut self, proxy: u32, _proxies: &impl Liveness) -> bool {
        let entry = self.proxies.numbers.get(proxy);
        let entry = entry.filter(|entry| entry.life().has_routes());
        if let Some(entry) = entry {
            entry.seen_in(self.round);
        }
        entry.is_some()
    }
}

/// The most numbers that the sweeper visits, or ended incarnations that it forgets, each time it takes the lock. With cold
/// caches that takes some microseconds.
const VISITED_AT_ONCE: u32 = 64;

/// How often the sweeper yields to threads that wait for the lock before it tries to take the lock.
const YIELDS: usize = if cfg!(loom) { 0 } else { 200 };

/// All proxies of a table.
#[derive(Debug)]
pub(crate) struct Proxies {
    numbers: Arc<Numbers>,
    ids: Ids,
    takeover: Takeover,
    clusters: Arc<Clusters>,
    registry: Mutex<Registry>,
    /// Threads that wait for the lock: a hint for the sweeper, so not an atomic of loom's.
    waiting: atomic::AtomicUsize,
    /// Proxies that are ALIVE or CLOSING.
    registered: AtomicUsize,
    grace: GracePeriods,
    limit: usize,
}

impl Liveness for Proxies {
    #[inline]
    fn has(&self, proxy: u32) -> bool {
        self.numbers.life(proxy).is_some_and(|life| life.get().has_routes())
    }

    fn left(&self, proxy: u32, tick: u64) {
        self.touch(proxy, tick);
    }
}

impl Proxies {
    /// The most proxies that there can be: their numbers fit into a route's word.
    pub(crate) const MOST: usize = PROXY_NUMBERS;

    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.min(Self::MOST);
        let numbers = Arc::new(Numbers::new(limit as u32));
        let registry = Registry::default();
        Self {
            ids: Ids::new(Arc::clone(&numbers)),
            takeover: Takeover::default(),
            numbers,
            clusters: registry.clusters(),
            registry: Mutex::new(registry),
            waiting: atomic::AtomicUsize::new(0),
            registered: AtomicUsize::new(0),
            grace: GracePeriods::default(),
            limit,
        }
    }

    /// Registers a proxy, or updates its details and then calls `moved`. Notes `tick` as its last use.
    pub(crate) fn register(
        &self,
        proxy: &Proxy<'_>,
        tick: u64,
        guard: &Guard,
        moved: impl FnOnce(ProxyRef),
    ) -> Result<ProxyRef, RegisterError> {
        let id = ProxyId::of(proxy.id);
        // Nearly always the proxy is registered, and its details are the same: no lock, and no check, since registered
        // details were checked.
        while let Some(registered) = self.registered(id, guard)
            && self.has_details(registered, proxy, guard)
        {
            if self.keep(registered, tick) {
                return Ok(registered);
            }
        }
        proxy.check()?;
        self.register_locked(proxy, Some(moved), None, tick, &mut self.own(guard), guard)
    }

    /// Registers a proxy. If it is registered already, it keeps its details.
    pub(crate) fn register_unless_known(
        &self,
        proxy: &Proxy<'_>,
        tick: u64,
        guard: &Guard,
    ) -> Result<ProxyRef, RegisterError> {
        proxy.check()?;
        self.register_locked(proxy, None::<fn(ProxyRef)>, None, tick, &mut self.own(guard), guard)
    }

    /// Whether a proxy that was registered when the guard was pinned, or later, has these details.
    fn has_details(&self, registered: ProxyRef, proxy: &Proxy<'_>, guard: &Guard) -> bool {
        let entry = self.numbers.get(registered.number);
        let details = entry.and_then(|entry| self.look_up_details(entry, guard));
        details == Some((proxy.cluster_name, Addr::of(proxy.addr)))
    }

    /// Notes that a proxy was registered again; returns whether it still is.
    fn keep(&self, registered: ProxyRef, tick: u64) -> bool {
        let kept = self.takes_routes(registered);
        if kept {
            self.touch(registered.number, tick);
        }
        kept
    }

    /// Waits for the registry.
    fn own<'a>(&'a self, guard: &'a Guard) -> Owner<'a> {
        // Relaxed, both: a hint for the sweeper.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let registry = self.registry.lock();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        Owner::new(registry, &self.grace, guard)
    }

    /// The registry for the sweeper, if no thread has it. The sweeper takes the lock again and again, so a waiting thread
    /// that is waking up would find it taken each time. So the sweeper yields to waiting threads first, but does not wait for
    /// them.
    fn try_own<'a>(&'a self, guard: &'a Guard) -> Option<Owner<'a>> {
        for _ in 0..YIELDS {
            // Relaxed: as in `own`.
            if self.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            thread::yield_now();
        }
        Some(Owner::new(self.registry.try_lock()?, &self.grace, guard))
    }

    /// Registers a proxy whose strings were checked. A registered proxy keeps its details if `moved` is `None`. An
    /// incarnation, if given, becomes the proxy's.
    fn register_locked(
        &self,
        proxy: &Proxy<'_>,
        moved: Option<impl FnOnce(ProxyRef)>,
        incarnation: Option<NonZeroU64>,
        tick: u64,
        owner: &mut Owner<'_>,
        guard: &Guard,
    ) -> Result<ProxyRef, RegisterError> {
        if let Some(registered) = self.find(proxy.id, guard)
            && let Some(entry) = self.numbers.get(registered.number)
        {
            // The proxy cannot die now: that takes the lock.
            if let Some(moved) = moved
                && !self.has_details(registered, proxy, guard)
            {
                let details = owner.intern(proxy.cluster_name, proxy.addr);
                owner.set_details(entry, details);
                moved(registered);
            }
            if incarnation.is_some() {
                self.numbers.set_incarnation(registered.number, incarnation);
            }
            self.keep(registered, tick);
            return Ok(registered);
        }
        let new = self.occupy(proxy, incarnation, tick, owner)?;
        step("register: not in the map");
        self.ids.insert(new.number, guard);
        // Relaxed: a figure to be shown.
        self.registered.fetch_add(1, Ordering::Relaxed);
        Ok(new)
    }

    fn too_many(&self) -> RegisterError {
        RegisterError::TooManyProxies { limit: self.limit }
    }

    /// Gives a proxy a number, without adding it to the map of IDs.
    fn occupy(
        &self,
        proxy: &Proxy<'_>,
        incarnation: Option<NonZeroU64>,
        tick: u64,
        owner: &mut Owner<'_>,
    ) -> Result<ProxyRef, RegisterError> {
        let taken = owner.take_number(&self.numbers, self.limit);
        let (number, entry) = taken.ok_or(self.too_many())?;
        let details = owner.intern(proxy.cluster_name, proxy.addr);
        // Before the life, which publishes it.
        self.numbers.set_incarnation(number, incarnation);
        let life = entry.occupy(ProxyId::of(proxy.id), details, tick);
        Ok(ProxyRef { number, life })
    }

    /// Gives a registered proxy another number. At each moment, readers find exactly one of the two numbers.
    fn replace(
        &self,
        old: ProxyRef,
        proxy: &Proxy<'_>,
        incarnation: NonZeroU64,
        tick: u64,
        owner: &mut Owner<'_>,
        guard: &Guard,
    ) -> Result<ProxyRef, RegisterError> {
        // The only step that can fail comes first.
        let new = self.occupy(proxy, Some(incarnation), tick, owner)?;
        self.takeover.announce(old.number, new.number);
        step("replace: announced");
        self.numbers.ensure(old.number).die();
        step("replace: dead");
        self.ids.swap(old.number, new.number, guard);
        step("replace: in the map");
        self.takeover.end();
        owner.wait_for_grace(old.number);
        Ok(new)
    }

    /// Registers a proxy with an incarnation, unless the incarnation is stale. `moved` is as in `register_locked`.
    pub(crate) fn begin(
        &self,
        proxy: &Proxy<'_>,
        incarnation: NonZeroU64,
        moved: Option<impl FnOnce(ProxyRef)>,
        at: Moment,
        guard: &Guard,
    ) -> Result<BegunIncarnation, BeginError> {
        proxy.check()?;
        let id = ProxyId::of(proxy.id);
        // If nothing changes, no lock.
        while let Some(registered) = self.registered(id, guard)
            && let Some(current) = self.numbers.incarnation(registered.number)
            && standing_beside(current, incarnation)? == Standing::Current
            && (moved.is_none() || self.has_details(registered, proxy, guard))
        {
            if self.keep(registered, at.now) {
                return Ok(BegunIncarnation {
                    proxy: registered,
                    is_resumed: true,
                    replaced: None,
                });
            }
        }

        let owner = &mut self.own(guard);
        let old = self.registered(id, guard);
        let current = old.and_then(|old| self.numbers.incarnation(old.number));
        let standing = owner.incarnations.standing(id, current, incarnation, at.interval_ago)?;
        if current.is_none() && !owner.incarnations.has_room(id, self.limit, at.interval_ago) {
            return Err(self.too_many().into());
        }
        let begun = match (standing, old) {
            (Standing::Replaces, Some(old)) => BegunIncarnation {
                proxy: self.replace(old, proxy, incarnation, at.now, owner, guard)?,
                is_resumed: false,
                replaced: Some(old),
            },
            _ => BegunIncarnation {
                proxy: self.register_locked(proxy, moved, Some(incarnation), at.now, owner, guard)?,
                is_resumed: standing == Standing::Current,
                replaced: None,
            },
        };
        if current.is_none() {
            owner.incarnations.begin(id);
        }
        Ok(begun)
    }

    /// The incarnation of a registered proxy, if it has one.
    pub(crate) fn incarnation(&self, proxy: ProxyRef, _guard: &Guard) -> Option<NonZeroU64> {
        self.current(proxy)?;
        // Under the pin, the number becomes no other proxy's.
        self.numbers.incarnation(proxy.number)
    }

    /// The incarnation of a proxy that was registered when the guard was pinned, or later.
    pub(crate) fn last_incarnation(&self, proxy: ProxyRef, _guard: &Guard) -> Option<NonZeroU64> {
        self.numbers.incarnation(proxy.number)
    }

    /// The result that registering a proxy would have, with an incarnation or without.
    pub(crate) fn prospect(&self, id: &str, incarnation: Option<NonZeroU64>, at: Moment, guard: &Guard) -> Prospect {
        let id = ProxyId::of(id);
        let registry = self.registry.lock();
        let registered = self.registered(id, guard);
        let current = registered.and_then(|registered| self.numbers.incarnation(registered.number));
        let standing = |incarnation| {
            registry
                .incarnations
                .standing(id, current, incarnation, at.interval_ago)
        };
        match incarnation.map(standing) {
            Some(Err(_)) => Prospect::Stale,
            Some(Ok(Standing::Replaces)) => Prospect::New,
            None | Some(Ok(Standing::Current | Standing::Adopts)) => registered.map_or(Prospect::New, Prospect::Known),
        }
    }

    /// The entry of `proxy`, if it is still registered.
    fn current(&self, proxy: ProxyRef) -> Option<Entry<'_>> {
        self.numbers
            .get(proxy.number)
            .filter(|entry| entry.life().is_same_proxy(proxy.life))
    }

    /// Whether routes may be added for `proxy`, from now to the end of the caller's pin. A proxy that was about to be dropped
    /// stays registered.
    #[inline]
    pub(crate) fn takes_routes(&self, proxy: ProxyRef) -> bool {
        self.numbers
            .life(proxy.number)
            .is_some_and(|life| life.revive(proxy.life))
    }

    /// Notes that a proxy is in use.
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

    /// The cluster's name and the address, unless the number is FREE.
    fn look_up_details<'g>(&'g self, entry: Entry<'g>, guard: &'g Guard) -> Option<(&'g str, Addr<'g>)> {
        // SAFETY: `Entry::details` loaded the word with Acquire under the guard, and the entry's clusters are these.
        unsafe { entry.details().look_up(&self.clusters, guard) }
    }

    /// The ID of a proxy that was registered when the guard was pinned, or later.
    pub(crate) fn id(&self, proxy: ProxyRef, guard: &Guard) -> CompactString {
        self.numbers
            .get(proxy.number)
            .map_or_else(CompactString::default, |entry| entry.id(guard).to_compact_string())
    }

    /// Removes a proxy at once, with all its routes, and ends its incarnation. Returns whether it was registered.
    pub(crate) fn remove(&self, proxy: ProxyRef, tick: u64, guard: &Guard) -> bool {
        // If nothing changes, no lock.
        if self.current(proxy).is_none() {
            return false;
        }
        let owner = &mut self.own(guard);
        // Check again: no other thread makes the number DEAD while the lock is held.
        let Some(entry) = self.current(proxy) else { return false };
        entry.die();
        step("remove: dead");
        self.bury(proxy.number, entry, true, tick, owner, guard);
        true
    }

    /// Ends the registration of a proxy whose number has become DEAD because it was removed (`is_over`) or dropped.
    fn bury(&self, number: u32, entry: Entry<'_>, is_over: bool, tick: u64, owner: &mut Owner<'_>, guard: &Guard) {
        if let Some(incarnation) = self.numbers.incarnation(number) {
            owner.incarnations.end(entry.id(guard), incarnation, is_over, tick);
        }
        self.ids.remove(number, guard);
        // Relaxed: as in `register_locked`.
        self.registered.fetch_sub(1, Ordering::Relaxed);
        owner.wait_for_grace(number);
    }

    /// The census of a round of the sweeper.
    pub(crate) fn census(&self, round: u32) -> impl Census {
        Round { proxies: self, round }
    }

    /// Advances the numbers from `from` on in their lives, at the end of a sweeper's round that has visited every shard.
    /// After the last number, forgets incarnations. Visits at most `most` of them, and at most [`VISITED_AT_ONCE`], so that
    /// no thread waits long for the lock. `round_now` returns the present round. Returns how many numbers it visited, and the
    /// number that the next visit starts with.
    pub(crate) fn visit(
        &self,
        from: u32,
        most: u32,
        round: u32,
        round_now: impl Fn() -> u32,
        at: Moment,
        guard: &Guard,
    ) -> (u32, Option<u32>) {
        // Tried once: if another thread has the registry, what is due now is still due in the next round.
        let mut owner = OnceCell::new();
        let try_own = || self.try_own(guard);
        let most = most.min(VISITED_AT_ONCE);
        for (visited, number) in (0..most).zip(from..) {
            let Some(entry) = self.numbers.get(number) else {
                let forget = |mut owner: Owner<'_>| owner.incarnations.forget(at.interval_ago, most as usize);
                let forgotten = owner.into_inner().unwrap_or_else(try_own).map_or(0, forget) as u32;
                // The call forgot as many as it may, so there may be more.
                return (visited + forgotten, (forgotten == most).then_some(number));
            };
            entry.forget_old_round(round);
            if is_due(entry, round, at.interval_ago) {
                owner.get_or_init(try_own);
                if let Some(Some(owner)) = owner.get_mut() {
                    self.advance(number, entry, round, &round_now, at, owner, guard);
                }
            }
        }
        (most, Some(from + most))
    }

    #[allow(clippy::too_many_arguments, reason = "one step of `visit`, which has them all")]
    fn advance(
        &self,
        number: u32,
        entry: Entry<'_>,
        round: u32,
        round_now: &impl Fn() -> u32,
        at: Moment,
        owner: &mut Owner<'_>,
        guard: &Guard,
    ) {
        let life = entry.life();
        if life.is_alive() {
            // Check again: another thread may have used the proxy since, but only the owner closes it.
            if is_due(entry, round, at.interval_ago) {
                entry.close();
                owner.wait_for_grace(number);
            }
            return;
        }
        match owner.wait_of(number) {
            Some(wait) if !wait.is_over(round, &self.grace) => {}
            // The grace period is over; a round that starts after this sees every route that there is.
            Some(Wait::Grace(_)) => owner.wait_for(number, Wait::Round(round_now())),
            Some(Wait::Round(_)) if life.is_closing() => {
                // A route that was removed meanwhile counts like a route that is still there.
                if entry.was_seen_since(round) || !entry.is_idle(at.interval_ago) {
                    entry.revive(life.alive());
                } else if entry.die_if_closing() {
                    self.bury(number, entry, false, at.now, owner, guard);
                }
            }
            // The sweeper could not remove a route, since there was no memory.
            Some(Wait::Round(_)) if entry.was_seen_since(round) => owner.wait_for(number, Wait::Round(round_now())),
            // No route has the number any more, but a look-up may have read one.
            Some(Wait::Round(_)) => owner.wait_for_last_grace(number),
            Some(Wait::LastGrace(_)) => {
                // No thread is left that has read a route of the number, or that may read its details or its ID.
                owner.set_details(entry, Details::NONE);
                let reusable = entry.vacate();
                owner.give_number_back(number, entry, reusable);
            }
            // It was revived, or given back, since it was looked at first.
            None => {}
        }
    }

    /// Whether a round has seen all routes of a removed proxy.
    #[cfg(all(test, loom))]
    pub(crate) fn is_swept(&self, proxy: ProxyRef) -> bool {
        matches!(self.registry.lock().wait_of(proxy.number), Some(Wait::LastGrace(_)))
    }

    /// How many proxies are registered.
    pub(crate) fn len(&self) -> usize {
        // Relaxed: a figure to be shown.
        self.registered.load(Ordering::Relaxed)
    }

    /// How many more proxies there may be.
    pub(crate) fn room(&self) -> usize {
        self.registry.lock().room(self.limit)
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit
    }
}

/// Whether a number has to be advanced at the end of a round: it waits for something, or its proxy seems idle.
fn is_due(entry: Entry<'_>, round: u32, idle_before: u64) -> bool {
    let life = entry.life();
    match life.is_alive() {
        true => entry.is_idle(idle_before) && !entry.was_seen_since(round),
        false => !life.is_free(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::pin;

    /// Everything before tick 2^20 counts as idle.
    fn visit(proxies: &Proxies, round: u32) {
        proxies.visit(0, 10, round, || round, Moment::new(1 << 20, 0), &pin());
    }

    #[test]
    fn a_proxy_that_loses_a_route_as_it_is_about_to_be_dropped_is_kept() {
        for is_used in [false, true] {
            let proxies = Proxies::new(1);
            let proxy = Proxy {
                id: "one",
                cluster_name: "",
                addr: "a:1",
            };
            let proxy = proxies.register(&proxy, 0, &pin(), |_| ()).expect("there is room");
            let entry = proxies.current(proxy).expect("it is registered");
            visit(&proxies, 1);
            assert!(entry.life().is_closing());
            // The grace period ends once the threads of other tests have unpinned.
            let waits = (0..10_000_000).any(|_| {
                pin().flush();
                visit(&proxies, 2);
                matches!(
                    proxies.registry.lock().wait_of(proxy.number),
                    Some(registry::Wait::Round(_))
                )
            });
            assert!(waits, "a grace period does not end");
            if is_used {
                proxies.left(proxy.number, 1 << 21);
            }
            visit(&proxies, 3);
            assert_eq!(entry.life().is_alive(), is_used);
        }
    }

    /// A grace period costs an entry in the garbage, and a flush.
    #[test]
    fn a_sweep_begins_no_more_grace_periods_than_it_takes_the_lock() {
        let dead: u32 = 10_000;
        let proxies = Proxies::new(dead as usize);
        let guard = pin();
        for nth in 0..dead {
            // Each proxy has an address and a cluster of its own, which are freed with it.
            let (id, addr) = (format!("proxy-{nth}"), format!("host-{nth}:1"));
            let proxy = Proxy {
                id: &id,
                cluster_name: &id,
                addr: &addr,
            };
            let proxy = proxies.register(&proxy, 0, &guard, |_| ()).expect("there is room");
            assert!(proxies.remove(proxy, 0, &guard));
        }
        drop(guard);
        assert_eq!((proxies.len(), proxies.room()), (0, 0));
        let before = proxies.grace.begun();
        let (mut visits, mut round) = (0, 1);
        while proxies.room() < dead as usize {
            round += 1;
            let mut from = Some(0);
            while let Some(number) = from {
                let (visited, next) = proxies.visit(number, u32::MAX, round, || round, Moment::new(1 << 20, 0), &pin());
                assert!(visited <= VISITED_AT_ONCE, "{visited} at once");
                visits += 1;
                from = next;
            }
            assert!(
                round < 10_000,
                "{} numbers are not free",
                dead as usize - proxies.room()
            );
        }
        let begun = proxies.grace.begun() - before;
        println!("{begun} grace periods in {visits} visits and {round} rounds");
        assert!(begun <= dead / 10, "{begun} grace periods in {visits} visits");
    }
}
