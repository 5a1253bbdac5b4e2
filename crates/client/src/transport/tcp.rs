//! Tunnels over TCP, with TLS or without.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CommonState, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tracing::warn;

use crate::connect::channel::ClientTls;
use crate::transport::mux::MuxTunnel;
use crate::transport::server_tls::ServerTls;
use crate::transport::{Transport, Tunnel};

/// The protocol that both sides ask for in the TLS handshake (ALPN).
pub const ALPN: &[u8] = b"nodetracker-agent";

/// How long to wait after an error of `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Dials over TCP.
#[derive(Debug, Clone, Default)]
pub struct TcpTransport {
    /// TLS, and an own certificate if the files have a key. `None` is plaintext, for tests and trusted networks only:
    /// neither side is verified.
    pub tls: Option<Arc<ClientTls>>,
    /// The name that the proxies' certificates must have. By default, the host of the address.
    pub server_name: Option<String>,
}

#[async_trait]
impl Transport for TcpTransport {
    /// Dials `host:port`. A name is resolved each time.
    async fn connect(&self, addr: &str) -> io::Result<Arc<dyn Tunnel>> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else {
            return Ok(Arc::new(MuxTunnel::client(stream, Vec::new())));
        };
        let mut config = (*tls.current()).clone();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let certificates = certificates(stream.get_ref().1);
        Ok(Arc::new(MuxTunnel::client(stream, certificates)))
    }
}

/// Accepts tunnels over TCP.
pub struct TcpAcceptor {
    listener: TcpListener,
    tls: Option<Tls>,
}

enum Tls {
    Fixed(Arc<ServerConfig>),
    Files(Arc<ServerTls>),
}

impl TcpAcceptor {
    /// Accepts plaintext: neither side is verified.
    #[must_use]
    pub fn plaintext(listener: TcpListener) -> Self {
        Self { listener, tls: None }
    }

    /// Accepts TLS. The configuration decides whether the dialling side needs a certificate. [`ALPN`] replaces the
    /// configuration's ALPN protocols.
    #[must_use]
    pub fn tls(listener: TcpListener, config: &ServerConfig) -> Self {
        let mut config = config.clone();
        config.alpn_protocols = vec![ALPN.to_vec()];
        let tls = Some(Tls::Fixed(Arc::new(config)));
        Self { listener, tls }
    }

    /// Accepts TLS with certificates that are read again when their files have changed.
    #[must_use]
    pub fn tls_files(listener: TcpListener, tls: Arc<ServerTls>) -> Self {
        let tls = Some(Tls::Files(tls));
        Self { listener, tls }
    }

    /// Returns the next connection, before its TLS handshake. After an error, such as too many open files, tries again.
    /// Dropping the future loses no connection.
    pub(crate) async fn accept(&self) -> (TcpStream, SocketAddr) {
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    warn!("cannot accept connections for {ACCEPT_PAUSE:?}: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Returns the tunnel over a connection, after the TLS handshake.
    pub(crate) async fn handshake(&self, stream: TcpStream) -> io::Result<MuxTunnel> {
        stream.set_nodelay(true)?;
        let config = match &self.tls {
            None => return Ok(MuxTunnel::server(stream, Vec::new())),
            Some(Tls::Fixed(config)) => Arc::clone(config),
            Some(Tls::Files(tls)) => tls.current().await,
        };
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let certificates = certificates(stream.get_ref().1);
        Ok(MuxTunnel::server(stream, certificates))
    }
}

fn certificates(connection: &CommonState) -> Vec<CertificateDer<'static>> {
    let certificates = connection.peer_certificates().unwrap_or_default();
    certificates.iter().map(|der| der.clone().into_owned()).collect()
}
