//! One client's connection, from the accepted socket to the last reply.
//!
//! h2 implements HTTP/2. The server does not use hyper's server around h2. hyper adds features that gRPC does not need
//! (upgrades, dates, lengths, HTTP/1's headers). It also adds a body and a future for each reply, and about six locks
//! per call. Without it a unary call took 30,300 instructions instead of 34,100, and 13 % less CPU. These modules do
//! hyper's part: [`calls`](crate::http2::calls), [`keep_alive`](crate::http2::keep_alive), and this module with the
//! deadlines.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::future::poll_immediate;
use h2::Reason;
use h2::server::Connection;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::connection_counters::{ConnectionCounters, HandshakeFailure};
use crate::grpc::router::Router;
use crate::grpc::worker_counters::WorkerCounters;
use crate::http2::calls::Calls;
use crate::http2::handshake_input::HandshakeInput;
use crate::http2::keep_alive::KeepAlive;
use crate::http2::socket::{Socket, Transport};
use crate::http2::traffic::CountedStream;
use crate::http2::wire::{Metered, WireStream};
use crate::idle::Evictable;
use crate::limits::{self, Limits};
use crate::memory::{Charge, ConnectionMemory, MemoryBudget};
use crate::quota::ClientQuota;
use crate::refusal::{self, Refusals};
use crate::tls::{Certificates, Handshake as TlsHandshake, Peer};
use crate::turns::{Turns, WorkerTurns};

/// Bytes that every HTTP/2 client sends first: a fixed preface of 24, and the header of a SETTINGS frame.
const PREFACE: u64 = 24 + 9;

/// The parts of the server that every connection needs.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionContext {
    pub(crate) router: Router,
    /// `None` for plaintext.
    pub(crate) tls: Option<Certificates>,
    pub(crate) limits: Limits,
    /// Becomes `true` when the server begins to drain.
    pub(crate) draining: watch::Receiver<bool>,
    pub(crate) memory: Arc<MemoryBudget>,
    /// The turns of the worker that serves the connection.
    pub(crate) turns: Arc<WorkerTurns>,
    /// The counters of the worker that serves the connection.
    pub(crate) counters: WorkerCounters,
}

/// Serves a connection until the client closes it, breaks the protocol, or the server drains.
///
/// `slot` is the connection's slot among those of its address. After the handshake, a client with a certificate has a
/// slot of its own instead. `number` counts the connections. It spreads the maximum ages, so that connections that
/// began together do not end together.
pub(crate) async fn serve(
    stream: std::net::TcpStream,
    client: ClientQuota,
    slot: OwnedSemaphorePermit,
    context: ConnectionContext,
    number: u64,
) {
    match TcpStream::from_std(stream) {
        Ok(stream) => serve_transport(Socket::new(stream), client, slot, context, number).await,
        Err(error) => debug!(%error, "a connection was lost before it was served"),
    }
}

/// As [`serve`], for any transport.
pub(in crate::http2) async fn serve_transport<S: Transport>(
    stream: S,
    client: ClientQuota,
    mut slot: OwnedSemaphorePermit,
    mut context: ConnectionContext,
    number: u64,
) {
    let mut evictable = client.evictable();
    let mut stream = WireStream::new(stream, context.tls.is_some());
    context.counters.connections.accepted.add(1);
    let mut turns = Turns::new(Arc::clone(&context.turns), client.key());
    turns.take(limits::CONNECTION_WORK).await;
    let Some((mut memory, mut charge)) = connection_memory(&context, client) else {
        return;
    };
    // Each phase has its own box, so that an idle connection does not hold the memory of the handshakes.
    let Some(certificates) = context.tls.take() else {
        let peer = Peer::unrestricted();
        return Box::pin(http2(stream, peer, context, memory, turns, evictable, number)).await;
    };
    let tls = TlsHandshake::new(&certificates);
    stream.begin_handshake(HandshakeInput::new(
        turns.clone(),
        memory.no_charge(),
        tls.verifies_clients(),
    ));
    let handshake = TlsAcceptor::from(tls.config()).accept(stream);
    if let Some(mut stream) = Box::pin(tls_handshake(handshake, &context, &evictable)).await {
        stream.get_mut().0.end_handshake();
        let peer = tls.done(stream.get_ref().1.peer_certificates());
        // From here on, the client's own quota counts, instead of that of its address.
        if let Some(identity) = peer.certified_identity() {
            let client = memory.client().certified(identity);
            let Some(client_slot) = certified_slot(&client, &context).await else {
                context.memory.refusals().refuse(refusal::Reason::AddressConnections);
                return;
            };
            slot = client_slot;
            evictable = client.evictable();
            turns = Turns::new(Arc::clone(&context.turns), client.key());
            let Some(of_client) = connection_memory(&context, client) else {
                return;
            };
            (memory, charge) = of_client;
        }
        let Ok(_chain) = memory.charge(peer.chain_size()) else {
            return debug!("a connection was closed: the memory budget has no room for its certificates");
        };
        Box::pin(http2(stream, peer, context, memory, turns, evictable, number)).await;
    }
    // Held until the connection has ended.
    drop((slot, charge));
}

/// Returns a slot for a connection of a client with a certificate. If the client has its share, waits as the acceptor
/// does for addresses. Meanwhile, the connection keeps the slot of its address.
async fn certified_slot(client: &ClientQuota, context: &ConnectionContext) -> Option<OwnedSemaphorePermit> {
    if let Some(slot) = client.try_slot() {
        return Some(slot);
    }
    let _waiting = client.try_wait()?;
    let mut draining = context.draining.clone();
    tokio::select! {
        slot = client.wait_for_slot() => slot,
        () = drain_begins(&mut draining) => None,
    }
}

/// Returns the memory of a new connection, with the charge for the connection itself. `None` if the budget has no room.
fn connection_memory(context: &ConnectionContext, client: ClientQuota) -> Option<(ConnectionMemory, Charge)> {
    let memory = context.memory.for_connection(client);
    match memory.charge(limits::CONNECTION_MEMORY) {
        Ok(charge) => Some((memory, charge)),
        Err(_) => {
            memory.client().make_room_of_all();
            debug!("a connection was closed: the memory budget has no room for it (client_memory_mb)");
            None
        }
    }
}

/// Waits for a TLS handshake. Returns `None` if the handshake fails, if the connection has to make room, or if the
/// server begins to drain.
async fn tls_handshake<S>(
    handshake: tokio_rustls::Accept<S>,
    context: &ConnectionContext,
    evictable: &Evictable,
) -> Option<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut draining = context.draining.clone();
    let failure = tokio::select! {
        accepted = timeout(context.limits.handshake, handshake) => match accepted {
            Ok(Ok(stream)) => return Some(stream),
            Ok(Err(error)) => {
                debug!(%error, "a TLS handshake failed");
                let failure = tls_failure(&error);
                let reason = match failure {
                    HandshakeFailure::ClientCertificate => Some(refusal::Reason::ClientCertificate),
                    HandshakeFailure::TlsAlert | HandshakeFailure::Tls => Some(refusal::Reason::TlsHandshake),
                    _ => None,
                };
                if let Some(reason) = reason {
                    context.memory.refusals().refuse_for(reason, Some(&error));
                }
                failure
            }
            Err(_) => {
                debug!("a TLS handshake took too long");
                HandshakeFailure::TlsTimeout
            }
        },
        () = evictable.handshake_makes_room() => {
            debug!("a connection makes room for another: its TLS handshake has not ended");
            HandshakeFailure::TlsTimeout
        }
        () = drain_begins(&mut draining) => return None,
    };
    context.counters.connections.handshake_failures(failure).add(1);
    None
}

