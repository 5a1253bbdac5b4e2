//! A client's side of TLS: trust in the certificates of one file, and the client's own certificate.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::pem::FileError;
use crate::{dates, pem};

/// The protocol of gRPC connections that both sides ask for in the TLS handshake: HTTP/2.
pub const ALPN: &[u8] = b"h2";

/// The PEM files of a client.
#[derive(Debug, Clone, Copy)]
pub struct ClientFiles<'a> {
    /// The authorities to trust. A server's own certificate is trusted, too.
    pub ca: &'a Path,
    /// The client's own private key and certificate chain, in this order.
    pub keypair: Option<(&'a Path, &'a Path)>,
}

/// Why a TLS configuration cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct ClientConfigError {
    /// The file that cannot be used.
    pub file: ClientFile,
    /// What is wrong. The text names the file's path.
    pub reason: String,
}

/// A file of [`ClientFiles`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientFile {
    /// The file of the authorities.
    Ca,
    /// The file of the client's certificate chain.
    Certificate,
    /// The file of the client's private key.
    Key,
}

/// Returns a configuration that trusts only the certificates of one PEM file, and servers that they certify. The
/// configuration asks for [`ALPN`].
///
/// # Errors
///
/// If a file cannot be used.
pub fn client_config(files: &ClientFiles<'_>) -> Result<Arc<ClientConfig>, ClientConfigError> {
    let bad = |file| {
        move |reason: FileError| ClientConfigError {
            file,
            reason: reason.to_string(),
        }
    };
    let bad_ca = |error: &dyn Display| bad(ClientFile::Ca)(format!("{}: {error}", files.ca.display()).into());
    let trusted = pem::certificates(files.ca).map_err(bad(ClientFile::Ca))?;
    let roots = pem::roots(&trusted).map_err(|error| bad_ca(&error))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| bad_ca(&error))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| bad_ca(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustedFile { trusted, authorities }));
    let mut config = match files.keypair {
        None => config.with_no_client_auth(),
        Some((key_file, cert_file)) => {
            let chain = pem::certificates(cert_file).map_err(bad(ClientFile::Certificate))?;
            let key = pem::private_key(key_file).map_err(bad(ClientFile::Key))?;
            let unusable = |error| bad(ClientFile::Key)(format!("{}: {error}", key_file.display()).into());
            config.with_client_auth_cert(chain, key).map_err(unusable)?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Trusts servers with a certificate of the file, and servers that an authority of the file certifies.
///
/// webpki refuses an authority's certificate as a server's. But `openssl req -x509` makes certificates that are both.
#[derive(Debug)]
struct TrustedFile {
    trusted: Vec<CertificateDer<'static>>,
    authorities: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for TrustedFile {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.trusted.contains(end_entity) {
            return self
                .authorities
                .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        dates::check(end_entity, now)?;
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}
