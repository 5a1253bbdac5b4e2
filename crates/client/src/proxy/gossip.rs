//! The task that learns which proxies there are, and names them to agents.

use std::io;
use std::ops::RangeInclusive;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use nodetracker::{Proxy, ProxyDetails};
use nodetracker_proto::peer::v1::Presence;
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::Status;
use tracing::{debug, warn};

use crate::clock::now;
use crate::connect::addr::TrackerAddr;
use crate::connect::channel::Channel;
use crate::control::proto::ProxyInfo;
use crate::listener::AgentListener;
use crate::proxy::dialer::Dialer;
use crate::proxy::discovery::Discovery;

const INTERVAL: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// The longest time for a tracker's list.
const LIST_LIMIT: Duration = Duration::from_secs(5);

/// How many proxies are pinged at a time.
const MAX_PINGS: usize = 64;

/// How many presences of pings may wait. Further presences are dropped; their proxies ping again.
const MAX_WAITING: usize = 64;

/// Announces this proxy to its peers, and passes their presences to the task.
#[derive(Clone)]
pub(super) struct Announcer {
    agents: AgentListener,
    cluster_name: String,
    heard: mpsc::Sender<Presence>,
}

impl Announcer {
    /// Returns the presence of this proxy.
    pub(super) fn presence(&self) -> Presence {
        Presence {
            proxy: Some(self.agents.proxy()),
            cluster_name: self.cluster_name.clone(),
            is_draining: self.agents.is_draining(),
        }
    }

    /// Takes the presence of a peer.
    pub(super) fn heard(&self, presence: Presence) {
        let _ = self.heard.try_send(presence);
    }
}

/// The task.
pub(super) struct Gossip {
    trackers: Vec<(TrackerAddr, Channel)>,
    dialer: Dialer,
    announcer: Announcer,
    heard: mpsc::Receiver<Presence>,
    discovery: Discovery,
    named: Vec<ProxyInfo>,
    /// Whether a tracker has listed the proxies in the last round.
    is_listed: bool,
}

impl Gossip {
    pub(super) fn new(
        own: ProxyDetails,
        interval: Duration,
        trackers: Vec<(TrackerAddr, Channel)>,
        agents: AgentListener,
        dialer: Dialer,
    ) -> Self {
        let (sender, heard) = mpsc::channel(MAX_WAITING);
        let announcer = Announcer {
            agents,
            cluster_name: own.cluster_name().to_owned(),
            heard: sender,
        };
        Self {
            trackers,
            dialer,
            announcer,
            heard,
            discovery: Discovery::new(own, interval.clamp(*INTERVAL.start(), *INTERVAL.end())),
            named: Vec::new(),
            is_listed: true,
        }
    }

    pub(super) fn announcer(&self) -> &Announcer {
        &self.announcer
    }

    pub(super) async fn run(mut self) {
        let agents = self.announcer.agents.clone();
        loop {
            let is_draining = agents.is_draining();
            let begins_or_ends_drain = agents.until_draining_is(!is_draining);
            let rounds = async {
                loop {
                    self.round().await;
                    self.wait().await;
                }
            };
            // A drain begins a round at once, so that no list of a peer sends agents to this proxy.
            tokio::select! {
                () = begins_or_ends_drain => {}
                () = rounds => {}
            }
        }
    }

    /// Waits for the next round, and takes presences.
    async fn wait(&mut self) {
        let next = sleep(self.discovery.next_wait(fastrand::f64()));
        tokio::pin!(next);
        loop {
            tokio::select! {
                () = &mut next => return,
                // `announcer` has a sender.
                Some(presence) = self.heard.recv() => self.take(presence),
            }
        }
    }

    /// Asks the trackers, and pings the proxies.
    async fn round(&mut self) {
        let lists = self.trackers.iter().map(async |(addr, channel)| {
            let late = |_| Err(Status::deadline_exceeded(format!("no list within {LIST_LIMIT:?}")));
            let listed = timeout(LIST_LIMIT, list(channel)).await.unwrap_or_else(late);
            listed.map_err(|status| (addr, status))
        });
        let (lists, errors): (Vec<_>, Vec<_>) = join_all(lists).await.into_iter().partition(Result::is_ok);
        let has_list = !lists.is_empty();
        for (addr, status) in errors.into_iter().filter_map(Result::err) {
            // The proxies that are known already still ping each other.
            match self.is_listed && !has_list {
                true => warn!("{addr} does not list the proxies: {status}"),
                false => debug!("{addr} does not list the proxies: {status}"),
            }
        }
        self.is_listed = has_list;
        if has_list {
            let proxies = lists.into_iter().flatten().flatten().collect();
            self.discovery.listed(now(), proxies);
        }
        let (dialer, presence) = (&self.dialer.clone(), self.announcer.presence());
        let pings = self.discovery.to_ping().into_iter().map(|peer| {
            let presence = presence.clone();
            async move {
                let answer = ping(dialer, &peer, presence).await;
                answer.inspect_err(|error| debug!("no presence of {} at {}: {error}", peer.id(), peer.addr()))
            }
        });
        let mut answers = stream::iter(pings).buffer_unordered(MAX_PINGS);
        while let Some(answer) = answers.next().await {
            answer.into_iter().for_each(|presence| self.take(presence));
        }
        self.name();
    }

    fn take(&mut self, presence: Presence) {
        self.discovery.heard(now(), presence);
        self.name();
    }

    /// Names the proxies to agents, if they have changed.
    fn name(&mut self) {
        let present = self.discovery.present(now());
        if present == self.named {
            return;
        }
        self.named.clone_from(&present);
        if let Err(error) = self.announcer.agents.set_proxies(present) {
            warn!("agents keep the former list of proxies: {error}");
        }
    }
}

/// Returns the proxies that a tracker lists, page by page.
async fn list(channel: &Channel) -> Result<Vec<ProxyDetails>, Status> {
    let mut client = AdminServiceClient::new(channel.clone());
    let mut request = v1::ListProxiesRequest::default();
    let mut all = Vec::new();
    loop {
        let page = client.list_proxies(request.clone()).await?.into_inner();
        all.extend(page.proxies.iter().map(|proxy| {
            ProxyDetails::from(Proxy {
                id: &proxy.proxy_id,
                cluster_name: &proxy.cluster_name,
                addr: &proxy.addr,
            })
        }));
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

/// Returns the presence of a peer. Fails if another proxy answers.
async fn ping(dialer: &Dialer, peer: &ProxyDetails, presence: Presence) -> io::Result<Presence> {
    let answer = dialer.ping(peer, presence).await?;
    match &answer.proxy {
        Some(proxy) if proxy.proxy_id == peer.id() => Ok(answer),
        other => Err(io::Error::other(format!("{other:?} answers"))),
    }
}
