//! Which incarnation of each proxy is the latest one, for as long as a late message of an older one may come.
//!
//! An ID is in here from its first [`begin_incarnation`](crate::RouteTable::begin_incarnation) on, and is in one of three
//! states:
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
//! It is CURRENT while, and only while, the proxy that `begin` returned is registered. So with the registry's lock held,
//! the number that an ID has and the state that it has here agree.
//!
//! Nothing is forgotten before its time to make room: that would let late messages in. There are at most as many IDs in
//! here as there may be proxies, and one that finds no room is refused.

use std::collections::VecDeque;
use std::num::NonZeroU64;

use ahash::RandomState;
use hashbrown::HashMap;

use crate::error::StaleIncarnation;
use crate::proxies::id::{OwnedId, ProxyId};

/// The latest incarnation of each proxy that ever began one. It has no memory before the first one does.
#[derive(Debug, Default)]
pub(crate) struct Incarnations {
    latest: HashMap<OwnedId, Latest, RandomState>,
    /// IDs that left CURRENT, and when; each at most once. One that came back, or left once more, is found out when its
    /// turn comes.
    ended: VecDeque<(OwnedId, u64)>,
}

#[derive(Debug)]
struct Latest {
    incarnation: NonZeroU64,
    state: State,
    /// It is in `ended`.
    is_queued: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Current,
    /// The sweeper dropped the proxy at a tick, since it had no routes.
    Dropped(u64),
    /// The proxy was removed at a tick.
    Over(u64),
}

impl State {
    fn ended(self) -> Option<u64> {
        match self {
            State::Current => None,
            State::Dropped(at) | State::Over(at) => Some(at),
        }
    }
}

/// How an incarnation that may begin stands to what was known before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It is CURRENT already.
    Current,
    /// What the ID has registered belongs to it: calls without an incarnation brought it there.
    Adopts,
    /// What the ID has registered belongs to an older one.
    Replaces,
}

impl Incarnations {
    /// How `incarnation` stands, unless it is stale. What ended before the tick `forget_before` counts no more.
    pub(crate) fn standing(
        &self,
        id: ProxyId<'_>,
        incarnation: NonZeroU64,
        forget_before: u64,
    ) -> Result<Standing, StaleIncarnation> {
        let Some(known) = self.latest.get(&id) else {
            return Ok(Standing::Adopts);
        };
        if known.state.ended().is_some_and(|at| at < forget_before) {
            return Ok(Standing::Adopts);
        }
        let is_over = matches!(known.state, State::Over(_));
        let latest = known.incarnation;
        if incarnation < latest || incarnation == latest && is_over {
            return Err(StaleIncarnation {
                incarnation,
                latest,
                is_over,
            });
        }
        Ok(match known.state {
            _ if incarnation > latest => Standing::Replaces,
            State::Current => Standing::Current,
            _ => Standing::Adopts,
        })
    }

    /// Whether there is room for an ID, among `limit` of them.
    pub(crate) fn has_room(&mut self, id: ProxyId<'_>, limit: usize, forget_before: u64) -> bool {
        if self.latest.len() >= limit && !self.latest.contains_key(&id) {
            self.forget(forget_before, usize::MAX);
        }
        self.latest.len() < limit || self.latest.contains_key(&id)
    }

    /// Makes an incarnation that may begin the CURRENT one.
    pub(crate) fn begin(&mut self, id: ProxyId<'_>, incarnation: NonZeroU64) {
        let known = self.latest.entry(id.into()).or_insert(Latest {
            incarnation,
            state: State::Current,
            is_queued: false,
        });
        known.incarnation = incarnation;
        known.state = State::Current;
    }

    /// The CURRENT incarnation of an ID.
    pub(crate) fn current(&self, id: ProxyId<'_>) -> Option<NonZeroU64> {
        let known = self.latest.get(&id)?;
        (known.state == State::Current).then_some(known.incarnation)
    }

