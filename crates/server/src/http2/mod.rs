//! HTTP/2: one client's connection, and the calls on it.

mod calls;
pub(crate) mod connection;
mod frames;
mod handshake_input;
mod held_input;
pub(crate) mod keep_alive;
mod muted_waker;
#[cfg(test)]
mod prices;
mod rate_guard;
mod records;
#[cfg(test)]
mod served;
mod socket;
mod stream_memory;
mod traffic;
mod wire;
