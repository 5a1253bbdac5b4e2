//! A proxy's details: its cluster and its address. An IPv4 address needs no memory of its own; the interner
//! (`intern.rs`) stores any other address once per cluster.
//!
//! The cluster and the address are one word, so that they change together:
//!
//! ```text
//! port (16) | IPv4 address (32) | cluster number (15) | 1     an IPv4 address, as nearly always
//! address of a `Shared`, 8-aligned                            any other address, or a cluster number with more bits
//! 0                                                           none: the number is FREE
//! ```
//!
//! Readers read a word's objects under an epoch pin, without a lock. The registry's owner stores and drops words.
//! SAFETY comments of this module, of `intern.rs` and of `cluster_names.rs` cite these rules:
//!
//! * D1: *The objects of a word are freed only a grace period after the last entry dropped the word.* They are its
//!   [`Shared`], and the name of its cluster. A thread that loaded the word from an entry under a pin may read them
//!   until it unpins.
//! * D2: *A cluster's number gets another name only after the same grace period.*
//! * D3: *The address and the cluster of a [`Shared`] never change.* Only the registry's owner reads and writes its
//!   count of users, and frees it.

use std::net::{Ipv4Addr, SocketAddrV4};

use compact_str::CompactString;

use crate::mem::thin_str::ThinStr;
use crate::proxies::cluster_names::ClusterNames;
#[cfg(loom)]
use crate::sync::epoch::Fate;
use crate::sync::{Guard, Reclaim, retire};

/// A cluster and an address in it, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Details(pub(crate) u64);

const IS_INLINE: u64 = 1;
const CLUSTER_SHIFT: u32 = 1;
const CLUSTER_BITS: u32 = 15;
const IP_SHIFT: u32 = CLUSTER_SHIFT + CLUSTER_BITS;
const PORT_SHIFT: u32 = IP_SHIFT + 32;

/// The number of clusters whose number fits into a word beside an address.
pub(super) const INLINE_CLUSTERS: u32 = 1 << CLUSTER_BITS;

/// The contents of a word.
pub(super) enum Form {
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

    pub(super) fn inline(cluster: u32, addr: SocketAddrV4) -> Self {
        Self(
            u64::from(addr.port()) << PORT_SHIFT
                | u64::from(addr.ip().to_bits()) << IP_SHIFT
                | u64::from(cluster) << CLUSTER_SHIFT
                | IS_INLINE,
        )
    }

    pub(super) fn shared(shared: *mut Shared) -> Self {
        Self(shared.expose_provenance() as u64)
    }

    pub(super) fn form(self) -> Form {
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
    pub(crate) unsafe fn look_up<'g>(
        self,
        clusters: &'g ClusterNames,
        _guard: &'g Guard,
    ) -> Option<(&'g str, Addr<'g>)> {
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

/// A [`Shared`] that an interner owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SharedPtr(pub(super) *mut Shared);

// SAFETY: a `Shared` is not tied to a thread (D3).
unsafe impl Send for SharedPtr {}

impl SharedPtr {
    pub(super) fn new(cluster: u32, addr: &str) -> Self {
        let addr = ThinStr::new_or_abort(addr);
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
    pub(super) unsafe fn key<'a>(self) -> (u32, &'a str) {
        // SAFETY: the caller promises that the `Shared` is not freed, and its cluster does not change (D3).
        let cluster = unsafe { (*self.0).cluster };
        // SAFETY: the caller promises that the `Shared` is not freed, and its address does not change (D3).
        let addr = unsafe { (*self.0).addr };
        // SAFETY: the text is freed with the `Shared` (D3), which the caller promises is not freed.
        (cluster, unsafe { addr.as_str() })
    }

    /// Adds to the count of users. Returns the new count.
    ///
    /// # Safety
    ///
    /// The `Shared` is not freed, and the caller owns the interner.
    pub(super) unsafe fn add_users(self, more: i32) -> u32 {
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
    pub(super) unsafe fn free(self) {
        // SAFETY: the pointer came from `Box::into_raw`, and no thread can reach the `Shared`.
        let shared = unsafe { Box::from_raw(self.0) };
        // SAFETY: only this `Shared` has the text.
        unsafe { shared.addr.free() };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

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
