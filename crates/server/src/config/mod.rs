//! The configuration of `serve`: defaults, overridden by the file, overridden by flags.
//!
//! The file has RFD 47's `node_tracker_service` section, and may have other sections, which are ignored. An unknown key inside
//! the section is an error, because a misspelt key would silently leave a default in place.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_saphyr::{Spanned, UserMessageFormatter};
use thiserror::Error;

/// The tracker's section of the file.
const SECTION: &str = "node_tracker_service";

const ENABLED: &str = "enabled";
const LISTEN_ADDR: &str = "listen_addr";
const KEEP_ALIVE: &str = "proxy_keep_alive_interval";
const KEYPAIRS: &str = "https_keypairs";
/// The keys that an error can name.
const KEYS: [&str; 6] = [ENABLED, LISTEN_ADDR, KEEP_ALIVE, KEYPAIRS, "key_file", "cert_file"];

/// The default address to listen on.
pub const DEFAULT_LISTEN_ADDR: &str = "127.0.0.1:3029";

/// The default time that a route lives without a refresh.
pub const DEFAULT_KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);

/// The longest keep-alive interval.
pub const MAX_KEEP_ALIVE: Duration = Duration::from_secs(365 * 24 * 3600);

/// The source of a setting, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
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
    /// The certificates for TLS. If empty, the server uses plaintext. Clients that ask for an unknown name get the first.
    pub keypairs: Vec<Keypair>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen_addr: Setting {
                value: DEFAULT_LISTEN_ADDR.into(),
                origin: Origin::Default(LISTEN_ADDR),
            },
            keep_alive: Setting {
                value: DEFAULT_KEEP_ALIVE,
                origin: Origin::Default(KEEP_ALIVE),
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
        Self::parse(file, &text)
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

    fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let options = serde_saphyr::options! { with_snippet: false };
        let parsed: File =
            serde_saphyr::from_str_with_options(text, options).map_err(|error| yaml_error(file, text, &error))?;
        let section = match parsed.node_tracker_service {
            Some(section) => section.unwrap_or_default(),
            None => {
                let reason = format_args!("has no section {SECTION}");
                return Err(ConfigError::new(Origin::File(file.into()), reason));
            }
        };
        let at = |line, key| Origin::Key {
            file: file.into(),
            line,
            key: Some(key),
        };

        let mut config = Self::default();
        if let Some(enabled) = section.enabled
            && !enabled.value
        {
            return Err(ConfigError::new(
                at(line(&enabled), ENABLED),
                "the service is switched off: nothing to do",
            ));
        }
        if let Some(addr) = section.listen_addr {
            let origin = at(line(&addr), LISTEN_ADDR);
            let value = listen_addr(&addr.value).map_err(|reason| ConfigError::new(origin.clone(), reason))?;
            config.listen_addr = Setting { value, origin };
        }
        if let Some(interval) = section.proxy_keep_alive_interval {
            let origin = at(line(&interval), KEEP_ALIVE);
            let value = keep_alive(&interval.value).map_err(|reason| ConfigError::new(origin.clone(), reason))?;
            config.keep_alive = Setting { value, origin };
        }
        let folder = file.parent().unwrap_or(Path::new(""));
        let path = |path: Spanned<String>, key| Setting {
            origin: at(line(&path), key),
            value: folder.join(path.value),
        };
        for pair in section.https_keypairs.unwrap_or_default() {
            let key_file = path(pair.key_file, "https_keypairs.key_file");
            let cert_file = path(pair.cert_file, "https_keypairs.cert_file");
            config.keypairs.push(Keypair { key_file, cert_file });
        }
        Ok(config)
    }
}

/// The configuration file. Only our section is parsed.
#[derive(Deserialize)]
struct File {
    /// `None` if absent. `Some(None)` if present and empty, which means all defaults.
    #[serde(default, deserialize_with = "present")]
    node_tracker_service: Option<Option<Section>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Section {
    enabled: Option<Spanned<bool>>,
    listen_addr: Option<Spanned<String>>,
    proxy_keep_alive_interval: Option<Spanned<String>>,
    https_keypairs: Option<Vec<Pair>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    key_file: Spanned<String>,
    cert_file: Spanned<String>,
}

fn present<'de, D: Deserializer<'de>>(section: D) -> Result<Option<Option<Section>>, D::Error> {
    Option::deserialize(section).map(Some)
}

fn line<T>(value: &Spanned<T>) -> u64 {
    value.referenced.line()
}

/// Turns an error of the YAML library into an error with the line and the key of this file.
fn yaml_error(file: &Path, text: &str, error: &serde_saphyr::Error) -> ConfigError {
    let message = error.render_with_formatter(&UserMessageFormatter);
    let Some(location) = error.location() else {
        return ConfigError::new(Origin::File(file.into()), message);
    };
    let (line, column) = (location.line(), location.column());
    let message = [
        ("unknown field", "unknown key"),
        ("missing field", "missing key"),
        ("expected mapping start", "expected a mapping"),
        ("expected sequence start", "expected a list"),
        ("expected string scalar", "expected a string"),
    ]
    .into_iter()
    .fold(message, |message, (theirs, ours)| message.replace(theirs, ours));
    // The line precedes the message, as compilers write it.
    let message = message.trim_end_matches(&format!(" at line {line}, column {column}"));
    let source = usize::try_from(line)
        .ok()
        .and_then(|line| text.lines().nth(line.saturating_sub(1)));
    let written = source
        .and_then(|source| source.split_once(':'))
        .map(|(key, _)| key.trim_start_matches([' ', '-']));
    let key = written.and_then(|written| KEYS.into_iter().find(|&key| key == written));
    ConfigError::new(
        Origin::Key {
            file: file.into(),
            line,
            key,
        },
        message,
    )
}

/// Checks that a string is `host:port`. Whether the host exists is checked when the server binds.
pub(crate) fn listen_addr(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not host:port")),
    }
}

