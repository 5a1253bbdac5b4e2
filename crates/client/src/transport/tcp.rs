//! Tunnels over TCP, with TLS or without.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Uri;
use http::uri::Scheme;
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CommonState, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower_service::Service;
use tracing::{debug, warn};

use crate::backoff::{Backoff, Limits};
use crate::connect::channel::ClientTls;
use crate::transport::mux::MuxTunnel;
use crate::transport::server_tls::ServerTls;
use crate::transport::slots::Slot;
use crate::transport::{Transport, Tunnel};

/// The protocol between agents and proxies in the TLS handshake (ALPN).
pub const AGENT_ALPN: &[u8] = b"nodetracker-agent";

/// The protocol between proxies in the TLS handshake (ALPN). So an agent cannot reach the port for peers by mistake.
pub const PEER_ALPN: &[u8] = b"nodetracker-peer";

/// The longest time to connect, without the resolution of the name and without TLS. The addresses of a name share this
/// time, so that the next addresses have their turn before a pool or a dialer gives up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// The pauses after errors of `accept`, such as too many open files.
const ACCEPT_PAUSES: Limits = Limits {
    base: Duration::from_millis(100),
    max: Duration::from_secs(1),
};

/// Dials over TCP. [`TcpTransport::default`] is plaintext.
#[derive(Debug, Clone)]
pub struct TcpTransport {
    /// TLS, and an own certificate if the files have a key. `None` is plaintext, for tests and trusted networks only:
    /// neither side is verified.
    pub tls: Option<Arc<ClientTls>>,
    /// The name that the proxies' certificates must have. By default, the host of the address.
    pub server_name: Option<String>,
    /// The protocol to ask for in the TLS handshake: [`AGENT_ALPN`] for an agent, [`PEER_ALPN`] for a proxy.
    pub alpn: &'static [u8],
}

impl TcpTransport {
    /// Dials the proxies of an agent with TLS.
    #[must_use]
    pub fn agent(tls: Arc<ClientTls>) -> Self {
        Self {
            tls: Some(tls),
            ..Self::default()
        }
    }

    /// Dials the peers of a proxy with TLS.
    #[must_use]
    pub fn peer(tls: Arc<ClientTls>) -> Self {
        Self {
            alpn: PEER_ALPN,
            ..Self::agent(tls)
        }
    }
}

impl Default for TcpTransport {
    fn default() -> Self {
        Self {
            tls: None,
            server_name: None,
            alpn: AGENT_ALPN,
        }
    }
}

#[async_trait]
impl Transport for TcpTransport {
    /// Dials `host:port`. A name is resolved each time. If the name has several addresses, no dead address takes the
    /// time of the others, and IPv4 and IPv6 race (RFC 6555).
    async fn connect(&self, addr: &str) -> io::Result<Arc<dyn Tunnel>> {
        let stream = connect(addr).await?;
        let Some(tls) = &self.tls else {
            return Ok(Arc::new(MuxTunnel::client(stream, Vec::new())));
        };
        let mut config = (*tls.current().await).clone();
        config.alpn_protocols = vec![self.alpn.to_vec()];
        let host = addr.rsplit_once(':').map_or(addr, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = self.server_name.as_deref().unwrap_or(host).to_owned();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let certificates = certificates(stream.get_ref().1);
        Ok(Arc::new(MuxTunnel::client(stream, certificates)))
    }
}

/// How a server makes its handshakes.
#[derive(Clone, Copy)]
pub(crate) struct Handshakes {
    pub(crate) alpn: &'static [u8],
    /// The longest time of a TLS handshake.
    pub(crate) limit: Duration,
}

/// The handshake of one connection. An error names the connection's address.
pub(crate) type Handshake = Pin<Box<dyn Future<Output = io::Result<MuxTunnel>> + Send>>;

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

    /// Accepts TLS. The configuration decides whether the dialling side needs a certificate. The server that uses the
    /// acceptor sets the ALPN protocol.
    #[must_use]
    pub fn tls(listener: TcpListener, config: &ServerConfig) -> Self {
        let tls = Some(Tls::Fixed(Arc::new(config.clone())));
        Self { listener, tls }
    }

