//! Warm restarts: what comes back after each kind of end, and what an operator sees if snapshots cannot be written.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use nodetracker_proto::v1;
use nodetracker_proto::v1::session_service_client::SessionServiceClient;
use nodetracker_server::{Config, Server, StartError};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tonic::transport::Endpoint;

use crate::stop::InFlight;
use crate::support::{Process, nodetracker, run, stderr, stdout};

/// Starts a tracker with a data folder, and a log that mentions each snapshot.
fn serve(data_dir: &Path, interval: &str) -> Process {
    Process::serve(&[
        "--data-dir",
        data_dir.to_str().unwrap(),
        "--snapshot-interval",
        interval,
        "--log-level",
        "nodetracker=debug",
    ])
}

fn add(server: &Process, node: &str) {
    let added = run(&["add", node, "proxy-1", "proxy:1", "--addr", &server.addr.to_string()]);
    assert!(added.status.success(), "{}", stderr(&added));
}

/// The lines of `explain` about a node.
fn explain(server: &Process, node: &str) -> String {
    stdout(&run(&["explain", node, "--addr", &server.addr.to_string()]))
}

fn stats(server: &Process) -> serde_json::Value {
    let stats = run(&["stats", "--format", "json", "--addr", &server.addr.to_string()]);
    serde_json::from_str(&stdout(&stats)).unwrap()
}

/// Waits for a snapshot with this many routes.
fn wait_for_snapshot(server: &mut Process, routes: usize) {
    server.logged(&format!("wrote {routes} routes"));
}

#[test]
fn routes_come_back_after_kill_9_and_are_marked_until_they_are_confirmed() {
    let folder = TempDir::new().unwrap();
    let mut server = serve(folder.path(), "1s");
    server.logged("no snapshot was loaded, so no routes are known");
    add(&server, "node-1");
    add(&server, "node-2");
    wait_for_snapshot(&mut server, 2);
    // SIGKILL.
    drop(server);

    let mut server = serve(folder.path(), "1h");
    let log = server.logged("restored 2 routes of 1 proxies");
    assert!(log.contains("those that are not confirmed expire in 5m"), "{log}");
    add(&server, "node-2");
    let marked = explain(&server, "node-1");
    assert!(marked.contains("returned (restored, not confirmed since)"), "{marked}");
    let confirmed = explain(&server, "node-2");
    assert!(
        confirmed.contains("returned") && !confirmed.contains("restored"),
        "{confirmed}"
    );
    let found = run(&["get", "node-1", "--addr", &server.addr.to_string()]);
    assert!(stdout(&found).contains("proxy-1"), "{}", stderr(&found));
    let stats = stats(&server);
    assert_eq!(
        (&stats["restored_routes"], &stats["expiry_hold"]),
        (&2.into(), &"restart".into())
    );
}

#[tokio::test]
async fn a_tracker_that_stops_writes_a_last_snapshot() {
    let folder = TempDir::new().unwrap();
    for signal in ["TERM", "INT"] {
        let server = serve(folder.path(), "1h");
        let node = format!("node-{signal}");
        add(&server, &node);
        server.signal(signal);
        let (status, log) = server.wait().await;
        assert_eq!(status.code(), Some(0), "{log}");
        let server = serve(folder.path(), "1h");
        assert!(explain(&server, &node).contains("restored"), "{log}");
    }
    assert!(folder.path().join("routes.snapshot.old").exists());
}

