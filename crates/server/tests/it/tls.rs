//! TLS: certificates are chosen by name, mismatches are refused, and plaintext is rejected.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use nodetracker::RouteTable;
use nodetracker_server::{Config, Limits, Server};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Process, SOON, nodetracker, run, stderr, stdout};

/// A folder with an authority and certificates made by it.
struct Pki {
    folder: TempDir,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("ca.crt"), authority.pem()).unwrap();
        Self { folder, authority }
    }

    /// Writes `name.key` and `name.crt`, the latter valid for one host.
    fn issue(&self, name: &str, host: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        fs::write(self.folder.path().join(format!("{name}.key")), key.serialize_pem()).unwrap();
        fs::write(self.folder.path().join(format!("{name}.crt")), certificate.pem()).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// Writes a configuration with these (key, certificate) pairs, which it names relative to itself.
    fn config(&self, pairs: &[(&str, &str)]) -> String {
        let mut text = "node_tracker_service:\n  listen_addr: 127.0.0.1:0\n  https_keypairs:\n".to_owned();
        for (key, cert) in pairs {
            text += &format!("  - key_file: {key}\n    cert_file: {cert}\n");
        }
        let file = self.path("tracker.yaml");
        fs::write(&file, text).unwrap();
        file
    }

    fn serve(&self, pairs: &[(&str, &str)]) -> Process {
        let mut command = nodetracker();
        command.args(["serve", "--config", &self.config(pairs)]);
        Process::spawn(command)
    }
}

#[test]
fn commands_speak_tls_with_a_ca_file() {
    let pki = Pki::new();
    pki.issue("tracker", "127.0.0.1");
    let server = pki.serve(&[("tracker.key", "tracker.crt")]);
    let at = format!("https://{}", server.addr);
    let ca = pki.path("ca.crt");
    let added = run(&["add", "node-1", "proxy-1", "proxy:1", "--addr", &at, "--ca-file", &ca]);
    assert!(added.status.success(), "{}", stderr(&added));
    let found = run(&["get", "node-1", "--addr", &at, "--ca-file", &ca]);
    assert!(stdout(&found).contains("proxy-1"), "{}", stderr(&found));

    // An authority that did not sign it.
    let other = Pki::new();
    let refused = run(&["get", "node-1", "--addr", &at, "--ca-file", &other.path("ca.crt")]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).starts_with(&format!("nodetracker: {}: TLS failed: ", server.addr)),
        "{}",
        stderr(&refused)
    );
    assert_eq!(stderr(&refused).lines().count(), 1);

    // Authorities that cannot be read: no call was tried.
    for (file, reason) in [("missing.crt", "cannot read "), ("tracker.key", "")] {
        let refused = run(&["get", "node-1", "--addr", &at, "--ca-file", &pki.path(file)]);
        assert_eq!(refused.status.code(), Some(2), "{file}");
        let line = format!("nodetracker: --ca-file: {reason}{}: ", pki.path(file));
        assert!(stderr(&refused).starts_with(&line), "{}", stderr(&refused));
        assert_eq!(stderr(&refused).lines().count(), 1);
    }
}

#[test]
fn plaintext_and_tls_are_told_apart() {
    let pki = Pki::new();
    pki.issue("tracker", "127.0.0.1");
    let server = pki.serve(&[("tracker.key", "tracker.crt")]);
    let addr = server.addr;
    for command in [&["get", "node-1"][..], &["stats"]] {
        let refused = run(&[command, &["--addr", &addr.to_string()]].concat());
        assert_eq!(refused.status.code(), Some(1));
        let hint = format!("nodetracker: {addr}: the server speaks TLS: use --addr https://{addr} and --ca-file\n");
        assert_eq!(stderr(&refused), hint);
    }

    let server = Process::serve(&[]);
    let addr = server.addr;
    let at = format!("https://{addr}");
    let refused = run(&["get", "node-1", "--addr", &at, "--ca-file", &pki.path("ca.crt")]);
    assert_eq!(refused.status.code(), Some(1));
    let hint =
        format!("nodetracker: {addr}: the server speaks plaintext: use --addr http://{addr} without --ca-file\n");
    assert_eq!(stderr(&refused), hint);
}

/// Shakes hands as a client of `pki`'s authority that asks for this name and protocol.
async fn handshake(pki: &Pki, server: &Process, name: &str, protocol: &[u8]) -> Result<(), String> {
    shake_hands(pki, server.addr, name, protocol).await.map(drop)
}

