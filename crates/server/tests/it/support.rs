//! Test support: servers in this process and as the command, and several kinds of clients.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use nodetracker::{ManualClock, RouteTable};
use nodetracker_proto::api::node_tracker_service_client::NodeTrackerServiceClient;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use nodetracker_proto::{api, v1};
use nodetracker_server::{Certificates, Config, Drained, Limits, Server};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

pub(crate) const ADD: &str = "/api.NodeTrackerService/AddNode";

/// Short for a limit, and long enough for a good client on a loaded machine.
pub(crate) const SOON: Duration = Duration::from_millis(500);

pub(crate) type Client = NodeTrackerServiceClient<Channel>;

/// A server in this process.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) table: Arc<RouteTable>,
    pub(crate) certificates: Option<Certificates>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Drained>,
}

impl Running {
    pub(crate) async fn start() -> Self {
        Self::with_table(RouteTable::new()).await
    }

    pub(crate) async fn with_table(table: RouteTable) -> Self {
        Self::with(table, Limits::default()).await
    }

    pub(crate) async fn with(table: RouteTable, limits: Limits) -> Self {
        Self::with_config(&Config::default(), table, limits).await
    }

    /// Starts a server with a configuration, on a free port.
    pub(crate) async fn with_config(config: &Config, table: RouteTable, limits: Limits) -> Self {
        let table = Arc::new(table);
        let config = config.clone().listen_on("127.0.0.1:0");
        let server = Server::bind_with_limits(&config, Arc::clone(&table), limits)
            .await
            .unwrap();
        let certificates = server.certificates();
        let addr = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.run(async {
            let _ = stopped.await;
        }));
        Self {
            addr,
            table,
            certificates,
            stop,
            task,
        }
    }

    pub(crate) async fn client(&self) -> Client {
        connect(self.addr).await
    }

    /// A connection of its own, for the client of any service.
    pub(crate) async fn channel(&self) -> Channel {
        channel(self.addr).await
    }

    pub(crate) async fn stats(&self) -> v1::StatsResponse {
        let mut admin = AdminServiceClient::new(self.channel().await);
        admin.stats(v1::StatsRequest {}).await.unwrap().into_inner()
    }

    /// Fails the test unless a whole round of calls works.
    pub(crate) async fn assert_serves(&self) {
        let mut client = self.client().await;
        client.add_node(add("still-serving", "proxy", "proxy:1")).await.unwrap();
        assert_eq!(proxies(&mut client, "still-serving").await, ["proxy"]);
        client
            .remove_node(api::RemoveNodeRequest {
                node_id: "still-serving".into(),
            })
            .await
            .unwrap();
        assert_eq!(proxies(&mut client, "still-serving").await, [""; 0]);
    }

    /// Drops the server as it is.
    pub(crate) async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    pub(crate) async fn stop(self) -> Drained {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }

    /// Waits until the server ends by itself.
    pub(crate) async fn ended(self) -> Drained {
        self.task.await.unwrap()
    }
}

/// Connects with tonic's own transport, which the commands do not use.
pub(crate) async fn connect(addr: SocketAddr) -> Client {
    Client::new(channel(addr).await)
}

/// A connection of its own, for the client of any service.
pub(crate) async fn channel(addr: SocketAddr) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    endpoint.connect().await.unwrap()
}

pub(crate) fn add(node: &str, proxy: &str, addr: &str) -> api::AddNodeRequest {
    api::AddNodeRequest {
        node_id: node.into(),
        proxy_id: proxy.into(),
        cluster_name: "cluster".into(),
        addr: addr.into(),
    }
}

pub(crate) async fn details(client: &mut Client, node: &str) -> Vec<api::ProxyDetails> {
    let request = api::GetProxiesRequest { node_id: node.into() };
    client.get_proxies(request).await.unwrap().into_inner().proxy_details
}

