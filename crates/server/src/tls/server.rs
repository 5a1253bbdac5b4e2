//! The server's certificates, and the authorities of clients: loaded, and replaced while the server runs.
//!
//! All files are loaded together. A load that succeeds replaces everything at once, with a new [`ServerConfig`]: so no
//! TLS session outlives the authorities that have verified it. A load that fails changes nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use nodetracker_tls::client::ALPN;
use nodetracker_tls::dates::Dates;
use nodetracker_tls::pem::FileError;
use nodetracker_tls::{dates, pem};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys, ServerConfig};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{ClientAuth, ClientIdentity, Config, ConfigError, Keypair, Setting};
use crate::tls::choice::Choice;
use crate::tls::client_ca::ClientCa;
use crate::tls::watch_files::Fingerprints;

/// The certificates that a running server presents, and the authorities that certify its clients. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Certificates(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    sources: Sources,
    /// Locked during a load, so that loads come one after the other.
    fingerprints: Mutex<Fingerprints>,
    loaded: watch::Sender<Arc<Loaded>>,
    /// Whether the last load failed. Apart from the fingerprints, whose lock may be held for as long as a file blocks.
    is_failing: AtomicBool,
}

/// The files, and the keys of the configuration that name them.
#[derive(Debug)]
struct Sources {
    keypairs: Vec<Keypair>,
    client_ca_file: Option<Setting<PathBuf>>,
    client_auth: ClientAuth,
    client_identity: ClientIdentity,
}

/// What was loaded from the files.
#[derive(Debug)]
pub(super) struct Loaded {
    config: Arc<ServerConfig>,
    /// The chains that the server presents, with their files.
    chains: Vec<(PathBuf, Arc<CertifiedKey>)>,
    /// `None` if the server asks for no certificates.
    client_ca: Option<Arc<ClientCa>>,
}

impl Certificates {
    /// Loads the files that the configuration names. Checks that each key matches its certificate. Returns `None` if
    /// there are no key pairs, so that the server uses plaintext.
    pub(crate) fn load(config: &Config) -> Result<Option<Self>, ConfigError> {
        let client_ca = config.client_ca()?;
        if config.keypairs.is_empty() {
            return Ok(None);
        }
        let sources = Sources {
            keypairs: config.keypairs.clone(),
            client_ca_file: client_ca.map(|(file, origin)| Setting {
                value: file.to_owned(),
                origin: origin.clone(),
            }),
            client_auth: config.client_auth.value,
            client_identity: config.client_identity.value,
        };
        let fingerprints = Mutex::new(Fingerprints::new(sources.files()));
        let loaded = sources.load(None)?;
        loaded.log_dates(&sources);
        Ok(Some(Self(Arc::new(Shared {
            sources,
            fingerprints,
            loaded: watch::Sender::new(Arc::new(loaded)),
            is_failing: AtomicBool::new(false),
        }))))
    }

    /// Reads all files again. New connections get the new certificates. The server drains connections of clients that
    /// no authority certifies any more. Blocks for the files.
    ///
    /// # Errors
    ///
    /// A file cannot be used, or a certificate of the server is out of its dates and replaces a valid certificate. The
    /// server keeps all its certificates and authorities.
    pub fn reload(&self) -> Result<(), ConfigError> {
        self.reload_with(&mut self.lock()).0
    }

    /// As [`reload`](Self::reload), if the files have changed since they were loaded, and have stayed the same since
    /// the last call. Returns `None` if the files were not read again. Also returns `None` if the files still cannot be
    /// used for the same reason, which was returned within the last hour.
    pub(super) fn reload_if_changed(&self) -> Option<Result<(), ConfigError>> {
        let mut fingerprints = self.lock();
        if !fingerprints.have_settled() {
            return None;
        }
        let (reloaded, is_news) = self.reload_with(&mut fingerprints);
        is_news.then_some(reloaded)
    }

