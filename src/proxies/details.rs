//! What proxies share: addresses and cluster names, each stored once.

use std::sync::Arc;

use ahash::RandomState;
use compact_str::CompactString;
use hashbrown::{Equivalent, HashMap};

/// A cluster and an address in it; proxies that have the same ones share it.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Details {
    cluster_name: Arc<CompactString>,
    addr: CompactString,
}

impl Details {
    pub(crate) fn is(&self, cluster_name: &str, addr: &str) -> bool {
        *self.cluster_name == cluster_name && self.addr == addr
    }

    pub(crate) fn cluster_name(&self) -> CompactString {
        (*self.cluster_name).clone()
    }

    pub(crate) fn addr(&self) -> CompactString {
        self.addr.clone()
    }
}

/// A [`Details`] that is looked for.
#[derive(Hash)]
struct Wanted<'a> {
    cluster_name: &'a str,
    addr: &'a str,
}

impl Equivalent<Arc<Details>> for Wanted<'_> {
    fn equivalent(&self, key: &Arc<Details>) -> bool {
        key.is(self.cluster_name, self.addr)
    }
}

/// Every [`Details`] that some proxy has, with how many have it. The count is its own, not the `Arc`'s: readers that are
/// on their way out still hold the latter.
#[derive(Debug, Default)]
pub(crate) struct Interner {
    details: HashMap<Arc<Details>, u32, RandomState>,
    /// With how many of `details` have the name.
    cluster_names: HashMap<Arc<CompactString>, u32, RandomState>,
}

impl Interner {
    /// The shared details, for one more proxy.
    pub(crate) fn intern(&mut self, cluster_name: &str, addr: &str) -> Arc<Details> {
        let wanted = Wanted { cluster_name, addr };
        if let Some((known, _)) = self.details.get_key_value(&wanted) {
            let known = Arc::clone(known);
            *self.details.entry(Arc::clone(&known)).or_default() += 1;
            return known;
        }
        let known_name = self.cluster_names.get_key_value(&CompactString::from(cluster_name));
        let cluster_name = known_name.map_or_else(|| Arc::new(cluster_name.into()), |(known, _)| Arc::clone(known));
        *self.cluster_names.entry(Arc::clone(&cluster_name)).or_default() += 1;
        let new = Arc::new(Details {
            cluster_name,
            addr: addr.into(),
        });
        self.details.insert(Arc::clone(&new), 1);
        new
    }

    /// Counts one proxy less that has `details`.
    pub(crate) fn release(&mut self, details: &Arc<Details>) {
        if count_down(&mut self.details, details) {
            count_down(&mut self.cluster_names, &details.cluster_name);
        }
    }
}

/// Tells whether that was the last one.
fn count_down<T: Eq + std::hash::Hash>(counts: &mut HashMap<Arc<T>, u32, RandomState>, of: &Arc<T>) -> bool {
    match counts.get_mut(of) {
        Some(count) if *count > 1 => {
            *count -= 1;
            false
        }
        _ => counts.remove(of).is_some(),
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
