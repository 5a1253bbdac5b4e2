//! Remembers the latest incarnation of each proxy for as long as a late message of an older incarnation may arrive.
//!
//! An ID is known after its first [`begin_incarnation`](crate::RouteTable::begin_incarnation), in one of three states:
//!
//! ```text
//!            begin                 begin again: the same reference; begin a greater one: another reference
//!   unknown ───────▶ CURRENT ◀──────────────────────────────────────────┐
//!      ▲              │   │ remove_proxy                               │ begin a greater one
//!      │ dropped idle │   └────────────▶ OVER ─────────────────────────┤
//!      │              ▼                   │                             │ begin the same or a greater one
//!      │          DROPPED ────────────────┼─────────────────────────────┘
//!      └──────────────┴───────────────────┘
//!        a keep-alive interval later
//! ```
//!
//! An ID is CURRENT exactly while the proxy that `begin` returned is registered. Then the incarnation is stored with
//! the proxy's number ([`Numbers`](super::entry::Numbers)), where readers find it without a lock, and is only counted
//! here. An incarnation that has ended is stored only here.
//!
//! The table forgets no incarnation early to make room: it would then accept late messages. The number of known IDs is
//! at most [`most_numbers_for_new`](super::begin::most_numbers_for_new). If there is no room for an ID, the table
//! refuses its proxy. The same holds for the IDs of each client, if the table limits the proxies of a client. So a
//! client that begins and ends an incarnation of one new ID after the other leaves room for other clients.
//!
//! Each step holds the registry's lock, so each step must be short. The maps are trees, which grow and shrink by one
//! node at a time. A new ID makes the table forget at most two others.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::ops::Bound;

use crate::error::StaleIncarnation;
use crate::proxies::ended::EndedIncarnation;
use crate::proxies::id::{OwnedId, ProxyId};
use crate::types::client::ClientId;

/// The latest incarnation of each proxy that has begun one. Allocates nothing before the first incarnation ends.
#[derive(Debug, Default)]
pub(crate) struct Incarnations {
    /// How many IDs are CURRENT.
    current: usize,
    ended: BTreeMap<OwnedId, Ended>,
    /// The end of each of `ended`, the earliest first.
    queue: BTreeSet<(u64, OwnedId)>,
    /// How many of `ended` each client has.
    of_clients: BTreeMap<ClientId, usize>,
}

/// An incarnation that is DROPPED or OVER.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) incarnation: NonZeroU64,
    pub(crate) tick: u64,
    /// OVER: the proxy was removed. Otherwise DROPPED: the sweeper dropped the proxy because it had no routes.
    pub(crate) is_over: bool,
    /// The client that the proxy counted for.
    pub(crate) client: Option<ClientId>,
}

impl Ended {
    /// Returns an error if `incarnation` is stale after this end.
    pub(crate) fn check(self, incarnation: NonZeroU64) -> Result<(), StaleIncarnation> {
        let (latest, is_over) = (self.incarnation, self.is_over);
        if incarnation < latest || incarnation == latest && is_over {
            return Err(StaleIncarnation {
                incarnation,
                latest,
                is_over,
            });
        }
        Ok(())
    }
}

/// How an incarnation that may begin relates to the previous state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The incarnation is CURRENT already.
    Current,
    /// The incarnation takes over the ID's registered proxy, if there is one. Calls without an incarnation have
    /// registered it.
    Adopts,
    /// The ID's registered proxy, if there is one, belongs to an older incarnation.
    Replaces,
}

/// How many IDs are forgotten to make room for one ID. More than one, so that their number shrinks.
const FORGOTTEN_FOR_ONE: usize = 2;

impl Incarnations {
    /// How `incarnation` relates to the state of the ID, or an error if it is stale. `current` is the incarnation of
    /// the ID's registered proxy. Incarnations that ended before the tick `forget_before` no longer count.
    pub(crate) fn standing(
        &self,
        id: ProxyId<'_>,
        current: Option<NonZeroU64>,
        incarnation: NonZeroU64,
        forget_before: u64,
    ) -> Result<Standing, StaleIncarnation> {
        if let Some(current) = current {
            return standing_beside(current, incarnation);
        }
        let ended = self.ended.get(&OwnedId::from(id));
        let Some(ended) = ended.filter(|ended| ended.tick >= forget_before) else {
            return Ok(Standing::Adopts);
        };
        ended.check(incarnation)?;
        Ok(match incarnation > ended.incarnation {
            true => Standing::Replaces,
            false => Standing::Adopts,
        })
    }

