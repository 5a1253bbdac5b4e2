//! Begins incarnations. A proxy may get another number.

use std::num::NonZeroU64;

use crate::error::{BeginError, RegisterError};
use crate::proxies::id::ProxyId;
use crate::proxies::incarnations::{Standing, standing_beside};
use crate::proxies::owner::RegistryGuard;
use crate::proxies::register::ReportedDetails;
use crate::proxies::{Moment, Proxies};
use crate::sync::{Guard, failpoint};
use crate::types::client::ReportedProxy;
use crate::types::proxy::ProxyRef;
use crate::word::PROXY_NUMBERS;

/// The result of beginning an incarnation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BegunIncarnation {
    pub(crate) proxy: ProxyRef,
    /// The incarnation had begun before, and its proxy was registered ever since.
    pub(crate) is_resumed: bool,
    /// As in [`Registered`](crate::proxies::register::Registered).
    pub(crate) has_moved: bool,
    /// The reference of the older incarnation, which was removed.
    pub(crate) replaced: Option<ProxyRef>,
}

/// The result that restoring a proxy would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prospect {
    /// The proxy would keep its reference.
    Known(ProxyRef),
    /// The proxy would take the place of its older incarnation.
    Replaces,
    /// The proxy would be one more.
    New,
    /// The proxy would not be restored: a later incarnation has begun, or the proxy's own incarnation is over.
    Stale,
}

/// The most numbers in use while proxies restart, for a limit on proxies. The older incarnation's number stays in use
/// until its routes are swept, so a table that is full of proxies needs more numbers than proxies.
pub(super) fn most_numbers(limit: usize) -> usize {
    (limit + limit / 8 + 16).min(PROXY_NUMBERS)
}

/// The most numbers in use before a new proxy is refused, for a limit on proxies. The number of a removed proxy stays
/// in use until its routes are swept, so removals would make no room at once. The other numbers are for restarts:
/// however often strangers come and go, a known proxy can restart. If the numbers up to this limit are in use, a proxy
/// can restart once until its older number is free ([`restarts`](super::restarts)).
pub(super) fn most_numbers_for_new(limit: usize) -> usize {
    limit.midpoint(most_numbers(limit))
}

impl Proxies {
    /// The most numbers in use, while proxies restart.
    pub(crate) fn most_numbers(&self) -> usize {
        most_numbers(self.limit())
    }

    /// The most IDs whose incarnations are known, registered or ended. Snapshots have as many.
    pub(crate) fn most_incarnations(&self) -> usize {
        most_numbers_for_new(self.limit())
    }

    /// Gives a registered proxy another number. At each moment, readers find exactly one of the two numbers.
    fn replace(
        &self,
        old: ProxyRef,
        reported: ReportedProxy<'_>,
        incarnation: NonZeroU64,
        tick: u64,
        owner: &mut RegistryGuard<'_>,
        guard: &Guard,
    ) -> Result<ProxyRef, BeginError> {
        // The only step that can fail comes first.
        let client = self.client_of_known(old.number, reported.client, owner);
        let is_too_often = owner.restarts.is_recent(old.number) || self.has_restarted_too_often(client, owner);
        let most_numbers = match is_too_often {
            true => most_numbers_for_new(self.limit()),
            false => most_numbers(self.limit()),
        };
        let reported = ReportedProxy { client, ..reported };
        let new = match self.occupy(reported, Some(incarnation), tick, most_numbers, owner) {
            Err(RegisterError::TooManyProxies { .. }) if is_too_often => return Err(BeginError::RestartsTooOften),
            new => new?,
        };
        self.takeover.announce(old.number, new.number);
        failpoint("replace: announced");
        self.numbers.ensure(old.number).die();
        failpoint("replace: dead");
        self.ids.swap(old.number, new.number, guard);
        failpoint("replace: in the map");
        self.takeover.end();
        self.remove_from_client(old.number, owner);
        owner.wait_for_grace(old.number);
        owner.restarts.begin(old.number, new.number);
        Ok(new)
    }

