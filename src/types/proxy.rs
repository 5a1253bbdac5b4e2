//! A proxy, as callers describe it and as the table returns it.

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
    /// The address at which other proxies reach the proxy, `host:port`; up to 255 bytes.
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

/// Checks for `host:port`, with an IPv6 address in brackets and a port that is not zero.
fn check_host_port(addr: &str) -> Result<(), TextError> {
    let (host, port) = addr.rsplit_once(':').ok_or(TextError::NotHostPort)?;
    let bracketed = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let host_ok = match bracketed {
        Some(inner) => inner.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains([':', '[', ']']) && !host.contains(char::is_whitespace),
    };
    let port_ok = port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
    if host_ok && port_ok {
        Ok(())
    } else {
        Err(TextError::NotHostPort)
    }
}
