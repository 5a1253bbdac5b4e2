//! The owner of the details that proxies share. Each cluster name is stored once, under a number. Each address that
//! does not fit into a word ([`Details`]) is stored once per cluster.
//!
//! Readers resolve a word without a lock. All of this module belongs to the registry's owner.

use std::collections::{BTreeMap, BTreeSet, LinkedList};
use std::hash::Hash;
use std::sync::Arc;

use ahash::RandomState;

use crate::mem::thin_str::ThinStr;
use crate::proxies::cluster_names::ClusterNames;
use crate::proxies::details::{Addr, Details, Form, INLINE_CLUSTERS, SharedPtr};
use crate::proxies::grace_period::GracePeriods;
use crate::proxies::unlinked::Unlinked;
use crate::sync::new_hasher;

/// Every cluster of a proxy, and every [`Shared`] of a proxy.
///
/// Trees and a list, which grow and shrink by a few elements at a time, because other threads wait for the lock
/// meanwhile.
#[derive(Debug)]
pub(crate) struct Interner {
    /// By the hashes of the details.
    shared: BTreeSet<(u32, SharedPtr)>,
    /// By the hashes of the names.
    cluster_numbers: BTreeSet<(u32, u32)>,
    clusters: Arc<ClusterNames>,
    /// How many entries and [`Shared`] have each cluster, by its number.
    users: BTreeMap<u32, u32>,
    /// Every number that a cluster has ever had is below this.
    next: u32,
    /// The numbers below `next` that no cluster has. The least number is used first: small numbers fit into a word.
    free: BTreeSet<u32>,
    /// Numbers that readers may still resolve to a former cluster, each with its grace period.
    unlinked: LinkedList<(u32, u32)>,
    hasher: RandomState,
}

/// How many numbers of former clusters are freed each time a cluster is added or removed. More than one, so that their
/// number shrinks.
const FREED_FOR_ONE: usize = 2;

impl Default for Interner {
    fn default() -> Self {
        Self {
            shared: BTreeSet::new(),
            cluster_numbers: BTreeSet::new(),
            clusters: Arc::new(ClusterNames::new()),
            users: BTreeMap::new(),
            next: 0,
            free: BTreeSet::new(),
            unlinked: LinkedList::new(),
            hasher: new_hasher(),
        }
    }
}

impl Interner {
    pub(crate) fn clusters(&self) -> Arc<ClusterNames> {
        Arc::clone(&self.clusters)
    }

    /// Details for one more entry, which counts as a user.
    pub(crate) fn intern(&mut self, cluster_name: &str, addr: &str, grace: &GracePeriods) -> Details {
        let cluster = self.cluster(cluster_name, grace);
        if let Addr::V4(addr) = Addr::of(addr)
            && cluster < INLINE_CLUSTERS
        {
            self.use_cluster(cluster);
            return Details::inline(cluster, addr);
        }
        let hash = self.hash_of((cluster, addr));
        let first = SharedPtr(std::ptr::null_mut());
        let mut alike = self
            .shared
            .range((hash, first)..)
            .take_while(|(other, _)| *other == hash);
        // SAFETY: every `Shared` in the set has a user, so it is not freed (D1).
        if let Some((_, known)) = alike.find(|(_, known)| unsafe { known.key() } == (cluster, addr)) {
            // SAFETY: the `Shared` is in the set, so it is not freed (D1), and `&mut self` is exclusive (D3).
            unsafe { known.add_users(1) };
            return Details::shared(known.0);
        }
        self.use_cluster(cluster);
        let new = SharedPtr::new(cluster, addr);
        self.shared.insert((hash, new));
        Details::shared(new.0)
    }

    fn hash_of(&self, key: impl Hash) -> u32 {
        self.hasher.hash_one(key) as u32
    }

    /// The number of a cluster. The caller must add a user, because a new cluster has none.
    fn cluster(&mut self, name: &str, grace: &GracePeriods) -> u32 {
        let hash = self.hash_of(name);
        let mut alike = self.cluster_numbers.range((hash, 0)..=(hash, u32::MAX));
        // SAFETY: every number in the set is a cluster's (D2), and `&mut self` is exclusive.
        if let Some((_, known)) = alike.find(|(_, known)| unsafe { self.clusters.name(*known) } == name) {
            return *known;
        }
        self.free_numbers(grace);
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.clusters.set_name(number, ThinStr::new_or_abort(name));
        self.cluster_numbers.insert((hash, number));
        number
    }

    fn use_cluster(&mut self, number: u32) {
        *self.users.entry(number).or_default() += 1;
    }

    /// Frees some numbers of former clusters.
    fn free_numbers(&mut self, grace: &GracePeriods) {
        for _ in 0..FREED_FOR_ONE {
            let is_over = |(period, _): &&(u32, u32)| grace.is_over(*period);
            let Some((_, number)) = self.unlinked.front().filter(is_over).copied() else {
                return;
            };
            self.unlinked.pop_front();
            // SAFETY: the grace period since the last word with the number is over (D1). A new cluster sets another
            // name before it uses the number.
            unsafe { self.clusters.free_name(number) };
            self.free.insert(number);
        }
    }