    /// Accepts TLS with certificates that are read again when their files have changed.
    #[must_use]
    pub fn tls_files(listener: TcpListener, tls: Arc<ServerTls>) -> Self {
        let tls = Some(Tls::Files(tls));
        Self { listener, tls }
    }

    /// Accepts connections until `closed` completes. For each connection that `admit` gives a place, `serve` gets the
    /// handshake, and runs in a task of its own. Further connections are closed at once.
    pub(crate) async fn serve<F: Future<Output = ()> + Send + 'static>(
        self,
        handshakes: Handshakes,
        closed: impl Future<Output = ()>,
        admit: impl Fn() -> Option<Slot>,
        serve: impl Fn(Handshake, Slot) -> F,
    ) {
        let acceptor = Arc::new(self);
        let mut closed = pin!(closed);
        loop {
            let (stream, peer) = tokio::select! {
                accepted = acceptor.accept() => accepted,
                () = &mut closed => return,
            };
            let Some(slot) = admit() else { continue };
            let acceptor = Arc::clone(&acceptor);
            let handshake = async move {
                let tunnel = timeout(handshakes.limit, acceptor.handshake(stream, handshakes.alpn)).await;
                tunnel
                    .map_err(io::Error::from)
                    .flatten()
                    .map_err(|error| io::Error::new(error.kind(), format!("{peer}: {error}")))
            };
            tokio::spawn(serve(Box::pin(handshake), slot));
        }
    }

    /// Returns the next connection, before its TLS handshake. After an error, such as too many open files, tries again.
    /// Dropping the future loses no connection.
    async fn accept(&self) -> (TcpStream, SocketAddr) {
        let mut pauses = Backoff::new(ACCEPT_PAUSES, fastrand::u64(..));
        loop {
            match self.listener.accept().await {
                Ok(accepted) => return accepted,
                Err(error) if concerns_one_connection(&error) => {
                    debug!("a connection was lost before it was accepted: {error}");
                }
                Err(error) => {
                    if pauses.attempts() == 0 {
                        warn!("cannot accept connections, and tries again until it can: {error}");
                    }
                    sleep(pauses.next_wait()).await;
                }
            }
        }
    }

    /// Returns the tunnel over a connection, after the TLS handshake.
    async fn handshake(&self, stream: TcpStream, alpn: &[u8]) -> io::Result<MuxTunnel> {
        stream.set_nodelay(true)?;
        let config = match &self.tls {
            None => return Ok(MuxTunnel::server(stream, Vec::new())),
            Some(Tls::Fixed(config)) => Arc::clone(config),
            Some(Tls::Files(tls)) => tls.current().await,
        };
        let mut config = (*config).clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
        let certificates = certificates(stream.get_ref().1);
        Ok(MuxTunnel::server(stream, certificates))
    }
}

async fn connect(addr: &str) -> io::Result<TcpStream> {
    let invalid = |error: &dyn std::fmt::Display| {
        let reason = format!("{addr:?} is no address of the form host:port: {error}");
        io::Error::new(io::ErrorKind::InvalidInput, reason)
    };
    let uri = Uri::builder().scheme(Scheme::HTTP).authority(addr).path_and_query("/");
    let uri = uri.build().map_err(|error| invalid(&error))?;
    uri.port().ok_or_else(|| invalid(&"no port"))?;
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let connected = connector.call(uri).await.map_err(|error| {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        match cause {
            Some(cause) => io::Error::new(cause.kind(), format!("{error}: {cause}")),
            None => io::Error::other(error),
        }
    });
    Ok(connected?.into_inner())
}

/// Whether an error of `accept` is of one connection, and not of the listener.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput, NotConnected};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput | NotConnected
    )
}

fn certificates(connection: &CommonState) -> Vec<CertificateDer<'static>> {
    let certificates = connection.peer_certificates().unwrap_or_default();
    certificates.iter().map(|der| der.clone().into_owned()).collect()
}
