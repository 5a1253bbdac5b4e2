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
//!
//! ```
//! use nodetracker_client::transport::Tunnel;
//! use nodetracker_client::transport::mux::MuxTunnel;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (one, other) = tokio::io::duplex(1 << 16);
//! let agent = MuxTunnel::client(one, Vec::new());
//! let proxy = MuxTunnel::server(other, Vec::new());
//!
//! let mut opened = proxy.open().await?;
//! opened.write_all(b"hello").await?;
//! opened.shutdown().await?;
//! let mut accepted = agent.accept().await.ok_or("the tunnel has ended")?;
//! let mut text = String::new();
//! accepted.read_to_string(&mut text).await?;
//! assert_eq!(text, "hello");
//! # Ok(())
//! # }
//! ```

pub mod mux;
mod received;
pub mod server_tls;
pub(crate) mod slots;
pub mod tcp;

use std::io;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connection, or a stream of a tunnel.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// A stream of a [`Tunnel`]. Dropping the stream resets it; `shutdown` ends the stream's own direction.
///
/// A read that fails is no regular end: the stream was reset, or the tunnel has ended. But after a `shutdown` of this
/// side, a reset and a lost tunnel may read as a regular end. If a truncated answer matters, the answer must say how
/// long it is, or how it ends.
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
    /// Opens a stream, which the other side sees at once.
    ///
    /// # Errors
    ///
    /// If the tunnel has ended, has its maximum of streams, or opens no stream in time. The streams that both sides
    /// have opened count. A tunnel with its maximum of streams fails with
    /// [`QuotaExceeded`](io::ErrorKind::QuotaExceeded).
    async fn open(&self) -> io::Result<TunnelStream> {
        self.open_leaving(0).await
    }

    /// Opens a stream if at least `spare` more streams can be opened after the stream.
    ///
    /// # Errors
    ///
    /// As [`Tunnel::open`].
    async fn open_leaving(&self, spare: usize) -> io::Result<TunnelStream>;

    /// Returns the next stream that the other side opens, or `None` after the end of the tunnel. Dropping the future
    /// loses no stream.
    async fn accept(&self) -> Option<TunnelStream>;

    /// Returns the number of streams that are open on this side, opened by either side.
    fn open_streams(&self) -> usize;

    /// Waits until at most `streams` streams are open on this side.
    async fn until_at_most(&self, streams: usize);

    /// Returns the last time at which the tunnel received bytes, or at which the other end took bytes that had to wait.
    /// Before either happened, returns the time of the tunnel's creation. A tunnel may return the current time while
    /// written bytes may still be on their way, for up to 10 s after the other end's last sign of life.
    fn last_received(&self) -> Instant;

    /// Returns the certificates of the other side that a handshake has verified, its own first. Empty without TLS.
    fn peer_certificates(&self) -> &[CertificateDer<'static>];
}
