//! A map that grows in small steps.
//!
//! An `scc::HashMap` doubles when it is full. Then more than half of its slots are free, and while the entries move,
//! the former slots are there too. So a [`NodeMap`] has eight maps, and doubles one of them at a time. Map *i* has a
//! share of the entries in proportion to 2^(*i*/8). The maps reach a power of two one after the other, at equal steps
//! of the logarithm of the size.

use std::hash::Hash;

use ahash::RandomState;
use scc::HashMap;

/// 2^(*i*/8) - 1 for *i* from 1 to 7, in parts of 2^16: the sum of the shares of the first *i* maps.
const SHARES: [u16; 7] = [5_932, 12_400, 19_454, 27_146, 35_534, 44_682, 54_658];

#[derive(Debug)]
pub(super) struct NodeMap<K: Eq + Hash, V> {
    maps: [HashMap<K, V, RandomState>; SHARES.len() + 1],
    /// Chooses the map. Independent of the maps' own hashes, whose buckets would be filled in part otherwise.
    choice: RandomState,
}

impl<K: Eq + Hash, V> NodeMap<K, V> {
    /// Creates an empty map. The order of its entries follows the seed.
    pub(super) fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut hasher = || {
            let mut word = || random.u64(..);
            RandomState::with_seeds(word(), word(), word(), word())
        };
        Self {
            choice: hasher(),
            maps: std::array::from_fn(|_| HashMap::with_hasher(hasher())),
        }
    }

    /// Returns the map that has a key, or would have it.
    pub(super) fn of(&self, key: &K) -> &HashMap<K, V, RandomState> {
        let part = (self.choice.hash_one(key) >> 48) as u16;
        &self.maps[SHARES.iter().filter(|share| **share <= part).count()]
    }

    /// Returns all maps.
    pub(super) fn maps(&self) -> &[HashMap<K, V, RandomState>] {
        &self.maps
    }
}
