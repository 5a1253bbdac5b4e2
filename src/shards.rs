//! The shards of both kinds of key. Only this module knows both kinds.
//!
//! A shard of UUIDs and a shard of names have no type in common. So each operation on a node, or on a shard by its
//! number, selects the kind here.

use ahash::RandomState;
use once_cell::race::OnceBox;

use crate::layout::{SHARD_BITS, SHARDS};
use crate::liveness::{Census, Liveness};
use crate::shard::bulk_load::{NewRecords, NoIndex};
use crate::shard::candidate::{Candidate, Numbered};
use crate::shard::key::{Key, NameKey, UuidKey};
use crate::shard::rebuild::RebuildSlot;
use crate::shard::routes::{Change, Words};
use crate::shard::scan::{PartEnd, Start};
use crate::shard::{CapacityError, RecordPosition, Scope, Shard, Visit};
use crate::sync::{Guard, new_hasher};
use crate::types::handle::RouteHandle;
use crate::types::node_id::{IdKind, NodeId};
use crate::types::route::Added;
use crate::word::Word;

type Uuids = [Shard<UuidKey>; SHARDS];
type Names = [Shard<NameKey<'static>>; SHARDS];

/// All shards of a table, by number: those of UUIDs, then those of names.
pub(crate) struct Shards {
    uuids: Uuids,
    /// Made when the first node with a name is added.
    names: OnceBox<Names>,
    hasher: RandomState,
}

/// A shard of either kind, or its absence.
enum EitherKind<U, N> {
    Uuids(U),
    Names(N),
    /// The number is that of a shard of names, but no node with a name has been added yet.
    Absent,
}

/// A node's shard and its key there.
type NodeShard<'a> = EitherKind<(&'a Shard<UuidKey>, UuidKey), (&'a Shard<NameKey<'a>>, NameKey<'a>)>;

/// Runs `$body` with a shard of either kind.
macro_rules! with {
    ($of:expr, $shard:pat => $body:expr, $absent:expr) => {
        match $of {
            EitherKind::Uuids($shard) => $body,
            EitherKind::Names($shard) => $body,
            EitherKind::Absent => $absent,
        }
    };
}

fn make<K: Key, const FROM: usize>() -> [Shard<K>; SHARDS] {
    std::array::from_fn(|number| Shard::new(FROM + number))
}

/// The number of a hash's shard among the shards of its kind.
#[inline]
fn shard_of(hash: u64) -> usize {
    (hash >> (64 - SHARD_BITS)) as usize
}

impl Shards {
    pub(crate) fn new() -> Self {
        Self {
            uuids: make::<_, 0>(),
            names: OnceBox::new(),
            hasher: new_hasher(),
        }
    }

    pub(crate) fn hasher(&self) -> &RandomState {
        &self.hasher
    }

    /// The hash under which a node is stored.
    #[inline]
    pub(crate) fn hash(&self, node: &NodeId) -> u64 {
        match node.kind() {
            IdKind::Uuid(uuid) => UuidKey::from(*uuid).hash(&self.hasher),
            IdKind::Name(name) => NameKey::hash_of(name, &self.hasher),
        }
    }

    /// The number of a node's shard.
    #[inline]
    pub(crate) fn number_of(&self, node: &NodeId, hash: u64) -> usize {
        shard_of(hash) + if node.is_name() { SHARDS } else { 0 }
    }

    /// Every shard number is below this.
    pub(crate) fn end(&self) -> usize {
        if self.names.get().is_some() { 2 * SHARDS } else { SHARDS }
    }

    /// Makes the shards of names.
    pub(crate) fn ensure_names(&self) {
        self.names.get_or_init(|| Box::new(make::<_, SHARDS>()));
    }

    /// Makes the shards of the node's kind.
    #[inline]
    pub(crate) fn ensure_for(&self, node: &NodeId) {
        if node.is_name() {
            self.ensure_names();
        }
    }

    /// A node's shard and its key there.
    #[inline]
    fn of<'a>(&'a self, node: &'a NodeId, hash: u64) -> NodeShard<'a> {
        match node.kind() {
            IdKind::Uuid(uuid) => EitherKind::Uuids((&self.uuids[shard_of(hash)], UuidKey::from(*uuid))),
            IdKind::Name(name) => match self.names.get() {
                Some(names) => EitherKind::Names((&names[shard_of(hash)], NameKey::new(name, hash))),
                None => EitherKind::Absent,
            },
        }
    }

    /// A shard by number.
    #[inline]
    fn get(&self, number: usize) -> EitherKind<&Shard<UuidKey>, &Shard<NameKey<'static>>> {
        match (number.checked_sub(SHARDS), self.names.get()) {
            (None, _) => EitherKind::Uuids(&self.uuids[number]),
            (Some(number), Some(names)) => EitherKind::Names(&names[number]),
            (Some(_), None) => EitherKind::Absent,
        }
    }

    /// [`Shard::preload`].
    #[inline]
    pub(crate) fn preload(&self, node: &NodeId, hash: u64) {
        with!(self.of(node, hash), (shard, _key) => shard.preload(hash), ());
    }

    /// [`Shard::word`].
    #[inline]
    pub(crate) fn word(&self, node: &NodeId, hash: u64, guard: &Guard) -> Option<Word> {
        with!(self.of(node, hash), (shard, key) => shard.word(&key, hash, guard), None)
    }

    /// [`Shard::get`].
    #[inline]
    pub(crate) fn routes<P: Liveness>(&self, node: &NodeId, hash: u64, scope: &Scope<'_, P>) -> Words {
        with!(self.of(node, hash), (shard, key) => shard.get(&key, hash, scope), Words::new())
    }

    /// [`Shard::get_all`].
    pub(crate) fn all_routes(&self, node: &NodeId, hash: u64, guard: &Guard) -> Words {
        with!(self.of(node, hash), (shard, key) => shard.get_all(&key, hash, guard), Words::new())
    }

    /// [`Shard::put`]. The caller has called [`ensure_for`](Shards::ensure_for).
    #[inline]
    pub(crate) fn put<P: Liveness>(
        &self,
        node: &NodeId,
        hash: u64,
        what: Change,
        scope: &Scope<'_, P>,
    ) -> Result<(Added, u32), CapacityError> {
        with!(
            self.of(node, hash),
            (shard, key) => shard.put(&key, hash, what, scope),
            unreachable!("`ensure_for` was called")
        )
    }

    /// [`Shard::remove`].
    #[inline]
    pub(crate) fn remove<P: Liveness>(&self, node: &NodeId, hash: u64, what: Change, scope: &Scope<'_, P>) -> usize {
        with!(self.of(node, hash), (shard, key) => shard.remove(&key, hash, what, scope), 0)
    }

    /// [`Shard::prefetch`], for UUIDs. Names are few; batches look names up one by one.
    #[inline]
    pub(crate) fn prefetch(&self, node: &NodeId, hash: u64, guard: &Guard) {
        if !node.is_name() {
            self.uuids[shard_of(hash)].prefetch(hash, guard);
        }
    }

    /// [`Shard::candidate`], for UUIDs.
    #[inline]
    pub(crate) fn candidate<'g>(&self, node: &NodeId, hash: u64, guard: &'g Guard) -> Option<Candidate<'g>> {
        match node.is_name() {
            false => self.uuids[shard_of(hash)].candidate(hash, guard),
            true => None,
        }
    }

    /// Starts loading the record that a handle names, whether or not the record is still the node's.
    #[inline]
    pub(crate) fn numbered<'g>(&self, handle: RouteHandle, guard: &'g Guard) -> Option<Numbered<'g>> {
        match handle.is_name() {
            false => self.uuids[handle.shard()].numbered(handle.number(), guard),
            true => self.names.get()?[handle.shard()].numbered(handle.number(), guard),
        }
    }

    /// The word of the record with a number in a shard, if the record has routes and is the node's. Starts loading the
    /// record of the number `next`.
    #[inline]
    pub(crate) fn word_at(
        &self,
        shard: usize,
        node: &NodeId,
        number: u32,
        next: Option<u32>,
        guard: &Guard,
    ) -> Option<Word> {
        match (node.kind(), self.get(shard)) {
            (IdKind::Uuid(uuid), EitherKind::Uuids(shard)) => {
                let record = shard.numbered(number, guard)?;
                _ = next.and_then(|next| shard.numbered(next, guard));
                record.word(&UuidKey::from(*uuid))
            }
            (IdKind::Name(name), EitherKind::Names(shard)) => {
                let record = shard.numbered(number, guard)?;
                _ = next.and_then(|next| shard.numbered(next, guard));
                record.word(&NameKey::new(name, self.hash(node)))
            }
            _ => None,
        }
    }

    /// Refreshes the route through a proxy of a handle's record, if the record still belongs to the handle's node.
    /// Returns whether the call refreshed the route.
    #[inline]
    pub(crate) fn refresh<P: Liveness>(
        &self,
        record: Numbered<'_>,
        handle: RouteHandle,
        proxy: u32,
        scope: &Scope<'_, P>,
    ) -> bool {
        match handle.is_name() {
            false => {
                let fits = |stored| handle.fits(UuidKey::hash_stored(stored, &self.hasher));
                record.refresh::<UuidKey, _>(proxy, fits, scope)
            }
            true => {
                let fits = |stored| handle.fits(NameKey::hash_stored(stored, &self.hasher));
                record.refresh::<NameKey<'_>, _>(proxy, fits, scope)
            }
        }
    }

    /// [`Shard::visit`]; `None` if there is no such shard.
    pub(crate) fn visit<P: Liveness>(
        &self,
        number: usize,
        at: RecordPosition,
        most: u32,
        parked: &RebuildSlot,
        scope: &Scope<'_, P>,
        census: &mut impl Census,
    ) -> Option<Visit> {
        with!(self.get(number), shard => Some(shard.visit(at, most, parked, scope, census)), None)
    }

    /// [`Shard::scan`].
    pub(crate) fn scan<P: Liveness>(
        &self,
        number: usize,
        start: Start<'_>,
        most: usize,
        scope: &Scope<'_, P>,
        each: impl FnMut(NodeId, u32, &Words),
    ) -> PartEnd {
        with!(self.get(number), shard => shard.scan(start, most, scope, each), PartEnd::NONE)
    }

    /// Whether no node was ever added to a shard.
    pub(crate) fn is_untouched(&self, number: usize, guard: &Guard) -> bool {
        with!(self.get(number), shard => shard.is_untouched(guard), true)
    }

    /// [`Shard::fill`].
    #[must_use]
    pub(crate) fn fill<P: Liveness>(&self, number: usize, nodes: &mut NewNodes, scope: &Scope<'_, P>) -> bool {
        match (self.get(number), nodes) {
            (EitherKind::Uuids(shard), NewNodes::Uuids(records)) => shard.fill(records, scope),
            (EitherKind::Names(shard), NewNodes::Names(records)) => shard.fill(records, scope),
            _ => false,
        }
    }

    /// How many records have routes, and how many records there are, in all shards.
    pub(crate) fn records(&self, guard: &Guard) -> (usize, usize) {
        (0..self.end())
            .map(|number| with!(self.get(number), shard => shard.records(guard), (0, 0)))
            .fold((0, 0), |(nodes, records), (more, all)| (nodes + more, records + all))
    }

    /// The bytes of the records, and of the indexes and the shards, in all shards.
    pub(crate) fn bytes(&self, guard: &Guard) -> (usize, usize) {
        (0..self.end())
            .map(|number| with!(self.get(number), shard => shard.bytes(guard), (0, 0)))
            .fold((0, 0), |(records, indexes), (more, index)| {
                (records + more, indexes + index)
            })
    }
}

