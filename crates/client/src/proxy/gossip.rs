//! The task that learns which proxies there are, and names them to agents.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use nodetracker::{Proxy, ProxyDetails};
use nodetracker_proto::peer::v1::Presence;
use nodetracker_proto::v1;
use nodetracker_proto::v1::admin_service_client::AdminServiceClient;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
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

/// The listener names a proxy that begins to answer after this part of the interval, and after a second at the latest.
/// So many answers at the same time make one list. If a proxy drains, the listener stops naming the proxy at once.
const NAME_PART: u32 = 20;
const MAX_NAME_DELAY: Duration = Duration::from_secs(1);

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
    trackers: Arc<[(TrackerAddr, Channel)]>,
    dialer: Dialer,
    announcer: Announcer,
    heard: mpsc::Receiver<Presence>,
    interval: Duration,
    discovery: Discovery,
    named: Vec<ProxyInfo>,
    /// When to name the proxies again, if they may have changed.
    name_at: Option<Instant>,
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
        let interval = interval.clamp(*INTERVAL.start(), *INTERVAL.end());
        Self {
            trackers: trackers.into(),
            dialer,
            announcer,
            heard,
            interval,
            discovery: Discovery::new(own, interval),
            named: Vec::new(),
            name_at: None,
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

    /// Waits for the next round.
    async fn wait(&mut self) {
        let next = sleep(self.discovery.next_wait(fastrand::f64()));
        self.during(next).await;
    }

    /// Waits for a future. Meanwhile, takes presences, and names the proxies.
    async fn during<T>(&mut self, future: impl Future<Output = T>) -> T {
        tokio::pin!(future);
        loop {
            let name_at = self.name_at;
            tokio::select! {
                result = &mut future => return result,
                // `announcer` has a sender.
                Some(presence) = self.heard.recv() => self.take(presence),
                () = sleep_until(name_at.unwrap_or_else(Instant::now)), if name_at.is_some() => self.name(),
            }
        }
    }

    /// Asks the trackers, and pings the proxies.
    async fn round(&mut self) {
        let trackers = Arc::clone(&self.trackers);
        let lists = trackers.iter().map(async |(addr, channel)| {
            let late = |_| Err(Status::deadline_exceeded(format!("no list within {LIST_LIMIT:?}")));
            let listed = timeout(LIST_LIMIT, list(channel)).await.unwrap_or_else(late);
            listed.map_err(|status| (addr, status))
        });
        let lists = self.during(join_all(lists)).await;
        let (lists, errors): (Vec<_>, Vec<_>) = lists.into_iter().partition(Result::is_ok);
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
        // A longer round would outlast the presences of the proxies that answer.
        let limit = self.interval;
        let pings = self.discovery.to_ping().into_iter().map(|peer| {
            let presence = presence.clone();
            async move {
                let answer = timeout(limit, ping(dialer, &peer, presence)).await;
                let answer = answer.unwrap_or_else(|late| Err(late.into()));
                answer.inspect_err(|error| debug!("no presence of {} at {}: {error}", peer.id(), peer.addr()))
            }
        });
        let mut answers = stream::iter(pings).buffer_unordered(MAX_PINGS);
        while let Some(answer) = self.during(answers.next()).await {
            answer.into_iter().for_each(|presence| self.take(presence));
        }
        self.name();
    }

    fn take(&mut self, presence: Presence) {
        let is_draining = presence.is_draining;
        self.discovery.heard(now(), presence);
        if is_draining {
            return self.name();
        }
        let delay = (self.interval / NAME_PART).min(MAX_NAME_DELAY);
        self.name_at.get_or_insert_with(|| Instant::now() + delay);
    }

    /// Names the proxies to agents, if they have changed.
    fn name(&mut self) {
        self.name_at = None;
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

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use nodetracker::RouteTable;

    use super::*;
    use crate::listener::ListenerConfig;
    use crate::proxy::dialer::DialerConfig;
    use crate::transport::{Transport, Tunnel};

    /// Reaches no proxy, and reports no failure.
    struct Silent;

    #[async_trait]
    impl Transport for Silent {
        async fn connect(&self, _: &str) -> io::Result<Arc<dyn Tunnel>> {
            std::future::pending().await
        }
    }

    fn info(id: &str) -> ProxyInfo {
        ProxyInfo {
            proxy_id: id.into(),
            incarnation: 1,
            version: String::new(),
        }
    }

    fn presence(id: &str, is_draining: bool) -> Presence {
        Presence {
            proxy: Some(info(id)),
            cluster_name: "main".into(),
            is_draining,
        }
    }

    fn details(id: &str) -> ProxyDetails {
        let proxy = Proxy {
            id,
            cluster_name: "main",
            addr: "proxy:1",
        };
        proxy.into()
    }

    /// A proxy whose tracker has listed a proxy that does not answer.
    fn gossip(interval: Duration) -> Gossip {
        let agents = AgentListener::new(ListenerConfig::new(info("a")), ()).unwrap();
        let tracker = Arc::new(RouteTable::new());
        let dialer = Dialer::new(DialerConfig::new("a"), agents.clone(), tracker, Silent);
        let mut gossip = Gossip::new(details("a"), interval, Vec::new(), agents, dialer);
        gossip.discovery.listed(now(), vec![details("silent")]);
        gossip
    }

    fn named(agents: &AgentListener) -> Vec<String> {
        let mut named: Vec<_> = agents.proxies().into_iter().map(|proxy| proxy.proxy_id).collect();
        named.sort();
        named
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_is_noticed_while_another_proxy_does_not_answer() {
        let gossip = gossip(Duration::from_secs(20));
        let (agents, announcer) = (gossip.announcer.agents.clone(), gossip.announcer().clone());
        let task = tokio::spawn(gossip.run());
        announcer.heard(presence("b", false));
        sleep(MAX_NAME_DELAY + Duration::from_millis(1)).await;
        assert_eq!(named(&agents), ["a", "b"]);
        announcer.heard(presence("b", true));
        sleep(Duration::from_millis(1)).await;
        assert_eq!(named(&agents), ["a"]);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn presences_do_not_expire_during_a_round() {
        let interval = Duration::from_millis(500);
        let gossip = gossip(interval);
        let (agents, announcer) = (gossip.announcer.agents.clone(), gossip.announcer().clone());
        let task = tokio::spawn(gossip.run());
        for _ in 0..20 {
            announcer.heard(presence("b", false));
            sleep(interval).await;
            assert_eq!(named(&agents), ["a", "b"]);
        }
        // And after three intervals of silence, the proxy is not named any more.
        sleep(6 * interval).await;
        assert_eq!(named(&agents), ["a"]);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn answers_at_the_same_time_make_one_list() {
        let mut gossip = gossip(Duration::from_secs(20));
        let agents = gossip.announcer.agents.clone();
        for number in 0..50 {
            gossip.take(presence(&format!("b-{number}"), false));
            assert_eq!(named(&agents), ["a"]);
        }
        gossip.during(sleep(MAX_NAME_DELAY + Duration::from_millis(1))).await;
        assert_eq!(named(&agents).len(), 51);
        assert_eq!(gossip.name_at, None);
    }
}
