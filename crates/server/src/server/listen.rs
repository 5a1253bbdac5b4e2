//! The sockets that the server listens on. There is a socket for each address of the configured name, or a service
//! manager has opened the sockets.

use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::task::Poll;

use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tracing::warn;

/// Connections that wait in the kernel, as for tokio's other sockets.
const BACKLOG: u32 = 1024;

/// How often a free port is looked for that is free on every address.
const PORT_ATTEMPTS: u32 = 16;

/// At least one socket.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    sockets: Vec<TcpListener>,
    addrs: Vec<SocketAddr>,
    /// The socket to look at first, so that busy sockets take turns.
    next: usize,
}

impl Listeners {
    /// Takes over sockets that listen already, at least one. An error says which socket cannot be used.
    pub(crate) fn take_over(sockets: Vec<std::net::TcpListener>) -> Result<Self, String> {
        let mut listeners = Self::default();
        for (number, socket) in sockets.into_iter().enumerate() {
            let taken = match sockopt::socket_acceptconn(&socket) {
                Ok(false) => Err(io::Error::other("it does not listen")),
                Ok(true) => listeners.push(socket),
                Err(error) => Err(error.into()),
            };
            taken.map_err(|error| format!("cannot use socket {number}: {error}"))?;
        }
        Ok(listeners)
    }

    fn push(&mut self, socket: std::net::TcpListener) -> io::Result<()> {
        socket.set_nonblocking(true)?;
        self.addrs.push(socket.local_addr()?);
        self.sockets.push(TcpListener::from_std(socket)?);
        Ok(())
    }

    /// Listens on every address that `addr` resolves to: `host:port`, or `:port` for every address of this machine. An
    /// error names the address.
    pub(super) async fn bind(addr: &str) -> Result<Self, String> {
        let cannot_listen = |error| format!("cannot listen on {addr}: {error}");
        if let Some(port) = addr.strip_prefix(':') {
            let port = port
                .parse()
                .map_err(|error| format!("cannot listen on {addr}: {error}"))?;
            return Self::bind_wildcard(port).await;
        }
        let mut addrs = Vec::new();
        for resolved in lookup_host(addr).await.map_err(cannot_listen)? {
            if !addrs.contains(&resolved) {
                addrs.push(resolved);
            }
        }
        Self::bind_all(&addrs).await
    }

    /// Listens on every address of this machine. Uses one socket of IPv6, which takes connections of IPv4 too, or a
    /// socket of IPv4 if this machine has no IPv6.
    async fn bind_wildcard(port: u16) -> Result<Self, String> {
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let mut listeners = Self::default();
        match dual_stack(v6).and_then(|socket| listeners.push(socket)) {
            Ok(()) => Ok(listeners),
            Err(error) if is_missing(&error) => Self::bind_all(&[(Ipv4Addr::UNSPECIFIED, port).into()]).await,
            Err(error) => Err(format!("cannot listen on {v6}: {error}")),
        }
    }

    /// Listens on these addresses, but not on those that this machine lacks. With port 0, all get the same free port.
    async fn bind_all(addrs: &[SocketAddr]) -> Result<Self, String> {
        let mut attempts = PORT_ATTEMPTS;
        loop {
            attempts -= 1;
            match Self::try_bind_all(addrs).await {
                Err((addr, error)) if addr.port() == 0 && error.kind() == ErrorKind::AddrInUse && attempts > 0 => {}
                Err((addr, error)) => return Err(format!("cannot listen on {addr}: {error}")),
                Ok(listeners) => return Ok(listeners),
            }
        }
    }

    async fn try_bind_all(addrs: &[SocketAddr]) -> Result<Self, (SocketAddr, io::Error)> {
        let mut listeners = Self::default();
        let mut missing = Vec::new();
        for &addr in addrs {
            match listeners.add(addr).await {
                Ok(()) => {}
                Err(error) if is_missing(&error) => missing.push((addr, error)),
                Err(error) => return Err((addr, error)),
            }
        }
        if listeners.sockets.is_empty() {
            let nothing = || (SocketAddr::from(([0; 4], 0)), io::Error::from(ErrorKind::NotFound));
            return Err(missing.pop().unwrap_or_else(nothing));
        }
        for (addr, error) in missing {
            warn!("cannot listen on {addr}, only on the other addresses of its name: {error}");
        }
        Ok(listeners)
    }

    async fn add(&mut self, mut addr: SocketAddr) -> io::Result<()> {
        if let (0, Some(first)) = (addr.port(), self.addrs.first()) {
            addr.set_port(first.port());
        }
        let socket = TcpListener::bind(addr).await?;
        self.addrs.push(socket.local_addr()?);
        self.sockets.push(socket);
        Ok(())
    }

