//! The keys of the configuration: one row for each.
//!
//! A row gives a key its name in the file, its flag and its environment variable, so that no key lacks one of them. A
//! new key is a field of [`Config`], a row here, a line of the sample file, and a line of `docs/configuration.md`.
//! Tests compare the four.

use crate::config::values;
use crate::config::{Config, Keypair, Origin, Setting};

/// A key of the configuration.
#[derive(Debug)]
pub(crate) struct Key {
    /// The name in the file: words with underscores. The flag has dashes instead, and the variable has capitals.
    pub(crate) name: &'static str,
    /// What the value is, for the help.
    pub(crate) value_name: &'static str,
    /// One line for the help and for the documentation.
    pub(crate) help: &'static str,
    /// The default, for the help. Empty if the help states the default.
    pub(crate) default: &'static str,
    /// Parses a value and stores it. An error says what is wrong with the value.
    set: fn(&mut Config, &str, &Origin) -> Result<(), String>,
}

impl Key {
    /// Sets the key.
    pub(crate) fn set(&self, config: &mut Config, value: &str, origin: &Origin) -> Result<(), String> {
        (self.set)(config, value, origin)
    }

    /// Returns the key's flag, without its dashes at the front.
    pub(crate) fn flag(&self) -> String {
        flag(self.name)
    }

    /// Returns the key's environment variable.
    pub(crate) fn variable(&self) -> String {
        variable(self.name)
    }
}

/// Returns the flag of a key, without its dashes at the front.
pub(super) fn flag(name: &str) -> String {
    name.replace('_', "-")
}

/// Returns the environment variable of a key.
pub(super) fn variable(name: &str) -> String {
    format!("NODETRACKER_{}", name.to_ascii_uppercase())
}

/// Returns the key with a name.
pub(crate) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

/// Stores a value, if it could be parsed, in a setting or in an optional setting.
fn store<T, S: From<Setting<T>>>(setting: &mut S, value: Result<T, String>, origin: &Origin) -> Result<(), String> {
    let origin = origin.clone();
    *setting = Setting { value: value?, origin }.into();
    Ok(())
}

