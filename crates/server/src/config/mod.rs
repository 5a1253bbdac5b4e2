//! The configuration of `serve`: defaults, overridden by the file, by environment variables, and by flags, in this
//! order.

mod client_auth;
pub(crate) mod duration;
mod file;
pub(crate) mod keys;
mod values;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use nodetracker::{Builder, ExpiryBrake, RouteTable};
use thiserror::Error;

use crate::host;
use crate::limits::Limits;
use crate::log::{LogFormat, LogLevel};

pub use client_auth::{ClientAuth, ClientIdentity};

/// The tracker's section of the file.
const SECTION: &str = "node_tracker_service";

/// The default address to listen on.
pub const DEFAULT_LISTEN_ADDR: &str = "127.0.0.1:3029";

/// The default time that a route lives without a refresh.
pub const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);

/// The default time between two snapshots.
const DEFAULT_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(60);

/// The longest keep-alive interval.
pub const MAX_KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The source of a setting, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The setting has its default. The string is its key.
    Default(&'static str),
    /// The setting was set by the program, or by the flag of its key. The string is the key.
    Flag(&'static str),
    /// The environment variable of a key.
    Variable(&'static str),
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
            Origin::Flag(key) => write!(f, "--{}", keys::flag(key)),
            Origin::Variable(key) => f.write_str(&keys::variable(key)),
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
    /// Whether the setting may be usable later, without a change of the configuration.
    may_pass: bool,
}

impl ConfigError {
    pub(crate) fn new(origin: Origin, reason: impl fmt::Display) -> Self {
        // A library's message may have several lines.
        let reason = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self {
            origin,
            reason,
            may_pass: false,
        }
    }

    /// Returns the error with a note whether the setting may be usable later.
    pub(crate) fn that_may_pass(self, may_pass: bool) -> Self {
        Self { may_pass, ..self }
    }

    /// Reports whether the setting may be usable later, without a change of the configuration. For example, a file
    /// cannot be read because its file system is not mounted yet. A service manager may then try again.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        self.may_pass
    }
}

/// Keys with the text of their values.
pub(crate) type Given = Vec<(&'static str, String)>;

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

impl fmt::Display for Keypair {
    /// Writes the pair as the flag has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}",
            self.key_file.value.display(),
            self.cert_file.value.display()
        )
    }
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
    /// By default, an eighth of the memory that the process may use holds this many routes of nodes with UUIDs. The
    /// default is at least 65,536 and at most 16,777,216. The names of nodes take more memory, up to
    /// [`max_text_bytes`](Self::max_text_bytes).
    pub max_routes: Setting<usize>,
    /// The most proxies of the table.
    ///
    /// By default, a sixteenth of the memory that the process may use holds this many proxies, with their texts and
    /// their ended incarnations. The default is at least 4,096 and at most 1,048,576.
    pub max_proxies: Setting<usize>,
    /// The bytes of the table's names, IDs and addresses ([`Builder::max_text_bytes`]). An eighth of the memory that
    /// the process may use by default.
    pub max_text_bytes: Setting<usize>,
    /// The most routes of each proxy, so that one proxy cannot fill the table. Half of
    /// [`max_routes`](Self::max_routes) by default.
    pub max_routes_per_proxy: Option<Setting<usize>>,
    /// [`ExpiryBrake::percent`]; 15 by default.
    pub brake_percent: Setting<u32>,
    /// [`ExpiryBrake::min_routes`]; 100 by default.
    pub brake_routes: Setting<usize>,
    /// [`ExpiryBrake::max_intervals`]; 3 by default.
    pub brake_intervals: Setting<u32>,
    /// The folder for snapshots of the routes, from which the next start loads them. No snapshots by default.
    pub data_dir: Option<Setting<PathBuf>>,
    /// The time between two snapshots; a minute by default.
    pub snapshot_interval: Setting<Duration>,
    /// The most connections at one time; 10,000 by default. Replaces [`Limits::max_connections`].
    pub max_connections: Setting<u32>,
    /// The bytes that all clients together may make the server hold. Replaces [`Limits::memory`], which documents the
    /// default.
    pub client_memory: Setting<usize>,
    /// The percentage of each limit over all clients that one address may have, also of the table's routes and proxies;
    /// 50 by default. Replaces [`Limits::max_share_per_client`].
    pub max_share_per_client: Setting<u32>,
    /// The most watches at one time; 10,000 by default. Replaces [`Limits::max_watches`].
    pub max_watches: Setting<usize>,
    /// The bytes of the nodes that watches name. Replaces [`Limits::max_watched_size`], which documents the default.
    pub max_watched_size: Setting<usize>,
    /// The certificates for TLS. If empty, the server uses plaintext. Clients that ask for an unknown name get the
    /// first.
    pub keypairs: Vec<Keypair>,
    /// The PEM file of the authorities that certify clients. [`client_auth`](Self::client_auth) needs the file.
    pub client_ca_file: Option<Setting<PathBuf>>,
    /// Whether clients prove who they are with a certificate.
    pub client_auth: Setting<ClientAuth>,
    /// Where a client's certificate has the client's role and the proxy's ID.
    pub client_identity: Setting<ClientIdentity>,
    /// The address of the diagnostics port, `host:port`, which has no authentication and no TLS. Without an address,
    /// the default, there is no such port.
    pub diag_addr: Option<Setting<String>>,
    /// How the lines of the log look.
    pub log_format: Setting<LogFormat>,
    /// What the process logs.
    pub log_level: Setting<LogLevel>,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        let brake = ExpiryBrake::default();
        let memory = host::memory();
        Self {
            listen_addr: default("listen_addr", DEFAULT_LISTEN_ADDR.into()),
            keep_alive: default("proxy_keep_alive_interval", DEFAULT_KEEP_ALIVE),
            shutdown_delay: default("shutdown_delay", Duration::ZERO),
            max_routes: default("max_routes", max_routes(memory)),
            max_proxies: default("max_proxies", max_proxies(memory)),
            max_text_bytes: default("max_text_mb", memory / 8),
            max_routes_per_proxy: None,
            brake_percent: default("expiry_brake_percent", brake.percent),
            brake_routes: default("expiry_brake_routes", brake.min_routes),
            brake_intervals: default("expiry_brake_intervals", brake.max_intervals),
            data_dir: None,
            snapshot_interval: default("snapshot_interval", DEFAULT_SNAPSHOT_INTERVAL),
            max_connections: default("max_connections", limits.max_connections),
            client_memory: default("client_memory_mb", limits.memory),
            max_share_per_client: default("max_share_per_client", limits.max_share_per_client),
            max_watches: default("max_watches", limits.max_watches),
            max_watched_size: default("max_watched_mb", limits.max_watched_size),
            keypairs: Vec::new(),
            client_ca_file: None,
            client_auth: default("client_auth", ClientAuth::default()),
            client_identity: default("client_identity", ClientIdentity::default()),
            diag_addr: None,
            log_format: default("log_format", LogFormat::default()),
            log_level: default("log_level", LogLevel::default()),
        }
    }
}

