//! TLS and client certificates against a tracker that verifies its clients; files that change.

use std::fs::{self, File};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nodetracker::Proxy;
use nodetracker_client::client::section::TrackerSection;
use nodetracker_client::client::{ClientConfig, ClientError, TrackerClient};
use nodetracker_client::connect::WriteTo;
use nodetracker_client::connect::channel::{ClientTls, ConnectConfig, TlsFiles};
use nodetracker_client::listener::{AgentListener, ListenerConfig};
use nodetracker_client::proxy::{ProxyService, ProxyServiceConfig};
use nodetracker_client::session::SessionState;
use nodetracker_client::tracker::{NodeTracker, TrackerError};
use nodetracker_client::transport::Transport;
use nodetracker_client::transport::server_tls::ServerTls;
use nodetracker_client::transport::tcp::{TcpAcceptor, TcpTransport};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::fleet::{PATIENCE, info};
use crate::pki::Pki;
use crate::support::{PROXY, client, eventually, node, patient};

async fn add(client: &TrackerClient, id: &str) -> Result<(), TrackerError> {
    client.add_nodes(&Proxy { id, ..PROXY }, &[node("node-1")]).await
}

fn is_denied(result: &Result<(), TrackerError>) -> bool {
    matches!(result, Err(TrackerError::PermissionDenied(message)) if message.contains("lacks the role Admin"))
}

#[tokio::test]
async fn a_proxy_shows_the_certificate_that_its_configuration_names() {
    let pki = Pki::new();
    let tracker = pki.tracker().await;
    pki.issue_proxy("proxy-1");
    let text = format!(
        "proxy_service:\n  node_tracker_addr: https://{}\n  node_tracker_ca_file: ca.crt\n  \
         node_tracker_key_file: client.key\n  node_tracker_cert_file: client.crt\n",
        tracker.addr
    );
    fs::write(pki.path("teleport.yaml"), text).unwrap();
    let config = TrackerSection::read(&pki.path("teleport.yaml")).unwrap().unwrap();
    let client = config.clone().client(patient()).unwrap();
    assert_eq!(add(&client, "proxy-1").await, Ok(()));
    let denied = add(&client, "proxy-2").await;
    assert!(is_denied(&denied), "{denied:?}");
    let denied = client.remove_proxy("proxy-1").await;
    assert!(is_denied(&denied), "{denied:?}");
    assert_eq!(tracker.proxies(&node("node-1")), ["proxy-1"]);

    fs::remove_file(pki.path("client.crt")).unwrap();
    let error = config.client(patient()).unwrap_err();
    assert!(matches!(error, ClientError::TlsFiles(_)), "{error:?}");
    assert!(error.to_string().contains("client.crt"), "{error}");
}

#[tokio::test]
async fn a_proxy_service_connects_as_its_section_says() {
    let pki = Pki::new();
    let tracker = pki.tracker().await;
    pki.issue_proxy("proxy-1");
    let text = format!(
        "proxy_service:\n  node_tracker_addr: https://{}\n  node_tracker_ca_file: ca.crt\n  \
         node_tracker_key_file: client.key\n  node_tracker_cert_file: client.crt\n  node_tracker_write_to: one\n",
        tracker.addr
    );
    let section = TrackerSection::from_yaml(&pki.path("teleport.yaml"), &text)
        .unwrap()
        .unwrap();
    let config = ProxyServiceConfig::from_section(PROXY, "test", &section).unwrap();
    assert_eq!(config.session.write_to, WriteTo::One);
    let listener = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    let [agents, peers] = [listener().await, listener().await].map(TcpAcceptor::plaintext);
    let service = ProxyService::start(config, agents, peers, TcpTransport::default()).unwrap();
    eventually("the session is open", async || {
        service.session().stats()[0].state == SessionState::Open
    })
    .await;
}

#[tokio::test]
async fn a_new_connection_uses_the_files_of_its_time_if_they_are_good() {
    let pki = Pki::new();
    let tracker = pki.tracker().await;
    pki.issue_proxy("proxy-1");
    let addr = format!("https://{}", tracker.addr).parse().unwrap();
    let tls = ClientTls::load(pki.client_files("client")).unwrap();
    let connect = || {
        let client_config = ClientConfig {
            connect: ConnectConfig {
                tls: Some(tls.clone()),
                ..ConnectConfig::default()
            },
            ..patient()
        };
        client([Clone::clone(&addr)], client_config)
    };
    let first = connect();
    assert_eq!(add(&first, "proxy-1").await, Ok(()));

    pki.issue_proxy("proxy-2");
    // A connection keeps the certificate that it began with.
    assert_eq!(add(&first, "proxy-1").await, Ok(()));
    let second = connect();
    assert_eq!(add(&second, "proxy-2").await, Ok(()));
    assert!(is_denied(&add(&second, "proxy-1").await));

    for broken in ["client.key", "client.crt", "ca.crt"] {
        let good = fs::read(pki.path(broken)).unwrap();
        fs::write(pki.path(broken), "broken").unwrap();
        assert_eq!(add(&connect(), "proxy-2").await, Ok(()), "{broken}");
        fs::write(pki.path(broken), good).unwrap();
    }
}

