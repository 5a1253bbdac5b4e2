//! The configuration file: YAML with RFD 47's `node_tracker_service` section.
//!
//! Other sections are left alone. A mistake in our section must not leave a default in place silently. So these are
//! errors: an unknown key, a key without a value, and a key of ours outside of the section.

use std::path::Path;
use std::sync::LazyLock;

use nodetracker_yaml::{Entry, Section};
use serde::{Deserialize, Deserializer};
use serde_saphyr::Spanned;

use crate::config::keys::{KEYPAIRS, KEYS};
use crate::config::{Config, ConfigError, Given, Keypair, Origin, SECTION, Setting, values};

/// The names of the keys.
static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| KEYS.iter().map(|key| key.name).collect());

/// Parses the text of a file. Also returns the keys that the file sets, with their values as flags would have them, in
/// the order of the file.
pub(super) fn parse(file: &Path, text: &str) -> Result<(Config, Given), ConfigError> {
    let section = nodetracker_yaml::read::<Value>(text).map_err(|error| {
        let origin = match error.line {
            Some(line) => Origin::Key {
                file: file.into(),
                line,
                key: error.key,
            },
            None => Origin::File(file.into()),
        };
        ConfigError::new(origin, error.reason)
    })?;
    let Some(section) = section else {
        let reason = format_args!("has no section {SECTION}");
        return Err(ConfigError::new(Origin::File(file.into()), reason));
    };

    let mut config = Config::default();
    let mut set = Given::new();
    for Entry { key, line, value } in section {
        let origin = Origin::Key {
            file: file.into(),
            line,
            key: Some(key),
        };
        match value {
            Value::Scalar(text) => {
                config.set(key, &text, origin)?;
                set.push((key, text));
            }
            Value::Keypairs(pairs) if pairs.is_empty() => {
                let reason = "has no pair: remove the key to serve plaintext";
                return Err(ConfigError::new(origin, reason));
            }
            Value::Keypairs(pairs) => {
                config.keypairs = pairs.into_iter().map(|pair| pair.of(file)).collect::<Result<_, _>>()?;
                let pairs: Vec<_> = config.keypairs.iter().map(Keypair::to_string).collect();
                set.push((key, pairs.join(",")));
            }
        }
    }
    Ok((config, set))
}

/// The value of a key.
enum Value {
    Scalar(String),
    Keypairs(Vec<Pair>),
}

