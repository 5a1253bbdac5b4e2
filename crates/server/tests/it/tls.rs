//! TLS: certificates are chosen by name and kind of key, mismatches are refused, and plaintext is rejected.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use nodetracker::RouteTable;
use nodetracker_server::{Config, Limits, Server};
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_RSA_SHA256, date_time_ymd};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki::Pki;
use crate::support::{Process, SOON, nodetracker, run, stderr, stdout};

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
    // The variable may be set for other trackers.
    let mut get = nodetracker();
    get.args(["get", "node-1", "--addr", &addr.to_string()]);
    let refused = get.env("NODETRACKER_CA_FILE", pki.path("ca.crt")).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    let line = "nodetracker: --ca-file or NODETRACKER_CA_FILE needs --addr https://…\n";
    assert_eq!(stderr(&refused), line);

    let at = format!("https://{addr}");
    let refused = run(&["get", "node-1", "--addr", &at, "--ca-file", &pki.path("ca.crt")]);
    assert_eq!(refused.status.code(), Some(1));
    let hint =
        format!("nodetracker: {addr}: the server speaks plaintext: use --addr http://{addr} without --ca-file\n");
    assert_eq!(stderr(&refused), hint);
}

/// Returns a client that trusts `pki`'s authority, and that can verify only these signatures of a server.
fn client(
    pki: &Pki,
    version: &'static SupportedProtocolVersion,
    verifies: impl Fn(SignatureScheme) -> bool,
    suites: &str,
) -> ClientConfig {
    let mut provider = aws_lc_rs::default_provider();
    let algorithms = &mut provider.signature_verification_algorithms;
    let mapping: Vec<_> = algorithms
        .mapping
        .iter()
        .copied()
        .filter(|(scheme, _)| verifies(*scheme))
        .collect();
    algorithms.mapping = mapping.leak();
    provider
        .cipher_suites
        .retain(|suite| format!("{:?}", suite.suite()).starts_with(suites));
    let mut roots = RootCertStore::empty();
    roots.add(pki.authority.der().clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// The operator has to see the failures: after a renewal with a pair of another authority, every proxy breaks off.
#[tokio::test]
async fn a_client_that_distrusts_the_server_is_in_the_log() {
    let pki = Pki::new();
    pki.issue("tracker", "127.0.0.1");
    let mut server = pki.serve(&[("tracker.key", "tracker.crt")]);
    for _ in 0..3 {
        handshake(&Pki::new(), &server, "127.0.0.1", b"h2").await.unwrap_err();
    }
    let mut log = server.logged("reason=\"tls_handshake\"");
    let line = log.lines().next_back().unwrap().to_owned();
    assert!(line.contains(" INFO refused: A TLS handshake failed"), "{line}");
    assert!(line.contains(" count=1 peer=127.0.0.1:"), "{line}");
    assert!(line.contains(" error=received fatal alert: "), "{line}");
    server.signal("TERM");
    log += &server.wait().await.1;
    assert!(log.matches("reason=\"tls_handshake\"").count() <= 2, "{log}");
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
    // No certificate has this name: the server sends the first one, and the client refuses it.
    let error = handshake(&pki, &server, "unknown.example.org", b"h2")
        .await
        .unwrap_err();
    assert!(error.contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_client_gets_a_pair_that_it_can_verify() {
    use SignatureScheme as Scheme;

    /// A client that names itself in errors.
    type Case = (
        &'static str,
        &'static SupportedProtocolVersion,
        fn(Scheme) -> bool,
        &'static str,
    );
    let cases: [Case; 6] = [
        ("RSA suites", &TLS12, |_| true, "TLS_ECDHE_RSA"),
        ("ECDSA suites", &TLS12, |_| true, "TLS_ECDHE_ECDSA"),
        (
            "RSA",
            &TLS12,
            |scheme| format!("{scheme:?}").starts_with("RSA"),
            "TLS_ECDHE",
        ),
        (
            "RSA",
            &TLS13,
            |scheme| format!("{scheme:?}").starts_with("RSA"),
            "TLS13",
        ),
        (
            "ECDSA",
            &TLS13,
            |scheme| format!("{scheme:?}").starts_with("ECDSA"),
            "TLS13",
        ),
        // TLS 1.3 has no such signatures.
        (
            "PKCS1",
            &TLS13,
            |scheme| !format!("{scheme:?}").starts_with("RSA_PSS"),
            "TLS13",
        ),
    ];
    let pki = Pki::new();
    let hosts = ["127.0.0.1", "tracker.example.com"];
    pki.issue_key("ecdsa", &hosts, &KeyPair::generate().unwrap());
    pki.issue_key("rsa", &hosts, &KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap());
    let (ecdsa, rsa) = (("ecdsa.key", "ecdsa.crt"), ("rsa.key", "rsa.crt"));
    for pairs in [[ecdsa, rsa], [rsa, ecdsa]] {
        let server = pki.serve(&pairs);
        for (case, version, verifies, suites) in cases {
            // A client sends no name for an IP address.
            for host in hosts {
                let stream = TcpStream::connect(server.addr).await.unwrap();
                let name = ServerName::try_from(host).unwrap();
                let config = Arc::new(client(&pki, version, verifies, suites));
                let shaken = TlsConnector::from(config).connect(name, stream).await;
                let error = shaken.err().map(|error| error.to_string());
                assert_eq!(error, None, "{case}, {version:?}, {host}, {pairs:?}");
            }
        }
    }
}

#[tokio::test]
async fn sighup_reloads_the_certificates() {
    let pki = Pki::new();
    pki.issue("tracker", "old.example.com");
    let mut server = pki.serve(&[("tracker.key", "tracker.crt")]);
    assert_eq!(handshake(&pki, &server, "old.example.com", b"h2").await, Ok(()));

    pki.issue("tracker", "new.example.com");
    server.signal("HUP");
    server.logged("SIGHUP: reloaded the certificates");
    assert_eq!(handshake(&pki, &server, "new.example.com", b"h2").await, Ok(()));
    assert!(handshake(&pki, &server, "old.example.com", b"h2").await.is_err());

    fs::write(pki.path("tracker.crt"), "nothing").unwrap();
    server.signal("HUP");
    let log = server.logged("SIGHUP: the certificates stay as they are: ");
    assert!(
        log.contains(&format!("{}: has no certificate", pki.path("tracker.crt"))),
        "{log}"
    );
    assert_eq!(handshake(&pki, &server, "new.example.com", b"h2").await, Ok(()));
    server.signal("TERM");
    assert_eq!(server.wait().await.0.code(), Some(0));
}

#[tokio::test]
async fn sighup_without_certificates_changes_nothing() {
    let mut server = Process::serve(&[]);
    server.signal("HUP");
    server.logged("SIGHUP: no https_keypairs, nothing to reload; the configuration is read only at the start");
    TcpStream::connect(server.addr).await.unwrap();
    server.signal("TERM");
    assert_eq!(server.wait().await.0.code(), Some(0));
}

#[test]
fn certificates_out_of_their_dates_are_named_at_the_start() {
    let pki = Pki::new();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 2, 3);
    pki.issue_params("expired", params.clone(), &key);
    params.not_before = date_time_ymd(2998, 1, 1);
    params.not_after = date_time_ymd(2999, 1, 1);
    pki.issue_params("early", params, &key);
    for (name, problem) in [
        ("expired", "expired on 2021-02-03T00:00:00Z"),
        ("early", "is not valid before 2998-01-01T00:00:00Z"),
    ] {
        let mut server = pki.serve(&[(&format!("{name}.key"), &format!("{name}.crt"))]);
        let file = pki.path(&format!("{name}.crt"));
        server.logged(&format!("WARN {file}: the certificate {problem}"));
    }
}

/// Writes a certificate as `openssl req -x509` makes it by default: of an authority, signed by itself.
fn self_sign(pki: &Pki, name: &str, change: impl FnOnce(&mut CertificateParams)) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    pki.write(name, &key, &params.self_signed(&key).unwrap().pem());
}

#[test]
fn commands_accept_the_certificate_that_they_trust() {
    let pki = Pki::new();
    self_sign(&pki, "good", |_| {});
    self_sign(&pki, "named", |params| {
        params.subject_alt_names = CertificateParams::new(["tracker.example.com".to_owned()])
            .unwrap()
            .subject_alt_names;
    });
    self_sign(&pki, "expired", |params| params.not_after = date_time_ymd(2021, 2, 3));
    let get = |server: &Process, ca: &str| {
        let at = format!("https://{}", server.addr);
        run(&["get", "node-1", "--addr", &at, "--ca-file", &pki.path(ca)])
    };
    let server = pki.serve(&[("good.key", "good.crt")]);
    let found = get(&server, "good.crt");
    assert!(found.status.success(), "{}", stderr(&found));
    // Another authority, of the same name.
    let refused = get(&server, "named.crt");
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));

    for (name, reason) in [("named", "not valid for name"), ("expired", "certificate expired")] {
        let server = pki.serve(&[(&format!("{name}.key"), &format!("{name}.crt"))]);
        let refused = get(&server, &format!("{name}.crt"));
        assert_eq!(refused.status.code(), Some(1));
        assert!(stderr(&refused).contains(reason), "{}", stderr(&refused));
    }
}