/// The IDs of the proxies that reach a node, in the order of the answer.
pub(crate) async fn proxies(client: &mut Client, node: &str) -> Vec<String> {
    details(client, node).await.into_iter().map(|proxy| proxy.id).collect()
}

/// A client that can break the rules which gRPC libraries keep.
pub(crate) struct Raw {
    pub(crate) requests: SendRequest<Bytes>,
    pub(crate) connection: JoinHandle<Result<(), h2::Error>>,
    pings: h2::PingPong,
}

/// How a raw call ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) http: u16,
    pub(crate) grpc: Option<i32>,
    pub(crate) message: String,
}

impl Raw {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::over(TcpStream::connect(addr).await.unwrap()).await
    }

    /// Begins HTTP/2 over a connection.
    pub(crate) async fn over<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Self {
        Self::try_over(stream).await.unwrap()
    }

    /// As [`over`](Self::over). Returns an error if the server ends the connection.
    pub(crate) async fn try_over<S>(stream: S) -> Result<Self, h2::Error>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, mut connection) = h2::client::handshake(stream).await?;
        let pings = connection.ping_pong().unwrap();
        Ok(Self {
            requests,
            connection: tokio::spawn(connection),
            pings,
        })
    }

    /// Returns once the server has read everything that was sent before.
    pub(crate) async fn settle(&mut self) {
        self.try_settle().await.unwrap();
    }

    /// As [`settle`](Self::settle). Returns an error if the connection has ended.
    pub(crate) async fn try_settle(&mut self) -> Result<(), h2::Error> {
        self.pings.ping(h2::Ping::opaque()).await.map(drop)
    }

    /// Starts a gRPC call; what is sent on the stream is up to the caller.
    pub(crate) async fn open(&mut self, path: &str) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
        self.requests = self.requests.clone().ready().await.unwrap();
        self.requests.send_request(grpc(path), false).unwrap()
    }

    /// Makes a call with this request body, whole or not.
    pub(crate) async fn call(&mut self, path: &str, body: Vec<u8>) -> Ended {
        let (response, mut stream) = self.open(path).await;
        // An error means that the server has answered already.
        let _ = stream.send_data(body.into(), true);
        ended(response).await
    }
}