impl Section for Value {
    const NAME: &'static str = SECTION;
    /// All keys of the section are ours.
    const PREFIX: &'static str = "";
    const INNER_KEYS: &'static [&'static str] = &["key_file", "cert_file"];

    fn keys() -> &'static [&'static str] {
        &NAMES
    }

    fn value<'de, D: Deserializer<'de>>(key: &'static str, value: D) -> Result<Option<Self>, D::Error> {
        match key {
            KEYPAIRS => Ok(Option::deserialize(value)?.map(Value::Keypairs)),
            _ => Ok(Option::deserialize(value)?.map(Value::Scalar)),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    key_file: Spanned<String>,
    cert_file: Spanned<String>,
}

impl Pair {
    fn of(self, file: &Path) -> Result<Keypair, ConfigError> {
        let path = |path: Spanned<String>, key| {
            let origin = Origin::Key {
                file: file.into(),
                line: path.referenced.line(),
                key: Some(key),
            };
            let value =
                values::path(&path.value, &origin).map_err(|reason| ConfigError::new(origin.clone(), reason))?;
            Ok(Setting { value, origin })
        };
        Ok(Keypair {
            key_file: path(self.key_file, "https_keypairs.key_file")?,
            cert_file: path(self.cert_file, "https_keypairs.cert_file")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::keys::Key;
    use crate::config::{DEFAULT_KEEP_ALIVE, DEFAULT_LISTEN_ADDR};

    fn parse(text: &str) -> Result<Config, String> {
        let parsed = super::parse(Path::new("conf/tracker.yaml"), text);
        parsed.map(|(config, _)| config).map_err(|error| error.to_string())
    }

    #[test]
    fn sample_config_parses_and_says_the_defaults() {
        let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/nodetracker.yaml");
        let config = Config::read(&sample).unwrap();
        assert_eq!(config.listen_addr.value, DEFAULT_LISTEN_ADDR);
        assert_eq!(config.keep_alive.value, DEFAULT_KEEP_ALIVE);
        assert_eq!(config.shutdown_delay.value, Duration::ZERO);
        assert_eq!(config.max_connections.value, 10_000);
        assert_eq!(config.max_share_per_client.value, 50);
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
    fn unusual_parts_of_other_sections_are_left_alone() {
        let aliases = "  - *a\n".repeat(1000);
        let other = format!(
            "a: &a {{x: 1}}\nb:\n{aliases}c: {{k: 1, k: 2, n: .nan}}\n? [1, {{a: b}}]\n: d\n.inf: 1\n~: 1\n!t e: !t [f]\n\
             proxy_service:\n  enabled: no\n  https_keypairs: []\n  listen_addr: x\n"
        );
        let text = format!("{other}node_tracker_service:\n  listen_addr: 127.0.0.1:1\n");
        assert_eq!(
            parse(&text).map(|config| config.listen_addr.value),
            Ok("127.0.0.1:1".to_owned())
        );
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = "node_tracker_service: {}\na0: &a0 [x]\n".to_owned();
        for level in 1..12 {
            let aliases = format!("*a{}, ", level - 1).repeat(10);
            text += &format!("a{level}: &a{level} [{aliases}]\n");
        }
        assert!(parse(&text).is_err());
    }

    #[test]
    fn our_keys_outside_of_the_section_are_refused() {
        let pair = "- key_file: a\n  cert_file: b\n";
        for key in [
            "https_keypairs",
            "\u{a0}https_keypairs",
            "\u{2003}\u{200b}https_keypairs",
            "'https_keypairs '",
        ] {
            let text = format!("node_tracker_service:\n  enabled: yes\n{key}:\n{pair}");
            let reason = "https_keypairs is a key of node_tracker_service: indent the key to stand below that section";
            assert_eq!(parse(&text), Err(format!("conf/tracker.yaml:3: {reason}")), "{key:?}");
        }
        for key in NAMES.iter().chain(Value::INNER_KEYS) {
            let message = parse(&format!("{key}: yes\nnode_tracker_service:\n")).unwrap_err();
            assert!(
                message.starts_with(&format!("conf/tracker.yaml:1: {key} is a key of ")),
                "{message}"
            );
        }
        let message = parse("\u{a0}node_tracker_service:\n  enabled: yes\n").unwrap_err();
        assert!(
            message.starts_with("conf/tracker.yaml:1: node_tracker_service has a character around it"),
            "{message}"
        );
        // Between the margin and the section's other keys, or behind a tab.
        for text in [
            "node_tracker_service:\n  enabled: yes\n https_keypairs: []\n",
            "node_tracker_service:\n  enabled: yes\n\thttps_keypairs: []\n",
            "node_tracker_service:\n  enabled: yes\n\u{a0} https_keypairs: []\n",
            "node_tracker_service:\n  enabled: yes\n   https_keypairs: []\n",
            "node_tracker_service:\n  enabled: yes\n  \u{a0}https_keypairs: []\n",
        ] {
            let message = parse(text).unwrap_err();
            assert!(message.starts_with("conf/tracker.yaml:"), "{text:?}: {message}");
        }
    }

    #[test]
    fn keys_without_a_value_and_repeated_keys_are_refused() {
        for Key { name: key, .. } in KEYS {
            for value in ["", " ~", " null"] {
                let reason = format!(
                    "conf/tracker.yaml:2: node_tracker_service.{key}: has no value: remove the key to use the default"
                );
                assert_eq!(
                    parse(&format!("node_tracker_service:\n  {key}:{value}\n")),
                    Err(reason),
                    "{value:?}"
                );
            }
        }
        let message = parse("node_tracker_service:\n  https_keypairs: []\n").unwrap_err();
        assert!(
            message.ends_with("https_keypairs: has no pair: remove the key to serve plaintext"),
            "{message}"
        );
        for (text, reason) in [
            (
                "node_tracker_service:\n  listen_addr: a:1\n  listen_addr: b:1\n",
                "3: node_tracker_service.listen_addr: is set twice",
            ),
            (
                "node_tracker_service:\nnode_tracker_service:\n",
                "2: a second section node_tracker_service",
            ),
        ] {
            assert_eq!(parse(text), Err(format!("conf/tracker.yaml:{reason}")), "{text:?}");
        }
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
        let text = "node_tracker_service:\n  client_ca_file: ca.crt\n  https_keypairs:\n  - key_file: a.key\n    \
                    cert_file: /etc/a.crt\n";
        let config = parse(text).unwrap();
        assert_eq!(config.client_ca_file.map(|file| file.value), Some("conf/ca.crt".into()));
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
                "conf/tracker.yaml:2: node_tracker_service.enabled: \"maybe\" is neither yes nor no".into(),
            ),
            (
                &format!("{section}  listen_addr: 3029"),
                "conf/tracker.yaml:2: node_tracker_service.listen_addr: \"3029\" is not host:port: :3029 is every address of the machine".into(),
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
                "conf/tracker.yaml:2: node_tracker_service.proxy_keep_alive_interval: \"5\" is not a duration: a \
                 unit is needed after each number, for example 5m"
                    .into(),
            ),
            (
                &format!("{section}  listen_adr: 127.0.0.1:1"),
                "conf/tracker.yaml:2: unknown key `listen_adr`, expected one of enabled, listen_addr, \
                 proxy_keep_alive_interval, shutdown_delay, max_routes, max_proxies, max_text_mb, max_routes_per_proxy, expiry_brake_percent, \
                 expiry_brake_routes, expiry_brake_intervals, data_dir, \
                 snapshot_interval, max_connections, client_memory_mb, \
                 max_share_per_client, max_watches, max_watched_mb, https_keypairs, client_ca_file, client_auth, client_identity, diag_addr, \
                 log_format, log_level"
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
