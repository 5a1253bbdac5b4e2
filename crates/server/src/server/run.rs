//! The server: binds the port, starts the workers, and runs the acceptor, the sweeper and the tailer until it stops.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use nodetracker::RouteTable;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tracing::info;

use crate::config::{Config, ConfigError};
use crate::grpc::router::Router;
use crate::http2::connection::ConnectionContext;
use crate::limits::Limits;
use crate::rpc::health::Health;
use crate::rpc::instance_id::InstanceId;
use crate::rpc::methods::methods;
use crate::rpc::watch::{Watches, tail};
use crate::server::accept::accept;
use crate::server::drain::{Drained, drain};
use crate::server::sweeper::sweep;
use crate::server::worker::Workers;
use crate::tls;

/// Why a server cannot start.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration cannot be used, for example because a port is taken or a key is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The system started no thread.
    #[error("cannot start the worker threads: {0}")]
    Workers(#[from] io::Error),
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
    listener: TcpListener,
    local_addr: SocketAddr,
    workers: Workers,
    table: Arc<RouteTable>,
    watches: Arc<Watches>,
    health: Health,
    limits: Limits,
    draining: watch::Sender<bool>,
}

impl Server {
    /// Loads the certificates, takes the port and starts the worker threads, with the [default limits](Limits).
    ///
    /// # Errors
    ///
    /// A key or certificate file cannot be used, the address cannot be listened on, or no thread can be started.
    pub async fn bind(config: &Config, table: Arc<RouteTable>) -> Result<Self, StartError> {
        Self::bind_with_limits(config, table, Limits::default()).await
    }

    /// Binds a server with other limits.
    ///
    /// # Errors
    ///
    /// As [`bind`](Server::bind).
    pub async fn bind_with_limits(config: &Config, table: Arc<RouteTable>, limits: Limits) -> Result<Self, StartError> {
        let tls = match config.keypairs.as_slice() {
            [] => None,
            keypairs => Some(tls::server_config(keypairs)?),
        };
        let (listener, local_addr) = listen(config).await?;
        let (draining, watched) = watch::channel(false);
        let instance_id = InstanceId::draw();
        let watches = Watches::new(Arc::clone(&table), instance_id, limits.watch_resume);
        let (methods, health) = methods(&table, &watches, instance_id, &limits);
        health.serving().await;
        let router = Router::new(methods, limits.call);
        let interval = humantime::format_duration(table.keep_alive());
        info!("listening on {local_addr}; a route lives {interval} without a refresh");
        if tls.is_none() {
            info!("no https_keypairs: calls travel in plaintext");
        }
        let workers = Workers::start(&ConnectionContext {
            router,
            tls,
            limits: limits.clone(),
            draining: watched,
        })?;
        Ok(Self {
            listener,
            local_addr,
            workers,
            table,
            watches,
            health,
            limits,
            draining,
        })
    }

    /// Returns the address that the server listens on, with the actual port if the configuration has port 0.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves until `shutdown` ends, then drains: accepts no connection, finishes the calls in flight, and returns. Cuts calls
    /// that take longer than the drain limit.
    ///
    /// Dropping this future cuts every connection.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Drained {
        let slots = Arc::new(Semaphore::new(self.limits.max_connections as usize));
        tokio::select! {
            () = shutdown => {}
            never = accept(&self.listener, &mut self.workers, &slots) => match never {},
            never = sweep(&self.table, &self.watches) => match never {},
            never = tail(&self.watches) => match never {},
        }

        drop(self.listener);
        let Limits {
            max_connections,
            drain: deadline,
            ..
        } = self.limits;
        let drained = drain(&slots, max_connections, deadline, &self.health, &self.draining).await;
        self.workers.stop();
        drained.log();
        drained
    }
}

async fn listen(config: &Config) -> Result<(TcpListener, SocketAddr), ConfigError> {
    let addr = &config.listen_addr;
    let listening = async {
        let listener = TcpListener::bind(&addr.value).await?;
        let local_addr = listener.local_addr()?;
        io::Result::Ok((listener, local_addr))
    };
    listening.await.map_err(|error| {
        ConfigError::new(
            addr.origin.clone(),
            format_args!("cannot listen on {}: {error}", addr.value),
        )
    })
}
