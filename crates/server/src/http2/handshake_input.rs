//! The input of a TLS handshake: rustls gets it only in a turn.
//!
//! rustls does the costly work of a handshake, such as a signature, when a message of the client arrives. A client
//! could begin thousands of handshakes, and then send all these messages at once. So a connection reads a few kilobytes
//! ahead, and waits for a [turn](crate::turns) before it hands a complete message to rustls. In TLS 1.3, a client may
//! send a second hello, so each hello has the price of a signature.
//!
//! rustls joins messages of up to 64 KiB, before it knows the client. If a client sends a large message, the budget is
//! charged for that memory until the handshake ends.

use std::fmt;
use std::io;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use crate::http2::records::Records;
use crate::limits::{CONNECTION_WORK, HANDSHAKE_MEMORY, SMALL_HANDSHAKE, TLS_CONNECTION_WORK, VERIFY_WORK};
use crate::memory::Charge;
use crate::turns::{TurnFuture, Turns};

/// Bytes that are read ahead: as many as rustls reads at a time.
const AHEAD: usize = 4096;

/// The input of a handshake that has not ended.
pub(super) struct HandshakeInput {
    turns: Turns,
    /// Whether the server asks for a client's certificate.
    verifies: bool,
    /// The charge for a large message. It is zero at first.
    charge: Charge,
    /// All bytes so far.
    arrived: usize,
    /// The bytes that were read ahead.
    ahead: Box<[u8; AHEAD]>,
    taken: usize,
    read: usize,
    /// The turn that these bytes wait for.
    turn: Option<TurnFuture>,
    /// Whether the handshake has ended.
    is_over: bool,
}

impl fmt::Debug for HandshakeInput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("HandshakeInput");
        fields.field("arrived", &self.arrived).finish_non_exhaustive()
    }
}

impl HandshakeInput {
    /// Returns the input of a new handshake. `charge` is a charge of nothing. `verifies` reports whether the server
    /// asks for a client's certificate.
    pub(super) fn new(turns: Turns, charge: Charge, verifies: bool) -> Self {
        Self {
            turns,
            verifies,
            charge,
            arrived: 0,
            ahead: Box::new([0; AHEAD]),
            taken: 0,
            read: 0,
            turn: None,
            is_over: false,
        }
    }

    /// Ends the handshake. rustls takes the bytes that were read ahead later.
    pub(super) fn end(&mut self) {
        self.is_over = true;
    }

    /// Reports whether the handshake has ended and all bytes were taken.
    pub(super) fn is_over(&self) -> bool {
        self.is_over && self.is_empty()
    }

    /// Reports whether all bytes were taken.
    pub(super) fn is_empty(&self) -> bool {
        self.taken == self.read
    }

    /// Waits for the turn of the bytes that were read ahead, and takes these bytes.
    pub(super) fn poll_take(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<()> {
        if let Some(turn) = &mut self.turn {
            ready!(turn.as_mut().poll(cx));
            self.turn = None;
        }
        let ahead = &self.ahead[self.taken..self.read];
        let taken = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead[..taken]);
        self.taken += taken;
        Poll::Ready(())
    }

