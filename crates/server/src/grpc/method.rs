//! The method table: the handler of each method, its largest request, and who may call it.

use std::marker::PhantomData;

use tonic::Status;

use crate::auth::{Access, Caller};
use crate::grpc::handler::{Handler, WriteHandler};
use crate::limits::MAX_FRAME_SIZE;

/// A method: one row of the table.
#[derive(Debug)]
pub(crate) struct Method {
    /// `/package.Service/Method`, as requests have it.
    pub(crate) path: &'static str,
    /// The largest request message, in bytes.
    pub(crate) max_request: usize,
    /// Who may call the method.
    pub(crate) access: Access,
    pub(crate) handler: Handler,
    /// Whether a connection is idle although a call of the method is in flight. A connection may have
    /// [`MAX_PASSIVE_CALLS`](crate::limits::MAX_PASSIVE_CALLS) of these calls.
    pub(crate) is_passive: bool,
}

/// The rule of a method, [`Access`], for handlers of one type. So a method whose callers may write only the routes of
/// their own proxy has a handler that checks the proxy.
#[derive(Debug)]
pub(crate) struct Rule<H> {
    access: Access,
    handler: PhantomData<fn(H)>,
}

/// [`Access::Everyone`].
pub(crate) const EVERYONE: Rule<Handler> = rule(Access::Everyone);
/// [`Access::Read`].
pub(crate) const READ: Rule<Handler> = rule(Access::Read);
/// [`Access::OwnProxy`].
pub(crate) const OWN_PROXY: Rule<WriteHandler> = rule(Access::OwnProxy);
/// [`Access::Admin`].
pub(crate) const ADMIN: Rule<Handler> = rule(Access::Admin);

const fn rule<H>(access: Access) -> Rule<H> {
    Rule {
        access,
        handler: PhantomData,
    }
}

/// Returns a row, as [`Method::new`].
pub(crate) fn row<H: Into<Handler>>(path: &'static str, max_request: usize, rule: Rule<H>, handler: H) -> Method {
    Method::new(path, max_request, rule.access, handler.into())
}

impl Method {
    /// Returns a row.
    ///
    /// # Panics
    ///
    /// `max_request` is smaller than a frame: the fast path relies on each frame to be within the limit.
    pub(crate) fn new(path: &'static str, max_request: usize, access: Access, handler: Handler) -> Self {
        assert!(max_request >= MAX_FRAME_SIZE as usize, "{path}");
        Self {
            path,
            max_request,
            access,
            handler,
            is_passive: false,
        }
    }

    /// Makes a row of a method whose calls leave a connection idle.
    pub(crate) fn passive(self) -> Self {
        Self {
            is_passive: true,
            ..self
        }
    }

    /// Checks that a caller may call the method.
    ///
    /// # Errors
    ///
    /// PERMISSION_DENIED, with the caller and the role that the caller lacks.
    #[inline]
    pub(crate) fn check(&self, caller: &Caller) -> Result<(), Status> {
        self.access.check(caller, self.path)
    }

    fn service(&self) -> &'static str {
        split(self.path).0
    }
}

/// Splits a path into the names of its service and of its method.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .unwrap_or((path, ""))
}

/// The methods of the port.
#[derive(Debug)]
pub(crate) struct MethodTable(Vec<Method>);

impl MethodTable {
    /// Returns a table of `rows`. Frequent methods come first: a look-up compares the rows in order.
    pub(crate) fn new(rows: Vec<Method>) -> Self {
        Self(rows)
    }

    /// Returns the number of a path's method.
    #[inline]
    pub(crate) fn find(&self, path: &str) -> Option<usize> {
        self.0.iter().position(|method| method.path == path)
    }

    /// Reports whether a service has methods in the table.
    pub(crate) fn has_service(&self, service: &str) -> bool {
        self.0.iter().any(|method| method.service() == service)
    }

    /// Returns the names of the services, each once.
    pub(crate) fn services(&self) -> Vec<&'static str> {
        let mut services: Vec<_> = self.0.iter().map(Method::service).collect();
        services.sort_unstable();
        services.dedup();
        services
    }

    /// Returns all methods, by their numbers.
    pub(crate) fn rows(&self) -> &[Method] {
        &self.0
    }
}