async fn shake_hands(pki: &Pki, addr: SocketAddr, name: &str, protocol: &[u8]) -> Result<TlsStream<TcpStream>, String> {
    let mut roots = RootCertStore::empty();
    roots.add(pki.authority.der().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let stream = TcpStream::connect(addr).await.unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    let stream = shaken.map_err(|error| error.to_string())?;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(protocol));
    Ok(stream)
}

#[tokio::test]
async fn the_name_chooses_the_certificate() {
    let pki = Pki::new();
    pki.issue("first", "127.0.0.1");
    pki.issue("second", "*.example.com");
    let server = pki.serve(&[("first.key", "first.crt"), ("second.key", "second.crt")]);
    assert_eq!(handshake(&pki, &server, "127.0.0.1", b"h2").await, Ok(()));
    assert_eq!(handshake(&pki, &server, "a.example.com", b"h2").await, Ok(()));
    // Nobody's name: the first one, which the client then finds not to be for it.
    let error = handshake(&pki, &server, "unknown.example.org", b"h2")
        .await
        .unwrap_err();
    assert!(error.contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn only_http2_over_tls_is_spoken() {
    let pki = Pki::new();
    pki.issue("tracker", "127.0.0.1");
    let server = pki.serve(&[("tracker.key", "tracker.crt")]);
    assert!(handshake(&pki, &server, "127.0.0.1", b"http/1.1").await.is_err());
    let mut plain = TcpStream::connect(server.addr).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let _ = plain.read_to_end(&mut Vec::new()).await;
    assert_eq!(handshake(&pki, &server, "127.0.0.1", b"h2").await, Ok(()));
}

#[tokio::test]
async fn clients_that_are_silent_before_or_after_the_handshake_are_cut() {
    let pki = Pki::new();
    pki.issue("tracker", "127.0.0.1");
    let config = Config::read(Path::new(&pki.config(&[("tracker.key", "tracker.crt")]))).unwrap();
    let limits = Limits {
        handshake: SOON,
        ..Limits::default()
    };
    let server = Server::bind_with_limits(&config, Arc::new(RouteTable::new()), limits)
        .await
        .unwrap();
    let addr = server.local_addr();
    let task = tokio::spawn(server.run(std::future::pending()));
    let mut silent = TcpStream::connect(addr).await.unwrap();
    let _ = silent.read_to_end(&mut Vec::new()).await;
    // Nor may a client be silent once the handshake is done.
    let mut silent = shake_hands(&pki, addr, "127.0.0.1", b"h2").await.unwrap();
    let _ = silent.read_to_end(&mut Vec::new()).await;
    task.abort();
}

#[test]
fn unusable_key_pairs_are_refused() {
    let pki = Pki::new();
    pki.issue("a", "127.0.0.1");
    pki.issue("b", "127.0.0.1");
    fs::write(pki.path("empty.pem"), "").unwrap();
    fs::write(
        pki.path("broken.pem"),
        "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let file = pki.path("tracker.yaml");
    let (a_key, b_key, a_crt) = (pki.path("a.key"), pki.path("b.key"), pki.path("a.crt"));
    let (empty, broken, missing) = (pki.path("empty.pem"), pki.path("broken.pem"), pki.path("missing.pem"));
    let key = format!("{file}:4: node_tracker_service.https_keypairs.key_file");
    let cert = format!("{file}:5: node_tracker_service.https_keypairs.cert_file");
    for (pair, start) in [
        (("b.key", "a.crt"), format!("{key}: {b_key} is not the key of {a_crt}")),
        (
            ("missing.pem", "a.crt"),
            format!("{key}: cannot read {missing}: No such file"),
        ),
        (("a.crt", "a.crt"), format!("{key}: {a_crt}: no private key")),
        (
            ("a.key", "missing.pem"),
            format!("{cert}: cannot read {missing}: No such file"),
        ),
        (("a.key", "empty.pem"), format!("{cert}: {empty}: has no certificate")),
        (("a.key", "a.key"), format!("{cert}: {a_key}: has no certificate")),
        (("a.key", "broken.pem"), format!("{cert}: {broken}: ")),
    ] {
        let refused = run(&["serve", "--config", &pki.config(&[pair])]);
        assert_eq!(refused.status.code(), Some(2), "{pair:?}");
        assert_eq!(stdout(&refused), "");
        let stderr = stderr(&refused);
        assert!(stderr.starts_with(&format!("nodetracker: {start}")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}
