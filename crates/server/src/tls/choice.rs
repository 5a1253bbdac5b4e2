//! Which of its certificates the server presents to a client.

use std::sync::Arc;

use rustls::client::verify_server_name;
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite, SignatureScheme};

/// The choice of a certificate: the first whose names include the client's server name, or else the first. Among these,
/// the first whose signature the client can verify. A client that connects to an IP address asks for no name.
///
/// rustls refuses a client with an impossible name, such as a name with a port, before it asks for a certificate.
#[derive(Debug)]
pub(super) struct Choice(pub(super) Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Choice {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let all = hello.signature_schemes();
        let likely = likely_schemes(&hello);
        let rank = |certified: &&Arc<CertifiedKey>| {
            let has_name = wanted.as_ref().is_none_or(|name| is_for(certified, name));
            let signs = |schemes| certified.key.choose_scheme(schemes).is_some();
            (!has_name, !signs(&likely), !signs(all))
        };
        self.0.iter().min_by_key(rank).cloned()
    }
}

/// Returns the schemes that the server can sign with. rustls has removed the schemes that do not fit the cipher suites
/// of TLS 1.2.
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
