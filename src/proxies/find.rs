//! Finding proxies by their IDs, without a lock.
//!
//! An ID keeps its slot in the map for as long as it is registered, also when another number takes its place. A reader that
//! finds a number that is DEAD looks again, since the proxy may have been replaced: see [`takeover`](super::takeover).
//! Each further look means that another thread has replaced or registered the proxy meanwhile.

use crate::proxies::entry::Entry;
use crate::proxies::id::ProxyId;
use crate::proxies::ids::{self, part_of};
use crate::proxies::{Proxies, ProxyRef};
use crate::sync::Guard;

impl Proxies {
    /// The proxy that is registered under an ID.
    pub(crate) fn find(&self, id: &str, guard: &Guard) -> Option<ProxyRef> {
        self.registered(ProxyId::of(id), guard)
    }

    /// As [`find`](Proxies::find).
    pub(crate) fn registered(&self, id: ProxyId<'_>, guard: &Guard) -> Option<ProxyRef> {
        let mut dead = None;
        loop {
            let number = self.ids.find(id, guard)?;
            let successor = || self.reference(self.takeover.successor(number)?);
            if let Some(proxy) = self.reference(number).or_else(successor) {
                return Some(proxy);
            }
            // If the number had been replaced, the map would say so by now: that came before what said that the number is
            // DEAD, or before what said that no takeover is under way. So the proxy was removed, and a thread is about to
            // remove the ID from the map.
            if dead.replace(number) == Some(number) {
                return None;
            }
        }
    }

    /// The proxies whose IDs are in one [part](Proxies::PARTS) of the map, in the order of their IDs' hashes, which come
    /// with them. Each ID is there once: a proxy that is registered all the while, and others that are at some moment of the
    /// call.
    pub(crate) fn in_part(&self, part: usize, guard: &Guard) -> Vec<(u64, ProxyRef)> {
        let found = self.ids.numbers(part, guard).filter_map(|number| {
            let id = self.numbers.get(number)?.id(guard);
            let proxy = self.reference(number).or_else(|| self.registered(id, guard))?;
            Some((self.ids.hash(id), proxy))
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|(hash, _)| *hash);
        // An ID that was removed and registered again meanwhile may have been seen in two slots.
        let id = |proxy: &ProxyRef| self.numbers.get(proxy.number).map(|entry: Entry<'_>| entry.id(guard));
        found.dedup_by(|later, kept| {
            let is_same = later.0 == kept.0 && id(&later.1) == id(&kept.1);
            if is_same {
                *kept = *later;
            }
            is_same
        });
        found
    }

    /// How many parts the map of IDs has.
    pub(crate) const PARTS: usize = ids::PARTS;

    /// The part of the IDs with a hash.
    pub(crate) fn part_of(hash: u64) -> usize {
        part_of(hash)
    }

    /// The first hash of a part.
    pub(crate) fn first_hash(part: usize) -> u64 {
        ids::first_hash(part)
    }
}
