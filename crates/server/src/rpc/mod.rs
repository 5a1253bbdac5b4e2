//! The services of the port: parse at the edge, call the table, reply.

pub(crate) mod admin;
pub(crate) mod instance_id;
pub(crate) mod node_tracker;
mod page_token;
pub(crate) mod routes;
pub(crate) mod session;
pub(crate) mod watch;
