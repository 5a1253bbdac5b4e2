//! Keys of each kind in each PEM format, and chains, for the server and for its clients.

use std::fs;
use std::path::Path;

use nodetracker::RouteTable;
use nodetracker_server::Limits;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::version::{TLS12, TLS13};

use crate::authorization::{config, connect};
use crate::pki::{Identity, Pki, named};
use crate::support::{Raw, Running, framed};

/// The files of one key: first PKCS#8, which rcgen reads.
const KEYS: [&[&str]; 4] = [
    &["rsa.pkcs8.key", "rsa.pkcs1.key"],
    &["p256.pkcs8.key", "p256.sec1.key"],
    &["p384.pkcs8.key", "p384.sec1.key"],
    &["ed25519.pkcs8.key"],
];

fn read(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys");
    fs::read_to_string(folder.join(name)).unwrap()
}

#[tokio::test]
async fn servers_and_clients_have_keys_of_every_kind_and_format_and_chains() {
    let pki = Pki::new();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    let key = KeyPair::generate().unwrap();
    let intermediate = CertifiedIssuer::signed_by(params, key, &pki.authority).unwrap();
    for files in KEYS {
        let key = KeyPair::from_pem(&read(files[0])).unwrap();
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        named(&mut params, "Admin", "alice");
        let certificate = params.signed_by(&key, &intermediate).unwrap();
        let chain = certificate.pem() + &intermediate.pem();
        for file in files {
            let identity = Identity {
                chain: chain.clone(),
                key: read(file),
            };
            let config = config(&pki, "required");
            // In place of the pair that `config` has issued.
            pki.write_identity("tracker", &identity);
            let server = Running::with_config(&config, RouteTable::new(), Limits::default()).await;
            for versions in [&[&TLS12], &[&TLS13]] {
                let client = pki.client_config_of(Some(&identity), versions);
                let stream = connect(&server, client).await.unwrap();
                assert_eq!(
                    stream.get_ref().1.protocol_version(),
                    Some(versions[0].version),
                    "{file}"
                );
                let mut client = Raw::over(stream).await;
                let called = client.call("/nodetracker.v1.AdminService/Stats", framed(&[])).await;
                assert_eq!(called.grpc, Some(0), "{file}, {versions:?}: {}", called.message);
            }
        }
    }
}
