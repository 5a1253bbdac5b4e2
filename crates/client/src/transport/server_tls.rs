//! The TLS of a side that accepts tunnels, from files that may change.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use arc_swap::ArcSwap;
use nodetracker_tls::server::{ServerConfigError, ServerFiles, server_config};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::time::Instant;
use tracing::{info, warn};

/// The PEM files of a side that accepts tunnels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerTlsFiles {
    /// The private key.
    pub key: PathBuf,
    /// The certificate chain.
    pub certificate: PathBuf,
    /// The authorities that certify the agents, or the peers. Without it, they need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The configuration of TLS, read again when the files have changed.
///
/// Present tunnels keep the certificates that they began with. If the files cannot be used, or are replaced only in
/// part, new tunnels use the last good files.
#[derive(Debug)]
pub struct ServerTls {
    files: ServerTlsFiles,
    look_interval: Duration,
    next_look: Mutex<Instant>,
    /// Locked during a load.
    seen: Mutex<Seen>,
    last_good: ArcSwap<ServerConfig>,
}

/// The last look at the files.
#[derive(Debug)]
struct Seen {
    contents: Contents,
    /// Why the last load failed.
    error: Option<String>,
}

type Contents = Vec<Result<Vec<u8>, io::ErrorKind>>;

impl ServerTls {
    /// Reads the files. A handshake looks at the files if the last look was `look_interval` ago.
    ///
    /// # Errors
    ///
    /// If a file cannot be used.
    pub fn load(files: ServerTlsFiles, look_interval: Duration) -> Result<Arc<Self>, ServerConfigError> {
        // Before the files are loaded: a change during the load is seen later.
        let seen = Mutex::new(Seen {
            contents: files.contents(),
            error: None,
        });
        Ok(Arc::new(Self {
            last_good: ArcSwap::from_pointee(files.load()?),
            files,
            look_interval,
            next_look: Mutex::new(Instant::now()),
            seen,
        }))
    }

    /// Returns the configuration for a handshake.
    pub(super) async fn current(self: &Arc<Self>) -> Arc<ServerConfig> {
        if self.is_due() {
            let tls = Arc::clone(self);
            // An error means that the runtime shuts down.
            let _ = tokio::task::spawn_blocking(move || tls.load_if_changed(ServerTlsFiles::load)).await;
        }
        self.last_good.load_full()
    }

    fn is_due(&self) -> bool {
        let now = Instant::now();
        let mut next_look = self.next_look.lock();
        let is_due = now >= *next_look;
        if is_due {
            *next_look = now.checked_add(self.look_interval).unwrap_or(now);
        }
        is_due
    }

    fn load_if_changed(&self, load: impl FnOnce(&ServerTlsFiles) -> Result<ServerConfig, ServerConfigError>) {
        let mut seen = self.seen.lock();
        let contents = self.files.contents();
        // The load reads the files once more, and may have failed for a reason that has passed.
        if seen.contents == contents && seen.error.is_none() {
            return;
        }
        seen.contents = contents;
        match load(&self.files) {
            Ok(config) => {
                seen.error = None;
                self.last_good.store(Arc::new(config));
                info!("{}: loaded", self.files.certificate.display());
            }
            Err(error) => {
                let reason = Some(error.to_string());
                if seen.error != reason {
                    warn!("TLS continues with the files that were read before: {error}");
                }
                seen.error = reason;
            }
        }
    }
}

impl ServerTlsFiles {
    fn contents(&self) -> Contents {
        let files = [&self.key, &self.certificate].into_iter().chain(&self.client_ca);
        files.map(|file| fs::read(file).map_err(|error| error.kind())).collect()
    }

    fn load(&self) -> Result<ServerConfig, ServerConfigError> {
        let files = ServerFiles {
            key: &self.key,
            certificate: &self.certificate,
            client_ca: self.client_ca.as_deref(),
        };
        // The acceptor sets the protocol.
        server_config(&files, b"")
    }
}

#[cfg(test)]
mod tests {
    use nodetracker_tls::server::ServerFile;
    use rcgen::{CertificateParams, KeyPair};
    use tempfile::TempDir;

    use super::*;

    /// Writes a new key and its certificate.
    fn write(files: &ServerTlsFiles) {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(["proxy".to_owned()]).unwrap();
        fs::write(&files.certificate, certificate.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
    }

    #[test]
    fn the_same_files_are_loaded_after_a_failure_that_has_passed() {
        let folder = TempDir::new().unwrap();
        let files = ServerTlsFiles {
            key: folder.path().join("proxy.key"),
            certificate: folder.path().join("proxy.crt"),
            client_ca: None,
        };
        write(&files);
        let tls = ServerTls::load(files.clone(), Duration::ZERO).unwrap();
        let before = tls.last_good.load_full();
        write(&files);
        tls.load_if_changed(|_| {
            Err(ServerConfigError {
                file: ServerFile::Key,
                reason: "too many open files".to_owned(),
            })
        });
        assert!(Arc::ptr_eq(&before, &tls.last_good.load()));
        tls.load_if_changed(ServerTlsFiles::load);
        assert!(!Arc::ptr_eq(&before, &tls.last_good.load()));
        tls.load_if_changed(|_| panic!("the files have not changed"));
    }
}
