//! A connection to one tracker. A call that needs the connection makes it, and makes it again after its end.

use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use http::{Response, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::TokioIo;
use nodetracker_tls::client::{ClientConfigError, ClientFiles, client_config};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tonic::transport::{self, Endpoint};
use tonic::{ConnectError, Status};
use tower::util::MapResponse;
use tower_service::Service;
use tracing::warn;

use crate::clock::bounded;
use crate::connect::NoTls;
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

    /// Reads the files again, on a thread that may block. Returns the configuration for a handshake.
    pub(crate) async fn current(self: &Arc<Self>) -> Arc<ClientConfig> {
        let tls = Arc::clone(self);
        let read = move || match tls.files.read() {
            Ok(config) => tls.last_good.store(config),
            Err(error) => warn!("TLS continues with the files that were read before: {error}"),
        };
        // An error means that the runtime shuts down.
        let _ = spawn_blocking(read).await;
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
pub struct ConnectConfig {
    /// The TLS of addresses with `https`.
    pub tls: Option<Arc<ClientTls>>,
    /// The longest time for a name's resolution, the TCP connection and the TLS handshake together.
    pub connect_timeout: Duration,
    /// A connection is pinged after this time without a message.
    pub keep_alive_interval: Duration,
    /// A connection is broken if a ping has no answer for this time.
    pub keep_alive_timeout: Duration,
}

impl Default for ConnectConfig {
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

impl ConnectConfig {
    /// Checks that the configuration has TLS if one of these addresses needs TLS.
    pub(crate) fn check(&self, trackers: &[TrackerAddr]) -> Result<(), NoTls> {
        match trackers.iter().find(|addr| addr.is_tls()) {
            Some(addr) if self.tls.is_none() => Err(NoTls(addr.clone())),
            _ => Ok(()),
        }
    }

    /// Returns a channel to a tracker, and does not wait for a connection. The first call connects; the first call
    /// after the end of a connection connects again, and resolves the host's name again. If the address needs TLS and
    /// the configuration has none, each call fails.
    ///
    /// Needs a tokio runtime.
    #[must_use]
    pub fn channel(&self, addr: &TrackerAddr) -> Channel {
        // tonic refuses an endpoint with `https` if its own TLS is compiled in and not configured. The connector has
        // its own.
        let channel = Endpoint::from(addr.plaintext_origin())
            .origin(addr.origin())
            .http2_keep_alive_interval(bounded(self.keep_alive_interval))
            .keep_alive_timeout(bounded(self.keep_alive_timeout))
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(Connector::new(addr, self, GaiResolver::new()));
        MapResponse::new(channel, status_details::drop_bad)
    }
}

/// Whether there was no connection, so that the tracker has received nothing.
pub(crate) fn is_unreachable(status: &Status) -> bool {
    std::iter::successors(status.source(), |&error| error.source()).any(|error| error.is::<ConnectError>())
}

/// Connects to one tracker, over TCP or TLS.
#[derive(Debug, Clone)]
struct Connector<R = GaiResolver> {
    addr: TrackerAddr,
    tcp: HttpConnector<R>,
    tls: Option<Arc<ClientTls>>,
    limit: Duration,
}

impl<R> Connector<R> {
    fn new(addr: &TrackerAddr, config: &ConnectConfig, resolver: R) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.set_nodelay(true);
        // Divided by the number of the name's addresses.
        tcp.set_connect_timeout(Some(config.connect_timeout));
        Self {
            addr: addr.clone(),
            tcp,
            tls: config.tls.clone(),
            limit: config.connect_timeout,
        }
    }
}

impl<R: Resolver> Connector<R> {
    async fn connect(mut self) -> Result<TokioIo<Box<dyn Connection>>, BoxError> {
        let stream = self.tcp.call(self.addr.plaintext_origin()).await?;
        if !self.addr.is_tls() {
            return Ok(TokioIo::new(Box::new(stream.into_inner())));
        }
        let tls = self.tls.ok_or(NoTls(self.addr.clone()))?;
        let name = ServerName::try_from(self.addr.host().to_owned())?;
        let stream = TlsConnector::from(tls.current().await)
            .connect(name, stream.into_inner())
            .await?;
        Ok(TokioIo::new(Box::new(stream)))
    }
}

impl<R: Resolver> Service<Uri> for Connector<R> {
    type Response = TokioIo<Box<dyn Connection>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let limit = self.limit;
        let connect = self.clone().connect();
        Box::pin(async move {
            let late = |_| {
                let text = format!("no connection within {limit:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, text).into())
            };
            timeout(limit, connect).await.unwrap_or_else(late)
        })
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

/// Resolves the names of trackers.
trait Resolver:
    Service<Name, Response: Iterator<Item = SocketAddr>, Error: Into<BoxError>, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<R> Resolver for R where
    R: Service<Name, Response: Iterator<Item = SocketAddr>, Error: Into<BoxError>, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// A connection of bytes.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::{Ready, ready};
    use std::sync::Mutex;

    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    /// The answers to one resolution after the other.
    #[derive(Clone)]
    struct Answers(Arc<Mutex<VecDeque<Vec<SocketAddr>>>>);

    impl Answers {
        fn new(answers: impl Into<VecDeque<Vec<SocketAddr>>>) -> Self {
            Self(Arc::new(Mutex::new(answers.into())))
        }
    }

    impl Service<Name> for Answers {
        type Response = std::vec::IntoIter<SocketAddr>;
        type Error = io::Error;
        type Future = Ready<io::Result<Self::Response>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Name) -> Self::Future {
            let answer = self.0.lock().unwrap().pop_front();
            ready(answer.map(Vec::into_iter).ok_or_else(|| io::ErrorKind::NotFound.into()))
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_second_address_is_tried_if_the_first_one_drops_packets() {
        // The kernel drops connections that do not fit into the queue of a socket that accepts nothing.
        let silent = TcpSocket::new_v4().unwrap();
        silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let silent = silent.listen(0).unwrap();
        let first = silent.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) = timeout(Duration::from_millis(200), TcpStream::connect(first)).await {
            queued.push(stream.unwrap());
        }
        let second = TcpListener::bind(("127.0.0.2", first.port())).await.unwrap();
        let config = ConnectConfig {
            connect_timeout: Duration::from_secs(2),
            ..ConnectConfig::default()
        };
        let addr = format!("tracker.example:{}", first.port()).parse().unwrap();
        let resolver = Answers::new([vec![first, second.local_addr().unwrap()]]);
        let mut connector = Connector::new(&addr, &config, resolver);
        let (connected, accepted) = tokio::join!(connector.call(Uri::default()), second.accept());
        connected.map(drop).unwrap();
        accepted.unwrap();
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn each_connection_resolves_the_name_again() {
        let before = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = before.local_addr().unwrap().port();
        let after = TcpListener::bind(("127.0.0.2", port)).await.unwrap();
        let listeners = [before, after];
        let resolver = Answers::new(
            listeners
                .each_ref()
                .map(|listener| vec![listener.local_addr().unwrap()]),
        );
        let addr = format!("tracker.example:{port}").parse().unwrap();
        let mut connector = Connector::new(&addr, &ConnectConfig::default(), resolver);
        for listener in &listeners {
            let (connected, accepted) = tokio::join!(connector.call(Uri::default()), listener.accept());
            connected.map(drop).unwrap();
            accepted.unwrap();
        }
    }
}
