//! mTLS: who is refused, what a proxy may write, and the end of trust in a certificate.

use std::fs;
use std::io::Read;
use std::process::Stdio;
use std::sync::Arc;

use nodetracker::{Proxy, RouteTable};
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::{api, v1};
use nodetracker_server::{Config, Limits};
use prost::Message;
use rcgen::string::Ia5String;
use rcgen::{SanType, date_time_ymd};
use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pki::{Identity, Pki};
use crate::slow_clients::PREFACE;
use crate::support::{ADD, Ended, Process, Raw, Running, SOON, add, framed, nodetracker, run, stderr, stdout};

const GET: &str = "/api.NodeTrackerService/GetProxies";
const REMOVE: &str = "/api.NodeTrackerService/RemoveNode";
const REMOVE_NODES: &str = "/nodetracker.v1.RouteService/RemoveNodes";
const COMPLAIN: &str = "/nodetracker.v1.RouteService/ReportUnreachable";
const EXPLAIN: &str = "/nodetracker.v1.AdminService/Explain";
const SESSION: &str = "/nodetracker.v1.SessionService/Session";
const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// gRPC's codes.
const OK: Option<i32> = Some(0);
const PERMISSION_DENIED: Option<i32> = Some(7);
const UNAVAILABLE: Option<i32> = Some(14);

/// Returns a configuration for a server with a certificate of `pki`, which also certifies clients.
pub(crate) fn config(pki: &Pki, client_auth: &str) -> Config {
    pki.issue("tracker", "127.0.0.1");
    let (key, cert) = (pki.path("tracker.key"), pki.path("tracker.crt"));
    Config::default()
        .with("https_keypairs", &format!("{key}:{cert}"))
        .and_then(|config| config.with("client_ca_file", &pki.path("ca.crt")))
        .and_then(|config| config.with("client_auth", client_auth))
        .unwrap()
}

async fn serve(config: &Config) -> Running {
    Running::with_config(config, RouteTable::new(), Limits::default()).await
}

/// Connects over TLS.
pub(crate) async fn connect(server: &Running, client: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(server.addr).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(client)).connect(name, stream).await
}

/// Connects a client with a certificate that the server accepts.
async fn client(server: &Running, pki: &Pki, identity: &Identity) -> Raw {
    let stream = connect(server, pki.client_config(Some(identity))).await.unwrap();
    let mut client = Raw::over(stream).await;
    client.settle().await;
    client
}

fn node_request(node: &str) -> Vec<u8> {
    let request = api::GetProxiesRequest { node_id: node.into() };
    framed(&request.encode_to_vec())
}

fn add_request(proxy: &str) -> Vec<u8> {
    framed(&add("node", proxy, "proxy:1").encode_to_vec())
}

/// Says hello as a proxy, and ends the session.
fn hello(proxy: &str) -> Vec<u8> {
    let request = v1::SessionRequest {
        sequence: 1,
        request: Some(Request::Hello(v1::SessionHello {
            proxy: Some(v1::Proxy {
                proxy_id: proxy.into(),
                cluster_name: String::new(),
                addr: "proxy:1".into(),
            }),
            incarnation: 1,
            ..v1::SessionHello::default()
        })),
    };
    framed(&request.encode_to_vec())
}

fn remove_nodes(proxy: &str) -> Vec<u8> {
    let request = v1::RemoveNodesRequest {
        nodes: Some(v1::NodeIds {
            names: vec!["node".into()],
            ..v1::NodeIds::default()
        }),
        proxy_id: proxy.into(),
    };
    framed(&request.encode_to_vec())
}

/// Reports a node through two proxies.
fn two_routes(table: &RouteTable) {
    for id in ["proxy-1", "proxy-2"] {
        let proxy = Proxy {
            id,
            cluster_name: "",
            addr: "proxy:1",
        };
        table.report_node(&"node".parse().unwrap(), &proxy).unwrap();
    }
}

