//! `nodetracker top`: the figures of a running tracker as text, as JSON, and on a terminal.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{Process, config_file, nodetracker, run, stderr, stdout};

/// A tracker with a diagnostics port, and the port's address.
fn serve() -> (Process, SocketAddr) {
    let mut server = Process::serve(&["--diag-addr", "127.0.0.1:0"]);
    let log = server.logged("metrics are on ");
    let (_, addr) = log.trim_end().rsplit_once(' ').unwrap();
    (server, addr.parse().unwrap())
}

/// Answers one request with a response, and returns the address for the request.
fn answer(response: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(response.as_bytes());
    });
    addr
}

#[test]
fn figures_of_a_tracker_are_printed_once() {
    let (server, diag) = serve();
    let tracker = server.addr.to_string();
    for node in ["node-1", "node-2"] {
        let added = run(&["add", node, "proxy-1", "p:1", "--addr", &tracker]);
        assert_eq!(added.status.code(), Some(0), "{}", stderr(&added));
    }
    let diag = diag.to_string();
    let printed = run(&["top", "--once", "--interval", "100ms", &diag]);
    assert_eq!((printed.status.code(), stderr(&printed)), (Some(0), String::new()));
    let text = stdout(&printed);
    let titles: Vec<_> = text.lines().filter(|line| !line.starts_with([' ', '!'])).collect();
    let tabs = [
        "Overview",
        "",
        "Calls",
        "",
        "Proxies",
        "",
        "Sessions and watches",
        "",
        "Sweep and memory",
    ];
    assert_eq!(titles, tabs, "{text}");
    for line in [
        "  State                      ready",
        "  Nodes                      2",
        "  Proxies                    1, 0 with a session",
        "  Calls                      0/s",
        "  Certificate                none (plaintext)",
        "  NodeTracker/AddNode    0/s     0/s    -    -    -",
    ] {
        assert!(text.lines().any(|printed| printed == line), "{line}\n{text}");
    }
    assert!(!text.contains('\u{1b}'), "{text}");

    let one = run(&[
        "top",
        "--once",
        "--interval",
        "100ms",
        "--tab",
        "calls",
        &format!("http://{diag}/metrics"),
    ]);
    assert!(
        stdout(&one).starts_with("Calls\n") && !stdout(&one).contains("Overview"),
        "{}",
        stdout(&one)
    );
}

#[test]
fn figures_are_one_object_in_json() {
    let (server, diag) = serve();
    let (tracker, diag) = (server.addr.to_string(), diag.to_string());
    let added = run(&["add", "node-1", "proxy-1", "p:1", "--addr", &tracker]);
    assert_eq!(added.status.code(), Some(0), "{}", stderr(&added));
    let top = ["top", "--once", "--interval", "100ms", "--format", "json", &diag];
    let printed = run(&top);
    assert_eq!((printed.status.code(), stderr(&printed)), (Some(0), String::new()));
    let text = stdout(&printed);
    assert_eq!(text.lines().count(), 1, "{text}");
    let object: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(object["version"], env!("CARGO_PKG_VERSION"));
    for (name, value) in [
        ("ready", json!(true)),
        ("nodes", json!(1)),
        ("proxies", json!(1)),
        ("calls_per_second", json!(0)),
        ("snapshot_age_seconds", Value::Null),
        ("certificate_file", Value::Null),
        ("alerts", json!([])),
    ] {
        assert_eq!(object[name], value, "{name} in {text}");
    }
    assert!(object["interval_seconds"].as_f64() >= Some(0.1), "{text}");
    let method = &object["methods"][0];
    assert_eq!(
        (&method["service"], &method["method"]),
        (&json!("api.NodeTrackerService"), &json!("AddNode"))
    );

    let calls = run(&[&top[..], &["--tab", "calls"]].concat());
    let calls: Value = serde_json::from_str(&stdout(&calls)).unwrap();
    let names: Vec<_> = calls.as_object().unwrap().keys().collect();
    assert_eq!(names, ["alerts", "interval_seconds", "methods", "version"]);

    let refused = run(&["top", "--format", "json", &diag]);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(2), String::new()));
    assert!(stderr(&refused).contains("--once"), "{}", stderr(&refused));
}