/// Returns the reason of a TLS handshake that failed.
fn tls_failure(error: &io::Error) -> HandshakeFailure {
    use rustls::Error::{AlertReceived, InvalidCertificate, NoCertificatesPresented};
    match error.get_ref().and_then(|error| error.downcast_ref()) {
        Some(NoCertificatesPresented | InvalidCertificate(_)) => HandshakeFailure::ClientCertificate,
        Some(AlertReceived(_)) => HandshakeFailure::TlsAlert,
        Some(_) => HandshakeFailure::Tls,
        None => HandshakeFailure::Closed,
    }
}

/// Waits until the server begins to drain.
async fn drain_begins(draining: &mut watch::Receiver<bool>) {
    // An error means that the server is gone.
    let _ = draining.wait_for(|&draining| draining).await;
}

async fn http2<S: Metered>(
    stream: S,
    mut peer: Peer,
    context: ConnectionContext,
    memory: ConnectionMemory,
    turns: Turns,
    evictable: Evictable,
    number: u64,
) {
    let ConnectionContext {
        router,
        limits,
        mut draining,
        counters,
        memory: budget,
        ..
    } = context;
    let opened = Instant::now();
    let traffic = Arc::clone(stream.traffic());
    let mut stream = CountedStream::new(stream);
    // h2 begins the connection when the preface arrives. Thousands of clients could send their prefaces at once.
    let handshake = async {
        stream.read_preface().await;
        turns.take(limits::CONNECTION_WORK).await;
        builder().handshake(stream).await
    };
    let handshake = http2_handshake(
        handshake,
        opened + limits.handshake,
        &mut draining,
        &evictable,
        &counters.connections,
    );
    let connection = Box::pin(handshake).await;
    let Some(mut connection) = connection else { return };

    let mut keep_alive = KeepAlive::new(connection.ping_pong(), Arc::clone(&traffic), &limits);
    let draining_calls = CancellationToken::new();
    let client = memory.client().clone();
    let caller = Arc::new(peer.caller().with_key(client.key()));
    let connection_counters = Arc::clone(&counters.connections);
    let mut calls = Calls::new(
        connection,
        router.for_connection(
            caller,
            draining_calls.clone(),
            memory,
            turns.clone(),
            counters,
            Arc::clone(traffic.unread()),
        ),
        Arc::clone(&traffic),
    );
    let mut silent = pin!(sleep(limits.ping_interval));
    let mut phase = Phase::Preface;
    let mut due = pin!(sleep_until(opened + limits.handshake));
    let mut is_draining = false;
    // Begins to drain the connection. Streams end at once. Returns the next phase and its end.
    let drain = |calls: &mut Calls<_>, is_idle: bool| {
        calls.connection.graceful_shutdown();
        draining_calls.cancel();
        let time = if is_idle { limits::IDLE_DRAIN } else { limits.drain };
        (Phase::Draining { is_idle }, Instant::now() + time)
    };
    loop {
        tokio::select! {
            biased;
            // The server has a deadline of its own for draining, and cuts the remaining connections then.
            () = drain_begins(&mut draining), if !is_draining => {
                if traffic.read() < PREFACE {
                    return;
                }
                is_draining = true;
                calls.connection.graceful_shutdown();
                draining_calls.cancel();
            }
            () = due.as_mut(), if !is_draining => match phase {
                Phase::Preface => {
                    if traffic.read() < PREFACE {
                        connection_counters.handshake_failures(HandshakeFailure::Http2Timeout).add(1);
                        return debug!("a client did not send HTTP/2's preface in time");
                    }
                    phase = Phase::Serving;
                    // Connections end up to an eighth earlier, spread evenly.
                    let age = limits.max_connection_age - limits.max_connection_age / 64 * (number % 8) as u32;
                    let valid_for = peer.valid_for().unwrap_or(age);
                    due.as_mut().reset((opened + age).min(Instant::now() + valid_for.min(age)));
                }
                Phase::Draining { is_idle } if !is_idle || !calls.has_calls() => {
                    return debug!("a connection that drained was cut");
                }
                // Draining: a call has begun before the client saw that its idle connection ends.
                Phase::Serving | Phase::Draining { .. } => {
                    let until;
                    (phase, until) = drain(&mut calls, false);
                    due.as_mut().reset(until);
                }
            },
            // An idle connection notices when its timer wakes it.
            () = when(|| peer.is_outdated()) => {
                if let Err(error) = peer.verify_again(&turns).await {
                    debug!(%error, "a connection ends: the certificate of its client is no longer trusted");
                    calls.revoke();
                    let until;
                    (phase, until) = drain(&mut calls, false);
                    due.as_mut().reset(until);
                }
            }
            question = evictable.asked(), if !is_draining && !matches!(phase, Phase::Draining { .. }) => {
                let is_idle = calls.is_idle();
                if question.has_to_end(is_idle) {
                    debug!(is_idle, "a connection makes room for another");
                    let until;
                    (phase, until) = drain(&mut calls, is_idle);
                    due.as_mut().reset(until);
                }
            }
            () = silent.as_mut() => {
                // After the process was stopped, timers fire before the sockets are polled. So first read the input
                // that has arrived.
                yield_now().await;
                traffic.ask_sent();
                if let Some(result) = poll_immediate(poll_fn(|cx| calls.poll_serve(cx))).await {
                    return log_end(result, budget.refusals());
                }
                match keep_alive.check() {
                    Some(next) => silent.as_mut().reset(Instant::now() + next),
                    None => return debug!("a client did not answer a ping"),
                }
                // The timer of the end of the certificate does not notice that the clock was set.
                if matches!(phase, Phase::Serving) && peer.valid_for().is_some_and(|left| left.is_zero()) {
                    due.as_mut().reset(Instant::now());
                }
                let is_serving = !is_draining && !matches!(phase, Phase::Draining { .. });
                if is_serving && calls.is_large_and_idle(limits::LARGE_CONNECTION_IDLE) {
                    debug!("an idle connection ends: h2 keeps memory for its many earlier calls");
                    let until;
                    (phase, until) = drain(&mut calls, true);
                    due.as_mut().reset(until);
                }
            }
            // Last: a client that sends faster than the server replies uses up tokio's budget for the task, and the
            // timers need some of that budget.
            served = poll_fn(|cx| calls.poll_serve_in_budget(cx)) => match served {
                Some(result) => return log_end(result, budget.refusals()),
                None if is_draining || matches!(phase, Phase::Draining { .. }) => {}
                None => {
                    debug!("a connection ends: the memory budget has no room for its streams or its requests");
                    let until;
                    (phase, until) = drain(&mut calls, false);
                    due.as_mut().reset(until);
                }
            },
        }
    }
}

