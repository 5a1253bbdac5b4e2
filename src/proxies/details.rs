//! What proxies share: addresses and cluster names, each stored once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ahash::RandomState;
use compact_str::CompactString;
use hashbrown::HashTable;

/// A cluster and an address in it; proxies that have the same ones share it.
#[derive(Debug)]
pub(crate) struct Details {
    cluster_name: Arc<Counted<CompactString>>,
    addr: CompactString,
}

impl Details {
    pub(crate) fn is(&self, cluster_name: &str, addr: &str) -> bool {
        self.addr == addr && self.cluster_name.value == cluster_name
    }

    pub(crate) fn cluster_name(&self) -> CompactString {
        self.cluster_name.value.clone()
    }

    pub(crate) fn addr(&self) -> CompactString {
        self.addr.clone()
    }
}

/// A value with how many users it has. The count is not the `Arc`'s: readers that are on their way out still hold that.
/// Only the interner's owner touches it.
#[derive(Debug)]
pub(crate) struct Counted<T> {
    value: T,
    users: AtomicU32,
}

impl<T> std::ops::Deref for Counted<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Counted<T> {
    fn new(value: T) -> Arc<Self> {
        Arc::new(Self {
            value,
            users: AtomicU32::new(0),
        })
    }

    fn one_more(&self) {
        // Relaxed: the interner's lock orders it.
        self.users.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells whether that was the last one.
    fn one_less(&self) -> bool {
        // Relaxed: as above.
        self.users.fetch_sub(1, Ordering::Relaxed) == 1
    }
}

/// Details with how many proxies have them.
pub(crate) type SharedDetails = Counted<Details>;

/// Every [`Details`] that some proxy has, and every cluster name that some of them has.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    details: HashTable<Arc<SharedDetails>>,
    cluster_names: HashTable<Arc<Counted<CompactString>>>,
    hasher: RandomState,
}

impl Interner {
    /// The shared details, for one more proxy.
    pub(crate) fn intern(&mut self, cluster_name: &str, addr: &str) -> Arc<SharedDetails> {
        let hash_of =
            |details: &Arc<SharedDetails>| self.hasher.hash_one((&*details.cluster_name.value, &*details.addr));
        let hash = self.hasher.hash_one((cluster_name, addr));
        if let Some(known) = self.details.find(hash, |known| known.is(cluster_name, addr)) {
            known.one_more();
            return Arc::clone(known);
        }
        let name_hash = self.hasher.hash_one(cluster_name);
        let known_name = self.cluster_names.entry(
            name_hash,
            |known| known.value == cluster_name,
            |known| self.hasher.hash_one(&*known.value),
        );
        let name = Arc::clone(known_name.or_insert_with(|| Counted::new(cluster_name.into())).get());
        name.one_more();
        let new = Counted::new(Details {
            cluster_name: name,
            addr: addr.into(),
        });
        new.one_more();
        self.details.insert_unique(hash, Arc::clone(&new), hash_of);
        new
    }

    /// Counts one proxy less that has `details`.
    pub(crate) fn release(&mut self, details: &Arc<SharedDetails>) {
        if !details.one_less() {
            return;
        }
        let name = &details.cluster_name;
        forget(
            &mut self.details,
            self.hasher.hash_one((&*name.value, &*details.addr)),
            details,
        );
        if name.one_less() {
            forget(&mut self.cluster_names, self.hasher.hash_one(&*name.value), name);
        }
    }
}

fn forget<T>(table: &mut HashTable<Arc<T>>, hash: u64, value: &Arc<T>) {
    if let Ok(entry) = table.find_entry(hash, |known| Arc::ptr_eq(known, value)) {
        entry.remove();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn equal_details_are_stored_once_and_forgotten_with_their_last_proxy() {
        let mut interner = Interner::default();
        let a = interner.intern("cluster", "a:1");
        let also_a = interner.intern("cluster", "a:1");
        let b = interner.intern("cluster", "b:1");
        assert!(Arc::ptr_eq(&a, &also_a) && Arc::ptr_eq(&a.cluster_name, &b.cluster_name));
        interner.release(&a);
        assert_eq!(interner.details.len(), 2, "another proxy has it");
        interner.release(&also_a);
        assert_eq!((interner.details.len(), interner.cluster_names.len()), (1, 1));
        interner.release(&b);
        assert_eq!((interner.details.len(), interner.cluster_names.len()), (0, 0));
    }
}