    /// Counts one entry less with `details`. Readers may read the details until the grace period of `unlinked` is over.
    pub(crate) fn release(&mut self, details: Details, unlinked: &mut Unlinked<'_>) {
        match details.form() {
            Form::None => {}
            Form::Inline { cluster, .. } => self.release_cluster(cluster, unlinked),
            Form::Shared(shared) => {
                let shared = SharedPtr(shared);
                // SAFETY: the `Shared` has a user, so it is not freed (D1); `&mut self` is exclusive (D3).
                if unsafe { shared.add_users(-1) } > 0 {
                    return;
                }
                // SAFETY: the `Shared` is freed only after the grace period of `unlinked` (D1).
                let key = unsafe { shared.key() };
                self.shared.remove(&(self.hash_of(key), shared));
                let cluster = key.0;
                unlinked.free(shared);
                self.release_cluster(cluster, unlinked);
            }
        }
    }

    fn release_cluster(&mut self, number: u32, unlinked: &mut Unlinked<'_>) {
        if let Some(users) = self.users.get_mut(&number)
            && *users > 1
        {
            *users -= 1;
            return;
        }
        self.users.remove(&number);
        // SAFETY: the number is still the cluster's (D2), and `&mut self` is exclusive.
        let hash = self.hash_of(unsafe { self.clusters.name(number) });
        self.cluster_numbers.remove(&(hash, number));
        self.free_numbers(unlinked.grace());
        self.unlinked.push_back((unlinked.period(), number));
    }
}

impl Drop for Interner {
    fn drop(&mut self) {
        for (_, shared) in &self.shared {
            // SAFETY: the interner is being dropped, so no other thread can reach the `Shared`.
            unsafe { shared.free() };
        }
        let unlinked = self.unlinked.iter().map(|(_, number)| number);
        for number in self.users.keys().chain(unlinked) {
            // SAFETY: the interner is being dropped, so no other thread reads the name.
            unsafe { self.clusters.free_name(*number) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::sync::pin;

    /// The details as readers get them.
    fn seen(interner: &Interner, details: Details) -> (String, String) {
        let guard = pin();
        // SAFETY: the tests look up only details that have a user.
        let (cluster, addr) = unsafe { details.look_up(&interner.clusters, &guard) }.expect("it has details");
        (cluster.into(), addr.to_compact_string().into())
    }

    fn release(interner: &mut Interner, details: Details, grace: &GracePeriods) {
        let mut unlinked = Unlinked::new(grace);
        interner.release(details, &mut unlinked);
        unlinked.begin(&pin());
    }

    #[test]
    fn equal_details_are_stored_once_and_forgotten_with_their_last_proxy() {
        let (mut interner, grace) = (Interner::default(), GracePeriods::default());
        let a = interner.intern("cluster", "a:1", &grace);
        let also_a = interner.intern("cluster", "a:1", &grace);
        let b = interner.intern("cluster", "10.0.0.1:1", &grace);
        assert!(a == also_a && a != b);
        assert_eq!(seen(&interner, a), ("cluster".into(), "a:1".into()));
        assert_eq!(seen(&interner, b), ("cluster".into(), "10.0.0.1:1".into()));
        release(&mut interner, a, &grace);
        assert_eq!(interner.shared.len(), 1, "another proxy has it");
        release(&mut interner, also_a, &grace);
        assert_eq!((interner.shared.len(), interner.cluster_numbers.len()), (0, 1));
        release(&mut interner, b, &grace);
        assert_eq!(interner.cluster_numbers.len(), 0);
    }

    #[test]
    fn a_clusters_number_is_anothers_only_after_a_grace_period() {
        let (mut interner, grace) = (Interner::default(), GracePeriods::default());
        let reader = pin();
        let first = interner.intern("first", "10.0.0.1:1", &grace);
        release(&mut interner, first, &grace);
        let second = interner.intern("second", "10.0.0.1:1", &grace);
        assert_ne!(first, second);
        // SAFETY: the reader was pinned before the release.
        let (cluster, _) = unsafe { first.look_up(&interner.clusters, &reader) }.expect("it had details");
        assert_eq!(cluster, "first");
        drop(reader);
        // Other tests' threads may be pinned for long.
        let reused = (0..100_000).any(|i| {
            pin().flush();
            std::thread::yield_now();
            let details = interner.intern(&format!("cluster {i}"), "10.0.0.1:1", &grace);
            let is_first = details == first;
            release(&mut interner, details, &grace);
            is_first
        });
        assert!(reused, "the number was never given to another cluster");
    }

    #[test]
    fn clusters_with_large_numbers_share_addresses_too() {
        let (mut interner, grace) = (Interner::default(), GracePeriods::default());
        for number in 0..INLINE_CLUSTERS + 3 {
            let details = interner.intern(&number.to_string(), "10.0.0.1:3080", &grace);
            let expected = (number.to_string(), "10.0.0.1:3080".into());
            assert_eq!(seen(&interner, details), expected);
        }
        assert_eq!(interner.shared.len(), 3);
    }
}