    /// Registers a proxy with an incarnation, unless the incarnation is stale.
    pub(crate) fn begin(
        &self,
        reported: ReportedProxy<'_>,
        incarnation: NonZeroU64,
        details: ReportedDetails,
        at: Moment,
        guard: &Guard,
    ) -> Result<BegunIncarnation, BeginError> {
        let ReportedProxy { proxy, client } = reported;
        proxy.check()?;
        let id = ProxyId::of(proxy.id);
        // If nothing changes, take no lock.
        while let Some(registered) = self.registered(id, guard)
            && let Some(current) = self.numbers.incarnation(registered.number)
            && standing_beside(current, incarnation)? == Standing::Current
            && (details == ReportedDetails::Ignore || self.has_details(registered, proxy, guard))
            && self.counts_for(registered, client)
        {
            if self.keep(registered, at.now) {
                return Ok(BegunIncarnation {
                    proxy: registered,
                    is_resumed: true,
                    has_moved: false,
                    replaced: None,
                });
            }
        }

        let owner = &mut self.own(guard);
        let old = self.registered(id, guard);
        let current = old.and_then(|old| self.numbers.incarnation(old.number));
        let standing = owner.incarnations.standing(id, current, incarnation, at.interval_ago)?;
        if current.is_none() {
            let limit = self.most_incarnations();
            if !owner.incarnations.has_room(id, limit, at.interval_ago) {
                return Err(BeginError::TooManyIncarnations { limit });
            }
            self.check_incarnation_of_client(id, old, client, at.interval_ago, owner)?;
        }
        let begun = match (standing, old) {
            (Standing::Replaces, Some(old)) => BegunIncarnation {
                proxy: self.replace(old, reported, incarnation, at.now, owner, guard)?,
                is_resumed: false,
                has_moved: false,
                replaced: Some(old),
            },
            _ => {
                let registered = self.register_locked(reported, details, Some(incarnation), at.now, owner, guard)?;
                BegunIncarnation {
                    proxy: registered.proxy,
                    is_resumed: standing == Standing::Current,
                    has_moved: registered.has_moved,
                    replaced: None,
                }
            }
        };
        if current.is_none() {
            owner.incarnations.begin(id);
        }
        Ok(begun)
    }

    /// The incarnation of a registered proxy, if it has one.
    pub(crate) fn incarnation(&self, proxy: ProxyRef, _guard: &Guard) -> Option<NonZeroU64> {
        self.current(proxy)?;
        // Under the pin, no other proxy can get the number.
        self.numbers.incarnation(proxy.number)
    }

    /// The incarnation of a proxy that was registered when the guard was pinned, or later.
    pub(crate) fn last_incarnation(&self, proxy: ProxyRef, _guard: &Guard) -> Option<NonZeroU64> {
        self.numbers.incarnation(proxy.number)
    }

    /// The result that registering a proxy would have, with or without an incarnation.
    pub(crate) fn prospect(&self, id: &str, incarnation: Option<NonZeroU64>, at: Moment, guard: &Guard) -> Prospect {
        let id = ProxyId::of(id);
        let registry = self.registry.lock();
        let registered = self.registered(id, guard);
        let current = registered.and_then(|registered| self.numbers.incarnation(registered.number));
        let standing = |incarnation| {
            registry
                .incarnations
                .standing(id, current, incarnation, at.interval_ago)
        };
        match incarnation.map(standing) {
            Some(Err(_)) => Prospect::Stale,
            Some(Ok(Standing::Replaces)) if registered.is_some() => Prospect::Replaces,
            Some(Ok(Standing::Replaces)) => Prospect::New,
            None | Some(Ok(Standing::Current | Standing::Adopts)) => registered.map_or(Prospect::New, Prospect::Known),
        }
    }
}
