//! The files are read again when they change: a thread looks at them every [`INTERVAL`].
//!
//! The thread compares the contents, not the times. So it sees every replacement: by a rename, through a symbolic link
//! as Kubernetes does it, or on a network file system. A key and its certificate are often replaced one after the
//! other. So the thread loads files only after they have stayed the same between two looks. If a load fails, the thread
//! tries again at each look, and logs the same reason again only after [`REPORT_INTERVAL`].

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{error, info};

use crate::config::ConfigError;
use crate::tls::Certificates;

/// The time between two looks at the files.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

/// How often the log has the same reason why the files cannot be loaded.
const REPORT_INTERVAL: Duration = Duration::from_secs(3600);

/// The contents of files, as far as a change can be seen.
#[derive(Debug)]
pub(super) struct Fingerprints {
    files: Vec<PathBuf>,
    /// At the last load.
    loaded: Vec<Option<u64>>,
    /// At the last look.
    seen: Vec<Option<u64>>,
    /// Why the last load failed.
    failure: Option<String>,
    /// When this failure was reported.
    reported: Option<Instant>,
}

impl Fingerprints {
    /// Looks at files that are about to be loaded.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        let mut fingerprints = Self {
            files,
            loaded: Vec::new(),
            seen: Vec::new(),
            failure: None,
            reported: None,
        };
        fingerprints.take();
        fingerprints
    }

    /// Notes the contents that are about to be loaded.
    pub(super) fn take(&mut self) {
        self.loaded = self.look();
        self.seen.clone_from(&self.loaded);
    }

    /// Reports whether the files should be loaded: they are the same as at the last look, and differ from the last
    /// load, or the last load failed.
    pub(super) fn have_settled(&mut self) -> bool {
        let now = self.look();
        let is_new = self.failure.is_some() || now != self.loaded;
        let is_settled = now == self.seen;
        self.seen = now;
        is_new && is_settled
    }

    /// Notes how a load ended. Returns whether this should be reported. If a load fails for the same reason as the load
    /// before, this is only now and then.
    pub(super) fn set_failure(&mut self, failure: Option<String>, now: Instant) -> bool {
        let is_known = failure.is_some() && failure == self.failure;
        self.failure = failure;
        if is_known && self.reported.is_some_and(|at| now < at + REPORT_INTERVAL) {
            return false;
        }
        self.reported = Some(now);
        true
    }

    fn look(&self) -> Vec<Option<u64>> {
        self.files.iter().map(|file| fingerprint(file)).collect()
    }
}

/// Returns a hash of a file's contents. `None` if the file cannot be read, or is a pipe, which can be read only once.
fn fingerprint(file: &Path) -> Option<u64> {
    if !std::fs::metadata(file).ok()?.is_file() {
        return None;
    }
    let mut hasher = DefaultHasher::new();
    std::fs::read(file).ok()?.hash(&mut hasher);
    Some(hasher.finish())
}

/// A thread that loads the files when they change. Ends soon after this is dropped.
#[derive(Debug)]
pub(crate) struct FileWatch {
    /// The thread waits for the end of this channel.
    _running: Sender<()>,
}

impl FileWatch {
    /// Starts the thread, which looks at the files every `interval`.
    pub(crate) fn start(certificates: Certificates, interval: Duration) -> io::Result<Self> {
        let (running, ended) = channel();
        let watch = move || {
            while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
                look(&certificates, Certificates::reload_if_changed);
            }
        };
        thread::Builder::new().name("certificates".into()).spawn(watch)?;
        Ok(Self { _running: running })
    }
}

