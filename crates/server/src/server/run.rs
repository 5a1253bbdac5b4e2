//! The server: binds the port, starts the workers, and runs the acceptor, the sweeper and the tailer until it stops.

use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use std::{fmt, io};

use nodetracker::RouteTable;
use thiserror::Error;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::{ClientAuth, Config, ConfigError, Origin, duration};
use crate::grpc::router::Router;
use crate::grpc::worker_counters::WorkerCounters;
use crate::http2::connection::ConnectionContext;
use crate::limits::Limits;
use crate::memory::MemoryBudget;
use crate::quota::Quotas;
use crate::refusal::{self, Refusals};
use crate::rpc::instance_id::InstanceId;
use crate::rpc::methods::methods;
use crate::rpc::shutdown::{DrainRequest, Shutdown};
use crate::rpc::watch::{Watches, tail};
use crate::server::accept::accept;
use crate::server::data_dir::OpenError;
use crate::server::diag::{Diagnostics, Readiness, STARTING};
use crate::server::drain::{Drained, drain};
use crate::server::listen::Listeners;
use crate::server::metrics::{Metrics, Sources};
use crate::server::snapshots::{self, SnapshotWriter};
use crate::server::sweeper::{SweepCounters, sweep};
use crate::server::worker::{Liveness, Workers};
use crate::snapshot_status::SnapshotStatus;
use crate::tls::{self, Certificates, FileWatch};

/// The pause before a task that has panicked begins again.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// Why a server cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used, for example because a key is missing.
    #[error(transparent)]
    Config(ConfigError),
    /// The machine cannot grant now what the configuration asks for. A port is taken, a name does not resolve, a file
    /// cannot be read, a key does not match its certificate, or another process uses the folder for snapshots.
    #[error(transparent)]
    Unavailable(ConfigError),
    /// The system started no thread.
    #[error("cannot start a thread: {0}")]
    Threads(#[from] io::Error),
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        match error.may_pass() {
            true => Self::Unavailable(error),
            false => Self::Config(error),
        }
    }
}

fn unavailable(origin: &Origin, reason: impl fmt::Display) -> StartError {
    StartError::Unavailable(ConfigError::new(origin.clone(), reason))
}

/// A server that listens on its port. Clients can connect at once, and are served when the server [runs](Server::run).
///
/// ```
/// use std::sync::Arc;
///
/// use nodetracker::RouteTable;
/// use nodetracker_server::{Config, Server};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let config = Config::default().listen_on("127.0.0.1:0");
/// let server = Server::bind(&config, Arc::new(RouteTable::new())).await.unwrap();
/// println!("listening on {}", server.local_addr());
/// // Ends as soon as the future given to it does.
/// let _ = server.run(async {}).await;
/// # });
/// ```
#[derive(Debug)]
pub struct Server {
    listeners: Listeners,
    certificates: Option<Certificates>,
    file_watch: Option<FileWatch>,
    workers: Workers,
    table: Arc<RouteTable>,
    watches: Arc<Watches>,
    shutdown: Shutdown,
    drain: DrainRequest,
    /// Cancelled when the server begins to stop.
    stopping: CancellationToken,
    limits: Limits,
    quotas: Arc<Quotas>,
    refusals: Arc<Refusals>,
    sweeps: Arc<SweepCounters>,
    readiness: Arc<Readiness>,
    /// `None` if the configuration has no `diag_addr`.
    diagnostics: Option<Diagnostics>,
    /// `None` if the configuration has no `data_dir`.
    snapshots: Option<SnapshotWriter>,
    draining: watch::Sender<bool>,
}

