//! The routes of one node.

use std::fmt;
use std::iter::FusedIterator;
use std::ops::Deref;

use smallvec::SmallVec;

use crate::types::route::Route;

/// The routes of a node, most recently refreshed first; a slice of [`Route`] or
/// [`ResolvedRoute`](crate::ResolvedRoute).
///
/// Up to two routes need no allocation.
///
/// ```
/// # use nodetracker::{NodeId, Proxy, RouteTable};
/// # let table = RouteTable::new();
/// # let proxy = table.register_proxy(&Proxy { id: "proxy-1", cluster_name: "main", addr: "10.0.0.1:3080" })?;
/// # let node: NodeId = "node-1".parse()?;
/// # table.add_node(&node, proxy)?;
/// let routes = table.get_proxies(&node);
/// let latest = routes.first().map(|route| route.proxy);
/// assert_eq!(latest, Some(proxy));
/// for route in routes {
///     println!("{:?} since {:?}", route.proxy, route.last_refresh);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Routes<R = Route>(SmallVec<[R; 2]>);

impl<R> Routes<R> {
    pub(crate) fn new() -> Self {
        Self(SmallVec::new())
    }

    /// The only route, or none.
    #[inline]
    pub(crate) fn of(route: Option<R>) -> Self {
        let mut routes = SmallVec::new();
        if let Some(route) = route {
            routes.push(route);
        }
        Self(routes)
    }
}

impl<R> Default for Routes<R> {
    fn default() -> Self {
        Self::new()
    }
}

impl<R> Deref for Routes<R> {
    type Target = [R];

    #[inline]
    fn deref(&self) -> &[R] {
        &self.0
    }
}

impl<R: fmt::Debug> fmt::Debug for Routes<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl<R> FromIterator<R> for Routes<R> {
    #[inline]
    fn from_iter<I: IntoIterator<Item = R>>(routes: I) -> Self {
        Self(routes.into_iter().collect())
    }
}

impl<R> IntoIterator for Routes<R> {
    type Item = R;
    type IntoIter = RoutesIntoIter<R>;

    #[inline]
    fn into_iter(self) -> RoutesIntoIter<R> {
        RoutesIntoIter(self.0.into_iter())
    }
}

impl<'a, R> IntoIterator for &'a Routes<R> {
    type Item = &'a R;
    type IntoIter = std::slice::Iter<'a, R>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The iterator of [`Routes`] by value.
pub struct RoutesIntoIter<R>(smallvec::IntoIter<[R; 2]>);

impl<R> Iterator for RoutesIntoIter<R> {
    type Item = R;

    #[inline]
    fn next(&mut self) -> Option<R> {
        self.0.next()
    }

    #[inline]
    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<R> DoubleEndedIterator for RoutesIntoIter<R> {
    fn next_back(&mut self) -> Option<R> {
        self.0.next_back()
    }
}

impl<R> ExactSizeIterator for RoutesIntoIter<R> {}
impl<R> FusedIterator for RoutesIntoIter<R> {}

impl<R: fmt::Debug> fmt::Debug for RoutesIntoIter<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RoutesIntoIter").field(&self.0.as_slice()).finish()
    }
}
