//! The client that reports a proxy, for the limits of a client.

use std::num::NonZeroU64;

use crate::types::proxy::Proxy;

/// A client, as the program numbers its clients: a hash of an address, or of the name in a certificate.
///
/// A table counts the proxies of each client, and their routes, if it
/// [limits](crate::Builder::max_routes_per_client) them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub NonZeroU64);

/// A proxy, and the client that reports it, if there are limits for clients. A `&Proxy` converts into a report without
/// a client.
#[derive(Debug, Clone, Copy)]
pub struct ReportedProxy<'a> {
    pub(crate) proxy: &'a Proxy<'a>,
    pub(crate) client: Option<ClientId>,
}

impl<'a> From<&'a Proxy<'a>> for ReportedProxy<'a> {
    fn from(proxy: &'a Proxy<'a>) -> Self {
        Self { proxy, client: None }
    }
}

impl<'a> Proxy<'a> {
    /// The proxy as this client reports it. A new proxy counts for the client. A known proxy counts for the client from
    /// its next start or change of details on, if the client has room for another proxy.
    ///
    /// ```
    /// # use std::num::NonZeroU64;
    /// use nodetracker::{ClientId, Proxy, RegisterError, RouteTable};
    ///
    /// let table = RouteTable::builder().max_proxies_per_client(1).build()?;
    /// let client = ClientId(NonZeroU64::MIN);
    /// let proxy = |id| Proxy { id, cluster_name: "main", addr: "10.0.0.1:3080" };
    /// table.register_proxy(proxy("proxy-1").of_client(client))?;
    /// let refused = table.register_proxy(proxy("proxy-2").of_client(client));
    /// assert_eq!(refused, Err(RegisterError::TooManyProxiesOfClient { limit: 1 }));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn of_client(&'a self, client: impl Into<Option<ClientId>>) -> ReportedProxy<'a> {
        ReportedProxy {
            proxy: self,
            client: client.into(),
        }
    }
}
