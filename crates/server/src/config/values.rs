//! The values of keys, as text. Each error says what is wrong with the text.

use std::path::{Path, PathBuf};
use std::time::Duration;

use nodetracker::Builder;
use tracing_subscriber::filter::Targets;

use crate::config::{ClientAuth, ClientIdentity, MAX_KEEP_ALIVE, Origin, duration};
use crate::log::LogFormat;

/// Bytes of a megabyte.
const MEGABYTE: usize = 1_000_000;

/// The least budget for clients, in megabytes: a few large replies.
const LEAST_CLIENT_MEMORY: usize = 16;

/// The least time between two snapshots.
const LEAST_SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number"))
}

/// Parses a number within bounds. `unit` follows the word "number" in an error.
fn number_from<T: TryFrom<u64>>(text: &str, least: u64, most: u64, unit: &str) -> Result<T, String> {
    let number = number(text)?;
    let value = T::try_from(number).ok().filter(|_| (least..=most).contains(&number));
    value.ok_or_else(|| format!("{number} is not a number{unit} from {least} to {most}"))
}

/// Parses a number of routes.
pub(super) fn routes(text: &str) -> Result<usize, String> {
    number_from(text, 1, Builder::MOST_ROUTES as u64, "")
}

/// Parses a percentage. `remark` ends an error.
pub(super) fn percent(text: &str, remark: &str) -> Result<u32, String> {
    let percent = number(text)?;
    match u32::try_from(percent) {
        Ok(percent) if (1..=100).contains(&percent) => Ok(percent),
        _ => Err(format!("{percent} is not a percentage from 1 to 100{remark}")),
    }
}

/// Parses the number of intervals of the expiry brake.
pub(super) fn brake_intervals(text: &str) -> Result<u32, String> {
    number_from(text, 1, 100, "").map_err(|error| error + " (1: no brake)")
}

/// Parses a number of connections.
pub(super) fn connections(text: &str) -> Result<u32, String> {
    number_from(text, 1, 1_000_000, "")
}

/// Parses a budget for clients in megabytes. Returns bytes.
pub(super) fn client_memory(text: &str) -> Result<usize, String> {
    let megabytes: usize = number_from(text, LEAST_CLIENT_MEMORY as u64, 1_000_000, " of megabytes")?;
    Ok(megabytes * MEGABYTE)
}

/// Parses a truth value, in the forms of YAML 1.1.
pub(super) fn yes_or_no(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" | "y" => Ok(true),
        "no" | "false" | "off" | "n" => Ok(false),
        _ => Err(format!("{text:?} is neither yes nor no")),
    }
}

/// Checks that a string is `host:port`. Whether the host exists is checked when the server binds.
pub(super) fn listen_addr(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not host:port")),
    }
}

/// Parses a keep-alive interval.
pub(super) fn keep_alive(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < Duration::from_millis(1) {
        return Err(format!("{text:?} is too short: every route would be expired at once"));
    }
    if interval > MAX_KEEP_ALIVE {
        return Err(format!("{text:?} is too long: the limit is 365 days"));
    }
    Ok(interval)
}

/// Parses the time between two snapshots.
pub(super) fn snapshot_interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < LEAST_SNAPSHOT_INTERVAL {
        return Err(format!(
            "{text:?} is too short: a snapshot takes about a second, the limit is 1s"
        ));
    }
    if interval > MAX_KEEP_ALIVE {
        return Err(format!("{text:?} is too long: the limit is 365 days"));
    }
    Ok(interval)
}

/// Parses the path of a file or a folder. In the configuration file, a relative path starts at the file's folder.
pub(super) fn path(text: &str, origin: &Origin) -> Result<PathBuf, String> {
    match origin {
        _ if text.is_empty() => Err("is empty".to_owned()),
        Origin::Key { file, .. } => Ok(file.parent().unwrap_or(Path::new("")).join(text)),
        _ => Ok(text.into()),
    }
}

/// Parses whether clients are verified.
pub(super) fn client_auth(text: &str) -> Result<ClientAuth, String> {
    match text {
        // Some writers of YAML turn `off` into a truth value.
        "off" | "false" | "no" => Ok(ClientAuth::Off),
        "optional" => Ok(ClientAuth::Optional),
        "required" => Ok(ClientAuth::Required),
        _ => Err(format!("{text:?} is neither off, optional nor required")),
    }
}

/// Parses where certificates have the identity of clients.
pub(super) fn client_identity(text: &str) -> Result<ClientIdentity, String> {
    match text {
        "teleport" => Ok(ClientIdentity::Teleport),
        "spiffe" => Ok(ClientIdentity::Spiffe),
        _ => Err(format!("{text:?} is neither teleport nor spiffe")),
    }
}

/// Parses the format of log lines.
pub(super) fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{text:?} is neither text nor json")),
    }
}

/// Checks a filter of the log.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    match text.parse::<Targets>() {
        _ if text.is_empty() => Err("is empty: use off to log nothing".to_owned()),
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{text:?} is not a filter: {error}")),
    }
}
