//! Finds proxies by their IDs, without a lock.
//!
//! An ID keeps its slot in the map while it is registered, even when it gets another number. A reader that finds a DEAD
//! number searches again, because the proxy may have been replaced: see [`takeover`](super::takeover). The second
//! search is the last, unless another thread has replaced or registered the proxy meanwhile.

use crate::proxies::Proxies;
use crate::proxies::entry::ProxyEntry;
use crate::proxies::id::ProxyId;
use crate::proxies::ids::{self, part_of};
use crate::sync::Guard;
use crate::types::proxy::ProxyRef;

impl Proxies {
    /// The proxy that is registered under an ID.
    pub(crate) fn find(&self, id: &str, guard: &Guard) -> Option<ProxyRef> {
        self.registered(ProxyId::of(id), guard)
    }

    /// [`find`](Proxies::find) for an ID that was parsed.
    pub(crate) fn registered(&self, id: ProxyId<'_>, guard: &Guard) -> Option<ProxyRef> {
        let mut dead = None;
        loop {
            let number = self.ids.find(id, guard)?;
            let successor = || self.reference(self.takeover.successor(number)?);
            if let Some(proxy) = self.reference(number).or_else(successor) {
                return Some(proxy);
            }
            // If the number had been replaced, the second search would have found another number. The map was changed
            // before the store that ended the takeover, which `successor` read. So the proxy was removed, and a thread
            // is about to remove the ID from the map.
            if dead.replace(number) == Some(number) {
                return None;
            }
        }
    }

    /// The proxies whose IDs are in one [part](Proxies::PARTS) of the map, each with its ID's hash, in the order of the
    /// hashes. Each ID is included at most once. A proxy that is registered during the whole call is included. A proxy
    /// that is registered at some moment of the call may be.
    pub(crate) fn in_part(&self, part: usize, guard: &Guard) -> Vec<(u64, ProxyRef)> {
        let found = self.ids.numbers(part, guard).filter_map(|number| {
            let id = self.numbers.get(number)?.id(guard);
            let proxy = self.reference(number).or_else(|| self.registered(id, guard))?;
            Some((self.ids.hash(id), proxy))
        });
        let mut found: Vec<_> = found.collect();
        found.sort_by_key(|(hash, _)| *hash);
        // An ID that was removed and registered again meanwhile may be in two slots.
        let id = |proxy: &ProxyRef| {
            self.numbers
                .get(proxy.number)
                .map(|entry: ProxyEntry<'_>| entry.id(guard))
        };
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

    /// The part for IDs with this hash.
    pub(crate) fn part_of(hash: u64) -> usize {
        part_of(hash)
    }

    /// The first hash of a part.
    pub(crate) fn first_hash(part: usize) -> u64 {
        ids::first_hash(part)
    }
}
