//! The authorities that certify clients.

use std::path::Path;
use std::sync::Arc;

use nodetracker_tls::pem::{self, FileError};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use thiserror::Error;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::auth::Caller;
use crate::config::{ClientAuth, ClientIdentity};
use crate::limits::{MAX_CHAIN_SIZE, MAX_INTERMEDIATES};

/// The authorities of one file, and how clients are named.
#[derive(Debug)]
pub(super) struct ClientCa {
    authorities: Vec<CertificateDer<'static>>,
    verifier: Arc<dyn ClientCertVerifier>,
    identity: ClientIdentity,
}

impl ClientCa {
    /// Reads the file. An error names the fault of the file.
    pub(super) fn load(
        file: &Path,
        auth: ClientAuth,
        identity: ClientIdentity,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, FileError> {
        let authorities = pem::certificates(file)?;
        let unusable = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let roots = pem::roots(&authorities).map_err(|error| unusable(&error))?;
        let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        if auth == ClientAuth::Optional {
            verifier = verifier.allow_unauthenticated();
        }
        let verifier = verifier.build().map_err(|error| unusable(&error))?;
        Ok(Self {
            verifier: Arc::new(ShortChains(verifier)),
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

/// A client's chain has too many certificates, or too many bytes.
#[derive(Debug, Error)]
#[error(
    "the chain has {intermediates} intermediate certificates of at most {MAX_INTERMEDIATES}, and {bytes} bytes of at \
     most {MAX_CHAIN_SIZE}"
)]
struct LongChain {
    intermediates: usize,
    bytes: usize,
}

/// Intermediate certificates of a client's chain have the same subject, and different keys.
#[derive(Debug, Error)]
#[error("the chain has intermediate certificates with the same subject and different keys")]
struct AmbiguousChain;

/// Reports whether certificates of different keys have the same subject, so that each could have issued the same
/// certificates.
///
/// webpki has only one certificate of a subject and key in a path. While an authority is replaced, clients send its
/// former and its new certificate, which have one key.
fn are_ambiguous(certificates: &[CertificateDer<'_>]) -> bool {
    // Certificates that cannot be parsed count as different keys of one subject.
    let names: Vec<_> = certificates
        .iter()
        .map(|certificate| match X509Certificate::from_der(certificate) {
            Ok((_, parsed)) => (parsed.subject().as_raw().to_vec(), parsed.public_key().raw.to_vec()),
            Err(_) => (Vec::new(), certificate.to_vec()),
        })
        .collect();
    names.iter().enumerate().any(|(number, (subject, key))| {
        let mut others = names[..number].iter();
        others.any(|(other, other_key)| other == subject && other_key != key)
    })
}

/// Refuses chains that are long or ambiguous, and leaves the others to another verifier.
///
/// webpki tries every order of the certificates that could have issued each other, as far as their names show, up to
/// 200,000 times. So the 64 KiB of one handshake could keep a worker busy for some tenths of a second. Without a
/// subject that occurs twice, each certificate has one issuer in the chain, so webpki checks few signatures.
#[derive(Debug)]
struct ShortChains(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for ShortChains {
    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let bytes = certificate.len() + intermediates.iter().map(|certificate| certificate.len()).sum::<usize>();
        let intermediates_len = intermediates.len();
        if intermediates_len > MAX_INTERMEDIATES || bytes > MAX_CHAIN_SIZE {
            let intermediates = intermediates_len;
            let long = OtherError(Arc::new(LongChain { intermediates, bytes }));
            return Err(CertificateError::Other(long).into());
        }
        if are_ambiguous(intermediates) {
            return Err(CertificateError::Other(OtherError(Arc::new(AmbiguousChain))).into());
        }
        self.0.verify_client_cert(certificate, intermediates, now)
    }

    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair};
    use rustls::crypto::aws_lc_rs;
    use tempfile::TempDir;

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority_params() -> CertificateParams {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        params
    }

    fn authority() -> Authority {
        CertifiedIssuer::self_signed(authority_params(), KeyPair::generate().unwrap()).unwrap()
    }

    fn client_of(issuer: &Issuer<'_, KeyPair>) -> Certificate {
        let key = KeyPair::generate().unwrap();
        CertificateParams::new([]).unwrap().signed_by(&key, issuer).unwrap()
    }

    fn load(authority: &Authority) -> ClientCa {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("ca.crt");
        std::fs::write(&file, authority.pem()).unwrap();
        let provider = Arc::new(aws_lc_rs::default_provider());
        ClientCa::load(&file, ClientAuth::Required, ClientIdentity::default(), &provider).unwrap()
    }

    fn is_long(verified: Result<(), Error>) -> bool {
        matches!(verified, Err(Error::InvalidCertificate(CertificateError::Other(_))))
    }

    #[test]
    fn long_chains_are_refused_before_webpki_tries_them() {
        let root = authority();
        let ca = load(&root);
        // Each of these could have issued each other, as far as their names show.
        let many: Vec<_> = (0..150).map(|_| authority()).collect();
        let client = client_of(&many[0]);
        let chain: Vec<_> = [client.der().clone()]
            .into_iter()
            .chain(many.iter().map(|authority| authority.der().clone()))
            .collect();
        assert!(chain.iter().map(|certificate| certificate.len()).sum::<usize>() < 64 * 1024);
        assert!(is_long(ca.verify(&chain)));
        assert!(!is_long(ca.verify(&chain[..2])));

        let mut params = authority_params();
        params
            .distinguished_name
            .push(DnType::OrganizationName, "x".repeat(MAX_CHAIN_SIZE));
        let large = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let client = client_of(&root);
        assert!(is_long(ca.verify(&[client.der().clone(), large.der().clone()])));
        ca.verify(&[client.der().clone()]).expect("a short chain");
    }

    #[test]
    fn different_intermediates_of_one_name_are_refused_before_webpki_tries_them() {
        let root = authority();
        let ca = load(&root);
        let named = |name: &str| {
            let mut params = authority_params();
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let issued = |name: &str, issuer: &Authority| {
            CertifiedIssuer::signed_by(named(name), KeyPair::generate().unwrap(), issuer).unwrap()
        };
        let [first, second] = ["first", "second"].map(|name| issued(name, &root));
        let client = client_of(&first);
        let chain = |intermediates: &[&Authority]| {
            let intermediates = intermediates.iter().map(|authority| authority.der().clone());
            [client.der().clone()]
                .into_iter()
                .chain(intermediates)
                .collect::<Vec<_>>()
        };
        // Clients may send other certificates, some of them twice, and the authority.
        ca.verify(&chain(&[&second, &first, &first, &root])).expect("an issuer");
        // While an authority is replaced, clients send one key's certificates of both authorities.
        let renewed = Issuer::new(authority_params(), KeyPair::generate().unwrap());
        let of_renewed = named("first").signed_by(first.key(), &renewed).unwrap();
        let both = [client.der().clone(), of_renewed.der().clone(), first.der().clone()];
        ca.verify(&both).expect("one key");
        let twin = issued("first", &root);
        assert!(is_long(ca.verify(&chain(&[&first, &second, &twin]))));
        // Each of these could have issued each other.
        let many: Vec<_> = (0..MAX_INTERMEDIATES).map(|_| authority()).collect();
        let client = client_of(&many[0]);
        let chain: Vec<_> = [client.der().clone()]
            .into_iter()
            .chain(many.iter().map(|authority| authority.der().clone()))
            .collect();
        assert!(is_long(ca.verify(&chain)));
    }

    #[test]
    fn a_chain_with_an_intermediate_is_verified() {
        let root = authority();
        let mut params = authority_params();
        params.distinguished_name.push(DnType::CommonName, "intermediate");
        let intermediate = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &root).unwrap();
        let client = client_of(&intermediate);
        let chain = [client.der().clone(), intermediate.der().clone()];
        load(&root).verify(&chain).expect("the chain ends at the authority");
    }
}