#[test]
fn the_address_comes_from_the_environment_or_the_configuration() {
    let (_server, diag) = serve();
    let (_folder, file) = config_file(&format!("node_tracker_service:\n  diag_addr: {diag}\n"));
    let once = ["top", "--once", "--interval", "100ms", "--tab", "overview"];
    let by_variable = nodetracker()
        .args(once)
        .env("NODETRACKER_DIAG_ADDR", diag.to_string())
        .output()
        .unwrap();
    let by_file = nodetracker().args(once).arg("--config").arg(&file).output().unwrap();
    for printed in [by_variable, by_file] {
        assert_eq!((printed.status.code(), stderr(&printed)), (Some(0), String::new()));
        assert!(
            stdout(&printed).contains("State                      ready"),
            "{}",
            stdout(&printed)
        );
    }
    let (_folder, file) = config_file("node_tracker_service:\n  listen_addr: 127.0.0.1:0\n");
    let refused = nodetracker().args(once).arg("--config").arg(&file).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused).contains("there is no diag_addr"),
        "{}",
        stderr(&refused)
    );
}

#[test]
fn a_port_that_is_not_there_or_something_else_is_one_line() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    for (addr, reason) in [
        (
            closed,
            "cannot connect: Connection refused (os error 111); `nodetracker serve --diag-addr ",
        ),
        (answer("hello\r\n\r\n"), "no HTTP/1.1: "),
        (
            answer("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\na\tb"),
            r"404 Not Found: a\u{9}b; ",
        ),
        (
            answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            "line 1 of the metrics: there is no space ",
        ),
        (
            answer("HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\nup 1\n# EOF\n"),
            "not the diagnostics port of a tracker: there is no nodetracker_build_info",
        ),
        (
            answer("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n\u{7f}"),
            "line 1 of the metrics: there is no name",
        ),
        (
            answer("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nup 1"),
            "no HTTP/1.1: ",
        ),
    ] {
        let refused = run(&["top", "--once", &addr]);
        let text = stderr(&refused);
        assert_eq!(
            (refused.status.code(), stdout(&refused)),
            (Some(1), String::new()),
            "{text}"
        );
        assert!(text.starts_with(&format!("nodetracker: {addr}: {reason}")), "{text}");
        // Advice for a port that is closed does not fit a port where something else answers.
        let is_closed = reason.starts_with("cannot connect");
        assert_eq!(text.contains("serve --diag-addr"), is_closed, "{text}");
        assert_eq!(text.contains("not that of listen_addr"), !is_closed, "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
}

/// Needs `script`, which gives a command a terminal.
#[test]
fn a_terminal_shows_the_tabs_and_is_restored() {
    if Command::new("script").arg("--version").output().is_err() {
        return eprintln!("SKIPPED: script is not installed; it is part of util-linux");
    }
    let (_server, diag) = serve();
    let top = format!("{} top --interval 100ms {diag}", env!("CARGO_BIN_EXE_nodetracker"));
    let mut script = Command::new("script")
        .args([
            "-qec",
            &format!("stty cols 80 rows 24; {top}; code=$?; stty -a; exit $code"),
            "/dev/null",
        ])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut keys, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let mut shown = String::new();
    let mut until = |text: &str| {
        while !shown.contains(text) {
            let mut bytes = [0; 4096];
            let length = screen.read(&mut bytes).unwrap();
            assert_ne!(length, 0, "no {text:?} in {shown:?}");
            shown += &String::from_utf8_lossy(&bytes[..length]);
        }
    };
    // The alternate screen, the names of some figures, and a heading of the tab of calls.
    until("\u{1b}[?1049h");
    until("Uptime");
    keys.write_all(b"2").unwrap();
    until("METHOD");
    keys.write_all(b"q").unwrap();
    until("\u{1b}[?1049l");
    until(" icanon");
    until(" echo ");
    assert_eq!(script.wait().unwrap().code(), Some(0));
}