/// A certificate of X.509 version 1, as `openssl x509 -req` makes it without extensions.
const VERSION_1: &str = "-----BEGIN CERTIFICATE-----
MIIBHzCBxwIUc/XRVrclFv8JE2X5lXTjNOg6zkAwCgYIKoZIzj0EAwIwEjEQMA4G
A1UEAwwHdHJhY2tlcjAgFw0yNjExMjcyMDMyNTVaGA8yMTI2MTEwMzIwMzI1NVow
EjEQMA4GA1UEAwwHdHJhY2tlcjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABDvz
FuJxYVk5jDDqF5unUM9xjwOBHqTIEZTIhAs9xzeG6s2nz7mVn/A/qbZ3Hs2cAS0f
0j98C+y4IyWggkfa6uowCgYIKoZIzj0EAwIDRwAwRAIgSL50sf+0hpCoIA1PY/rk
cqeiLdiHEi9TU5nhJTfxikICIBqxEd9ma1GOupRYDxmcbIb/lOkSvdOPybPMMfbp
R2TN
-----END CERTIFICATE-----
";

#[test]
fn files_of_another_form_are_named_with_the_remedy() {
    let pki = Pki::new();
    pki.issue("a", "127.0.0.1");
    let read = |name| fs::read_to_string(pki.path(name)).unwrap();
    let (key, certificate) = (read("a.key"), read("a.crt"));
    let utf16 = |text: &str| {
        [0xfeff]
            .into_iter()
            .chain(text.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect()
    };
    let old_encrypted = "-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: \
                         AES-128-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n";
    let files: [(&str, Vec<u8>); 8] = [
        ("encrypted.key", key.replace("PRIVATE", "ENCRYPTED PRIVATE").into()),
        ("old-encrypted.key", old_encrypted.into()),
        ("bom.key", format!("\u{feff}{key}").into()),
        ("bom.crt", format!("\u{feff}{certificate}").into()),
        ("utf16.crt", utf16(&certificate)),
        ("der.key", KeyPair::generate().unwrap().serialize_der()),
        ("der.crt", pki.authority.der().to_vec()),
        ("v1.crt", VERSION_1.into()),
    ];
    for (name, text) in &files {
        fs::write(pki.path(name), text).unwrap();
    }
    let encrypted = "the key is encrypted: decrypt it with openssl pkey -in FILE -out NEW_FILE";
    let bom = "begins with a byte order mark: save the file as ASCII";
    for (key, cert, reason) in [
        ("encrypted.key", "a.crt", encrypted),
        ("old-encrypted.key", "a.crt", encrypted),
        ("bom.key", "a.crt", bom),
        ("a.key", "bom.crt", bom),
        ("a.key", "utf16.crt", bom),
        (
            "der.key",
            "a.crt",
            "is DER, not PEM: convert the file with openssl pkey -inform der -in FILE -out NEW_FILE",
        ),
        (
            "a.key",
            "der.crt",
            "is DER, not PEM: convert the file with openssl x509 -inform der -in FILE -out NEW_FILE",
        ),
        (
            "a.key",
            "v1.crt",
            "the certificate has X.509 version 1 or 2: make one of version 3, for example with a subjectAltName",
        ),
    ] {
        let refused = run(&["serve", "--config", &pki.config(&[(key, cert)])]);
        assert_eq!(refused.status.code(), Some(2), "{key}, {cert}");
        let bad = pki.path(if cert == "a.crt" { key } else { cert });
        let stderr = stderr(&refused);
        assert!(stderr.contains(&format!("_file: {bad}: {reason}")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    // The commands read the file of their authorities in the same way.
    let refused = run(&[
        "get",
        "n",
        "--addr",
        "https://127.0.0.1:1",
        "--ca-file",
        &pki.path("der.crt"),
    ]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("is DER, not PEM"), "{}", stderr(&refused));
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
    // A file that is missing or does not match its certificate may be good a second later: see `validate`.
    for (pair, code, start) in [
        (
            ("b.key", "a.crt"),
            1,
            format!("{key}: {b_key} is not the key of {a_crt}"),
        ),
        (
            ("missing.pem", "a.crt"),
            1,
            format!("{key}: cannot read {missing}: No such file"),
        ),
        (("a.crt", "a.crt"), 2, format!("{key}: {a_crt}: no private key")),
        (
            ("a.key", "missing.pem"),
            1,
            format!("{cert}: cannot read {missing}: No such file"),
        ),
        (
            ("a.key", "empty.pem"),
            2,
            format!("{cert}: {empty}: has no certificate"),
        ),
        (("a.key", "a.key"), 2, format!("{cert}: {a_key}: has no certificate")),
        (("a.key", "broken.pem"), 2, format!("{cert}: {broken}: ")),
    ] {
        let refused = run(&["serve", "--config", &pki.config(&[pair])]);
        assert_eq!(refused.status.code(), Some(code), "{pair:?}");
        assert_eq!(stdout(&refused), "");
        let stderr = stderr(&refused);
        assert!(stderr.starts_with(&format!("nodetracker: {start}")), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}
