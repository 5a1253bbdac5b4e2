//! TLS from PEM files: the server's certificates, the authorities that certify clients, and the commands' side.
//!
//! | file | contents |
//! | --- | --- |
//! | [`server`] | the loaded files, and how they are replaced while the server runs |
//! | [`choice`] | the certificate that a client gets |
//! | [`client_ca`] | the authorities that certify clients |
//! | [`peer`] | the client of one connection, and the end of the server's trust in it |
//! | [`watch_files`] | the files are read again when they change |
//! | [`dates`] | when certificates are valid |
//! | [`pem`] | keys and certificates from PEM |
//! | [`client`] | the commands' side |

mod choice;
mod client;
mod client_ca;
mod dates;
mod peer;
mod pem;
mod server;
mod watch_files;

pub(crate) use client::{ClientFiles, client_config};
pub(crate) use peer::{Handshake, Peer};
pub use server::Certificates;
pub(crate) use watch_files::{FileWatch, INTERVAL};

/// The protocol that a TLS client must ask for, HTTP/2.
const ALPN: &[u8] = b"h2";