    /// Reads ahead with `read`, which returns the records that are complete with these bytes. Returns 0 at the end of
    /// the input.
    ///
    /// # Errors
    ///
    /// The input cannot be read, or the memory budget has no room for a large message.
    pub(super) fn poll_read(
        &mut self,
        read: impl FnOnce(&mut ReadBuf<'_>) -> Poll<io::Result<Records>>,
    ) -> Poll<io::Result<usize>> {
        let mut ahead = ReadBuf::new(&mut self.ahead[..]);
        let records = ready!(read(&mut ahead))?;
        (self.taken, self.read) = (0, ahead.filled().len());
        self.arrived += self.read;
        if self.arrived > SMALL_HANDSHAKE && self.charge.bytes() == 0 && self.charge.grow(HANDSHAKE_MEMORY).is_err() {
            return Poll::Ready(Err(io::Error::other(
                "the memory budget has no room for a large handshake",
            )));
        }
        // Without a complete record, rustls only keeps the bytes.
        if records.all > 0 {
            let work = match records.plain {
                1.. => TLS_CONNECTION_WORK,
                0 if self.verifies => VERIFY_WORK,
                0 => CONNECTION_WORK,
            };
            self.turn = self.turns.begin(work);
        }
        Poll::Ready(Ok(self.read))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use futures_util::future::poll_immediate;
    use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
    use rustls::crypto::{CryptoProvider, SupportedKxGroup};
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::watch;
    use tokio::task::{JoinHandle, yield_now};
    use tokio::time::timeout;

    use crate::client_key::ClientKey;
    use crate::grpc::method::MethodTable;
    use crate::http2::connection::tests::{BEGIN, context, frame, settle};
    use crate::http2::connection::{ConnectionContext, serve_transport};
    use crate::limits::{CONNECTION_MEMORY, CONNECTION_WORK, Limits, WORK_PER_PASS};
    use crate::quota::Quotas;
    use crate::tls::Certificates;

    /// The connections of one client, on one worker.
    struct Server {
        context: ConnectionContext,
        quotas: Arc<Quotas>,
        root: Option<CertificateDer<'static>>,
        _draining: watch::Sender<bool>,
    }

    impl Server {
        fn plaintext() -> Self {
            let (_draining, context) = context(MethodTable::new(Vec::new()), Limits::default());
            Self {
                context,
                quotas: Quotas::new(&Limits::default()),
                root: None,
                _draining,
            }
        }

        fn tls() -> Self {
            let (certificates, root) = Certificates::valid_until(SystemTime::now() + Duration::from_secs(3600));
            let mut server = Self::plaintext();
            server.context.tls = Some(certificates);
            server.root = Some(root);
            server
        }

        /// Begins connections, and waits until the server waits for their clients.
        async fn connect(&self, count: usize) -> Vec<Client> {
            let config = self.root.as_ref().map(|root| client_config(root.clone()));
            let connections = (0..count).map(|_| {
                let quota = self.quotas.register(ClientKey::V6(1));
                let slot = quota.try_slot().expect("a slot is free");
                let (stream, server) = tokio::io::duplex(256 * 1024);
                let task = tokio::spawn(serve_transport(server, quota, slot, self.context.clone(), 0));
                let name = ServerName::try_from("127.0.0.1").unwrap();
                let tls = config
                    .as_ref()
                    .map(|config| ClientConnection::new(Arc::clone(config), name).unwrap());
                Client { stream, tls, task }
            });
            let connections = connections.collect();
            for _ in 0..count {
                settle().await;
            }
            connections
        }
    }

    /// Returns a client that offers the server a key of a kind that the server does not use. So the server asks for
    /// another key, which costs little, and the client sends a second hello.
    fn client_config(root: CertificateDer<'static>) -> Arc<ClientConfig> {
        let kx_groups: Vec<&'static dyn SupportedKxGroup> = vec![kx_group::MLKEM1024, kx_group::X25519];
        let provider = Arc::new(CryptoProvider {
            kx_groups,
            ..default_provider()
        });
        let builder = ClientConfig::builder_with_provider(provider);
        let mut roots = RootCertStore::empty();
        roots.add(root).unwrap();
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }

    struct Client {
        stream: DuplexStream,
        tls: Option<ClientConnection>,
        task: JoinHandle<()>,
    }

    impl Client {
        /// Sends the next messages of the client's handshake.
        async fn send_tls(&mut self) {
            let mut messages = Vec::new();
            let tls = self.tls.as_mut().unwrap();
            while tls.wants_write() {
                tls.write_tls(&mut messages).unwrap();
            }
            self.stream.write_all(&messages).await.unwrap();
        }

        /// Takes all bytes that the server has sent.
        async fn take(&mut self) -> Vec<u8> {
            let mut taken = Vec::new();
            let mut part = [0; 4096];
            while let Some(Ok(len @ 1..)) = poll_immediate(self.stream.read(&mut part)).await {
                taken.extend(&part[..len]);
            }
            taken
        }

        /// Takes the server's messages. Reports whether there are messages.
        async fn take_tls(&mut self) -> bool {
            let taken = self.take().await;
            let tls = self.tls.as_mut().unwrap();
            tls.read_tls(&mut &taken[..]).unwrap();
            tls.process_new_packets().unwrap();
            !taken.is_empty()
        }
    }

    /// Waits until the server has answered all clients once. Returns the most clients that it has answered in one pass.
    async fn most_in_a_pass<F: AsyncFnMut(&mut Client) -> bool>(clients: &mut [Client], mut is_answered: F) -> usize {
        let mut most = 0;
        let mut waiting: Vec<_> = clients.iter_mut().collect();
        while !waiting.is_empty() {
            yield_now().await;
            let mut rest = Vec::new();
            let before = waiting.len();
            for client in waiting {
                if !is_answered(client).await {
                    rest.push(client);
                }
            }
            waiting = rest;
            most = most.max(before - waiting.len());
        }
        most
    }

    /// Otherwise a client could begin thousands of handshakes, and end them all in one pass.
    #[tokio::test]
    async fn hellos_that_arrive_together_are_answered_in_many_passes() {
        let server = Server::tls();
        let mut clients = server.connect(50).await;
        // The second hello costs the server a signature.
        for hello in ["first", "second"] {
            for client in &mut clients {
                client.send_tls().await;
            }
            let most = most_in_a_pass(&mut clients, Client::take_tls).await;
            assert!(most <= 2, "{most} in one pass, of the {hello} hello");
        }
        let kind = clients[0].tls.as_ref().unwrap().handshake_kind();
        assert_eq!(kind, Some(HandshakeKind::FullWithHelloRetryRequest));
    }

    #[tokio::test]
    async fn prefaces_that_arrive_together_are_answered_in_several_passes() {
        let server = Server::plaintext();
        let mut clients = server.connect(200).await;
        for client in &mut clients {
            client.stream.write_all(BEGIN).await.unwrap();
        }
        let acknowledged = frame(4, 1, 0, &[]);
        let most = most_in_a_pass(&mut clients, async |client| {
            client.take().await.ends_with(&acknowledged)
        })
        .await;
        assert!(most <= WORK_PER_PASS / CONNECTION_WORK + 1, "{most} in one pass");
    }

    #[tokio::test(start_paused = true)]
    async fn a_large_hello_is_charged_until_its_handshake_ends() {
        let server = Server::tls();
        let mut client = server.connect(1).await.pop().unwrap();
        let used = || server.context.memory.used();
        assert_eq!(used(), CONNECTION_MEMORY);
        // A hello of 60,000 bytes. A part of the hello has arrived.
        const RECORD: usize = 10_000;
        let mut bytes = [&[22, 3, 1][..], &(RECORD as u16).to_be_bytes(), &[7; RECORD]].concat();
        bytes[5..][..4].copy_from_slice(&[1, 0, 0xea, 0x60]);
        client.stream.write_all(&bytes).await.unwrap();
        settle().await;
        assert_eq!(used(), CONNECTION_MEMORY);
        let rest = [&[22, 3, 1][..], &(RECORD as u16).to_be_bytes(), &[7; RECORD]].concat();
        client.stream.write_all(&rest).await.unwrap();
        settle().await;
        assert_eq!(used(), CONNECTION_MEMORY + 64 * 1024);
        timeout(2 * Limits::default().handshake, client.task)
            .await
            .expect("the handshake has a limit")
            .unwrap();
        assert_eq!(used(), 0);
    }
}
