//! The details that proxies share. Each cluster name is stored once, under a number. An IPv4 address needs no memory of
//! its own; any other address is stored once per cluster.
//!
//! A proxy's cluster and address are one word, so that they change together:
//!
//! ```text
//! port (16) | IPv4 address (32) | cluster number (15) | 1     an IPv4 address, as nearly always
//! address of a `Shared`, 8-aligned                            any other address, or a cluster number with more bits
//! 0                                                           none: the number is FREE
//! ```
//!
//! Readers read a word's objects under an epoch pin, without a lock. Everything else here belongs to the registry's
//! owner. SAFETY comments cite these rules:
//!
//! * D1: *The objects of a word are freed only a grace period after the last entry dropped the word.* They are its
//!   [`Shared`], and the name of its cluster. A thread that loaded the word from an entry under a pin may read them
//!   until it unpins.
//! * D2: *A cluster's number gets another name only after the same grace period.*
//! * D3: *The address and the cluster of a [`Shared`] never change.* Only the registry's owner reads and writes its
//!   count of users, and frees it.

use std::collections::{BTreeMap, BTreeSet, LinkedList};
use std::hash::Hash;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use ahash::RandomState;
use compact_str::CompactString;

use crate::mem::segmented_vec::SegmentedVec;
use crate::mem::thin_str::ThinStr;
use crate::proxies::grace_period::GracePeriods;
use crate::proxies::unlinked::Unlinked;
#[cfg(loom)]
use crate::sync::epoch::{Fate, PlainData};
use crate::sync::{AtomicU64, Guard, Ordering, Reclaim, new_hasher, retire};

/// A cluster and an address in it, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Details(pub(crate) u64);

const IS_INLINE: u64 = 1;
const CLUSTER_SHIFT: u32 = 1;
const CLUSTER_BITS: u32 = 15;
const IP_SHIFT: u32 = CLUSTER_SHIFT + CLUSTER_BITS;
const PORT_SHIFT: u32 = IP_SHIFT + 32;

/// The number of clusters whose number fits into a word beside an address.
const INLINE_CLUSTERS: u32 = 1 << CLUSTER_BITS;

/// The contents of a word.
enum Form {
    None,
    Inline { cluster: u32, addr: SocketAddrV4 },
    Shared(*mut Shared),
}

/// An address, parsed. Addresses are compared byte by byte, so only the canonical spelling of an IPv4 address is stored
/// as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addr<'a> {
    V4(SocketAddrV4),
    Other(&'a str),
}

impl<'a> Addr<'a> {
    pub(crate) fn of(text: &'a str) -> Self {
        // The parser accepts leading zeros in a port, which `shown` would not write, but not in an address.
        let is_shown_so = |addr: &SocketAddrV4| addr.port() != 0 && !text.contains(":0");
        match text.parse().ok().filter(is_shown_so) {
            Some(addr) => Addr::V4(addr),
            None => Addr::Other(text),
        }
    }

    pub(crate) fn to_compact_string(self) -> CompactString {
        match self {
            Addr::V4(addr) => shown(addr),
            Addr::Other(text) => text.into(),
        }
    }
}

/// An address as `Display` shows it, without the cost of `fmt`: 900 of the instructions of a `GetProxies`.
fn shown(addr: SocketAddrV4) -> CompactString {
    let mut digits = itoa::Buffer::new();
    let mut text = CompactString::default();
    for (octet, end) in addr.ip().octets().into_iter().zip(['.', '.', '.', ':']) {
        text.push_str(digits.format(octet));
        text.push(end);
    }
    text.push_str(digits.format(addr.port()));
    text
}

/// Details that do not fit into a word, for all proxies with these details.
#[derive(Debug)]
pub(crate) struct Shared {
    addr: ThinStr,
    cluster: u32,
    /// How many entries have these details.
    users: u32,
    #[cfg(loom)]
    fate: Fate,
}

impl Reclaim for Shared {
    fn after_grace(&self) {}

    unsafe fn free(object: *mut Self) {
        // SAFETY: the caller promises that no thread can reach the object, and that it is freed once.
        unsafe { SharedPtr(object).free() };
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
    }

    #[cfg(loom)]
    fn fate(&self) -> &Fate {
        &self.fate
    }
}

impl Details {
    pub(crate) const NONE: Details = Details(0);

