//! Proxies that count their starts, so that late messages of an older start are refused.

use std::num::NonZeroU64;

use crate::error::BeginError;
use crate::proxies::register::ReportedDetails;
use crate::sync::{Guard, pin};
use crate::table::RouteTable;
use crate::types::client::ReportedProxy;
use crate::types::proxy::{Proxy, ProxyRef};

/// An incarnation that has begun, from [`RouteTable::begin_incarnation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Incarnation {
    /// The reference with which to add the incarnation's routes.
    pub proxy: ProxyRef,
    /// Whether the incarnation had begun before and still has the same reference, so that its
    /// [handles](crate::RouteHandle) may be valid.
    pub is_resumed: bool,
}

/// # Incarnations
impl RouteTable {
    /// Registers a proxy that has started for the `incarnation`th time. Any number that grows with each start is
    /// suitable, such as the time of the start.
    ///
    /// * A greater incarnation **takes over**: the proxy gets a new reference, and look-ups no longer return the routes
    ///   of the older incarnation, as after [`remove_proxy`](Self::remove_proxy). Additions with the old reference fail
    ///   with [`AddError::UnknownProxy`](crate::AddError::UnknownProxy). An addition during the takeover may succeed,
    ///   but counts as earlier than the takeover: no look-up returns its route.
    /// * The latest incarnation itself **continues**: the proxy keeps its reference, with all routes and handles. If
    ///   the sweeper has dropped the proxy, the proxy gets a new reference.
    /// * A lesser incarnation is **refused**, and so is the latest incarnation after `remove_proxy` has ended it.
    ///
    /// An incarnation is remembered while its proxy is registered, and for one keep-alive interval after that. Then any
    /// incarnation may begin. Proxies without incarnations need no memory for this.
    ///
    /// # Calls without an incarnation
    ///
    /// [`register_proxy`](Self::register_proxy) and [`report_node`](Self::report_node) name no incarnation. Even if
    /// such a call is late, it acts for the current incarnation: it returns the reference, adds routes, and updates the
    /// address. If no incarnation is current, these calls register the proxy without an incarnation. No incarnation is
    /// current before the first incarnation, after the end of an incarnation, or after the sweeper has dropped the
    /// proxy. The next incarnation takes over the routes of such a proxy, unless the table remembers an older
    /// incarnation. Then the routes may belong to the older incarnation, so the table drops the routes.
    ///
    /// # Readers and the lock
    ///
    /// At every moment, a reader finds the proxy by its older or its newer reference: see
    /// [`find_proxy`](Self::find_proxy).
    ///
    /// The call takes no lock if nothing changes: the incarnation is the latest, and the details are the same. It takes
    /// no lock either if the registered proxy's incarnation is greater. Otherwise it takes the registry's lock, mostly
    /// for some microseconds.
    ///
    /// ```
    /// # use std::num::NonZeroU64;
    /// # use nodetracker::{AddError, NodeId, Proxy, RouteTable};
    /// # let table = RouteTable::new();
    /// # let node: NodeId = "550e8400-e29b-41d4-a716-446655440000".parse()?;
    /// # let [first, second] = [1, 2].map(|number| NonZeroU64::new(number).expect("not zero"));
    /// let proxy = Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" };
    /// let before = table.begin_incarnation(&proxy, first)?.proxy;
    /// table.add_node(&node, before)?;
    ///
    /// let after = table.begin_incarnation(&proxy, second)?.proxy;
    /// assert!(table.get_proxies(&node).is_empty());
    /// assert_eq!(table.add_node(&node, before), Err(AddError::UnknownProxy));
    /// assert!(table.begin_incarnation(&proxy, first).is_err());
    /// table.add_node(&node, after)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`BeginError`]: the incarnation is stale, a string is not acceptable, the table has too many proxies or
    /// remembered incarnations, or the proxy restarts too often. The call has changed nothing. An incarnation that
    /// takes over needs room for another proxy until the sweeper has removed the routes of the old incarnation.
    pub fn begin_incarnation<'a>(
        &self,
        proxy: impl Into<ReportedProxy<'a>>,
        incarnation: NonZeroU64,
    ) -> Result<Incarnation, BeginError> {
        let guard = pin();
        self.begin_pinned(proxy.into(), incarnation, ReportedDetails::Apply, &guard)
    }

    /// Begins an incarnation again, like [`begin_incarnation`](Self::begin_incarnation), except that a registered proxy
    /// keeps its details. For a caller that has begun the incarnation before. Since then, the sweeper may have dropped
    /// the proxy, or another caller may have reported newer details.
    ///
    /// # Errors
    ///
    /// As for [`begin_incarnation`](Self::begin_incarnation).
    pub fn resume_incarnation<'a>(
        &self,
        proxy: impl Into<ReportedProxy<'a>>,
        incarnation: NonZeroU64,
    ) -> Result<Incarnation, BeginError> {
        let guard = pin();
        self.begin_pinned(proxy.into(), incarnation, ReportedDetails::Ignore, &guard)
    }

    fn begin_pinned(
        &self,
        proxy: ReportedProxy<'_>,
        incarnation: NonZeroU64,
        details: ReportedDetails,
        guard: &Guard,
    ) -> Result<Incarnation, BeginError> {
        let begun = self
            .proxies()
            .begin(proxy, incarnation, details, self.moment(), guard)
            .inspect_err(|error| match error {
                BeginError::Proxy(error) => self.proxy_refused(error),
                BeginError::RestartsTooOften => self.request_sweep(),
                BeginError::TooManyIncarnations { .. }
                | BeginError::TooManyIncarnationsOfClient { .. }
                | BeginError::Stale(_) => {}
            })?;
        if let Some(replaced) = begun.replaced {
            self.proxy_removed(replaced, guard);
        }
        if begun.has_moved {
            self.proxy_moved(begun.proxy, guard);
        }
        Ok(Incarnation {
            proxy: begun.proxy,
            is_resumed: begun.is_resumed,
        })
    }

    /// The incarnation of a proxy; `None` if it has none, or is no longer registered. Takes no lock.
    #[must_use]
    pub fn incarnation(&self, proxy: ProxyRef) -> Option<NonZeroU64> {
        self.proxies().incarnation(proxy, &pin())
    }

    /// Registers a proxy of a snapshot, unless its incarnation is stale. A registered proxy keeps its details.
    pub(crate) fn restore_proxy(
        &self,
        proxy: &Proxy<'_>,
        incarnation: Option<NonZeroU64>,
    ) -> Result<Option<ProxyRef>, BeginError> {
        let Some(incarnation) = incarnation else {
            return Ok(Some(self.proxies().register_unless_known(proxy, self.now(), &pin())?));
        };
        match self.resume_incarnation(proxy, incarnation) {
            Ok(resumed) => Ok(Some(resumed.proxy)),
            Err(BeginError::Stale(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