/// Returns a setting that keeps its default.
fn default<T>(key: &'static str, value: T) -> Setting<T> {
    let origin = Origin::Default(key);
    Setting { value, origin }
}

/// Reports whether a value of a key is the key's default.
fn is_default(key: &'static str, value: &str) -> bool {
    let mut config = Config::default();
    let set = config.set(key, value, Origin::Default(key));
    set.is_ok() && config == Config::default()
}

impl Config {
    /// Reads the file. Settings that the file lacks keep their defaults.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is not YAML, or has no section for this service. The section is switched off, or has an
    /// unknown key or a bad value. `read` does not check key and certificate files.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        Self::read_with_changes(file).map(|(config, _)| config)
    }

    /// As [`read`](Self::read). Also returns the keys whose values differ from the defaults, with these values as text,
    /// in the order of the file.
    pub(crate) fn read_with_changes(file: &Path) -> Result<(Self, Given), ConfigError> {
        let unreadable = |error: io::Error| {
            use io::ErrorKind::{InvalidData, InvalidInput, IsADirectory, NotADirectory};
            let may_pass = !matches!(error.kind(), InvalidData | InvalidInput | IsADirectory | NotADirectory);
            ConfigError::new(Origin::File(file.into()), format_args!("cannot read: {error}")).that_may_pass(may_pass)
        };
        let text = std::fs::read_to_string(file).map_err(unreadable)?;
        let (config, given) = file::parse(file, &text)?;
        let changes = given.into_iter().filter(|(key, value)| !is_default(key, value));
        Ok((config, changes.collect()))
    }

    /// Sets a key to a value, as its flag does.
    ///
    /// ```
    /// use nodetracker_server::Config;
    ///
    /// let config = Config::default().with("max_routes_per_proxy", "1000")?;
    /// assert!(config.with("max_connections", "many").is_err());
    /// # Ok::<(), nodetracker_server::ConfigError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// There is no such key, or the value cannot be used.
    pub fn with(mut self, key: &'static str, value: &str) -> Result<Self, ConfigError> {
        self.set(key, value, Origin::Flag(key))?;
        Ok(self)
    }

    /// Sets the address to listen on. [`Server::bind`](crate::Server::bind) checks the address.
    #[must_use]
    pub fn listen_on(mut self, addr: impl Into<String>) -> Self {
        self.listen_addr = Setting {
            value: addr.into(),
            origin: Origin::Flag("listen_addr"),
        };
        self
    }

    pub(crate) fn set(&mut self, key: &str, value: &str, origin: Origin) -> Result<(), ConfigError> {
        let set = match keys::find(key) {
            Some(key) => key.set(self, value, &origin),
            None => Err("there is no such key".to_owned()),
        };
        set.map_err(|reason| ConfigError::new(origin, reason))
    }

    /// Checks that the diagnostics port is not the port for calls: a second attempt to listen on it would fail, too.
    pub(crate) fn check_ports(&self) -> Result<(), ConfigError> {
        let Some(diag) = &self.diag_addr else { return Ok(()) };
        let host_and_port = |addr: &str| {
            let (host, port) = addr.rsplit_once(':')?;
            Some((host.to_ascii_lowercase(), port.parse::<u16>().ok()?))
        };
        let (calls, pages) = (host_and_port(&self.listen_addr.value), host_and_port(&diag.value));
        if let Some(((calls, port), (pages, same))) = calls.zip(pages)
            && port == same
            && port != 0
            // An address without a host is every address of the machine.
            && (calls == pages || calls.is_empty() || pages.is_empty())
        {
            let listen = &self.listen_addr.value;
            let reason = format_args!(
                "{:?} is the port of listen_addr ({listen:?}): diag_addr needs its own",
                diag.value
            );
            return Err(ConfigError::new(diag.origin.clone(), reason));
        }
        Ok(())
    }

    /// Returns the options of the server's table.
    pub fn table(&self) -> Builder {
        let routes = self.max_routes.value;
        let of_proxy = self.max_routes_per_proxy.as_ref();
        let brake = ExpiryBrake::default()
            .percent(self.brake_percent.value)
            .min_routes(self.brake_routes.value)
            .max_intervals(self.brake_intervals.value);
        let builder = match self.max_share_per_client.value {
            100.. => RouteTable::builder(),
            percent => RouteTable::builder()
                .max_routes_per_client(share(routes, percent))
                .max_proxies_per_client(share(self.max_proxies.value, percent)),
        };
        builder
            .keep_alive(self.keep_alive.value)
            .max_routes(routes)
            .max_proxies(self.max_proxies.value)
            .max_text_bytes(self.max_text_bytes.value)
            .max_routes_per_proxy(of_proxy.map_or(routes.div_ceil(2), |routes| routes.value))
            .expiry_brake(brake)
    }

    /// Returns the default limits, with those that are configured.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits {
            max_connections: self.max_connections.value,
            memory: self.client_memory.value,
            max_share_per_client: self.max_share_per_client.value,
            max_watches: self.max_watches.value,
            max_watched_size: self.max_watched_size.value,
            ..Limits::default()
        }
    }
}

