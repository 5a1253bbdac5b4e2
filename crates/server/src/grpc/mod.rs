//! gRPC over HTTP/2 streams: the method table, and how a call gets its reply.

pub(crate) mod call_counters;
mod charge_body;
mod drain_body;
pub(crate) mod frame;
pub(crate) mod handler;
mod head;
pub(crate) mod method;
pub(crate) mod panics;
pub(crate) mod request;
pub(crate) mod router;
pub(crate) mod send_budget;
pub(crate) mod status;
mod turn_body;
mod unary;
pub(crate) mod unread;
pub(crate) mod worker_counters;
