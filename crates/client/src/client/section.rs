//! The trackers of a proxy, from the `proxy_service` section of a `teleport.yaml`.
//!
//! ```yaml
//! proxy_service:
//!   node_tracker_addr: [https://tracker-1.example:3029, https://tracker-2.example:3029]
//!   node_tracker_ca_file: ca.crt
//!   node_tracker_key_file: proxy-1.key
//!   node_tracker_cert_file: proxy-1.crt
//! ```
//!
//! | key | value |
//! | --- | --- |
//! | `node_tracker_addr` | RFD 47's key: the [address](crate::connect::addr::TrackerAddr) of a tracker, or a list of addresses |
//! | `node_tracker_ca_file` | the authorities to trust, a PEM file; needed if an address begins with `https://` |
//! | `node_tracker_key_file`, `node_tracker_cert_file` | the proxy's private key and certificate chain, PEM files, for trackers that verify clients |
//! | `node_tracker_write_to` | `all` (default) or `one`: see [`WriteTo`] |
//!
//! A relative path starts at the file's folder. All other keys and sections belong to Teleport, and are left alone.
//! Errors are an unknown key that begins with `node_tracker_`, a repeated key, a key without a value, and a key outside
//! of the section.

use std::fmt;
use std::path::{Path, PathBuf};

use nodetracker_tls::client::ClientConfigError;
use nodetracker_yaml::Section;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::client::{ClientConfig, ClientError, TrackerClient};
use crate::connect::WriteTo;
use crate::connect::addr::TrackerAddr;
use crate::connect::channel::{ClientTls, ConnectConfig, TlsFiles};

const SECTION: &str = "proxy_service";

const ADDR: &str = "node_tracker_addr";
const CA_FILE: &str = "node_tracker_ca_file";
const KEY_FILE: &str = "node_tracker_key_file";
const CERT_FILE: &str = "node_tracker_cert_file";
const WRITE_TO: &str = "node_tracker_write_to";
const KEYS: [&str; 5] = [ADDR, CA_FILE, KEY_FILE, CERT_FILE, WRITE_TO];

/// The trackers of a proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TrackerSection {
    /// The addresses, at least one.
    pub trackers: Vec<TrackerAddr>,
    /// Set if an address needs TLS.
    pub tls: Option<TlsFiles>,
    /// Which trackers get the writes.
    pub write_to: WriteTo,
}

/// An error in the configuration, as one line: the file, the line, and the reason.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{}: {reason}", .file.display(), Line(*.line))]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1, if the error is in a line.
    pub line: Option<u64>,
    /// What is wrong with which key.
    pub reason: String,
}

struct Line(Option<u64>);

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}

impl TrackerSection {
    /// Reads the file. Returns `None` if the section has no `node_tracker_addr`: the proxy uses no tracker.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is not YAML, or has one of our keys with a bad value. `read` does not read key and
    /// certificate files.
    pub fn read(file: &Path) -> Result<Option<Self>, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|error| ConfigError {
            file: file.into(),
            line: None,
            reason: format!("cannot read: {error}"),
        })?;
        Self::from_yaml(file, &text)
    }

    /// As [`read`](Self::read), from a file's text. `file` is for errors and relative paths only.
    ///
    /// ```
    /// use std::path::Path;
    ///
    /// use nodetracker_client::client::section::TrackerSection;
    ///
    /// let text = "proxy_service:\n  enabled: yes\n  node_tracker_addr: tracker.example:3029\n";
    /// let config = TrackerSection::from_yaml(Path::new("/etc/teleport.yaml"), text)?;
    /// let trackers = config.map(|config| config.trackers);
    /// assert_eq!(trackers, Some(vec!["tracker.example:3029".parse()?]));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`read`](Self::read).
    pub fn from_yaml(file: &Path, text: &str) -> Result<Option<Self>, ConfigError> {
        let entries = nodetracker_yaml::read::<Value>(text).map_err(|error| ConfigError {
            file: file.into(),
            line: error.line,
            reason: error.key.map_or(String::new(), |key| format!("{SECTION}.{key}: ")) + &error.reason,
        })?;
        let mut keys = Keys::default();
        for entry in entries.unwrap_or_default() {
            match (entry.key, entry.value) {
                (_, Value::Addrs(addrs)) => keys.trackers = Some(addrs),
                (CA_FILE, Value::Text(text)) => keys.ca_file = Some(text),
                (KEY_FILE, Value::Text(text)) => keys.key_file = Some(text),
                (CERT_FILE, Value::Text(text)) => keys.cert_file = Some(text),
                (_, Value::Text(text)) => keys.write_to = Some(text),
            }
        }
        keys.resolve(file).map_err(|(key, reason)| ConfigError {
            file: file.into(),
            line: None,
            reason: format!("{SECTION}.{key}: {reason}"),
        })
    }

    /// Reads the key and certificate files, and returns the default configuration with this TLS. It is for the parts of
    /// a proxy that share the trackers, such as its session and its replica.
    ///
    /// # Errors
    ///
    /// If a file cannot be used.
    pub fn connect_config(&self) -> Result<ConnectConfig, ClientConfigError> {
        Ok(ConnectConfig {
            tls: self.tls.clone().map(ClientTls::load).transpose()?,
            ..ConnectConfig::default()
        })
    }

    /// Reads the key and certificate files, and returns a client of the trackers. `config` has everything that is not
    /// in the file.
    ///
    /// # Errors
    ///
    /// If a file cannot be used.
    ///
    /// # Panics
    ///
    /// As [`TrackerClient::start`].
    pub fn client(self, mut config: ClientConfig) -> Result<TrackerClient, ClientError> {
        config.write_to = self.write_to;
        config.connect.tls = self.connect_config()?.tls;
        TrackerClient::start(self.trackers, config)
    }
}