/// A percentage of a limit of the table, at least 1.
fn share(limit: usize, percent: u32) -> usize {
    ((limit as u64 * u64::from(percent)).div_ceil(100) as usize).max(1)
}

/// The default of [`Config::max_routes`], for a process that may use `memory` bytes. A route whose node has a UUID
/// takes up to 32 bytes.
fn max_routes(memory: usize) -> usize {
    (memory / 8 / 32).clamp(1 << 16, 1 << 24)
}

/// The default of [`Config::max_proxies`]. A proxy takes up to 0.9 kB if its ID, its cluster and its address are long.
fn max_proxies(memory: usize) -> usize {
    (memory / 16 / 1024).clamp(1 << 12, 1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_fits_into_half_of_the_memory() {
        for memory in [1 << 30, 4 << 30, 64 << 30] {
            let text = memory / 8;
            assert!(max_routes(memory) * 32 + text + max_proxies(memory) * 1024 <= memory / 2);
        }
        assert_eq!((max_routes(1 << 30), max_proxies(1 << 30)), (1 << 22, 1 << 16));
        assert_eq!((max_routes(1 << 20), max_proxies(1 << 20)), (1 << 16, 1 << 12));
        assert_eq!((max_routes(1 << 40), max_proxies(1 << 40)), (1 << 24, 1 << 20));
    }
}
