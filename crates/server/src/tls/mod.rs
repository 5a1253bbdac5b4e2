//! TLS from PEM files: the server's certificates, and the authorities that the commands trust.

mod client;
mod pem;
mod server;

pub(crate) use client::client_config;
pub use server::Certificates;

/// The protocol that a TLS client must ask for, HTTP/2.
const ALPN: &[u8] = b"h2";
