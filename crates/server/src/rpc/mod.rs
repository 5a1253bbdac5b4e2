//! The services of the port: each function parses a request, calls the table, and encodes the reply.

pub(crate) mod admin;
mod complaints;
pub(crate) mod health;
pub(crate) mod instance_id;
pub(crate) mod methods;
mod node_tracker;
mod page_token;
mod reflection;
pub(crate) mod resources;
mod routes;
mod session;
pub(crate) mod shutdown;
pub(crate) mod statistics;
pub(crate) mod watch;
