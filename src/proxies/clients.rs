//! How many proxies each client has.
//!
//! A client has a slot while one of its proxies has a number. The counts of routes know the client by its slot
//! ([`route_counts`](super::route_counts)).

use std::collections::{BTreeMap, BTreeSet};

use crate::types::client::ClientId;

/// The clients whose proxies have numbers. Slots begin at 1.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    slots: BTreeMap<ClientId, u32>,
    clients: BTreeMap<u32, Client>,
    /// Every slot that was ever used is at most this.
    last: u32,
    /// The slots up to `last` that no client has.
    free: BTreeSet<u32>,
}

#[derive(Debug)]
struct Client {
    id: ClientId,
    proxies: usize,
    numbers: usize,
}

impl Clients {
    fn get(&self, id: ClientId) -> Option<&Client> {
        self.clients.get(self.slots.get(&id)?)
    }

    /// The number of registered proxies of a client.
    pub(crate) fn proxies(&self, id: ClientId) -> usize {
        self.get(id).map_or(0, |client| client.proxies)
    }

    /// The number of numbers that proxies of a client have, or had until they were removed or replaced.
    pub(crate) fn numbers(&self, id: ClientId) -> usize {
        self.get(id).map_or(0, |client| client.numbers)
    }

    /// The client of a slot.
    pub(crate) fn id(&self, slot: u32) -> Option<ClientId> {
        self.clients.get(&slot).map(|client| client.id)
    }

    /// Counts a registered proxy and its number. Returns the client's slot.
    pub(crate) fn add(&mut self, id: ClientId) -> u32 {
        let slot = *self.slots.entry(id).or_insert_with(|| {
            self.free.pop_first().unwrap_or_else(|| {
                self.last += 1;
                self.last
            })
        });
        let client = self.clients.entry(slot).or_insert(Client {
            id,
            proxies: 0,
            numbers: 0,
        });
        client.proxies += 1;
        client.numbers += 1;
        slot
    }

    /// Records that a proxy is no longer registered, or counts for another client.
    pub(crate) fn remove_proxy(&mut self, slot: u32) {
        if let Some(client) = self.clients.get_mut(&slot) {
            client.proxies -= 1;
        }
    }

    /// Records that a number is free, or counts for another client. Its proxy was [removed](Clients::remove_proxy).
    pub(crate) fn remove_number(&mut self, slot: u32) {
        let Some(client) = self.clients.get_mut(&slot) else {
            return;
        };
        client.numbers -= 1;
        if client.numbers == 0 {
            self.slots.remove(&client.id);
            self.clients.remove(&slot);
            self.free.insert(slot);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::num::NonZeroU64;

    use super::*;

    #[test]
    fn a_client_has_a_slot_until_its_last_number_is_free() {
        let mut clients = Clients::default();
        let [one, two] = [1, 2].map(|id| ClientId(NonZeroU64::new(id).expect("not zero")));
        assert_eq!([one, one, two].map(|id| clients.add(id)), [1, 1, 2]);
        assert_eq!((clients.proxies(one), clients.numbers(one)), (2, 2));
        clients.remove_proxy(1);
        clients.remove_proxy(1);
        clients.remove_number(1);
        assert_eq!((clients.proxies(one), clients.numbers(one)), (0, 1));
        assert_eq!((clients.id(1), clients.id(2)), (Some(one), Some(two)));
        clients.remove_number(1);
        assert_eq!((clients.id(1), clients.slots.len()), (None, 1));
        assert_eq!(clients.add(one), 1, "the slot is used again");
        // Proxies without a client have the slot 0.
        clients.remove_proxy(0);
        clients.remove_number(0);
    }
}
