//! The configuration of `serve`: defaults, overridden by the file, overridden by flags.
//!
//! Every key of the file but `enabled` and `https_keypairs` has a flag.

pub(crate) mod duration;
mod file;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodetracker::{Builder, ExpiryBrake, RouteTable};
use thiserror::Error;

use crate::limits::Limits;
use crate::machine;

/// The tracker's section of the file.
const SECTION: &str = "node_tracker_service";

const ENABLED: &str = "enabled";
const LISTEN_ADDR: &str = "listen_addr";
const KEEP_ALIVE: &str = "proxy_keep_alive_interval";
const SHUTDOWN_DELAY: &str = "shutdown_delay";
const MAX_ROUTES: &str = "max_routes";
const MAX_ROUTES_PER_PROXY: &str = "max_routes_per_proxy";
const BRAKE_PERCENT: &str = "expiry_brake_percent";
const BRAKE_ROUTES: &str = "expiry_brake_routes";
const BRAKE_INTERVALS: &str = "expiry_brake_intervals";
const MAX_CONNECTIONS: &str = "max_connections";
const CLIENT_MEMORY: &str = "client_memory_mb";
const MAX_SHARE_PER_ADDRESS: &str = "max_share_per_address";
const KEYPAIRS: &str = "https_keypairs";

/// The default address to listen on.
pub const DEFAULT_LISTEN_ADDR: &str = "127.0.0.1:3029";

/// The default time that a route lives without a refresh.
pub const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);

/// The longest keep-alive interval.
pub const MAX_KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The source of a setting, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The setting has its default. The string is its key.
    Default(&'static str),
    /// A flag of the command line.
    Flag(&'static str),
    /// The file as a whole.
    File(PathBuf),
    /// A place in the file.
    Key {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// The key under `node_tracker_service`, if known.
        key: Option<&'static str>,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default(key) => write!(f, "{key} (default)"),
            Origin::Flag(flag) => f.write_str(flag),
            Origin::File(file) => write!(f, "{}", file.display()),
            Origin::Key { file, line, key } => {
                write!(f, "{}:{line}", file.display())?;
                key.map_or(Ok(()), |key| write!(f, ": {SECTION}.{key}"))
            }
        }
    }
}

/// An error in the configuration, as one line: the file, flag or key, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{origin}: {reason}")]
pub struct ConfigError {
    /// The setting.
    pub origin: Origin,
    /// What is wrong with it.
    pub reason: String,
}

impl ConfigError {
    pub(crate) fn new(origin: Origin, reason: impl fmt::Display) -> Self {
        // A library's message may have several lines.
        let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self { origin, reason }
    }
}

/// A value and its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting<T> {
    /// The value.
    pub value: T,
    /// The source.
    pub origin: Origin,
}

/// A private key and its certificate chain, both PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keypair {
    /// The private key.
    pub key_file: Setting<PathBuf>,
    /// The certificate, followed by its issuers.
    pub cert_file: Setting<PathBuf>,
}

