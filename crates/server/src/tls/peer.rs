//! The client of one connection: who it is, and whether the server still trusts its certificate.
//!
//! rustls verifies a client's certificate in the handshake, and never again. So a connection compares its trust with
//! the loaded files whenever the connection does something: [`Peer::is_outdated`] is one load of a number that changes
//! only with the files. If the authorities have changed, the connection verifies the client's chain again.

use std::sync::Arc;
use std::time::Duration;

use nodetracker_tls::dates::Dates;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{Error, ServerConfig};
use tokio::sync::watch::Receiver;

use crate::auth::Caller;
use crate::limits::VERIFY_WORK;
use crate::tls::client_ca::ClientCa;
use crate::tls::server::{Certificates, Loaded};
use crate::turns::Turns;

/// The client of one connection.
#[derive(Debug)]
pub(crate) struct Peer {
    caller: Arc<Caller>,
    /// `None` if the client has no certificate. Boxed: most of its size is not needed while the connection is served.
    certificate: Option<Box<PeerCertificate>>,
}

#[derive(Debug)]
struct PeerCertificate {
    chain: Vec<CertificateDer<'static>>,
    /// When the first certificate expires that the handshake may have needed. `None` if no certificate has dates.
    until: Option<UnixTime>,
    /// The authorities that have certified the chain.
    ca: Arc<ClientCa>,
    loaded: Receiver<Arc<Loaded>>,
}

/// The server's side of a handshake that has not ended.
#[derive(Debug)]
pub(crate) struct Handshake {
    now: Arc<Loaded>,
    loaded: Receiver<Arc<Loaded>>,
}

impl Handshake {
    /// Begins a handshake with the certificates and the authorities that are loaded now.
    pub(crate) fn new(certificates: &Certificates) -> Self {
        let mut loaded = certificates.subscribe();
        let now = Arc::clone(&loaded.borrow_and_update());
        Self { now, loaded }
    }

    /// Returns the configuration for the handshake.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(self.now.config())
    }

    /// Reports whether the handshake asks for the client's certificate.
    pub(crate) fn verifies_clients(&self) -> bool {
        self.now.client_ca().is_some()
    }

    /// Returns the client after the handshake, with the chain that the client has sent and rustls has verified.
    pub(crate) fn done(self, chain: Option<&[CertificateDer<'static>]>) -> Peer {
        match (self.now.client_ca(), chain) {
            (None, _) => Peer::unrestricted(),
            (Some(ca), Some(chain @ [certificate, ..])) => Peer {
                caller: Arc::new(ca.caller(certificate)),
                certificate: Some(Box::new(PeerCertificate {
                    chain: chain.to_vec(),
                    until: first_end(chain, UnixTime::now()),
                    ca: Arc::clone(ca),
                    loaded: self.loaded,
                })),
            },
            (Some(_), _) => Peer {
                caller: Arc::new(Caller::anonymous()),
                certificate: None,
            },
        }
    }
}

impl Peer {
    /// Returns any client of a server that asks for no certificates.
    pub(crate) fn unrestricted() -> Self {
        Self {
            caller: Arc::new(Caller::unrestricted()),
            certificate: None,
        }
    }

    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.caller
    }

    /// Returns a number for the client that the certificate names. `None` if the client has no certificate.
    pub(crate) fn certified_identity(&self) -> Option<u64> {
        self.certificate.as_ref().map(|_| self.caller.identity())
    }

    /// Returns the bytes that the connection keeps of the client's chain: a copy, and rustls's own.
    pub(crate) fn chain_size(&self) -> usize {
        let chain = self.certificate.iter().flat_map(|certificate| &certificate.chain);
        2 * chain.map(|certificate| certificate.len()).sum::<usize>()
    }

    /// Returns how long all certificates that certify the client are still valid. `None` if the client has no
    /// certificate with dates.
    pub(crate) fn valid_for(&self) -> Option<Duration> {
        let until = self.certificate.as_ref()?.until?;
        let left = until.as_secs().saturating_sub(UnixTime::now().as_secs());
        Some(Duration::from_secs(left))
    }

    /// Reports whether files were loaded since the client's certificate was last verified.
    #[inline]
    pub(crate) fn is_outdated(&self) -> bool {
        match &self.certificate {
            None => false,
            // An error means that the server is gone.
            Some(certificate) => certificate.loaded.has_changed().unwrap_or(false),
        }
    }

    /// Verifies the client's chain again if the authorities have changed. Takes a turn then.
    ///
    /// # Errors
    ///
    /// No authority of the loaded file certifies the client any more.
    pub(crate) async fn verify_again(&mut self, turns: &Turns) -> Result<(), Error> {
        let Some(certificate) = &mut self.certificate else {
            return Ok(());
        };
        let now = certificate.loaded.borrow_and_update().client_ca().cloned();
        if let Some(ca) = now
            && !Arc::ptr_eq(&ca, &certificate.ca)
        {
            turns.take(VERIFY_WORK).await;
            if let Err(error) = ca.verify(&certificate.chain) {
                // The connection ends: no later load changes this.
                self.certificate = None;
                return Err(error);
            }
            certificate.ca = ca;
        }
        Ok(())
    }
}

