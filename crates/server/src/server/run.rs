//! The server: binds the port, starts the workers, and runs the acceptor, the sweeper and the tailer until it stops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use nodetracker::RouteTable;
use thiserror::Error;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{Config, ConfigError, duration};
use crate::grpc::router::Router;
use crate::http2::connection::ConnectionContext;
use crate::limits::Limits;
use crate::memory::MemoryBudget;
use crate::quota::Quotas;
use crate::refusal::Refusals;
use crate::rpc::instance_id::InstanceId;
use crate::rpc::methods::methods;
use crate::rpc::shutdown::{DrainRequest, Shutdown};
use crate::rpc::watch::{Watches, tail};
use crate::server::accept::accept;
use crate::server::drain::{Drained, drain};
use crate::server::listen::Listeners;
use crate::server::sweeper::sweep;
use crate::server::worker::{Liveness, Workers};
use crate::tls::Certificates;

/// Why a server cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used, for example because a port is taken or a key is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// TLS cannot be used.
    #[error("cannot use TLS: {0}")]
    Tls(rustls::Error),
    /// The system started no thread.
    #[error("cannot start the worker threads: {0}")]
    Workers(#[from] io::Error),
}

/// Loads the certificates of a configuration, if there are any.
fn load(config: &Config) -> Result<Option<Certificates>, ConfigError> {
    match config.keypairs.as_slice() {
        [] => Ok(None),
        keypairs => Certificates::load(keypairs).map(Some),
    }
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
    draining: watch::Sender<bool>,
}

impl Server {
    /// Loads the certificates, takes the port and starts the worker threads, with the [limits of the
    /// configuration](Config::limits).
    ///
    /// # Errors
    ///
    /// A key or certificate file cannot be used, the address cannot be listened on, or no thread can be started.
    pub async fn bind(config: &Config, table: Arc<RouteTable>) -> Result<Self, StartError> {
        Self::bind_with_limits(config, table, config.limits()).await
    }

    /// Binds a server with other limits.
    ///
    /// # Errors
    ///
    /// As [`bind`](Server::bind).
    pub async fn bind_with_limits(config: &Config, table: Arc<RouteTable>, limits: Limits) -> Result<Self, StartError> {
        // First, because a wrong file should not cost the port.
        let certificates = load(config)?;
        let listen = Listeners::bind(&config.listen_addr.value).await;
        let listeners = listen.map_err(|reason| ConfigError::new(config.listen_addr.origin.clone(), reason))?;
        Self::start(config, table, limits, certificates, listeners).await
    }

    /// As [`bind`](Server::bind), on sockets that the caller has opened.
    pub(crate) async fn on(config: &Config, table: Arc<RouteTable>, listeners: Listeners) -> Result<Self, StartError> {
        Self::start(config, table, config.limits(), load(config)?, listeners).await
    }

    async fn start(
        config: &Config,
        table: Arc<RouteTable>,
        limits: Limits,
        certificates: Option<Certificates>,
        listeners: Listeners,
    ) -> Result<Self, StartError> {
        let tls = match &certificates {
            Some(certificates) => Some(certificates.server_config().map_err(StartError::Tls)?),
            None => None,
        };
        let (draining, watched) = watch::channel(false);
        let instance_id = InstanceId::draw();
        let watches = Watches::new(Arc::clone(&table), instance_id, limits.watch_resume);
        let refusals = Arc::<Refusals>::default();
        let memory = MemoryBudget::new(limits.memory, Arc::clone(&refusals));
        let quotas = Quotas::new(&limits);
        let drain = DrainRequest::new(config.shutdown_delay.value, limits.drain);
        let (methods, shutdown) = methods(&table, &watches, instance_id, &memory, &limits, &drain);
        shutdown.serving().await;
        let router = Router::new(methods, limits.call);
        let addrs: Vec<_> = listeners.addrs().iter().map(ToString::to_string).collect();
        let interval = duration::format(table.keep_alive());
        info!(
            "listening on {}; a route lives {interval} without a refresh",
            addrs.join(" and ")
        );
        if tls.is_none() {
            info!("no https_keypairs: calls travel in plaintext");
        }
        let workers = Workers::start(&ConnectionContext {
            router,
            tls,
            limits: limits.clone(),
            draining: watched,
            memory,
            turns: Arc::default(),
        })?;
        Ok(Self {
            listeners,
            certificates,
            workers,
            table,
            watches,
            shutdown,
            drain,
            stopping: CancellationToken::new(),
            limits,
            quotas,
            refusals,
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
    /// finishes the calls in flight, and returns. Cuts calls that take longer than the drain limit.
    ///
    /// Dropping this future cuts every connection.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Drained {
        let Self {
            mut listeners,
            mut workers,
            quotas,
            refusals,
            ..
        } = self;
        let Limits {
            max_connections,
            drain: deadline,
            ..
        } = self.limits;
        let slots = Arc::new(Semaphore::new(max_connections as usize));
        let stop = async {
            tokio::select! {
                () = shutdown => {}
                () = self.drain.requested() => {}
            }
            self.stopping.cancel();
            let delay = self.drain.shutdown_delay;
            // Clients that watch the health, and sessions, are notified before their connections drain.
            self.shutdown.begin(delay).await;
            if !delay.is_zero() {
                let delay = duration::format(delay);
                info!("the health is NOT_SERVING for {delay}, then the port closes");
            }
            sleep(delay).await;
        };
        tokio::select! {
            () = stop => {}
            never = accept(&mut listeners, &mut workers, &slots, &quotas, &refusals) => match never {},
            never = sweep(&self.table, &self.watches) => match never {},
            never = tail(&self.watches) => match never {},
        }

        drop(listeners);
        let drained = drain(&slots, max_connections, deadline, &self.draining).await;
        workers.stop();
        drained.log();
        drained
    }
}
