//! Ended incarnations, for snapshots.

use std::num::NonZeroU64;
use std::thread;

use crate::proxies::id::{OwnedId, ProxyId};
use crate::proxies::incarnations::Ended;
use crate::proxies::{Moment, Proxies};
use crate::sync::Guard;

/// How many ended incarnations are copied with the lock held once.
const COPIED_AT_ONCE: usize = 64;

/// How often a copy tries to take the lock, and yields the processor in between. Nearly every holder has the lock for
/// some microseconds.
const TRIES: usize = 10_000;

/// An incarnation that a proxy's ID has ended.
#[derive(Debug, Clone)]
pub(crate) struct EndedIncarnation {
    pub(crate) id: OwnedId,
    pub(crate) ended: Ended,
}

impl Proxies {
    /// Calls `each` with the ended incarnations that still count. Returns `false` if it left some out because another
    /// thread was stopped with the registry's lock held. Calls `each` without the lock.
    pub(crate) fn each_ended<E>(
        &self,
        at: Moment,
        mut each: impl FnMut(&EndedIncarnation) -> Result<(), E>,
    ) -> Result<bool, E> {
        let mut last: Option<OwnedId> = None;
        loop {
            let registry = (0..TRIES).find_map(|_| {
                let registry = self.registry.try_lock();
                if registry.is_none() {
                    thread::yield_now();
                }
                registry
            });
            let Some(registry) = registry else { return Ok(false) };
            let copied = registry.incarnations.ended_after(last.as_ref(), COPIED_AT_ONCE);
            drop(registry);
            for ended in copied.iter().filter(|copied| copied.ended.tick >= at.interval_ago) {
                each(ended)?;
            }
            match copied.into_iter().next_back() {
                Some(ended) => last = Some(ended.id),
                None => return Ok(true),
            }
        }
    }

    /// Remembers an incarnation that has ended. Does not if the table knows a registered incarnation of the ID, or an
    /// ended incarnation that is not less. Returns `false` if there is no room.
    pub(crate) fn remember_ended(&self, id: &str, ended: Ended, at: Moment, guard: &Guard) -> bool {
        let id = ProxyId::of(id);
        let owner = &mut self.own(guard);
        let registered = self.registered(id, guard);
        let current: Option<NonZeroU64> = registered.and_then(|proxy| self.numbers.incarnation(proxy.number));
        if current.is_some() {
            return true;
        }
        let has_room = owner
            .incarnations
            .has_room(id, self.most_incarnations(), at.interval_ago);
        if has_room {
            owner.incarnations.remember(id, ended);
        }
        has_room
    }
}
