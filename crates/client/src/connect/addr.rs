//! The address of a tracker.

use std::fmt;
use std::str::FromStr;

use http::Uri;

/// The port of a tracker whose address names none, as in RFD 47.
pub const DEFAULT_PORT: u16 = 3029;

/// The address of a tracker: `host:port`, `http://host:port` or `https://host:port`. The default port is 3029. A host
/// is a name, an IPv4 address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrackerAddr {
    tls: bool,
    host: String,
    port: u16,
}

/// Why a text is not the address of a tracker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not the address of a tracker: {reason}")]
pub struct AddrError {
    text: String,
    reason: String,
}

impl FromStr for TrackerAddr {
    type Err = AddrError;

    fn from_str(text: &str) -> Result<Self, AddrError> {
        let error = |reason: &str| AddrError {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (tls, authority) = match text.split_once("://") {
            None => (false, text),
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(error(&format!("unknown scheme {scheme:?}, expected http or https"))),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let authority: http::uri::Authority = authority.parse().map_err(|_| error("expected host:port"))?;
        if authority.as_str().contains('@') {
            return Err(error("a user is not allowed"));
        }
        // Text after the host: a port that is no number, or is too large.
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => DEFAULT_PORT,
            Some(_) => authority
                .port_u16()
                .filter(|&port| port != 0)
                .ok_or_else(|| error("bad port"))?,
            None => return Err(error("expected host:port")),
        };
        if authority.host().is_empty() {
            return Err(error("no host"));
        }
        Ok(Self {
            tls,
            host: authority.host().to_owned(),
            port,
        })
    }
}

impl fmt::Display for TrackerAddr {
    /// Writes the address with its scheme and its port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", self.host, self.port)
    }
}

impl TrackerAddr {
    /// Whether the tracker speaks TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The host. An IPv6 address has no brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        let inner = self.host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        inner.unwrap_or(&self.host)
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URI that precedes the path of a method.
    pub(crate) fn origin(&self) -> Uri {
        // The parts were parsed from a URI, so this cannot fail.
        Uri::try_from(self.to_string()).unwrap_or_default()
    }

    /// As [`origin`](Self::origin), with `http`.
    pub(crate) fn plaintext_origin(&self) -> Uri {
        let plaintext = Self {
            tls: false,
            ..self.clone()
        };
        plaintext.origin()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_what_operators_write() {
        for (text, tls, host, port, written) in [
            ("10.0.0.1:3029", false, "10.0.0.1", 3029, "http://10.0.0.1:3029"),
            (
                "tracker.example",
                false,
                "tracker.example",
                3029,
                "http://tracker.example:3029",
            ),
            (
                "https://tracker.example:443",
                true,
                "tracker.example",
                443,
                "https://tracker.example:443",
            ),
            ("http://[::1]:1/", false, "::1", 1, "http://[::1]:1"),
            ("[fe80::1]", false, "fe80::1", 3029, "http://[fe80::1]:3029"),
        ] {
            let addr: TrackerAddr = text.parse().unwrap();
            assert_eq!((addr.is_tls(), addr.host(), addr.port()), (tls, host, port), "{text}");
            assert_eq!(addr.to_string(), written);
            assert_eq!(written.parse(), Ok(addr.clone()));
            assert_eq!(addr.origin().to_string(), format!("{written}/"));
        }
    }

    #[test]
    fn an_error_names_the_text_and_the_reason() {
        for (text, reason) in [
            ("", "expected host:port"),
            (":3029", "no host"),
            ("grpc://host:1", "unknown scheme \"grpc\", expected http or https"),
            ("host:0", "bad port"),
            ("host:", "bad port"),
            ("host:65536", "bad port"),
            ("host:port", "bad port"),
            ("http://host:1/path", "expected host:port"),
            ("user@host:1", "a user is not allowed"),
            ("::1:3029", "expected host:port"),
            ("ho st:1", "expected host:port"),
        ] {
            let error = text.parse::<TrackerAddr>().unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{text:?} is not the address of a tracker: {reason}")
            );
        }
    }
}