    fn inline(cluster: u32, addr: SocketAddrV4) -> Self {
        Self(
            u64::from(addr.port()) << PORT_SHIFT
                | u64::from(addr.ip().to_bits()) << IP_SHIFT
                | u64::from(cluster) << CLUSTER_SHIFT
                | IS_INLINE,
        )
    }

    fn shared(shared: *mut Shared) -> Self {
        Self(shared.expose_provenance() as u64)
    }

    fn form(self) -> Form {
        match self.0 {
            0 => Form::None,
            bits if bits & IS_INLINE != 0 => Form::Inline {
                cluster: (bits >> CLUSTER_SHIFT) as u32 % INLINE_CLUSTERS,
                addr: SocketAddrV4::new(
                    Ipv4Addr::from_bits((bits >> IP_SHIFT) as u32),
                    (bits >> PORT_SHIFT) as u16,
                ),
            },
            bits => Form::Shared(std::ptr::with_exposed_provenance_mut(bits as usize)),
        }
    }

    /// The cluster's name and the address, unless there are none.
    ///
    /// # Safety
    ///
    /// The word was loaded with Acquire from an entry while the guard was pinned, and the entry belongs to these
    /// clusters.
    pub(crate) unsafe fn look_up<'g>(self, clusters: &'g Clusters, _guard: &'g Guard) -> Option<(&'g str, Addr<'g>)> {
        let (cluster, addr) = match self.form() {
            Form::None => return None,
            Form::Inline { cluster, addr } => (cluster, Addr::V4(addr)),
            Form::Shared(shared) => {
                #[cfg(loom)]
                // SAFETY: an entry had the `Shared` while the guard was pinned (D1).
                unsafe { &*shared }.fate.assert_alive();
                // SAFETY: an entry had the `Shared` while the guard was pinned (D1).
                let (cluster, addr) = unsafe { SharedPtr(shared).key() };
                (cluster, Addr::of(addr))
            }
        };
        // SAFETY: an entry had the word while the guard was pinned, so the number is this cluster's until the guard is
        // dropped (D2).
        Some((unsafe { clusters.name(cluster) }, addr))
    }
}

/// Names of clusters by number.
#[derive(Debug)]
pub(crate) struct Clusters(SegmentedVec<Name, 3>);

/// The bits of a cluster's name, a [`ThinStr`].
#[derive(Debug, Default)]
struct Name {
    bits: AtomicU64,
    #[cfg(loom)]
    text: PlainData,
}

impl Clusters {
    /// More numbers than memory can hold, even if a pinned thread keeps the numbers of former clusters from being
    /// reused.
    const LIMIT: u32 = 1 << 31;

    /// # Safety
    ///
    /// The number is a cluster's while the result is in use.
    unsafe fn name<'a>(&self, number: u32) -> &'a str {
        // Relaxed: written before the word with the number was stored (Release), which the caller loaded with Acquire;
        // or the caller is the owner, who wrote it.
        let bits = self.0.get(number).map_or(0, |name| name.bits.load(Ordering::Relaxed));
        #[cfg(loom)]
        self.0.ensure(number).text.read();
        // SAFETY: the caller promises that the number, and so the text, is the cluster's while the result is in use.
        unsafe { ThinStr::from_bits(bits).as_str() }
    }

    fn set_name(&self, number: u32, name: ThinStr) {
        // Relaxed: the store of the word with the number publishes it.
        self.0.ensure(number).bits.store(name.to_bits(), Ordering::Relaxed);
        #[cfg(loom)]
        self.0.ensure(number).text.write();
    }

    /// # Safety
    ///
    /// The number has a text that no thread reads any more, and gets another text before it is a cluster's again.
    unsafe fn free_name(&self, number: u32) {
        // Relaxed: the owner wrote it.
        let bits = self.0.get(number).map_or(0, |name| name.bits.load(Ordering::Relaxed));
        #[cfg(loom)]
        self.0.ensure(number).text.write();
        // SAFETY: the caller promises that there is a text that no thread reads any more, and that it is freed once.
        unsafe { ThinStr::from_bits(bits).free() };
    }
}

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
    clusters: Arc<Clusters>,
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

/// A [`Shared`] that the interner owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SharedPtr(*mut Shared);

// SAFETY: a `Shared` is not tied to a thread (D3).
unsafe impl Send for SharedPtr {}

impl SharedPtr {
    fn new(cluster: u32, addr: &str) -> Self {
        let addr = new_text(addr);
        Self(Box::into_raw(Box::new(Shared {
            addr,
            cluster,
            users: 1,
            #[cfg(loom)]
            fate: Fate::default(),
        })))
    }