/// Completes when a condition holds. Checks the condition at each poll, and never wakes its task.
async fn when(condition: impl Fn() -> bool) {
    poll_fn(|_| if condition() { Poll::Ready(()) } else { Poll::Pending }).await
}

/// Waits for HTTP/2's handshake. Returns `None` if the handshake fails, if the connection has to make room, or if the
/// server begins to drain.
async fn http2_handshake<S: AsyncRead + AsyncWrite + Unpin>(
    handshake: impl Future<Output = Result<Connection<S, Bytes>, h2::Error>>,
    deadline: Instant,
    draining: &mut watch::Receiver<bool>,
    evictable: &Evictable,
    counters: &ConnectionCounters,
) -> Option<Connection<S, Bytes>> {
    let failure = tokio::select! {
        biased;
        connection = timeout_at(deadline, handshake) => match connection {
            Ok(Ok(connection)) => return Some(connection),
            Ok(Err(error)) => {
                debug!(%error, "a client did not begin with HTTP/2");
                if error.is_io() { HandshakeFailure::Closed } else { HandshakeFailure::Http2 }
            }
            Err(_) => {
                debug!("a client did not send HTTP/2's preface in time");
                HandshakeFailure::Http2Timeout
            }
        },
        () = evictable.handshake_makes_room() => {
            debug!("a connection makes room for another: its client has not sent HTTP/2's preface");
            HandshakeFailure::Http2Timeout
        }
        () = drain_begins(draining) => return None,
    };
    counters.handshake_failures(failure).add(1);
    None
}

/// Logs how a connection ended. Counts a refusal if h2 ended the connection because of a flood.
fn log_end(result: Result<(), h2::Error>, refusals: &Refusals) {
    if let Err(error) = result {
        if error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
            refusals.refuse(refusal::Reason::FrameFlood);
        }
        debug!(%error, "a connection ended with an error");
    }
}

/// The phases of a connection. The timer `due` ends each phase.
enum Phase {
    /// The client sends its preface.
    Preface,
    /// The connection takes calls, up to its maximum age.
    Serving,
    /// The connection takes no calls, and finishes those in flight.
    Draining {
        /// Whether no call was in flight at the beginning.
        is_idle: bool,
    },
}

