//! Proxies that tell how often they have started, so that late messages of a dead one are told from its successor's.

use std::num::NonZeroU64;

use crate::error::{BeginError, RegisterError};
use crate::proxies::{Begun, Proxy, ProxyRef};
use crate::sync::{Guard, pin};
use crate::table::RouteTable;

/// An incarnation that has begun, as [`RouteTable::begin_incarnation`] tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Incarnation {
    /// What its routes are added with.
    pub proxy: ProxyRef,
    /// Whether it had begun before and has the same reference still, so that its [handles](crate::RouteHandle) may hold.
    pub is_resumed: bool,
}

impl RouteTable {
    /// Registers a proxy that has started for the `incarnation`th time, or for as many times as any number tells that grows
    /// whenever it starts, such as a time.
    ///
    /// * A greater incarnation than the latest one **takes over**: the older one's routes are gone at once, as
    ///   [`remove_proxy`](Self::remove_proxy) removes them, and the proxy gets a new reference. What is still done with the
    ///   old one is [`AddError::UnknownProxy`](crate::AddError::UnknownProxy). An addition that is under way meanwhile
    ///   brings no route back: it counts as one before, whatever it answers.
    /// * The latest incarnation itself **goes on**: it keeps its reference, with all routes and handles. If the sweeper has
    ///   dropped the proxy, it gets a new one.
    /// * A lesser one is **refused**, and so is the latest one once `remove_proxy` has ended it.
    ///
    /// An incarnation is remembered for as long as its proxy is registered, and for one keep-alive interval from then on;
    /// after that, any one may begin. Proxies without incarnations cost no memory for this.
    ///
    /// # Calls without an incarnation
    ///
    /// [`register_proxy`](Self::register_proxy) and [`report_node`](Self::report_node) tell no incarnation, and so speak for
    /// the current one: they return its reference, add to its routes, and bring its address up to date. Nobody can tell
    /// whether they are late. Where there is no current one, since none has begun, it is over, or the sweeper dropped the
    /// proxy, they register the proxy as one without an incarnation. What such a proxy has goes over to the incarnation that
    /// begins, unless an older one is remembered: then it may be of that, and is gone.
    ///
    /// A reader finds the proxy throughout, by its older or its newer reference: see [`find_proxy`](Self::find_proxy).
    ///
    /// If nothing changes, as with the latest incarnation and the same details, or with a lesser one than that of a proxy that
    /// is registered, no lock is taken. Otherwise the registry's is, for some microseconds.
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
    /// [`BeginError`]: the incarnation is stale, one of the strings is not acceptable, or there are too many proxies, those
    /// counted that are gone and whose incarnations are remembered. An incarnation that takes over needs the room of one
    /// more proxy until the old one's routes are swept. Nothing was changed.
    pub fn begin_incarnation(&self, proxy: &Proxy<'_>, incarnation: NonZeroU64) -> Result<Incarnation, BeginError> {
        let guard = pin();
        let moved = |proxy| self.proxy_moved(proxy, &guard);
        let begun = self
            .proxies()
            .begin(proxy, incarnation, Some(moved), self.moment(), &guard)?;
        Ok(self.begun(begun, &guard))
    }

    /// Begins an incarnation once more, as [`begin_incarnation`](Self::begin_incarnation) does, but does not tell the proxy's
    /// details anew: those of one that is registered stay as they are. For who has begun it, and cannot know whether the
    /// sweeper has dropped the proxy since, or others have told its details later.
    ///
    /// # Errors
    ///
    /// As of [`begin_incarnation`](Self::begin_incarnation).
    pub fn resume_incarnation(&self, proxy: &Proxy<'_>, incarnation: NonZeroU64) -> Result<Incarnation, BeginError> {
        let guard = pin();
        let keep = None::<fn(ProxyRef)>;
        let begun = self.proxies().begin(proxy, incarnation, keep, self.moment(), &guard)?;
        Ok(self.begun(begun, &guard))
    }

    fn begun(&self, begun: Begun, guard: &Guard) -> Incarnation {
        if let Some(replaced) = begun.replaced {
            self.proxy_removed(replaced, guard);
        }
        Incarnation {
            proxy: begun.proxy,
            is_resumed: begun.is_resumed,
        }
    }

    /// The incarnation that a proxy is of; `None` where it has none, or is not registered any more. Takes no lock.
    #[must_use]
    pub fn incarnation(&self, proxy: ProxyRef) -> Option<NonZeroU64> {
        self.proxies().incarnation(proxy, &pin())
    }

    /// Registers a proxy of a snapshot, unless its incarnation is stale. One that is registered keeps its details.
    pub(crate) fn restore_proxy(
        &self,
        proxy: &Proxy<'_>,
        incarnation: Option<NonZeroU64>,
    ) -> Result<Option<ProxyRef>, RegisterError> {
        let Some(incarnation) = incarnation else {
            return self
                .proxies()
                .register_unless_known(proxy, self.now(), &pin())
                .map(Some);
        };
        match self.resume_incarnation(proxy, incarnation) {
            Ok(resumed) => Ok(Some(resumed.proxy)),
            Err(BeginError::Stale(_)) => Ok(None),
            Err(BeginError::Proxy(error)) => Err(error),
        }
    }
}
