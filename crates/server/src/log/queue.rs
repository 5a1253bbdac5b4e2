//! The queue between the threads that log and stderr. stderr may have no reader: a full pipe blocks only the queue's
//! thread.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

use tracing::{Dispatch, dispatcher, warn};

use crate::log::rate::PERIOD;

/// Bytes of lines that may wait for stderr.
const MAX_QUEUED: usize = 256 * 1024;

/// Lines on their way to stderr.
#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    /// Bytes of `lines`.
    len: usize,
    /// Whether the queue's thread has lines that it has not written yet.
    is_writing: bool,
    left_out: LeftOut,
    /// When the queue's thread has to report repeated lines.
    report_at: Option<Instant>,
}

/// Lines that were left out since the last report.
#[derive(Debug, Default, Clone, Copy)]
struct LeftOut {
    /// Lines for which stderr had no room.
    dropped: u64,
    /// Lines that a place in the code repeated too often.
    repeated: u64,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends a line, or drops the line if the queue is full.
    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.len + line.len() > MAX_QUEUED {
            state.left_out.dropped += 1;
            return;
        }
        state.len += line.len();
        state.lines.push_back(line.to_vec());
        self.changed.notify_all();
    }

    /// Counts a line that was left out because its place in the code logs too often.
    pub(super) fn add_repeated(&self) {
        let mut state = self.lock();
        state.left_out.repeated += 1;
        if state.report_at.is_none() {
            state.report_at = Some(Instant::now() + PERIOD);
            self.changed.notify_all();
        }
    }

    /// Waits until every line is written, up to `timeout`.
    pub(super) fn flush(&self, timeout: Duration) {
        let is_busy = |state: &mut State| state.is_writing || !state.lines.is_empty();
        // After an error or a timeout the lines are lost.
        drop(self.changed.wait_timeout_while(self.lock(), timeout, is_busy));
    }

    /// Waits for lines, or until repeated lines have to be reported. Returns the lines.
    fn wait(&self) -> VecDeque<Vec<u8>> {
        let mut state = self.lock();
        loop {
            let wait = state.report_at.map(|at| at.saturating_duration_since(Instant::now()));
            if !state.lines.is_empty() || wait == Some(Duration::ZERO) {
                state.is_writing = true;
                state.len = 0;
                return mem::take(&mut state.lines);
            }
            state = match wait {
                Some(wait) => {
                    let waited = self.changed.wait_timeout(state, wait);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Takes the counts that have to be reported now.
    fn take_left_out(&self) -> LeftOut {
        let mut state = self.lock();
        let LeftOut { dropped, repeated } = state.left_out;
        let is_due = state.report_at.is_some_and(|at| at <= Instant::now());
        if is_due {
            state.report_at = None;
        }
        let repeated = if is_due { repeated } else { 0 };
        state.left_out.dropped = 0;
        state.left_out.repeated -= repeated;
        LeftOut { dropped, repeated }
    }

    /// Ends the turn of the queue's thread, in which this many lines could not be written.
    fn end_turn(&self, dropped: u64) {
        let mut state = self.lock();
        state.left_out.dropped += dropped;
        state.is_writing = false;
        self.changed.notify_all();
    }
}

/// Takes a logger's lines, each in one piece.
impl Write for &Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines with the counts of lines that were left out.
#[derive(Debug, Default)]
pub(super) struct OmittedLines(Mutex<Vec<u8>>);

impl OmittedLines {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for &OmittedLines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.lock().write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Starts the thread that writes the queue's lines to `out`. The thread ends with the process.
///
/// `logger` makes the logger that formats the report of lines that were left out.
pub(super) fn start(
    queue: Arc<Queue>,
    mut out: impl Write + Send + 'static,
    logger: impl FnOnce(Arc<OmittedLines>) -> Dispatch,
) -> io::Result<()> {
    let report = Arc::new(OmittedLines::default());
    let logger = logger(Arc::clone(&report));
    thread::Builder::new().name("log".to_owned()).spawn(move || {
        loop {
            let mut dropped = 0;
            for line in queue.wait() {
                // stderr may be closed, or full if it does not block.
                dropped += u64::from(out.write_all(&line).is_err());
            }
            if dropped == 0 {
                let left_out = queue.take_left_out();
                dispatcher::with_default(&logger, || left_out.log());
                let lines = mem::take(&mut *report.lock());
                if out.write_all(&lines).is_err() {
                    dropped += left_out.dropped + left_out.repeated;
                }
            }
            queue.end_turn(dropped);
        }
    })?;
    Ok(())
}

impl LeftOut {
    fn log(self) {
        let Self { dropped, repeated } = self;
        if dropped > 0 {
            warn!("{dropped} log lines were left out: stderr took no more");
        }
        if repeated > 0 {
            warn!("{repeated} log lines were left out: too many of the same kind within a second");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// An output that takes each line only when the test receives the line.
    struct Rendezvous(mpsc::SyncSender<String>);

    impl Write for Rendezvous {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let text = String::from_utf8(line.to_vec()).unwrap();
            self.0.send(text).map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Starts a queue, and returns the queue and its output.
    fn started() -> (Arc<Queue>, mpsc::Receiver<String>) {
        let queue = Arc::new(Queue::default());
        let (lines, read) = mpsc::sync_channel(0);
        start(Arc::clone(&queue), Rendezvous(lines), |report| {
            tracing_subscriber::fmt().without_time().with_writer(report).into()
        })
        .unwrap();
        (queue, read)
    }

    #[test]
    fn an_unread_output_stops_nobody_and_the_lost_lines_are_counted() {
        let (queue, read) = started();
        let line = [b'x'; 1024];
        let room = MAX_QUEUED / line.len();
        // The queue's thread takes the first line and waits for a reader.
        queue.push(b"first");
        while !queue.lock().is_writing {
            thread::yield_now();
        }
        for _ in 0..room + 7 {
            queue.push(&line);
        }
        queue.flush(Duration::ZERO);
        assert_eq!(read.recv().unwrap(), "first");
        let report = read.recv().unwrap();
        assert!(
            report.contains(" WARN ") && report.contains(" 7 log lines were left out: stderr took no more"),
            "{report}"
        );
        for _ in 0..room {
            assert_eq!(read.recv().unwrap().len(), line.len());
        }
        queue.push(b"last");
        assert_eq!(read.recv().unwrap(), "last");
    }

    #[test]
    fn repeated_lines_are_counted_once_a_second() {
        let (queue, read) = started();
        for _ in 0..5 {
            queue.add_repeated();
        }
        let report = read.recv().unwrap();
        assert!(
            report.contains(" 5 log lines were left out: too many of the same kind"),
            "{report}"
        );
    }

    #[test]
    fn flush_waits_for_the_lines_written_before() {
        let (queue, read) = started();
        queue.push(b"line");
        let flushed = thread::spawn(move || queue.flush(Duration::from_secs(60)));
        assert_eq!(read.recv().unwrap(), "line");
        flushed.join().unwrap();
    }
}
