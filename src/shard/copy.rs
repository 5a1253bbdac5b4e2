//! Copying a shard's routes out.

use crate::key::Key;
use crate::node_id::NodeId;
use crate::proxies::Liveness;
use crate::shard::routes::{Words, read};
use crate::shard::slab::Record;
use crate::shard::word::State;
use crate::shard::{Scope, Shard, newest_first};

impl<K: Key> Shard<K> {
    /// Hands each node that has valid routes to `each`, with these, newest first. Returns for each of those nodes whether it
    /// counts: the others may be there twice.
    ///
    /// It goes along the slots of one index under one pin. A route that is there all the while is in a record that this
    /// index has, since the index was the root at the beginning, and slots are written once (invariant 1). Whatever
    /// replaces the index meanwhile shares the record, or moves it, and then its frozen word still says that the route was
    /// there (9); the record is not reused under the pin (7).
    ///
    /// A key has one record that is not RETIRED in one index. A node that is removed and comes back may be met twice all
    /// the same: its record was RETIRED by a rebuild that lost, so it comes back with another one (6). But then the first
    /// one is still RETIRED at the end, and a route that is there all the while is never in such a record; so those do
    /// not count.
    pub(crate) fn copy<P: Liveness>(&self, scope: &Scope<'_, P>, mut each: impl FnMut(NodeId, &Words)) -> Vec<bool> {
        let mut copied: Vec<&Record> = Vec::new();
        let mut words = Words::new();
        let Some(index) = self.root(scope.guard) else {
            return Vec::new();
        };
        for (_, record) in index.occupied() {
            words.clear();
            read(record, scope, |word| words.push(word));
            if !words.is_empty() {
                newest_first(&mut words);
                // SAFETY: an index has the record, and the guard is pinned.
                each(unsafe { K::node(record.key()) }, &words);
                copied.push(record);
            }
        }
        copied
            .iter()
            .map(|record| record.load().state() != State::Retired)
            .collect()
    }
}
