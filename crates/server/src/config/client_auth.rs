//! How clients prove who they are.

use std::path::Path;

use crate::config::{Config, ConfigError, Origin};

/// Whether clients prove who they are with a certificate (mTLS).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientAuth {
    /// The server asks for no certificate, and every client may make every call.
    #[default]
    Off,
    /// The server verifies the certificate of a client that has one. A client without a certificate may ask only for
    /// the health and for the descriptors of the services.
    Optional,
    /// The server refuses connections of clients without a verified certificate.
    Required,
}

/// Where a client's certificate has the client's role and the proxy's ID.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClientIdentity {
    /// Teleport's convention: the subject's O is the role, `Proxy` or `Admin`, and its CN is `<proxy ID>` or
    /// `<proxy ID>.<cluster>`. So a proxy's ID ends at the first dot.
    #[default]
    Teleport,
    /// A SPIFFE ID as the certificate's only URI: `spiffe://<trust domain>/proxy/<proxy ID>` or
    /// `spiffe://<trust domain>/admin`.
    Spiffe,
}

impl Config {
    /// Returns the file of the authorities that certify clients. `None` if clients are not verified.
    ///
    /// # Errors
    ///
    /// Clients should be verified, but a key that this needs is missing. Or there is a file, but nothing says whether
    /// clients should be verified.
    pub(crate) fn client_ca(&self) -> Result<Option<(&Path, &Origin)>, ConfigError> {
        let auth = &self.client_auth;
        let error = |origin: &Origin, reason: &str| Err(ConfigError::new(origin.clone(), reason));
        match (auth.value, &self.client_ca_file) {
            (ClientAuth::Off, Some(file)) if matches!(auth.origin, Origin::Default(_)) => error(
                &file.origin,
                "has no effect while client_auth has its default, off: set client_auth to required, optional or off",
            ),
            (ClientAuth::Off, _) => Ok(None),
            (_, _) if self.keypairs.is_empty() => error(
                &auth.origin,
                "needs https_keypairs: clients have certificates only with TLS",
            ),
            (_, None) => error(
                &auth.origin,
                "needs client_ca_file: the authorities that certify clients",
            ),
            (_, Some(file)) => Ok(Some((&file.value, &file.origin))),
        }
    }
}
