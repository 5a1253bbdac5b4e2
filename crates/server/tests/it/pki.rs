//! Test support: an authority, and keys and certificates made by it.

use std::fs;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, DEFAULT_VERSIONS, RootCertStore, SupportedProtocolVersion};
use tempfile::TempDir;

use crate::support::{Process, nodetracker};

/// A folder with an authority and certificates made by it.
pub(crate) struct Pki {
    folder: TempDir,
    pub(crate) authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        Self::with_authority(|_| {})
    }

    /// Makes an authority after `change`.
    pub(crate) fn with_authority(change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        change(&mut params);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
        Self { folder, authority }
    }

    /// Writes `name.key` and `name.crt`, the latter valid for one host.
    pub(crate) fn issue(&self, name: &str, host: &str) {
        self.issue_key(name, &[host], &KeyPair::generate().unwrap());
    }

    /// Writes `name.key` and `name.crt` for this key, the latter valid for these hosts.
    pub(crate) fn issue_key(&self, name: &str, hosts: &[&str], key: &KeyPair) {
        let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
        self.issue_params(name, CertificateParams::new(hosts).unwrap(), key);
    }

    pub(crate) fn issue_params(&self, name: &str, params: CertificateParams, key: &KeyPair) {
        let certificate = params.signed_by(key, &self.authority).unwrap();
        self.write(name, key, &certificate.pem());
    }

    pub(crate) fn write(&self, name: &str, key: &KeyPair, certificate: &str) {
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a configuration with these (key, certificate) pairs, which it names relative to itself.
    pub(crate) fn config(&self, pairs: &[(&str, &str)]) -> String {
        let mut text = "node_tracker_service:\n  listen_addr: 127.0.0.1:0\n  https_keypairs:\n".to_owned();
        for (key, cert) in pairs {
            text += &format!("  - key_file: {key}\n    cert_file: {cert}\n");
        }
        let file = self.path("tracker.yaml");
        fs::write(&file, text).unwrap();
        file
    }

    pub(crate) fn serve(&self, pairs: &[(&str, &str)]) -> Process {
        let mut command = nodetracker();
        command.args(["serve", "--config", &self.config(pairs)]);
        Process::spawn(command)
    }

    /// Starts the command as a server that requires certificates of this authority.
    pub(crate) fn serve_with_clients(&self) -> Process {
        self.issue("tracker", "127.0.0.1");
        let pair = format!("{}:{}", self.path("tracker.key"), self.path("tracker.crt"));
        let ca = self.path("ca.crt");
        Process::serve(&[
            "--https-keypairs",
            &pair,
            "--client-ca-file",
            &ca,
            "--client-auth",
            "required",
        ])
    }
}

/// A client's certificate chain and key, as PEM.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Pki {
    /// Issues a client's certificate without a name, after `change`.
    pub(crate) fn client(&self, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        Identity {
            chain: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// Issues a client's certificate with Teleport's names.
    pub(crate) fn teleport(&self, role: &str, name: &str) -> Identity {
        self.client(|params| named(params, role, name))
    }

    /// Writes `name.key` and `name.crt`.
    pub(crate) fn write_identity(&self, name: &str, identity: &Identity) {
        fs::write(self.path(&format!("{name}.crt")), &identity.chain).unwrap();
        fs::write(self.path(&format!("{name}.key")), &identity.key).unwrap();
    }

    /// Returns a client that trusts this authority, and has a certificate or none.
    pub(crate) fn client_config(&self, identity: Option<&Identity>) -> ClientConfig {
        self.client_config_of(identity, DEFAULT_VERSIONS)
    }

    /// As [`client_config`](Self::client_config), for some versions of TLS.
    pub(crate) fn client_config_of(
        &self,
        identity: Option<&Identity>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.der().clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match identity {
            None => config.with_no_client_auth(),
            Some(Identity { chain, key }) => {
                let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                    .map(Result::unwrap)
                    .collect();
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    }
}

/// Sets Teleport's names: O is the role.
pub(crate) fn named(params: &mut CertificateParams, role: &str, name: &str) {
    params.distinguished_name.push(DnType::OrganizationName, role);
    params.distinguished_name.push(DnType::CommonName, name);
}
