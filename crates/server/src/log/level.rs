//! What the process logs: a level for this project's lines, and levels for the lines of other crates.

use std::env;
use std::fmt;
use std::str::FromStr;

use tracing_subscriber::filter::{LevelFilter, Targets};

/// The target of this project's lines: the beginning of the names of its crates.
const OURS: &str = "nodetracker";

/// The longest text of a level, in bytes.
const MAX_LEN: usize = 1024;

/// The levels by name. There is no trace: a release build has no such lines.
const LEVELS: [(&str, LevelFilter); 5] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
];

/// What the process logs: `off`, `error`, `warn`, `info` or `debug`.
///
/// A level alone is for this project's lines only: clients can make libraries write a line for each frame.
/// `TARGET=LEVEL` is for the lines of a crate or a module. Both can be combined, separated by commas.
///
/// ```
/// use nodetracker_server::LogLevel;
///
/// let level: LogLevel = "debug,h2=warn".parse().unwrap();
/// assert_eq!(level.to_string(), "debug,h2=warn");
/// assert!("verbose".parse::<LogLevel>().is_err());
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct LogLevel {
    text: String,
    targets: Targets,
}

impl Eq for LogLevel {}

impl Default for LogLevel {
    fn default() -> Self {
        Self {
            text: "info".to_owned(),
            targets: Targets::new().with_target(OURS, LevelFilter::INFO),
        }
    }
}

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() > MAX_LEN {
            return Err(format!("has {} bytes, the limit is {MAX_LEN}", text.len()));
        }
        let mut targets = Targets::new();
        for part in text.split(',').map(str::trim) {
            let (target, name) = part.split_once('=').unwrap_or((OURS, part));
            let level = LEVELS.iter().find(|(level, _)| level.eq_ignore_ascii_case(name));
            match level {
                Some(&(_, level)) if !target.is_empty() => targets = targets.with_target(target, level),
                _ => {
                    return Err(format!(
                        "{part:?} is neither off, error, warn, info or debug, nor TARGET= and one of these"
                    ));
                }
            }
        }
        let text = text.to_owned();
        Ok(Self { text, targets })
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl LogLevel {
    /// Returns the level from the variable `RUST_LOG`, with its usual meaning: a level without a target is for the
    /// lines of all crates. `None` if the variable is not set, or is empty.
    ///
    /// An error says what is wrong with the variable.
    pub(crate) fn of_rust_log() -> Option<Result<Self, String>> {
        let text = env::var("RUST_LOG").ok().filter(|text| !text.is_empty())?;
        let parsed = text.parse::<Targets>();
        Some(match parsed {
            Ok(targets) => Ok(Self { text, targets }),
            Err(error) => Err(format!("RUST_LOG: {text:?} is not a filter: {error}")),
        })
    }

    /// Returns the filter of the lines.
    pub(super) fn targets(&self) -> &Targets {
        &self.targets
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_alone_is_for_this_project() {
        for (name, level) in LEVELS {
            let parsed: LogLevel = name.parse().unwrap();
            let enabled = |target, level: Level| parsed.targets().would_enable(target, &level);
            for at in [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG] {
                assert_eq!(enabled("nodetracker_server::http2", at), at <= level, "{name} {at}");
                assert!(!enabled("h2::server", at), "{name} {at}");
            }
        }
        assert_eq!("info".parse(), Ok(LogLevel::default()));
    }

    #[test]
    fn targets_have_levels_of_their_own() {
        let text = "DEBUG, h2=warn,nodetracker_server::rpc=error";
        let level: LogLevel = text.parse().unwrap();
        assert_eq!(level.to_string(), text);
        let enabled = |target, at: Level| level.targets().would_enable(target, &at);
        assert!(enabled("nodetracker_server::http2", Level::DEBUG));
        assert!(!enabled("nodetracker_server::rpc::session", Level::WARN));
        assert!(enabled("h2", Level::WARN) && !enabled("h2", Level::INFO));
    }

    #[test]
    fn a_mistake_is_named() {
        for (text, part) in [
            ("", ""),
            ("verbose", "verbose"),
            ("trace", "trace"),
            ("debug,", ""),
            ("h2", "h2"),
            ("h2=loud", "h2=loud"),
            ("info,=debug", "=debug"),
            ("a=b=debug", "a=b=debug"),
        ] {
            let reason = format!("{part:?} is neither off, error, warn, info or debug, nor TARGET= and one of these");
            assert_eq!(text.parse::<LogLevel>(), Err(reason), "{text:?}");
        }
        let long = "nodetracker=info,".repeat(100);
        assert_eq!(
            long.parse::<LogLevel>(),
            Err("has 1700 bytes, the limit is 1024".to_owned())
        );
    }
}