/// Returns the IDs of the proxies that reach the node, in alphabetical order.
fn proxies(table: &RouteTable) -> Vec<String> {
    let routes = table.resolve(&"node".parse().unwrap());
    let mut ids: Vec<_> = routes
        .into_iter()
        .map(|route| route.details.into_parts().0.to_string())
        .collect();
    ids.sort();
    ids
}

fn assert_denied(ended: &Ended, message: &str) {
    assert_eq!((ended.grpc, &*ended.message), (PERMISSION_DENIED, message));
}

#[tokio::test]
async fn a_proxy_writes_its_own_routes_and_session() {
    let pki = Pki::new();
    let server = serve(&config(&pki, "required")).await;
    let mut proxy = client(&server, &pki, &pki.teleport("Proxy", "proxy-1.main")).await;
    let who = "the client \"CN=proxy-1.main, O=Proxy\" lacks the role Admin, so it may write only the routes of proxy \
               \"proxy-1\", and the request names";
    for path in [ADD, SESSION] {
        let request = if path == ADD { add_request } else { hello };
        assert_eq!(proxy.call(path, request("proxy-1")).await.grpc, OK, "{path}");
        let denied = proxy.call(path, request("proxy-2")).await;
        assert_denied(&denied, &format!("{who} proxy \"proxy-2\""));
        assert_eq!(proxies(&server.table), ["proxy-1"]);
        assert_eq!(server.table.find_proxy("proxy-2"), None);
    }
    two_routes(&server.table);
    assert_denied(
        &proxy.call(REMOVE_NODES, remove_nodes("proxy-2")).await,
        &format!("{who} proxy \"proxy-2\""),
    );
    assert_denied(
        &proxy.call(REMOVE_NODES, remove_nodes("")).await,
        &format!("{who} no proxy"),
    );
    assert_eq!(proxies(&server.table), ["proxy-1", "proxy-2"]);
    assert_eq!(proxy.call(REMOVE_NODES, remove_nodes("proxy-1")).await.grpc, OK);
    assert_eq!(proxies(&server.table), ["proxy-2"]);
    assert_eq!(proxy.call(GET, node_request("node")).await.grpc, OK);
}

/// Otherwise a proxy that tries again and again hides the others.
#[tokio::test]
async fn the_log_names_every_client_that_is_denied() {
    let pki = Pki::new();
    let mut server = pki.serve_with_clients();
    let mut log = String::new();
    for name in ["proxy-1", "proxy-2"] {
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let client = TlsConnector::from(Arc::new(pki.client_config(Some(&pki.teleport("Proxy", name)))));
        let host = ServerName::try_from("127.0.0.1").unwrap();
        let mut proxy = Raw::over(client.connect(host, stream).await.unwrap()).await;
        for _ in 0..10 {
            assert_eq!(proxy.call(ADD, add_request("other")).await.grpc, PERMISSION_DENIED);
        }
        // Before the stop, which reports the rest.
        log += &server.logged("refused: The caller's certificate");
        let line = log.lines().next_back().unwrap();
        assert!(line.contains(&format!("CN={name}, O=Proxy")), "{line}");
        assert!(line.contains("reason=\"denied\" count=1 peer=127.0.0.1:"), "{line}");
    }
    server.signal("TERM");
    let (_, rest) = server.wait().await;
    assert_eq!(rest.matches("reason=\"denied\" count=9 ").count(), 2, "{rest}");
}