    /// Whether there is room for an ID that is not CURRENT, among `limit` IDs.
    pub(crate) fn has_room(&mut self, id: ProxyId<'_>, limit: usize, forget_before: u64) -> bool {
        if self.len() < limit || self.ended.contains_key(&OwnedId::from(id)) {
            return true;
        }
        self.forget(forget_before, FORGOTTEN_FOR_ONE);
        self.len() < limit
    }

    /// The number of known IDs.
    pub(crate) fn len(&self) -> usize {
        self.current + self.ended.len()
    }

    /// Whether there is room for an ID of a client that is not CURRENT. The client has `proxies` proxies, with this ID
    /// if it is registered, and may have as many known IDs as `limit`.
    pub(crate) fn has_room_of_client(
        &mut self,
        id: ProxyId<'_>,
        client: ClientId,
        proxies: usize,
        limit: usize,
        forget_before: u64,
    ) -> bool {
        let is_full = |all: &Self| proxies + all.of_clients.get(&client).unwrap_or(&0) > limit;
        if !is_full(self) || self.ended.contains_key(&OwnedId::from(id)) {
            return true;
        }
        self.forget(forget_before, FORGOTTEN_FOR_ONE);
        !is_full(self)
    }

    /// Records that an ID has become CURRENT.
    pub(crate) fn begin(&mut self, id: ProxyId<'_>) {
        self.current += 1;
        if self.ended.is_empty() {
            return;
        }
        if let Some((id, ended)) = self.remove(&OwnedId::from(id)) {
            self.queue.remove(&(ended.tick, id));
        }
    }

    /// Records that the CURRENT incarnation of an ID has ended.
    pub(crate) fn end(&mut self, id: ProxyId<'_>, ended: Ended) {
        self.current -= 1;
        self.insert(id.into(), ended);
    }

    /// Remembers the end of an incarnation of an ID that is not CURRENT, unless one that is not less has ended.
    pub(crate) fn remember(&mut self, id: ProxyId<'_>, ended: Ended) {
        let id = OwnedId::from(id);
        match self.ended.get(&id) {
            Some(known) if known.incarnation >= ended.incarnation => return,
            Some(known) => {
                self.queue.remove(&(known.tick, id.clone()));
                self.remove(&id);
            }
            None => {}
        }
        self.insert(id, ended);
    }

    fn insert(&mut self, id: OwnedId, ended: Ended) {
        self.queue.insert((ended.tick, id.clone()));
        if let Some(client) = ended.client {
            *self.of_clients.entry(client).or_default() += 1;
        }
        self.ended.insert(id, ended);
    }

    /// Removes an ID from all but the queue.
    fn remove(&mut self, id: &OwnedId) -> Option<(OwnedId, Ended)> {
        let removed = self.ended.remove_entry(id);
        if let Some(client) = removed.as_ref().and_then(|(_, ended)| ended.client)
            && let Some(count) = self.of_clients.get_mut(&client)
        {
            *count -= 1;
            if *count == 0 {
                self.of_clients.remove(&client);
            }
        }
        removed
    }

    /// Copies at most `most` incarnations that have ended, in the order of their IDs, from after an ID on.
    pub(crate) fn ended_after(&self, after: Option<&OwnedId>, most: usize) -> Vec<EndedIncarnation> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ended = self.ended.range((from, Bound::Unbounded)).take(most);
        let copy = |(id, ended): (&OwnedId, &Ended)| EndedIncarnation {
            id: id.clone(),
            ended: *ended,
        };
        ended.map(copy).collect()
    }

    /// Forgets up to `most` incarnations that ended before a tick. Returns how many.
    pub(crate) fn forget(&mut self, before: u64, most: usize) -> usize {
        let mut forgotten = 0;
        while forgotten < most
            && let Some((tick, _)) = self.queue.first()
            && *tick < before
            && let Some((_, id)) = self.queue.pop_first()
        {
            self.remove(&id);
            forgotten += 1;
        }
        forgotten
    }
}