/// Looks at the files, and logs the result of a load. A panic, which is logged, counts as a load that failed: otherwise
/// the thread would end, and no metric would show it.
fn look(certificates: &Certificates, reload: impl FnOnce(&Certificates) -> Option<Result<(), ConfigError>>) {
    // A load that panics has changed nothing.
    match catch_unwind(AssertUnwindSafe(|| reload(certificates))) {
        Ok(None) => {}
        Ok(Some(Ok(()))) => info!("the files have changed: reloaded the certificates"),
        Ok(Some(Err(error))) => error!("the files have changed, but the certificates stay as they are: {error}"),
        Err(_) => {
            certificates.set_failing();
            error!("the files have changed, but the certificates stay as they are: the thread has panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::time::SystemTime;

    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use tempfile::TempDir;

    use super::*;
    use crate::config::Config;

    /// A server's key and certificate, and the certificates that were loaded from there.
    struct Files(TempDir);

    impl Files {
        fn new() -> (Self, Certificates) {
            let files = Self(TempDir::new().unwrap());
            files.write(&["key", "crt"], |_| {});
            let pair = format!("{}:{}", files.path("key").display(), files.path("crt").display());
            let config = Config::default().with("https_keypairs", &pair).unwrap();
            let certificates = Certificates::load(&config).unwrap().expect("there is a pair");
            (files, certificates)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        /// Makes a new key and certificate, and writes some of the two files.
        fn write(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
            change(&mut params);
            let certificate = params.self_signed(&key).unwrap();
            for name in names {
                let text = if *name == "key" {
                    key.serialize_pem()
                } else {
                    certificate.pem()
                };
                fs::write(self.path(name), text).unwrap();
            }
        }
    }

    #[test]
    fn a_panic_is_a_load_that_failed() {
        let (_files, certificates) = Files::new();
        super::look(&certificates, |_| panic!("on purpose"));
        assert!(certificates.is_failing());
        super::look(&certificates, |certificates| Some(certificates.reload()));
        assert!(!certificates.is_failing());
    }

    /// Looks at the files. Returns the reason if a load has failed.
    fn look(certificates: &Certificates) -> Option<Result<(), String>> {
        let looked = certificates.reload_if_changed();
        looked.map(|reloaded| reloaded.map_err(|error| error.reason))
    }

    fn first_chain(certificates: &Certificates) -> Vec<u8> {
        certificates.subscribe().borrow().first_certificate().to_vec()
    }

    #[test]
    fn changed_files_are_loaded_once_they_stay_the_same() {
        let (files, certificates) = Files::new();
        assert_eq!(look(&certificates), None);
        let before = first_chain(&certificates);
        files.write(&["key", "crt"], |_| {});
        assert_eq!(look(&certificates), None, "the files may still change");
        files.write(&["key", "crt"], |_| {});
        assert_eq!(look(&certificates), None);
        assert_eq!(first_chain(&certificates), before);
        assert_eq!(look(&certificates), Some(Ok(())));
        assert_ne!(first_chain(&certificates), before);
        assert_eq!(look(&certificates), None);
        // Written again, but the same.
        let text = fs::read(files.path("crt")).unwrap();
        fs::write(files.path("crt"), text).unwrap();
        assert_eq!([look(&certificates), look(&certificates)], [None, None]);
        // SIGHUP.
        files.write(&["key", "crt"], |_| {});
        certificates.reload().unwrap();
        assert_eq!([look(&certificates), look(&certificates)], [None, None]);
    }

    #[test]
    fn files_that_cannot_be_used_change_nothing_and_are_reported_once() {
        let (files, certificates) = Files::new();
        let before = first_chain(&certificates);
        assert!(!certificates.is_failing());
        files.write(&["crt"], |_| {});
        assert_eq!(look(&certificates), None);
        let reason = format!(
            "{} is not the key of {}",
            files.path("key").display(),
            files.path("crt").display()
        );
        assert_eq!(look(&certificates), Some(Err(reason)));
        assert_eq!([look(&certificates), look(&certificates)], [None, None]);
        assert!(certificates.is_failing());

        fs::remove_file(files.path("key")).unwrap();
        assert_eq!(look(&certificates), None);
        let missing = look(&certificates).expect("another reason").unwrap_err();
        assert!(
            missing.starts_with(&format!("cannot read {}", files.path("key").display())),
            "{missing}"
        );
        assert_eq!(first_chain(&certificates), before);

        files.write(&["key", "crt"], |_| {});
        assert_eq!(look(&certificates), None);
        assert_eq!(look(&certificates), Some(Ok(())));
        assert_ne!(first_chain(&certificates), before);
        assert!(!certificates.is_failing());
    }

    #[test]
    fn a_failure_that_lasts_is_reported_again() {
        let mut fingerprints = Fingerprints::new(Vec::new());
        let begin = Instant::now();
        let mut report = |failure: Option<&str>, after: Duration| {
            fingerprints.set_failure(failure.map(str::to_owned), begin + after)
        };
        assert!(report(Some("a"), Duration::ZERO));
        assert!(!report(Some("a"), REPORT_INTERVAL / 2));
        assert!(report(Some("b"), REPORT_INTERVAL / 2));
        assert!(!report(Some("b"), REPORT_INTERVAL));
        assert!(report(Some("b"), REPORT_INTERVAL * 3 / 2));
        assert!(!report(Some("b"), REPORT_INTERVAL * 2));
        assert!(report(None, REPORT_INTERVAL * 2) && report(None, REPORT_INTERVAL * 2));
        assert!(report(Some("b"), REPORT_INTERVAL * 2));
    }

    #[test]
    fn a_certificate_out_of_its_dates_does_not_replace_a_valid_one() {
        let (files, certificates) = Files::new();
        files.write(&["key", "crt"], |params| params.not_after = date_time_ymd(2021, 2, 3));
        let error = certificates.reload().unwrap_err();
        let file = files.path("crt").display().to_string();
        assert_eq!(
            error.reason,
            format!("{file}: the certificate expired on 2021-02-03T00:00:00Z")
        );
        files.write(&["key", "crt"], |params| {
            params.not_before = date_time_ymd(2998, 1, 1);
            params.not_after = date_time_ymd(2999, 1, 1);
        });
        let error = certificates.reload().unwrap_err();
        assert_eq!(
            error.reason,
            format!("{file}: the certificate is not valid before 2998-01-01T00:00:00Z")
        );
        // Nothing is lost if the present certificate is out of its dates, too.
        files.write(&["key", "crt"], |params| params.not_after = date_time_ymd(2021, 2, 3));
        let pair = format!("{}:{file}", files.path("key").display());
        let config = Config::default().with("https_keypairs", &pair).unwrap();
        let expired = Certificates::load(&config).unwrap().expect("there is a pair");
        expired.reload().unwrap();
    }

    #[test]
    fn each_file_has_the_expiry_of_its_first_certificate_to_expire() {
        let (files, _) = Files::new();
        files.write(&["key", "crt"], |params| params.not_after = date_time_ymd(2999, 1, 1));
        let chain = fs::read_to_string(files.path("crt")).unwrap();
        files.write(&["other"], |params| params.not_after = date_time_ymd(2998, 1, 1));
        let other = fs::read_to_string(files.path("other")).unwrap();
        fs::write(files.path("crt"), chain.clone() + &other).unwrap();
        fs::write(files.path("ca"), other + &chain).unwrap();
        let pair = format!("{}:{}", files.path("key").display(), files.path("crt").display());
        let ca = files.path("ca").display().to_string();
        let config = Config::default().with("https_keypairs", &pair).unwrap();
        let config = config
            .with("client_ca_file", &ca)
            .and_then(|config| config.with("client_auth", "required"));
        let certificates = Certificates::load(&config.unwrap()).unwrap().expect("there is a pair");
        let expiry = SystemTime::from(date_time_ymd(2998, 1, 1));
        let expected = BTreeMap::from([(files.path("crt"), expiry), (files.path("ca"), expiry)]);
        assert_eq!(certificates.expiries(), expected);
    }

    /// Two samples with the same labels would make the whole page invalid.
    #[test]
    fn a_file_that_is_named_twice_has_one_expiry() {
        let (files, _) = Files::new();
        let (key, crt) = (files.path("key"), files.path("crt"));
        let pair = format!("{}:{}", key.display(), crt.display());
        let config = Config::default()
            .with("https_keypairs", &format!("{pair},{pair}"))
            .and_then(|config| config.with("client_ca_file", &crt.display().to_string()))
            .and_then(|config| config.with("client_auth", "required"));
        let certificates = Certificates::load(&config.unwrap()).unwrap().expect("there is a pair");
        assert_eq!(certificates.expiries().into_keys().collect::<Vec<_>>(), [crt]);
    }

    #[tokio::test]
    async fn a_thread_looks_at_the_files() {
        let (files, certificates) = Files::new();
        let mut loaded = certificates.subscribe();
        let watch = FileWatch::start(certificates.clone(), Duration::from_millis(1)).unwrap();
        files.write(&["key", "crt"], |_| {});
        loaded.changed().await.unwrap();
        // The thread ends, and lets go of the certificates.
        drop((watch, certificates));
        while loaded.changed().await.is_ok() {}
    }
}