/// Returns when the first of the certificates expires that certified a client at `time`.
///
/// Clients also send certificates that the verifier does not need, such as a former authority. The verifier does not
/// look at the dates of these. A certificate that was not valid in the handshake has certified no client.
fn first_end(chain: &[CertificateDer<'_>], time: UnixTime) -> Option<UnixTime> {
    let (client, others) = chain.split_first()?;
    let others = others.iter().filter_map(|certificate| Dates::of(certificate));
    let needed = others.filter(|dates| dates.check(time).is_ok());
    Dates::of(client)
        .into_iter()
        .chain(needed)
        .map(|dates| dates.until)
        .min()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::SystemTime;

    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;
    use crate::config::Config;

    impl Certificates {
        /// Returns a server's certificate, which is the authority of clients, too, and valid until a time.
        pub(crate) fn valid_until(time: SystemTime) -> (Self, CertificateDer<'static>) {
            let folder = TempDir::new().unwrap();
            let [key_file, cert_file] = ["key", "crt"].map(|name| folder.path().join(name).display().to_string());
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            params.not_after = time.into();
            let certificate = params.self_signed(&key).unwrap();
            fs::write(&key_file, key.serialize_pem()).unwrap();
            fs::write(&cert_file, certificate.pem()).unwrap();
            let config = Config::default()
                .with("https_keypairs", &format!("{key_file}:{cert_file}"))
                .and_then(|config| config.with("client_ca_file", &cert_file))
                .and_then(|config| config.with("client_auth", "required"));
            let certificates = Certificates::load(&config.unwrap()).unwrap().expect("there is a pair");
            (certificates, certificate.der().clone())
        }
    }

    #[test]
    fn a_chain_is_valid_as_long_as_each_of_its_certificates() {
        let hours = |hours: u64| SystemTime::now() + Duration::from_secs(hours * 3600);
        let (certificates, long) = Certificates::valid_until(hours(1000));
        let (_, short) = Certificates::valid_until(hours(1));
        for chain in [[long.clone(), short.clone()], [short, long]] {
            let left = Handshake::new(&certificates).done(Some(&chain)).valid_for().unwrap();
            assert!((3590..=3600).contains(&left.as_secs()), "{left:?}");
        }
    }

    /// Clients may send an authority that has expired: the verifier does not look at its dates.
    #[test]
    fn a_certificate_that_had_expired_before_the_handshake_ends_no_connection() {
        let (certificates, client) = Certificates::valid_until(SystemTime::now() + Duration::from_secs(3600));
        let mut params = CertificateParams::new([]).unwrap();
        params.not_before = (SystemTime::now() - Duration::from_secs(7200)).into();
        params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
        let expired = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let chain = [client, expired.der().clone()];
        let left = Handshake::new(&certificates).done(Some(&chain)).valid_for().unwrap();
        assert!((3590..=3600).contains(&left.as_secs()), "{left:?}");
    }

    impl Peer {
        /// Returns a client whose certificate is valid until a time. Nothing has verified the certificate.
        pub(crate) fn valid_until(time: SystemTime) -> Self {
            let (certificates, certificate) = Certificates::valid_until(time);
            Handshake::new(&certificates).done(Some(&[certificate]))
        }
    }
}