/// How `incarnation` relates to the CURRENT incarnation, or an error if it is stale.
pub(crate) fn standing_beside(current: NonZeroU64, incarnation: NonZeroU64) -> Result<Standing, StaleIncarnation> {
    match incarnation.cmp(&current) {
        Ordering::Less => Err(StaleIncarnation {
            incarnation,
            latest: current,
            is_over: false,
        }),
        Ordering::Equal => Ok(Standing::Current),
        Ordering::Greater => Ok(Standing::Replaces),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LIMIT: usize = 100;

    fn number(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).expect("not zero")
    }

    fn ended(nth: u64, tick: u64) -> Ended {
        Ended {
            incarnation: number(nth),
            tick,
            is_over: true,
            client: None,
        }
    }

    fn forgotten_of(all: &mut Incarnations, before: u64) -> usize {
        let ended = all.ended.len();
        let forgotten = all.forget(before, usize::MAX);
        assert_eq!(ended - all.ended.len(), forgotten);
        forgotten
    }

    #[test]
    fn what_ended_is_forgotten_in_its_time_and_takes_no_memory_then() {
        let mut all = Incarnations::default();
        let names: Vec<_> = (0..LIMIT).map(|nth| format!("proxy-{nth}")).collect();
        let ids = || names.iter().map(|name| ProxyId::of(name));
        for (id, tick) in ids().zip(0..) {
            assert!(all.has_room(id, LIMIT, 0));
            all.begin(id);
            all.end(id, ended(1, tick));
        }
        // Two IDs begin again, and one of them ends again.
        all.begin(ProxyId::of("proxy-3"));
        all.begin(ProxyId::of("proxy-4"));
        all.end(ProxyId::of("proxy-4"), ended(2, 60));
        let newcomer = ProxyId::of("newcomer");
        assert!(!all.has_room(newcomer, LIMIT, 0), "there are {LIMIT}");
        assert!(all.has_room(ProxyId::of("proxy-4"), LIMIT, 0), "it has a place");
        assert!(all.has_room(newcomer, LIMIT, 1), "one was forgotten for it");

        all.forget(50, usize::MAX);
        let left: Vec<_> = (0..LIMIT).filter(|&nth| nth == 4 || nth >= 50).collect();
        let known = |nth: &usize| all.ended.contains_key(&ProxyId::of(&names[*nth]).into());
        assert_eq!((0..LIMIT).filter(known).collect::<Vec<_>>(), left);

        all.end(ProxyId::of("proxy-3"), ended(2, 100));
        assert_eq!(forgotten_of(&mut all, 101), 52);
        assert_eq!((all.len(), all.queue.len()), (0, 0));
    }

    #[test]
    fn an_id_that_comes_and_goes_is_queued_once() {
        let mut all = Incarnations::default();
        let id = ProxyId::of("00000000-0000-0000-0000-000000000001");
        for tick in 1..1000 {
            all.begin(id);
            all.end(id, ended(tick, tick));
            assert_eq!(all.forget(tick - 1, 1), 0);
            assert_eq!((all.ended.len(), all.queue.len()), (1, 1));
        }
    }

    #[test]
    fn an_id_counts_for_its_client_until_it_begins_again_or_is_forgotten() {
        let client = ClientId(number(1));
        let of_client = |tick| Ended {
            client: Some(client),
            ..ended(1, tick)
        };
        let mut all = Incarnations::default();
        for (name, tick) in [("a", 1), ("b", 2), ("c", 3)] {
            all.begin(ProxyId::of(name));
            all.end(ProxyId::of(name), of_client(tick));
        }
        let newcomer = ProxyId::of("newcomer");
        let has_room = |all: &mut Incarnations, of, before| all.has_room_of_client(newcomer, of, 1, 3, before);
        assert!(!has_room(&mut all, client, 0));
        assert!(has_room(&mut all, ClientId(number(2)), 0), "another client");
        assert!(
            all.has_room_of_client(ProxyId::of("a"), client, 1, 3, 0),
            "it has a place"
        );
        // The ID ends again, for no client.
        all.begin(ProxyId::of("a"));
        all.end(ProxyId::of("a"), ended(2, 4));
        assert!(has_room(&mut all, client, 0));
        all.remember(
            ProxyId::of("a"),
            Ended {
                client: Some(client),
                ..ended(3, 5)
            },
        );
        assert!(!has_room(&mut all, client, 0));
        assert!(has_room(&mut all, client, 3), "one is forgotten");
        all.forget(6, usize::MAX);
        assert!(all.of_clients.is_empty() && all.queue.is_empty());
    }

    /// Threads that wait for the registry's lock wait for all removals of its holder.
    #[test]
    fn a_new_id_without_room_makes_few_ids_forgotten() {
        let mut all = Incarnations::default();
        let limit = 10_000;
        for nth in 0..limit {
            let name = nth.to_string();
            all.begin(ProxyId::of(&name));
            all.end(ProxyId::of(&name), ended(1, 1));
        }
        for nth in limit..2 * limit {
            let before = all.len();
            let name = nth.to_string();
            assert!(all.has_room(ProxyId::of(&name), limit, 2), "all others are due");
            assert!(
                before - all.len() <= FORGOTTEN_FOR_ONE,
                "{} at once",
                before - all.len()
            );
            all.begin(ProxyId::of(&name));
        }
        assert_eq!((all.current, all.ended.len()), (limit, 0));
        assert!(!all.has_room(ProxyId::of("newcomer"), limit, 2));
    }
}
