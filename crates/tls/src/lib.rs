//! TLS from PEM files, for nodetracker's server and its clients.
//!
//! | module | contents |
//! | --- | --- |
//! | [`pem`] | keys and certificates from PEM |
//! | [`dates`] | when certificates are valid |
//! | [`client`] | a client's side of TLS: trust in the certificates of one file, and the client's own certificate |
//! | [`server`] | a server's side of TLS: its certificate, and the authorities of its clients |

pub mod client;
pub mod dates;
pub mod pem;
pub mod server;
