//! The ends of proxies: their removal, and the sweeper's work on their numbers.

use std::cell::OnceCell;

use crate::liveness::{Census, Liveness};
use crate::proxies::details::Details;
use crate::proxies::entry::ProxyEntry;
use crate::proxies::incarnations::Ended;
use crate::proxies::owner::RegistryGuard;
use crate::proxies::registry::Wait;
use crate::proxies::{Moment, Proxies};
use crate::sync::{Guard, Ordering, failpoint};
use crate::types::proxy::ProxyRef;
use crate::word::Word;

/// A round of the sweeper.
pub(crate) struct Round<'a> {
    proxies: &'a Proxies,
    round: u32,
    /// Routes that were last refreshed before this tick are late.
    late_before: u64,
    /// The late routes that the sweeper has seen.
    pub(crate) late: usize,
}

impl Census for Round<'_> {
    #[inline]
    fn see(&mut self, route: Word) {
        self.late += usize::from(route.time() < self.late_before);
        if let Some(entry) = self.proxies.numbers.get(route.proxy()) {
            entry.seen_in(self.round);
        }
    }

    /// One look-up of the number gives both answers.
    #[inline]
    fn see_valid(&mut self, route: Word, _proxies: &impl Liveness) -> bool {
        let entry = self.proxies.numbers.get(route.proxy());
        let entry = entry.filter(|entry| entry.life().has_routes());
        if let Some(entry) = entry {
            self.late += usize::from(route.time() < self.late_before);
            entry.seen_in(self.round);
        }
        entry.is_some()
    }
}

/// The most numbers that the sweeper visits, or ended incarnations that it forgets, each time it takes the lock. With
/// cold caches this takes some microseconds.
const VISITED_AT_ONCE: u32 = 64;

impl Proxies {
    /// Removes a proxy at once, with all its routes, and ends its incarnation. Returns whether it was registered.
    pub(crate) fn remove(&self, proxy: ProxyRef, tick: u64, guard: &Guard) -> bool {
        // If nothing changes, take no lock.
        if self.current(proxy).is_none() {
            return false;
        }
        let owner = &mut self.own(guard);
        // Check again: no other thread makes the number DEAD while the lock is held.
        let Some(entry) = self.current(proxy) else { return false };
        entry.die();
        failpoint("remove: dead");
        self.bury(proxy.number, entry, true, tick, owner, guard);
        true
    }

    /// Ends the registration of a proxy whose number has become DEAD because it was removed (`is_over`) or dropped.
    fn bury(
        &self,
        number: u32,
        entry: ProxyEntry<'_>,
        is_over: bool,
        tick: u64,
        owner: &mut RegistryGuard<'_>,
        guard: &Guard,
    ) {
        if let Some(incarnation) = self.numbers.incarnation(number) {
            let ended = Ended {
                incarnation,
                tick,
                is_over,
                client: self.client_of(number, owner),
            };
            owner.incarnations.end(entry.id(guard), ended);
        }
        self.ids.remove(number, guard);
        self.remove_from_client(number, owner);
        // Relaxed: as in `register_locked`.
        self.registered.fetch_sub(1, Ordering::Relaxed);
        owner.wait_for_grace(number);
    }