/// Runs a task of the server without end. If the task panics, begins the task again after a pause: the process, with
/// its table, outlives a bug in the task.
async fn restarted<T: Future<Output = Infallible>>(name: &str, mut task: impl FnMut() -> T) -> Infallible {
    loop {
        let mut running = pin!(task());
        // Tasks share only the table and state whose locks ignore poison, as calls do.
        poll_fn(
            |cx| match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx))) {
                Ok(Poll::Ready(never)) => match never {},
                Ok(Poll::Pending) => Poll::Pending,
                Err(_) => Poll::Ready(()),
            },
        )
        .await;
        error!(task = name, "a task of the server panicked, and begins again");
        sleep(RESTART_PAUSE).await;
    }
}

impl Server {
    /// Loads the certificates, starts the worker threads, and loads the last snapshot of the
    /// [`data_dir`](Config::data_dir). Then takes the port, and watches the files of the certificates. Has the [limits
    /// of the configuration](Config::limits).
    ///
    /// Another thread loads the snapshot, in some 0.1 s for a million routes. Meanwhile the diagnostics port
    /// responds, also with metrics. The snapshot is loaded only if the table has no routes. If the returned future is
    /// dropped meanwhile, the thread still loads the snapshot into the table.
    ///
    /// # Errors
    ///
    /// A key or certificate file cannot be used, the address cannot be listened on, or no thread can be started. Or
    /// another process uses the `data_dir` for longer than a tracker needs to stop.
    pub async fn bind(config: &Config, table: Arc<RouteTable>) -> Result<Self, StartError> {
        Self::bind_with_limits(config, table, config.limits()).await
    }

    /// Binds a server with other limits.
    ///
    /// # Errors
    ///
    /// As [`bind`](Server::bind).
    pub async fn bind_with_limits(config: &Config, table: Arc<RouteTable>, limits: Limits) -> Result<Self, StartError> {
        Self::start(config, table, limits, None).await
    }

    /// As [`bind`](Server::bind), on sockets that the caller has opened.
    pub(crate) async fn on(config: &Config, table: Arc<RouteTable>, listeners: Listeners) -> Result<Self, StartError> {
        Self::start(config, table, config.limits(), Some(listeners)).await
    }

