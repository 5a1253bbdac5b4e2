//! Which client each proxy counts for: the steps of the registry's owner, all without effect in a table without limits
//! for proxies or clients.
//!
//! A number counts for one client at a time. The slot beside the number's count of routes names the client
//! ([`route_counts`](super::route_counts)). [`clients`](super::clients) counts the proxies and numbers of the slot.

use crate::error::{BeginError, RegisterError};
use crate::proxies::Proxies;
use crate::proxies::begin::{most_numbers, most_numbers_for_new};
use crate::proxies::id::ProxyId;
use crate::proxies::owner::RegistryGuard;
use crate::sync::Guard;
use crate::types::client::ClientId;
use crate::types::proxy::ProxyRef;

impl Proxies {
    /// Checks that a client may have a new proxy.
    pub(super) fn check_client(
        &self,
        client: Option<ClientId>,
        owner: &RegistryGuard<'_>,
    ) -> Result<(), RegisterError> {
        match (client, self.limits.of_client) {
            (Some(client), Some(limit)) if !has_room(client, limit, owner) => {
                Err(RegisterError::TooManyProxiesOfClient { limit })
            }
            _ => Ok(()),
        }
    }

    /// Whether a client's proxies, without those that are registered, have as many of the numbers for restarts as one
    /// client may use.
    pub(super) fn has_restarted_too_often(&self, client: Option<ClientId>, owner: &RegistryGuard<'_>) -> bool {
        let most = (most_numbers(self.limit()) - most_numbers_for_new(self.limit())) / 2;
        client.is_some_and(|client| {
            self.limits.of_client.is_some() && owner.clients.numbers(client) - owner.clients.proxies(client) >= most
        })
    }

    /// The client that a number counts for.
    pub(super) fn client_of(&self, number: u32, owner: &RegistryGuard<'_>) -> Option<ClientId> {
        owner.clients.id(self.route_counts.as_ref()?.slot(number))
    }

    /// Checks that a client may begin the first incarnation of an ID, or the first since an incarnation was forgotten.
    /// `old` is the proxy that is registered under the ID.
    pub(super) fn check_incarnation_of_client(
        &self,
        id: ProxyId<'_>,
        old: Option<ProxyRef>,
        client: Option<ClientId>,
        forget_before: u64,
        owner: &mut RegistryGuard<'_>,
    ) -> Result<(), BeginError> {
        let client = match old {
            Some(old) => self.client_of_known(old.number, client, owner),
            None => client,
        };
        let Some((client, limit)) = client.zip(self.most_incarnations_of_client()) else {
            return Ok(());
        };
        let proxies = owner.clients.proxies(client) + usize::from(old.is_none());
        let incarnations = &mut owner.incarnations;
        match incarnations.has_room_of_client(id, client, proxies, limit, forget_before) {
            true => Ok(()),
            false => Err(BeginError::TooManyIncarnationsOfClient { limit }),
        }
    }

    /// The most IDs of a client whose incarnations are known: as [`most_incarnations`](Proxies::most_incarnations), for
    /// the limit of a client.
    pub(crate) fn most_incarnations_of_client(&self) -> Option<usize> {
        self.limits.of_client.map(most_numbers_for_new)
    }

    /// The client for which a known proxy counts from now on, if `client` reports it.
    pub(super) fn client_of_known(
        &self,
        number: u32,
        client: Option<ClientId>,
        owner: &RegistryGuard<'_>,
    ) -> Option<ClientId> {
        let before = self.client_of(number, owner);
        match client {
            Some(_) if before.is_none() => client,
            Some(client) if self.limits.of_client.is_none_or(|limit| has_room(client, limit, owner)) => Some(client),
            _ => before,
        }
    }

    /// Makes a number that was FREE count for a client, or for none.
    pub(super) fn add_to_client(&self, number: u32, client: Option<ClientId>, owner: &mut RegistryGuard<'_>) {
        let Some(counts) = &self.route_counts else { return };
        counts.ensure(number);
        if let Some(client) = client {
            let slot = owner.clients.add(client);
            counts.name_slot(slot, client);
            counts.move_to(number, slot);
        }
    }

    /// Makes a registered proxy count for a client that reports it.
    pub(super) fn move_to_client(&self, number: u32, client: Option<ClientId>, owner: &mut RegistryGuard<'_>) {
        let Some(counts) = &self.route_counts else { return };
        let Some(client) = self.client_of_known(number, client, owner) else {
            return;
        };
        let before = counts.slot(number);
        if owner.clients.id(before) != Some(client) {
            self.add_to_client(number, Some(client), owner);
            owner.clients.remove_proxy(before);
            owner.clients.remove_number(before);
        }
    }

    /// Records that the proxy of a number is no longer registered.
    pub(super) fn remove_from_client(&self, number: u32, owner: &mut RegistryGuard<'_>) {
        if let Some(counts) = &self.route_counts {
            owner.clients.remove_proxy(counts.slot(number));
        }
    }

    /// Records that a number without routes is about to be FREE.
    pub(super) fn free_for_client(&self, number: u32, owner: &mut RegistryGuard<'_>) {
        if let Some(counts) = &self.route_counts {
            owner.clients.remove_number(counts.slot(number));
            counts.move_to(number, 0);
        }
    }

    /// Whether a proxy counts for `client`, or whether a call of `client` does not change this. A hint.
    pub(super) fn counts_for(&self, proxy: ProxyRef, client: Option<ClientId>) -> bool {
        let differs = |client| {
            self.route_counts
                .as_ref()
                .is_some_and(|counts| !counts.is_of(proxy.number, client))
        };
        !client.is_some_and(differs)
    }

    /// Makes a proxy that counts for no client count for a client that added a route. Takes the registry's lock in this
    /// case only.
    pub(crate) fn claim(&self, proxy: ProxyRef, client: Option<ClientId>, guard: &Guard) {
        let has_none = |proxy: ProxyRef| {
            self.route_counts
                .as_ref()
                .is_some_and(|counts| counts.slot(proxy.number) == 0)
        };
        if client.is_some() && has_none(proxy) {
            let owner = &mut self.own(guard);
            // The proxy cannot die now: that needs the lock.
            if has_none(proxy) && self.current(proxy).is_some() {
                self.move_to_client(proxy.number, client, owner);
            }
        }
    }
}

/// Whether a client may have a further proxy.
fn has_room(client: ClientId, limit: usize, owner: &RegistryGuard<'_>) -> bool {
    owner.clients.proxies(client) < limit && owner.clients.numbers(client) < most_numbers_for_new(limit)
}
