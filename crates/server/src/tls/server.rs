//! The server's certificates: loaded, chosen for each client, and replaced while the server runs.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, CipherSuite, Error, InconsistentKeys, ServerConfig, SignatureScheme};
use tracing::warn;

use crate::config::{ConfigError, Keypair};
use crate::tls::{ALPN, pem};

/// The certificates that a running server presents.
#[derive(Debug, Clone)]
pub struct Certificates(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    keypairs: Vec<Keypair>,
    /// One for each pair.
    certificates: RwLock<Vec<Arc<CertifiedKey>>>,
}

impl Certificates {
    /// Loads the key pairs, at least one, and checks that each key matches its certificate.
    pub(crate) fn load(keypairs: &[Keypair]) -> Result<Self, ConfigError> {
        let certificates = RwLock::new(load_all(keypairs)?);
        let keypairs = keypairs.to_vec();
        Ok(Self(Arc::new(Loaded { keypairs, certificates })))
    }

    /// Reads the files of the keys and certificates again. New connections get the new certificates. Blocks for the files.
    ///
    /// # Errors
    ///
    /// A file cannot be used. The server keeps all its certificates.
    pub fn reload(&self) -> Result<(), ConfigError> {
        let certificates = load_all(&self.0.keypairs)?;
        *self.0.certificates.write().unwrap_or_else(PoisonError::into_inner) = certificates;
        Ok(())
    }

    /// Returns the certificate file of each pair, and when the first of its certificates expires.
    pub(crate) fn expiries(&self) -> Vec<(PathBuf, SystemTime)> {
        let certificates = self.0.certificates.read().unwrap_or_else(PoisonError::into_inner);
        let pairs = self.0.keypairs.iter().zip(certificates.iter());
        let mut expiries: Vec<_> = pairs
            .filter_map(|(pair, certified)| {
                let expiry = certified.cert.iter().filter_map(pem::not_after).min()?;
                Some((pair.cert_file.value.clone(), time(expiry)))
            })
            .collect();
        expiries.sort();
        expiries.dedup_by(|(file, _), (before, _)| file == before);
        expiries
    }

    /// Returns a configuration that presents these certificates, also after they were reloaded.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>, Error> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.0) as _);
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Arc::new(config))
    }
}

fn load_all(keypairs: &[Keypair]) -> Result<Vec<Arc<CertifiedKey>>, ConfigError> {
    let provider = aws_lc_rs::default_provider();
    keypairs.iter().map(|pair| load(pair, &provider)).collect()
}

fn load(pair: &Keypair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, ConfigError> {
    let Keypair { key_file, cert_file } = pair;
    let chain =
        pem::certificates(&cert_file.value).map_err(|reason| ConfigError::new(cert_file.origin.clone(), reason))?;
    warn_of_dates(&cert_file.value, &chain);
    let bad_key = |reason: String| ConfigError::new(key_file.origin.clone(), reason);
    let key = pem::private_key(&key_file.value).map_err(bad_key)?;
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(bad_key(format!(
            "{} is not the key of {}",
            key_file.value.display(),
            cert_file.value.display()
        ))),
        Err(error) => Err(bad_key(format!("{}: {error}", key_file.value.display()))),
    }
}

/// Logs each certificate of a chain that clients refuse now because of its dates.
fn warn_of_dates(file: &Path, chain: &[CertificateDer<'_>]) {
    let now = UnixTime::now();
    for (number, certificate) in (1..).zip(chain) {
        let dates = ParsedCertificate::try_from(certificate).and_then(|parsed| pem::check_dates(&parsed, now));
        let problem = match dates {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                format!("expired on {}", date(not_after))
            }
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { not_before, .. })) => {
                format!("is not valid before {}", date(not_before))
            }
            Err(error) => format!("has no usable dates: {error}"),
            Ok(()) => continue,
        };
        let file = file.display();
        match number {
            1 => warn!("{file}: the certificate {problem}"),
            _ => warn!("{file}: certificate {number} {problem}"),
        }
    }
}

fn time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

fn date(at: UnixTime) -> String {
    humantime::format_rfc3339_seconds(time(at)).to_string()
}

/// The choice of a certificate: the first whose names include the client's server name, or else the first. Among these, the
/// first whose signature the client can verify. A client that connects to an IP address asks for no name.
///
/// rustls refuses a client with an impossible name, such as one with a port, before it asks for a certificate.
impl ResolvesServerCert for Loaded {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let all = hello.signature_schemes();
        let likely = likely_schemes(&hello);
        let rank = |certified: &&Arc<CertifiedKey>| {
            let has_name = wanted.as_ref().is_none_or(|name| is_for(certified, name));
            let signs = |schemes| certified.key.choose_scheme(schemes).is_some();
            (!has_name, !signs(&likely), !signs(all))
        };
        let certificates = self.certificates.read().unwrap_or_else(PoisonError::into_inner);
        certificates.iter().min_by_key(rank).cloned()
    }
}

/// Returns the schemes that the server can sign with. rustls has removed those that do not fit the cipher suites of TLS 1.2.
fn likely_schemes(hello: &ClientHello<'_>) -> Vec<SignatureScheme> {
    use CipherSuite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    use SignatureScheme::{RSA_PKCS1_SHA1, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512};

    let is_of_tls13 = |suite: &CipherSuite| {
        matches!(
            suite,
            TLS13_AES_128_GCM_SHA256 | TLS13_AES_256_GCM_SHA384 | TLS13_CHACHA20_POLY1305_SHA256
        )
    };
    let tls13 = hello.cipher_suites().iter().any(is_of_tls13);
    // TLS 1.3 has these only inside certificates.
    let is_pkcs1 = |scheme: &SignatureScheme| {
        matches!(
            scheme,
            RSA_PKCS1_SHA1 | RSA_PKCS1_SHA256 | RSA_PKCS1_SHA384 | RSA_PKCS1_SHA512
        )
    };
    let schemes = hello.signature_schemes().iter().copied();
    schemes.filter(|scheme| !(tls13 && is_pkcs1(scheme))).collect()
}

fn is_for(certified: &CertifiedKey, name: &ServerName<'_>) -> bool {
    certified.cert.first().is_some_and(|certificate| {
        ParsedCertificate::try_from(certificate).is_ok_and(|parsed| verify_server_name(&parsed, name).is_ok())
    })
}