/// All keys, in the order of the sample file.
pub(crate) static KEYS: &[Key] = &[
    Key {
        name: "enabled",
        value_name: "YES|NO",
        help: "With no, the command refuses to start: for a file that several services share",
        default: "yes",
        set: |_, text, _| match values::yes_or_no(text)? {
            true => Ok(()),
            false => Err("the service is switched off: nothing to do".to_owned()),
        },
    },
    Key {
        name: "listen_addr",
        value_name: "ADDR",
        help: "Where to listen, HOST:PORT, or :PORT for every address; port 0 picks a free port",
        default: "127.0.0.1:3029",
        set: |config, text, origin| store(&mut config.listen_addr, values::listen_addr(text), origin),
    },
    Key {
        name: "proxy_keep_alive_interval",
        value_name: "DURATION",
        help: "How long a route lives without a refresh, such as 90s or 5m",
        default: "5m",
        set: |config, text, origin| store(&mut config.keep_alive, values::keep_alive(text), origin),
    },
    Key {
        name: "shutdown_delay",
        value_name: "DURATION",
        help: "How long to serve calls after SIGTERM or SIGINT, with a health of NOT_SERVING",
        default: "0s",
        set: |config, text, origin| store(&mut config.shutdown_delay, values::shutdown_delay(text), origin),
    },
    Key {
        name: "max_routes",
        value_name: "NUMBER",
        help: "The most routes [default: an eighth of the memory, and at most 16777216]",
        default: "",
        set: |config, text, origin| store(&mut config.max_routes, values::routes(text), origin),
    },
    Key {
        name: "max_proxies",
        value_name: "NUMBER",
        help: "The most proxies [default: a sixteenth of the memory, and from 4096 to 1048576]",
        default: "",
        set: |config, text, origin| store(&mut config.max_proxies, values::proxies(text), origin),
    },
    Key {
        name: "max_text_mb",
        value_name: "NUMBER",
        help: "Megabytes of the names, IDs and addresses in the table [default: an eighth of the memory]",
        default: "",
        set: |config, text, origin| store(&mut config.max_text_bytes, values::megabytes(text), origin),
    },
    Key {
        name: "max_routes_per_proxy",
        value_name: "NUMBER",
        help: "The most routes of each proxy [default: half of the most routes]",
        default: "",
        set: |config, text, origin| store(&mut config.max_routes_per_proxy, values::routes(text), origin),
    },
    Key {
        name: "expiry_brake_percent",
        value_name: "PERCENT",
        help: "Hold expiry if at least this percentage of the routes is about to expire; 100 for never",
        default: "15",
        set: |config, text, origin| {
            store(
                &mut config.brake_percent,
                values::percent(text, " (100: no brake)"),
                origin,
            )
        },
    },
    Key {
        name: "expiry_brake_routes",
        value_name: "NUMBER",
        help: "Hold expiry only if at least this number of routes is about to expire",
        default: "100",
        set: |config, text, origin| store(&mut config.brake_routes, values::routes(text), origin),
    },
    Key {
        name: "expiry_brake_intervals",
        value_name: "NUMBER",
        help: "The greatest age of a returned route while expiry is held, in keep-alive intervals; 1 for no hold",
        default: "3",
        set: |config, text, origin| store(&mut config.brake_intervals, values::brake_intervals(text), origin),
    },
    Key {
        name: "data_dir",
        value_name: "DIR",
        help: "Write snapshots of the routes to this folder, and load the last at the start [default: no snapshots]",
        default: "",
        set: |config, text, origin| store(&mut config.data_dir, values::path(text, origin), origin),
    },
    Key {
        name: "snapshot_interval",
        value_name: "DURATION",
        help: "The time between two snapshots of data_dir",
        default: "1m",
        set: |config, text, origin| store(&mut config.snapshot_interval, values::snapshot_interval(text), origin),
    },
    Key {
        name: "max_connections",
        value_name: "NUMBER",
        help: "The most connections at one time",
        default: "10000",
        set: |config, text, origin| store(&mut config.max_connections, values::connections(text), origin),
    },
    Key {
        name: "client_memory_mb",
        value_name: "NUMBER",
        help: "Megabytes that all clients may make the server hold [default: an eighth of the memory, and at most 536]",
        default: "",
        set: |config, text, origin| store(&mut config.client_memory, values::client_memory(text), origin),
    },
    Key {
        name: "max_share_per_client",
        value_name: "PERCENT",
        help: "The percentage of each limit over all clients that one address may have; 100 for no limit",
        default: "50",
        set: |config, text, origin| store(&mut config.max_share_per_client, values::percent(text, ""), origin),
    },
    Key {
        name: "max_watches",
        value_name: "NUMBER",
        help: "The most watches at one time",
        default: "10000",
        set: |config, text, origin| store(&mut config.max_watches, values::watches(text), origin),
    },
    Key {
        name: "max_watched_mb",
        value_name: "NUMBER",
        help: "Megabytes of the nodes that all watches may name",
        default: "64",
        set: |config, text, origin| store(&mut config.max_watched_size, values::megabytes(text), origin),
    },
    Key {
        name: KEYPAIRS,
        value_name: "KEY_FILE:CERT_FILE,...",
        help: "Serve TLS with these PEM files [default: plaintext]",
        default: "",
        set: |config, text, origin| {
            config.keypairs = text
                .split(',')
                .map(|pair| {
                    let files = pair
                        .split_once(':')
                        .filter(|(key, cert)| !key.is_empty() && !cert.is_empty());
                    let (key, cert) = files.ok_or_else(|| format!("{pair:?} is not KEY_FILE:CERT_FILE"))?;
                    let file = |file: &str| Setting {
                        value: file.into(),
                        origin: origin.clone(),
                    };
                    Ok(Keypair {
                        key_file: file(key),
                        cert_file: file(cert),
                    })
                })
                .collect::<Result<_, String>>()?;
            Ok(())
        },
    },
    Key {
        name: "client_ca_file",
        value_name: "FILE",
        help: "PEM file with the authorities that certify clients [default: none]",
        default: "",
        set: |config, text, origin| store(&mut config.client_ca_file, values::path(text, origin), origin),
    },
    Key {
        name: "client_auth",
        value_name: "off|optional|required",
        help: "Whether clients need a certificate; with off, every client may make every call",
        default: "off",
        set: |config, text, origin| store(&mut config.client_auth, values::client_auth(text), origin),
    },
    Key {
        name: "client_identity",
        value_name: "teleport|spiffe",
        help: "Where a client's certificate has its role and the proxy's ID: in the subject, or in a SPIFFE ID",
        default: "teleport",
        set: |config, text, origin| store(&mut config.client_identity, values::client_identity(text), origin),
    },
    Key {
        name: "diag_addr",
        value_name: "ADDR",
        help: "Where to serve /healthz, /readyz and /metrics, HOST:PORT, without authentication [default: nowhere]",
        default: "",
        set: |config, text, origin| store(&mut config.diag_addr, values::listen_addr(text), origin),
    },
    Key {
        name: "log_format",
        value_name: "FORMAT",
        help: "How log lines look: text, or json for an object a line",
        default: "text",
        set: |config, text, origin| store(&mut config.log_format, values::log_format(text), origin),
    },
    Key {
        name: "log_level",
        value_name: "LEVEL",
        help: "What to log: off, error, warn, info or debug; for the lines of other crates, TARGET=LEVEL",
        default: "info",
        set: |config, text, origin| store(&mut config.log_level, text.parse(), origin),
    },
];

