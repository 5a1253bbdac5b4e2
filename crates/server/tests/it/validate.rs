//! `nodetracker validate`: the mistakes that `serve` would report, without a server.

use std::fs;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use crate::support::{config_file, run, stderr, stdout};

/// Writes `NAME.key` and `NAME.crt` beside a configuration file.
fn key_pair(file: &std::path::Path, name: &str, expired: bool) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["tracker.example".to_owned()]).unwrap();
    if expired {
        params.not_after = date_time_ymd(2001, 1, 1);
    }
    let certificate = params.self_signed(&key).unwrap();
    fs::write(file.with_file_name(format!("{name}.key")), key.serialize_pem()).unwrap();
    fs::write(file.with_file_name(format!("{name}.crt")), certificate.pem()).unwrap();
}

#[test]
fn a_good_file_is_valid_and_its_changes_are_printed() {
    let (_folder, file) = config_file(
        "node_tracker_service:\n  enabled: true\n  listen_addr: unknown.invalid:3029\n  max_connections: 10000\n  \
         proxy_keep_alive_interval: 1h30m\n  log_level: debug\n  https_keypairs:\n  - key_file: a.key\n    cert_file: a.crt\n",
    );
    key_pair(&file, "a", false);
    let name = file.to_str().unwrap();
    let valid = run(&["validate", name]);
    assert_eq!((valid.status.code(), stderr(&valid)), (Some(0), String::new()));
    let folder = file.parent().unwrap().display();
    let expected = format!(
        "{name}: valid\nlisten_addr: unknown.invalid:3029\nproxy_keep_alive_interval: 1h30m\nlog_level: debug\n\
         https_keypairs: {folder}/a.key:{folder}/a.crt\n"
    );
    assert_eq!(stdout(&valid), expected);
}

#[test]
fn the_sample_file_is_valid_and_changes_nothing() {
    let sample = concat!(env!("CARGO_MANIFEST_DIR"), "/config/nodetracker.yaml");
    let valid = run(&["validate", sample]);
    assert_eq!(
        (valid.status.code(), stdout(&valid), stderr(&valid)),
        (Some(0), format!("{sample}: valid\n"), String::new())
    );
}

#[test]
fn a_mistake_is_the_line_that_serve_prints() {
    let section = "node_tracker_service:\n";
    for text in [
        String::new(),
        format!("{section}  listen_adr: a:1\n"),
        format!("{section}  enabled: no\n"),
        format!("{section}  log_level: verbose\n"),
        format!("{section}  listen_addr: ::1:3029\n"),
        format!("{section}  listen_addr: :3029\n  diag_addr: :3029\n"),
        format!("{section}  shutdown_delay: 18446744073709551615s 1000ms\n"),
        format!("{section}  shutdown_delay: 366d\n"),
        format!("{section}  https_keypairs:\n  - key_file: a.crt\n    cert_file: a.crt\n"),
    ] {
        let (_folder, file) = config_file(&text);
        key_pair(&file, "a", false);
        key_pair(&file, "b", false);
        let name = file.to_str().unwrap();
        let [validated, served] = [&["validate", name][..], &["serve", "--config", name]].map(run);
        assert_eq!(
            (validated.status.code(), served.status.code()),
            (Some(2), Some(2)),
            "{text}"
        );
        assert_eq!(stderr(&validated), stderr(&served), "{text}");
        assert_eq!(stdout(&validated), "");
    }
}

/// A file may come later: an agent writes it, or its file system is not mounted yet. So `serve` ends with another code,
/// after which systemd tries again.
#[test]
fn a_file_that_may_come_is_no_mistake_of_the_configuration() {
    let text = "node_tracker_service:\n  https_keypairs:\n  - key_file: a.key\n    cert_file: a.crt\n";
    for change in [
        |file: &Path| fs::remove_file(file.with_file_name("a.key")).unwrap(),
        |file: &Path| fs::remove_file(file.with_file_name("a.crt")).unwrap(),
        // Between the two renames of a renewal.
        |file: &Path| fs::rename(file.with_file_name("b.key"), file.with_file_name("a.key")).unwrap(),
        |file: &Path| fs::remove_file(file).unwrap(),
    ] {
        let (_folder, file) = config_file(text);
        key_pair(&file, "a", false);
        key_pair(&file, "b", false);
        change(&file);
        let name = file.to_str().unwrap();
        let [validated, served] = [&["validate", name][..], &["serve", "--config", name]].map(run);
        let printed = stderr(&served);
        assert_eq!(served.status.code(), Some(1), "{printed}");
        assert_eq!((validated.status.code(), stderr(&validated)), (Some(1), printed));
    }
}

#[test]
fn a_certificate_that_has_expired_is_a_warning() {
    let text = "node_tracker_service:\n  https_keypairs:\n  - key_file: a.key\n    cert_file: a.crt\n";
    let (_folder, file) = config_file(text);
    key_pair(&file, "a", true);
    let valid = run(&["validate", file.to_str().unwrap()]);
    assert_eq!(valid.status.code(), Some(0));
    assert!(
        stderr(&valid).contains("the certificate expired on 2001-01-01"),
        "{}",
        stderr(&valid)
    );
}
