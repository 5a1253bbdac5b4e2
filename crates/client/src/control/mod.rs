//! The protocol on a tunnel's control stream, `nodetracker.agent.v1`: the parts that agents and proxies share.
//!
//! | module | contents |
//! | --- | --- |
//! | [`keep_alive`] | when to ping, and when a connection is broken |
//! | `frames` | messages on a stream of bytes |

pub(crate) mod frames;
pub mod keep_alive;

use std::time::Duration;

pub use nodetracker_proto::agent::v1 as proto;
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::ParsedCertificate;

/// The version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// The most proxies in one list.
pub const MAX_PROXIES: usize = 512;

/// The longest text in a message, in bytes.
pub const MAX_TEXT: usize = 255;

/// Verifies that the other end of a tunnel may have an ID. The arguments are the ID and the other end's certificates
/// from the TLS handshake, its own first. An error is logged. It closes the tunnel of an agent, and refuses the dial of
/// a peer. The function runs in the tunnel's task, so it must not block.
pub type Verify = dyn Fn(&str, &[CertificateDer<'static>]) -> Result<(), String> + Send + Sync;

/// Verifies that a certificate has an ID as a DNS name. A [`Verify`] for IDs that are valid DNS names, such as UUIDs.
///
/// # Errors
///
/// If the ID is no DNS name, if there is no certificate, or if the certificate has other names only.
pub fn verify_dns_name(id: &str, certificates: &[CertificateDer<'static>]) -> Result<(), String> {
    let certificate = certificates.first().ok_or("no certificate")?;
    let certificate = ParsedCertificate::try_from(certificate).map_err(|error| error.to_string())?;
    let name = ServerName::try_from(id).map_err(|error| error.to_string())?;
    verify_server_name(&certificate, &name).map_err(|error| error.to_string())
}

/// Whether a text can be an ID.
pub(crate) fn is_id(text: &str) -> bool {
    (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(char::is_control)
}

/// Returns the beginning of a text that fits into a message.
pub(crate) fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// Reads a duration of a message. A missing or negative duration is the minimum, an overlong duration the maximum.
pub(crate) fn duration(duration: Option<&prost_types::Duration>, min: Duration, max: Duration) -> Duration {
    let duration = duration.and_then(|duration| Duration::try_from(*duration).ok());
    duration.unwrap_or(min).clamp(min, max)
}

/// Writes a duration for a message. The bounds of [`duration`] are far less than the maximum of a message.
pub(crate) fn proto_duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