/// Nodes of one shard that is loaded in bulk, with their routes, in private memory.
pub(crate) enum NewNodes {
    Uuids(NewRecords<UuidKey>),
    Names(NewRecords<NameKey<'static>>),
}

/// Runs `$body` with records of either kind.
macro_rules! with_new {
    ($nodes:expr, $records:pat => $body:expr) => {
        match $nodes {
            NewNodes::Uuids($records) => $body,
            NewNodes::Names($records) => $body,
        }
    };
}

impl NewNodes {
    /// No nodes yet, for the shard of this number.
    pub(crate) fn of_shard(number: usize) -> Self {
        match number < SHARDS {
            true => Self::Uuids(NewRecords::default()),
            false => Self::Names(NewRecords::default()),
        }
    }

    /// [`NewRecords::push`]. The node belongs to the shard.
    #[must_use]
    pub(crate) fn push(&mut self, node: &NodeId, routes: &[Word], hasher: &RandomState) -> bool {
        match (self, node.kind()) {
            (Self::Uuids(records), IdKind::Uuid(uuid)) => records.push(&UuidKey::from(*uuid), routes),
            (Self::Names(records), IdKind::Name(name)) => {
                records.push_name(name, NameKey::hash_of(name, hasher), routes)
            }
            _ => unreachable!("UUIDs and names have shards of their own"),
        }
    }

