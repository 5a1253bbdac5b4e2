//! HTTP/2: one client's connection, and the calls on it.

mod byte_counter;
mod calls;
pub(crate) mod connection;
mod keep_alive;
mod muted_waker;
