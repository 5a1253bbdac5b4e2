//! Handles: names of routes that need no look-up.

use std::fmt;

use crate::layout::{RECORD_BITS, SHARD_BITS};

/// Names the route of a node, for [`RouteTable::refresh_routes`](crate::RouteTable::refresh_routes).
///
/// A handle is eight bytes: the place of the node's record, and 34 bits of the node's hash. A handle is valid only for
/// the table that returned it. Another table, even in a restarted process, has another hash, and reports the handle as
/// gone. The hash's key is secret, so a client can only guess handles of other clients' records.
///
/// The record may later belong to another node. The hash detects this, unless the other node has the same 34 bits (one
/// in 17 billion) *and* a route through the same proxy. Then the call refreshes the other node's route.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(transparent))]
pub struct RouteHandle(u64);

/// The bits that the kind of key, the shard and the record number leave for the hash.
const CHECK_BITS: u32 = 64 - 1 - SHARD_BITS - RECORD_BITS;

impl RouteHandle {
    pub(crate) fn new(is_name: bool, hash: u64, number: u32) -> Self {
        let shard = hash >> (64 - SHARD_BITS);
        let place = u64::from(is_name) << SHARD_BITS | shard;
        Self((place << RECORD_BITS | u64::from(number)) << CHECK_BITS | Self::check(hash))
    }

    fn check(hash: u64) -> u64 {
        hash & ((1 << CHECK_BITS) - 1)
    }

    pub(crate) fn is_name(self) -> bool {
        self.0 >> 63 != 0
    }

    pub(crate) fn shard(self) -> usize {
        (self.0 >> (CHECK_BITS + RECORD_BITS)) as usize & ((1 << SHARD_BITS) - 1)
    }

    pub(crate) fn number(self) -> u32 {
        (self.0 >> CHECK_BITS) as u32 & ((1 << RECORD_BITS) - 1)
    }

    /// Whether the handle may belong to a node with this hash.
    pub(crate) fn fits(self, hash: u64) -> bool {
        Self::check(self.0) == Self::check(hash)
    }

    /// The handle as a number, for sending.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The handle of a received number. Any number is safe: if it is not from this table, the handle is gone.
    #[must_use]
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

impl fmt::Debug for RouteHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RouteHandle({:#018x})", self.0)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_handle_has_all_its_parts() {
        for (is_name, hash, number) in [
            (false, 0, 0),
            (true, u64::MAX, (1 << 22) - 1),
            (false, 0xAB00_0001_2345_6789, 77),
        ] {
            let handle = RouteHandle::from_bits(RouteHandle::new(is_name, hash, number).to_bits());
            assert_eq!((handle.is_name(), handle.number()), (is_name, number));
            assert_eq!(handle.shard(), (hash >> (64 - SHARD_BITS)) as usize);
            assert!(handle.fits(hash) && !handle.fits(hash ^ 1) && !handle.fits(hash ^ 1 << 32));
        }
    }
}