    /// Returns the addresses that the sockets listen on.
    pub(super) fn addrs(&self) -> &[SocketAddr] {
        &self.addrs
    }

    /// Accepts the next connection on any of the sockets.
    pub(super) async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| {
            let count = self.sockets.len();
            for index in (self.next..self.next + count).map(|index| index % count) {
                if let Poll::Ready(accepted) = self.sockets[index].poll_accept(cx) {
                    self.next = (index + 1) % count;
                    return Poll::Ready(accepted);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// Returns a socket of IPv6 that also takes connections of IPv4, even if this is not the machine's default.
fn dual_stack(addr: SocketAddr) -> io::Result<std::net::TcpListener> {
    let socket = TcpSocket::new_v6()?;
    socket.set_reuseaddr(true)?;
    sockopt::set_ipv6_v6only(&socket, false)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)?.into_std()
}

/// Reports whether this machine lacks an address, or all addresses of its family.
fn is_missing(error: &io::Error) -> bool {
    error.kind() == ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn addrs(addrs: &[&str]) -> Vec<SocketAddr> {
        addrs.iter().map(|addr| addr.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn every_address_takes_connections_on_the_same_port() {
        let mut listeners = Listeners::bind_all(&addrs(&["127.0.0.1:0", "127.0.0.2:0"]))
            .await
            .unwrap();
        let bound = listeners.addrs().to_vec();
        assert_eq!(bound.len(), 2);
        assert_eq!(bound[0].port(), bound[1].port());
        // Each of two waiting connections is accepted, wherever the search begins.
        let mut clients = Vec::new();
        for addr in [bound[0], bound[1], bound[1], bound[0]] {
            clients.push(TcpStream::connect(addr).await.unwrap());
        }
        let mut accepted = Vec::new();
        for _ in 0..clients.len() {
            accepted.push(listeners.accept().await.unwrap().1);
        }
        accepted.sort();
        let mut expected: Vec<_> = clients.iter().map(|client| client.local_addr().unwrap()).collect();
        expected.sort();
        assert_eq!(accepted, expected);
    }

    #[tokio::test]
    async fn a_port_alone_is_every_address() {
        let mut listeners = Listeners::bind(":0").await.unwrap();
        let [bound] = *listeners.addrs() else {
            panic!("one socket")
        };
        assert!(bound.ip().is_unspecified());
        let mut loopback = addrs(&["127.0.0.1:0"]);
        // IPv6 may be switched off on this machine.
        if bound.is_ipv6() && std::net::TcpListener::bind("[::1]:0").is_ok() {
            loopback.extend(addrs(&["[::1]:0"]));
        }
        for mut addr in loopback {
            addr.set_port(bound.port());
            let client = TcpStream::connect(addr).await.unwrap();
            let (_, peer) = listeners.accept().await.unwrap();
            assert_eq!(peer.port(), client.local_addr().unwrap().port());
        }
        // The port is taken now.
        let error = Listeners::bind(&format!(":{}", bound.port())).await.unwrap_err();
        assert!(error.starts_with(&format!("cannot listen on {bound}: ")), "{error}");
    }

    #[tokio::test]
    async fn sockets_of_a_service_manager_are_used_if_they_listen() {
        let listening = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listening.local_addr().unwrap();
        let mut listeners = Listeners::take_over(vec![listening]).unwrap();
        assert_eq!(listeners.addrs(), [addr]);
        let _client = TcpStream::connect(addr).await.unwrap();
        listeners.accept().await.unwrap();

        let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(addr).unwrap();
        let sockets = vec![other, std::net::TcpListener::from(OwnedFd::from(connected))];
        let error = Listeners::take_over(sockets).unwrap_err();
        assert_eq!(error, "cannot use socket 1: it does not listen");
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_left_out_if_there_are_others() {
        let both = addrs(&["192.0.2.1:0", "127.0.0.1:0"]);
        let listeners = Listeners::bind_all(&both).await.unwrap();
        assert_eq!(listeners.addrs().len(), 1);
        assert!(Listeners::bind_all(&both[..1]).await.is_err());
    }

    #[tokio::test]
    async fn a_port_that_is_taken_on_one_address_is_an_error() {
        let taken = TcpListener::bind("127.0.0.2:0").await.unwrap();
        let mut free = addrs(&["127.0.0.1:0"])[0];
        free.set_port(taken.local_addr().unwrap().port());
        let error = Listeners::bind_all(&[free, taken.local_addr().unwrap()])
            .await
            .unwrap_err();
        assert!(
            error.starts_with(&format!("cannot listen on {}: ", taken.local_addr().unwrap())),
            "{error}"
        );
    }
}