pub(crate) fn grpc(path: &str) -> http::Request<()> {
    http::Request::post(format!("http://tracker{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

pub(crate) async fn ended(response: h2::client::ResponseFuture) -> Ended {
    status(response.await.unwrap()).await
}

/// How a call ended, if its response has begun.
pub(crate) async fn status(response: http::Response<h2::RecvStream>) -> Ended {
    let http = response.status().as_u16();
    let mut headers = response.headers().clone();
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
    }
    headers.extend(body.trailers().await.unwrap().unwrap_or_default());
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    Ended {
        http,
        grpc: text("grpc-status").map(|code| code.parse().unwrap()),
        message: text("grpc-message")
            .unwrap_or_default()
            .replace("%20", " ")
            .replace("%22", "\""),
    }
}

/// Returns the number of refusals of one reason.
pub(crate) fn refused(stats: &v1::StatsResponse, reason: &str) -> u64 {
    let mut of_reason = stats.refusals.iter().filter(|refusals| refusals.reason == reason);
    of_reason.next().map_or(0, |refusals| refusals.count)
}

/// Puts gRPC's five bytes in front of a message.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    frame.extend(message);
    frame
}

/// The command under test.
pub(crate) fn nodetracker() -> Command {
    Command::new(env!("CARGO_BIN_EXE_nodetracker"))
}

/// Runs the command to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    nodetracker().args(args).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// `nodetracker serve` as a process; killed when dropped.
pub(crate) struct Process {
    child: Child,
    pub(crate) addr: SocketAddr,
    /// `None` while a thread reads it.
    stderr: Option<BufReader<PipeReader>>,
}

impl Process {
    /// How long a line of the log may take.
    const LOGGED: Duration = Duration::from_secs(60);

    /// Starts it on a free port and waits until it listens.
    pub(crate) fn serve(args: &[&str]) -> Self {
        Self::starting(args).listening()
    }

    /// Starts it on a free port. The address is unknown until it is [listening](Self::listening).
    pub(crate) fn starting(args: &[&str]) -> Self {
        let mut command = nodetracker();
        command.args(["serve", "--listen-addr", "127.0.0.1:0"]).args(args);
        let (reader, writer) = io::pipe().unwrap();
        Self::start(command, reader, writer)
    }

    pub(crate) fn spawn(command: Command) -> Self {
        let (reader, writer) = io::pipe().unwrap();
        Self::with_log(command, reader, writer)
    }

    /// Starts the server with this pipe as its stderr, and waits until it listens.
    pub(crate) fn with_log(command: Command, reader: PipeReader, writer: PipeWriter) -> Self {
        Self::start(command, reader, writer).listening()
    }

    fn start(mut command: Command, reader: PipeReader, writer: PipeWriter) -> Self {
        let child = command.stdout(Stdio::piped()).stderr(writer).spawn().unwrap();
        Self {
            child,
            addr: SocketAddr::from(([0; 4], 0)),
            stderr: Some(BufReader::new(reader)),
        }
    }

    /// Waits until the server listens.
    pub(crate) fn listening(mut self) -> Self {
        let mut line = String::new();
        BufReader::new(self.child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let addr = line.strip_prefix("listening on ").map(str::trim_end);
        self.addr = addr.unwrap_or_else(|| panic!("{line:?}")).parse().unwrap();
        self
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        let command = format!("kill -{name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &command]).status().unwrap().success());
    }

    /// Reads the log up to a line that contains `what`. Panics if the line does not come: a read of the pipe would wait
    /// for as long as the server lives.
    pub(crate) fn logged(&mut self, what: &str) -> String {
        let (sender, lines) = mpsc::channel();
        let (mut stderr, expected) = (self.stderr.take().unwrap(), what.to_owned());
        let reader = std::thread::spawn(move || {
            loop {
                let mut line = String::new();
                let is_end = stderr.read_line(&mut line).unwrap() == 0;
                let is_last = is_end || line.contains(&expected);
                if sender.send(line).is_err() || is_last {
                    return stderr;
                }
            }
        });
        let (mut log, end) = (String::new(), Instant::now() + Self::LOGGED);
        loop {
            match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(line) if !line.is_empty() => {
                    log.push_str(&line);
                    if line.contains(what) {
                        break;
                    }
                }
                ended => panic!("no {what:?}, {ended:?}: {log}"),
            }
        }
        self.stderr = Some(reader.join().unwrap());
        log
    }

    /// Waits until the server ends by itself, without reading the log.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Waits until the server ends by itself, and returns the rest of the log. Clients of this process continue
    /// meanwhile.
    pub(crate) async fn wait(mut self) -> (ExitStatus, String) {
        let wait = move || {
            let mut log = String::new();
            self.stderr.take().unwrap().read_to_string(&mut log).unwrap();
            (self.child.wait().unwrap(), log)
        };
        tokio::task::spawn_blocking(wait).await.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a configuration file into a folder of its own.
pub(crate) fn config_file(text: &str) -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("tracker.yaml");
    std::fs::write(&file, text).unwrap();
    (folder, file)
}

/// A table whose time the test sets.
pub(crate) fn manual(keep_alive: Duration) -> (ManualClock, RouteTable) {
    let clock = ManualClock::new();
    let table = RouteTable::builder()
        .clock(clock.clone())
        .keep_alive(keep_alive)
        .build()
        .expect("possible limits");
    (clock, table)
}

/// Advances the time of a server's table without a stop: the table reads the clock at each step.
pub(crate) fn pass(table: &RouteTable, clock: &ManualClock, time: Duration) {
    let mut left = time;
    while !left.is_zero() {
        let step = left.min(table.keep_alive() / 12);
        clock.advance(step);
        left -= step;
        let _ = table.effective_keep_alive();
    }
}
