//! Invalid configurations: exit code 2, and one line that names the setting to change.

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::process::Command;

use crate::support::{Process, config_file, nodetracker, run, stderr, stdout};

#[track_caller]
fn assert_refused(args: &[&str], line: &str) {
    let refused = run(&[&["serve"], args].concat());
    assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    assert_eq!(stderr(&refused), format!("nodetracker: {line}\n"));
    assert_eq!(stdout(&refused), "");
}

#[test]
fn what_is_wrong_with_the_file_is_one_line() {
    let section = "node_tracker_service.";
    for (text, reason) in [
        ("", ": has no section node_tracker_service".to_owned()),
        (
            "proxy_service:\n  enabled: yes\n",
            ": has no section node_tracker_service".into(),
        ),
        ("proxy_service: [", ":1: unclosed bracket '['".into()),
        (
            "node_tracker_service:\n  enabled: no\n",
            format!(":2: {section}enabled: the service is switched off: nothing to do"),
        ),
        (
            "node_tracker_service:\n  enabled: yes\n  listen_address: 127.0.0.1:0\n",
            ":3: unknown key `listen_address`, expected one of enabled, listen_addr, proxy_keep_alive_interval, \
             shutdown_delay, max_routes, max_proxies, max_text_mb, max_routes_per_proxy, expiry_brake_percent, expiry_brake_routes, \
             expiry_brake_intervals, data_dir, snapshot_interval, max_connections, client_memory_mb, \
             max_share_per_client, max_watches, max_watched_mb, https_keypairs, client_ca_file, client_auth, client_identity, diag_addr, \
             log_format, log_level"
                .into(),
        ),
        (
            "node_tracker_service:\n  listen_addr: tracker\n",
            format!(":2: {section}listen_addr: \"tracker\" is not host:port"),
        ),
        (
            "node_tracker_service:\n  proxy_keep_alive_interval: soon\n",
            format!(":2: {section}proxy_keep_alive_interval: \"soon\" is not a duration: \"soon\" does not begin with a number"),
        ),
        (
            "node_tracker_service:\n  proxy_keep_alive_interval: 0s\n",
            format!(
                ":2: {section}proxy_keep_alive_interval: \"0s\" is too short: every route would be expired at once"
            ),
        ),
        (
            "node_tracker_service:\n  proxy_keep_alive_interval: 5M\n",
            format!(
                ":2: {section}proxy_keep_alive_interval: \"5M\" is not a duration: \"M\" is no unit: use d, h, m, s or ms"
            ),
        ),
        (
            "node_tracker_service:\n  listen_addr: 127.0.0.1:0\nhttps_keypairs:\n- key_file: a\n  cert_file: b\n",
            ":3: https_keypairs is a key of node_tracker_service: indent the key to stand below that section".into(),
        ),
        (
            "node_tracker_service:\n  https_keypairs: []\n",
            format!(":2: {section}https_keypairs: has no pair: remove the key to serve plaintext"),
        ),
    ] {
        let (_folder, file) = config_file(text);
        let file = file.to_str().unwrap();
        assert_refused(&["--config", file], &format!("{file}{reason}"));
    }
}

#[test]
fn an_unreadable_file_is_named() {
    let (folder, _) = config_file("");
    let missing = folder.path().join("missing.yaml");
    let missing = missing.to_str().unwrap();
    // The file may come later.
    let refused = run(&["serve", "--config", missing]);
    assert_eq!(refused.status.code(), Some(1));
    let line = format!("nodetracker: {missing}: cannot read: No such file or directory (os error 2)\n");
    assert_eq!(stderr(&refused), line);
    let folder_itself = folder.path().to_str().unwrap();
    assert_refused(
        &["--config", folder_itself],
        &format!("{folder_itself}: cannot read: Is a directory (os error 21)"),
    );
    let (folder, file) = config_file("");
    std::fs::write(&file, [0xff, 0xfe, 0xfd]).unwrap();
    let file = file.to_str().unwrap();
    assert_refused(
        &["--config", file],
        &format!("{file}: cannot read: stream did not contain valid UTF-8"),
    );
    drop(folder);
}

#[test]
fn a_port_that_is_taken_is_named_with_who_asked_for_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let reason = format!("cannot listen on {addr}: Address already in use (os error 98)");
    let refused = run(&["serve", "--listen-addr", &addr.to_string()]);
    // A service manager may try again, unlike after a wrong configuration.
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(stderr(&refused), format!("nodetracker: --listen-addr: {reason}\n"));

    let (_folder, file) = config_file(&format!("node_tracker_service:\n  listen_addr: {addr}\n"));
    let file = file.to_str().unwrap();
    let refused = run(&["serve", "--config", file]);
    assert_eq!(refused.status.code(), Some(1));
    let line = format!("nodetracker: {file}:2: node_tracker_service.listen_addr: {reason}\n");
    assert_eq!(stderr(&refused), line);
}

#[test]
fn an_address_of_another_machine_is_refused() {
    let refused = run(&["serve", "--listen-addr", "192.0.2.1:0"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).starts_with("nodetracker: --listen-addr: cannot listen on 192.0.2.1:0: "));
    assert_eq!(stderr(&refused).lines().count(), 1);
}

