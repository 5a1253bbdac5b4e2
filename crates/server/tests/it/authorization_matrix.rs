//! Each kind of client calls each method over TLS. `docs/authorization.md` has the results as a table.
//!
//! After a change of a rule, write the table again:
//!
//! ```console
//! $ UPDATE_DOCS=1 cargo test -p nodetracker-server --test it -- authorization_matrix
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::client::SendRequest;
use nodetracker::RouteTable;
use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::{api, v1};
use nodetracker_server::Limits;
use prost::Message;
use prost_types::FileDescriptorSet;
use rcgen::string::Ia5String;
use rcgen::{SanType, date_time_ymd};
use rustls::ClientConfig;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;

use crate::authorization::{config, connect};
use crate::pki::{Pki, named};
use crate::support::{Running, add, framed, grpc};

/// The proxy that all requests name.
const PROXY: &str = "proxy-1";

/// The document, and the lines around its table.
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/authorization.md");
const BEGIN: &str = "<!-- matrix: written by authorization_matrix.rs, do not edit -->\n\n";
const END: &str = "\n<!-- end of matrix -->\n";

/// Returns the paths of all methods. A test of `rpc/methods.rs` checks that the method table has the same.
fn methods() -> BTreeSet<String> {
    let sets = [
        nodetracker_proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let files = sets.map(|set| FileDescriptorSet::decode(set).unwrap().file);
    let mut paths = BTreeSet::new();
    for file in files.iter().flatten() {
        for service in &file.service {
            let of_service = service.method.iter();
            paths.extend(of_service.map(|method| format!("/{}.{}/{}", file.package(), service.name(), method.name())));
        }
    }
    paths
}

/// Returns a request that every method accepts. A method that is not here accepts an empty message.
fn request(path: &str) -> Vec<u8> {
    static INCARNATION: AtomicU64 = AtomicU64::new(1);
    let node = || {
        Some(v1::NodeId {
            id: Some(Id::Name("node".into())),
        })
    };
    let nodes = || {
        Some(v1::NodeIds {
            names: vec!["node".into()],
            ..v1::NodeIds::default()
        })
    };
    let proxy = || {
        Some(v1::Proxy {
            proxy_id: PROXY.into(),
            cluster_name: String::new(),
            addr: "proxy:1".into(),
        })
    };
    match path {
        "/api.NodeTrackerService/AddNode" => add("node", PROXY, "proxy:1").encode_to_vec(),
        "/api.NodeTrackerService/GetProxies" => api::GetProxiesRequest { node_id: "node".into() }.encode_to_vec(),
        "/api.NodeTrackerService/RemoveNode" => api::RemoveNodeRequest { node_id: "node".into() }.encode_to_vec(),
        "/nodetracker.v1.RouteService/AddNodes" => v1::AddNodesRequest {
            proxy: proxy(),
            nodes: nodes(),
        }
        .encode_to_vec(),
        "/nodetracker.v1.RouteService/GetProxies" => v1::GetProxiesRequest { node: node() }.encode_to_vec(),
        "/nodetracker.v1.RouteService/RemoveNodes" => v1::RemoveNodesRequest {
            nodes: nodes(),
            proxy_id: PROXY.into(),
        }
        .encode_to_vec(),
        "/nodetracker.v1.RouteService/ReportUnreachable" => v1::ReportUnreachableRequest {
            node: node(),
            proxy_id: PROXY.into(),
            reporter_id: String::new(),
        }
        .encode_to_vec(),
        "/nodetracker.v1.SessionService/Session" => v1::SessionRequest {
            sequence: 1,
            request: Some(Request::Hello(v1::SessionHello {
                proxy: proxy(),
                incarnation: INCARNATION.fetch_add(1, Ordering::Relaxed),
                ..v1::SessionHello::default()
            })),
        }
        .encode_to_vec(),
        "/nodetracker.v1.AdminService/RemoveProxy" => v1::RemoveProxyRequest { proxy_id: PROXY.into() }.encode_to_vec(),
        "/nodetracker.v1.AdminService/Explain" => v1::ExplainRequest { node: node() }.encode_to_vec(),
        // Both versions have the same fields.
        path if path.starts_with("/grpc.reflection.") => ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        }
        .encode_to_vec(),
        _ => Vec::new(),
    }
}

