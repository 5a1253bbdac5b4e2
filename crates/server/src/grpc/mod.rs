//! gRPC over HTTP/2: which method a request is for, and how its reply is made.

pub(crate) mod drain_body;
pub(crate) mod method;
pub(crate) mod router;
pub(crate) mod send_budget;
pub(crate) mod unary;
