//! `nodetracker bench`: every mode against a tracker, and what the command does with servers, flags and signals.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Request};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::spawn_blocking;

use crate::pki::Pki;
use crate::support::{Process, framed, nodetracker, run, stderr, stdout};

/// A short run, whose calls are counted.
const SHORT: [&str; 10] = [
    "--total",
    "200",
    "--warm-up",
    "0s",
    "--nodes",
    "50",
    "--connections",
    "3",
    "--seed",
    "47",
];

fn bench(addr: &str, args: &[&str]) -> Output {
    run(&[&["bench", "--addr", addr], &SHORT[..], args].concat())
}

/// Runs a bench that must succeed, and returns its report.
fn report(addr: &str, args: &[&str]) -> Value {
    let output = bench(addr, &[args, &["--format", "json"]].concat());
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    serde_json::from_str(&stdout(&output)).unwrap()
}

fn proxies(addr: &str) -> String {
    stdout(&run(&["proxies", "--format", "json", "--addr", addr]))
}

#[test]
fn every_mode_counts_its_calls_and_routes_and_leaves_nothing() {
    let server = Process::serve(&[]);
    let addr = server.addr.to_string();
    for (args, batch_size, proxies_count) in [
        (&["--mode", "unary", "--proxies", "7"][..], 1, 7),
        (&["--mode", "batch", "--batch-size", "10"], 10, 50),
        (&["--mode", "session", "--batch-size", "10"], 10, 3),
        (&["--mode", "look-up"], 1, 50),
        (&["--mode", "look-up", "--batch-size", "25"], 25, 50),
        (&["--mode", "mixed", "--threads", "2"], 1, 50),
    ] {
        for rate in [&["--rate", "4000"][..], &[]] {
            let report = report(&addr, &[args, rate].concat());
            assert_eq!(report["mode"], args[1]);
            assert_eq!(report["loop"], if rate.is_empty() { "closed" } else { "open" });
            assert_eq!(report["count"], 200, "{report}");
            assert_eq!(report["status_codes"], serde_json::json!({ "OK": 200 }));
            assert_eq!(
                (&report["missing_routes"], &report["unsent_count"]),
                (&0.into(), &0.into())
            );
            assert_eq!(
                (&report["batch_size"], &report["proxies"]),
                (&batch_size.into(), &proxies_count.into())
            );
            let routes = report["routes_per_second"].as_f64().unwrap() * report["total_seconds"].as_f64().unwrap();
            // The last batch of a session's nodes is smaller.
            let least = if args[1] == "session" {
                1000.0
            } else {
                199.9 * f64::from(batch_size)
            };
            assert!(
                (least..=200.1 * f64::from(batch_size)).contains(&routes),
                "{routes}: {report}"
            );
            let histogram = report["histogram"].as_array().unwrap();
            assert_eq!(
                histogram
                    .iter()
                    .map(|bucket| bucket["count"].as_u64().unwrap())
                    .sum::<u64>(),
                200
            );
            assert_eq!(proxies(&addr), "", "{args:?}");
        }
    }
}

#[test]
fn a_rate_may_be_a_part_of_the_maximum() {
    let server = Process::serve(&[]);
    let addr = server.addr.to_string();
    let pid = server.id().to_string();
    let report = report(
        &addr,
        &[
            "--rate",
            "10%",
            "--probe",
            "100ms",
            "--server-pid",
            &pid,
            "--timeout",
            "36500d",
        ],
    );
    let rate = |name: &str| report[name].as_f64().unwrap();
    assert!(rate("maximum_rate") > 0.0);
    assert!((rate("target_rate") - rate("maximum_rate") / 10.0).abs() < 1e-6);
    assert!(report["server_cpu_seconds_per_call"].is_number());
    assert_eq!(report["count"], 200);
}

#[test]
fn the_report_has_the_sections_of_ghz_and_the_plot_is_written() {
    let server = Process::serve(&[]);
    let folder = TempDir::new().unwrap();
    let plot = folder.path().join("latencies.svg");
    let output = bench(
        &server.addr.to_string(),
        &["--rate", "4000", "--plot", plot.to_str().unwrap()],
    );
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()));
    let report = stdout(&output);
    assert!(
        report.starts_with("unary, open loop at 4000 calls/s, 3 connections"),
        "{report}"
    );
    let sections: Vec<_> = report.lines().filter(|line| line.ends_with(':')).collect();
    let expected = [
        "Summary:",
        "Response time histogram:",
        "Latency distribution:",
        "Status code distribution:",
    ];
    assert_eq!(sections, expected);
    assert!(report.contains("seed 47"));
    assert!(report.contains("  Count:            200\n"), "{report}");
    assert!(report.contains("[OK]                 200 responses"), "{report}");
    let svg = std::fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("<polyline"), "{svg}");
}