/// Why a client has no status of a call.
type Failure = Box<dyn std::error::Error>;

/// Opens a connection for calls. Fails if the server refuses the connection.
async fn open(server: &Running, client: ClientConfig) -> Result<SendRequest<Bytes>, Failure> {
    let stream = connect(server, client).await?;
    let (requests, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    Ok(requests)
}

/// Calls a method. Returns the code of its status, 0 once a message has come. Fails if the server refuses the
/// connection.
async fn call(requests: SendRequest<Bytes>, path: &str) -> Result<i32, Failure> {
    let (response, mut stream) = requests.ready().await?.send_request(grpc(path), false)?;
    stream.send_data(framed(&request(path)).into(), true)?;
    let response = response.await?;
    let mut headers = response.headers().clone();
    let mut body = response.into_body();
    if body.data().await.transpose()?.is_none() {
        headers.extend(body.trailers().await?.unwrap_or_default());
    }
    match headers.get("grpc-status") {
        None => Ok(0),
        Some(code) => Ok(code.to_str()?.parse()?),
    }
}

/// One kind of client: a column of the table.
struct Column {
    name: &'static str,
    server: Running,
    client: ClientConfig,
    /// A client that the server accepts: if the server refuses it, too, the server does not work.
    control: ClientConfig,
    /// Connections that were open before the client lost its rights, one for each method. If there is none, a call has
    /// a connection of its own.
    open: BTreeMap<String, SendRequest<Bytes>>,
}

impl Column {
    async fn call(&self, path: &str) -> Result<i32, Failure> {
        match self.open.get(path) {
            // As the server ends the connection, a stream may end before its first message.
            Some(requests) => match call(requests.clone(), path).await {
                Ok(UNAVAILABLE) => Ok(0),
                // The connection that was opened last may have had input left after the reload. So the connection has
                // noticed the reload before the call, and drains.
                Err(error) if has_drained(&error) => Ok(PERMISSION_DENIED),
                called => called,
            },
            None => call(open(&self.server, self.client.clone()).await?, path).await,
        }
    }

    /// Fails the test unless the server serves a good client.
    async fn assert_serves(&self) {
        let control = open(&self.server, self.control.clone()).await.unwrap();
        assert_eq!(
            call(control, "/nodetracker.v1.AdminService/Stats").await.unwrap(),
            0,
            "{}",
            self.name
        );
    }
}

/// Reports whether a call failed because the server drains the connection.
fn has_drained(error: &Failure) -> bool {
    let error = error.downcast_ref::<h2::Error>();
    error.is_some_and(|error| error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR))
}

/// gRPC's codes.
const PERMISSION_DENIED: i32 = 7;
const UNAVAILABLE: i32 = 14;

