//! The diagnostics port: health, readiness and metrics over HTTP/1.1.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_service_client::SessionServiceClient;
use nodetracker_server::{Config, Drained, Server, limits};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use crate::pki::Pki;
use crate::support::{ADD, Client, Process, Raw, add, connect, ended, framed, grpc, proxies, run, stderr};

/// A server with a diagnostics port.
struct Diag {
    addr: SocketAddr,
    diag: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

impl Diag {
    /// A tracker that asks for certificates of this authority.
    async fn with_client_certificates(pki: &Pki) -> Self {
        pki.issue("tracker", "127.0.0.1");
        let pair = format!("{}:{}", pki.path("tracker.key"), pki.path("tracker.crt"));
        let authority = pki.path("ca.crt");
        let settings = [
            ("https_keypairs", &*pair),
            ("client_ca_file", &authority),
            ("client_auth", "required"),
        ];
        Self::start(&settings).await
    }

    async fn start(settings: &[(&'static str, &str)]) -> Self {
        let (server, _) = Self::bind(settings).await;
        Self::run(server)
    }

    async fn bind(settings: &[(&'static str, &str)]) -> (Server, SocketAddr) {
        let mut config = Config::default().listen_on("127.0.0.1:0");
        for (key, value) in [&[("diag_addr", "127.0.0.1:0")], settings].concat() {
            config = config.with(key, value).unwrap();
        }
        let table = config.table().build().unwrap();
        let server = Server::bind(&config, Arc::new(table)).await.unwrap();
        let diag = server.diag_addrs()[0];
        (server, diag)
    }

    fn run(server: Server) -> Self {
        let (addr, diag) = (server.local_addr(), server.diag_addrs()[0]);
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self { addr, diag, stop, task }
    }

    async fn client(&self) -> Client {
        connect(self.addr).await
    }

    async fn metrics(&self) -> Page {
        Page::parse(&get(self.diag, "/metrics").await.body)
    }
}

/// A response of the port.
#[derive(Debug)]
struct Response {
    status: u16,
    head: String,
    body: String,
}

/// Sends a request, and reads the response to the end of the connection.
async fn request(addr: SocketAddr, request: &str) -> Response {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{text:?}"));
    Response {
        status: head["HTTP/1.1 ".len()..][..3].parse().unwrap(),
        head: head.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

async fn get(addr: SocketAddr, path: &str) -> Response {
    request(addr, &format!("GET {path} HTTP/1.1\r\nHost: tracker\r\n\r\n")).await
}

/// A page of metrics.
#[derive(Debug)]
struct Page {
    /// The type of each metric.
    types: BTreeMap<String, String>,
    /// Each sample: its name with its labels as the page has them, and its value.
    samples: BTreeMap<String, f64>,
}

impl Page {
    fn parse(text: &str) -> Self {
        let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(line) = line.strip_prefix("# TYPE ") {
                let (name, kind) = line.split_once(' ').unwrap();
                assert_eq!(types.insert(name.to_owned(), kind.to_owned()), None, "{name}");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                let before = samples.insert(name.to_owned(), value.parse().unwrap());
                assert_eq!(before, None, "{name}");
            }
        }
        Self { types, samples }
    }

    /// Returns the value of a sample.
    fn value(&self, sample: &str) -> f64 {
        *self
            .samples
            .get(sample)
            .unwrap_or_else(|| panic!("no {sample} in {self:#?}"))
    }

    /// Returns each metric with its type and its labels.
    fn metrics(&self) -> BTreeSet<(String, String, String)> {
        let labels_of = |metric: &str, kind: &str| {
            let is_of = |sample: &&String| {
                let name = sample.split('{').next().unwrap();
                name == metric || (kind == "histogram" && name == format!("{metric}_bucket"))
            };
            let labels = |sample: &String| {
                let labels = sample
                    .split_once('{')
                    .map_or("", |(_, labels)| labels.trim_end_matches('}'));
                let names = labels
                    .split("\",")
                    .filter_map(|label| label.split_once('='))
                    .map(|(name, _)| name);
                names
                    .filter(|name| *name != "le")
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            };
            let all: BTreeSet<_> = self.samples.keys().filter(is_of).map(labels).collect();
            assert_eq!(all.len(), 1, "{metric}: {all:?}");
            all.into_iter().next().unwrap().join(", ")
        };
        let metrics = self.types.iter();
        metrics
            .map(|(name, kind)| (name.clone(), kind.clone(), labels_of(name, kind)))
            .collect()
    }
}

/// Returns the documented metrics, each with its type and its labels, and those that need a `data_dir`.
fn documented() -> (BTreeSet<(String, String, String)>, BTreeSet<String>) {
    let (mut all, mut conditional) = (BTreeSet::new(), BTreeSet::new());
    for row in include_str!("../../docs/metrics.md").lines() {
        let row = row.replace('`', "");
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [
            "",
            name,
            kind @ ("counter" | "gauge" | "histogram"),
            labels,
            _,
            meaning,
            "",
        ] = cells[..]
        else {
            continue;
        };
        all.insert((name.to_owned(), kind.to_owned(), labels.to_owned()));
        if meaning.ends_with("; only with data_dir") {
            conditional.insert(name.to_owned());
        }
    }
    (all, conditional)
}

/// Returns the setting of a new key pair.
fn keypair(folder: &std::path::Path) -> String {
    let made = rcgen::generate_simple_self_signed(["tracker".to_owned()]).unwrap();
    let (key, certificate) = (folder.join("key.pem"), folder.join("certificate.pem"));
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    format!("{}:{}", key.display(), certificate.display())
}

#[tokio::test]
async fn a_server_exposes_the_documented_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let server = Diag::start(&[("https_keypairs", &keypair(folder.path()))]).await;
    let exposed = server.metrics().await.metrics();
    let (documented, conditional) = documented();
    let missing: Vec<_> = documented.difference(&exposed).map(|(name, ..)| name).collect();
    let expected: Vec<_> = conditional.iter().collect();
    assert_eq!(missing, expected);
    let undocumented: Vec<_> = exposed.difference(&documented).collect();
    assert!(undocumented.is_empty(), "{undocumented:?}");
    assert!(documented.len() > 30, "{documented:?}");

    let plain = Diag::start(&[]).await;
    let without_tls = plain.metrics().await;
    assert!(
        !without_tls
            .types
            .contains_key("nodetracker_certificate_expiry_timestamp_seconds")
    );
}

#[tokio::test]
async fn metrics_follow_what_happens() {
    let server = Diag::start(&[("max_routes", "1000"), ("max_connections", "99")]).await;
    let mut client = server.client().await;
    for number in 0..5 {
        client
            .add_node(add(&format!("node-{number}"), "proxy-1", "proxy:1"))
            .await
            .unwrap();
    }
    assert_eq!(proxies(&mut client, "node-1").await, ["proxy-1"]);
    client.add_node(add("", "proxy-1", "proxy:1")).await.unwrap_err();
    let mut raw = Raw::connect(server.addr).await;
    let long = framed(&vec![0; limits::MAX_MESSAGE_SIZE + 1]);
    assert_eq!(raw.call(ADD, long).await.grpc, Some(8));
    assert_eq!(
        raw.call("/api.NodeTrackerService/AddNodez", framed(&[])).await.grpc,
        Some(12)
    );
    // A call that the client cancels.
    let (response, mut stream) = raw.open(ADD).await;
    raw.settle().await;
    stream.send_reset(h2::Reason::CANCEL);
    response.await.unwrap_err();
    let cancelled = "nodetracker_calls_total{service=\"api.NodeTrackerService\",method=\"AddNode\",code=\"CANCELLED\"}";
    let page = loop {
        let page = server.metrics().await;
        if page.samples.contains_key(cancelled) {
            break page;
        }
    };
    let calls = |method: &str, code: &str| {
        page.value(&format!(
            "nodetracker_calls_total{{service=\"api.NodeTrackerService\",method=\"{method}\",code=\"{code}\"}}"
        ))
    };
    assert_eq!(calls("AddNode", "OK"), 5.0);
    assert_eq!(calls("AddNode", "INVALID_ARGUMENT"), 1.0);
    assert_eq!(calls("AddNode", "RESOURCE_EXHAUSTED"), 1.0);
    assert_eq!(calls("AddNode", "CANCELLED"), 1.0);
    assert_eq!(calls("GetProxies", "OK"), 1.0);
    assert_eq!(calls("RemoveNode", "OK"), 0.0);
    let unknown = "nodetracker_calls_total{service=\"unknown\",method=\"unknown\",code=\"UNIMPLEMENTED\"}";
    assert_eq!(page.value(unknown), 1.0);
    let duration = |part: &str, le: &str| {
        let labels = format!("service=\"api.NodeTrackerService\",method=\"AddNode\"{le}");
        page.value(&format!("nodetracker_call_duration_seconds_{part}{{{labels}}}"))
    };
    assert_eq!(duration("count", ""), 7.0);
    assert_eq!(duration("bucket", ",le=\"+Inf\""), 7.0);
    assert!(duration("sum", "") > 0.0);
    assert_eq!(page.value("nodetracker_routes"), 5.0);
    assert_eq!(page.value("nodetracker_routes_limit"), 1000.0);
    assert_eq!(page.value("nodetracker_nodes"), 5.0);
    assert_eq!(page.value("nodetracker_proxies"), 1.0);
    assert_eq!(page.value("nodetracker_connections"), 2.0);
    assert_eq!(page.value("nodetracker_connections_limit"), 99.0);
    assert_eq!(page.value("nodetracker_refusals_total{reason=\"message_size\"}"), 1.0);
    assert_eq!(page.value("nodetracker_refusals_total{reason=\"table_routes\"}"), 0.0);
    assert_eq!(page.value("nodetracker_keep_alive_seconds"), 300.0);
    assert_eq!(page.value("nodetracker_expiry_held{cause=\"brake\"}"), 0.0);
    assert!(page.value("nodetracker_client_memory_bytes") > 0.0);
    assert!(page.value("nodetracker_table_bytes{part=\"records\"}") >= 5.0 * 24.0);
    assert!(page.value("process_resident_memory_bytes") > 1e6);
    assert!(page.value("process_open_fds") > 3.0);
}

#[tokio::test]
async fn limits_stand_beside_what_they_limit() {
    let server = Diag::start(&[
        ("max_proxies", "50"),
        ("max_text_mb", "7"),
        ("max_watches", "8"),
        ("max_watched_mb", "9"),
    ])
    .await;
    let mut raw = Raw::connect(server.addr).await;
    let (response, mut stream) = raw.open("/nodetracker.v1.WatchService/Watch").await;
    let request = v1::WatchRequest {
        nodes: Some(v1::NodeIds {
            names: vec!["node-1".into()],
            ..v1::NodeIds::default()
        }),
        ..v1::WatchRequest::default()
    };
    stream.send_data(framed(&request.encode_to_vec()).into(), true).unwrap();
    let _watch = response.await.unwrap();
    let page = server.metrics().await;
    for (metric, value) in [
        ("nodetracker_proxies_limit", 50.0),
        ("nodetracker_text_limit_bytes", 7e6),
        ("nodetracker_watches", 1.0),
        ("nodetracker_watches_limit", 8.0),
        ("nodetracker_watched_limit_bytes", 9e6),
    ] {
        assert_eq!(page.value(metric), value, "{metric}");
    }
    assert!(page.value("nodetracker_watched_bytes") > 0.0);
}

#[tokio::test]
async fn messages_of_sessions_are_counted_by_kind() {
    let server = Diag::start(&[]).await;
    let endpoint = Endpoint::from_shared(format!("http://{}", server.addr)).unwrap();
    let mut sessions = SessionServiceClient::new(endpoint.connect().await.unwrap());
    let hello = v1::SessionHello {
        proxy: Some(crate::v1::proxy("proxy-1")),
        incarnation: 1,
        ..v1::SessionHello::default()
    };
    let heartbeat = || Request::Heartbeat(v1::SessionHeartbeat::default());
    let requests = [
        Request::Hello(hello.clone()),
        heartbeat(),
        heartbeat(),
        Request::Hello(hello),
    ];
    let requests = requests.map(|request| v1::SessionRequest {
        request: Some(request),
        ..v1::SessionRequest::default()
    });
    let mut responses = sessions
        .session(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();
    // The second hello ends the session.
    while let Ok(Some(_)) = responses.message().await {}
    let page = server.metrics().await;
    for (kind, count) in [("hello", 2.0), ("heartbeat", 2.0), ("nodes_up", 0.0)] {
        let sample = format!("nodetracker_session_messages_total{{kind=\"{kind}\"}}");
        assert_eq!(page.value(&sample), count, "{kind}");
    }
    assert_eq!(page.value("nodetracker_accepted_connections_total"), 1.0);
}

/// Waits until the page has a count of failed handshakes for a reason, for at most ten seconds.
async fn failed_handshakes(server: &Diag, reason: &str, count: f64) {
    let sample = format!("nodetracker_handshake_failures_total{{reason=\"{reason}\"}}");
    let counted = async { while server.metrics().await.value(&sample) < count {} };
    let in_time = timeout(Duration::from_secs(10), counted).await;
    in_time.unwrap_or_else(|_| panic!("{sample} stays below {count}"));
}

#[tokio::test]
async fn failed_handshakes_are_counted_by_reason() {
    let plain = Diag::start(&[]).await;
    drop(TcpStream::connect(plain.addr).await.unwrap());
    failed_handshakes(&plain, "closed", 1.0).await;
    let mut other = TcpStream::connect(plain.addr).await.unwrap();
    other
        .write_all(b"GET / HTTP/1.1\r\nHost: tracker\r\n\r\n")
        .await
        .unwrap();
    failed_handshakes(&plain, "http2", 1.0).await;

    let pki = Pki::new();
    let server = Diag::with_client_certificates(&pki).await;
    let shake_hands = async |config| {
        let stream = TcpStream::connect(server.addr).await.unwrap();
        let name = "127.0.0.1".try_into().unwrap();
        let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
        // With TLS 1.3, the client learns later that the server refuses its certificate.
        if let Ok(mut stream) = connected {
            let _ = stream.read_u8().await;
        }
    };
    shake_hands(pki.client_config(None)).await;
    failed_handshakes(&server, "client_certificate", 1.0).await;
    shake_hands(Pki::new().client_config(None)).await;
    failed_handshakes(&server, "tls_alert", 1.0).await;
    let mut plain = TcpStream::connect(server.addr).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    failed_handshakes(&server, "tls", 1.0).await;
    drop(TcpStream::connect(server.addr).await.unwrap());
    failed_handshakes(&server, "closed", 1.0).await;
    let page = server.metrics().await;
    let failures = page
        .samples
        .iter()
        .filter(|(name, _)| name.contains("handshake_failures"));
    assert_eq!(failures.map(|(_, count)| count).sum::<f64>(), 4.0, "{page:?}");
    assert_eq!(page.value("nodetracker_accepted_connections_total"), 4.0);
    assert_eq!(
        page.value("nodetracker_refusals_total{reason=\"client_certificate\"}"),
        1.0
    );
}

#[tokio::test]
async fn a_call_that_is_refused_counts_under_its_method() {
    let pki = Pki::new();
    let server = Diag::with_client_certificates(&pki).await;
    let stream = TcpStream::connect(server.addr).await.unwrap();
    let node = pki.client_config(Some(&pki.teleport("Node", "node-1")));
    let name = "127.0.0.1".try_into().unwrap();
    let mut client = Raw::over(TlsConnector::from(Arc::new(node)).connect(name, stream).await.unwrap()).await;
    // By the rule of the method, by the head of the request, and because there is no such method.
    let message = framed(&add("node", "proxy", "proxy:1").encode_to_vec());
    assert_eq!(client.call(ADD, message.clone()).await.grpc, Some(7));
    client.requests = client.requests.clone().ready().await.unwrap();
    let mut compressed = grpc(ADD);
    compressed
        .headers_mut()
        .insert("grpc-encoding", "gzip".parse().unwrap());
    let (response, _) = client.requests.send_request(compressed, true).unwrap();
    assert_eq!(ended(response).await.grpc, Some(12));
    assert_eq!(client.call("/a.B/C", message).await.grpc, Some(12));
    let page = server.metrics().await;
    let calls = |service: &str, method: &str, code: &str| {
        page.value(&format!(
            "nodetracker_calls_total{{service=\"{service}\",method=\"{method}\",code=\"{code}\"}}"
        ))
    };
    assert_eq!(calls("api.NodeTrackerService", "AddNode", "PERMISSION_DENIED"), 1.0);
    assert_eq!(calls("api.NodeTrackerService", "AddNode", "UNIMPLEMENTED"), 1.0);
    assert_eq!(calls("unknown", "unknown", "UNIMPLEMENTED"), 1.0);
    assert_eq!(page.value("nodetracker_refusals_total{reason=\"denied\"}"), 1.0);
}

#[tokio::test]
async fn readiness_follows_the_server() {
    let (server, diag) = Diag::bind(&[("shutdown_delay", "60s")]).await;
    let not_ready = get(diag, "/readyz").await;
    assert_eq!(not_ready.status, 503);
    let json: serde_json::Value = serde_json::from_str(&not_ready.body).unwrap();
    assert_eq!(
        json,
        serde_json::json!({ "ready": false, "reason": "the server is starting" })
    );
    assert!(
        not_ready.head.contains("content-type: application/json"),
        "{}",
        not_ready.head
    );
    assert_eq!(get(diag, "/healthz").await.status, 200);

    let server = Diag::run(server);
    let mut client = server.client().await;
    client.add_node(add("node", "proxy", "proxy:1")).await.unwrap();
    let ready = get(diag, "/readyz").await;
    assert_eq!((ready.status, ready.body.as_str()), (200, "{\"ready\":true}\n"));
    assert_eq!(server.metrics().await.value("nodetracker_ready"), 1.0);

    // During the delay, the server serves calls, and the readiness asks load balancers to use another server.
    server.stop.send(()).unwrap();
    let stopping = loop {
        let page = get(diag, "/readyz").await;
        if page.status != 200 {
            break page;
        }
    };
    assert_eq!(
        stopping.body,
        "{\"ready\":false,\"reason\":\"the server is stopping\"}\n"
    );
    assert_eq!(proxies(&mut client, "node").await, ["proxy"]);
    assert_eq!(get(diag, "/healthz").await.status, 200);
    server.task.abort();
    server.task.await.unwrap_err();
    // The port ends with the server.
    while TcpStream::connect(diag).await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn only_the_pages_that_exist_can_be_read() {
    let server = Diag::start(&[]).await;
    let index = get(server.diag, "/").await;
    assert!(index.status == 200 && index.body.contains("/metrics"), "{index:?}");
    let query = get(server.diag, "/healthz?verbose").await;
    assert_eq!((query.status, query.body.as_str()), (200, "ok\n"));
    let missing = get(server.diag, "/metricz").await;
    assert!(
        missing.status == 404 && missing.body.contains("/metrics"),
        "{missing:?}"
    );
    let posted = request(
        server.diag,
        "POST /metrics HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\n\r\nhello",
    )
    .await;
    assert!(
        posted.status == 405 && posted.head.contains("allow: get, head"),
        "{posted:?}"
    );
    let head = request(server.diag, "HEAD /healthz HTTP/1.1\r\nHost: t\r\n\r\n").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));

    let plain = get(server.diag, "/metrics").await;
    assert!(
        plain.head.contains("content-type: text/plain; version=0.0.4"),
        "{}",
        plain.head
    );
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let open = request(
        server.diag,
        &format!("GET /metrics HTTP/1.1\r\nHost: t\r\n{accept}\r\n\r\n"),
    )
    .await;
    assert!(
        open.head
            .contains("content-type: application/openmetrics-text; version=1.0.0"),
        "{}",
        open.head
    );
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
}

#[tokio::test]
async fn bad_clients_of_the_port_disturb_nobody() {
    let server = Diag::start(&[]).await;
    assert_eq!(request(server.diag, "hello\r\n\r\n").await.status, 400);
    let large = format!(
        "GET /healthz HTTP/1.1\r\nx: {}\r\n\r\n",
        "y".repeat(limits::MAX_DIAG_HEADER_SIZE)
    );
    assert_eq!(request(server.diag, &large).await.status, 431);
    let many = "x: y\r\n".repeat(limits::MAX_DIAG_HEADERS + 1);
    assert_eq!(
        request(server.diag, &format!("GET /healthz HTTP/1.1\r\n{many}\r\n"))
            .await
            .status,
        431
    );

    // Clients that send nothing take all connections. Calls are served meanwhile, and probes too: the oldest of the
    // silent connections makes room.
    let mut silent = Vec::new();
    for _ in 0..limits::MAX_DIAG_CONNECTIONS {
        silent.push(TcpStream::connect(server.diag).await.unwrap());
    }
    let mut client = server.client().await;
    client.add_node(add("node", "proxy", "proxy:1")).await.unwrap();
    assert_eq!(proxies(&mut client, "node").await, ["proxy"]);
    let probe = timeout(limits::DIAG_CONNECTION_TIME / 2, get(server.diag, "/healthz")).await;
    assert_eq!(probe.expect("silent clients keep probes out").status, 200);
    drop(silent);
}

/// The port ends a connection that does not send its request in time.
#[tokio::test(start_paused = true)]
async fn a_silent_client_is_cut() {
    let server = Diag::start(&[]).await;
    let mut stream = TcpStream::connect(server.diag).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\n").await.unwrap();
    let mut rest = Vec::new();
    let read = timeout(2 * limits::DIAG_HEADER_TIME, stream.read_to_end(&mut rest)).await;
    read.expect("the server cuts the connection").unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn a_port_for_other_machines_is_a_warning() {
    let line = "diag_addr has no authentication, and clients may be on other machines";
    let log = Process::serve(&["--diag-addr", "0.0.0.0:0"]).logged("diag_addr has");
    assert!(log.contains(&format!(" WARN {line}\n")), "{log}");
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_that_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let args = ["serve", "--listen-addr", "127.0.0.1:0", "--diag-addr", &addr].map(str::to_owned);
    let refused = tokio::task::spawn_blocking(move || run(&args.each_ref().map(String::as_str)))
        .await
        .unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let expected = format!("nodetracker: --diag-addr: cannot listen on {addr}: ");
    assert!(stderr(&refused).contains(&expected), "{}", stderr(&refused));
}