/// Returns h2's server with every limit set.
fn builder() -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(limits::MAX_CONCURRENT_STREAMS)
        .max_header_list_size(limits::MAX_HEADER_LIST_SIZE)
        .max_local_error_reset_streams(Some(limits::MAX_LOCAL_ERROR_RESETS))
        .max_pending_accept_reset_streams(limits::MAX_PENDING_ACCEPT_RESETS)
        .initial_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .data_frame_budget(limits::DATA_FRAME_BUDGET)
        .max_frame_size(limits::MAX_FRAME_SIZE)
        .max_send_buffer_size(limits::MAX_SEND_BUFFER);
    builder
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::{Read, Write};
    use std::pin::Pin;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::task::{Context, ready};
    use std::time::Duration;

    use nodetracker_proto::v1;
    use rustix::net::{AddressFamily, SocketType, sockopt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadBuf};
    use tokio::task::coop::poll_proceed;
    use tokio::time::advance;

    use super::*;
    use crate::auth::Access;
    use crate::client_key::ClientKey;
    use crate::grpc::handler::{Handler, ImmediateHandler, StreamContext, encoded_stream};
    use crate::grpc::method::{Method, MethodTable};
    use crate::grpc::unread::frame_cost;
    use crate::http2::served::Served;
    use crate::http2::socket::SentBytes;
    use crate::quota::Quotas;
    use crate::rpc::methods::methods_of_empty_table;

    /// A client that begins correctly, then sends PING without end and takes all replies. Its socket always has more
    /// input.
    struct Flood(&'static [u8]);

    impl AsyncRead for Flood {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0flooding";
            ready!(poll_proceed(cx)).made_progress();
            if self.0.is_empty() {
                self.0 = PING;
            }
            let (now, rest) = self.0.split_at(self.0.len().min(buf.remaining()));
            buf.put_slice(now);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncWrite for Flood {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            ready!(poll_proceed(cx)).made_progress();
            Poll::Ready(Ok(buf.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    impl Transport for Flood {
        fn sent(&self) -> SentBytes {
            SentBytes::default()
        }
    }

    /// A client that keeps no bytes in a system's buffers.
    impl Transport for tokio::io::DuplexStream {
        fn sent(&self) -> SentBytes {
            SentBytes::default()
        }
    }

    /// Serves the first connection of a worker.
    pub(in crate::http2) async fn http2_alone<S: Transport>(
        stream: S,
        context: ConnectionContext,
        memory: ConnectionMemory,
    ) {
        http2_of(WireStream::new(stream, false), context, memory).await;
    }

    /// As [`http2_alone`], with or without TLS.
    pub(in crate::http2) async fn http2_of<S: Metered>(
        stream: S,
        context: ConnectionContext,
        memory: ConnectionMemory,
    ) {
        let turns = Turns::of_one_client(Arc::clone(&context.turns));
        let evictable = memory.client().evictable();
        http2(stream, Peer::unrestricted(), context, memory, turns, evictable, 0).await;
    }

    fn counting_handler(calls: &Arc<AtomicU64>) -> Arc<ImmediateHandler> {
        let calls = Arc::clone(calls);
        Arc::new(move |_, _| {
            calls.fetch_add(1, Ordering::Relaxed);
            Ok(Bytes::from_static(&[0; 5]))
        })
    }

    /// Returns a method that counts its calls.
    fn counting(calls: &Arc<AtomicU64>) -> MethodTable {
        let handler = Handler::Immediate(counting_handler(calls));
        let method = Method::new("/Counting/Call", limits::MAX_MESSAGE_SIZE, Access::Everyone, handler);
        MethodTable::new(vec![method])
    }

    /// Returns the context of a connection, which drains when the sender is dropped.
    pub(crate) fn context(methods: MethodTable, limits: Limits) -> (watch::Sender<bool>, ConnectionContext) {
        let (draining, watched) = watch::channel(false);
        let counters = WorkerCounters::new(&methods);
        let context = ConnectionContext {
            router: Router::new(methods, limits.call),
            tls: None,
            limits,
            draining: watched,
            memory: MemoryBudget::new(1 << 30, Arc::default()),
            turns: Arc::default(),
            counters,
        };
        (draining, context)
    }

    /// Lets the connection's task run.
    pub(in crate::http2) async fn settle() {
        for _ in 0..10 {
            yield_now().await;
        }
    }

    fn memory() -> ConnectionMemory {
        MemoryBudget::new(1 << 30, Arc::default()).for_connection(ClientQuota::alone())
    }

    pub(in crate::http2) const BEGIN: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    pub(in crate::http2) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let len = (payload.len() as u32).to_be_bytes();
        [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// Requests with messages of this size, one call after the other.
    fn requests(calls: u64, size: usize) -> impl Iterator<Item = Vec<u8>> {
        // POST, http, and the names of the path and of the content type are in HPACK's static table.
        let head = b"\x83\x86\x04\x0e/Counting/Call\x0f\x10\x10application/grpc";
        let message = [&[0], &(size as u32).to_be_bytes()[..], &vec![0; size]].concat();
        (1..).step_by(2).take(calls as usize).map(move |stream| {
            let mut request = frame(1, 4, stream, head);
            request.extend(frame(0, 1, stream, &message));
            request
        })
    }

    #[tokio::test]
    async fn a_call_runs_its_connection_once() {
        const CALLS: u64 = 20;
        let (_draining, context) = context(counting(&Arc::default()), Limits::default());
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let runs = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&runs);
        let mut serving = Box::pin(http2_alone(server, context, memory()));
        tokio::spawn(poll_fn(move |cx| {
            counted.fetch_add(1, Ordering::Relaxed);
            serving.as_mut().poll(cx)
        }));
        client.write_all(BEGIN).await.unwrap();
        settle().await;
        let before = runs.load(Ordering::Relaxed);
        for request in requests(CALLS, 10) {
            client.write_all(&request).await.unwrap();
            settle().await;
        }
        assert_eq!(runs.load(Ordering::Relaxed) - before, CALLS);
    }

    #[tokio::test]
    async fn while_others_wait_many_requests_are_answered_in_several_turns() {
        const CALLS: u64 = 200;
        let calls = Arc::new(AtomicU64::new(0));
        let (_draining, context) = context(counting(&calls), Limits::default());
        for _ in 0..3 {
            let other = Turns::of_one_client(Arc::clone(&context.turns));
            tokio::spawn(async move {
                loop {
                    other.take(limits::WORK_PER_PASS).await;
                }
            });
        }
        let (mut client, server) = tokio::io::duplex(1024 * 1024);
        tokio::spawn(http2_alone(server, context, memory()));
        client.write_all(BEGIN).await.unwrap();
        settle().await;

        let requests: Vec<_> = requests(CALLS, 10).collect();
        client.write_all(&requests.concat()).await.unwrap();
        let most = (limits::SHORT_TURN_WORK / limits::CALL_WORK) as u64 + 1;
        let (mut before, mut turns) = (0, 0);
        while before < CALLS {
            yield_now().await;
            let now = calls.load(Ordering::Relaxed);
            assert!(now - before <= most, "{now} after {before}");
            turns += u64::from(now > before);
            before = now;
        }
        assert!(turns >= CALLS / most, "{turns}");
    }

    /// A deadline passes while the calls of a connection wait for its next turn.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_has_waited_for_longer_than_its_deadline_is_not_handled() {
        const CALLS: u64 = 200;
        let calls = Arc::new(AtomicU64::new(0));
        let (_draining, context) = context(counting(&calls), Limits::default());
        let other = Turns::of_one_client(Arc::clone(&context.turns));
        let (mut client, server) = tokio::io::duplex(1024 * 1024);
        tokio::spawn(http2_alone(server, context, memory()));
        client.write_all(BEGIN).await.unwrap();
        settle().await;
        // The connection reads all requests in its turn. For the next turn, it waits behind many others.
        let _waiting: Vec<_> = (0..100).map(|_| other.next()).collect();

        // POST, http, the path, the content type, and a deadline of a second.
        let head = b"\x83\x86\x04\x0e/Counting/Call\x0f\x10\x10application/grpc\x00\x0cgrpc-timeout\x021S";
        let requests = (1..).step_by(2).take(CALLS as usize).flat_map(|stream| {
            let mut request = frame(1, 4, stream, head);
            request.extend(frame(0, 1, stream, &[0; 5]));
            request
        });
        client.write_all(&requests.collect::<Vec<_>>()).await.unwrap();
        while calls.load(Ordering::Relaxed) == 0 {
            yield_now().await;
        }
        let handled = calls.load(Ordering::Relaxed);
        assert!(handled < CALLS / 2, "{handled}");
        advance(Duration::from_secs(2)).await;
        let mut ended = 0;
        while ended < CALLS {
            let mut head = [0; 9];
            client.read_exact(&mut head).await.unwrap();
            let [a, b, c, kind, flags, ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            client.read_exact(&mut payload).await.unwrap();
            // HEADERS with END_STREAM.
            ended += u64::from(kind == 1 && flags & 1 == 1);
        }
        assert_eq!(calls.load(Ordering::Relaxed), handled);
    }

    /// Otherwise many connections could decode a large request each in one pass.
    #[tokio::test]
    async fn the_request_of_a_stream_is_decoded_in_a_turn() {
        const CONNECTIONS: u64 = 10;
        const NODES: usize = 2_500;
        let begun = Arc::new(AtomicU64::new(0));
        let begin = |begun: Arc<AtomicU64>, _: v1::WatchRequest, _: StreamContext| {
            begun.fetch_add(1, Ordering::Relaxed);
            Ok(futures_util::stream::pending::<Result<Bytes, tonic::Status>>())
        };
        let handler = encoded_stream(&begun, begin);
        let method = Method::new(
            "/Counting/Call",
            limits::MAX_BATCH_MESSAGE_SIZE,
            Access::Everyone,
            handler,
        );
        let (_draining, context) = context(MethodTable::new(vec![method]), Limits::default());
        let request = v1::WatchRequest {
            nodes: Some(v1::NodeIds {
                uuids: vec![7; 16 * NODES],
                names: vec![],
            }),
            ..v1::WatchRequest::default()
        };
        let request = crate::grpc::frame::encode(&request);
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let (client, server) = tokio::io::duplex(1024 * 1024);
            tokio::spawn(http2_alone(server, context.clone(), memory()));
            let (mut client, connection) = h2::client::handshake(client).await.unwrap();
            tokio::spawn(connection);
            let head = http::Request::post("http://tracker/Counting/Call").header("content-type", "application/grpc");
            let (response, mut stream) = client.send_request(head.body(()).unwrap(), false).unwrap();
            stream.send_data(request.clone(), true).unwrap();
            clients.push((client, response));
        }
        let mut before = 0;
        while before < CONNECTIONS {
            yield_now().await;
            let now = begun.load(Ordering::Relaxed);
            assert!(now - before <= 2, "{now} after {before}");
            before = now;
        }
    }

    #[tokio::test]
    async fn input_that_makes_no_call_has_its_price() {
        const PINGS: usize = 3_000;
        let (client, server) = tokio::io::duplex(1024 * 1024);
        let mut served = Served::begin(client, WireStream::new(server, false), Vec::new(), 1 << 30).await;
        let before = served.worker.spent();
        let pings = frame(6, 0, 0, b"flooding").repeat(PINGS);
        served.send(&pings).await;
        // Each poll of the connection rounds down.
        let work = pings.len() / limits::INPUT_PER_WORK;
        let spent = served.worker.spent() - before;
        assert!((work - 20..=work).contains(&spent), "{spent} of {work}");
    }

    /// A client whose socket counts the reads.
    struct CountedReads(tokio::io::DuplexStream, Arc<AtomicU64>);

    impl AsyncRead for CountedReads {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for CountedReads {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl Transport for CountedReads {
        fn sent(&self) -> SentBytes {
            SentBytes::default()
        }
    }

    /// Otherwise the system calls of a client's many connections would delay the calls of other clients.
    #[tokio::test]
    async fn a_connection_does_not_read_before_its_turn() {
        let (calls, reads) = (Arc::default(), Arc::default());
        let (_draining, context) = context(counting(&calls), Limits::default());
        let own = Turns::of_one_client(Arc::clone(&context.turns));
        let other = Turns::new(Arc::clone(&context.turns), ClientKey::V6(2));
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        tokio::spawn(http2_alone(CountedReads(server, Arc::clone(&reads)), context, memory()));
        client.write_all(BEGIN).await.unwrap();
        settle().await;
        // The other client has a call, and this client's other connections have many.
        other.end(&other.small_calls(false), 1, true);
        // More than a share, and less than the small calls of a pass, which another limit bounds.
        own.end(&own.small_calls(false), limits::SMALL_WORK_PER_PASS / 2, true);
        let before = reads.load(Ordering::Relaxed);
        let request = requests(1, 10).next().expect("a request");
        client.write_all(&request).await.unwrap();
        yield_now().await;
        assert_eq!(reads.load(Ordering::Relaxed), before);
        settle().await;
        assert_eq!(calls.load(Ordering::Relaxed), 1);
    }

    /// A body of small frames without end, which counts its frames.
    struct Endless(Arc<AtomicU64>);

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = tonic::Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&[0; 10])))))
        }
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_makes_h2_keep_few_frames_of_each_stream() {
        const STREAMS: u64 = 20;
        let frames = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&frames);
        let handler = Handler::Streaming(Arc::new(move |_, _, _| {
            let body = tonic::body::Body::new(Endless(Arc::clone(&counted)));
            Box::pin(async { crate::grpc::frame::head().map(|()| body) })
        }));
        let method = Method::new("/Counting/Call", limits::MAX_MESSAGE_SIZE, Access::Everyone, handler);
        let (_draining, context) = context(MethodTable::new(vec![method]), Limits::default());
        // The client opens its windows, and then reads nothing.
        let (mut client, server) = tokio::io::duplex(1024);
        tokio::spawn(http2_alone(server, context, memory()));
        let window = frame(8, 0, 0, &(1_u32 << 30).to_be_bytes());
        let windows = frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        client.write_all(&[BEGIN, &windows, &window].concat()).await.unwrap();
        for request in requests(STREAMS, 10) {
            client.write_all(&request).await.unwrap();
        }
        for _ in 0..10_000 {
            yield_now().await;
        }
        // Each frame has a head of nine bytes. h2 encodes frames up to the size of its buffer for writing.
        let encoded = (1024 + 16 * 1024) / (9 + 10);
        let most = encoded + STREAMS * (limits::MAX_UNSENT_FRAMES as u64 + 1);
        let frames = frames.load(Ordering::Relaxed);
        assert!((STREAMS..=most).contains(&frames), "{frames} of {most}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_begin_in_time_is_counted() {
        for sent in [&BEGIN[..0], &BEGIN[..24]] {
            let (_draining, context) = context(counting(&Arc::default()), Limits::default());
            let counters = Arc::clone(&context.counters.connections);
            let (mut client, server) = tokio::io::duplex(64 * 1024);
            client.write_all(sent).await.unwrap();
            http2_alone(server, context, memory()).await;
            assert_eq!(counters.handshake_failures(HandshakeFailure::Http2Timeout).get(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_end_its_tls_handshake_in_time_is_counted() {
        // Nothing, and the head of a record whose rest does not arrive.
        for sent in [&b""[..], b"\x16\x03\x01\x02\x00"] {
            let (_draining, context) = context(MethodTable::new(Vec::new()), Limits::default());
            let (mut client, server) = tokio::io::duplex(64 * 1024);
            client.write_all(sent).await.unwrap();
            let begin = Instant::now();
            let handshake = TlsAcceptor::from(tls_config()).accept(server);
            let stream = tls_handshake(handshake, &context, &ClientQuota::alone().evictable()).await;
            assert!(stream.is_none());
            assert_eq!(begin.elapsed(), context.limits.handshake);
            let counters = &context.counters.connections;
            for &reason in HandshakeFailure::ALL {
                let expected = u64::from(reason == HandshakeFailure::TlsTimeout);
                assert_eq!(counters.handshake_failures(reason).get(), expected, "{}", reason.name());
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_with_a_certificate_waits_for_a_slot_of_its_share() {
        let (_draining, context) = context(MethodTable::new(Vec::new()), Limits::default());
        let limits = Limits {
            max_connections: 2,
            ..Limits::default()
        };
        let quotas = Quotas::new(&limits);
        let client = quotas.register(ClientKey::V6(1)).certified(1);
        let slot = certified_slot(&client, &context).await.expect("a slot is free");
        let (waiting_client, waiting_context) = (client.clone(), context.clone());
        let waiting = tokio::spawn(async move { certified_slot(&waiting_client, &waiting_context).await });
        sleep(limits::MAX_CONNECTION_WAIT / 2).await;
        assert!(!waiting.is_finished());
        drop(slot);
        let _slot = waiting.await.unwrap().expect("a slot is free again");
        let begin = Instant::now();
        assert!(certified_slot(&client, &context).await.is_none());
        assert_eq!(begin.elapsed(), limits::MAX_CONNECTION_WAIT);
    }

    /// Returns a configuration without certificates: no handshake gets as far as a certificate.
    fn tls_config() -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let certificates = Arc::new(rustls::server::ResolvesServerCertUsingSni::new());
        let builder = builder.unwrap().with_no_client_auth();
        Arc::new(builder.with_cert_resolver(certificates))
    }

    #[tokio::test]
    async fn a_flood_does_not_keep_its_connection_young() {
        const SOON: Duration = Duration::from_millis(20);
        const LATE: Duration = Duration::from_secs(20);
        let limits = Limits {
            handshake: SOON,
            max_connection_age: SOON,
            drain: SOON,
            ..Limits::default()
        };
        let (_draining, context) = context(MethodTable::new(Vec::new()), limits);
        let served = tokio::spawn(http2_alone(Flood(BEGIN), context, memory()));
        timeout(LATE, served)
            .await
            .expect("the connection does not end")
            .unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_arrived_is_read_before_a_client_counts_as_silent() {
        let limits = Limits::default();
        let (_draining, context) = context(MethodTable::new(Vec::new()), limits.clone());
        let (mut client, server) = tokio::io::duplex(64 * 1024);
        let served = tokio::spawn(http2_alone(server, context, memory()));
        client.write_all(BEGIN).await.unwrap();
        settle().await;
        // The client has just begun.
        advance(limits.ping_interval).await;
        settle().await;
        for _ in 0..3 {
            advance(limits.ping_interval).await;
            settle().await;
            // As after a stop of the process: the timer has run already, and the input is there before the socket is
            // polled.
            advance(limits.ping_timeout).await;
            client.write_all(&frame(6, 0, 0, b"alive...")).await.unwrap();
            settle().await;
            assert!(!served.is_finished());
        }
        advance(limits.ping_interval).await;
        settle().await;
        advance(limits.ping_timeout).await;
        settle().await;
        assert!(served.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_its_reply_slowly_is_alive() {
        const SIZE: usize = 400_000;
        const STEP: usize = 16 * 1024;
        let limits = Limits::default();
        let handler = Handler::Immediate(Arc::new(|_, _| Ok(Bytes::from_static(&[0; SIZE]))));
        let method = Method::new("/Counting/Call", limits::MAX_MESSAGE_SIZE, Access::Everyone, handler);
        let (_draining, context) = context(MethodTable::new(vec![method]), limits.clone());
        let (mut client, server) = slow_connection();
        let served = tokio::spawn(http2_alone(Socket::new(server), context, memory()));
        let window = frame(8, 0, 0, &(1_u32 << 30).to_be_bytes());
        let windows = frame(4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
        let begin = [BEGIN, &windows, &window, &requests(1, 10).next().expect("a request")].concat();
        client.write_all(&begin).unwrap();
        let mut taken = 0;
        while taken < SIZE {
            sleep(limits.ping_timeout / 2).await;
            // Blocks the thread, so that the paused time stands meanwhile.
            let read = client.read(&mut [0; STEP]).unwrap();
            assert_ne!(read, 0, "cut after {taken} bytes");
            taken += read;
        }
        assert!(!served.is_finished());
        // The client neither sends nor takes bytes now.
        sleep(2 * limits.ping_interval + 2 * limits.ping_timeout).await;
        assert!(served.is_finished());
    }

    /// Connects a client, whose system takes few bytes, to a server, whose system takes many.
    fn slow_connection() -> (std::net::TcpStream, TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_recv_buffer_size(&client, 16 * 1024).unwrap();
        rustix::net::connect(&client, &listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        sockopt::set_socket_send_buffer_size(&server, 1 << 20).unwrap();
        server.set_nonblocking(true).unwrap();
        (client.into(), TcpStream::from_std(server).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_the_certificate_of_its_client_expires() {
        const HOUR: Duration = Duration::from_secs(3600);
        let limits = Limits {
            max_connection_age: 100 * HOUR,
            ..Limits::default()
        };
        let (_draining, context) = context(counting(&Arc::default()), limits.clone());
        let (client, server) = tokio::io::duplex(64 * 1024);
        let peer = Peer::valid_until(std::time::SystemTime::now() + 24 * HOUR);
        let turns = Turns::of_one_client(Arc::clone(&context.turns));
        let served = tokio::spawn(http2(
            WireStream::new(server, false),
            peer,
            context,
            memory(),
            turns,
            ClientQuota::alone().evictable(),
            0,
        ));
        let (_client, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        sleep(23 * HOUR).await;
        assert!(!served.is_finished());
        // The paused time does not move the system's clock, which the certificate is compared with after the handshake.
        sleep(HOUR + 2 * limits.handshake).await;
        assert!(served.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_expires_by_the_systems_clock() {
        let limits = Limits {
            handshake: Duration::from_millis(1),
            ping_interval: Duration::from_millis(10),
            ..Limits::default()
        };
        let (_draining, context) = context(counting(&Arc::default()), limits);
        let (client, server) = tokio::io::duplex(64 * 1024);
        let life = Duration::from_secs(2);
        let peer = Peer::valid_until(std::time::SystemTime::now() + life);
        let turns = Turns::of_one_client(Arc::clone(&context.turns));
        let served = tokio::spawn(http2(
            WireStream::new(server, false),
            peer,
            context,
            memory(),
            turns,
            ClientQuota::alone().evictable(),
            0,
        ));
        let (_client, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        sleep(Duration::from_millis(5)).await;
        assert!(!served.is_finished());
        // The system's clock advances and the timers do not, as when the machine is suspended.
        std::thread::sleep(life);
        let ended = timeout(life / 4, served).await;
        ended.expect("the client has expired").unwrap();
    }

    /// A body that panics.
    struct Panicking;

    impl http_body::Body for Panicking {
        type Data = Bytes;
        type Error = tonic::Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
            panic!("on purpose");
        }
    }

    /// Returns the methods of the port, each with a handler that panics.
    fn panicking() -> Vec<Method> {
        let methods = methods_of_empty_table();
        let panicking = methods.rows().iter().enumerate().map(|(number, method)| {
            let handler = match method.handler {
                Handler::Immediate(_) => Handler::Immediate(Arc::new(|_, _| panic!("on purpose"))),
                Handler::Unary(_) => Handler::Unary(Arc::new(|_, _| Box::pin(async { panic!("on purpose") }))),
                Handler::Streaming(_) if number % 2 == 0 => {
                    Handler::Streaming(Arc::new(|_, _, _| panic!("on purpose")))
                }
                Handler::Streaming(_) => Handler::Streaming(Arc::new(|_, _, _| {
                    Box::pin(async { crate::grpc::frame::head().map(|()| tonic::body::Body::new(Panicking)) })
                })),
            };
            Method::new(method.path, method.max_request, Access::Everyone, handler)
        });
        panicking.collect()
    }

    /// Calls a method with an empty message, and returns the headers and trailers of its response.
    async fn call(client: &mut h2::client::SendRequest<Bytes>, path: &str) -> http::HeaderMap {
        let request = http::Request::post(format!("http://tracker{path}")).header("content-type", "application/grpc");
        let (response, mut stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
        let response = response.await.unwrap();
        let mut headers = response.headers().clone();
        let mut body = response.into_body();
        while body.data().await.is_some() {}
        headers.extend(body.trailers().await.unwrap().unwrap_or_default());
        headers
    }

    /// Serves a connection, and returns its client.
    async fn client(methods: Vec<Method>) -> (watch::Sender<bool>, h2::client::SendRequest<Bytes>) {
        let (draining, context) = context(MethodTable::new(methods), Limits::default());
        let (client, server) = tokio::io::duplex(64 * 1024);
        tokio::spawn(http2_alone(server, context, memory()));
        let (client, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        (draining, client)
    }

    /// Makes `count` calls at one time.
    async fn calls_at_once(client: &h2::client::SendRequest<Bytes>, count: usize) {
        let calls = (0..count).map(|_| {
            let mut client = client.clone();
            async move { assert_eq!(call(&mut client, "/Counting/Call").await["grpc-status"], "0") }
        });
        futures_util::future::join_all(calls).await;
    }

    /// Serves a connection with a memory budget. Returns the task and the client of the connection.
    async fn served(
        memory: &Arc<MemoryBudget>,
    ) -> (
        watch::Sender<bool>,
        tokio::task::JoinHandle<()>,
        h2::client::SendRequest<Bytes>,
    ) {
        let (draining, context) = context(counting(&Arc::default()), Limits::default());
        let (client, server) = tokio::io::duplex(64 * 1024);
        let served = tokio::spawn(http2_alone(
            server,
            context,
            memory.for_connection(ClientQuota::alone()),
        ));
        let (client, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        (draining, served, client)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_keeps_memory_for_many_calls_ends_when_it_is_idle() {
        for (calls, ends) in [
            (limits::SMALL_CONNECTION_CALLS, false),
            (limits::SMALL_CONNECTION_CALLS + 1, true),
        ] {
            let memory = MemoryBudget::new(1 << 30, Arc::default());
            let (_draining, served, client) = served(&memory).await;
            calls_at_once(&client, calls).await;
            let charged = (calls - limits::SMALL_CONNECTION_CALLS) * limits::STREAM_MEMORY;
            assert_eq!(memory.used(), charged);
            // A call now and then: the connection is not idle.
            for _ in 0..5 {
                sleep(limits::LARGE_CONNECTION_IDLE / 2).await;
                calls_at_once(&client, 1).await;
            }
            assert!(!served.is_finished());
            sleep(4 * limits::LARGE_CONNECTION_IDLE).await;
            assert_eq!(served.is_finished(), ends, "after {calls} calls");
            assert_eq!(memory.used(), if ends { 0 } else { charged });
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_calls_now_and_then_is_not_idle_however_often_it_is_asked() {
        let memory = MemoryBudget::new(1 << 30, Arc::default());
        let (_draining, context) = context(counting(&Arc::default()), Limits::default());
        let quota = ClientQuota::alone();
        let (client, server) = tokio::io::duplex(64 * 1024);
        let served = tokio::spawn(http2_alone(server, context, memory.for_connection(quota.clone())));
        let (client, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        calls_at_once(&client, 1).await;
        for _ in 0..3 {
            quota.idle().ask(1);
            sleep(limits::IDLE_DRAIN).await;
        }
        calls_at_once(&client, 1).await;
        sleep(2 * limits::IDLE_DRAIN).await;
        assert!(!served.is_finished());
        for _ in 0..2 {
            quota.idle().ask(1);
            sleep(limits::MAKE_ROOM_INTERVAL).await;
        }
        assert!(served.is_finished());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_calls_in_flight_makes_room_if_it_is_asked_to() {
        let handler = Handler::Streaming(Arc::new(|_, _, _| Box::pin(std::future::pending())));
        let method = Method::new("/Counting/Call", limits::MAX_MESSAGE_SIZE, Access::Everyone, handler);
        let limits = Limits {
            call: 100 * limits::MAKE_ROOM_INTERVAL,
            ..Limits::default()
        };
        let (_draining, context) = context(MethodTable::new(vec![method]), limits.clone());
        let quota = ClientQuota::alone();
        let (client, server) = tokio::io::duplex(64 * 1024);
        let memory = MemoryBudget::new(1 << 30, Arc::default());
        let served = tokio::spawn(http2_alone(server, context, memory.for_connection(quota.clone())));
        let (mut client, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        let open = tokio::spawn(async move { call(&mut client, "/Counting/Call").await });
        sleep(limits::MAKE_ROOM_INTERVAL).await;
        quota.idle().ask(1);
        sleep(limits.drain * 2).await;
        assert!(!served.is_finished());
        quota.idle().ask_busy(1);
        sleep(limits.drain * 2).await;
        assert!(served.is_finished());
        open.abort();
    }

    /// Opens a stream of replies with an empty request.
    async fn open_stream(client: &mut h2::client::SendRequest<Bytes>, path: &str) -> h2::RecvStream {
        let request = http::Request::post(format!("http://tracker{path}")).header("content-type", "application/grpc");
        let (response, mut stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
        response.await.unwrap().into_body()
    }

    #[tokio::test]
    async fn an_open_stream_is_charged() {
        for path in ["/grpc.health.v1.Health/Watch", "/nodetracker.v1.WatchService/Watch"] {
            let memory = MemoryBudget::new(1 << 30, Arc::default());
            let (_draining, context) = context(methods_of_empty_table(), Limits::default());
            let (client, server) = tokio::io::duplex(64 * 1024);
            let of_connection = memory.for_connection(ClientQuota::alone());
            tokio::spawn(http2_alone(server, context, of_connection));
            let (mut client, connection) = h2::client::handshake(client).await.unwrap();
            tokio::spawn(connection);
            let open = open_stream(&mut client, path).await;
            settle().await;
            assert_eq!(memory.used(), limits::CALL_MEMORY, "{path}");
            drop(open);
            settle().await;
            assert_eq!(memory.used(), 0, "{path}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_only_watches_the_health_is_idle() {
        const WATCH: &str = "/grpc.health.v1.Health/Watch";
        let (_draining, context) = context(methods_of_empty_table(), Limits::default());
        let quota = ClientQuota::alone();
        let memory = MemoryBudget::new(1 << 30, Arc::default());
        let (client, server) = tokio::io::duplex(64 * 1024);
        let served = tokio::spawn(http2_alone(server, context, memory.for_connection(quota.clone())));
        let (mut client, connection) = h2::client::handshake(client).await.unwrap();
        tokio::spawn(connection);
        let mut open = Vec::new();
        for _ in 0..limits::MAX_PASSIVE_CALLS {
            open.push(open_stream(&mut client, WATCH).await);
        }
        assert_eq!(call(&mut client, WATCH).await["grpc-status"], "8");
        for _ in 0..2 {
            assert!(!served.is_finished());
            quota.idle().ask(1);
            sleep(limits::MAKE_ROOM_INTERVAL).await;
        }
        assert!(served.is_finished());
        // The watches have ended with a status, and were not cut.
        for mut body in open {
            while body.data().await.is_some() {}
            assert_eq!(body.trailers().await.unwrap().unwrap()["grpc-status"], "14");
        }
    }

    /// Otherwise h2 would keep any number of streams that nothing counts.
    #[tokio::test]
    async fn replies_that_wait_for_the_window_keep_their_calls_in_flight() {
        const CALLS: usize = limits::SMALL_CONNECTION_CALLS + 5;
        let memory = MemoryBudget::new(1 << 30, Arc::default());
        let (_draining, context) = context(counting(&Arc::default()), Limits::default());
        let (client, server) = tokio::io::duplex(64 * 1024);
        tokio::spawn(http2_alone(
            server,
            context,
            memory.for_connection(ClientQuota::alone()),
        ));
        let mut builder = h2::client::Builder::new();
        let (mut client, connection) = builder.initial_window_size(0).handshake(client).await.unwrap();
        tokio::spawn(connection);
        let mut bodies: Vec<h2::RecvStream> = Vec::new();
        for _ in 0..CALLS {
            client = client.ready().await.unwrap();
            let request =
                http::Request::post("http://tracker/Counting/Call").header("content-type", "application/grpc");
            let (response, mut stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
            stream.send_data(Bytes::from_static(&[0; 5]), true).unwrap();
            // The head comes; the message waits.
            bodies.push(response.await.unwrap().into_body());
        }
        let window = (limits::LARGE_CONNECTION_WINDOW - limits::CONNECTION_WINDOW) as usize;
        assert_eq!(memory.used(), 5 * limits::STREAM_MEMORY + window);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reply_does_not_wait_for_the_window_without_end() {
        // Without and with a task for the call.
        let handlers = [
            Handler::Immediate(counting_handler(&Arc::default())),
            Handler::Unary(Arc::new(|_, _| {
                Box::pin(async {
                    yield_now().await;
                    Ok(Bytes::from_static(&[0; 5]))
                })
            })),
        ];
        for handler in handlers {
            let method = Method::new("/Counting/Call", limits::MAX_MESSAGE_SIZE, Access::Everyone, handler);
            let (_draining, context) = context(MethodTable::new(vec![method]), Limits::default());
            let limit = context.limits.call;
            let (client, server) = tokio::io::duplex(64 * 1024);
            tokio::spawn(http2_alone(server, context, memory()));
            let mut builder = h2::client::Builder::new();
            let (mut client, connection) = builder.initial_window_size(0).handshake(client).await.unwrap();
            tokio::spawn(connection);
            let begin = Instant::now();
            let ended = timeout(2 * limit, call(&mut client, "/Counting/Call")).await;
            assert_eq!(ended.expect("the reply waits for the window")["grpc-status"], "4");
            assert_eq!(begin.elapsed().as_secs(), limit.as_secs());
        }
    }

    #[tokio::test]
    async fn requests_of_calls_that_wait_are_charged_and_leave_the_window_to_others() {
        const CALLS: usize = limits::SMALL_CONNECTION_CALLS;
        // In one frame, and in several frames.
        for size in [10_000, 30_000] {
            let begun = Arc::new(AtomicU64::new(0));
            let counted = Arc::clone(&begun);
            let handler = Handler::Unary(Arc::new(move |_, _| {
                counted.fetch_add(1, Ordering::Relaxed);
                Box::pin(std::future::pending())
            }));
            let method = Method::new("/Counting/Call", limits::MAX_MESSAGE_SIZE, Access::Everyone, handler);
            let (_draining, context) = context(MethodTable::new(vec![method]), Limits::default());
            let memory = MemoryBudget::new(1 << 30, Arc::default());
            // Nothing is spare, so the window stays small.
            let rest = memory.for_connection(ClientQuota::alone());
            let rest = rest.charge((1 << 30) / 4).unwrap();
            let (client, server) = tokio::io::duplex(64 * 1024);
            tokio::spawn(http2_alone(
                server,
                context,
                memory.for_connection(ClientQuota::alone()),
            ));
            let (client, connection) = h2::client::handshake(client).await.unwrap();
            tokio::spawn(connection);
            let message = [&[0], &(size as u32).to_be_bytes()[..], &vec![7; size]].concat();
            let mut calls = Vec::new();
            for _ in 0..CALLS {
                let mut client = client.clone().ready().await.unwrap();
                let request =
                    http::Request::post("http://tracker/Counting/Call").header("content-type", "application/grpc");
                let (response, mut stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
                stream.send_data(message.clone().into(), true).unwrap();
                calls.push((response, stream));
                settle().await;
            }
            for _ in 0..100 {
                settle().await;
            }
            assert_eq!(begun.load(Ordering::Relaxed), CALLS as u64);
            assert_eq!(memory.used() - rest.bytes(), CALLS * (limits::CALL_MEMORY + size));
        }
    }

    #[tokio::test]
    async fn requests_that_nobody_reads_are_few_or_are_charged() {
        const STREAMS: usize = 8;
        let window = limits::CONNECTION_WINDOW as usize;
        let large = limits::LARGE_CONNECTION_WINDOW as usize;
        for (limit, sent) in [(large, window), (1 << 30, large)] {
            // No call reads its request.
            let handler = Handler::Streaming(Arc::new(|request, _, _| {
                Box::pin(async move {
                    let _request = request;
                    std::future::pending::<http::Response<tonic::body::Body>>().await
                })
            }));
            let method = Method::new("/Counting/Call", limits::MAX_MESSAGE_SIZE, Access::Everyone, handler);
            let (_draining, context) = context(MethodTable::new(vec![method]), Limits::default());
            let memory = MemoryBudget::new(limit, Arc::default());
            let (client, server) = tokio::io::duplex(64 * 1024);
            tokio::spawn(http2_alone(
                server,
                context,
                memory.for_connection(ClientQuota::alone()),
            ));
            let (client, connection) = h2::client::handshake(client).await.unwrap();
            tokio::spawn(connection);
            let mut streams = Vec::new();
            for _ in 0..STREAMS {
                let mut client = client.clone().ready().await.unwrap();
                let request =
                    http::Request::post("http://tracker/Counting/Call").header("content-type", "application/grpc");
                let (response, stream) = client.send_request(request.body(()).unwrap(), false).unwrap();
                streams.push((response, stream));
                settle().await;
            }
            let (mut taken, mut cost) = (0, 0);
            for (_, stream) in &mut streams {
                stream.reserve_capacity(large);
                settle().await;
                while stream.capacity() > 0 {
                    let part = stream.capacity().min(1000);
                    taken += part;
                    cost += frame_cost(part);
                    stream.send_data(vec![0; part].into(), false).unwrap();
                    settle().await;
                }
            }
            assert!(taken.abs_diff(sent) <= 1, "{taken} of {sent}");
            // A window without the first step, and the heads of the frames.
            let unread = (window - limits::UNREAD_STEP + 1).next_multiple_of(limits::UNREAD_STEP);
            let frames = cost / limits::READ_BUFFER / limits::FRAMES_PER_STREAM;
            let frames = frames.saturating_sub(limits::SMALL_CONNECTION_CALLS) * limits::STREAM_MEMORY;
            let charged = STREAMS * limits::CALL_MEMORY + unread + frames;
            assert_eq!(memory.used(), charged + sent - window);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_whose_streams_have_no_room_in_the_budget_ends() {
        // A connection that is alone gets half of the budget.
        let memory = MemoryBudget::new(2 * limits::STREAM_MEMORY, Arc::default());
        let (_draining, served, client) = served(&memory).await;
        calls_at_once(&client, limits::SMALL_CONNECTION_CALLS + 1).await;
        calls_at_once(&client, limits::SMALL_CONNECTION_CALLS + 1).await;
        assert!(!served.is_finished());
        // The calls still get their replies.
        calls_at_once(&client, limits::SMALL_CONNECTION_CALLS + 2).await;
        sleep(Duration::from_secs(1)).await;
        assert!(served.is_finished());
        let refusals: u64 = memory.refusals().counts().map(|(_, count)| count).sum();
        assert_eq!((memory.used(), refusals), (0, 1));
    }

    #[tokio::test]
    async fn a_panic_costs_one_call() {
        let calls = Arc::default();
        let mut methods = panicking();
        let panicking: Vec<_> = methods.iter().map(|method| method.path).collect();
        let handler = Handler::Immediate(counting_handler(&calls));
        methods.push(Method::new(
            "/Counting/Call",
            limits::MAX_MESSAGE_SIZE,
            Access::Everyone,
            handler,
        ));
        let (_draining, mut client) = client(methods).await;
        for path in panicking {
            assert_eq!(call(&mut client, path).await["grpc-status"], "13", "{path}");
            assert_eq!(call(&mut client, "/Counting/Call").await["grpc-status"], "0");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_that_takes_too_long_is_named() {
        let handler = Handler::Unary(Arc::new(|_, _| Box::pin(std::future::pending())));
        let method = Method::new("/Slow/Call", limits::MAX_MESSAGE_SIZE, Access::Everyone, handler);
        let (_draining, mut client) = client(vec![method]).await;
        let ended = call(&mut client, "/Slow/Call").await;
        assert_eq!(ended["grpc-status"], "4");
        assert!(
            ended["grpc-message"].to_str().unwrap().contains("not%20done"),
            "{ended:?}"
        );
    }
}
