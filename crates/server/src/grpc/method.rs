//! The method table: which handler a request is for, and what the router has to know of the method.

use crate::grpc::handler::Handler;
use crate::limits::MAX_FRAME_SIZE;

/// A method: one row of the table.
#[derive(Debug)]
pub(crate) struct Method {
    /// `/package.Service/Method`, as requests have it.
    pub(crate) path: &'static str,
    /// The largest request message, in bytes.
    pub(crate) max_request: usize,
    pub(crate) reply: ReplyKind,
    pub(crate) handler: Handler,
}

/// The reply of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyKind {
    /// One small message.
    Unary,
    /// One message of up to [`MAX_REPLY_SIZE`](crate::limits::MAX_REPLY_SIZE), for which the router reserves send budget.
    LargeUnary,
    /// A stream of messages. If some of them can be large, the handler reserves send budget itself.
    Streaming,
}

impl Method {
    /// Returns a row.
    ///
    /// # Panics
    ///
    /// `max_request` is smaller than a frame: the fast path relies on each frame to be within the limit.
    pub(crate) fn new(path: &'static str, max_request: usize, reply: ReplyKind, handler: Handler) -> Self {
        assert!(max_request >= MAX_FRAME_SIZE as usize, "{path}");
        Self {
            path,
            max_request,
            reply,
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

    /// Returns the method of a path.
    #[inline]
    pub(crate) fn find(&self, path: &str) -> Option<&Method> {
        self.0.iter().find(|method| method.path == path)
    }

    /// Returns the first method of a service.
    pub(crate) fn first_of(&self, service: &str) -> Option<&Method> {
        self.0.iter().find(|method| method.service() == service)
    }

    /// Returns the names of the services, each once.
    pub(crate) fn services(&self) -> Vec<&'static str> {
        let mut services: Vec<_> = self.0.iter().map(Method::service).collect();
        services.sort_unstable();
        services.dedup();
        services
    }

    #[cfg(test)]
    pub(crate) fn rows(&self) -> &[Method] {
        &self.0
    }
}
