//! Snapshots of the routes, for a warm restart: loaded before the port is taken, written now and then, and at the end.
//!
//! A thread of its own writes, because a file system may block for seconds. The thread has the lowest priority and
//! rests after each block, so that the workers hardly notice it. If a snapshot cannot be written, the server continues
//! without it, the log warns once, and the thread tries again when the next snapshot is due.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};
use std::{io, thread};

use nodetracker::RouteTable;
use nodetracker::snapshot::SnapshotReport;
use rustix::process::setpriority_process;
use rustix::thread::gettid;
use tokio::sync::oneshot;
use tokio::time::{self, sleep};
use tracing::{debug, info, warn};

use crate::config::duration;
use crate::server::data_dir::{DataDir, OpenError};
use crate::server::diag::Readiness;
use crate::snapshot_status::SnapshotStatus;

/// After a block, the thread rests this many times as long as the block took.
const REST: u32 = 4;

/// The longest rest after a block, however long the block took.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// How long a start waits for another tracker's last snapshot, besides the time of a drain.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// The pause between two attempts to open a folder that another process uses.
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// The lowest priority of a thread.
const LOWEST_PRIORITY: i32 = 19;

/// Opens the folder and loads the last snapshot. Waits for up to `patience` if another tracker uses the folder: the
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

/// Opens the folder and loads the last snapshot, on a thread of its own: a file system may block for long, and the
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

/// Loads the last snapshot. Logs what came back, and if no snapshot can be written.
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
}

/// The thread that writes snapshots. Dropping this ends the thread, without a further snapshot.
#[derive(Debug)]
pub(super) struct SnapshotWriter {
    /// Asks for the last snapshot.
    last: Sender<oneshot::Sender<()>>,
    is_hurried: Arc<AtomicBool>,
}

impl SnapshotWriter {
    /// Starts the thread, which writes a snapshot after each `interval`.
    pub(super) fn start(
        folder: DataDir,
        table: Arc<RouteTable>,
        interval: Duration,
        status: Arc<SnapshotStatus>,
    ) -> io::Result<Self> {
        let (last, asked) = mpsc::channel::<oneshot::Sender<()>>();
        let is_hurried = Arc::<AtomicBool>::default();
        let mut writing = Writing {
            folder,
            table,
            status,
            is_hurried: Arc::clone(&is_hurried),
        };
        let work = move || {
            // A hint: without it, the workers wait for the thread a little longer.
            let _ = setpriority_process(Some(gettid()), LOWEST_PRIORITY);
            loop {
                match asked.recv_timeout(interval) {
                    Err(RecvTimeoutError::Timeout) => writing.write(),
                    Ok(done) => {
                        writing.write();
                        let _ = done.send(());
                        return;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        thread::Builder::new().name("snapshots".into()).spawn(work)?;
        Ok(Self { last, is_hurried })
    }

    /// Writes the last snapshot, and returns when it is on the disk or has failed.
    pub(super) async fn finish(self) {
        // Relaxed: the flag guards no data.
        self.is_hurried.store(true, Ordering::Relaxed);
        let (done, written) = oneshot::channel();
        if self.last.send(done).is_ok() {
            let _ = written.await;
        }
    }
}

/// What the thread works with.
struct Writing {
    folder: DataDir,
    table: Arc<RouteTable>,
    status: Arc<SnapshotStatus>,
    /// Whether the server waits for the last snapshot.
    is_hurried: Arc<AtomicBool>,
}

impl Writing {
    fn write(&mut self) {
        let begun = Instant::now();
        let mut block = begun;
        let pace = || {
            // Relaxed: as in `finish`.
            if !self.is_hurried.load(Ordering::Relaxed) {
                thread::sleep((block.elapsed() * REST).min(LONGEST_REST));
            }
            block = Instant::now();
        };
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
            Err(error) => failed(&self.folder, &self.status, &error),
        }
    }
}
