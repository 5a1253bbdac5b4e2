//! The client's connection to a tracker.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;
use tonic::body::Body;
use tower_service::Service;

/// A connection, with or without TLS.
pub(crate) type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// The address of a tracker: `host:port`, `http://host:port` or `https://host:port`. Without a host, the tracker is on
/// this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) tls: bool,
    authority: String,
    host: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (tls, authority) = match text.split_once("://") {
            None => (false, text),
            Some(("http", authority)) => (false, authority),
            Some(("https", authority)) => (true, authority),
            Some((scheme, _)) => return Err(format!("unknown scheme {scheme:?}, expected http or https")),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        // Here, an address without a host is this machine. In listen_addr, it is every address of the machine.
        let local = authority.starts_with(':').then(|| format!("localhost{authority}"));
        let authority = local.as_deref().unwrap_or(authority);
        let not_host_port = || "expected host:port, :port, http://host:port or https://host:port".to_owned();
        let (host, port) = authority.rsplit_once(':').ok_or_else(not_host_port)?;
        let uri = Uri::builder()
            .scheme("http")
            .authority(authority)
            .path_and_query("/")
            .build();
        if port.parse::<u16>().is_err() || uri.is_err() {
            return Err(not_host_port());
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            tls,
            authority: authority.to_owned(),
            host,
        })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.authority)
    }
}

impl Target {
    /// Returns the URI that precedes a method's path.
    pub(crate) fn origin(&self) -> Uri {
        Uri::builder()
            .scheme(if self.tls { "https" } else { "http" })
            .authority(self.authority.as_str())
            .path_and_query("/")
            .build()
            .unwrap_or_default()
    }

    /// Connects, over TLS if there is a configuration for TLS. The connection breaks if the tracker does not answer a
    /// ping within `timeout`.
    pub(crate) async fn connect(&self, tls: Option<Arc<ClientConfig>>, timeout: Duration) -> Result<Transport, String> {
        let stream = self.open(tls).await?;
        let tcp = match &stream {
            Either::Left(stream) => stream,
            Either::Right(stream) => stream.get_ref().0,
        };
        let peer = tcp.peer_addr().map_err(|error| error.to_string())?;
        Transport::over(stream, peer, timeout).await
    }

    /// Opens a TCP connection, with TLS if there is a configuration for TLS.
    pub(crate) async fn open(&self, tls: Option<Arc<ClientConfig>>) -> Result<Stream, String> {
        let stream = TcpStream::connect(&self.authority)
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let Some(tls) = tls else {
            return Ok(Either::Left(stream));
        };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| error.to_string())?;
        match TlsConnector::from(tls).connect(name, stream).await {
            Ok(stream) => Ok(Either::Right(stream)),
            Err(_) if self.first_bytes().await.is_some_and(is_settings) => Err(format!(
                "the server speaks plaintext: use --addr http://{self} without --ca-file"
            )),
            Err(error) => Err(format!("TLS failed: {error}")),
        }
    }

    /// Returns whether all addresses of the host are of the loopback interface. `false` if the host has no address.
    pub(crate) async fn is_loopback(&self) -> bool {
        match lookup_host(&self.authority).await {
            Ok(mut addrs) => {
                addrs.next().is_some_and(|first| first.ip().is_loopback()) && addrs.all(|addr| addr.ip().is_loopback())
            }
            Err(_) => false,
        }
    }

    /// Asks whether a server that broke off a plaintext connection expects TLS.
    pub(crate) async fn speaks_tls(&self) -> bool {
        !self.tls && self.first_bytes().await.is_some_and(is_alert)
    }

    /// Asks whether a server that broke off a TLS connection refuses the client's certificate. Returns the server's
    /// reason.
    ///
    /// In TLS 1.3, a server looks at the certificate after the client's part of the handshake. On the connection that
    /// failed, the reason may be lost, because the client had sent its call already. So this waits for the server's
    /// first bytes.
    pub(crate) async fn certificate_alert(&self, tls: Arc<ClientConfig>) -> Option<String> {
        let alert = async {
            let stream = TcpStream::connect(&self.authority).await?;
            let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
            let mut stream = TlsConnector::from(tls).connect(name, stream).await?;
            stream.read_u8().await
        };
        let error = timeout(PROBE_TIMEOUT, alert).await.ok()?.err()?;
        match error.get_ref()?.downcast_ref()? {
            rustls::Error::AlertReceived(alert) if is_about_certificate(*alert) => Some(format!("{alert:?}")),
            _ => None,
        }
    }

    /// Greets the server in plaintext on a connection of its own, and returns the first bytes of the answer. On the
    /// connection that failed, the answer may be lost: the server resets a connection if it closes with bytes left to
    /// read.
    async fn first_bytes(&self) -> Option<[u8; 5]> {
        let answer = async {
            let mut stream = TcpStream::connect(&self.authority).await?;
            stream.write_all(GREETING).await?;
            let mut answer = [0; 5];
            stream.read_exact(&mut answer).await?;
            io::Result::Ok(answer)
        };
        timeout(PROBE_TIMEOUT, answer).await.ok()?.ok()
    }
}

