//! TLS from PEM files, for nodetracker's server and its clients.
//!
//! | module | contents |
//! | --- | --- |
//! | [`pem`] | keys and certificates from PEM |
//! | [`dates`] | when certificates are valid |
//! | [`client`] | a client's side of TLS: trust in the certificates of one file, and a certificate of its own |

pub mod client;
pub mod dates;
pub mod pem;
