//! A connection that is served, for tests.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::auth::Access;
use crate::grpc::handler::Handler;
use crate::grpc::method::{Method, MethodTable};
use crate::http2::connection::tests::{BEGIN, context, http2_of, settle};
use crate::http2::wire::{Metered, WireStream};
use crate::limits::{Limits, MAX_MESSAGE_SIZE};
use crate::memory::MemoryBudget;
use crate::quota::ClientQuota;
use crate::refusal::Reason;
use crate::turns::WorkerTurns;

/// A connection with its client, the only connection of its worker.
pub(super) struct Served<C> {
    pub(super) client: C,
    pub(super) task: JoinHandle<()>,
    pub(super) worker: Arc<WorkerTurns>,
    pub(super) memory: Arc<MemoryBudget>,
    pub(super) limits: Limits,
    _draining: watch::Sender<bool>,
}

impl<C: AsyncWrite + Unpin> Served<C> {
    /// Serves a connection that has half of the memory, and begins HTTP/2.
    pub(super) async fn begin<S>(mut client: C, server: S, methods: Vec<Method>, memory: usize) -> Self
    where
        S: Metered + Send + 'static,
    {
        let limits = Limits::default();
        let (draining, context) = context(MethodTable::new(methods), limits.clone());
        let worker = Arc::clone(&context.turns);
        let memory = MemoryBudget::new(memory, Arc::default());
        let of_connection = memory.for_connection(ClientQuota::alone());
        let task = tokio::spawn(http2_of(server, context, of_connection));
        client.write_all(BEGIN).await.unwrap();
        settle().await;
        Self {
            client,
            task,
            worker,
            memory,
            limits,
            _draining: draining,
        }
    }

    /// Sends bytes, and lets the connection take some turns.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).await.unwrap();
        for _ in 0..20 {
            settle().await;
        }
    }

    /// Returns the reasons of the refusals, with their counts.
    pub(super) fn refused(&self) -> Vec<(Reason, u64)> {
        let counts = self.memory.refusals().counts();
        counts.filter(|&(_, count)| count > 0).collect()
    }
}

impl Served<DuplexStream> {
    /// Serves a connection without TLS, over a stream that keeps `between` bytes. The connection has one method,
    /// `/Counting/Call`.
    pub(super) async fn plaintext(between: usize, handler: Handler, memory: usize) -> Self {
        let method = Method::new("/Counting/Call", MAX_MESSAGE_SIZE, Access::Everyone, handler);
        let (client, server) = tokio::io::duplex(between);
        Self::begin(client, WireStream::new(server, false), vec![method], memory).await
    }
}

/// A body without frames that never ends.
pub(super) struct Silent;

impl http_body::Body for Silent {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        Poll::Pending
    }
}
