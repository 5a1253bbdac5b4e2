//! The commands that call a running tracker, and the output of `serve`.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use nodetracker::Proxy;

use crate::support::{Process, Running, framed, nodetracker, run, stderr, stdout};

/// What JSON is for scripts: an object a line.
fn objects(json: &str) -> Vec<serde_json::Value> {
    let object = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    let objects: Vec<serde_json::Value> = json.lines().map(object).collect();
    assert!(objects.iter().all(serde_json::Value::is_object), "{json}");
    objects
}

#[test]
fn a_node_is_added_found_and_removed() {
    let server = Process::serve(&[]);
    let addr = server.addr.to_string();
    let added = run(&[
        "add",
        "node-1",
        "proxy-1",
        "10.0.0.1:3080",
        "--cluster",
        "root",
        "--addr",
        &addr,
    ]);
    assert_eq!(
        (added.status.code(), stdout(&added), stderr(&added)),
        (Some(0), String::new(), String::new())
    );
    let added = run(&[
        "add",
        "node-1",
        "a-longer-proxy",
        "p:1",
        "--addr",
        &format!("http://{addr}"),
    ]);
    assert_eq!(added.status.code(), Some(0), "{}", stderr(&added));

    let found = run(&["get", "node-1", "--addr", &addr]);
    assert_eq!((found.status.code(), stderr(&found)), (Some(0), String::new()));
    let table = stdout(&found);
    let lines: Vec<_> = table.lines().collect();
    assert_eq!(lines[0], "PROXY           CLUSTER  ADDR           UPDATED");
    assert!(
        lines[1].starts_with("a-longer-proxy  -        p:1            20"),
        "{table}"
    );
    assert!(
        lines[2].starts_with("proxy-1         root     10.0.0.1:3080  20"),
        "{table}"
    );
    assert!(lines[1..].iter().all(|line| line.ends_with("s ago)")), "{table}");
    assert_eq!(lines.len(), 3);

    let found = run(&["get", "node-1", "--format", "json", "--addr", &addr]);
    let json = objects(&stdout(&found));
    assert_eq!(json.len(), 2);
    assert_eq!(json[0]["proxy_id"], "a-longer-proxy");
    assert_eq!(json[1]["proxy_id"], "proxy-1");
    assert_eq!(json[1]["cluster_name"], "root");
    assert_eq!(json[1]["addr"], "10.0.0.1:3080");
    let updated_at = json[1]["last_refresh_time"].as_str().unwrap();
    assert_eq!(
        (updated_at.len(), &updated_at[10..11], &updated_at[23..]),
        (24, "T", "Z"),
        "{updated_at}"
    );

    let removed = run(&["rm", "node-1", "--addr", &addr]);
    assert_eq!(
        (removed.status.code(), stdout(&removed), stderr(&removed)),
        (Some(0), String::new(), String::new())
    );
    let (_, remark) = ok(&["rm", "node-1", "--addr", &addr]);
    assert_eq!(remark, "nodetracker: node node-1 had no routes\n");
}

#[test]
fn an_unknown_node_is_an_empty_answer_with_a_note() {
    let server = Process::serve(&[]);
    let addr = server.addr.to_string();
    for (format, answer) in [("table", "PROXY  CLUSTER  ADDR  UPDATED\n"), ("json", "")] {
        let found = run(&["get", "nobody", "--format", format, "--addr", &addr]);
        assert_eq!((found.status.code(), stdout(&found).as_str()), (Some(0), answer));
        assert_eq!(stderr(&found), "nodetracker: no proxy is known to reach node nobody\n");
    }
}

#[test]
fn a_refusal_is_one_line() {
    let server = Process::serve(&[]);
    let addr = server.addr.to_string();
    for (args, line) in [
        (
            &["add", "node-1", "proxy-1", "nowhere"][..],
            "INVALID_ARGUMENT: addr is not host:port",
        ),
        (
            &["get", &"x".repeat(256)],
            "INVALID_ARGUMENT: node_id is 256 bytes long, the limit is 255",
        ),
    ] {
        let refused = run(&[args, &["--addr", &addr]].concat());
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(stdout(&refused), "");
        assert_eq!(stderr(&refused), format!("nodetracker: {addr}: {line}\n"));
    }
}

