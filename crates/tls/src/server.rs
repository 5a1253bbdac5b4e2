//! A server's side of TLS: the server's own certificate, and the authorities of its clients.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{Error, InconsistentKeys, ServerConfig};

use crate::pem::{self, FileError};

/// The PEM files of a server.
#[derive(Debug, Clone, Copy)]
pub struct ServerFiles<'a> {
    /// The server's private key.
    pub key: &'a Path,
    /// The server's certificate chain, its own certificate first.
    pub certificate: &'a Path,
    /// The authorities that certify the clients. Without it, clients need no certificate.
    pub client_ca: Option<&'a Path>,
}

/// Why a TLS configuration cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ServerConfigError {
    /// The file that cannot be used.
    pub file: ServerFile,
    /// What is wrong. The text names the file's path.
    pub reason: String,
}

/// A file of [`ServerFiles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerFile {
    /// The file of the private key.
    Key,
    /// The file of the certificate chain.
    Certificate,
    /// The file of the clients' authorities.
    ClientCa,
}

/// Returns a configuration with one certificate. If the files name authorities, each client needs a certificate, and no
/// TLS session is resumed: a resumed session would outlive the client's certificate.
///
/// # Errors
///
/// If a file cannot be used, or if the key is not the certificate's.
pub fn server_config(files: &ServerFiles<'_>, alpn: &[u8]) -> Result<ServerConfig, ServerConfigError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let key = certified_key(files.key, files.certificate, &provider)?;
    let unusable = |file, path: &Path, error: &dyn Display| ServerConfigError {
        file,
        reason: format!("{}: {error}", path.display()),
    };
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(ServerFile::Key, files.key, &error))?;
    let builder = match files.client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let bad = |error: &dyn Display| unusable(ServerFile::ClientCa, file, error);
            let authorities = pem::certificates(file).map_err(|reason| ServerConfigError {
                file: ServerFile::ClientCa,
                reason: reason.to_string(),
            })?;
            let roots = pem::roots(&authorities).map_err(|error| bad(&error))?;
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| bad(&error))?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![alpn.to_vec()];
    if files.client_ca.is_some() {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// Reads a private key and its certificate chain.
///
/// # Errors
///
/// If a file cannot be used, or if the key is not the certificate's.
pub fn certified_key(
    key_file: &Path,
    certificate_file: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, ServerConfigError> {
    let bad = |file| {
        move |reason: FileError| ServerConfigError {
            file,
            reason: reason.to_string(),
        }
    };
    let chain = pem::certificates(certificate_file).map_err(bad(ServerFile::Certificate))?;
    let key = pem::private_key(key_file).map_err(bad(ServerFile::Key))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        let path = key_file.display();
        let reason = match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                format!("{path} is not the key of {}", certificate_file.display())
            }
            error => format!("{path}: {error}"),
        };
        bad(ServerFile::Key)(reason.into())
    })
}
