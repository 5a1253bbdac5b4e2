//! Proxies.

use compact_str::CompactString;

/// A proxy as a caller describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proxy<'a> {
    /// The proxy's ID, compared byte by byte; 1 to 255 bytes, no control characters.
    pub id: &'a str,
    /// The cluster it belongs to; up to 255 bytes, no control characters, may be empty.
    pub cluster_name: &'a str,
    /// Where other proxies reach it, `host:port`; up to 255 bytes.
    pub addr: &'a str,
}

/// Names a registered proxy; eight bytes, `Copy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProxyRef {
    pub(crate) number: u32,
    pub(crate) generation: u32,
}

/// What is known of a registered proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyDetails {
    /// The proxy's ID, as it was registered.
    pub id: CompactString,
    /// The cluster it belongs to.
    pub cluster_name: CompactString,
    /// Where other proxies reach it, `host:port`.
    pub addr: CompactString,
}
