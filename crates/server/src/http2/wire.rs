//! The bytes of a connection as they are on the wire, below TLS: here the input of a turn ends.
//!
//! The allowance of a turn is a price. Plaintext costs its bytes. With TLS, each record costs [`RECORD_WORK`] more: a
//! client may put each byte into a record of its own.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, Take};
use tokio_rustls::server::TlsStream;

use crate::http2::handshake_input::HandshakeInput;
use crate::http2::records::{RecordScanner, Records};
use crate::http2::socket::{SentBytes, Transport};
use crate::http2::traffic::Traffic;
use crate::limits::{INPUT_PER_WORK, RECORD_WORK};

/// A stream of plaintext whose input on the wire has a price.
pub(super) trait Metered: AsyncRead + AsyncWrite + Unpin {
    /// Returns the counts of the connection.
    fn traffic(&self) -> &Arc<Traffic>;

    /// As [`Transport::sent`].
    fn sent(&self) -> SentBytes;

    /// Reads plaintext.
    fn poll_plaintext(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_read(cx, buf)
    }
}

/// A stream that counts the price of its input, and ends the input of a turn.
#[derive(Debug)]
pub(super) struct WireStream<S> {
    stream: Take<S>,
    traffic: Arc<Traffic>,
    /// `None` for plaintext.
    records: Option<RecordScanner>,
    /// The input of TLS's handshake, until rustls has it.
    handshake: Option<Box<HandshakeInput>>,
}

impl<S: Transport> WireStream<S> {
    pub(super) fn new(stream: S, is_tls: bool) -> Self {
        Self {
            stream: stream.take(0),
            traffic: Arc::default(),
            records: is_tls.then(RecordScanner::new),
            handshake: None,
        }
    }

    /// Lets rustls have the input of its handshake only in turns.
    pub(super) fn begin_handshake(&mut self, input: HandshakeInput) {
        self.handshake = Some(Box::new(input));
    }

    /// Ends [`begin_handshake`](Self::begin_handshake), and the charge of the handshake.
    pub(super) fn end_handshake(&mut self) {
        if let Some(input) = &mut self.handshake {
            input.end();
        }
        drop(self.handshake.take_if(|input| input.is_over()));
    }

    fn poll_wire(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let allowance = match self.traffic.begin_read() {
            0 => return Poll::Pending,
            allowance => allowance as u64,
        };
        if let Some(records) = &mut self.records
            && records.is_flooded(self.traffic.opened_records())
        {
            self.traffic.report_flood();
            return Poll::Pending;
        }
        self.stream.set_limit(allowance);
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        let read = &buf.filled()[before..];
        let records = self.records.as_mut().map_or(0, |records| records.scan(read));
        self.traffic
            .has_read(read.len() + records * RECORD_WORK * INPUT_PER_WORK);
        Poll::Ready(Ok(()))
    }

    /// Reads during the handshake, and takes the rest of the handshake's input afterwards.
    #[cold]
    fn poll_handshake(
        &mut self,
        mut input: Box<HandshakeInput>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if input.is_empty() {
            let scanned = |this: &Self| this.records.as_ref().map(RecordScanner::scanned);
            let read = input.poll_read(|buf| {
                let before = scanned(self);
                ready!(self.poll_wire(cx, buf))?;
                let new = before.zip(scanned(self)).map(|(before, now)| Records {
                    all: now.all - before.all,
                    plain: now.plain - before.plain,
                });
                Poll::Ready(Ok(new.unwrap_or_default()))
            });
            if !matches!(read, Poll::Ready(Ok(1..))) {
                self.handshake = Some(input);
                return read.map_ok(drop);
            }
        }
        let taken = input.poll_take(cx, buf);
        if !input.is_over() {
            self.handshake = Some(input);
        }
        taken.map(Ok)
    }
}

impl<S: Transport> Metered for WireStream<S> {
    fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    fn sent(&self) -> SentBytes {
        self.stream.get_ref().sent()
    }
}

impl<S: Transport> Metered for TlsStream<WireStream<S>> {
    fn traffic(&self) -> &Arc<Traffic> {
        &self.get_ref().0.traffic
    }

    fn sent(&self) -> SentBytes {
        self.get_ref().0.sent()
    }

    /// Reads the bytes of all records that rustls has opened, and counts these records.
    fn poll_plaintext(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut opened = 0;
        let mut bytes = ready!(Pin::new(&mut *self).poll_fill_buf(cx))?;
        while !bytes.is_empty() {
            // The bytes of one record.
            let len = bytes.len();
            let taken = len.min(buf.remaining());
            buf.put_slice(&bytes[..taken]);
            Pin::new(&mut *self).consume(taken);
            opened += u64::from(taken == len);
            // Without plaintext, rustls would read the socket.
            if buf.remaining() == 0 || self.get_ref().1.wants_read() {
                break;
            }
            let Poll::Ready(Ok(next)) = Pin::new(&mut *self).poll_fill_buf(cx) else {
                break;
            };
            bytes = next;
        }
        self.traffic().has_opened(opened);
        Poll::Ready(Ok(()))
    }
}

impl<S: Transport> AsyncRead for WireStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.handshake.is_some()
            && let Some(input) = self.handshake.take()
        {
            return self.poll_handshake(input, cx, buf);
        }
        self.poll_wire(cx, buf)
    }
}