    /// # Safety
    ///
    /// The `Shared` is not freed while the result is in use.
    unsafe fn key<'a>(self) -> (u32, &'a str) {
        // SAFETY: the caller promises that the `Shared` is not freed, and its cluster does not change (D3).
        let cluster = unsafe { (*self.0).cluster };
        // SAFETY: the caller promises that the `Shared` is not freed, and its address does not change (D3).
        let addr = unsafe { (*self.0).addr };
        // SAFETY: the text is freed with the `Shared`.
        (cluster, unsafe { addr.as_str() })
    }

    /// Adds to the count of users. Returns the new count.
    ///
    /// # Safety
    ///
    /// The `Shared` is not freed, and the caller owns the interner.
    unsafe fn add_users(self, more: i32) -> u32 {
        // SAFETY: the `Shared` is not freed, and only the caller touches the count (D3).
        let users = unsafe { &mut (*self.0).users };
        *users = users.wrapping_add_signed(more);
        *users
    }

    /// Frees the `Shared` when every thread that is pinned now has unpinned.
    ///
    /// # Safety
    ///
    /// No entry has it any more, and it is retired once.
    pub(crate) unsafe fn retire(self, guard: &Guard) {
        // SAFETY: no entry has the `Shared`, so no thread that pins from now on can find it (D1); the caller retires it
        // once.
        unsafe { retire(guard, self.0) };
    }

    /// # Safety
    ///
    /// No thread can reach the `Shared` any more.
    unsafe fn free(self) {
        // SAFETY: the pointer came from `Box::into_raw`, and no thread can reach the `Shared`.
        let shared = unsafe { Box::from_raw(self.0) };
        // SAFETY: only this `Shared` has the text.
        unsafe { shared.addr.free() };
    }
}

/// Copies a text of at most 255 bytes. Without memory, it aborts the process, like collections.
pub(crate) fn new_text(text: &str) -> ThinStr {
    ThinStr::new(text).unwrap_or_else(|| std::alloc::handle_alloc_error(std::alloc::Layout::for_value(text)))
}

impl Default for Interner {
    fn default() -> Self {
        Self {
            shared: BTreeSet::new(),
            cluster_numbers: BTreeSet::new(),
            clusters: Arc::new(Clusters(SegmentedVec::new(Clusters::LIMIT))),
            users: BTreeMap::new(),
            next: 0,
            free: BTreeSet::new(),
            unlinked: LinkedList::new(),
            hasher: new_hasher(),
        }
    }
}

impl Interner {
    pub(crate) fn clusters(&self) -> Arc<Clusters> {
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
        // SAFETY: the interner has not freed any `Shared` in its set.
        if let Some((_, known)) = alike.find(|(_, known)| unsafe { known.key() } == (cluster, addr)) {
            // SAFETY: the interner has not freed the `Shared`, and `&mut self` is exclusive.
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
        // SAFETY: every number in the set is a cluster's, and `&mut self` is exclusive.
        if let Some((_, known)) = alike.find(|(_, known)| unsafe { self.clusters.name(*known) } == name) {
            return *known;
        }
        self.free_numbers(grace);
        let number = self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        });
        self.clusters.set_name(number, new_text(name));
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
                // SAFETY: the `Shared` has a user, so it is not freed; `&mut self` is exclusive.
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
        // SAFETY: the number is a cluster's.
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

    #[test]
    fn addresses_are_shown_as_they_came() {
        let ipv4 = ["0.0.0.0:1", "10.0.0.1:3080", "255.255.255.255:65535", "1.2.3.4:10"];
        for text in ipv4 {
            assert!(matches!(Addr::of(text), Addr::V4(_)), "{text}");
        }
        let others = [
            "01.2.3.4:80",
            "1.2.3.4:080",
            "1.2.3.4:0",
            "1.2.3:80",
            "1.2.3.4.5:80",
            "[::1]:80",
            "[::ffff:1.2.3.4]:80",
            "0x1.2.3.4:80",
            "proxy:3080",
            " 1.2.3.4:80",
            "1.2.3.4:+80",
        ];
        for text in others {
            assert_eq!(Addr::of(text), Addr::Other(text));
        }
        for text in ipv4.into_iter().chain(others) {
            assert_eq!(Addr::of(text).to_compact_string(), text);
        }
    }
}