    pub(crate) fn len(&self) -> usize {
        with_new!(self, records => records.len())
    }

    /// [`NewRecords::make_index`].
    pub(crate) fn make_index(&mut self, shard: usize, hasher: &RandomState) -> Result<(), NoIndex> {
        with_new!(self, records => records.make_index(shard as u16, hasher))
    }

    /// [`NewRecords::node`].
    pub(crate) fn node(&self, number: u32) -> NodeId {
        with_new!(self, records => records.node(number))
    }

    /// The nodes with their routes, newest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (NodeId, Words)> {
        (0..self.len() as u32).map(|number| with_new!(self, records => (records.node(number), records.routes(number))))
    }

    /// [`NewRecords::update`].
    pub(crate) fn update(&mut self, update: impl FnMut(Word) -> Word) {
        with_new!(self, records => records.update(update));
    }
}

impl Candidate<'_> {
    /// The record's word, if the record is the node's.
    #[inline]
    pub(crate) fn word_of(&self, node: &NodeId) -> Option<Word> {
        match node.kind() {
            IdKind::Uuid(uuid) => self.word(&UuidKey::from(*uuid)),
            IdKind::Name(_) => None,
        }
    }

    /// Adds or refreshes a route of the node. `None` if the record is not the node's, RETIRED, or moving.
    #[inline]
    pub(crate) fn add_to<P: Liveness>(
        &self,
        node: &NodeId,
        proxy: u32,
        scope: &Scope<'_, P>,
    ) -> Option<Result<Added, CapacityError>> {
        match node.kind() {
            IdKind::Uuid(uuid) => self.add(&UuidKey::from(*uuid), proxy, scope),
            IdKind::Name(_) => None,
        }
    }
}
