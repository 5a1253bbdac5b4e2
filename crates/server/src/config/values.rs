//! The values of keys, as text. Each error says what is wrong with the text.

use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nodetracker::Builder;

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
    number_from(text, 1, Builder::MAX_ROUTES as u64, "")
}

/// Parses a number of proxies.
pub(super) fn proxies(text: &str) -> Result<usize, String> {
    number_from(text, 1, Builder::MAX_PROXIES as u64, "")
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

/// Parses a number of watches.
pub(super) fn watches(text: &str) -> Result<usize, String> {
    number_from(text, 1, 1_000_000, "")
}

/// Parses a size in megabytes. Returns bytes.
pub(super) fn megabytes(text: &str) -> Result<usize, String> {
    let megabytes: usize = number_from(text, 1, 1_000_000, " of megabytes")?;
    Ok(megabytes * MEGABYTE)
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

/// Checks that a string is `host:port`, or `:port` for every address of the machine. An IPv6 address has brackets.
/// Whether the host exists is checked when the server binds.
pub(super) fn listen_addr(text: &str) -> Result<String, String> {
    let Some((host, port)) = text.rsplit_once(':').filter(|(_, port)| is_port(port)) else {
        let hint = match !text.is_empty() && is_port(text) {
            true => format!(": :{text} is every address of the machine"),
            false => String::new(),
        };
        return Err(format!("{text:?} is not host:port{hint}"));
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    match in_brackets {
        Some(host) if host.parse::<Ipv6Addr>().is_ok() => Ok(text.to_owned()),
        Some(host) => Err(format!("{text:?}: {host:?} is not an IPv6 address")),
        None if host.contains(':') => Err(format!("{text:?}: put an IPv6 address in brackets: [{host}]:{port}")),
        None => Ok(text.to_owned()),
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

/// Parses a keep-alive interval.
pub(super) fn keep_alive(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < Duration::from_millis(1) {
        return Err(format!("{text:?} is too short: every route would be expired at once"));
    }
    bounded(text, interval)
}

/// Parses the delay of a stop.
pub(super) fn shutdown_delay(text: &str) -> Result<Duration, String> {
    bounded(text, duration::parse(text)?)
}

/// Refuses a duration over a year.
fn bounded(text: &str, duration: Duration) -> Result<Duration, String> {
    match duration > MAX_KEEP_ALIVE {
        true => Err(format!("{text:?} is too long: the limit is 365 days")),
        false => Ok(duration),
    }
}

/// Parses the time between two snapshots.
pub(super) fn snapshot_interval(text: &str) -> Result<Duration, String> {
    let interval = duration::parse(text)?;
    if interval < LEAST_SNAPSHOT_INTERVAL {
        return Err(format!(
            "{text:?} is too short: a snapshot takes about a second, the limit is 1s"
        ));
    }
    bounded(text, interval)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_operators_write() {
        for text in [
            "127.0.0.1:3029",
            "[::1]:3029",
            "[::]:0",
            ":3029",
            "localhost:3029",
            "tracker.example:65535",
        ] {
            assert_eq!(listen_addr(text), Ok(text.to_owned()));
        }
        for (text, reason) in [
            ("", r#""" is not host:port"#),
            (
                "3029",
                r#""3029" is not host:port: :3029 is every address of the machine"#,
            ),
            ("localhost:", r#""localhost:" is not host:port"#),
            ("localhost:+1", r#""localhost:+1" is not host:port"#),
            ("localhost:65536", r#""localhost:65536" is not host:port"#),
            ("[::1]", r#""[::1]" is not host:port"#),
            ("[host]:1", r#""[host]:1": "host" is not an IPv6 address"#),
            ("::1:3029", r#""::1:3029": put an IPv6 address in brackets: [::1]:3029"#),
        ] {
            assert_eq!(listen_addr(text), Err(reason.to_owned()), "{text}");
        }
    }
}