/// A disk that hangs does not block the tracker: probes report why there is no port yet, and a signal ends the tracker.
#[test]
fn probes_and_signals_are_answered_while_a_snapshot_is_loaded() {
    let folder = TempDir::new().unwrap();
    let data_dir = folder.path().to_str().unwrap();
    // A pipe without a writer: the thread that opens it waits.
    let pipe = folder.path().join("routes.snapshot");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let args = ["--data-dir", data_dir, "--diag-addr", "127.0.0.1:0"];
    for signal in [Some("TERM"), Some("INT"), None] {
        let mut starting = Process::starting(&args);
        let log = starting.logged("metrics are on");
        let diag = log.rsplit_once(' ').unwrap().1.trim_end().parse().unwrap();
        while !get(diag, "/readyz").contains("\"reason\":\"loading the snapshot\"") {}
        assert!(get(diag, "/healthz").starts_with("HTTP/1.1 200"));
        let metrics = get(diag, "/metrics");
        assert!(metrics.starts_with("HTTP/1.1 200"), "{metrics}");
        for sample in [
            "nodetracker_ready 0",
            "nodetracker_build_info{",
            "process_start_time_seconds ",
            "nodetracker_snapshot_timestamp_seconds 0",
        ] {
            assert!(metrics.lines().any(|line| line.starts_with(sample)), "{metrics}");
        }
        let Some(signal) = signal else {
            // The disk responds again. The end of an empty file is damage, so the tracker starts without routes.
            drop(fs::File::options().write(true).open(&pipe).unwrap());
            let server = starting.listening();
            add(&server, "node-1");
            assert!(get(diag, "/readyz").starts_with("HTTP/1.1 200"));
            return;
        };
        starting.signal(signal);
        let code = if signal == "TERM" { 143 } else { 130 };
        assert_eq!(starting.exit_code(), Some(code));
    }
}

/// The head and the body of a page of the diagnostics port.
fn get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: tracker\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    page
}

#[tokio::test]
async fn a_second_signal_skips_the_last_snapshot() {
    let folder = TempDir::new().unwrap();
    let data_dir = folder.path().to_str().unwrap();
    let mut server = Process::serve(&["--data-dir", data_dir, "--shutdown-delay", "1h"]);
    server.signal("TERM");
    server.logged("NOT_SERVING for 1h");
    server.signal("TERM");
    assert_eq!(server.wait().await.0.code(), Some(143));
    assert!(!folder.path().join("routes.snapshot").exists());
}

#[test]
fn incarnations_that_ended_stay_ended() {
    let folder = TempDir::new().unwrap();
    let session = |server: &Process| {
        let addr = format!("http://{}", server.addr);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let channel = Endpoint::from_shared(addr).unwrap().connect().await.unwrap();
            let mut client = SessionServiceClient::new(channel);
            let hello = v1::SessionHello {
                proxy: Some(v1::Proxy {
                    proxy_id: "proxy-1".into(),
                    cluster_name: String::new(),
                    addr: "proxy:1".into(),
                }),
                incarnation: 7,
                ..v1::SessionHello::default()
            };
            let request = v1::SessionRequest {
                sequence: 1,
                request: Some(v1::session_request::Request::Hello(hello)),
            };
            let mut answers = client.session(tokio_stream::once(request)).await.unwrap().into_inner();
            answers.message().await.unwrap().unwrap().response.unwrap()
        })
    };
    let mut server = serve(folder.path(), "1s");
    let first = session(&server);
    assert!(matches!(first, v1::session_response::Response::Welcome(_)), "{first:?}");
    let addr = server.addr.to_string();
    let removed = run(&["rm-proxy", "proxy-1", "--addr", &addr]);
    assert!(removed.status.success(), "{}", stderr(&removed));
    // The snapshot that is complete next may have begun before the removal.
    wait_for_snapshot(&mut server, 0);
    wait_for_snapshot(&mut server, 0);
    drop(server);
    let late = session(&serve(folder.path(), "1h"));
    assert!(
        matches!(late, v1::session_response::Response::Superseded(_)),
        "{late:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn two_trackers_never_share_a_folder() {
    let folder = TempDir::new().unwrap();
    let server = serve(folder.path(), "1h");
    let data_dir = folder.path().to_str().unwrap();
    let config = Config::default().listen_on("127.0.0.1:0");
    let config = config.with("data_dir", data_dir).unwrap();
    let second = Server::bind(&config, Arc::default()).await.unwrap_err();
    assert!(matches!(second, StartError::Unavailable(_)), "{second:?}");
    assert_eq!(
        second.to_string(),
        format!("--data-dir: another process uses {data_dir}")
    );
    // The folder is free again after any end of the first tracker.
    drop(server);
    Server::bind(&config, Arc::default()).await.unwrap();
}

