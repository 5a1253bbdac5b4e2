//! SIGTERM and SIGINT.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end the server. From the moment this exists they no longer end the process by themselves.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

/// A signal that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Came {
    pub(crate) name: &'static str,
    number: u8,
}

impl Came {
    /// The exit code by which shells know that a process was ended by this signal.
    pub(crate) fn exit_code(self) -> u8 {
        128 + self.number
    }
}

impl Signals {
    pub(crate) fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) -> Came {
        tokio::select! {
            _ = self.terminate.recv() => Came { name: "SIGTERM", number: 15 },
            _ = self.interrupt.recv() => Came { name: "SIGINT", number: 2 },
        }
    }
}