    /// Returns whether the certificates were reloaded, and whether this should be reported.
    fn reload_with(&self, fingerprints: &mut Fingerprints) -> (Result<(), ConfigError>, bool) {
        // Before the files are read: a change during the load is seen later.
        fingerprints.take();
        let before = Arc::clone(&self.0.loaded.borrow());
        let reloaded = self.0.sources.load(Some(&before)).map(|loaded| {
            loaded.log_dates(&self.0.sources);
            self.0.loaded.send_replace(Arc::new(loaded));
        });
        // Relaxed: the flag guards no data.
        self.0.is_failing.store(reloaded.is_err(), Ordering::Relaxed);
        let failure = reloaded.as_ref().err().map(ToString::to_string);
        let is_news = fingerprints.set_failure(failure, Instant::now());
        (reloaded, is_news)
    }

    /// Reports whether the last attempt to load the files failed. The server then uses older certificates and
    /// authorities than the files have.
    #[must_use]
    pub fn is_failing(&self) -> bool {
        self.0.is_failing.load(Ordering::Relaxed)
    }

    /// Notes that an attempt to load the files has panicked. The next look at the files tries again.
    pub(super) fn set_failing(&self) {
        self.lock().set_failure(Some("a panic".to_owned()), Instant::now());
        // Relaxed: as in `reload_with`.
        self.0.is_failing.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Fingerprints> {
        // A load that panicked has changed nothing.
        self.0.fingerprints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns each file of certificates, with the time when the first certificate in the file expires. Includes the
    /// file of the authorities. Parses the certificates, which takes some microseconds each.
    #[must_use]
    pub fn expiries(&self) -> BTreeMap<PathBuf, SystemTime> {
        let loaded = Arc::clone(&self.0.loaded.borrow());
        let chains = loaded.chains.iter().map(|(file, key)| (file.clone(), &key.cert[..]));
        let ca = self.0.sources.client_ca_file.as_ref().zip(loaded.client_ca.as_ref());
        let ca = ca.map(|(file, ca)| (file.value.clone(), ca.authorities()));
        let mut expiries = BTreeMap::new();
        // The configuration may name a file several times.
        for (file, chain) in chains.chain(ca) {
            if let Some(expiry) = dates::first_expiry(chain) {
                let first = expiries.entry(file).or_insert(expiry);
                *first = expiry.min(*first);
            }
        }
        expiries
    }

    /// Returns a receiver of the loaded files, now and after each load.
    pub(super) fn subscribe(&self) -> watch::Receiver<Arc<Loaded>> {
        self.0.loaded.subscribe()
    }
}

impl Sources {
    /// Returns all files.
    fn files(&self) -> Vec<PathBuf> {
        let pairs = self.keypairs.iter().flat_map(|pair| [&pair.key_file, &pair.cert_file]);
        pairs
            .chain(&self.client_ca_file)
            .map(|file| file.value.clone())
            .collect()
    }

    /// Loads all files. `before` has the files of the previous load.
    fn load(&self, before: Option<&Loaded>) -> Result<Loaded, ConfigError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let keys = self.keypairs.iter().map(|pair| {
            let key = load_pair(pair, &provider)?;
            Ok((pair.cert_file.value.clone(), key))
        });
        let chains = keys.collect::<Result<Vec<_>, ConfigError>>()?;
        if let Some(before) = before {
            self.check_dates(&chains, before)?;
        }
        let client_ca = self.load_client_ca(before, &provider)?;
        let choice = Choice(chains.iter().map(|(_, key)| Arc::clone(key)).collect());
        let unusable = |error: Error| ConfigError::new(self.keypairs[0].key_file.origin.clone(), error);
        let builder = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?;
        let builder = match &client_ca {
            None => builder.with_no_client_auth(),
            Some(ca) => builder.with_client_cert_verifier(Arc::clone(ca.verifier())),
        };
        let mut config = builder.with_cert_resolver(Arc::new(choice));
        config.alpn_protocols = vec![ALPN.to_vec()];
        if client_ca.is_some() {
            // A resumed session would skip the verification of the client, and so outlive the client's certificate.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok(Loaded {
            config: Arc::new(config),
            chains,
            client_ca,
        })
    }

