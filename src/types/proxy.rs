//! A proxy, as callers describe it and as the table returns it.

use std::net::Ipv6Addr;

use compact_str::CompactString;

use crate::error::{ProxyField, RegisterError, TextError};
use crate::types::life::Life;
use crate::types::node_id::check_text;

/// A proxy as a caller describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxy<'a> {
    /// The proxy's ID, compared byte by byte; 1 to 255 bytes, no control characters.
    pub id: &'a str,
    /// The cluster to which the proxy belongs; up to 255 bytes, no control characters, may be empty.
    pub cluster_name: &'a str,
    /// The address at which other proxies reach the proxy, `host:port`; up to 255 bytes. The host is a name, an IPv4
    /// address or an IPv6 address in brackets, and not the unspecified address.
    pub addr: &'a str,
}

/// Names a registered proxy; eight bytes, `Copy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyRef {
    pub(crate) number: u32,
    /// The number's life while the proxy is ALIVE.
    pub(crate) life: Life,
}

impl ProxyRef {
    /// The reference as a number. While the table lives, earlier and later registrations under the same ID have other
    /// numbers.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        u64::from(self.life.to_bits()) << 32 | u64::from(self.number)
    }
}

/// The details of a registered proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ProxyDetails {
    pub(crate) id: CompactString,
    pub(crate) cluster_name: CompactString,
    pub(crate) addr: CompactString,
}

impl ProxyDetails {
    /// The proxy's ID, as it was registered.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The cluster to which the proxy belongs.
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// The address at which other proxies reach the proxy, `host:port`.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Returns the ID, the cluster's name and the address. Strings of more than 24 bytes are not copied.
    #[must_use]
    pub fn into_parts(self) -> (String, String, String) {
        (self.id.into(), self.cluster_name.into(), self.addr.into())
    }
}

impl From<Proxy<'_>> for ProxyDetails {
    /// Copies the strings, and does not check them.
    fn from(proxy: Proxy<'_>) -> Self {
        Self {
            id: proxy.id.into(),
            cluster_name: proxy.cluster_name.into(),
            addr: proxy.addr.into(),
        }
    }
}

impl<'a> From<&'a ProxyDetails> for Proxy<'a> {
    fn from(details: &'a ProxyDetails) -> Self {
        Self {
            id: &details.id,
            cluster_name: &details.cluster_name,
            addr: &details.addr,
        }
    }
}

impl Proxy<'_> {
    pub(crate) fn check(&self) -> Result<(), RegisterError> {
        let invalid = |field| move |reason| RegisterError::Invalid { field, reason };
        check_text(self.id).map_err(invalid(ProxyField::Id))?;
        match check_text(self.cluster_name) {
            Ok(()) | Err(TextError::Empty) => {}
            Err(reason) => return Err(invalid(ProxyField::ClusterName)(reason)),
        }
        check_text(self.addr).map_err(invalid(ProxyField::Addr))?;
        check_host_port(self.addr).map_err(invalid(ProxyField::Addr))
    }
}

/// Checks for `host:port` that a client can dial, with an IPv6 address in brackets and a port that is not zero.
fn check_host_port(addr: &str) -> Result<(), TextError> {
    let (host, port) = addr.rsplit_once(':').ok_or(TextError::NotHostPort)?;
    let port_ok = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    if host.is_empty() || !port_ok {
        return Err(TextError::NotHostPort);
    }
    match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(inner) => check_ipv6(inner),
        None => check_host(host),
    }
}

fn check_ipv6(inner: &str) -> Result<(), TextError> {
    let ip = inner.parse::<Ipv6Addr>().map_err(|_| TextError::NotHostPort)?;
    // Also as IPv4-mapped: `::ffff:0.0.0.0`.
    match ip.to_canonical().is_unspecified() {
        true => Err(TextError::Unspecified),
        false => Ok(()),
    }
}

/// Checks a host name or an IPv4 address.
fn check_host(host: &str) -> Result<(), TextError> {
    // Nearly every host is ASCII. This loop vectorizes, because no byte depends on the byte before.
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let others = host.as_bytes().iter().filter(|byte| !is_plain(byte)).count();
    if others > 0 {
        let in_host = |c: char| c.is_alphanumeric() || matches!(c, '-' | '.' | '_');
        match host.char_indices().find(|&(_, c)| !in_host(c)) {
            // An IPv6 address without brackets, or with one.
            Some((_, ':' | '[' | ']')) => return Err(TextError::NotHostPort),
            Some((at, character)) => return Err(TextError::NotInHost { character, at }),
            None => {}
        }
    }
    // `0`, `0x0` and `00.0` are spellings of `0.0.0.0`, too.
    let is_zero = |byte: u8| matches!(byte, b'0' | b'.' | b'x' | b'X');
    match host.starts_with('0') && host.bytes().all(is_zero) {
        true => Err(TextError::Unspecified),
        false => Ok(()),
    }
}
