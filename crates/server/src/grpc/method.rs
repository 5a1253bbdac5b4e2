//! The method table: the handler of each method, and its largest request.

use crate::grpc::handler::Handler;
use crate::limits::MAX_FRAME_SIZE;

/// A method: one row of the table.
#[derive(Debug)]
pub(crate) struct Method {
    /// `/package.Service/Method`, as requests have it.
    pub(crate) path: &'static str,
    /// The largest request message, in bytes.
    pub(crate) max_request: usize,
    pub(crate) handler: Handler,
}

impl Method {
    /// Returns a row.
    ///
    /// # Panics
    ///
    /// `max_request` is smaller than a frame: the fast path relies on each frame to be within the limit.
    pub(crate) fn new(path: &'static str, max_request: usize, handler: Handler) -> Self {
        assert!(max_request >= MAX_FRAME_SIZE as usize, "{path}");
        Self {
            path,
            max_request,
            handler,
        }
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