#[tokio::test]
async fn remove_node_of_a_proxy_removes_its_own_route() {
    let pki = Pki::new();
    let server = serve(&config(&pki, "required")).await;
    two_routes(&server.table);
    let mut unknown = client(&server, &pki, &pki.teleport("Proxy", "proxy-3")).await;
    assert_eq!(unknown.call(REMOVE, node_request("node")).await.grpc, OK);
    assert_eq!(proxies(&server.table), ["proxy-1", "proxy-2"]);
    let mut proxy = client(&server, &pki, &pki.teleport("Proxy", "proxy-1")).await;
    assert_eq!(proxy.call(REMOVE, node_request("node")).await.grpc, OK);
    assert_eq!(proxies(&server.table), ["proxy-2"]);
    let mut admin = client(&server, &pki, &pki.teleport("Admin", "alice")).await;
    two_routes(&server.table);
    assert_eq!(admin.call(REMOVE, node_request("node")).await.grpc, OK);
    assert_eq!(proxies(&server.table), [""; 0]);
}

#[tokio::test]
async fn a_complaint_is_of_the_proxy_that_the_certificate_names() {
    let pki = Pki::new();
    let server = serve(&config(&pki, "required")).await;
    two_routes(&server.table);
    let complaint = v1::ReportUnreachableRequest {
        node: Some(v1::NodeId {
            id: Some(Id::Name("node".into())),
        }),
        proxy_id: "proxy-1".into(),
        reporter_id: "proxy-2".into(),
    };
    for (role, name, expected) in [("Proxy", "proxy-3", "proxy-3"), ("Admin", "alice", "proxy-2")] {
        let mut client = client(&server, &pki, &pki.teleport(role, name)).await;
        assert_eq!(client.call(COMPLAIN, framed(&complaint.encode_to_vec())).await.grpc, OK);
        let (response, mut request) = client.open(EXPLAIN).await;
        let explain = v1::ExplainRequest {
            node: complaint.node.clone(),
        };
        request
            .send_data(framed(&explain.encode_to_vec()).into(), true)
            .unwrap();
        let message = response.await.unwrap().into_body().data().await.unwrap().unwrap();
        // After the message's prefix.
        let explained = v1::ExplainResponse::decode(&message[5..]).unwrap();
        let complaints = explained.routes.into_iter().filter_map(|route| route.complaint);
        let reporters: Vec<_> = complaints.map(|complaint| complaint.reporter_id).collect();
        assert_eq!(reporters, [expected]);
    }
    assert_eq!(proxies(&server.table), ["proxy-1", "proxy-2"]);
}

#[tokio::test]
async fn clients_behind_one_address_have_a_share_each() {
    let pki = Pki::new();
    let limits = Limits {
        max_connections: 5,
        ..Limits::default()
    };
    let server = Running::with_config(&config(&pki, "required"), RouteTable::new(), limits).await;
    let names = ["proxy-1", "proxy-2"];
    let mut clients = Vec::new();
    for name in names.into_iter().cycle().take(4) {
        clients.push((name, client(&server, &pki, &pki.teleport("Proxy", name)).await));
    }
    for (name, client) in &mut clients {
        assert_eq!(client.call(ADD, add_request(name)).await.grpc, OK);
    }
    // A third connection of a client is over its share, and waits for the end of another.
    let identity = pki.teleport("Proxy", "proxy-1");
    let mut third = connect(&server, pki.client_config(Some(&identity))).await.unwrap();
    // The server's settings follow the client's.
    third.write_all(PREFACE).await.unwrap();
    let mut settings = [0; 100];
    assert!(timeout(SOON / 10, third.read(&mut settings)).await.is_err());
    clients[0].1.connection.abort();
    assert_ne!(third.read(&mut settings).await.unwrap(), 0);
}