#[test]
fn a_run_over_tls() {
    let pki = Pki::new();
    pki.issue("tracker", "127.0.0.1");
    let server = pki.serve(&[("tracker.key", "tracker.crt")]);
    let at = format!("https://{}", server.addr);
    let report = report(&at, &["--ca-file", &pki.path("ca.crt")]);
    assert_eq!(report["status_codes"]["OK"], 200);
}

/// The run's proxies are not the client's own proxy, so only an `Admin` may report them.
#[test]
fn a_run_with_a_certificate_needs_an_admin() {
    let pki = Pki::new();
    pki.write_identity("alice", &pki.teleport("Admin", "alice"));
    pki.write_identity("proxy-1", &pki.teleport("Proxy", "proxy-1"));
    let server = pki.serve_with_clients();
    let at = format!("https://{}", server.addr);
    let ca = pki.path("ca.crt");
    let files = |name: &str| [pki.path(&format!("{name}.crt")), pki.path(&format!("{name}.key"))];
    let [cert, key] = files("alice");
    let flags = ["--ca-file", &ca, "--cert-file", &cert, "--key-file", &key];
    for mode in ["unary", "session"] {
        let report = report(&at, &[&["--mode", mode], &flags[..]].concat());
        assert_eq!(report["status_codes"], serde_json::json!({ "OK": 200 }));
    }
    let [cert, key] = files("proxy-1");
    let flags = ["--ca-file", &ca, "--cert-file", &cert, "--key-file", &key];
    for mode in ["unary", "session"] {
        let refused = bench(&at, &[&["--mode", mode], &flags[..]].concat());
        assert_eq!((refused.status.code(), stdout(&refused)), (Some(1), String::new()));
        let reason = "PERMISSION_DENIED: the client \"CN=proxy-1, O=Proxy\" lacks the role Admin, so it may write only";
        assert!(stderr(&refused).contains(reason), "{}", stderr(&refused));
    }
}

#[tokio::test]
async fn a_signal_ends_the_run_early_with_a_report() {
    let (server, mut added) = FrozenServer::start().await;
    let bench = nodetracker()
        .args([
            "bench",
            "--addr",
            &server.addr,
            "--rate",
            "1000",
            "--duration",
            "1h",
            "--warm-up",
            "0s",
        ])
        .args(["--nodes", "1", "--format", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The first call adds the node, and the others are measured.
    for _ in 0..3 {
        added.recv().await.unwrap();
    }
    let signal = format!("kill -INT {}", bench.id());
    assert!(Command::new("sh").args(["-c", &signal]).status().unwrap().success());
    let output = spawn_blocking(|| bench.wait_with_output().unwrap()).await.unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(report["was_interrupted"], true);
    assert!(report["count"].as_u64().unwrap() > 0);
    assert_eq!(report["status_codes"]["OK"], report["count"]);
}

#[test]
fn a_tracker_in_use_is_loaded_only_with_yes() {
    let server = Process::serve(&[]);
    let addr = server.addr.to_string();
    assert!(
        run(&["add", "node-1", "proxy-1", "p:1", "--addr", &addr])
            .status
            .success()
    );
    let refused = bench(&addr, &[]);
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(2), String::new()));
    let line = format!("nodetracker: {addr}: proxies report to the tracker; ");
    assert!(stderr(&refused).starts_with(&line), "{}", stderr(&refused));
    assert_eq!(report(&addr, &["--yes"])["status_codes"]["OK"], 200);
    // Only the proxies of the run were removed.
    assert!(proxies(&addr).contains("\"proxy-1\""));
    assert_eq!(proxies(&addr).lines().count(), 1);
}

#[test]
fn a_server_that_is_not_there_is_one_line() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    drop(listener);
    for yes in [&[][..], &["--yes"]] {
        let refused = bench(&addr, yes);
        assert_eq!((refused.status.code(), stdout(&refused)), (Some(1), String::new()));
        let line = format!("nodetracker: {addr}: cannot connect: Connection refused (os error 111)\n");
        assert_eq!(stderr(&refused), line);
    }
}

