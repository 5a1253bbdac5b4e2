//! Registers proxies.

use std::num::NonZeroU64;

use crate::error::RegisterError;
use crate::liveness::Liveness;
use crate::proxies::Proxies;
use crate::proxies::begin::most_numbers_for_new;
use crate::proxies::details::Addr;
use crate::proxies::id::ProxyId;
use crate::proxies::owner::RegistryGuard;
use crate::sync::{Guard, Ordering, failpoint};
use crate::types::client::ReportedProxy;
use crate::types::proxy::{Proxy, ProxyRef};

/// What becomes of the details that a call reports for a registered proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReportedDetails {
    /// The proxy gets them.
    Apply,
    /// The proxy keeps the details that it has.
    Ignore,
}

/// A registered proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Registered {
    pub(crate) proxy: ProxyRef,
    /// Whether the call has changed the details of a proxy that was registered before. The caller reports the change to
    /// subscribers after the registry's lock is released, because the report calls wakers.
    pub(crate) has_moved: bool,
}

impl From<ProxyRef> for Registered {
    fn from(proxy: ProxyRef) -> Self {
        Self {
            proxy,
            has_moved: false,
        }
    }
}

/// The most bytes of text that a new proxy needs, less the length byte of one text.
fn text_len(proxy: &Proxy<'_>) -> usize {
    let id = match ProxyId::of(proxy.id) {
        ProxyId::Uuid(_) => 0,
        ProxyId::Name(name) => name.len() + 1,
    };
    let addr = match Addr::of(proxy.addr) {
        Addr::V4(_) => 0,
        Addr::Other(addr) => addr.len() + 1,
    };
    id + addr + proxy.cluster_name.len()
}

impl Proxies {
    /// Registers a proxy, or updates its details. Records `tick` as its last use.
    pub(crate) fn register(
        &self,
        reported: ReportedProxy<'_>,
        tick: u64,
        guard: &Guard,
    ) -> Result<Registered, RegisterError> {
        let proxy = reported.proxy;
        let id = ProxyId::of(proxy.id);
        // Nearly always the proxy is registered with the same details: no lock, and no check, because registered
        // details were checked.
        while let Some(registered) = self.registered(id, guard)
            && self.has_details(registered, proxy, guard)
        {
            if self.keep(registered, tick) {
                return Ok(registered.into());
            }
        }
        proxy.check()?;
        let details = ReportedDetails::Apply;
        self.register_locked(reported, details, None, tick, &mut self.own(guard), guard)
    }

    /// Registers a proxy. If it is registered already, it keeps its details.
    pub(crate) fn register_unless_known(
        &self,
        proxy: &Proxy<'_>,
        tick: u64,
        guard: &Guard,
    ) -> Result<ProxyRef, RegisterError> {
        proxy.check()?;
        let details = ReportedDetails::Ignore;
        let registered = self.register_locked(proxy.into(), details, None, tick, &mut self.own(guard), guard)?;
        Ok(registered.proxy)
    }

    /// Whether a proxy that was registered when the guard was pinned, or later, has these details.
    pub(super) fn has_details(&self, registered: ProxyRef, proxy: &Proxy<'_>, guard: &Guard) -> bool {
        let entry = self.numbers.get(registered.number);
        let details = entry.and_then(|entry| self.look_up_details(entry, guard));
        details == Some((proxy.cluster_name, Addr::of(proxy.addr)))
    }

    /// Records that a proxy was registered again. Returns whether it is still registered.
    pub(super) fn keep(&self, registered: ProxyRef, tick: u64) -> bool {
        let kept = self.takes_routes(registered);
        if kept {
            self.touch(registered.number, tick);
        }
        kept
    }

    /// Registers a proxy whose strings were checked. An incarnation, if given, becomes the proxy's.
    pub(super) fn register_locked(
        &self,
        reported: ReportedProxy<'_>,
        reported_details: ReportedDetails,
        incarnation: Option<NonZeroU64>,
        tick: u64,
        owner: &mut RegistryGuard<'_>,
        guard: &Guard,
    ) -> Result<Registered, RegisterError> {
        let ReportedProxy { proxy, client } = reported;
        if let Some(registered) = self.find(proxy.id, guard)
            && let Some(entry) = self.numbers.get(registered.number)
        {
            // The proxy cannot die now: that needs the lock.
            let has_moved = reported_details == ReportedDetails::Apply && !self.has_details(registered, proxy, guard);
            if has_moved {
                let details = owner.intern(proxy.cluster_name, proxy.addr);
                owner.set_details(entry, details);
            }
            if incarnation.is_some() {
                self.numbers.set_incarnation(registered.number, incarnation);
            }
            self.move_to_client(registered.number, client, owner);
            self.keep(registered, tick);
            return Ok(Registered {
                proxy: registered,
                has_moved,
            });
        }
        if self.len() >= self.limit() {
            return Err(self.too_many());
        }
        self.check_client(client, owner)?;
        // Resumed and restored proxies were there before.
        if reported_details == ReportedDetails::Apply && !self.has_text_room(text_len(proxy)) {
            return Err(RegisterError::TooMuchText {
                limit: self.limits.text_bytes,
            });
        }
        let new = self.occupy(reported, incarnation, tick, most_numbers_for_new(self.limit()), owner)?;
        failpoint("register: not in the map");
        self.ids.insert(new.number, guard);
        // Relaxed: only holders of the lock change the number, and compare it with the limit.
        self.registered.fetch_add(1, Ordering::Relaxed);
        Ok(new.into())
    }

    pub(super) fn too_many(&self) -> RegisterError {
        RegisterError::TooManyProxies { limit: self.limit() }
    }

    /// Gives a proxy a number, unless `most_numbers` are in use, without adding it to the map of IDs.
    pub(super) fn occupy(
        &self,
        reported: ReportedProxy<'_>,
        incarnation: Option<NonZeroU64>,
        tick: u64,
        most_numbers: usize,
        owner: &mut RegistryGuard<'_>,
    ) -> Result<ProxyRef, RegisterError> {
        let ReportedProxy { proxy, client } = reported;
        let taken = owner.take_number(&self.numbers, most_numbers);
        let (number, entry) = taken.ok_or(self.too_many())?;
        self.add_to_client(number, client, owner);
        let details = owner.intern(proxy.cluster_name, proxy.addr);
        // Set it before the life, which publishes it.
        self.numbers.set_incarnation(number, incarnation);
        let life = entry.occupy(ProxyId::of(proxy.id), details, tick);
        Ok(ProxyRef { number, life })
    }
}
