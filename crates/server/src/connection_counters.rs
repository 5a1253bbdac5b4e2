//! Counters of connections: how many there were, why handshakes failed, and the messages of sessions.
//!
//! Each worker has counters of its own, as [of calls](crate::grpc::call_counters). The metrics add them up.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::named::named;

/// A counter that only one thread writes, and any thread reads.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter: a load and a store, without a locked instruction. If two threads added, counts would be
    /// lost.
    #[inline]
    pub(crate) fn add(&self, more: u64) {
        // Relaxed, as in `get`: the counters guard no data.
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

named! {
    /// Why a connection ended before its client could make a call.
    HandshakeFailure {
        /// The client closed or broke the connection.
        Closed = "closed",
        /// The client presented no certificate, or a certificate that the server does not accept.
        ClientCertificate = "client_certificate",
        /// The client broke off TLS, for example because it does not trust the server's certificate.
        TlsAlert = "tls_alert",
        /// The client does not speak TLS, or shares no version, cipher or protocol with the server.
        Tls = "tls",
        /// The TLS handshake took too long.
        TlsTimeout = "tls_timeout",
        /// The client did not begin with HTTP/2.
        Http2 = "http2",
        /// HTTP/2's preface did not arrive in time.
        Http2Timeout = "http2_timeout",
    }
}

named! {
    /// A kind of message that a client sends in a session.
    SessionMessage {
        Hello = "hello",
        NodesUp = "nodes_up",
        Heartbeat = "heartbeat",
        NodesDown = "nodes_down",
        Drain = "drain",
    }
}

/// The counters of one worker. Only the worker's thread may count.
///
/// Aligned so that the counters of two workers share no cache line, nor a pair of lines that the processor prefetches.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ConnectionCounters {
    /// Connections that the worker has begun to serve.
    pub(crate) accepted: Counter,
    handshake_failures: [Counter; HandshakeFailure::ALL.len()],
    session_messages: [Counter; SessionMessage::ALL.len()],
}

impl ConnectionCounters {
    /// Returns the counter of failed handshakes for a reason.
    pub(crate) fn handshake_failures(&self, reason: HandshakeFailure) -> &Counter {
        &self.handshake_failures[reason as usize]
    }

    /// Returns the counter of messages of a kind.
    #[inline]
    pub(crate) fn session_messages(&self, kind: SessionMessage) -> &Counter {
        &self.session_messages[kind as usize]
    }
}