impl<S: Transport> AsyncWrite for WireStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(self.stream.get_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.get_ref().is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self.stream.get_mut()).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use rcgen::generate_simple_self_signed;
    use rustls::pki_types::{PrivateKeyDer, ServerName};
    use rustls::{ClientConfig, RootCertStore, ServerConfig};
    use tokio::io::{AsyncWriteExt as _, DuplexStream};
    use tokio::time::{Duration, sleep};
    use tokio_rustls::{TlsAcceptor, TlsConnector, client};

    use super::*;
    use crate::http2::connection::tests::{frame, settle};
    use crate::http2::served::Served;
    use crate::limits::{BARE_RECORDS, MAX_TURN_INPUT};
    use crate::refusal::Reason;

    /// Bytes that a record has besides its plaintext, with TLS 1.3.
    const OVERHEAD: usize = 5 + 1 + 16;

    /// Connects a client with TLS.
    async fn connect() -> (client::TlsStream<DuplexStream>, TlsStream<WireStream<DuplexStream>>) {
        let certified = generate_simple_self_signed(vec!["tracker".into()]).unwrap();
        let certificate = certified.cert.der().clone();
        let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let server = server
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth();
        let server = server.with_single_cert(vec![certificate.clone()], key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate).unwrap();
        let client = ClientConfig::builder_with_provider(provider);
        let client = client.with_safe_default_protocol_versions().unwrap();
        let client = client.with_root_certificates(roots).with_no_client_auth();
        let (client_end, server_end) = tokio::io::duplex(1024 * 1024);
        let connecting = TlsConnector::from(Arc::new(client));
        let connecting = connecting.connect(ServerName::try_from("tracker").unwrap(), client_end);
        let accepting = TlsAcceptor::from(Arc::new(server)).accept(WireStream::new(server_end, true));
        let (client, server) = tokio::join!(connecting, accepting);
        (client.unwrap(), server.unwrap())
    }

    /// Sends each byte in a record of its own.
    async fn send_in_records(client: &mut client::TlsStream<DuplexStream>, bytes: &[u8]) {
        for byte in bytes {
            client.write_all(&[*byte]).await.unwrap();
            client.flush().await.unwrap();
        }
    }

    async fn served() -> Served<client::TlsStream<DuplexStream>> {
        let (client, server) = connect().await;
        Served::begin(client, server, Vec::new(), 1 << 30).await
    }

    #[tokio::test]
    async fn each_record_has_its_price() {
        let mut served = served().await;
        let pings = frame(6, 0, 0, b"flooding").repeat(30);
        let before = served.worker.spent();
        send_in_records(&mut served.client, &pings).await;
        settle().await;
        let work = pings.len() * (1 + OVERHEAD) / INPUT_PER_WORK + pings.len() * RECORD_WORK;
        let spent = served.worker.spent() - before;
        assert!((work - 20..=work).contains(&spent), "{spent} of {work}");
    }

    #[tokio::test]
    async fn a_turn_opens_few_records() {
        let (mut client, mut server) = connect().await;
        send_in_records(&mut client, &[7; 5_000]).await;
        let mut read = 0;
        for turn in 1..=3 {
            server.traffic().begin_turn(MAX_TURN_INPUT);
            let mut bytes = [0; 10_000];
            let mut buf = ReadBuf::new(&mut bytes);
            let cx = &mut Context::from_waker(std::task::Waker::noop());
            while let Poll::Ready(result) = server.poll_plaintext(cx, &mut buf) {
                result.unwrap();
            }
            read += buf.filled().len();
            assert!(server.traffic().is_exhausted());
            let records = turn * MAX_TURN_INPUT / (1 + OVERHEAD + RECORD_WORK * INPUT_PER_WORK);
            // rustls reads up to 4 KiB at a time.
            let most = records + turn * 4096 / OVERHEAD;
            assert!((records - turn..most).contains(&read), "{read} of {records}");
        }
        assert_eq!(server.traffic().opened_records(), read as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_new_keys_ends_its_connection() {
        // rustls alone allows 32 for each record with bytes.
        const KEYS: usize = 30;
        let mut served = served().await;
        let mut pings = frame(6, 0, 0, b"flooding").into_iter().cycle();
        let mut changes = 0;
        while !served.task.is_finished() {
            for _ in 0..KEYS {
                served.client.get_mut().1.refresh_traffic_keys().unwrap();
            }
            changes += KEYS;
            let byte = [pings.next().unwrap()];
            if served.client.write_all(&byte).await.is_err() || served.client.flush().await.is_err() {
                break;
            }
            settle().await;
            assert!(changes < 10 * BARE_RECORDS as usize, "the flood does not end");
        }
        settle().await;
        assert!(served.task.is_finished());
        assert!(changes > BARE_RECORDS as usize / 2, "{changes}");
        assert_eq!(served.refused(), [(Reason::FrameFlood, 1)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_change_its_keys_each_second() {
        let mut served = served().await;
        for _ in 0..2 * BARE_RECORDS {
            served.client.get_mut().1.refresh_traffic_keys().unwrap();
            served.client.write_all(&frame(6, 0, 0, b"not many")).await.unwrap();
            served.client.flush().await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        assert!(!served.task.is_finished());
    }
}
