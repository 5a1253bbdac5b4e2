//! Who a client is, for limits and for log lines.

use std::net::{IpAddr, Ipv4Addr};

/// The identity of a client: the identity in its certificate, or its address if it has no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    /// An address of IPv4.
    V4(Ipv4Addr),
    /// The first 56 bits of an address of IPv6, which providers give to one customer. The customer chooses the others.
    V6(u64),
    /// The [identity](crate::auth::Caller::identity) of a client with a certificate.
    Certified(u64),
}

impl From<IpAddr> for ClientKey {
    fn from(addr: IpAddr) -> Self {
        // A socket that listens for both families sees clients of IPv4 as `::ffff:a.b.c.d`.
        match addr.to_canonical() {
            IpAddr::V4(addr) => Self::V4(addr),
            IpAddr::V6(addr) => Self::V6((u128::from(addr) >> 72) as u64),
        }
    }
}