/// `nodetracker drain && nodetracker serve`: `drain` returns when the port is closed, before the last snapshot.
#[tokio::test]
async fn a_start_waits_for_the_last_snapshot_of_a_tracker_that_stops() {
    let folder = TempDir::new().unwrap();
    let old = serve(folder.path(), "1h");
    add(&old, "node-1");
    let call = InFlight::start(old.addr).await;
    let addr = old.addr.to_string();
    let drained = spawn_blocking(move || run(&["drain", "--addr", &addr])).await.unwrap();
    assert!(drained.status.success(), "{}", stderr(&drained));

    let data_dir = folder.path().to_str().unwrap();
    let mut new = Process::starting(&["--data-dir", data_dir]);
    let log = new.logged("another process uses");
    assert!(log.contains("; waiting for up to 40s"), "{log}");
    call.finish().await;
    assert_eq!(old.wait().await.0.code(), Some(0));
    let new = new.listening();
    assert!(explain(&new, "node-1").contains("restored"));
}

#[test]
fn a_file_in_place_of_the_folder_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let refused = run(&["serve", "--listen-addr", "127.0.0.1:0", "--data-dir", path]);
    assert_eq!(refused.status.code(), Some(2));
    let line = format!("nodetracker: --data-dir: {path} is not a folder\n");
    assert!(stderr(&refused).contains(&line), "{}", stderr(&refused));
}

#[test]
fn a_tracker_that_can_write_no_snapshot_serves_and_reports_it() {
    // No user can make a folder there, not even root. The first snapshot would be due in an hour.
    let mut server = serve(Path::new("/proc/nodetracker"), "1h");
    let log = server.logged("a snapshot cannot be written");
    assert!(log.contains(" WARN /proc/nodetracker: "), "{log}");
    add(&server, "node-1");
    let after = stats(&server);
    assert_eq!(
        (&after["snapshots_failing"], &after["snapshots"]),
        (&true.into(), &0.into())
    );
    assert_eq!(after["snapshot_failures"], 1, "{after}");
    let shown = stdout(&run(&["stats", "--addr", &server.addr.to_string()]));
    assert!(
        shown.contains("none; the next snapshot cannot be written, see the log"),
        "{shown}"
    );
}

/// The limit of the file size ends a process by a signal, unless the process handles the signal.
#[test]
fn a_limit_of_the_file_size_is_no_reason_to_end() {
    let folder = TempDir::new().unwrap();
    let mut command = Command::new("sh");
    // 512 bytes.
    command.args(["-c", "ulimit -f 1; exec \"$0\" \"$@\""]);
    command.arg(nodetracker().get_program());
    command.args([
        "serve",
        "--listen-addr",
        "127.0.0.1:0",
        "--snapshot-interval",
        "1s",
        "--data-dir",
    ]);
    command.arg(folder.path());
    let mut server = Process::spawn(command);
    for number in 0..6 {
        add(&server, &format!("{number}{}", "x".repeat(200)));
    }
    server.logged("a snapshot cannot be written");
    assert!(explain(&server, &format!("5{}", "x".repeat(200))).contains("returned"));
    assert!(!folder.path().join("routes.snapshot.tmp").exists());
}

#[test]
fn a_damaged_snapshot_is_set_aside_and_the_older_one_is_loaded() {
    let folder = TempDir::new().unwrap();
    let mut server = serve(folder.path(), "1s");
    add(&server, "node-1");
    wait_for_snapshot(&mut server, 1);
    wait_for_snapshot(&mut server, 1);
    drop(server);
    let snapshot = folder.path().join("routes.snapshot");
    let mut bytes = fs::read(&snapshot).unwrap();
    bytes.truncate(bytes.len() - 1);
    fs::write(&snapshot, bytes).unwrap();

    let mut server = serve(folder.path(), "1h");
    let log = server.logged("restored 1 routes");
    assert!(
        log.contains("routes.snapshot cannot be used: the snapshot is damaged: end"),
        "{log}"
    );
    assert!(log.contains("routes.snapshot is set aside as "), "{log}");
    assert!(!snapshot.exists());
    assert!(explain(&server, "node-1").contains("restored"));
}
