//! Keys and certificates from PEM files. An error says what is wrong with a file, and how to get a good file.

use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ParsedCertificate;
use rustls::{Error, RootCertStore};

/// Why a file cannot be used. The message names the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The file cannot be read now.
    #[error("cannot read {}: {error}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        error: io::Error,
    },
    /// The file's contents cannot be used.
    #[error("{0}")]
    Contents(String),
}

impl FileError {
    /// Reports whether the same file may be usable later without a change of the configuration. For example, a file
    /// system is not mounted yet, or an agent has not written the file yet.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Read { error, .. } => !matches!(
                error.kind(),
                io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
            ),
            Self::Contents(_) => false,
        }
    }
}

impl From<String> for FileError {
    fn from(reason: String) -> Self {
        Self::Contents(reason)
    }
}

/// Reads the certificates of a PEM file, in the order of the file.
///
/// # Errors
///
/// If the file cannot be read, has no certificate, or has a certificate that cannot be parsed. The message names the
/// file.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let pem = read(file, "x509")?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("{}: not PEM: {error}", file.display()))?;
    if certificates.is_empty() {
        return Err(format!("{}: has no certificate", file.display()).into());
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

/// Reads the first private key of a PEM file, in PKCS#8, PKCS#1 or SEC1.
///
/// # Errors
///
/// If the file cannot be read, or has no private key in plaintext. The message names the file.
pub fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, FileError> {
    const ENCRYPTED: &[u8] = b"ENCRYPTED";
    let pem = read(file, "pkey")?;
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let reason = match pem.windows(ENCRYPTED.len()).any(|bytes| bytes == ENCRYPTED) {
            true => "the key is encrypted: decrypt it with openssl pkey -in FILE -out NEW_FILE".to_owned(),
            false => format!("no private key: {error}"),
        };
        format!("{}: {reason}", file.display())
    })?;
    Ok(key)
}

/// Reads a file that should be PEM. `command` is openssl's command for the file's kind.
fn read(file: &Path, command: &str) -> Result<Vec<u8>, FileError> {
    let unreadable = |error| FileError::Read {
        file: file.to_owned(),
        error,
    };
    let bytes = std::fs::read(file).map_err(unreadable)?;
    let reason = match bytes.as_slice() {
        // The byte order marks of UTF-8 and UTF-16.
        [0xef, 0xbb, 0xbf, ..] | [0xfe, 0xff, ..] | [0xff, 0xfe, ..] => format!(
            "{}: begins with a byte order mark: save the file as ASCII",
            file.display()
        ),
        // A SEQUENCE with a long length, or with a short length that fits the file.
        [0x30, 0x81..=0x84, ..] => der(file, command),
        [0x30, len, rest @ ..] if usize::from(*len) == rest.len() => der(file, command),
        _ => return Ok(bytes),
    };
    Err(FileError::Contents(reason))
}

fn der(file: &Path, command: &str) -> String {
    format!(
        "{}: is DER, not PEM: convert the file with openssl {command} -inform der -in FILE -out NEW_FILE",
        file.display()
    )
}

/// Returns certificates as roots of trust.
///
/// # Errors
///
/// If a certificate cannot be a root of trust.
pub fn roots(certificates: &[CertificateDer<'static>]) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate.clone())?;
    }
    Ok(roots)
}