/// Parses a keep-alive interval: `5m`, `90s`, `1h 30m`.
pub(crate) fn keep_alive(text: &str) -> Result<Duration, String> {
    let interval = humantime::parse_duration(text).map_err(|error| format!("{text:?} is not a duration: {error}"))?;
    if interval < Duration::from_millis(1) {
        return Err(format!("{text:?} is too short: every route would be expired at once"));
    }
    if interval > MAX_KEEP_ALIVE {
        return Err(format!("{text:?} is too long: the limit is 365 days"));
    }
    Ok(interval)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("conf/tracker.yaml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn sample_config_parses_and_says_the_defaults() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/nodetracker.yaml");
        let config = Config::read(&sample).unwrap();
        assert_eq!(config.listen_addr.value, DEFAULT_LISTEN_ADDR);
        assert_eq!(config.keep_alive.value, DEFAULT_KEEP_ALIVE);
        assert_eq!(config.keypairs, []);
    }

    #[test]
    fn other_sections_are_left_alone() {
        let text = "teleport: &t\n  nodename: !x {a: [1, 2]}\n7: *t\nnode_tracker_service:\n  enabled: yes\n  \
                    listen_addr: '[::]:3029'\n  proxy_keep_alive_interval: 1m 30s\nproxy_service:\n  enabled: no\n";
        let config = parse(text).unwrap();
        assert_eq!(config.listen_addr.value, "[::]:3029");
        assert_eq!(config.keep_alive.value, Duration::from_secs(90));
    }

    #[test]
    fn an_empty_section_asks_for_the_defaults() {
        for text in [
            "node_tracker_service:\n",
            "node_tracker_service: {}",
            "node_tracker_service:\n  enabled: true\n",
        ] {
            assert_eq!(parse(text), Ok(Config::default()), "{text:?}");
        }
    }

    #[test]
    fn key_paths_are_relative_to_the_file() {
        let text = "node_tracker_service:\n  https_keypairs:\n  - key_file: a.key\n    cert_file: /etc/a.crt\n";
        let config = parse(text).unwrap();
        assert_eq!(config.keypairs[0].key_file.value, Path::new("conf/a.key"));
        assert_eq!(config.keypairs[0].cert_file.value, Path::new("/etc/a.crt"));
    }

    #[test]
    fn errors_name_file_line_key_and_reason() {
        let section = "node_tracker_service:\n";
        for (text, message) in [
            ("", "conf/tracker.yaml: has no section node_tracker_service".to_owned()),
            (
                "proxy_service: {}",
                "conf/tracker.yaml: has no section node_tracker_service".to_owned(),
            ),
            (
                &format!("{section}  enabled: no"),
                "conf/tracker.yaml:2: node_tracker_service.enabled: the service is switched off: nothing to do".into(),
            ),
            (
                &format!("{section}  enabled: maybe"),
                "conf/tracker.yaml:2: node_tracker_service.enabled: invalid boolean".into(),
            ),
            (
                &format!("{section}  listen_addr: 3029"),
                "conf/tracker.yaml:2: node_tracker_service.listen_addr: \"3029\" is not host:port".into(),
            ),
            (
                &format!("{section}  listen_addr: 127.0.0.1:99999"),
                "conf/tracker.yaml:2: node_tracker_service.listen_addr: \"127.0.0.1:99999\" is not host:port".into(),
            ),
            (
                &format!("{section}  listen_addr: [a]"),
                "conf/tracker.yaml:2: node_tracker_service.listen_addr: expected a string".into(),
            ),
            (
                &format!("{section}  enabled: yes\n  proxy_keep_alive_interval: 0s"),
                "conf/tracker.yaml:3: node_tracker_service.proxy_keep_alive_interval: \"0s\" is too short: every \
                 route would be expired at once"
                    .into(),
            ),
            (
                &format!("{section}  proxy_keep_alive_interval: 5"),
                "conf/tracker.yaml:2: node_tracker_service.proxy_keep_alive_interval: \"5\" is not a duration: time \
                 unit needed, for example 5sec or 5ms"
                    .into(),
            ),
            (
                &format!("{section}  listen_adr: 127.0.0.1:1"),
                "conf/tracker.yaml:2: unknown key `listen_adr`, expected one of enabled, listen_addr, \
                 proxy_keep_alive_interval, https_keypairs"
                    .into(),
            ),
            (
                &format!("{section}  https_keypairs:\n  - key_file: a"),
                "conf/tracker.yaml:3: node_tracker_service.key_file: missing key `cert_file`".into(),
            ),
            (
                "node_tracker_service: 1",
                "conf/tracker.yaml:1: expected a mapping".into(),
            ),
            ("proxy_service: [", "conf/tracker.yaml:1: unclosed bracket '['".into()),
        ] {
            assert_eq!(parse(text), Err(message), "{text:?}");
        }
    }
}
