//! The plain data that callers pass and receive.

pub(crate) mod client;
pub(crate) mod expiry_hold;
pub(crate) mod handle;
pub(crate) mod life;
pub(crate) mod node_id;
pub(crate) mod proxy;
pub(crate) mod route;
pub(crate) mod routes;