    /// Listens on the configured address, unless the caller has opened sockets.
    async fn start(
        config: &Config,
        table: Arc<RouteTable>,
        limits: Limits,
        listeners: Option<Listeners>,
    ) -> Result<Self, StartError> {
        // If the caller has opened the sockets, their ports are not those of the configuration.
        if listeners.is_none() {
            config.check_ports()?;
        }
        let limits = limits.fitted();
        let readiness = Arc::<Readiness>::default();
        let diagnostics = match &config.diag_addr {
            Some(addr) => {
                let start = Diagnostics::start(&addr.value, Arc::clone(&readiness)).await;
                Some(start.map_err(|reason| unavailable(&addr.origin, reason))?)
            }
            None => None,
        };
        // First, because a wrong file should not cost the port.
        let certificates = Certificates::load(config)?;
        let snapshot_status = config.data_dir.as_ref().map(|_| Arc::<SnapshotStatus>::default());
        let (draining, watched) = watch::channel(false);
        let instance_id = InstanceId::draw();
        let watches = Watches::new(Arc::clone(&table), instance_id, &limits);
        let refusals = Arc::<Refusals>::default();
        let memory = MemoryBudget::new(limits.memory, Arc::clone(&refusals));
        let quotas = Quotas::new(&limits);
        let drain = DrainRequest::new(config.shutdown_delay.value, limits.drain);
        let (methods, shutdown, statistics) = methods(
            &table,
            &watches,
            instance_id,
            &memory,
            snapshot_status.clone(),
            &limits,
            &drain,
        );
        shutdown.serving().await;
        let counters = WorkerCounters::new(&methods);
        let router = Router::new(methods, limits.call);
        let methods = Arc::clone(router.methods());
        let workers = Workers::start(&ConnectionContext {
            router,
            tls: certificates.clone(),
            limits: limits.clone(),
            draining: watched,
            memory,
            turns: Arc::default(),
            counters,
        })?;
        let sweeps = Arc::<SweepCounters>::default();
        // Before the snapshot is loaded, which may take long: the metrics report that the server is not ready.
        if let Some(diagnostics) = &diagnostics {
            let metrics = Metrics::new(Sources {
                statistics,
                methods,
                counters: workers.counters(),
                sweeps: Arc::clone(&sweeps),
                readiness: Arc::clone(&readiness),
                max_connections: limits.max_connections,
                certificates: certificates.clone(),
                snapshot_interval: config.snapshot_interval.value,
            });
            diagnostics.publish(metrics, workers.liveness());
        }
        let data_dir = match config.data_dir.as_ref().zip(snapshot_status) {
            Some((dir, status)) => {
                readiness.not_ready("loading the snapshot");
                let patience = limits.drain.saturating_add(snapshots::LAST_SNAPSHOT_TIME);
                let open = snapshots::open(&dir.value, &table, &status, &readiness, patience).await?;
                let folder = open.map_err(|error| match error {
                    OpenError::NotAFolder(_) => ConfigError::new(dir.origin.clone(), error).into(),
                    OpenError::InUse(_) => unavailable(&dir.origin, error),
                })?;
                readiness.not_ready(STARTING);
                Some((folder, status))
            }
            None => None,
        };
        let listeners = match listeners {
            Some(listeners) => listeners,
            None => {
                let listen = Listeners::bind(&config.listen_addr.value).await;
                listen.map_err(|reason| unavailable(&config.listen_addr.origin, reason))?
            }
        };
        let addrs: Vec<_> = listeners.addrs().iter().map(ToString::to_string).collect();
        let interval = duration::format(table.keep_alive());
        info!(
            "listening on {}; a route lives {interval} without a refresh",
            addrs.join(" and ")
        );
        if certificates.is_none() {
            info!("no https_keypairs: calls travel in plaintext");
        }
        if config.client_auth.value == ClientAuth::Off {
            const OPEN: &str = "client_auth is off: every client may make every call";
            match listeners.addrs().iter().all(|addr| addr.ip().is_loopback()) {
                true => info!("{OPEN}"),
                false => warn!("{OPEN}, and clients may be on other machines"),
            }
        }
        if let Some(diagnostics) = &diagnostics
            && !diagnostics.addrs().iter().all(|addr| addr.ip().is_loopback())
        {
            warn!("diag_addr has no authentication, and clients may be on other machines");
        }
        let file_watch = certificates
            .clone()
            .map(|certificates| FileWatch::start(certificates, tls::INTERVAL))
            .transpose()?;
        let snapshots = match data_dir {
            Some((folder, status)) => {
                let interval = config.snapshot_interval.value;
                let table = Arc::clone(&table);
                Some(SnapshotWriter::start(folder, table, interval, status)?)
            }
            None => None,
        };
        Ok(Self {
            listeners,
            certificates,
            file_watch,
            workers,
            table,
            watches,
            shutdown,
            drain,
            stopping: CancellationToken::new(),
            limits,
            quotas,
            refusals,
            sweeps,
            readiness,
            diagnostics,
            snapshots,
            draining,
        })
    }