#[tokio::test]
async fn a_spiffe_id_names_a_proxy() {
    let pki = Pki::new();
    let config = config(&pki, "required").with("client_identity", "spiffe").unwrap();
    let server = serve(&config).await;
    let uri = |uri: &str| SanType::URI(Ia5String::try_from(uri).unwrap());
    let identity = pki.client(|params| params.subject_alt_names.push(uri("spiffe://example.com/proxy/proxy.1")));
    let mut proxy = client(&server, &pki, &identity).await;
    assert_eq!(proxy.call(ADD, add_request("proxy.1")).await.grpc, OK);
    assert_denied(
        &proxy.call(ADD, add_request("proxy")).await,
        "the client \"spiffe://example.com/proxy/proxy.1\" lacks the role Admin, so it may write only the routes of \
         proxy \"proxy.1\", and the request names proxy \"proxy\"",
    );
    // Teleport's names mean nothing now.
    let mut other = client(&server, &pki, &pki.teleport("Admin", "alice")).await;
    assert_denied(
        &other.call(GET, node_request("node")).await,
        "the client \"without a SPIFFE ID, CN=alice, O=Admin\" lacks a role, Proxy or Admin, which \
         api.NodeTrackerService/GetProxies needs",
    );
}

/// Replaces the authorities of a server's clients, and reloads them.
fn replace_ca(server: &Running, pki: &Pki, authorities: &[&Pki]) {
    let pem: String = authorities.iter().map(|pki| pki.authority.pem()).collect();
    fs::write(pki.path("ca.crt"), pem).unwrap();
    server.certificates.as_ref().unwrap().reload().unwrap();
}

#[tokio::test]
async fn after_a_reload_clients_of_an_old_authority_lose_their_rights() {
    let (pki, new) = (Pki::new(), Pki::new());
    let server = serve(&config(&pki, "required")).await;
    let identity = pki.teleport("Admin", "alice");
    let mut old = client(&server, &pki, &identity).await;
    let mut idle = client(&server, &pki, &identity).await;
    // A session in flight: its hello has its answer.
    let (response, mut session) = old.open(SESSION).await;
    session.send_data(hello("proxy-1").into(), false).unwrap();
    let mut response = response.await.unwrap();
    assert!(response.body_mut().data().await.is_some());

    // Both authorities: nothing changes for the client.
    replace_ca(&server, &pki, &[&pki, &new]);
    assert_eq!(old.call(GET, node_request("node")).await.grpc, OK);

    replace_ca(&server, &pki, &[&new]);
    let denied = old.call(GET, node_request("node")).await;
    assert_denied(
        &denied,
        "the client \"CN=alice, O=Admin\", whose certificate is no longer trusted, lacks a role, Proxy or Admin, which \
         api.NodeTrackerService/GetProxies needs",
    );
    assert_eq!(crate::support::status(response).await.grpc, UNAVAILABLE);
    // The connection ends once its calls are done.
    drop(session);
    drop(old.requests);
    // The client may write once more, to a socket that the server has closed.
    let _ = old.connection.await.unwrap();

    // A client that needs no role gets its answer, and then its connection ends, too.
    assert_eq!(idle.call(HEALTH, framed(&[])).await.grpc, OK);
    drop(idle.requests);
    let _ = idle.connection.await.unwrap();

    // New connections.
    let identity_of_new = new.teleport("Admin", "alice");
    let mut accepted = client(&server, &pki, &identity_of_new).await;
    assert_eq!(accepted.call(GET, node_request("node")).await.grpc, OK);
    assert!(is_refused(&server, pki.client_config(Some(&identity))).await);
}

/// Reports whether the server ends a connection during TLS, or at once after TLS.
async fn is_refused(server: &Running, client: ClientConfig) -> bool {
    let Ok(stream) = connect(server, client).await else {
        return true;
    };
    // In TLS 1.3, a client learns of the refusal after its own part of the handshake.
    match Raw::try_over(stream).await {
        Ok(mut client) => client.try_settle().await.is_err(),
        Err(_) => true,
    }
}