/// The value of one of our keys.
enum Value {
    Addrs(Vec<TrackerAddr>),
    Text(String),
}

impl Section for Value {
    const NAME: &'static str = SECTION;
    const PREFIX: &'static str = "node_tracker_";

    fn keys() -> &'static [&'static str] {
        &KEYS
    }

    fn value<'de, D: Deserializer<'de>>(key: &'static str, value: D) -> Result<Option<Self>, D::Error> {
        match key {
            ADDR => Ok(Option::deserialize(value)?.map(|Addrs(addrs)| Value::Addrs(addrs))),
            _ => Ok(Option::deserialize(value)?.map(Value::Text)),
        }
    }
}

/// Our keys of the section.
#[derive(Default)]
struct Keys {
    trackers: Option<Vec<TrackerAddr>>,
    ca_file: Option<String>,
    key_file: Option<String>,
    cert_file: Option<String>,
    write_to: Option<String>,
}

/// One address or a list.
struct Addrs(Vec<TrackerAddr>);

impl Keys {
    /// Checks the keys together. An error names a key.
    fn resolve(self, file: &Path) -> Result<Option<TrackerSection>, (&'static str, String)> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let trackers = match self.trackers {
            Some(trackers) if trackers.is_empty() => return Err((ADDR, "has no address".to_owned())),
            Some(trackers) => trackers,
            None => {
                let others = [
                    (CA_FILE, &self.ca_file),
                    (KEY_FILE, &self.key_file),
                    (CERT_FILE, &self.cert_file),
                    (WRITE_TO, &self.write_to),
                ];
                return match others.iter().find(|(_, value)| value.is_some()) {
                    Some((key, _)) => Err((key, format!("needs {ADDR}"))),
                    None => Ok(None),
                };
            }
        };
        let write_to = match self.write_to.as_deref() {
            None | Some("all") => WriteTo::All,
            Some("one") => WriteTo::One,
            Some(other) => return Err((WRITE_TO, format!("{other:?} is neither all nor one"))),
        };
        let keypair = match (self.key_file, self.cert_file) {
            (Some(key), Some(cert)) => Some((folder.join(key), folder.join(cert))),
            (None, None) => None,
            (Some(_), None) => return Err((KEY_FILE, format!("needs {CERT_FILE}"))),
            (None, Some(_)) => return Err((CERT_FILE, format!("needs {KEY_FILE}"))),
        };
        let needs_tls = trackers.iter().find(|addr| addr.is_tls());
        let tls = match (self.ca_file, needs_tls) {
            (Some(ca), Some(_)) => Some(TlsFiles {
                ca: folder.join(ca),
                keypair,
            }),
            (None, Some(addr)) => return Err((ADDR, format!("{addr} needs {CA_FILE}"))),
            (None, None) if keypair.is_none() => None,
            // The operator believes that calls are encrypted.
            _ => {
                return Err((
                    ADDR,
                    "has no address that begins with https://, so no file is used".to_owned(),
                ));
            }
        };
        Ok(Some(TrackerSection {
            trackers,
            tls,
            write_to,
        }))
    }
}