    /// Returns the first address that the server listens on, with the actual port if the configuration has port 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addrs()[0]
    }

    /// Returns all addresses that the server listens on: those of the configured name. All have the same port.
    #[must_use]
    pub fn local_addrs(&self) -> &[SocketAddr] {
        self.listeners.addrs()
    }

    /// Returns the addresses of the diagnostics port, which has the health, the readiness and the metrics over
    /// HTTP/1.1. Empty if the configuration has no [`diag_addr`](Config::diag_addr).
    #[must_use]
    pub fn diag_addrs(&self) -> &[SocketAddr] {
        self.diagnostics.as_ref().map_or(&[], Diagnostics::addrs)
    }

    /// Returns the certificates, which can be reloaded while the server runs. `None` if the server uses plaintext.
    #[must_use]
    pub fn certificates(&self) -> Option<Certificates> {
        self.certificates.clone()
    }

    /// Returns a token that is cancelled when the server begins to stop.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Returns a check of the worker threads, for a watchdog.
    pub(crate) fn liveness(&self) -> Liveness {
        self.workers.liveness()
    }

    /// Serves until `shutdown` ends or a client calls `AdminService.Drain`. Then serves for the configured delay with a
    /// health of NOT_SERVING, and asks the sessions to go to another tracker. Then drains: accepts no connection,
    /// finishes the calls in flight, writes a last snapshot, and returns. Cuts calls that take longer than the drain
    /// limit.
    ///
    /// Dropping this future cuts every connection.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        let Self {
            listeners,
            workers,
            file_watch: _file_watch,
            quotas,
            refusals,
            sweeps,
            readiness,
            // Serves until the end of this function.
            diagnostics: _diagnostics,
            snapshots,
            ..
        } = self;
        let Limits {
            max_connections,
            drain: deadline,
            ..
        } = self.limits;
        let slots = Arc::new(Semaphore::new(max_connections as usize));
        // Also if a second signal drops this future.
        let rest = refusals.report_rest();
        let stop = async {
            tokio::select! {
                () = shutdown => {}
                () = self.drain.requested() => {}
            }
            self.stopping.cancel();
            readiness.not_ready("the server is stopping");
            let delay = self.drain.shutdown_delay;
            // Clients that watch the health, and sessions, are notified before their connections drain.
            self.shutdown.begin(delay).await;
            if !delay.is_zero() {
                let delay = duration::format(delay);
                info!("the health is NOT_SERVING for {delay}, then the port closes");
            }
            sleep(delay).await;
        };
        // For the acceptor, which begins again after a panic.
        let (listeners, workers) = (Mutex::new(listeners), Mutex::new(workers));
        readiness.serving();
        tokio::select! {
            () = stop => {}
            never = restarted("accept", || async {
                let (mut listeners, mut workers) = (listeners.lock().await, workers.lock().await);
                let all = max_connections as usize;
                accept(&mut listeners, &mut workers, &slots, all, &quotas, &refusals).await
            }) => match never {},
            never = restarted("sweep", || sweep(&self.table, &self.watches, &sweeps)) => match never {},
            never = restarted("tail", || tail(&self.watches)) => match never {},
            never = restarted("report", || refusal::report(&refusals)) => match never {},
        }

        drop(listeners);
        let drained = drain(&slots, max_connections, deadline, &self.draining).await;
        workers.into_inner().stop().await;
        // After the last call, so that the snapshot has the changes of all calls.
        if let Some(snapshots) = snapshots {
            snapshots.finish().await;
        }
        drop(rest);
        drained.log();
        drained
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// `/healthz` reports such a worker, so the operator restarts the tracker, and needs the last snapshot.
    #[tokio::test]
    async fn a_stop_with_a_stuck_worker_writes_the_last_snapshot() {
        let folder = tempfile::TempDir::new().unwrap();
        let config = Config::default()
            .listen_on("127.0.0.1:0")
            .with("data_dir", folder.path().to_str().unwrap())
            .unwrap();
        let mut server = Server::bind(&config, Arc::default()).await.unwrap();
        let (stuck, release) = Workers::with_stuck_worker();
        server.workers = stuck;
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        let before = files();
        let drained = server.run(async {}).await;
        assert_eq!((drained, files()), (Drained::Completely, before + 1));
        drop(release);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_begins_again() {
        let mut begun = 0;
        let task = restarted("task", || {
            begun += 1;
            async move {
                tokio::task::yield_now().await;
                assert!(begun > 2, "on purpose");
                pending().await
            }
        });
        assert!(tokio::time::timeout(10 * RESTART_PAUSE, task).await.is_err());
        assert_eq!(begun, 3);
    }
}