    /// Notes that the proxy of an ID was removed. If it had no incarnation, that changes nothing.
    pub(crate) fn removed(&mut self, id: ProxyId<'_>, tick: u64) {
        self.end(id, State::Over(tick), tick);
    }

    /// Notes that the sweeper dropped the proxy of an ID.
    pub(crate) fn dropped(&mut self, id: ProxyId<'_>, tick: u64) {
        self.end(id, State::Dropped(tick), tick);
    }

    fn end(&mut self, id: ProxyId<'_>, state: State, tick: u64) {
        if let Some(known) = self.latest.get_mut(&id)
            && known.state == State::Current
        {
            known.state = state;
            if !known.is_queued {
                known.is_queued = true;
                self.ended.push_back((id.into(), tick));
            }
        }
    }

    /// Forgets up to `most` of those that ended before a tick.
    pub(crate) fn forget(&mut self, before: u64, most: usize) {
        for _ in 0..most {
            let Some((id, _)) = self.ended.pop_front_if(|(_, at)| *at < before) else {
                break;
            };
            let Some(known) = self.latest.get_mut(&id) else {
                continue;
            };
            match known.state.ended() {
                None => known.is_queued = false,
                Some(at) if at < before => _ = self.latest.remove(&id),
                Some(at) => self.ended.push_back((id, at)),
            }
        }
        if self.ended.len() < self.ended.capacity() / 4 {
            self.ended.shrink_to(self.ended.len() * 2);
        }
        if self.latest.len() < self.latest.capacity() / 4 {
            self.latest.shrink_to(self.latest.len() * 2);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const LIMIT: usize = 100;

    fn number(number: u64) -> NonZeroU64 {
        NonZeroU64::new(number).expect("not zero")
    }

    #[test]
    fn what_ended_is_forgotten_in_its_time_and_takes_no_memory_then() {
        let mut all = Incarnations::default();
        assert_eq!((all.latest.capacity(), all.ended.capacity()), (0, 0));
        let names: Vec<_> = (0..LIMIT).map(|nth| format!("proxy-{nth}")).collect();
        let ids = || names.iter().map(|name| ProxyId::of(name));
        for (id, tick) in ids().zip(0..) {
            assert!(all.has_room(id, LIMIT, 0));
            all.begin(id, number(1));
            all.removed(id, tick);
        }
        // One comes back, and one does that and ends once more.
        all.begin(ProxyId::of("proxy-3"), number(2));
        all.begin(ProxyId::of("proxy-4"), number(2));
        all.removed(ProxyId::of("proxy-4"), 60);
        let newcomer = ProxyId::of("newcomer");
        assert!(!all.has_room(newcomer, LIMIT, 0), "there are {LIMIT}");
        assert!(all.has_room(newcomer, LIMIT, 1), "one was forgotten for it");

        all.forget(50, usize::MAX);
        let left: Vec<_> = (0..LIMIT).filter(|&nth| nth == 3 || nth == 4 || nth >= 50).collect();
        let known = |nth: &usize| all.latest.contains_key(&ProxyId::of(&names[*nth]));
        assert_eq!((0..LIMIT).filter(known).collect::<Vec<_>>(), left);

        all.removed(ProxyId::of("proxy-3"), 100);
        all.forget(101, usize::MAX);
        assert_eq!((all.latest.len(), all.ended.len()), (0, 0));
        assert_eq!((all.latest.capacity(), all.ended.capacity()), (0, 0));
    }

    #[test]
    fn an_id_that_comes_and_goes_is_queued_once() {
        let mut all = Incarnations::default();
        let id = ProxyId::of("00000000-0000-0000-0000-000000000001");
        for tick in 1..1000 {
            all.begin(id, number(tick));
            all.removed(id, tick);
            all.forget(tick - 1, 1);
        }
        assert_eq!((all.latest.len(), all.ended.len()), (1, 1));
    }
}
