//! Records that probably belong to the wanted keys. Batches find many candidates first, while prefetches load the
//! records, and then use the records.

use crate::liveness::Liveness;
use crate::shard::index::Index;
use crate::shard::key::Key;
use crate::shard::published::Published;
use crate::shard::routes::{Change, Changed, change, refresh_only_route};
use crate::shard::slab::Record;
use crate::shard::{CapacityError, Scope, Shard};
use crate::sync::Guard;
use crate::types::route::Added;
use crate::word::Word;

/// The most probable record of a key.
#[derive(Clone, Copy)]
pub(crate) struct Candidate<'g> {
    index: Index<'g>,
    pub(crate) number: u32,
    record: Published<'g>,
}

/// The record of a number, for any key that it has now.
#[derive(Clone, Copy)]
pub(crate) struct Numbered<'g> {
    index: Index<'g>,
    record: &'g Record,
}

impl<K: Key> Shard<K> {
    /// The most probable record of the key. Starts loading the record.
    #[inline]
    pub(crate) fn candidate<'g>(&self, hash: u64, guard: &'g Guard) -> Option<Candidate<'g>> {
        let index = self.root(guard)?;
        let (number, record) = index.candidate(hash)?;
        Some(Candidate { index, number, record })
    }

    /// The record of a number. Starts loading the record.
    #[inline]
    pub(crate) fn numbered<'g>(&self, number: u32, guard: &'g Guard) -> Option<Numbered<'g>> {
        let index = self.root(guard)?;
        let record = index.record(number)?;
        record.prefetch();
        Some(Numbered { index, record })
    }
}

impl Candidate<'_> {
    /// The record's word, if the record is the key's.
    #[inline]
    pub(crate) fn word<K: Key>(&self, key: &K) -> Option<Word> {
        self.record.is(key).then(|| self.record.load())
    }

    /// Adds or refreshes a route. `None` if the record is another key's, RETIRED, or moving.
    #[inline]
    pub(crate) fn add<K: Key, P: Liveness>(
        &self,
        key: &K,
        proxy: u32,
        scope: &Scope<'_, P>,
    ) -> Option<Result<Added, CapacityError>> {
        if !self.record.is(key) {
            return None;
        }
        match change::<K, P>(self.record, Change::Add(proxy), None, self.index.slab(), scope) {
            Ok(Changed::Added(added)) => Some(Ok(added)),
            Ok(_) => None,
            Err(refused) => Some(Err(refused)),
        }
    }
}

impl Numbered<'_> {
    /// The record's word, if it has routes and the record is the key's.
    #[inline]
    pub(crate) fn word<K: Key>(&self, key: &K) -> Option<Word> {
        // The word first, as in `refresh`.
        let word = self.record.load();
        if !word.has_routes() {
            return None;
        }
        // SAFETY: the word has routes (invariant 3), and the guard of the index is pinned.
        let record = unsafe { Published::new(self.record) };
        record.is(key).then_some(word)
    }

    /// Refreshes the route through a proxy, if the record has the route and `is_key` accepts its key. Returns whether
    /// it did.
    #[inline]
    pub(crate) fn refresh<K: Key, P: Liveness>(
        &self,
        proxy: u32,
        is_key: impl FnOnce([u64; 2]) -> bool,
        scope: &Scope<'_, P>,
    ) -> bool {
        // Load the word first. If the word is LIVE or SPILL, the key belongs to the word (invariant 3), and the record
        // is not reused while the guard is pinned (7). In the other order, the key might be a former owner's.
        let word = self.record.load();
        if !(word.has_routes() && is_key(self.record.key())) {
            return false;
        }
        // SAFETY: the word has routes (invariant 3), and the guard of the index is pinned.
        let record = unsafe { Published::new(self.record) };
        refresh_only_route(record, word, proxy, scope)
            || matches!(
                change::<K, P>(record, Change::Refresh(proxy), None, self.index.slab(), scope),
                Ok(Changed::Added(_))
            )
    }
}
