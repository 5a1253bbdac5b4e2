//! The commands' side of TLS: trust in the certificates of one file, and a certificate of their own.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};

use crate::tls::{ALPN, dates, pem};

/// The PEM files of a command.
#[derive(Debug)]
pub(crate) struct ClientFiles<'a> {
    /// The authorities to trust.
    pub(crate) ca: &'a Path,
    /// The command's own key and certificate chain, if it has one.
    pub(crate) keypair: Option<(&'a Path, &'a Path)>,
}

/// Returns a configuration that trusts only the certificates of one PEM file, and servers that these certify. An error
/// begins with the flag of the file that cannot be used.
pub(crate) fn client_config(files: &ClientFiles<'_>) -> Result<Arc<ClientConfig>, String> {
    let bad_ca = |reason| format!("--ca-file: {reason}");
    let trusted = pem::certificates(files.ca).map_err(bad_ca)?;
    let roots = pem::roots(&trusted).map_err(|error| bad_ca(format!("{}: {error}", files.ca.display())))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| error.to_string())?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustedFile { trusted, authorities }));
    let mut config = match files.keypair {
        None => config.with_no_client_auth(),
        Some((key_file, cert_file)) => {
            let chain = pem::certificates(cert_file).map_err(|reason| format!("--cert-file: {reason}"))?;
            let key = pem::private_key(key_file).map_err(|reason| format!("--key-file: {reason}"))?;
            let unusable = |error| format!("--key-file: {}: {error}", key_file.display());
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
