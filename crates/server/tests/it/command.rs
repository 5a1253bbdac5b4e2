//! What `serve` writes, and where.

use std::net::TcpStream;

use crate::support::{Process, run, stdout};

#[test]
fn logs_are_text_or_json_on_stderr() {
    let mut server = Process::serve(&["--log-format", "json"]);
    let line = server.logged("plaintext");
    assert!(
        line.lines()
            .all(|line| line.starts_with("{\"timestamp\":") && line.ends_with('}')),
        "{line}"
    );
    let mut server = Process::serve(&[]);
    assert!(server.logged("plaintext").contains(" INFO no https_keypairs"));
    // Once calls are accepted: no waiting, no trying again.
    TcpStream::connect(server.addr).unwrap();
}

#[test]
fn help_and_version_are_for_stdout() {
    for args in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let help = run(args);
        assert_eq!(help.status.code(), Some(0));
        assert!(stdout(&help).contains("nodetracker"), "{args:?}");
    }
    assert_eq!(
        stdout(&run(&["--version"])),
        format!("nodetracker {}\n", env!("CARGO_PKG_VERSION"))
    );
}
