//! Requests that write routes, before the server knows that the caller may write these routes.

use nodetracker::ClientId;
use tonic::Status;

use crate::auth::Caller;

/// A request that writes routes of a proxy, and its caller. A handler gets the request only with a check of the proxy.
#[derive(Debug)]
pub(crate) struct UncheckedWrite<'a, Q> {
    request: Q,
    caller: &'a Caller,
}

impl<'a, Q> UncheckedWrite<'a, Q> {
    pub(crate) fn new(request: Q, caller: &'a Caller) -> Self {
        Self { request, caller }
    }

    /// Returns the client for the limits of the table.
    pub(crate) fn client(&self) -> Option<ClientId> {
        self.caller.client()
    }

    /// Returns the request. `proxy_id` returns the ID of the proxy that the request names. An empty ID stands for all
    /// proxies.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED: the caller may write only the routes of another proxy.
    pub(crate) fn for_proxy(self, proxy_id: impl FnOnce(&Q) -> &str) -> Result<Q, Status> {
        self.caller.check_proxy(proxy_id(&self.request))?;
        Ok(self.request)
    }

    /// Returns a request that cannot name a proxy, and the ID of the only proxy whose routes the call may write. `None`
    /// stands for all proxies.
    pub(crate) fn for_own_proxy(self) -> (Q, Option<&'a str>) {
        (self.request, self.caller.own_proxy())
    }
}
