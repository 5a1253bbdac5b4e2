//! Code that the examples with a server under load share: the server's process, nodes and proxies by number, sessions.

pub(crate) mod attackers;
pub(crate) mod cpu;
pub(crate) mod memory;
pub(crate) mod neighbour;
pub(crate) mod role;
pub(crate) mod watchers;
pub(crate) mod wire;

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use nodetracker_proto::v1::session_service_client::SessionServiceClient;
use nodetracker_proto::v1::{self, SessionRefusal};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use uuid::Uuid;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// Runs a future, and the local tasks that it spawns, on this thread.
pub(crate) fn run<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

/// Messages of a session, or batches of a connection, that wait for their answers.
pub(crate) const PIPELINE: usize = 4;

/// The flag of the server's keep-alive interval.
pub(crate) const KEEP_ALIVE: &str = "--proxy-keep-alive-interval";

/// The server under load, on a free port of the loopback interface; killed when dropped.
pub(crate) struct Server {
    child: Child,
    /// `host:port`
    pub(crate) addr: String,
}

impl Server {
    pub(crate) fn start(command: &Path, args: &[&str]) -> Result<Self, Failure> {
        Self::start_limited(command, args, None)
    }

    /// Starts a server whose address space is limited, as by `ulimit -v`, and that has enough file descriptors for the
    /// attackers.
    pub(crate) fn start_limited(command: &Path, args: &[&str], megabytes: Option<u64>) -> Result<Self, Failure> {
        let limit = megabytes.map_or_else(String::new, |megabytes| format!("ulimit -v {}; ", megabytes * 1024));
        let keep_alive: &[&str] = match args.contains(&KEEP_ALIVE) {
            true => &[],
            false => &[KEEP_ALIVE, "1h"],
        };
        let mut child = Command::new("sh")
            .args(["-c", &format!("{limit}ulimit -n 20000; exec \"$0\" \"$@\"")])
            .arg(command)
            .args(["serve", "--listen-addr", "127.0.0.1:0"])
            .args(keep_alive)
            .args(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut line = String::new();
        let stdout = child.stdout.take().ok_or("no stdout")?;
        BufReader::new(stdout).read_line(&mut line)?;
        let addr = line.trim_end().strip_prefix("listening on ").map(str::to_owned);
        let server = Self {
            child,
            addr: addr.clone().unwrap_or_default(),
        };
        // A server that did not start is reaped all the same.
        addr.map(|_| server).ok_or_else(|| "the server did not start".into())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the exit status of the server, or `None` if the server runs.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>, Failure> {
        Ok(self.child.try_wait()?)
    }

    /// Stops it by SIGTERM, and waits until it has ended.
    pub(crate) fn stop(mut self) -> Result<(), Failure> {
        let killed = Command::new("kill").arg(self.pid().to_string()).status()?;
        let ended = self.child.wait()?;
        if killed.success() && ended.success() {
            Ok(())
        } else {
            Err(format!("the server did not stop well: {ended}").into())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn node(number: u32) -> Uuid {
    // Any numbers that are spread evenly.
    let mixed = |salt: u64| {
        (u64::from(number) ^ salt)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            ^ salt
    };
    Uuid::from_u64_pair(mixed(0x0123_4567_89ab_cdef), mixed(0xfedc_ba98_7654_3210))
}

pub(crate) fn node_ids(nodes: impl Iterator<Item = Uuid>) -> v1::NodeIds {
    v1::NodeIds {
        uuids: nodes.flat_map(Uuid::into_bytes).collect(),
        names: Vec::new(),
    }
}

pub(crate) fn proxy(number: u32) -> v1::Proxy {
    v1::Proxy {
        proxy_id: Uuid::from_u64_pair(7, number.into()).to_string(),
        cluster_name: "cluster".into(),
        addr: format!("10.0.0.{}:3080", number % 250 + 1),
    }
}

/// One proxy's session, with the handles of its nodes.
pub(crate) struct Session {
    requests: mpsc::Sender<v1::SessionRequest>,
    answers: Streaming<v1::SessionResponse>,
    limits: v1::SessionLimits,
    handles: Vec<u8>,
}

impl Session {
    pub(crate) async fn begin(channel: Channel, number: u32) -> Result<Self, Failure> {
        let (requests, sent) = mpsc::channel(PIPELINE);
        let answers = SessionServiceClient::new(channel)
            .session(ReceiverStream::new(sent))
            .await?;
        let mut session = Self {
            requests,
            answers: answers.into_inner(),
            limits: v1::SessionLimits::default(),
            handles: Vec::new(),
        };
        let hello = v1::SessionHello {
            proxy: Some(proxy(number)),
            incarnation: 1,
            ..v1::SessionHello::default()
        };
        session.send(Request::Hello(hello)).await?;
        match session.answer().await? {
            Response::Welcome(welcome) => session.limits = welcome.limits.ok_or("no limits")?,
            other => return Err(format!("unexpected: {other:?}").into()),
        }
        Ok(session)
    }

    async fn send(&mut self, request: Request) -> Result<(), Failure> {
        let request = v1::SessionRequest {
            sequence: 0,
            request: Some(request),
        };
        Ok(self.requests.send(request).await?)
    }

    async fn answer(&mut self) -> Result<Response, Failure> {
        loop {
            let answer = self.answers.message().await?.ok_or("the session ended")?;
            match answer.response.ok_or("an empty answer")? {
                Response::KeepAlive(_) => {}
                response => return Ok(response),
            }
        }
    }

    pub(crate) async fn announce(&mut self, nodes: &[Uuid]) -> Result<(), Failure> {
        for nodes in nodes.chunks(self.limits.max_nodes as usize) {
            let nodes = Some(node_ids(nodes.iter().copied()));
            self.send(Request::NodesUp(v1::SessionNodesUp { nodes })).await?;
            match self.answer().await? {
                Response::Handles(handles) if handles.refusal() == SessionRefusal::Unspecified => {
                    self.handles.extend(handles.handles);
                }
                other => return Err(format!("unexpected: {other:?}").into()),
            }
        }
        Ok(())
    }

    /// Reports that the tunnels of these nodes are gone.
    pub(crate) async fn withdraw(&mut self, nodes: &[Uuid]) -> Result<(), Failure> {
        for nodes in nodes.chunks(self.limits.max_nodes as usize) {
            let nodes = Some(node_ids(nodes.iter().copied()));
            self.send(Request::NodesDown(v1::SessionNodesDown { nodes })).await?;
            self.acked().await?;
        }
        self.handles.clear();
        Ok(())
    }

    /// Refreshes every route `rounds` times.
    pub(crate) async fn beat(mut self, rounds: u32) -> Result<(), Failure> {
        let messages: Vec<v1::SessionHeartbeat> = self
            .handles
            .chunks(8 * self.limits.max_handles as usize)
            .map(|handles| v1::SessionHeartbeat {
                handles: handles.to_vec().into(),
            })
            .collect();
        let mut waiting = 0;
        for _ in 0..rounds {
            for message in &messages {
                if waiting == PIPELINE {
                    self.acked().await?;
                    waiting -= 1;
                }
                self.send(Request::Heartbeat(message.clone())).await?;
                waiting += 1;
            }
        }
        for _ in 0..waiting {
            self.acked().await?;
        }
        Ok(())
    }

    /// Refreshes `rate` routes a second for a while, in some ten messages a second, or more if the messages are full.
    pub(crate) async fn beat_at(&mut self, rate: f64, time: Duration) -> Result<(), Failure> {
        let size = 8 * (rate / 10.0).clamp(1.0, self.limits.max_handles.into()) as usize;
        let messages: Vec<v1::SessionHeartbeat> = self
            .handles
            .chunks(size)
            .map(|handles| v1::SessionHeartbeat {
                handles: handles.to_vec().into(),
            })
            .collect();
        let begin = Instant::now();
        let (mut due, mut sent) = (Duration::ZERO, messages.iter().cycle());
        while due < time
            && let Some(message) = sent.next()
        {
            sleep_until(begin + due).await;
            self.send(Request::Heartbeat(message.clone())).await?;
            self.acked().await?;
            due += Duration::from_secs_f64(message.handles.len() as f64 / 8.0 / rate);
        }
        sleep_until(begin + time).await;
        Ok(())
    }

    async fn acked(&mut self) -> Result<(), Failure> {
        match self.answer().await? {
            Response::Ack(ack) if ack.gone_handles.is_empty() => Ok(()),
            other => Err(format!("unexpected: {other:?}").into()),
        }
    }
}

pub(crate) async fn all(mut tasks: JoinSet<Result<(), Failure>>) -> Result<(), Failure> {
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}
