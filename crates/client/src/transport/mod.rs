//! Tunnels: connections that carry many streams of bytes.
//!
//! | module | contents |
//! | --- | --- |
//! | [`mux`] | a tunnel over any connection of bytes, by yamux |
//! | [`tcp`] | tunnels over TCP and TLS |
//! | [`server_tls`] | the TLS of a side that accepts tunnels, from files that may change |
//!
//! An agent pool dials with any [`Transport`], and an agent listener serves any [`Tunnel`]. So tests and simulations
//! can have transports of their own.

pub mod mux;
pub mod server_tls;
pub mod tcp;

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection, or a stream of a tunnel.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A stream of a [`Tunnel`]. Dropping the stream resets it; `shutdown` ends the stream's own direction.
pub type TunnelStream = Box<dyn ByteStream>;

/// Dials proxies, and opens tunnels to them.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Opens a tunnel to the proxy behind an address. The caller bounds the time, and drops the future to cancel.
    ///
    /// # Errors
    ///
    /// If no tunnel can be opened.
    async fn connect(&self, addr: &str) -> io::Result<Arc<dyn Tunnel>>;
}

/// One connection that carries many streams. Dropping the tunnel closes it, with all of its streams.
#[async_trait]
pub trait Tunnel: Send + Sync + 'static {
    /// Opens a stream. The other side may see the stream only when the first bytes are written.
    ///
    /// # Errors
    ///
    /// If the tunnel has ended, or has its maximum of streams. The streams that both sides have opened count.
    async fn open(&self) -> io::Result<TunnelStream>;

    /// Returns the next stream that the other side opens, or `None` after the end of the tunnel. Dropping the future
    /// loses no stream.
    async fn accept(&self) -> Option<TunnelStream>;

    /// Returns the number of streams that are open on this side, opened by either side.
    fn open_streams(&self) -> usize;

    /// Returns how many more streams can be opened now.
    fn free_streams(&self) -> usize;

    /// Waits until at most `streams` streams are open on this side.
    async fn until_at_most(&self, streams: usize);

    /// Returns the certificates of the other side that a handshake has verified, its own first. Empty without TLS.
    fn peer_certificates(&self) -> &[CertificateDer<'static>];
}
