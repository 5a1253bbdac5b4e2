//! The protocol of systemd: sockets that it has opened, notifications, and the watchdog. No systemd is needed.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::support::{Process, nodetracker, run, stderr};

/// Returns `nodetracker serve` with this descriptor as the first that a service manager passes.
fn serve_with_fd(fd: impl Into<OwnedFd>, args: &[&str]) -> Command {
    // Only descriptors 0 to 2 can be passed without unsafe code, so the shell moves the descriptor.
    const SCRIPT: &str = "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$0\" serve \"$@\"";
    let mut command = Command::new("sh");
    command
        .args(["-c", SCRIPT, env!("CARGO_BIN_EXE_nodetracker")])
        .args(args);
    command.stdin(Stdio::from(fd.into()));
    command
}

#[test]
fn a_socket_that_is_passed_replaces_the_address() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = socket.local_addr().unwrap();
    // A connection that waits since before the start is served.
    let early = TcpStream::connect(addr).unwrap();
    let server = Process::spawn(serve_with_fd(socket, &["--listen-addr", "192.0.2.1:1"]));
    assert_eq!(server.addr, addr);
    let added = run(&["add", "node-1", "proxy-1", "p:1", "--addr", &addr.to_string()]);
    assert!(added.status.success(), "{}", stderr(&added));
    drop(early);
}

/// systemd keeps the port, and starts the tracker again with the next connection, which may be one of `drain`.
#[test]
fn a_drain_reports_that_a_tracker_with_a_socket_has_restarted() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let again = socket.try_clone().unwrap();
    let mut old = Process::spawn(serve_with_fd(socket, &[]));
    let addr = old.addr.to_string();
    let drain = std::thread::spawn(move || run(&["drain", "--format", "json", "--addr", &addr]));
    assert_eq!(old.exit_code(), Some(0));
    let _new = Process::spawn(serve_with_fd(again, &[]));
    let drained = drain.join().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&drained.stdout).unwrap();
    assert_eq!((&json["closed"], &json["restarted"]), (&false.into(), &true.into()));
    assert!(
        stderr(&drained).contains("another tracker answers"),
        "{}",
        stderr(&drained)
    );
}

#[test]
fn a_descriptor_that_is_no_listening_socket_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let datagrams = UnixDatagram::unbound().unwrap();
    for (fd, reason) in [
        (OwnedFd::from(connected), "cannot use socket 0: it does not listen"),
        (datagrams.into(), "LISTEN_FDS: fd 3 is not a valid tcp socket"),
    ] {
        let refused = serve_with_fd(fd, &[]).output().unwrap();
        assert_eq!(refused.status.code(), Some(2));
        assert_eq!(stderr(&refused), format!("nodetracker: {reason}\n"));
    }
}

/// What a service manager receives.
struct Manager {
    socket: UnixDatagram,
    _folder: TempDir,
}

impl Manager {
    /// Starts a server that notifies this manager.
    fn start(args: &[&str], variables: &[(&str, &str)]) -> (Self, Process) {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let mut command = nodetracker();
        command.args(["serve", "--listen-addr", "127.0.0.1:0"]).args(args);
        command.env("NOTIFY_SOCKET", &path).envs(variables.iter().copied());
        let manager = Self {
            socket,
            _folder: folder,
        };
        (manager, Process::spawn(command))
    }

    /// Returns the lines of the next notification.
    fn next(&self) -> Vec<String> {
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).unwrap();
        let text = std::str::from_utf8(&message[..length]).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn listening(addr: SocketAddr) -> [String; 2] {
    ["READY=1".to_owned(), format!("STATUS=listening on {addr}")]
}

#[test]
fn a_start_a_reload_and_a_stop_are_reported() {
    let folder = TempDir::new().unwrap();
    let data_dir = folder.path().to_str().unwrap();
    let (manager, mut server) = Manager::start(&["--shutdown-delay", "20s", "--data-dir", data_dir], &[]);
    assert_eq!(manager.next(), listening(server.addr));
    server.signal("HUP");
    let reloading = manager.next();
    assert_eq!(reloading[0], "RELOADING=1");
    let time = reloading[1].strip_prefix("MONOTONIC_USEC=").expect("the time");
    assert!(time.parse::<u64>().unwrap() > 0);
    assert_eq!(manager.next(), ["READY=1"]);
    server.signal("TERM");
    // The delay, the limit of a drain, that of the last snapshot, and a margin.
    let limit = format!("EXTEND_TIMEOUT_USEC={}", (20 + 10 + 30 + 5) * 1_000_000);
    assert_eq!(manager.next(), ["STOPPING=1", "STATUS=finishing the calls in flight"]);
    assert_eq!(manager.next(), [limit]);
    server.logged("NOT_SERVING for 20s");
    server.signal("TERM");
    assert_eq!(server.exit_code(), Some(143));
}

#[test]
fn a_tracker_that_runs_feeds_the_watchdog() {
    let (manager, server) = Manager::start(&[], &[("WATCHDOG_USEC", "50000")]);
    assert_eq!(manager.next(), listening(server.addr));
    for _ in 0..3 {
        assert_eq!(manager.next(), ["WATCHDOG=1"]);
    }
}

/// Otherwise the absence of a service manager could cost calls.
#[test]
fn a_manager_that_is_gone_stops_nothing() {
    let mut command = nodetracker();
    command.args(["serve", "--listen-addr", "127.0.0.1:0"]);
    command
        .env("NOTIFY_SOCKET", "/dev/null/gone")
        .env("WATCHDOG_USEC", "50000");
    let mut server = Process::spawn(command);
    server.logged("cannot notify the service manager (NOTIFY_SOCKET)");
    let added = run(&["add", "node-1", "proxy-1", "p:1", "--addr", &server.addr.to_string()]);
    assert!(added.status.success(), "{}", stderr(&added));
}