impl<'de> Deserialize<'de> for Addrs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AddrsVisitor)
    }
}

struct AddrsVisitor;

impl<'de> Visitor<'de> for AddrsVisitor {
    type Value = Addrs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address or a list of addresses")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Addrs, E> {
        Ok(Addrs(vec![text.parse().map_err(E::custom)?]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Addrs, A::Error> {
        let mut addrs = Vec::new();
        while let Some(OneAddr(Addrs(addr))) = seq.next_element()? {
            addrs.extend(addr);
        }
        Ok(Addrs(addrs))
    }
}

/// An element of a list, parsed as a single address is, so that an error has its line.
struct OneAddr(Addrs);

impl<'de> Deserialize<'de> for OneAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(AddrsVisitor).map(OneAddr)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<TrackerSection>, String> {
        TrackerSection::from_yaml(Path::new("conf/teleport.yaml"), text).map_err(|error| error.to_string())
    }

    fn addrs<const N: usize>(addrs: [&str; N]) -> Vec<TrackerAddr> {
        addrs.map(|addr| addr.parse().unwrap()).into()
    }

    #[test]
    fn the_section_names_one_tracker_or_several() {
        for (value, expected) in [
            ("tracker.example:3029", addrs(["tracker.example:3029"])),
            ("'[::1]'", addrs(["[::1]:3029"])),
            ("10.0.0.1", addrs(["10.0.0.1:3029"])),
            ("[10.0.0.1, tracker:1]", addrs(["10.0.0.1:3029", "tracker:1"])),
            ("\n  - 10.0.0.1\n  - tracker:1", addrs(["10.0.0.1:3029", "tracker:1"])),
        ] {
            let config = parse(&format!("proxy_service:\n  node_tracker_addr: {value}\n"))
                .unwrap()
                .unwrap();
            let expected = TrackerSection {
                trackers: expected,
                tls: None,
                write_to: WriteTo::All,
            };
            assert_eq!(config, expected, "{value}");
        }
    }

    #[test]
    fn files_are_relative_to_the_configuration() {
        let text = "proxy_service:\n  node_tracker_addr: https://tracker\n  node_tracker_ca_file: ca.crt\n  \
                    node_tracker_key_file: /k/proxy.key\n  node_tracker_cert_file: ../proxy.crt\n  \
                    node_tracker_write_to: one\n";
        let config = parse(text).unwrap().unwrap();
        let tls = TlsFiles {
            ca: "conf/ca.crt".into(),
            keypair: Some(("/k/proxy.key".into(), "conf/../proxy.crt".into())),
        };
        assert_eq!((config.tls, config.write_to), (Some(tls), WriteTo::One));
    }

    #[test]
    fn what_belongs_to_teleport_is_left_alone() {
        let aliases = "  - *a\n".repeat(1000);
        let text = format!(
            "a: &a {{x: 1}}\nb:\n{aliases}c: {{k: 1, k: 2, n: .nan}}\n7: x\nauth_service:\n  enabled: yes\n\
             node_tracker_service:\n  listen_addr: x\nproxy_service:\n  enabled: yes\n  public_addr: [p:443]\n  \
             https_keypairs:\n  - key_file: k\n    cert_file: c\n  acme: {{enabled: no}}\n  acme: {{}}\n"
        );
        assert_eq!(parse(&text), Ok(None));
        for nothing in ["proxy_service:\n", "proxy_service: {}\n", "teleport: {}\n", "{}\n"] {
            assert_eq!(parse(nothing), Ok(None), "{nothing:?}");
        }
        let text = text + "  node_tracker_addr: tracker:1\n";
        assert_eq!(parse(&text).unwrap().unwrap().trackers, addrs(["tracker:1"]));
    }

    #[test]
    fn our_keys_at_a_wrong_place_are_refused() {
        for key in KEYS {
            for blank in ["", "\u{a0}", "\u{2003}\u{200b}"] {
                let text = format!("proxy_service:\n  enabled: yes\n{blank}{key}: a\n");
                let reason = format!("{key} is a key of proxy_service: indent the key to stand below that section");
                assert_eq!(parse(&text), Err(format!("conf/teleport.yaml:3: {reason}")), "{text:?}");
            }
            let text = format!("proxy_service:\n  enabled: yes\n  \u{a0}{key}: a\n");
            let message = parse(&text).unwrap_err();
            let start = format!("conf/teleport.yaml:3: unknown key `\u{a0}{key}`");
            assert!(message.starts_with(&start), "{message}");
        }
        let message = parse("\u{a0}proxy_service:\n  node_tracker_addr: a\n").unwrap_err();
        assert!(
            message.starts_with("conf/teleport.yaml:1: proxy_service has a character"),
            "{message}"
        );
    }

    #[test]
    fn unusual_parts_of_teleport_are_left_alone() {
        let text = "? [1, {a: b}]\n: d\n.inf: 1\n~: 1\n!t e: !t [f]\nproxy_service:\n  ? [a]\n  : b\n";
        assert_eq!(parse(text), Ok(None));
    }

    #[test]
    fn an_error_names_the_file_the_line_and_the_key() {
        let section = "teleport: {}\nproxy_service:\n";
        let bad_port = "is not the address of a tracker: bad port";
        for (text, error) in [
            (
                "  enabled: yes\n  node_tracker_addr: tracker:x\n",
                format!(":4: proxy_service.node_tracker_addr: \"tracker:x\" {bad_port}"),
            ),
            (
                "  node_tracker_addr:\n  - tracker:1\n  - tracker:0\n  web: x\n",
                format!(":5: \"tracker:0\" {bad_port}"),
            ),
            (
                "  node_tracker_addr: []\n",
                ": proxy_service.node_tracker_addr: has no address".into(),
            ),
            (
                "  node_tracker_addr: {a: b}\n",
                ":3: proxy_service.node_tracker_addr: invalid type: map, expected an address or a list of addresses"
                    .into(),
            ),
            (
                "  enabled: yes\n  node_tracker_addr:\n  web: x\n",
                ":4: proxy_service.node_tracker_addr: has no value: remove the key to use the default".into(),
            ),
            (
                "  node_tracker_addr: a\n  enabled: yes\n  node_tracker_addr: b\n",
                ":5: proxy_service.node_tracker_addr: is set twice".into(),
            ),
            (
                "  enabled: yes\n  node_tracker_adr: a\n  web: x\n",
                format!(
                    ":4: unknown key `node_tracker_adr`, expected one of {}",
                    KEYS.join(", ")
                ),
            ),
            (
                "node_tracker_addr: a\n",
                ":3: node_tracker_addr is a key of proxy_service: indent the key to stand below that section".into(),
            ),
            (
                "  enabled: yes\nproxy_service:\n  node_tracker_addr: a\n",
                ":4: a second section proxy_service".into(),
            ),
            ("  - a\n", ":3: expected a mapping".into()),
            (
                "  node_tracker_addr: https://a\n",
                ": proxy_service.node_tracker_addr: https://a:3029 needs node_tracker_ca_file".into(),
            ),
            (
                "  node_tracker_addr: a\n  node_tracker_ca_file: ca.crt\n",
                ": proxy_service.node_tracker_addr: has no address that begins with https://, so no file is used"
                    .into(),
            ),
            (
                "  node_tracker_addr: a\n  node_tracker_key_file: a\n  node_tracker_cert_file: a\n",
                ": proxy_service.node_tracker_addr: has no address that begins with https://, so no file is used"
                    .into(),
            ),
            (
                "  node_tracker_addr: https://a\n  node_tracker_key_file: proxy.key\n",
                ": proxy_service.node_tracker_key_file: needs node_tracker_cert_file".into(),
            ),
            (
                "  node_tracker_addr: https://a\n  node_tracker_cert_file: proxy.crt\n",
                ": proxy_service.node_tracker_cert_file: needs node_tracker_key_file".into(),
            ),
            (
                "  node_tracker_ca_file: ca.crt\n",
                ": proxy_service.node_tracker_ca_file: needs node_tracker_addr".into(),
            ),
            (
                "  node_tracker_addr: a\n  node_tracker_write_to: both\n",
                ": proxy_service.node_tracker_write_to: \"both\" is neither all nor one".into(),
            ),
        ] {
            assert_eq!(
                parse(&format!("{section}{text}")),
                Err(format!("conf/teleport.yaml{error}")),
                "{text}"
            );
        }
        let missing = TrackerSection::read(Path::new("/missing/teleport.yaml"))
            .unwrap_err()
            .to_string();
        assert!(
            missing.starts_with("/missing/teleport.yaml: cannot read: "),
            "{missing}"
        );
    }
}