#[tokio::test]
async fn clients_without_a_certificate_of_the_authority_are_refused() {
    let (pki, other) = (Pki::new(), Pki::new());
    let expired = pki.client(|params| params.not_after = date_time_ymd(2021, 2, 3));
    let early = pki.client(|params| {
        params.not_before = date_time_ymd(2998, 1, 1);
        params.not_after = date_time_ymd(2999, 1, 1);
    });
    let stranger = other.teleport("Admin", "alice");
    let good = pki.teleport("Admin", "alice");
    for client_auth in ["required", "optional"] {
        let server = serve(&config(&pki, client_auth)).await;
        for versions in [&[&TLS12], &[&TLS13]] {
            let refused = async |identity| is_refused(&server, pki.client_config_of(identity, versions)).await;
            assert!(!refused(Some(&good)).await);
            assert_eq!(refused(None).await, client_auth == "required");
            for identity in [&expired, &early, &stranger] {
                assert!(refused(Some(identity)).await);
            }
        }
    }
}

/// A resumed session would skip the verification of the client's certificate.
#[tokio::test]
async fn a_session_of_a_verified_client_is_not_resumed() {
    let pki = Pki::new();
    for versions in [&[&TLS12], &[&TLS13]] {
        for (client_auth, resumed) in [("off", HandshakeKind::Resumed), ("required", HandshakeKind::Full)] {
            let server = serve(&config(&pki, client_auth)).await;
            // One configuration: the client keeps its sessions there.
            let client = pki.client_config_of(Some(&pki.teleport("Admin", "alice")), versions);
            for expected in [HandshakeKind::Full, resumed] {
                let stream = connect(&server, client.clone()).await.unwrap();
                let kind = stream.get_ref().1.handshake_kind();
                assert_eq!(kind, Some(expected), "{client_auth}, {versions:?}");
                // Reads what the server sends after the handshake.
                Raw::over(stream).await.settle().await;
            }
        }
    }
}

#[test]
fn without_client_auth_the_log_says_that_everyone_may_do_everything() {
    let line = "client_auth is off: every client may make every call";
    let log = Process::serve(&[]).logged("client_auth");
    assert!(log.contains(&format!(" INFO {line}\n")), "{log}");
    let mut command = nodetracker();
    command.args(["serve", "--listen-addr", "0.0.0.0:0"]);
    let log = Process::spawn(command).logged("client_auth");
    assert!(
        log.contains(&format!(" WARN {line}, and clients may be on other machines\n")),
        "{log}"
    );
}

