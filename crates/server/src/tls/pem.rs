//! Keys and certificates from PEM files. An error says what is wrong with a file, and how to get a good file.

use std::path::Path;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, Error, RootCertStore};

/// Reads the certificates of a PEM file. Fails if there is none, or if one cannot be parsed.
pub(super) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = read(file, "x509")?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{}: not PEM: {error}", file.display()))?;
    if certificates.is_empty() {
        return Err(format!("{}: has no certificate", file.display()));
    }
    for certificate in &certificates {
        ParsedCertificate::try_from(certificate).map_err(|error| {
            // The error is webpki's, wrapped.
            let reason = match format!("{error:?}").contains("UnsupportedCertVersion") {
                true => "the certificate has X.509 version 1 or 2: make one of version 3, for example with a \
                         subjectAltName"
                    .to_owned(),
                false => error.to_string(),
            };
            format!("{}: {reason}", file.display())
        })?;
    }
    Ok(certificates)
}

/// Reads the first private key of a PEM file.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    let pem = read(file, "pkey")?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let reason = match pem.windows(ENCRYPTED.len()).any(|bytes| bytes == ENCRYPTED) {
            true => "the key is encrypted: decrypt it with openssl pkey -in FILE -out NEW_FILE".to_owned(),
            false => format!("no private key: {error}"),
        };
        format!("{}: {reason}", file.display())
    })
}

/// Reads a file that should be PEM. `command` is openssl's command for the file's kind.
fn read(file: &Path, command: &str) -> Result<Vec<u8>, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    match bytes.as_slice() {
        // Of UTF-8 and UTF-16.
        [0xef, 0xbb, 0xbf, ..] | [0xfe, 0xff, ..] | [0xff, 0xfe, ..] => Err(format!(
            "{}: begins with a byte order mark: save the file as ASCII",
            file.display()
        )),
        // A SEQUENCE with a long length, or with a short length that fits the file.
        [0x30, 0x81..=0x84, ..] => Err(der(file, command)),
        [0x30, len, rest @ ..] if usize::from(*len) == rest.len() => Err(der(file, command)),
        _ => Ok(bytes),
    }
}

fn der(file: &Path, command: &str) -> String {
    format!(
        "{}: is DER, not PEM: convert the file with openssl {command} -inform der -in FILE -out NEW_FILE",
        file.display()
    )
}

/// Checks that a certificate is valid now.
pub(super) fn check_dates(certificate: &ParsedCertificate<'_>, now: UnixTime) -> Result<(), Error> {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};

    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let nobody = RootCertStore::empty();
    // webpki checks the dates first. Then it always fails, since nobody is trusted.
    match rustls::client::verify_server_cert_signed_by_trust_anchor(certificate, &nobody, &[], now, algorithms) {
        Err(
            error
            @ Error::InvalidCertificate(Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }),
        ) => Err(error),
        _ => Ok(()),
    }
}

/// Returns the last second in which a certificate is valid. `None` if the certificate has no usable dates.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<UnixTime> {
    // A date of X.509 is at most the end of the year 9999.
    const YEAR_10000: Duration = Duration::from_secs(253_402_300_800);
    let certificate = ParsedCertificate::try_from(certificate).ok()?;
    match check_dates(&certificate, UnixTime::since_unix_epoch(YEAR_10000)) {
        Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => Some(not_after),
        _ => None,
    }
}
