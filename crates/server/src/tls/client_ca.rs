//! The authorities that certify clients.

use std::path::Path;
use std::sync::Arc;

use nodetracker_tls::pem;
use rustls::Error;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use crate::auth::Caller;
use crate::config::{ClientAuth, ClientIdentity};

/// The authorities of one file, and how clients are named.
#[derive(Debug)]
pub(super) struct ClientCa {
    authorities: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
    identity: ClientIdentity,
}

impl ClientCa {
    /// Reads the file. An error says what is wrong with the file.
    pub(super) fn load(
        file: &Path,
        auth: ClientAuth,
        identity: ClientIdentity,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let authorities = pem::certificates(file)?;
        let unusable = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let roots = pem::roots(&authorities).map_err(|error| unusable(&error))?;
        let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        if auth == ClientAuth::Optional {
            verifier = verifier.allow_unauthenticated();
        }
        Ok(Self {
            verifier: verifier.build().map_err(|error| unusable(&error))?,
            authorities,
            identity,
        })
    }

    pub(super) fn authorities(&self) -> &[CertificateDer<'static>] {
        &self.authorities
    }

    pub(super) fn verifier(&self) -> &Arc<dyn ClientCertVerifier> {
        &self.verifier
    }

    /// Checks that an authority certifies a client's chain now. The check takes some hundred microseconds.
    pub(super) fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<(), Error> {
        let (certificate, intermediates) = chain.split_first().ok_or(Error::NoCertificatesPresented)?;
        let verified = self
            .verifier
            .verify_client_cert(certificate, intermediates, UnixTime::now());
        verified.map(drop)
    }

    /// Returns the client with a verified certificate.
    pub(super) fn caller(&self, certificate: &CertificateDer<'_>) -> Caller {
        Caller::from_certificate(certificate, self.identity)
    }
}