/// The configuration of a server.
///
/// ```
/// use nodetracker_server::Config;
///
/// let config = Config::default().listen_on("127.0.0.1:0");
/// assert_eq!(config.listen_addr.value, "127.0.0.1:0");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The address to listen on, `host:port`. With port 0 the system chooses a port.
    pub listen_addr: Setting<String>,
    /// How long a route lives without a refresh. The [table](nodetracker::RouteTable) is built with it.
    pub keep_alive: Setting<Duration>,
    /// How long calls are served after the server was asked to stop, with a health of NOT_SERVING.
    ///
    /// Zero by default: no short delay fits every load balancer, since some ask for the health only every ten seconds
    /// or more. Clients that watch the health need no delay.
    pub shutdown_delay: Setting<Duration>,
    /// The most routes of the table.
    ///
    /// By default, an eighth of the memory that the process may use holds this many routes of nodes with UUIDs; at
    /// least 65,536 and at most 16,777,216. A node with a long name takes up to ten times as much memory.
    pub max_routes: Setting<usize>,
    /// The most routes of each proxy, so that one proxy cannot fill the table. Half of
    /// [`max_routes`](Self::max_routes) by default.
    pub max_routes_per_proxy: Option<Setting<usize>>,
    /// [`ExpiryBrake::percent`]; 15 by default.
    pub brake_percent: Setting<u32>,
    /// [`ExpiryBrake::min_routes`]; 100 by default.
    pub brake_routes: Setting<usize>,
    /// [`ExpiryBrake::max_intervals`]; 3 by default.
    pub brake_intervals: Setting<u32>,
    /// The most connections at one time; 10,000 by default. Replaces [`Limits::max_connections`].
    pub max_connections: Setting<u32>,
    /// The bytes that all clients together may make the server hold. Replaces [`Limits::memory`], which documents the
    /// default.
    pub client_memory: Setting<usize>,
    /// The percentage of each limit over all clients that one address may have; 50 by default. Replaces
    /// [`Limits::max_share_per_address`].
    pub max_share_per_address: Setting<u32>,
    /// The certificates for TLS. If empty, the server uses plaintext. Clients that ask for an unknown name get the
    /// first.
    pub keypairs: Vec<Keypair>,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        let brake = ExpiryBrake::default();
        Self {
            listen_addr: Setting {
                value: DEFAULT_LISTEN_ADDR.into(),
                origin: Origin::Default(LISTEN_ADDR),
            },
            keep_alive: Setting {
                value: DEFAULT_KEEP_ALIVE,
                origin: Origin::Default(KEEP_ALIVE),
            },
            shutdown_delay: Setting {
                value: Duration::ZERO,
                origin: Origin::Default(SHUTDOWN_DELAY),
            },
            max_routes: Setting {
                value: (machine::memory() / 8 / BYTES_PER_ROUTE).clamp(LEAST_ROUTES, MOST_DEFAULT_ROUTES),
                origin: Origin::Default(MAX_ROUTES),
            },
            max_routes_per_proxy: None,
            brake_percent: Setting {
                value: brake.percent,
                origin: Origin::Default(BRAKE_PERCENT),
            },
            brake_routes: Setting {
                value: brake.min_routes,
                origin: Origin::Default(BRAKE_ROUTES),
            },
            brake_intervals: Setting {
                value: brake.max_intervals,
                origin: Origin::Default(BRAKE_INTERVALS),
            },
            max_connections: Setting {
                value: limits.max_connections,
                origin: Origin::Default(MAX_CONNECTIONS),
            },
            client_memory: Setting {
                value: limits.memory,
                origin: Origin::Default(CLIENT_MEMORY),
            },
            max_share_per_address: Setting {
                value: limits.max_share_per_address,
                origin: Origin::Default(MAX_SHARE_PER_ADDRESS),
            },
            keypairs: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the file. Settings that the file lacks keep their defaults.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not YAML, or has no section for this service. The section is switched off, or has an
    /// unknown key or a bad value. `read` does not check key and certificate files.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| ConfigError::new(Origin::File(file.into()), format_args!("cannot read: {error}")))?;
        file::parse(file, &text)
    }

    /// Overrides the address to listen on, as `--listen` does.
    #[must_use]
    pub fn listen_on(mut self, addr: impl Into<String>) -> Self {
        self.listen_addr = Setting {
            value: addr.into(),
            origin: Origin::Flag("--listen"),
        };
        self
    }

    /// Overrides how long a route lives without a refresh, as `--proxy-keep-alive-interval` does.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.keep_alive = Setting {
            value: interval,
            origin: Origin::Flag("--proxy-keep-alive-interval"),
        };
        self
    }

    /// Overrides how long calls are served after the server was asked to stop, as `--shutdown-delay` does.
    #[must_use]
    pub fn shutdown_delay(mut self, delay: Duration) -> Self {
        self.shutdown_delay = Setting {
            value: delay,
            origin: Origin::Flag("--shutdown-delay"),
        };
        self
    }

    /// Overrides the most routes of the table, as `--max-routes` does.
    #[must_use]
    pub fn max_routes(mut self, routes: usize) -> Self {
        self.max_routes = Setting {
            value: routes,
            origin: Origin::Flag("--max-routes"),
        };
        self
    }

    /// Overrides the most routes of each proxy, as `--max-routes-per-proxy` does.
    #[must_use]
    pub fn max_routes_per_proxy(mut self, routes: usize) -> Self {
        self.max_routes_per_proxy = Some(Setting {
            value: routes,
            origin: Origin::Flag("--max-routes-per-proxy"),
        });
        self
    }

    /// Overrides the brake's percentage, as `--expiry-brake-percent` does.
    #[must_use]
    pub fn brake_percent(mut self, percent: u32) -> Self {
        self.brake_percent = Setting {
            value: percent,
            origin: Origin::Flag("--expiry-brake-percent"),
        };
        self
    }

    /// Overrides the brake's number of routes, as `--expiry-brake-routes` does.
    #[must_use]
    pub fn brake_routes(mut self, routes: usize) -> Self {
        self.brake_routes = Setting {
            value: routes,
            origin: Origin::Flag("--expiry-brake-routes"),
        };
        self
    }

    /// Overrides the brake's number of intervals, as `--expiry-brake-intervals` does.
    #[must_use]
    pub fn brake_intervals(mut self, intervals: u32) -> Self {
        self.brake_intervals = Setting {
            value: intervals,
            origin: Origin::Flag("--expiry-brake-intervals"),
        };
        self
    }

    /// Overrides the most connections, as `--max-connections` does.
    #[must_use]
    pub fn max_connections(mut self, connections: u32) -> Self {
        self.max_connections = Setting {
            value: connections,
            origin: Origin::Flag("--max-connections"),
        };
        self
    }

    /// Overrides the bytes that all clients may make the server hold, as `--client-memory-mb` does.
    #[must_use]
    pub fn client_memory(mut self, bytes: usize) -> Self {
        self.client_memory = Setting {
            value: bytes,
            origin: Origin::Flag("--client-memory-mb"),
        };
        self
    }

    /// Overrides the percentage of each limit that one address may have, as `--max-share-per-address` does. At 100,
    /// addresses have no limit.
    #[must_use]
    pub fn max_share_per_address(mut self, percent: u32) -> Self {
        self.max_share_per_address = Setting {
            value: percent,
            origin: Origin::Flag("--max-share-per-address"),
        };
        self
    }

    /// Returns the options of the server's table.
    pub fn table(&self) -> Builder {
        let routes = self.max_routes.value;
        let of_proxy = self.max_routes_per_proxy.as_ref();
        let brake = ExpiryBrake::default()
            .percent(self.brake_percent.value)
            .min_routes(self.brake_routes.value)
            .max_intervals(self.brake_intervals.value);
        RouteTable::builder()
            .keep_alive(self.keep_alive.value)
            .max_routes(routes)
            .max_routes_per_proxy(of_proxy.map_or(routes.div_ceil(2), |routes| routes.value))
            .expiry_brake(brake)
    }

    /// Returns the default limits, with those that are configured.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections.value,
            memory: self.client_memory.value,
            max_share_per_address: self.max_share_per_address.value,
            ..Limits::default()
        }
    }
}

