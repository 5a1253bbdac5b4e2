//! Test support: an authority, and keys and certificates made by it.

use std::fs;
use std::path::PathBuf;

use nodetracker_client::connect::channel::TlsFiles;
use nodetracker_client::transport::server_tls::ServerTlsFiles;
use nodetracker_server::Config;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair};
use tempfile::TempDir;

use crate::support::Running;

/// A folder with an authority, and certificates made by it.
pub(crate) struct Pki {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
        Self { folder, authority }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `name.key` and `name.crt`, the latter valid for one host.
    pub(crate) fn issue(&self, name: &str, host: &str) {
        self.issue_params(name, CertificateParams::new([host.to_owned()]).unwrap());
    }

    /// Writes `client.key` and `client.crt` of a proxy, as trackers know it.
    pub(crate) fn issue_proxy(&self, id: &str) {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Proxy");
        params.distinguished_name.push(DnType::CommonName, id);
        self.issue_params("client", params);
    }

    fn issue_params(&self, name: &str, params: CertificateParams) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.path(&format!("{name}.crt")), certificate.pem()).unwrap();
    }

    /// A tracker that verifies its clients by the authority.
    pub(crate) async fn tracker(&self) -> Running {
        self.issue("tracker", "127.0.0.1");
        let text = "node_tracker_service:\n  listen_addr: 127.0.0.1:0\n  https_keypairs:\n  - key_file: tracker.key\n    \
                    cert_file: tracker.crt\n  client_ca_file: ca.crt\n  client_auth: required\n";
        fs::write(self.path("tracker.yaml"), text).unwrap();
        Running::with_config(&Config::read(&self.path("tracker.yaml")).unwrap()).await
    }

    /// The files of a side that dials, with this certificate.
    pub(crate) fn client_files(&self, name: &str) -> TlsFiles {
        TlsFiles {
            ca: self.path("ca.crt"),
            keypair: Some((self.path(&format!("{name}.key")), self.path(&format!("{name}.crt")))),
        }
    }

    /// The files of a side that accepts tunnels with this certificate, and verifies who dials.
    pub(crate) fn server_files(&self, name: &str) -> ServerTlsFiles {
        ServerTlsFiles {
            key: self.path(&format!("{name}.key")),
            certificate: self.path(&format!("{name}.crt")),
            client_ca: Some(self.path("ca.crt")),
        }
    }
}