/// The servers of the last columns have the files of `replaced`, since each server reads its files again when they
/// change.
async fn columns(pki: &Pki, replaced: &Pki) -> Vec<Column> {
    let expired = pki.client(|params| {
        named(params, "Admin", "alice");
        params.not_after = date_time_ymd(2021, 2, 3);
    });
    let early = pki.client(|params| {
        named(params, "Admin", "alice");
        params.not_before = date_time_ymd(2998, 1, 1);
        params.not_after = date_time_ymd(2999, 1, 1);
    });
    let admin = pki.teleport("Admin", "alice");
    let spiffe = |path: &str| {
        pki.client(|params| {
            let uri = Ia5String::try_from(format!("spiffe://example.com/{path}")).unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
        })
    };
    let identities = [
        ("`Admin`", "required", Some(admin.clone())),
        ("`Proxy`", "required", Some(pki.teleport("Proxy", PROXY))),
        ("`Proxy`, other ID", "required", Some(pki.teleport("Proxy", "proxy-2"))),
        ("no role", "required", Some(pki.teleport("Node", PROXY))),
        ("none, `optional`", "optional", None),
        ("none, `required`", "required", None),
        ("SPIFFE: admin", "required", Some(spiffe("admin"))),
        ("SPIFFE: proxy", "required", Some(spiffe(&format!("proxy/{PROXY}")))),
        ("SPIFFE: other ID", "required", Some(spiffe("proxy/proxy-2"))),
        ("SPIFFE: no role", "required", Some(spiffe("node"))),
        ("wrong CA", "required", Some(Pki::new().teleport("Admin", "alice"))),
        ("expired", "required", Some(expired)),
        ("not yet valid", "required", Some(early)),
    ];
    let mut columns = Vec::new();
    for (name, client_auth, identity) in identities {
        let (rule, control) = match name.starts_with("SPIFFE") {
            true => ("spiffe", spiffe("admin")),
            false => ("teleport", admin.clone()),
        };
        let config = config(pki, client_auth).with("client_identity", rule).unwrap();
        columns.push(Column {
            name,
            server: Running::with_config(&config, RouteTable::new(), Limits::default()).await,
            client: pki.client_config(identity.as_ref()),
            control: pki.client_config(Some(&control)),
            open: BTreeMap::new(),
        });
    }
    // The last columns: the client had its rights until another authority was loaded.
    let client = replaced.client_config(Some(&replaced.teleport("Admin", "alice")));
    let other = Pki::new();
    let control = replaced.client_config(Some(&other.teleport("Admin", "alice")));
    let mut revoked = Vec::new();
    for name in ["revoked", "revoked, open"] {
        // An idle connection notices that its client lost its rights when one of its timers fires, and then takes no
        // further call. Here the calls come first, on a busy machine, too.
        let limits = Limits {
            handshake: Duration::from_secs(3600),
            ping_interval: Duration::from_secs(3600),
            ..Limits::default()
        };
        let server = Running::with_config(&config(replaced, "required"), RouteTable::new(), limits).await;
        let mut connections = BTreeMap::new();
        for path in methods() {
            let requests = open(&server, client.clone()).await.unwrap();
            let allowed = call(requests.clone(), "/nodetracker.v1.AdminService/Stats").await;
            assert_eq!(allowed.unwrap(), 0);
            connections.insert(path, requests);
        }
        revoked.push(Column {
            name,
            server,
            client: client.clone(),
            control: control.clone(),
            open: if name == "revoked" {
                BTreeMap::new()
            } else {
                connections
            },
        });
    }
    fs::write(replaced.path("ca.crt"), other.authority.pem()).unwrap();
    for column in &revoked {
        column.server.certificates.as_ref().unwrap().reload().unwrap();
    }
    columns.extend(revoked);
    columns
}

async fn table() -> String {
    let [pki, replaced] = [(); 2].map(|()| Pki::new());
    let columns = columns(&pki, &replaced).await;
    let names: Vec<_> = columns.iter().map(|column| column.name).collect();
    let mut table = format!(
        "| method | {} |\n|{}\n",
        names.join(" | "),
        " --- |".repeat(names.len() + 1)
    );
    // `Drain` stops a column's server.
    let (last, first): (Vec<_>, Vec<_>) = methods().into_iter().partition(|path| path.ends_with("/Drain"));
    let paths: Vec<_> = first.into_iter().chain(last).collect();
    let mut rows: BTreeMap<_, Vec<_>> = BTreeMap::new();
    // The connections of the last column end some seconds after the reload, so this column is the first.
    for column in columns.iter().rev() {
        for path in &paths {
            let cell = match column.call(path).await {
                Ok(0) => "yes",
                // FAILED_PRECONDITION: the log belongs to the test, not to the server.
                Ok(9) if path.ends_with("/SetLogLevel") => "yes",
                Ok(PERMISSION_DENIED) => "**no**",
                Ok(code) => panic!("{path}, {}: status {code}", column.name),
                Err(_) => {
                    column.assert_serves().await;
                    "-"
                }
            };
            rows.entry(path.trim_start_matches('/')).or_default().push(cell);
        }
    }
    for (path, cells) in &mut rows {
        cells.reverse();
        table += &format!("| `{path}` | {} |\n", cells.join(" | "));
    }
    table
}

#[tokio::test]
async fn the_table_of_the_documentation_is_what_clients_may_do() {
    let table = table().await;
    let document = fs::read_to_string(DOCUMENT).unwrap();
    let (head, rest) = document.split_once(BEGIN).unwrap();
    let (documented, tail) = rest.split_once(END).unwrap();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(DOCUMENT, [head, BEGIN, &table, END, tail].concat()).unwrap();
    } else {
        assert_eq!(documented, table, "write the table again with UPDATE_DOCS=1");
    }
}
