//! Snapshots of the routes, for a warm restart: loaded before the port is taken, written now and then, and at the end.
//!
//! A thread of its own writes, because a file system may block for seconds. The thread has the lowest priority and
//! rests after each block, so that calls wait for it as little as possible; the README has figures. If a snapshot
//! cannot be written, the server continues without it, and the log warns once. The thread tries again when the next
//! snapshot is due. The last snapshot is in a hurry: a thread of normal priority writes it, and the server waits for a
//! limited time.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use nodetracker::RouteTable;
use nodetracker::snapshot::SnapshotReport;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::{self, sleep, timeout};
use tracing::{debug, info, warn};

use crate::config::duration;
use crate::server::data_dir::{DataDir, OpenError};
use crate::server::diag::Readiness;
use crate::snapshot_status::SnapshotStatus;

/// After a block, the thread rests this many times as long as the block took.
const REST: u32 = 4;

/// The longest rest after a block, however long the block took.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// The longest wait besides the time of a drain. A server that stops waits for its last snapshot, and a server that
/// starts waits for the last snapshot of another server.
pub(crate) const LAST_SNAPSHOT_TIME: Duration = Duration::from_secs(30);

/// The pause between two attempts to open a folder that another process uses.
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// The lowest priority of a thread.
const LOWEST_PRIORITY: i32 = 19;

/// Opens the folder and loads the last snapshot. Waits for up to `patience` if another tracker uses the folder. That
/// tracker may have closed its port, and still finish its calls and write its last snapshot.
///
/// # Errors
///
/// No thread can be started, or the folder cannot be used; the inner error says why.
pub(super) async fn open(
    path: &Path,
    table: &Arc<RouteTable>,
    status: &Arc<SnapshotStatus>,
    readiness: &Readiness,
    patience: Duration,
) -> io::Result<Result<DataDir, OpenError>> {
    let begun = time::Instant::now();
    let mut waits = false;
    loop {
        match try_open(path.to_owned(), Arc::clone(table), Arc::clone(status)).await? {
            Err(error @ OpenError::InUse(_)) if begun.elapsed() < patience => {
                if !waits {
                    info!("{error}; waiting for up to {}", duration::format(patience));
                    readiness.not_ready("another process uses the data_dir");
                }
                waits = true;
                sleep(OPEN_PAUSE).await;
            }
            opened => return Ok(opened),
        }
    }
}

/// Opens the folder and loads the last snapshot, on a thread of its own. A file system may block for long, and the
/// calling thread has to answer probes and signals meanwhile.
async fn try_open(
    path: PathBuf,
    table: Arc<RouteTable>,
    status: Arc<SnapshotStatus>,
) -> io::Result<Result<DataDir, OpenError>> {
    let (done, opened) = oneshot::channel();
    let work = move || {
        let folder = DataDir::open(path).map(|mut folder| {
            load(&mut folder, &table, &status);
            folder
        });
        let _ = done.send(folder);
    };
    thread::Builder::new().name("snapshots".into()).spawn(work)?;
    opened.await.map_err(|_| io::Error::other("the thread has panicked"))
}

/// Loads the last snapshot. Logs how much was loaded, and whether snapshots can be written.
fn load(folder: &mut DataDir, table: &RouteTable, status: &SnapshotStatus) {
    let begun = Instant::now();
    match folder.load(table) {
        Some(report) => restored(&report, table, status, begun.elapsed()),
        None => info!(
            "{}: no snapshot was loaded, so no routes are known",
            folder.path().display()
        ),
    }
    if let Err(error) = folder.prepare() {
        failed(folder, status, &error);
    }
}

/// Records that a snapshot cannot be written. Logs the first of several failures.
fn failed(folder: &DataDir, status: &SnapshotStatus, error: &io::Error) {
    if !status.failed() {
        let path = folder.path().display();
        warn!("{path}: a snapshot cannot be written, so a restart would lose newer routes: {error}");
    }
}

fn restored(report: &SnapshotReport, table: &RouteTable, status: &SnapshotStatus, took: Duration) {
    status.restored(report.inserted);
    let downtime = Duration::from_secs(report.downtime.as_secs());
    info!(
        "restored {} routes of {} proxies in {took:.0?}, as of {} ago; those that are not confirmed expire in {}",
        report.inserted,
        report.proxies,
        duration::format(downtime),
        duration::format(table.keep_alive())
    );
    if report.incarnations_left_out > 0 {
        warn!(
            "{} ended incarnations have no room: late messages of these proxies are not refused; max_proxies may be too small",
            report.incarnations_left_out
        );
    }
}

/// The thread that writes snapshots. Dropping this ends the thread, without a further snapshot.
#[derive(Debug)]
pub(super) struct SnapshotWriter {
    /// The thread waits for the end of this channel.
    running: Sender<Infallible>,
    /// Whether the server waits for the last snapshot.
    is_last: Arc<AtomicBool>,
    thread: JoinHandle<Writing>,
}