/// The tracker looks at its files by itself. No signal is needed.
#[test]
fn a_running_tracker_loads_files_that_change_and_revokes_with_them() {
    let (pki, new) = (Pki::new(), Pki::new());
    pki.write_identity("old", &pki.teleport("Admin", "alice"));
    pki.write_identity("new", &new.teleport("Admin", "alice"));
    let mut server = pki.serve_with_clients();
    let (at, ca) = (format!("https://{}", server.addr), pki.path("ca.crt"));
    let server_ca = pki.path("server-ca.crt");
    fs::copy(&ca, &server_ca).unwrap();
    let call = |name: &str, server_ca: &str| {
        let (key, cert) = (pki.path(&format!("{name}.key")), pki.path(&format!("{name}.crt")));
        let files = ["--ca-file", server_ca, "--cert-file", &cert, "--key-file", &key];
        run(&[&["stats", "--addr", &at], &files[..]].concat())
    };
    assert!(call("old", &server_ca).status.success());
    assert_eq!(call("new", &server_ca).status.code(), Some(1));
    let mut watch = nodetracker();
    watch.args(["watch", "--addr", &at, "--ca-file", &server_ca]);
    watch.args(["--cert-file", &pki.path("old.crt"), "--key-file", &pki.path("old.key")]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut end = [0; 12];
    watch.stdout.as_mut().unwrap().read_exact(&mut end).unwrap();
    assert_eq!(&end, b"snapshot_end");

    // Both the authority of the clients and the certificate of the tracker.
    fs::write(&ca, new.authority.pem()).unwrap();
    new.issue("tracker", "127.0.0.1");
    for file in ["tracker.key", "tracker.crt"] {
        fs::rename(new.path(file), pki.path(file)).unwrap();
    }
    server.logged("the files have changed: reloaded the certificates");
    let accepted = call("new", &ca);
    assert!(accepted.status.success(), "{}", stderr(&accepted));
    let refused = call("old", &ca);
    assert_eq!(refused.status.code(), Some(1));
    let reason = "the tracker refuses the certificate of --cert-file: ";
    assert!(stderr(&refused).contains(reason), "{}", stderr(&refused));
    // A connection that was open.
    let watched = watch.wait_with_output().unwrap();
    assert_eq!(watched.status.code(), Some(1));
    assert!(stderr(&watched).contains("UNAVAILABLE"), "{}", stderr(&watched));
}

#[tokio::test]
async fn an_authority_that_has_expired_still_certifies_clients_and_the_log_says_so() {
    let pki = Pki::with_authority(|params| params.not_after = date_time_ymd(2021, 2, 3));
    let server = serve(&config(&pki, "required")).await;
    let mut admin = client(&server, &pki, &pki.teleport("Admin", "alice")).await;
    assert_eq!(admin.call(GET, node_request("node")).await.grpc, OK);
    let line = "ca.crt: the certificate expired on 2021-02-03T00:00:00Z: its clients are still accepted\n";
    let log = pki.serve_with_clients().logged("expired");
    assert!(log.contains(" WARN ") && log.contains(line), "{log}");
}

#[test]
fn commands_present_a_certificate() {
    let pki = Pki::new();
    pki.write_identity("admin", &pki.teleport("Admin", "alice"));
    pki.write_identity("proxy", &pki.teleport("Proxy", "proxy-1"));
    let mut server = pki.serve_with_clients();
    let (at, ca) = (format!("https://{}", server.addr), pki.path("ca.crt"));
    let call = |command: &[&str], name: &str| {
        let (key, cert) = (pki.path(&format!("{name}.key")), pki.path(&format!("{name}.crt")));
        let flags = [
            "--addr",
            &at,
            "--ca-file",
            &ca,
            "--cert-file",
            &cert,
            "--key-file",
            &key,
        ];
        run(&[command, &flags].concat())
    };
    let added = call(&["add", "node-1", "proxy-1", "proxy:1"], "proxy");
    assert!(added.status.success(), "{}", stderr(&added));
    let denied = call(&["rm", "node-1"], "proxy");
    assert_eq!(denied.status.code(), Some(1));
    let line = format!(
        "nodetracker: {}: PERMISSION_DENIED: the client \"CN=proxy-1, O=Proxy\" lacks ",
        server.addr
    );
    assert!(stderr(&denied).starts_with(&line), "{}", stderr(&denied));
    for command in [&["rm", "node-1"][..], &["rm-proxy", "proxy-1"], &["log-level", "info"]] {
        let done = call(command, "admin");
        assert!(done.status.success(), "{}", stderr(&done));
    }
    let log = server.logged("AdminService.SetLogLevel");
    for method in [
        "RouteService.RemoveNodes",
        "AdminService.RemoveProxy: \"proxy-1\"",
        "AdminService.SetLogLevel",
    ] {
        let line = log.lines().find(|line| line.contains(method)).expect(method);
        assert!(line.contains("CN=alice"), "{line}");
    }
    let denied = log.lines().find(|line| line.contains("reason=\"denied\"")).expect(&log);
    assert!(denied.contains(" INFO ") && denied.contains("CN=proxy-1"), "{denied}");

    // From the environment.
    let mut command = nodetracker();
    command.args(["get", "node-1", "--addr", &at]);
    for (variable, file) in [("CA", "ca.crt"), ("CERT", "admin.crt"), ("KEY", "admin.key")] {
        command.env(format!("NODETRACKER_{variable}_FILE"), pki.path(file));
    }
    let found = command.output().unwrap();
    assert!(found.status.success(), "{}", stderr(&found));

    // Without a certificate, and with one of another authority.
    let none = run(&["get", "node-1", "--addr", &at, "--ca-file", &ca]);
    pki.write_identity("stranger", &Pki::new().teleport("Admin", "alice"));
    for (refused, hint) in [
        (
            none,
            "the tracker needs a certificate: use --cert-file and --key-file: ",
        ),
        (
            call(&["get", "node-1"], "stranger"),
            "the tracker refuses the certificate of --cert-file: ",
        ),
    ] {
        assert_eq!(refused.status.code(), Some(1));
        assert_eq!(stdout(&refused), "");
        let line = format!("nodetracker: {}: {hint}", server.addr);
        assert!(stderr(&refused).starts_with(&line), "{}", stderr(&refused));
        assert_eq!(stderr(&refused).lines().count(), 1);
    }

    let log = server.logged("reason=\"client_certificate\"");
    assert!(log.lines().next_back().expect("a line").contains(" INFO "), "{log}");

    // Files that cannot be used, and half a pair.
    for (key, cert, reason) in [
        (
            "admin.crt",
            "admin.crt",
            format!("--key-file: {}: no private key", pki.path("admin.crt")),
        ),
        (
            "admin.key",
            "missing.crt",
            format!("--cert-file: cannot read {}", pki.path("missing.crt")),
        ),
        (
            "proxy.key",
            "admin.crt",
            format!("--key-file: {}: ", pki.path("proxy.key")),
        ),
    ] {
        let flags = ["--cert-file", &pki.path(cert), "--key-file", &pki.path(key)];
        let refused = run(&[&["get", "n", "--addr", &at, "--ca-file", &ca], &flags[..]].concat());
        assert_eq!(refused.status.code(), Some(2));
        assert!(
            stderr(&refused).starts_with(&format!("nodetracker: {reason}")),
            "{}",
            stderr(&refused)
        );
    }
    let half = run(&[
        "get",
        "n",
        "--addr",
        &at,
        "--ca-file",
        &ca,
        "--cert-file",
        &pki.path("admin.crt"),
    ]);
    assert_eq!(half.status.code(), Some(2));
    assert!(stderr(&half).contains("--key-file"), "{}", stderr(&half));
}

#[test]
fn keys_that_need_each_other_are_named() {
    let pki = Pki::new();
    pki.issue("tracker", "127.0.0.1");
    let pair = format!("{}:{}", pki.path("tracker.key"), pki.path("tracker.crt"));
    let ca = pki.path("ca.crt");
    for (flags, error) in [
        (
            &["--client-auth", "required"][..],
            "--client-auth: needs https_keypairs",
        ),
        (
            &["--client-auth", "optional", "--client-ca-file", &ca],
            "--client-auth: needs https_keypairs",
        ),
        (
            &["--client-auth", "required", "--https-keypairs", &pair],
            "--client-auth: needs client_ca_file",
        ),
        (
            &["--client-ca-file", &ca, "--https-keypairs", &pair],
            "--client-ca-file: has no effect",
        ),
        (
            &[
                "--client-ca-file",
                "/missing",
                "--https-keypairs",
                &pair,
                "--client-auth",
                "required",
            ],
            "--client-ca-file: cannot read /missing",
        ),
        (
            &["--client-auth", "yes"],
            "--client-auth: \"yes\" is neither off, optional nor required",
        ),
        (
            &["--client-identity", "dns"],
            "--client-identity: \"dns\" is neither teleport nor spiffe",
        ),
    ] {
        let refused = run(&[&["serve", "--listen-addr", "127.0.0.1:0"], flags].concat());
        // The file may come later.
        let code = if error.contains("cannot read") { 1 } else { 2 };
        assert_eq!(refused.status.code(), Some(code), "{flags:?}");
        assert!(
            stderr(&refused).starts_with(&format!("nodetracker: {error}")),
            "{}",
            stderr(&refused)
        );
        assert_eq!(stderr(&refused).lines().count(), 1);
    }
    // Switched off on purpose.
    Process::serve(&["--client-ca-file", &ca, "--client-auth", "off"]);
}