/// The most bytes of a route whose node has a UUID.
const BYTES_PER_ROUTE: usize = 32;

/// Bounds of the default of [`Config::max_routes`].
const LEAST_ROUTES: usize = 1 << 16;
const MOST_DEFAULT_ROUTES: usize = 1 << 24;

/// Bytes of a megabyte.
const MEGABYTE: usize = 1_000_000;

/// The least budget for clients, in megabytes: a few large replies.
const LEAST_CLIENT_MEMORY: usize = 16;

/// Checks a number of routes.
pub(crate) fn max_routes(routes: u64) -> Result<usize, String> {
    let most = Builder::MOST_ROUTES;
    match usize::try_from(routes) {
        Ok(routes) if (1..=most).contains(&routes) => Ok(routes),
        _ => Err(format!("{routes} is not a number from 1 to {most}")),
    }
}

/// Checks the percentage of the expiry brake.
pub(crate) fn brake_percent(percent: u64) -> Result<u32, String> {
    u32::try_from(percent)
        .ok()
        .filter(|percent| (1..=100).contains(percent))
        .ok_or_else(|| format!("{percent} is not a percentage from 1 to 100 (100: no brake)"))
}

/// Checks the number of intervals of the expiry brake.
pub(crate) fn brake_intervals(intervals: u64) -> Result<u32, String> {
    const MOST: u32 = 100;
    u32::try_from(intervals)
        .ok()
        .filter(|intervals| (1..=MOST).contains(intervals))
        .ok_or_else(|| format!("{intervals} is not a number from 1 to {MOST} (1: no brake)"))
}

/// Checks a number of connections.
pub(crate) fn max_connections(connections: u64) -> Result<u32, String> {
    const MOST: u32 = 1_000_000;
    match u32::try_from(connections) {
        Ok(connections) if (1..=MOST).contains(&connections) => Ok(connections),
        _ => Err(format!("{connections} is not a number from 1 to {MOST}")),
    }
}

/// Checks the percentage of each limit that one address may have.
pub(crate) fn max_share_per_address(percent: u64) -> Result<u32, String> {
    match u32::try_from(percent) {
        Ok(percent) if (1..=100).contains(&percent) => Ok(percent),
        _ => Err(format!("{percent} is not a percentage from 1 to 100")),
    }
}

/// Converts a budget for clients from megabytes.
pub(crate) fn client_memory(megabytes: u64) -> Result<usize, String> {
    const MOST: usize = 1_000_000;
    match usize::try_from(megabytes) {
        Ok(megabytes) if (LEAST_CLIENT_MEMORY..=MOST).contains(&megabytes) => Ok(megabytes * MEGABYTE),
        _ => Err(format!(
            "{megabytes} is not a number of megabytes from {LEAST_CLIENT_MEMORY} to {MOST}"
        )),
    }
}

/// Checks that a string is `host:port`. Whether the host exists is checked when the server binds.
pub(crate) fn listen_addr(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not host:port")),
    }
}

/// Parses a keep-alive interval.
pub(crate) fn keep_alive(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < Duration::from_millis(1) {
        return Err(format!("{text:?} is too short: every route would be expired at once"));
    }
    if interval > MAX_KEEP_ALIVE {
        return Err(format!("{text:?} is too long: the limit is 365 days"));
    }
    Ok(interval)
}