    /// Checks that no chain is out of its dates whose predecessor is not.
    fn check_dates(&self, chains: &[(PathBuf, Arc<CertifiedKey>)], before: &Loaded) -> Result<(), ConfigError> {
        let now = UnixTime::now();
        for ((pair, (file, new)), (_, old)) in self.keypairs.iter().zip(chains).zip(&before.chains) {
            if let Some(problem) = dates::problem(file, &new.cert, now)
                && dates::problem(file, &old.cert, now).is_none()
            {
                return Err(ConfigError::new(pair.cert_file.origin.clone(), problem));
            }
        }
        Ok(())
    }

    /// Loads the authorities of clients. Returns those of `before` if they are the same, so that no client is verified
    /// again.
    fn load_client_ca(
        &self,
        before: Option<&Loaded>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<ClientCa>>, ConfigError> {
        let Some(file) = &self.client_ca_file else {
            return Ok(None);
        };
        let ca = ClientCa::load(&file.value, self.client_auth, self.client_identity, provider)
            .map_err(|error| of_file(file, &error))?;
        let before = before.and_then(|before| before.client_ca.as_ref());
        let same = before.filter(|before| before.authorities() == ca.authorities());
        Ok(Some(same.cloned().unwrap_or_else(|| Arc::new(ca))))
    }
}

impl Loaded {
    pub(super) fn config(&self) -> &Arc<ServerConfig> {
        &self.config
    }

    /// Returns the first certificate that the server presents.
    #[cfg(test)]
    pub(super) fn first_certificate(&self) -> &[u8] {
        &self.chains[0].1.cert[0]
    }

    pub(super) fn client_ca(&self) -> Option<&Arc<ClientCa>> {
        self.client_ca.as_ref()
    }

    /// Logs until when each file's certificates are valid, and warns of certificates that are not valid now.
    fn log_dates(&self, sources: &Sources) {
        for (file, key) in &self.chains {
            log_dates(file, &key.cert, "clients refuse it");
        }
        if let Some((file, ca)) = sources.client_ca_file.as_ref().zip(self.client_ca.as_ref()) {
            // The dates of trust anchors are not part of the verification of a chain (RFC 5280, 6.1).
            log_dates(&file.value, ca.authorities(), "its clients are still accepted");
        }
    }
}

/// Logs until when the certificates of a file are valid. Warns if a certificate is not valid now, with the consequence.
fn log_dates(file: &Path, chain: &[CertificateDer<'_>], consequence: &str) {
    let now = UnixTime::now();
    if let Some(problem) = dates::problem(file, chain, now) {
        return warn!("{problem}: {consequence}");
    }
    let dates = chain.iter().filter_map(|certificate| Dates::of(certificate));
    if let Some(first) = dates.min_by_key(|dates| dates.until.as_secs()) {
        let days = first.left(now).as_secs() / (24 * 3600);
        info!(
            "{}: valid for {days} days, until {}",
            file.display(),
            dates::rfc3339(first.until)
        );
    }
}

/// Returns the error of a key of the configuration whose file cannot be used.
fn of_file(file: &Setting<PathBuf>, error: &FileError) -> ConfigError {
    ConfigError::new(file.origin.clone(), error).that_may_pass(error.may_pass())
}

fn load_pair(pair: &Keypair, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, ConfigError> {
    let Keypair { key_file, cert_file } = pair;
    let chain = pem::certificates(&cert_file.value).map_err(|error| of_file(cert_file, &error))?;
    let bad_key = |reason: String| ConfigError::new(key_file.origin.clone(), reason);
    let key = pem::private_key(&key_file.value).map_err(|error| of_file(key_file, &error))?;
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(certified) => Ok(Arc::new(certified)),
        // A renewal may have replaced one of the two files.
        Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(bad_key(format!(
            "{} is not the key of {}",
            key_file.value.display(),
            cert_file.value.display()
        ))
        .that_may_pass(true)),
        Err(error) => Err(bad_key(format!("{}: {error}", key_file.value.display()))),
    }
}
