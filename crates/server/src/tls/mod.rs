//! The server's side of TLS: the server's certificates, the authorities that certify clients.
//!
//! | file | contents |
//! | --- | --- |
//! | [`server`] | the loaded files, and how they are replaced while the server runs |
//! | [`choice`] | the certificate that a client gets |
//! | [`client_ca`] | the authorities that certify clients |
//! | [`peer`] | the client of one connection, and the end of the server's trust in it |
//! | [`watch_files`] | the files are read again when they change |

mod choice;
mod client_ca;
mod peer;
mod server;
mod watch_files;

pub(crate) use peer::{Handshake, Peer};
pub use server::Certificates;
pub(crate) use watch_files::{FileWatch, INTERVAL};