#[tokio::test]
async fn a_tracker_of_another_authority_is_not_trusted() {
    let (pki, other) = (Pki::new(), Pki::new());
    let tracker = pki.tracker().await;
    other.issue_proxy("proxy-1");
    let client_config = ClientConfig {
        connect: ConnectConfig {
            tls: Some(ClientTls::load(other.client_files("client")).unwrap()),
            ..ConnectConfig::default()
        },
        ..patient()
    };
    let client = client([format!("https://{}", tracker.addr).parse().unwrap()], client_config);
    match add(&client, "proxy-1").await {
        Err(TrackerError::Unavailable(message)) => assert!(message.contains("certificate"), "{message}"),
        other => panic!("{other:?}"),
    }
    assert!(tracker.table.is_empty());
}

#[tokio::test]
async fn a_listener_uses_the_files_of_its_time_if_they_are_good() {
    let (pki, other) = (Pki::new(), Pki::new());
    let issue = |pki: &Pki| pki.issue("proxy", "127.0.0.1");
    issue(&pki);
    pki.issue_proxy("agent");
    let tls = ServerTls::load(pki.server_files("proxy"), Duration::ZERO).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap().to_string();
    let listener = AgentListener::new(ListenerConfig::new(info("proxy-1")), ()).unwrap();
    let serving = listener.clone();
    tokio::spawn(async move { serving.serve(TcpAcceptor::tls_files(tcp, tls)).await });
    let transport = TcpTransport::agent(ClientTls::load(pki.client_files("client")).unwrap());
    let certificate = async || {
        let tunnel = transport.connect(&addr).await.unwrap();
        tunnel.peer_certificates()[0].clone()
    };
    let first = certificate().await;
    assert_eq!(certificate().await, first);

    issue(&pki);
    let second = certificate().await;
    assert_ne!(second, first);
    for broken in ["proxy.key", "proxy.crt", "ca.crt"] {
        let good = fs::read(pki.path(broken)).unwrap();
        fs::write(pki.path(broken), "broken").unwrap();
        // The dialling side keeps its last good files, too.
        assert_eq!(certificate().await, second, "{broken}");
        fs::write(pki.path(broken), good).unwrap();
    }
    // The key of one pair, and the certificate of another.
    issue(&other);
    fs::copy(other.path("proxy.key"), pki.path("proxy.key")).unwrap();
    assert_eq!(certificate().await, second);
    issue(&pki);
    assert_ne!(certificate().await, second);
    assert_eq!(listener.stats().failed, 0);

    // The agents' authority is replaced: the agent is refused after its own side of the handshake.
    let own = fs::read(pki.path("ca.crt")).unwrap();
    fs::copy(other.path("ca.crt"), pki.path("ca.crt")).unwrap();
    fs::write(pki.path("own.crt"), own).unwrap();
    let files = TlsFiles {
        ca: pki.path("own.crt"),
        ..pki.client_files("client")
    };
    let transport = TcpTransport::agent(ClientTls::load(files).unwrap());
    let tunnel = transport.connect(&addr).await.unwrap();
    assert!(timeout(PATIENCE, tunnel.accept()).await.unwrap().is_none());
    let refused = async {
        while listener.stats().failed == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, refused)
        .await
        .expect("the listener refuses the agent");
}

/// The certificates may be on a file system that hangs.
#[cfg(target_os = "linux")]
#[test]
fn a_file_that_is_read_slowly_stops_no_other_task() {
    let pki = Pki::new();
    let ca = pki.path("ca.crt");
    let files = TlsFiles {
        ca: ca.clone(),
        keypair: None,
    };
    let tls = ClientTls::load(files).unwrap();
    fs::remove_file(&ca).unwrap();
    assert!(Command::new("mkfifo").arg(&ca).status().unwrap().success());
    let (done, is_done) = mpsc::channel();
    // A blocked runtime would block this thread only.
    thread::spawn(move || {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = listener.local_addr().unwrap().to_string();
            let transport = TcpTransport::agent(tls);
            let connect = tokio::spawn(async move { transport.connect(&addr).await.map(drop) });
            // Opens when the reader does, and the reader waits until this end is closed.
            let (opened, is_open) = oneshot::channel();
            thread::spawn(move || opened.send(File::options().write(true).open(ca)));
            let pipe = is_open.await.unwrap().unwrap();
            done.send(()).unwrap();
            drop((pipe, listener));
            assert!(connect.await.unwrap().is_err(), "no handshake follows");
        });
    });
    is_done.recv_timeout(PATIENCE).expect("the runtime is not blocked");
}