    /// The census of a round of the sweeper. It also counts the routes that were last refreshed before a tick.
    pub(crate) fn census(&self, round: u32, late_before: u64) -> Round<'_> {
        Round {
            proxies: self,
            round,
            late_before,
            late: 0,
        }
    }

    /// Advances the numbers from `from` on in their lives, at the end of a sweeper's round that has visited every
    /// shard. After the last number, forgets incarnations. Visits at most `most` of the numbers, and at most
    /// [`VISITED_AT_ONCE`], so that no thread waits long for the lock. `round_now` returns the present round. Returns
    /// how many numbers it visited, and the number at which the next visit starts.
    pub(crate) fn visit(
        &self,
        from: u32,
        most: u32,
        round: u32,
        round_now: impl Fn() -> u32,
        at: Moment,
        guard: &Guard,
    ) -> (u32, Option<u32>) {
        // Try once: if another thread has the lock, work that is due now is still due in the next round.
        let mut owner = OnceCell::new();
        let try_own = || self.try_own(guard);
        let most = most.min(VISITED_AT_ONCE);
        for (visited, number) in (0..most).zip(from..) {
            let Some(entry) = self.numbers.get(number) else {
                let forget = |mut owner: RegistryGuard<'_>| owner.incarnations.forget(at.interval_ago, most as usize);
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
        entry: ProxyEntry<'_>,
        round: u32,
        round_now: &impl Fn() -> u32,
        at: Moment,
        owner: &mut RegistryGuard<'_>,
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
            // The grace period is over. A round that starts after this sees every route of the number.
            Some(Wait::Grace(_)) => owner.wait_for(number, Wait::Round(round_now())),
            Some(Wait::Round(_)) if life.is_closing() => {
                // A route that was removed meanwhile counts like a route that still exists.
                if entry.was_seen_since(round) || !entry.is_idle(at.interval_ago) {
                    entry.revive(life.alive());
                } else if entry.die_if_closing() {
                    self.bury(number, entry, false, at.now, owner, guard);
                }
            }
            // For lack of memory, the sweeper could not remove a route.
            Some(Wait::Round(_)) if entry.was_seen_since(round) => owner.wait_for(number, Wait::Round(round_now())),
            // No route has the number any more, but a look-up may have read one.
            Some(Wait::Round(_)) => owner.wait_for_last_grace(number),
            Some(Wait::LastGrace(_)) => {
                // Every thread that read a route of the number has unpinned, so no thread still reads its details or
                // ID.
                owner.set_details(entry, Details::NONE);
                self.free_for_client(number, owner);
                let reusable = entry.vacate();
                owner.give_number_back(number, entry, reusable);
            }
            // The number was revived or freed since the first check.
            None => {}
        }
    }

    /// Whether a round has seen all routes of a removed proxy.
    #[cfg(all(test, loom))]
    pub(crate) fn is_swept(&self, proxy: ProxyRef) -> bool {
        matches!(self.registry.lock().wait_of(proxy.number), Some(Wait::LastGrace(_)))
    }
}

/// Whether a number must be advanced at the end of a round: it waits for something, or its proxy seems idle.
fn is_due(entry: ProxyEntry<'_>, round: u32, idle_before: u64) -> bool {
    let life = entry.life();
    match life.is_alive() {
        true => entry.is_idle(idle_before) && !entry.was_seen_since(round),
        false => !life.is_free(),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::proxies::ProxyLimits;
    use crate::sync::pin;
    use crate::types::proxy::Proxy;

    /// Everything before tick 2^20 counts as idle.
    fn visit(proxies: &Proxies, round: u32) {
        proxies.visit(0, 10, round, || round, Moment::new(1 << 20, 0), &pin());
    }

    #[test]
    fn a_proxy_that_loses_a_route_as_it_is_about_to_be_dropped_is_kept() {
        for is_used in [false, true] {
            let proxies = Proxies::new(ProxyLimits::of(1));
            let proxy = Proxy {
                id: "one",
                cluster_name: "",
                addr: "a:1",
            };
            let proxy = proxies
                .register((&proxy).into(), 0, &pin())
                .expect("there is room")
                .proxy;
            let entry = proxies.current(proxy).expect("it is registered");
            visit(&proxies, 1);
            assert!(entry.life().is_closing());
            // The grace period ends when the threads of other tests have unpinned.
            let waits = (0..10_000_000).any(|_| {
                pin().flush();
                visit(&proxies, 2);
                matches!(proxies.registry.lock().wait_of(proxy.number), Some(Wait::Round(_)))
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
        let proxies = Proxies::new(ProxyLimits::of(dead as usize));
        let guard = pin();
        for nth in 0..dead {
            // Each proxy has its own address and cluster, which are freed with it.
            let (id, addr) = (format!("proxy-{nth}"), format!("host-{nth}:1"));
            let proxy = Proxy {
                id: &id,
                cluster_name: &id,
                addr: &addr,
            };
            let proxy = proxies
                .register((&proxy).into(), 0, &guard)
                .expect("there is room")
                .proxy;
            assert!(proxies.remove(proxy, 0, &guard));
        }
        assert_eq!(proxies.ids.len(&guard), 0, "removed IDs are in the map");
        drop(guard);
        let free = || proxies.registry.lock().room(dead as usize);
        assert_eq!((proxies.len(), free()), (0, 0));
        let before = proxies.grace.begun();
        let (mut visits, mut round) = (0, 1);
        while free() < dead as usize {
            round += 1;
            let mut from = Some(0);
            while let Some(number) = from {
                let (visited, next) = proxies.visit(number, u32::MAX, round, || round, Moment::new(1 << 20, 0), &pin());
                assert!(visited <= VISITED_AT_ONCE, "{visited} at once");
                visits += 1;
                from = next;
            }
            assert!(round < 10_000, "{} numbers are not free", dead as usize - free());
        }
        let begun = proxies.grace.begun() - before;
        println!("{begun} grace periods in {visits} visits and {round} rounds");
        assert!(begun <= dead / 10, "{begun} grace periods in {visits} visits");
    }
}
