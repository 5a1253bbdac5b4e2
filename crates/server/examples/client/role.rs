//! A part of a measurement that runs in its own process: this program with other arguments.
//!
//! The process prints a line at each step. The process is killed when its [`Role`] is dropped.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::Failure;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Priority {
    Normal,
    /// For attackers, so that the server gets its share of the CPU.
    Lowest,
}

pub(crate) struct Role {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<(Instant, String)>,
}

impl Role {
    /// Starts this program with other arguments.
    pub(crate) fn start(priority: Priority, args: &[&str]) -> Result<Self, Failure> {
        let nice = match priority {
            Priority::Normal => "0",
            Priority::Lowest => "19",
        };
        let mut child = Command::new("nice")
            .args(["-n", nice])
            .arg(std::env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let stdin = child.stdin.take().ok_or("no stdin")?;
        let (sender, lines) = channel();
        thread::Builder::new().spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send((Instant::now(), line)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { child, stdin, lines })
    }

    /// Waits for the next line, and returns the line and the time when it came. Returns `None` after `limit`.
    pub(crate) fn line(&self, limit: Duration) -> Result<Option<(Instant, String)>, Failure> {
        match self.lines.recv_timeout(limit) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err("a process of the measurement ended".into()),
        }
    }

    /// Waits for the next line, and fails if the line differs from `expected`. Returns the time when the line came.
    pub(crate) fn expect(&self, expected: &str, limit: Duration) -> Result<Instant, Failure> {
        match self.line(limit)? {
            Some((at, line)) if line == expected => Ok(at),
            other => Err(format!("not {expected:?} but {other:?}").into()),
        }
    }

    /// Asks for a line, and waits for it.
    pub(crate) fn ask(&mut self, limit: Duration) -> Result<String, Failure> {
        writeln!(self.stdin)?;
        self.line(limit)?.map(|(_, line)| line).ok_or_else(|| "no reply".into())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Prints a line for the process that started this role.
pub(crate) fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // An error means that the other process is gone, which kills this process soon.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
