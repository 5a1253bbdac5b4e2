//! A connection to one tracker. A call that needs the connection makes it, and makes it again after its end.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Response, Uri};
use hyper_util::rt::TokioIo;
use nodetracker_tls::client::{ClientConfigError, ClientFiles, client_config};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::transport::{self, Endpoint};
use tower::util::MapResponse;
use tower_service::Service;
use tracing::warn;

use crate::connect::addr::TrackerAddr;
use crate::connect::status_details;

/// A channel to a tracker, for the clients that tonic generates. Clones share one connection. The channel drops status
/// details that are not base64, because tonic panics if it reads them.
pub type Channel = MapResponse<transport::Channel, fn(Response<Body>) -> Response<Body>>;

/// The PEM files of a client of trackers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities to trust.
    pub ca: PathBuf,
    /// The client's own private key and certificate chain, for trackers that verify clients.
    pub keypair: Option<(PathBuf, PathBuf)>,
}

/// The configuration of TLS, read again for each new connection.
///
/// Connections are rare and files are small, so nothing watches the files. If a file cannot be used, a new connection
/// uses the last good configuration.
#[derive(Debug)]
pub struct ClientTls {
    files: TlsFiles,
    last_good: ArcSwap<ClientConfig>,
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// If a file cannot be used.
    pub fn load(files: TlsFiles) -> Result<Arc<Self>, ClientConfigError> {
        let config = files.read()?;
        Ok(Arc::new(Self {
            files,
            last_good: ArcSwap::new(config),
        }))
    }

    pub(crate) fn current(&self) -> Arc<ClientConfig> {
        match self.files.read() {
            Ok(config) => self.last_good.store(config),
            Err(error) => warn!("TLS continues with the files that were read before: {error}"),
        }
        self.last_good.load_full()
    }
}

impl TlsFiles {
    fn read(&self) -> Result<Arc<ClientConfig>, ClientConfigError> {
        let keypair = self.keypair.as_ref().map(|(key, cert)| (key.as_path(), cert.as_path()));
        client_config(&ClientFiles { ca: &self.ca, keypair })
    }
}

/// How to connect to trackers.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// The TLS of addresses with `https`. Without it, no connection to such an address succeeds.
    pub tls: Option<Arc<ClientTls>>,
    /// The longest time for a name's resolution, the TCP connection and the TLS handshake together.
    pub connect_timeout: Duration,
    /// After how long a silence a connection is pinged.
    pub keep_alive_interval: Duration,
    /// How long the answer to a ping may take. Then the connection is broken.
    pub keep_alive_timeout: Duration,
}

impl Default for ConnectOptions {
    /// No TLS; 5 s to connect; a ping after 10 s, and 5 s for the answer.
    fn default() -> Self {
        Self {
            tls: None,
            connect_timeout: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(10),
            keep_alive_timeout: Duration::from_secs(5),
        }
    }
}

impl ConnectOptions {
    /// Returns a channel to a tracker, and does not wait for a connection. The first call connects; the first call
    /// after the end of a connection connects again, and resolves the host's name again.
    ///
    /// Needs a tokio runtime.
    #[must_use]
    pub fn channel(&self, addr: &TrackerAddr) -> Channel {
        // tonic refuses an endpoint with `https` if its own TLS is compiled in and not configured. The connector has
        // its own.
        let channel = Endpoint::from(addr.plaintext_origin())
            .origin(addr.origin())
            .http2_keep_alive_interval(self.keep_alive_interval)
            .keep_alive_timeout(self.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(Connector {
                addr: addr.clone(),
                options: self.clone(),
            });
        MapResponse::new(channel, status_details::drop_bad)
    }
}

/// Connects to one tracker, over TCP or TLS.
#[derive(Debug, Clone)]
struct Connector {
    addr: TrackerAddr,
    options: ConnectOptions,
}

impl Connector {
    async fn connect(self) -> io::Result<TokioIo<Box<dyn Connection>>> {
        let stream = TcpStream::connect((self.addr.host(), self.addr.port())).await?;
        stream.set_nodelay(true)?;
        if !self.addr.is_tls() {
            return Ok(TokioIo::new(Box::new(stream)));
        }
        let tls = self
            .options
            .tls
            .ok_or_else(|| io::Error::other("https needs TLS: set ConnectOptions::tls"))?;
        let name = ServerName::try_from(self.addr.host().to_owned()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(tls.current()).connect(name, stream).await?;
        Ok(TokioIo::new(Box::new(stream)))
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let limit = self.options.connect_timeout;
        let connect = self.clone().connect();
        Box::pin(async move {
            let late = |_| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no connection within {limit:?}"),
                ))
            };
            timeout(limit, connect).await.unwrap_or_else(late)
        })
    }
}

/// A connection of bytes.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}
