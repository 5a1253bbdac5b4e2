//! HTTP/2: one client's connection, and the calls on it.

mod calls;
mod cancel_guard;
pub(crate) mod connection;
pub(crate) mod keep_alive;
mod muted_waker;
mod socket;
mod stream_memory;
mod traffic;
