//! TLS from PEM files: the server's certificates, and the authorities that the commands trust.

use std::path::Path;
use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};

use crate::config::{ConfigError, Keypair};

/// The protocol that a TLS client must ask for, HTTP/2.
const ALPN: &[u8] = b"h2";

/// Loads the key pairs, and checks that each key matches its certificate.
pub(crate) fn server_config(keypairs: &[Keypair]) -> Result<Arc<ServerConfig>, ConfigError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let certificates = keypairs
        .iter()
        .map(|pair| load(pair, &provider))
        .collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::new(keypairs[0].key_file.origin.clone(), error))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(CertificateByName { certificates }));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Returns a configuration that trusts only the authorities of one PEM file.
pub(crate) fn client_config(ca_file: &Path) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_file)? {
        roots
            .add(certificate)
            .map_err(|error| format!("{}: {error}", ca_file.display()))?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

fn load(pair: &Keypair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, ConfigError> {
    let Keypair { key_file, cert_file } = pair;
    let chain = certificates(&cert_file.value).map_err(|reason| ConfigError::new(cert_file.origin.clone(), reason))?;
    let bad_key = |reason: String| ConfigError::new(key_file.origin.clone(), reason);
    let key = PrivateKeyDer::from_pem_slice(&read(&key_file.value).map_err(bad_key)?)
        .map_err(|error| bad_key(format!("{}: no private key: {error}", key_file.value.display())))?;
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(bad_key(format!(
            "{} is not the key of {}",
            key_file.value.display(),
            cert_file.value.display()
        ))),
        Err(error) => Err(bad_key(format!("{}: {error}", key_file.value.display()))),
    }
}

/// Reads the certificates of a PEM file. Fails if there is none, or if one cannot be parsed.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(file)?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{}: not PEM: {error}", file.display()))?;
    if certificates.is_empty() {
        return Err(format!("{}: has no certificate", file.display()));
    }
    for certificate in &certificates {
        ParsedCertificate::try_from(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(certificates)
}

fn read(file: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))
}

/// Chooses the first certificate for the name that the client asks for, or else the first of all. A client that connects to
/// an IP address asks for no name.
#[derive(Debug)]
struct CertificateByName {
    certificates: Vec<Arc<CertifiedKey>>,
}

impl ResolvesServerCert for CertificateByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let named = wanted.and_then(|name| self.certificates.iter().find(|certified| is_for(certified, &name)));
        named.or(self.certificates.first()).cloned()
    }
}

fn is_for(certified: &CertifiedKey, name: &ServerName<'_>) -> bool {
    certified.cert.first().is_some_and(|certificate| {
        ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
    })
}