#[test]
fn wrong_flags_are_refused_before_a_call() {
    // Nothing listens there.
    let addr = "127.0.0.1:1";
    for (args, reason) in [
        (&["--rate", "0"][..], "--rate <RATE>"),
        (&["--rate", "101%"], "--rate <RATE>"),
        (&["--duration", "0s"], "must be longer than 0s"),
        (&["--duration", "200d"], "a run may not be longer than 31d"),
        (&["--total", "9", "--duration", "1s"], "cannot be used with"),
        (&["--connections", "0"], "--connections <COUNT>"),
        (&["--mode", "bogus"], "--mode <MODE>"),
        (
            &["--batch-size", "2"],
            "--batch-size: a call of the modes unary and mixed has one node",
        ),
        (&["--mode", "session", "--proxies", "3"], "--proxies: in mode session"),
        (
            &["--nodes", "5", "--proxies", "6"],
            "--nodes: 5 nodes are fewer than the 6 proxies",
        ),
        (&["--server-pid", "0"], "--server-pid 0: "),
    ] {
        let refused = run(&[&["bench", "--addr", addr], args].concat());
        assert_eq!(
            (refused.status.code(), stdout(&refused)),
            (Some(2), String::new()),
            "{args:?}"
        );
        assert!(stderr(&refused).contains(reason), "{args:?}: {}", stderr(&refused));
    }
    let server = Process::serve(&[]);
    let refused = bench(&server.addr.to_string(), &["--plot", "/dev/null/plot.svg"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).starts_with("nodetracker: --plot /dev/null/plot.svg: "));
}

#[tokio::test]
async fn any_server_of_the_frozen_contract_is_loaded_and_failures_are_listed() {
    let (server, _added) = FrozenServer::start().await;
    let output = spawn_blocking(move || bench(&server.addr, &["--mode", "mixed"]))
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report = stdout(&output);
    let look_ups: u64 = 200 - count(&report, "[OK]");
    assert!((1..100).contains(&look_ups), "{report}");
    assert_eq!(count(&report, "[UNAVAILABLE]"), look_ups);
    let error = format!("[{look_ups}]");
    let mut lines = report.lines().map(str::trim);
    assert!(
        lines.any(|line| line.starts_with(&error) && line.ends_with("UNAVAILABLE: out of order")),
        "{report}"
    );
    let stays = "nodetracker: the routes of this run stay until they expire: ";
    let errors = stderr(&output);
    assert!(errors.starts_with(stays), "{errors}");
    assert!(
        errors.ends_with(&format!("nodetracker: {look_ups} of 200 calls failed\n")),
        "{errors}"
    );
}

#[tokio::test]
async fn a_server_without_sessions_is_named_as_such() {
    let (server, _added) = FrozenServer::start().await;
    let addr = server.addr.clone();
    let refused = spawn_blocking(move || bench(&server.addr, &["--mode", "session"]))
        .await
        .unwrap();
    assert_eq!((refused.status.code(), stdout(&refused)), (Some(1), String::new()));
    let reason = format!("nodetracker: {addr}: UNIMPLEMENTED: no such method\n");
    assert!(stderr(&refused).ends_with(&reason), "{}", stderr(&refused));
}

/// Returns the number after a word at the begin of a line.
fn count(report: &str, word: &str) -> u64 {
    let mut lines = report.lines().map(str::split_whitespace);
    let found = lines.find_map(|mut words| (words.next() == Some(word)).then(|| words.next()?.parse().ok())?);
    found.unwrap_or_else(|| panic!("no {word} in {report}"))
}

/// A server that has only the frozen contract, and refuses every look-up.
struct FrozenServer {
    addr: String,
}

impl FrozenServer {
    /// Starts a server, and returns a channel that gets a message for each `AddNode`.
    async fn start() -> (Self, UnboundedReceiver<()>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let (added, receiver) = unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let added = added.clone();
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    while let Some(Ok((request, response))) = connection.accept().await {
                        reply(&request, response, &added);
                    }
                });
            }
        });
        (Self { addr }, receiver)
    }
}

fn reply(request: &Request<h2::RecvStream>, mut response: SendResponse<Bytes>, added: &UnboundedSender<()>) {
    let (code, message) = match request.uri().path() {
        "/api.NodeTrackerService/AddNode" => ("0", ""),
        "/api.NodeTrackerService/GetProxies" => ("14", "out of order"),
        _ => ("12", "no such method"),
    };
    let head = http::Response::builder().header("content-type", "application/grpc");
    let mut body = response.send_response(head.body(()).unwrap(), false).unwrap();
    if code == "0" {
        body.send_data(framed(&[]).into(), false).unwrap();
        // The test may need no messages.
        let _ = added.send(());
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    trailers.insert("grpc-message", message.parse().unwrap());
    body.send_trailers(trailers).unwrap();
}