impl SnapshotWriter {
    /// Starts the thread, which writes a snapshot after each `interval`.
    pub(super) fn start(
        folder: DataDir,
        table: Arc<RouteTable>,
        interval: Duration,
        status: Arc<SnapshotStatus>,
    ) -> io::Result<Self> {
        let (running, ended) = mpsc::channel();
        let is_last = Arc::<AtomicBool>::default();
        let mut writing = Writing { folder, table, status };
        let stops = Arc::clone(&is_last);
        let work = move || {
            // A hint: without it, the workers wait for the thread a little longer.
            let _ = setpriority_process(Some(gettid()), LOWEST_PRIORITY);
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                writing.write_caught(paced(&stops));
            }
            writing
        };
        let thread = thread::Builder::new().name("snapshots".into()).spawn(work)?;
        Ok(Self {
            running,
            is_last,
            thread,
        })
    }

    /// Writes the last snapshot. Returns when it is on the disk or has failed, or gives up after
    /// [`LAST_SNAPSHOT_TIME`].
    pub(super) async fn finish(self) {
        let Self {
            running,
            is_last,
            thread,
        } = self;
        // Relaxed: the flag guards no data.
        is_last.store(true, Ordering::Relaxed);
        drop(running);
        let (done, written) = oneshot::channel();
        // Another thread, because the first thread cannot raise its priority again. A panic of the first thread is
        // logged.
        let work = move || {
            if let Ok(mut writing) = thread.join() {
                writing.write_caught(|| Ok(()));
            }
            let _ = done.send(());
        };
        if let Err(error) = thread::Builder::new().name("last snapshot".into()).spawn(work) {
            return warn!("the last snapshot is not written: cannot start a thread: {error}");
        }
        if timeout(LAST_SNAPSHOT_TIME, written).await.is_err() {
            let limit = duration::format(LAST_SNAPSHOT_TIME);
            warn!("the last snapshot was not written within {limit}: a restart loses newer routes");
        }
    }
}

/// Returns a function that rests after each block, so that the workers hardly notice the thread. Ends a snapshot that
/// the last snapshot is about to replace.
fn paced(is_last: &AtomicBool) -> impl FnMut() -> io::Result<()> {
    let mut block = Instant::now();
    move || {
        // Relaxed: as in `finish`.
        if is_last.load(Ordering::Relaxed) {
            return Err(io::Error::other(Replaced));
        }
        thread::sleep((block.elapsed() * REST).min(LONGEST_REST));
        block = Instant::now();
        Ok(())
    }
}

/// The state of the thread.
#[derive(Debug)]
struct Writing {
    folder: DataDir,
    table: Arc<RouteTable>,
    status: Arc<SnapshotStatus>,
}

impl Writing {
    /// As [`write`](Self::write). A panic, which is logged, counts as a snapshot that cannot be written: otherwise the
    /// thread would end, and no metric would show it.
    fn write_caught(&mut self, pace: impl FnMut() -> io::Result<()>) {
        // The next snapshot begins from the start, and the counters have no critical sections.
        if catch_unwind(AssertUnwindSafe(|| self.write(pace))).is_err() {
            failed(&self.folder, &self.status, &io::Error::other("the thread has panicked"));
        }
    }

    fn write(&mut self, pace: impl FnMut() -> io::Result<()>) {
        let begun = Instant::now();
        let path = self.folder.path().display().to_string();
        match self.folder.write(&self.table, pace) {
            Ok(size) => {
                let took = begun.elapsed();
                if self.status.succeeded(size.bytes, took) {
                    info!("{path}: snapshots are written again");
                }
                debug!(
                    "{path}: wrote {} routes, {} bytes, in {took:.0?}",
                    size.routes, size.bytes
                );
            }
            Err(error) if is_replaced(&error) => {}
            Err(error) => failed(&self.folder, &self.status, &error),
        }
    }
}

/// Why a snapshot ends early if the server stops.
#[derive(Debug, Error)]
#[error("the last snapshot replaces this snapshot")]
struct Replaced;

fn is_replaced(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Replaced>())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use tempfile::TempDir;

    use super::*;

    fn writing(folder: &TempDir) -> Writing {
        Writing {
            folder: DataDir::open(folder.path().into()).unwrap(),
            table: Arc::default(),
            status: Arc::default(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_does_not_hold_up_the_stop() {
        let folder = TempDir::new().unwrap();
        let writing = writing(&folder);
        let status = Arc::clone(&writing.status);
        let (disk, responds) = mpsc::channel::<Infallible>();
        let hangs = move || {
            let _ = responds.recv();
            writing
        };
        let writer = SnapshotWriter {
            running: mpsc::channel().0,
            is_last: Arc::default(),
            thread: thread::spawn(hangs),
        };
        let begun = time::Instant::now();
        writer.finish().await;
        assert!(begun.elapsed() >= LAST_SNAPSHOT_TIME);
        assert_eq!(status.successes(), 0);
        drop(disk);
    }

    #[test]
    fn a_panic_is_a_snapshot_that_failed() {
        let folder = TempDir::new().unwrap();
        let mut writing = writing(&folder);
        let status = Arc::clone(&writing.status);
        writing.write_caught(|| panic!("on purpose"));
        assert_eq!((status.failures(), status.is_failing()), (1, true));
        writing.write_caught(|| Ok(()));
        assert_eq!((status.successes(), status.is_failing()), (1, false));
    }

    #[test]
    fn the_last_snapshot_replaces_a_snapshot_that_is_being_written() {
        let folder = TempDir::new().unwrap();
        let mut writing = writing(&folder);
        let status = Arc::clone(&writing.status);
        writing.write(paced(&AtomicBool::new(true)));
        assert_eq!((status.successes(), status.failures()), (0, 0));
        writing.write(paced(&AtomicBool::new(false)));
        assert_eq!((status.successes(), status.failures()), (1, 0));
    }
}
