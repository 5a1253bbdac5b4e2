//! A connection's socket, which reports how many of its bytes have reached the client's machine.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The bytes that a socket has sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SentBytes {
    /// Bytes that the system has accepted for the client.
    pub(super) written: u64,
    /// Bytes that the client's system has acknowledged: it accepts more bytes only if the client reads.
    pub(super) acknowledged: u64,
}

/// A stream to a client that reports the bytes that it has sent.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin {
    /// Returns the bytes that were sent so far. Costs a system call.
    fn sent(&self) -> SentBytes;
}

/// A TCP socket that counts the bytes that are written.
#[derive(Debug)]
pub(super) struct Socket {
    stream: TcpStream,
    written: u64,
}

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, written: 0 }
    }

    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.written += *bytes as u64;
        }
        written
    }
}

impl Transport for Socket {
    fn sent(&self) -> SentBytes {
        // An error means that the socket has failed. The next read or write reports the failure.
        let waiting = unacknowledged(&self.stream).unwrap_or(0);
        SentBytes {
            written: self.written,
            acknowledged: self.written.saturating_sub(waiting),
        }
    }
}

/// Returns the number of bytes in a socket's send queue that the peer has not acknowledged.
#[expect(unsafe_code, reason = "no safe crate has this ioctl")]
fn unacknowledged(stream: &TcpStream) -> rustix::io::Result<u64> {
    use rustix::ioctl::{Getter, Opcode, ioctl};
    // SAFETY: `TIOCOUTQ`, which is `SIOCOUTQ` for sockets, writes an `int`.
    let send_queue = unsafe { Getter::<{ libc::TIOCOUTQ as Opcode }, libc::c_int>::new() };
    // SAFETY: the ioctl writes only this `int`, and the descriptor is open.
    let bytes = unsafe { ioctl(stream, send_queue) }?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
