//! The dates between which certificates are valid.

use std::path::Path;
use std::time::{Duration, SystemTime};

use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

/// The dates of one certificate.
#[derive(Debug, Clone, Copy)]
pub struct Dates {
    /// The first time at which the certificate is valid.
    pub from: UnixTime,
    /// The last time at which the certificate is valid.
    pub until: UnixTime,
}

impl Dates {
    /// Returns the dates of a certificate in DER. Returns `None` if the certificate cannot be parsed.
    #[must_use]
    pub fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let validity = certificate.validity();
        let time = |time: ASN1Time| {
            // A time before 1970 counts as 1970: both have passed.
            let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
            UnixTime::since_unix_epoch(Duration::from_secs(seconds))
        };
        Some(Self {
            from: time(validity.not_before),
            until: time(validity.not_after),
        })
    }

    /// Checks that a time is between the dates.
    ///
    /// # Errors
    ///
    /// If the certificate has expired, or is not valid yet.
    pub fn check(self, time: UnixTime) -> Result<(), CertificateError> {
        let (not_before, not_after) = (self.from, self.until);
        if time < not_before {
            return Err(CertificateError::NotValidYetContext { time, not_before });
        }
        if time > not_after {
            return Err(CertificateError::ExpiredContext { time, not_after });
        }
        Ok(())
    }

    /// Returns how long the certificate is valid after a time.
    #[must_use]
    pub fn left(self, time: UnixTime) -> Duration {
        Duration::from_secs(self.until.as_secs().saturating_sub(time.as_secs()))
    }
}

/// Checks that a certificate in DER is valid at a time.
///
/// # Errors
///
/// If the certificate cannot be parsed, has expired, or is not valid yet.
pub fn check(certificate: &[u8], time: UnixTime) -> Result<(), Error> {
    let dates = Dates::of(certificate).ok_or(CertificateError::BadEncoding)?;
    Ok(dates.check(time)?)
}

/// Returns the earliest expiry of the certificates of a chain. Returns `None` if no certificate can be parsed.
#[must_use]
pub fn first_expiry(chain: &[CertificateDer<'_>]) -> Option<SystemTime> {
    let dates = chain.iter().filter_map(|certificate| Dates::of(certificate));
    dates.map(|dates| system_time(dates.until)).min()
}

/// Returns a line about the first certificate of a file that is not valid at a time: which certificate, and why.
/// Returns `None` if all are valid.
#[must_use]
pub fn problem(file: &Path, chain: &[CertificateDer<'_>], time: UnixTime) -> Option<String> {
    (1..).zip(chain).find_map(|(number, certificate)| {
        let problem = match Dates::of(certificate)?.check(time) {
            Err(CertificateError::ExpiredContext { not_after, .. }) => format!("expired on {}", rfc3339(not_after)),
            Err(CertificateError::NotValidYetContext { not_before, .. }) => {
                format!("is not valid before {}", rfc3339(not_before))
            }
            _ => return None,
        };
        let file = file.display();
        Some(match number {
            1 => format!("{file}: the certificate {problem}"),
            _ => format!("{file}: certificate {number} {problem}"),
        })
    })
}

fn system_time(time: UnixTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

/// Writes a time as RFC 3339 does, in UTC, to the second.
#[must_use]
pub fn rfc3339(time: UnixTime) -> String {
    humantime::format_rfc3339_seconds(system_time(time)).to_string()
}