#[test]
fn a_server_that_is_not_there_is_one_line() {
    let addr = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .to_string();
    let refused = run(&["get", "node-1", "--addr", &addr]);
    assert_eq!(refused.status.code(), Some(1));
    let line = format!("nodetracker: {addr}: cannot connect: Connection refused (os error 111)\n");
    assert_eq!(stderr(&refused), line);
}

#[test]
fn a_server_that_is_something_else_is_one_line() {
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = other.local_addr().unwrap().to_string();
    let answer = std::thread::spawn(move || {
        let (mut stream, _) = other.accept().unwrap();
        let _ = stream.read(&mut [0; 1024]);
        let _ = std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n");
    });
    let refused = run(&["get", "node-1", "--addr", &addr]);
    answer.join().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).starts_with(&format!("nodetracker: {addr}: ")),
        "{}",
        stderr(&refused)
    );
    assert_eq!(stderr(&refused).lines().count(), 1, "{}", stderr(&refused));
}

#[test]
fn a_reader_that_left_is_no_error() {
    let server = Process::serve(&[]);
    let mut child = nodetracker()
        .args(["get", "nobody", "--addr", &server.addr.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(stderr(&output).lines().count(), 1, "{}", stderr(&output));
}

#[test]
fn logs_are_text_or_json_on_stderr() {
    let mut server = Process::serve(&["--log-format", "json"]);
    let line = server.logged("plaintext");
    let json: serde_json::Value = serde_json::from_str(line.lines().next_back().unwrap()).unwrap();
    assert_eq!(json["level"], "INFO");
    assert_eq!(json["message"], "no https_keypairs: calls travel in plaintext");
    let mut server = Process::serve(&[]);
    assert!(server.logged("plaintext").contains(" INFO no https_keypairs"));
    // Once calls are accepted: no waiting, no trying again.
    TcpStream::connect(server.addr).unwrap();
}

/// The commands, as `help` lists them.
pub(crate) const COMMANDS: [&str; 18] = [
    "serve",
    "validate",
    "add",
    "get",
    "rm",
    "explain",
    "nodes",
    "proxies",
    "rm-proxy",
    "stats",
    "watch",
    "top",
    "health",
    "drain",
    "log-level",
    "bench",
    "completions",
    "man",
];

#[test]
fn help_and_version_are_for_stdout() {
    let help = run(&["--help"]);
    assert_eq!(help.status.code(), Some(0));
    let listed = stdout(&help);
    let listed: Vec<_> = listed
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .map_while(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert_eq!(listed, COMMANDS);
    // The help lists the exit codes for scripts, and fits into a terminal of 100 columns.
    assert!(stdout(&help).contains("Exit codes:"));
    assert!(stdout(&help).lines().all(|line| line.len() <= 100));
    for command in COMMANDS {
        let help = run(&[command, "--help"]);
        assert_eq!((help.status.code(), stderr(&help)), (Some(0), String::new()));
        let usage = format!("Usage: nodetracker {command} ");
        assert!(stdout(&help).contains(&usage), "{}", stdout(&help));
        let prints = !["serve", "validate", "completions", "man"].contains(&command);
        let json = "json:  One object a line; nothing if the answer is empty";
        assert_eq!(stdout(&help).contains(json), prints, "{command}");
    }
    assert_eq!(
        stdout(&run(&["--version"])),
        format!("nodetracker {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn mistakes_in_the_command_line_are_told_apart_from_failures() {
    for args in [
        &[][..],
        &["bogus"],
        &["get"],
        &["get", "node-1", "node-2"],
        &["get", "node-1", "--format", "yaml"],
        &["get", "node-1", "--addr", "nowhere"],
        &["nodes", "node-1"],
        &["proxies", "--proxy", "p"],
        &["rm-proxy"],
        &["stats", "--addr"],
        &["stats", "--addr", "https://localhost:1"],
        &["add", "node-1", "proxy-1"],
        &["get", "node-1", "--timeout", "0s"],
        &["get", "node-1", "--timeout", "5"],
        &["top", "--once", "https://127.0.0.1:1"],
        &["top", "--once", "--interval", "1ms"],
        &["top", "--once", "--tab", "6"],
        &["top", "--format", "json", "127.0.0.1:1"],
        // Not a terminal.
        &["top", "127.0.0.1:1"],
        &["serve", "--log-format", "yaml"],
        &["serve", "--proxy-keep-alive-interval", "5"],
    ] {
        let refused = run(args);
        assert_eq!(
            (refused.status.code(), stdout(&refused)),
            (Some(2), String::new()),
            "{args:?}"
        );
        assert!(!stderr(&refused).is_empty(), "{args:?}");
        assert!(!stderr(&refused).contains("panicked"), "{args:?}: {}", stderr(&refused));
    }
}

#[test]
fn an_empty_value_is_a_mistake_and_is_named() {
    for (args, named) in [
        (&["get", ""][..], "'<NODE>'"),
        (&["rm", ""], "'<NODE>'"),
        (&["explain", ""], "'<NODE>'"),
        (&["add", "", "proxy-1", "p:1"], "'<NODE>'"),
        (&["add", "node-1", "", "p:1"], "'<PROXY_ID>'"),
        (&["add", "node-1", "proxy-1", ""], "'<PROXY_ADDR>'"),
        (
            &["add", "node-1", "proxy-1", "p:1", "--cluster", ""],
            "'--cluster <NAME>'",
        ),
        (&["rm-proxy", ""], "'<PROXY_ID>'"),
        (&["nodes", "--proxy", ""], "'--proxy <ID>'"),
        (&["nodes", "--addr", ""], "'--addr <ADDR>'"),
        (&["nodes", "--ca-file", ""], "'--ca-file <FILE>'"),
        (&["watch", ""], "'[NODE]...'"),
        (&["nodes", "--timeout", ""], "'--timeout <DURATION>'"),
        (&["nodes", "--format", ""], "'--format <FORMAT>'"),
        (&["serve", "--config", ""], "'--config <FILE>'"),
        (&["serve", "--listen-addr", ""], "nodetracker: --listen-addr: "),
        (
            &["serve", "--proxy-keep-alive-interval", ""],
            "nodetracker: --proxy-keep-alive-interval: ",
        ),
        (&["serve", "--log-format", ""], "nodetracker: --log-format: "),
    ] {
        let refused = run(args);
        assert_eq!(refused.status.code(), Some(2), "{args:?}");
        assert!(stderr(&refused).contains(named), "{args:?}: {}", stderr(&refused));
    }
}

#[test]
fn names_that_imitate_others_are_shown_as_they_are() {
    let server = Process::serve(&[]);
    let addr = &*server.addr.to_string();
    let name = "a\u{202e}b\u{200b}c";
    let shown = r"a\u{202e}b\u{200b}c";
    ok(&["add", name, name, "p:1", "--cluster", name, "--addr", addr]);
    for args in [&["nodes"][..], &["proxies"], &["get", name], &["explain", name]] {
        let (table, _) = ok(&[args, &["--addr", addr]].concat());
        assert!(table.contains(shown) && !table.contains('\u{202e}'), "{table}");
        let (json, _) = ok(&[args, &["--format", "json", "--addr", addr]].concat());
        assert_eq!(objects(&json)[0]["proxy_id"], name, "{json}");
    }
    ok(&["rm", name, "--addr", addr]);
    for command in ["get", "explain"] {
        let (_, remark) = ok(&[command, name, "--addr", addr]);
        assert!(remark.contains(shown) && !remark.contains('\u{202e}'), "{remark}");
    }
}

#[test]
fn changes_are_printed_for_scripts_too() {
    let server = Process::serve(&[]);
    let addr = server.addr.to_string();
    let at = &["--format", "json", "--addr", &addr][..];
    for (args, object) in [
        (
            &["add", "node-1", "proxy-1", "p:1"][..],
            r#"{"node":"node-1","proxy_id":"proxy-1","cluster_name":"","addr":"p:1"}"#,
        ),
        (&["rm", "node-1"], r#"{"node":"node-1","removed":true}"#),
        (&["rm", "node-1"], r#"{"node":"node-1","removed":false}"#),
        (&["rm-proxy", "proxy-1"], r#"{"proxy_id":"proxy-1","removed":true}"#),
        (&["rm-proxy", "proxy-1"], r#"{"proxy_id":"proxy-1","removed":false}"#),
    ] {
        let (printed, remark) = ok(&[args, at].concat());
        assert_eq!(printed, format!("{object}\n"));
        assert_eq!(remark.is_empty(), !object.contains("false"), "{remark}");
    }
}

#[test]
fn every_empty_answer_has_a_remark() {
    let server = Process::serve(&[]);
    let addr = &*server.addr.to_string();
    for (args, remark) in [
        (&["get", "n"][..], "no proxy is known to reach node n"),
        (&["explain", "n"], "nothing is known of node n"),
        (&["nodes"], "no node has a route"),
        (&["nodes", "--proxy", "p"], "no node has a route through proxy p"),
        (&["proxies"], "no proxy is registered"),
        (&["rm", "n"], "node n had no routes"),
        (&["rm-proxy", "p"], "proxy p was not registered"),
    ] {
        let (_, said) = ok(&[args, &["--addr", addr]].concat());
        assert_eq!(said, format!("nodetracker: {remark}\n"));
    }
}

#[test]
fn a_call_without_a_cluster_empties_the_cluster_as_help_says() {
    let server = Process::serve(&[]);
    let addr = &*server.addr.to_string();
    ok(&["add", "node-1", "proxy-1", "p:1", "--cluster", "main", "--addr", addr]);
    ok(&["add", "node-2", "proxy-1", "p:1", "--addr", addr]);
    let (json, _) = ok(&["get", "node-1", "--format", "json", "--addr", addr]);
    assert_eq!(objects(&json)[0]["cluster_name"], "");
    let (help, _) = ok(&["add", "--help"]);
    assert!(
        help.contains("without this flag, the proxy gets an empty cluster"),
        "{help}"
    );
}

#[test]
fn the_address_may_come_from_the_environment() {
    let server = Process::serve(&[]);
    let addr = &*server.addr.to_string();
    let with = |value: &str, args: &[&str]| {
        nodetracker()
            .args(args)
            .env("NODETRACKER_ADDR", value)
            .output()
            .unwrap()
    };
    assert_eq!(with(addr, &["stats"]).status.code(), Some(0));
    let this_machine = format!(":{}", server.addr.port());
    assert_eq!(with(&this_machine, &["stats"]).status.code(), Some(0));
    // The flag wins.
    assert_eq!(with("127.0.0.1:1", &["stats", "--addr", addr]).status.code(), Some(0));
    let refused = with("", &["stats"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("'--addr <ADDR>'"), "{}", stderr(&refused));
}

#[test]
fn a_mute_server_is_left_after_the_timeout() {
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = mute.local_addr().unwrap().to_string();
    let refused = run(&["stats", "--timeout", "100ms", "--addr", &addr]);
    assert_eq!(refused.status.code(), Some(1));
    let line = format!("nodetracker: {addr}: DEADLINE_EXCEEDED: no answer within 100ms\n");
    assert_eq!(stderr(&refused), line);
}

#[test]
fn health_is_for_containers() {
    let server = Process::serve(&[]);
    let addr = server.addr.to_string();
    assert_eq!(ok(&["health", "--addr", &addr]), ("SERVING\n".into(), String::new()));
    let (json, _) = ok(&["health", "--format", "json", "--addr", &addr]);
    assert_eq!(json, "{\"status\":\"SERVING\"}\n");
    drop(server);
    let refused = run(&["health", "--addr", &addr]);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(1), String::new()));
}

#[tokio::test]
async fn a_tracker_that_is_not_serving_is_a_failure() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let command = tokio::task::spawn_blocking(move || run(&["health", "--addr", &addr]));
    let (stream, _) = listener.accept().await.unwrap();
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (_, mut respond) = connection.accept().await.unwrap().unwrap();
    let response = http::Response::builder().header("content-type", "application/grpc");
    let mut body = respond.send_response(response.body(()).unwrap(), false).unwrap();
    // HealthCheckResponse.status = NOT_SERVING.
    body.send_data(framed(&[8, 2]).into(), false).unwrap();
    let trailers = [(http::HeaderName::from_static("grpc-status"), "0".parse().unwrap())];
    body.send_trailers(trailers.into_iter().collect()).unwrap();
    let (output, ()) = tokio::join!(command, async { while connection.accept().await.is_some() {} });
    let output = output.unwrap();
    assert_eq!(
        (output.status.code(), stdout(&output)),
        (Some(1), "NOT_SERVING\n".into())
    );
    assert_eq!(stderr(&output), "nodetracker: the tracker is not serving\n");
}

#[test]
fn a_watch_prints_a_line_for_each_change_until_ctrl_c() {
    use std::io::{BufRead, BufReader};

    let server = Process::serve(&[]);
    let addr = &*server.addr.to_string();
    for (format, some) in [("table", false), ("json", true)] {
        ok(&["add", "node-1", "proxy-1", "p:1", "--addr", addr]);
        let nodes = if some { &["node-1"][..] } else { &[] };
        let mut child = nodetracker()
            .arg("watch")
            .args(nodes)
            .args(["--format", format, "--addr", addr])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut next = || lines.next().unwrap();
        if some {
            let object = |line: String| objects(&line).remove(0);
            let snapshot = object(next());
            assert_eq!(
                (&snapshot["event"], &snapshot["node"]),
                (&"snapshot".into(), &"node-1".into())
            );
            assert_eq!(snapshot["routes"][0]["proxy_id"], "proxy-1");
            let end = object(next());
            assert_eq!(end["event"], "snapshot_end");
            assert_eq!(end["generation"].as_str().unwrap().len(), 16);
            ok(&["add", "node-2", "proxy-1", "p:1", "--addr", addr]);
            ok(&["rm", "node-1", "--addr", addr]);
            let removed = object(next());
            assert_eq!(
                (&removed["event"], &removed["node"]),
                (&"removed".into(), &"node-1".into())
            );
            assert_eq!(removed["routes"], serde_json::json!([]));
        } else {
            assert_eq!(next(), "snapshot       node-1  proxy-1");
            assert_eq!(next(), "snapshot_end");
            ok(&["add", "node-1", "proxy-2", "p:2", "--addr", addr]);
            assert_eq!(next(), "added          node-1  proxy-2,proxy-1");
            ok(&["add", "node-1", "proxy-2", "p:3", "--addr", addr]);
            assert_eq!(next(), "proxy_moved    proxy-2  -  p:3");
            ok(&["rm-proxy", "proxy-2", "--addr", addr]);
            assert_eq!(next(), "proxy_removed  proxy-2  -");
            // After a proxy is removed, the sweeper removes its routes at once.
            assert_eq!(next(), "expired        node-1  proxy-1");
            ok(&["rm", "node-1", "--addr", addr]);
            assert_eq!(next(), "removed        node-1  -");
        }
        let kill = format!("kill -INT {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    }
}

/// As in `nodetracker watch | head -1`, while nothing changes.
#[test]
fn a_watch_ends_when_its_reader_leaves() {
    use std::io::{BufRead, BufReader};

    let server = Process::serve(&[]);
    // `timeout` exits with 124 if it has to end the watch.
    let mut child = Command::new("timeout")
        .args([
            "60",
            env!("CARGO_BIN_EXE_nodetracker"),
            "watch",
            "--addr",
            &server.addr.to_string(),
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "snapshot_end\n");
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
}

/// The reader may be a terminal that is stopped, or a busy program.
#[tokio::test]
async fn a_watch_whose_reader_stops_hears_signals() {
    let server = Running::start().await;
    for number in 0..2_000 {
        let node = format!("{number}{}", "x".repeat(100)).parse().unwrap();
        let proxy = Proxy {
            id: "proxy-1",
            cluster_name: "",
            addr: "proxy:1",
        };
        server.table.report_node(&node, &proxy).unwrap();
    }
    let (reader, writer) = std::io::pipe().unwrap();
    let addr = server.addr.to_string();
    let mut child = nodetracker()
        .args(["watch", "--addr", &addr])
        .stdout(writer)
        .spawn()
        .unwrap();
    // The pipe holds 64 KiB at most, so it is soon full: the lines are three times as long.
    while rustix::io::ioctl_fionread(&reader).unwrap() < 32_768 {
        tokio::task::yield_now().await;
    }
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let ended = tokio::task::spawn_blocking(move || child.wait().unwrap())
        .await
        .unwrap();
    assert_eq!(ended.code(), Some(0));
}

/// The connection stays open, as it does when the tracker's machine loses its power.
#[tokio::test]
async fn a_watch_ends_if_the_tracker_vanishes() {
    use std::io::{BufRead, BufReader};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    // `timeout` exits with 124 if it has to end the watch.
    let mut child = Command::new("timeout")
        .args([
            "60",
            env!("CARGO_BIN_EXE_nodetracker"),
            "watch",
            "--timeout",
            "200ms",
            "--addr",
            &addr,
        ])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (_, mut respond) = connection.accept().await.unwrap().unwrap();
    let response = http::Response::builder().header("content-type", "application/grpc");
    let mut body = respond.send_response(response.body(()).unwrap(), false).unwrap();
    // WatchResponse.snapshot_end, without fields.
    body.send_data(framed(&[0x12, 0]).into(), false).unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let first_line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        (line, out)
    });
    // The tracker answers pings until the watch has begun. The reader stays.
    let _out = tokio::select! {
        read = first_line => {
            let (line, out) = read.unwrap();
            assert_eq!(line, "snapshot_end\n");
            out
        }
        _ = connection.accept() => panic!("the watch ended"),
    };
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line =
        format!("nodetracker: {addr}: UNAVAILABLE: the connection broke, or a ping had no answer within 200ms\n");
    assert_eq!(stderr(&output), line);
    drop((connection, listener));
}

/// A user ends a command because the server does not answer.
#[test]
fn ctrl_c_ends_a_command_at_once() {
    use std::os::unix::process::ExitStatusExt;

    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = mute.local_addr().unwrap().to_string();
    for (signal, number) in [("INT", 2), ("TERM", 15)] {
        // A shell that runs the tests in the background may ignore SIGINT, and a child would inherit that.
        let mut child = Command::new("env")
            .args(["--default-signal", env!("CARGO_BIN_EXE_nodetracker")])
            .args(["nodes", "--addr", &addr])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The command has sent HTTP/2's preface, so it waits for the answer.
        let (mut stream, _) = mute.accept().unwrap();
        stream.read_exact(&mut [0; 24]).unwrap();
        let kill = format!("kill -{signal} {}", child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().signal(), Some(number));
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, "");
    }
}

/// Runs a command that must succeed. Returns its output and its remarks.
fn ok(args: &[&str]) -> (String, String) {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    (stdout(&output), stderr(&output))
}

#[test]
fn operators_look_around_and_clean_up() {
    let server = Process::serve(&["--proxy-keep-alive-interval", "1h"]);
    let addr = &*server.addr.to_string();
    let node = "550e8400-e29b-41d4-a716-446655440000";
    ok(&[
        "add",
        node,
        "proxy-1",
        "10.0.0.1:3080",
        "--cluster",
        "main",
        "--addr",
        addr,
    ]);
    ok(&["add", "node-2", "p2", "p2:1", "--addr", addr]);
    ok(&[
        "add",
        "node-2",
        "proxy-1",
        "10.0.0.1:3080",
        "--cluster",
        "main",
        "--addr",
        addr,
    ]);

    let (proxies, _) = ok(&["proxies", "--addr", addr]);
    // They come in any order.
    let mut lines: Vec<_> = proxies.lines().collect();
    assert_eq!(lines.remove(0), "PROXY    CLUSTER  ADDR           ROUTES");
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "p2       -        p2:1           1",
            "proxy-1  main     10.0.0.1:3080  2"
        ]
    );
    let (proxies, _) = ok(&["proxies", "--format", "json", "--addr", addr]);
    let p2 = r#"{"proxy_id":"p2","cluster_name":"","addr":"p2:1","routes":1}"#;
    assert!(proxies.lines().any(|line| line == p2), "{proxies}");

    let (nodes, _) = ok(&["nodes", "--addr", addr]);
    let mut lines: Vec<_> = nodes.lines().collect();
    assert!(lines.remove(0).starts_with("NODE "), "{nodes}");
    assert_eq!(lines.len(), 3, "{nodes}");
    let (nodes, _) = ok(&["nodes", "--proxy", "p2", "--format", "json", "--addr", addr]);
    let routes = objects(&nodes);
    assert_eq!(routes.len(), 2, "all routes of the nodes: {nodes}");
    assert_eq!(routes[0]["node"], "node-2");
    assert_eq!(
        (&routes[0]["proxy_id"], &routes[1]["proxy_id"]),
        (&"proxy-1".into(), &"p2".into())
    );

    assert_eq!(ok(&["rm-proxy", "p2", "--addr", addr]), (String::new(), String::new()));
    let (_, remark) = ok(&["rm-proxy", "p2", "--addr", addr]);
    assert_eq!(remark, "nodetracker: proxy p2 was not registered\n");

    let (explained, _) = ok(&["explain", "node-2", "--addr", addr]);
    let lines: Vec<_> = explained.lines().collect();
    assert!(
        lines[0].starts_with("PROXY    CLUSTER  ADDR           UPDATED"),
        "{explained}"
    );
    assert!(
        lines[1].starts_with("proxy-1  main     10.0.0.1:3080  20"),
        "{explained}"
    );
    assert!(
        lines[1].ends_with("  returned") && lines[2].ends_with("  proxy removed"),
        "{explained}"
    );
    let (explained, _) = ok(&["explain", node, "--format", "json", "--addr", addr]);
    let route: serde_json::Value = serde_json::from_str(&explained).unwrap();
    assert_eq!(
        (&route["verdict"], &route["addr"]),
        (&"returned".into(), &"10.0.0.1:3080".into())
    );
    assert!(
        route["age_seconds"].as_f64().is_some_and(|age| age < 3600.0),
        "{explained}"
    );
    let (explained, remark) = ok(&["explain", "nobody", "--addr", addr]);
    assert_eq!(explained.lines().count(), 1);
    assert_eq!(remark, "nodetracker: nothing is known of node nobody\n");

    let (stats, _) = ok(&["stats", "--addr", addr]);
    let value = |name: &str| {
        let line = stats
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix("  "));
        line.unwrap_or_else(|| panic!("no {name:?} in {stats}")).trim_start()
    };
    assert_eq!([value("proxies"), value("keep-alive")], ["1", "1h"]);
    assert!(value("client memory limit").ends_with(" MB"), "{stats}");
    assert_eq!(value("refusals"), "0");
    assert_eq!(value("snapshot"), "off (no data_dir)");
    // The sweeper may have removed the route through the removed proxy.
    assert!(["2", "3"].contains(&value("routes")), "{stats}");
    let generation = serde_json::Value::from(value("generation"));
    let (stats, _) = ok(&["stats", "--format", "json", "--addr", addr]);
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!(stats["keep_alive_seconds"], 3600.0);
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(stats["generation"], generation);
    assert!(
        stats["client_memory_limit_bytes"]
            .as_u64()
            .is_some_and(|bytes| bytes > 0),
        "{stats}"
    );

    assert_eq!(stats["refusals"], serde_json::json!({}));

    let refused = run(&["nodes", "--proxy", &"x".repeat(256), "--addr", addr]);
    assert_eq!(refused.status.code(), Some(1));
    let line = format!("nodetracker: {addr}: INVALID_ARGUMENT: proxy_id is 256 bytes long, the limit is 255\n");
    assert_eq!(stderr(&refused), line);
}

#[test]
fn lists_longer_than_a_page_are_printed_whole() {
    let server = Process::serve(&[]);
    let addr = &*server.addr.to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
        let channel = channel.connect().await.unwrap();
        let mut client = nodetracker_proto::v1::route_service_client::RouteServiceClient::new(channel);
        let uuids: Vec<u128> = (0..2500).collect();
        for proxy in 0..1001 {
            let request = nodetracker_proto::v1::AddNodesRequest {
                proxy: Some(crate::v1::proxy(&format!("p{proxy}"))),
                nodes: if proxy == 0 {
                    crate::v1::nodes(&uuids, &[&"n".repeat(100)])
                } else {
                    crate::v1::nodes(&[], &[])
                },
            };
            client.add_nodes(request).await.unwrap();
        }
    });
    let (nodes, _) = ok(&["nodes", "--addr", addr]);
    assert_eq!(nodes.lines().count(), 2502);
    assert_eq!(nodes.lines().filter(|line| line.starts_with("NODE")).count(), 1);
    // A long name widens its column on all pages.
    let column = nodes.find("PROXY").unwrap();
    assert!(column > 100);
    assert!(
        nodes.lines().skip(1).all(|line| line[column - 1..].starts_with(" p0")),
        "{nodes}"
    );
    let (proxies, _) = ok(&["proxies", "--format", "json", "--addr", addr]);
    assert_eq!(proxies.lines().count(), 1001);
}

#[test]
fn the_session_in_the_readme_is_what_the_commands_print() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(folder.join("../../README.md")).unwrap();
    let session = readme
        .split("```")
        .find_map(|block| block.strip_prefix("console\n$ nodetracker serve &\n"));
    let output = Command::new(folder.join("docs/transcript.sh"))
        .arg(env!("CARGO_BIN_EXE_nodetracker"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let printed = stdout(&output);
    assert_eq!(printed.strip_prefix("$ nodetracker serve &\n"), session);
}

/// Needs openssl.
#[test]
fn the_first_hour_is_what_the_commands_print() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    // `timeout` exits with 124 if the script waits for a line that does not come.
    let printed = Command::new("timeout")
        .arg("60")
        .arg(folder.join("first-hour.sh"))
        .arg(env!("CARGO_BIN_EXE_nodetracker"))
        .output()
        .unwrap();
    if printed.status.code() == Some(2) {
        return eprintln!("SKIPPED: {}", stderr(&printed));
    }
    assert!(printed.status.success(), "{}{}", stdout(&printed), stderr(&printed));
    let page = std::fs::read_to_string(folder.join("first-hour.md")).unwrap();
    let blocks = page.split("```").filter_map(|block| block.strip_prefix("console\n"));
    // The test does not build the command.
    let documented: String = blocks.filter(|block| !block.starts_with("$ cargo")).collect();
    assert_eq!(stdout(&printed), documented);
}