/// The key whose value is a list in the file.
pub(super) const KEYPAIRS: &str = "https_keypairs";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file;

    fn read(file: &str) -> String {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        std::fs::read_to_string(path).expect("the file is there")
    }

    /// The table of the documentation, as the keys say.
    fn documented() -> String {
        let mut table =
            String::from("| key | flag | variable | default | meaning |\n| --- | --- | --- | --- | --- |\n");
        for key in KEYS {
            let (help, default) = match key.help.split_once(" [default: ") {
                Some((help, default)) => (help, default.trim_end_matches(']').to_owned()),
                None => (key.help, format!("`{}`", key.default)),
            };
            let (name, flag, variable) = (key.name, key.flag(), key.variable());
            let value = key.value_name.replace('|', "\\|");
            table += &format!("| `{name}` | `--{flag} {value}` | `{variable}` | {default} | {help} |\n");
        }
        table
    }

    #[test]
    fn every_key_is_documented() {
        let file = read("docs/configuration.md");
        let table = documented();
        assert!(
            file.contains(&table),
            "docs/configuration.md lacks this table:\n{table}"
        );
    }

    #[test]
    fn the_sample_file_has_every_key() {
        let sample = read("config/nodetracker.yaml");
        for key in KEYS {
            let is_key = |line: &str| {
                let line = line.trim_start();
                line.strip_prefix("# ")
                    .unwrap_or(line)
                    .starts_with(&format!("{}:", key.name))
            };
            let lines = sample.lines().filter(|line| is_key(line)).count();
            assert_eq!(lines, 1, "{}", key.name);
        }
    }

    /// The examples in the comments of the sample file, too.
    #[test]
    fn the_sample_file_is_valid_with_all_keys() {
        let sample = read("config/nodetracker.yaml");
        let is_pair = |line: &str| {
            ["  - key_file: ", "    cert_file: "]
                .iter()
                .any(|of_pair| line.starts_with(of_pair))
        };
        let is_key = |line: &str| line.split_once(':').is_some_and(|(name, _)| find(name).is_some());
        let uncommented = sample.lines().map(|line| match line.strip_prefix("  # ") {
            Some(text) if is_key(text) || is_pair(text) => format!("  {text}\n"),
            _ => format!("{line}\n"),
        });
        let (_, set) = file::parse("tracker.yaml".as_ref(), &uncommented.collect::<String>()).expect("a good file");
        let set: Vec<_> = set.into_iter().map(|(key, _)| key).collect();
        assert_eq!(set, KEYS.iter().map(|key| key.name).collect::<Vec<_>>());
    }

    #[test]
    fn defaults_are_those_that_the_help_names() {
        for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
            let mut config = Config::default();
            let origin = Origin::Default(key.name);
            assert_eq!(key.set(&mut config, key.default, &origin), Ok(()), "{}", key.name);
            assert_eq!(config, Config::default(), "{}", key.name);
        }
    }

    #[test]
    fn names_are_unique_and_can_be_flags() {
        for (number, key) in KEYS.iter().enumerate() {
            assert!(
                key.name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'),
                "{}",
                key.name
            );
            assert!(
                KEYS[..number].iter().all(|other| other.name != key.name),
                "{}",
                key.name
            );
        }
    }
}
