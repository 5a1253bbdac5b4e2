//! SIGTERM, SIGINT and SIGHUP.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that stop the server. Once installed, they no longer end the process by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// SIGXFSZ, which would end the process when a file reaches the limit of the file size. With a handler, the write
    /// fails instead.
    _file_size: Signal,
}

/// SIGHUP. Once installed, SIGHUP no longer ends the process.
#[derive(Debug)]
pub(crate) struct Hangups(Signal);

impl Hangups {
    pub(crate) fn install() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Self)
    }

    /// Waits for the next SIGHUP.
    pub(crate) async fn next(&mut self) {
        self.0.recv().await;
    }
}

/// A signal that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReceivedSignal {
    pub(crate) name: &'static str,
    number: u8,
}

impl ReceivedSignal {
    /// Returns the exit code that shells expect of a process that this signal ended.
    pub(crate) fn exit_code(self) -> u8 {
        128 + self.number
    }
}

impl Signals {
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _file_size: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> ReceivedSignal {
        tokio::select! {
            _ = self.terminate.recv() => ReceivedSignal { name: "SIGTERM", number: 15 },
            _ = self.interrupt.recv() => ReceivedSignal { name: "SIGINT", number: 2 },
        }
    }
}