#[test]
fn wrong_flags_show_the_usage() {
    for args in [
        &["serve", "--listen-addr", "nowhere"][..],
        &["serve", "--proxy-keep-alive-interval", "0s"],
        &["serve", "--proxy-keep-alive-interval", "5"],
        &["serve", "--log-format", "xml"],
        &["serve", "--lisen", "127.0.0.1:0"],
        &["get"],
        &["get", "node-1", "--addr", "ftp://127.0.0.1:1"],
        &["get", "node-1", "--addr", "https://127.0.0.1:1"],
        &["get", "node-1", "--ca-file", "ca.crt"],
        &["frobnicate"],
        &[],
    ] {
        let refused = run(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        assert_eq!(stdout(&refused), "", "{args:?}");
        assert_ne!(stderr(&refused), "", "{args:?}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let text = format!("node_tracker_service:\n  listen_addr: {addr}\n  proxy_keep_alive_interval: 7m\n");
    let (_folder, file) = config_file(&text);
    // The file's port is taken, so this listens only if the flag's is used.
    let file = file.to_str().unwrap();
    let mut server = Process::serve(&["--config", file, "--proxy-keep-alive-interval", "90s"]);
    assert_ne!(server.addr, addr);
    server.logged("a route lives 1m 30s without a refresh");
    // Values that no flag sets come from the file.
    let mut server = Process::serve(&["--config", file]);
    server.logged("a route lives 7m without a refresh");
}

#[test]
fn variables_win_over_the_file_and_lose_to_flags() {
    let (_folder, file) = config_file("node_tracker_service:\n  proxy_keep_alive_interval: 7m\n");
    let serve = |flags: &[&str]| {
        let mut command = nodetracker();
        command.args(["serve", "--listen-addr", "127.0.0.1:0"]).args(flags);
        command.env("NODETRACKER_CONFIG", &file);
        command.env("NODETRACKER_PROXY_KEEP_ALIVE_INTERVAL", "8m");
        command
    };
    Process::spawn(serve(&[])).logged("a route lives 8m without a refresh");
    let mut server = Process::spawn(serve(&["--proxy-keep-alive-interval", "9m"]));
    server.logged("a route lives 9m without a refresh");
}

#[test]
fn a_variable_that_nothing_reads_is_a_warning() {
    let mut command = nodetracker();
    command.args(["serve", "--listen-addr", "127.0.0.1:0"]);
    command.env("NODETRACKER_MAX_ROUTE", "5");
    Process::spawn(command).logged("WARN NODETRACKER_MAX_ROUTE is no variable of nodetracker, and has no effect");
}

#[test]
fn a_bad_variable_is_named() {
    let refused = |name: &str, value: &str, code| {
        let refused = nodetracker().arg("serve").env(name, value).output().unwrap();
        assert_eq!((refused.status.code(), stdout(&refused)), (Some(code), String::new()));
        assert_eq!(stderr(&refused).lines().count(), 1, "{}", stderr(&refused));
        assert!(
            stderr(&refused).starts_with(&format!("nodetracker: {name}: ")),
            "{}",
            stderr(&refused)
        );
    };
    refused("NODETRACKER_MAX_ROUTES", "many", 2);
    refused("NODETRACKER_LISTEN_ADDR", "", 2);
    // The file may come later.
    refused("NODETRACKER_HTTPS_KEYPAIRS", "missing.key:missing.crt", 1);
}

#[test]
fn the_server_listens_on_every_address_of_a_name() {
    let addrs: BTreeSet<_> = ("localhost", 0)
        .to_socket_addrs()
        .unwrap()
        .map(|addr| addr.ip())
        .collect();
    let mut command = nodetracker();
    command.args(["serve", "--listen-addr", "localhost:0"]);
    let server = Process::spawn(command);
    assert_eq!(addrs.iter().next(), Some(&server.addr.ip()));
    for ip in addrs {
        TcpStream::connect((ip, server.addr.port())).unwrap();
    }
}

#[test]
fn the_limit_on_open_files_is_raised() {
    let serve = |limits: &str| {
        let mut command = Command::new("sh");
        command
            .args([
                "-c",
                &format!("{limits} && exec \"$0\" serve --listen-addr 127.0.0.1:0"),
            ])
            .arg(env!("CARGO_BIN_EXE_nodetracker"));
        Process::spawn(command)
    };
    let mut server = serve("ulimit -Sn 100 && ulimit -Hn 1000");
    server.logged("WARN 1000 files may be open, so at most ");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let open_files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let open_files: Vec<_> = open_files.split_whitespace().collect();
    assert_eq!(open_files[3..5], ["1000", "1000"], "{limits}");
}

#[test]
fn the_file_chooses_where_to_listen() {
    let (_folder, file) = config_file("node_tracker_service:\n  enabled: yes\n  listen_addr: '[::1]:0'\n");
    let mut command = nodetracker();
    command.args(["serve", "--config", file.to_str().unwrap()]);
    let server = Process::spawn(command);
    assert!(server.addr.is_ipv6());
    assert_ne!(server.addr.port(), 0);
}

#[test]
fn limits_that_are_impossible_are_named() {
    for (flag, value, reason) in [
        ("--max-routes", "0", "0 is not a number from 1 to 503314560"),
        ("--max-routes", "many", "\"many\" is not a number"),
        ("--max-connections", "-1", "\"-1\" is not a number"),
        (
            "--max-connections",
            "1000001",
            "1000001 is not a number from 1 to 1000000",
        ),
        (
            "--client-memory-mb",
            "1",
            "1 is not a number of megabytes from 16 to 1000000",
        ),
        ("--max-share-per-client", "101", "101 is not a percentage from 1 to 100"),
    ] {
        let output = run(&["serve", &format!("{flag}={value}")]);
        assert_eq!(output.status.code(), Some(2), "{flag} {value}");
        assert!(stderr(&output).contains(reason), "{}", stderr(&output));
    }
    let (_folder, file) = config_file("node_tracker_service:\n  max_routes: 10\n  client_memory_mb: 2\n");
    let output = run(&["serve", "--config", file.to_str().unwrap()]);
    let line =
        "tracker.yaml:3: node_tracker_service.client_memory_mb: 2 is not a number of megabytes from 16 to 1000000";
    assert!(stderr(&output).contains(line), "{}", stderr(&output));
}
