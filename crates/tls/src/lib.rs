//! TLS from PEM files, for nodetracker's server and its clients.
//!
//! | module | contents |
//! | --- | --- |
//! | [`pem`] | keys and certificates from PEM |
//! | [`dates`] | when certificates are valid |
//! | [`client`] | a client's side of TLS: trust in the certificates of one file, and the client's own certificate |

pub mod client;
pub mod dates;
pub mod pem;