/// HTTP/2's preface and an empty SETTINGS frame.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// How long a probe of a server may take. The command has failed already, so its user should not wait for long.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Reports whether a server sends this alert because of the client's certificate.
fn is_about_certificate(alert: AlertDescription) -> bool {
    use AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked, CertificateUnknown,
        DecryptError, UnknownCA, UnsupportedCertificate,
    };
    matches!(
        alert,
        AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | DecryptError
            | UnknownCA
            | UnsupportedCertificate
    )
}

/// Returns whether these bytes begin an alert of TLS.
fn is_alert(bytes: [u8; 5]) -> bool {
    matches!(bytes, [21, 3, ..])
}

/// Returns whether these bytes begin a SETTINGS frame of HTTP/2, which a server sends first.
fn is_settings(bytes: [u8; 5]) -> bool {
    matches!(bytes, [0, _, _, 4, 0])
}

/// The client pings a tracker that is silent for this long.
const PING_AFTER: Duration = Duration::from_secs(10);

/// No ping waits longer. hyper cannot add every duration to a time.
const LONGEST_PING: Duration = Duration::from_secs(86_400);

/// A connected HTTP/2 client, in the form that generated clients take.
#[derive(Debug, Clone)]
pub(crate) struct Transport {
    sender: SendRequest<Body>,
    peer: SocketAddr,
}

impl Transport {
    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        peer: SocketAddr,
        timeout: Duration,
    ) -> Result<Self, String> {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(timeout.min(PING_AFTER))
            .keep_alive_timeout(timeout.min(LONGEST_PING))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("no HTTP/2: {error}"))?;
        // The connection's errors reach the calls that they break.
        tokio::spawn(connection);
        Ok(Self { sender, peer })
    }

    /// Reports whether the tracker of this connection has closed its port, or is gone. Looks up no name: by now, the
    /// name may belong to another tracker, or to no tracker.
    pub(crate) async fn has_closed_port(&self, limit: Duration) -> bool {
        let connected = timeout(limit, TcpStream::connect(self.peer)).await;
        let failure = match connected {
            Ok(Ok(_)) => return false,
            Ok(Err(error)) => error.kind(),
            Err(_) => io::ErrorKind::TimedOut,
        };
        is_port_closed(failure, self.sender.is_closed())
    }
}

/// Reports whether a port is closed to which no connection can be made. `has_ended`: the connection before has ended,
/// too.
fn is_port_closed(failure: io::ErrorKind, has_ended: bool) -> bool {
    // Otherwise the machine may be gone, such as a pod whose address drops packets or is not routed. Or the network
    // fails for a moment, which does not end the connection.
    failure == io::ErrorKind::ConnectionRefused || has_ended
}

impl Service<Request<Body>> for Transport {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.sender.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.sender.send_request(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The address of a pod that has ended is not routed, or drops packets. Nothing refuses the connection.
    #[test]
    fn a_tracker_that_is_gone_has_closed_its_port() {
        use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
        for failure in [HostUnreachable, NetworkUnreachable, TimedOut] {
            assert!(is_port_closed(failure, true), "{failure}");
            assert!(
                !is_port_closed(failure, false),
                "{failure}: the network may fail for a moment"
            );
        }
        assert!(is_port_closed(ConnectionRefused, false));
    }
}
