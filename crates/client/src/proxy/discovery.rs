//! Which proxies this proxy names to its agents: the state machine, without I/O.
//!
//! Trackers list the proxies of the fleet, and each proxy sends its presence itself. A tracker still lists a dead proxy
//! until the proxy's routes expire, and does not list a proxy without routes. So this proxy pings the proxies that the
//! trackers list, and names a proxy to agents only after a recent presence. A proxy that no tracker lists yet pings the
//! listed proxies, and the pings announce it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use nodetracker::ProxyDetails;
use nodetracker_proto::peer::v1::Presence;

use crate::clock::after;
use crate::control::proto::ProxyInfo;
use crate::control::{MAX_PROXIES, MAX_TEXT, is_id};

/// A proxy that was silent for this many intervals is gone: it may miss two pings.
const SILENT_INTERVALS: u32 = 3;

/// The first wait is the interval divided by 2 to the power of this number, and the waits grow. So the proxies of a
/// fleet that starts find each other soon.
const FAST_ROUNDS: u32 = 5;

/// Decides which proxies to ping, and which to name to agents.
#[derive(Debug)]
pub(super) struct Discovery {
    own: ProxyDetails,
    interval: Duration,
    rounds: u32,
    peers: BTreeMap<String, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    /// The address in the trackers' latest list.
    listed: Option<ProxyDetails>,
    /// The latest presence, and when it came.
    heard: Option<(Instant, Presence)>,
}

impl Discovery {
    /// A proxy that knows no other proxy.
    pub(super) fn new(own: ProxyDetails, interval: Duration) -> Self {
        Self {
            own,
            interval,
            rounds: 0,
            peers: BTreeMap::new(),
        }
    }

    /// Returns how long to wait before the next round. `random` is from 0 to 1.
    pub(super) fn next_wait(&mut self, random: f64) -> Duration {
        let shift = FAST_ROUNDS.saturating_sub(self.rounds);
        self.rounds = self.rounds.saturating_add(1);
        (self.interval / 2_u32.pow(shift)).mul_f64(0.5 + random / 2.0)
    }

    /// Takes the proxies that the trackers list, of all clusters. If there are more proxies than agents accept, takes
    /// the proxies whose IDs follow the ID of this proxy. So the lists of all proxies together name every proxy.
    pub(super) fn listed(&mut self, now: Instant, proxies: Vec<ProxyDetails>) {
        self.peers.values_mut().for_each(|peer| peer.listed = None);
        let of_cluster = proxies
            .into_iter()
            .filter(|proxy| proxy.cluster_name() == self.own.cluster_name() && proxy.id() != self.own.id());
        let mut of_cluster: Vec<_> = of_cluster.collect();
        of_cluster.sort_by_cached_key(|proxy| (proxy.id() < self.own.id(), proxy.id().to_owned()));
        of_cluster.dedup_by(|one, other| one.id() == other.id());
        for proxy in of_cluster.into_iter().take(MAX_PROXIES - 1) {
            let id = proxy.id().to_owned();
            self.peers.entry(id).or_default().listed = Some(proxy);
        }
        self.forget_silent(now);
    }

    /// Takes the presence of another proxy. An older incarnation does not replace a later incarnation.
    pub(super) fn heard(&mut self, now: Instant, presence: Presence) {
        self.forget_silent(now);
        let Some(proxy) = &presence.proxy else { return };
        let id = &proxy.proxy_id;
        let is_valid = is_id(id) && proxy.version.len() <= MAX_TEXT;
        let is_peer = presence.cluster_name == self.own.cluster_name() && id != self.own.id();
        let has_room = self.peers.len() < 2 * MAX_PROXIES || self.peers.contains_key(id);
        if !is_valid || !is_peer || !has_room {
            return;
        }
        let peer = self.peers.entry(id.clone()).or_default();
        let latest = peer.heard.as_ref().and_then(|(_, presence)| presence.proxy.as_ref());
        if latest.is_none_or(|latest| latest.incarnation <= proxy.incarnation) {
            peer.heard = Some((now, presence));
        }
    }

    /// Forgets presences that are too old. So a proxy whose clock was set back, and whose incarnation is less than
    /// before, counts again later.
    fn forget_silent(&mut self, now: Instant) {
        let silence = self.interval.saturating_mul(SILENT_INTERVALS);
        self.peers.retain(|_, peer| {
            peer.heard.take_if(|(heard, _)| after(*heard, silence) <= now);
            peer.listed.is_some() || peer.heard.is_some()
        });
    }

    /// Returns the proxies to ping: those that the trackers list.
    pub(super) fn to_ping(&self) -> Vec<ProxyDetails> {
        self.peers.values().filter_map(|peer| peer.listed.clone()).collect()
    }

    /// Returns the other proxies for the agents' list.
    pub(super) fn present(&mut self, now: Instant) -> Vec<ProxyInfo> {
        self.forget_silent(now);
        let heard = self.peers.values().filter_map(|peer| peer.heard.as_ref());
        let present = heard.filter(|(_, presence)| !presence.is_draining);
        let proxies = present.filter_map(|(_, presence)| presence.proxy.clone());
        proxies.take(MAX_PROXIES - 1).collect()
    }
}

#[cfg(test)]
mod tests {
    use nodetracker::Proxy;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(20);

    fn details(id: &str, cluster_name: &str) -> ProxyDetails {
        let addr = "10.0.0.1:3080";
        Proxy { id, cluster_name, addr }.into()
    }

    fn discovery(id: &str) -> Discovery {
        Discovery::new(details(id, "main"), INTERVAL)
    }

    fn presence(id: &str, incarnation: u64) -> Presence {
        let proxy = ProxyInfo {
            proxy_id: id.into(),
            incarnation,
            version: String::new(),
        };
        Presence {
            proxy: Some(proxy),
            cluster_name: "main".into(),
            is_draining: false,
        }
    }

    fn draining(id: &str, incarnation: u64) -> Presence {
        Presence {
            is_draining: true,
            ..presence(id, incarnation)
        }
    }

    fn present(discovery: &mut Discovery, now: Instant) -> Vec<String> {
        let present = discovery.present(now).into_iter();
        present.map(|proxy| proxy.proxy_id).collect()
    }

    fn to_ping(discovery: &Discovery) -> Vec<String> {
        let proxies = discovery.to_ping().into_iter();
        proxies.map(|proxy| proxy.id().to_owned()).collect()
    }

    #[test]
    fn a_proxy_that_answers_is_named_until_it_is_silent() {
        let now = Instant::now();
        let mut discovery = discovery("a");
        discovery.listed(now, ["a", "b", "c"].map(|id| details(id, "main")).into());
        assert_eq!(to_ping(&discovery), ["b", "c"]);
        assert_eq!(present(&mut discovery, now), [""; 0], "no proxy has answered");
        discovery.heard(now, presence("b", 1));
        discovery.heard(now, presence("c", 1));
        assert_eq!(present(&mut discovery, now), ["b", "c"]);
        discovery.heard(now + 2 * INTERVAL, presence("c", 1));
        assert_eq!(present(&mut discovery, now + 3 * INTERVAL), ["c"]);
        assert_eq!(to_ping(&discovery), ["b", "c"], "a tracker still lists the proxy");
    }

    #[test]
    fn a_proxy_that_no_tracker_lists_is_named_while_it_pings() {
        let now = Instant::now();
        let mut discovery = discovery("a");
        discovery.heard(now, presence("b", 1));
        discovery.listed(now, Vec::new());
        assert_eq!(present(&mut discovery, now), ["b"]);
        assert_eq!(to_ping(&discovery), [""; 0]);
        assert_eq!(present(&mut discovery, now + 3 * INTERVAL), [""; 0]);
        assert!(discovery.peers.is_empty());
    }

    #[test]
    fn a_proxy_that_drains_is_left_out_until_it_stops_draining() {
        let now = Instant::now();
        let mut discovery = discovery("a");
        discovery.heard(now, presence("b", 2));
        discovery.heard(now, draining("b", 2));
        assert_eq!(present(&mut discovery, now), [""; 0]);
        discovery.heard(now, presence("b", 2));
        assert_eq!(present(&mut discovery, now), ["b"]);
        discovery.heard(now, draining("b", 1));
        assert_eq!(
            present(&mut discovery, now),
            ["b"],
            "the message is of an older incarnation"
        );
        discovery.heard(now, draining("b", 2));
        discovery.heard(now, presence("b", 3));
        assert_eq!(present(&mut discovery, now), ["b"], "the proxy has started again");
    }

    #[test]
    fn a_lesser_incarnation_counts_after_the_silence_of_the_greater() {
        let now = Instant::now();
        let mut discovery = discovery("a");
        discovery.listed(now, vec![details("b", "main")]);
        discovery.heard(now, presence("b", 2));
        discovery.heard(now + 3 * INTERVAL, presence("b", 1));
        assert_eq!(discovery.present(now + 3 * INTERVAL)[0].incarnation, 1);
    }

    #[test]
    fn other_clusters_and_this_proxy_are_left_out() {
        let now = Instant::now();
        let mut discovery = discovery("a");
        discovery.listed(now, vec![details("a", "main"), details("b", "leaf")]);
        assert_eq!(to_ping(&discovery), [""; 0]);
        discovery.heard(now, presence("a", 9));
        let leaf = Presence {
            cluster_name: "leaf".into(),
            ..presence("b", 1)
        };
        for bad in [
            leaf,
            presence("", 1),
            presence(&"x".repeat(256), 1),
            Presence::default(),
        ] {
            discovery.heard(now, bad);
        }
        assert!(discovery.peers.is_empty());
    }

    #[test]
    fn a_large_fleet_is_named_by_all_its_proxies_together() {
        let now = Instant::now();
        let ids: Vec<_> = (0..2 * MAX_PROXIES).map(|n| format!("proxy-{n:04}")).collect();
        let mut discovery = discovery(&ids[MAX_PROXIES + 1]);
        discovery.listed(now, ids.iter().map(|id| details(id, "main")).collect());
        let pinged = to_ping(&discovery);
        assert_eq!(pinged.len(), MAX_PROXIES - 1);
        assert!(pinged.contains(&ids[0]) && pinged.contains(ids.last().unwrap()));
        assert!(!pinged.contains(&ids[1]) && !pinged.contains(&ids[MAX_PROXIES]));
        for n in 0..3 * MAX_PROXIES {
            discovery.heard(now, presence(&format!("other-{n:04}"), 1));
        }
        assert!(discovery.peers.len() <= 2 * MAX_PROXIES);
        assert_eq!(present(&mut discovery, now).len(), MAX_PROXIES - 1);
    }

    #[test]
    fn the_first_rounds_come_faster() {
        let mut discovery = discovery("a");
        let waits = [0.0; 7].map(|random| discovery.next_wait(random));
        let expected = [32, 16, 8, 4, 2, 1, 1].map(|part| INTERVAL / part / 2);
        assert_eq!(waits, expected);
        assert_eq!(discovery.next_wait(1.0), INTERVAL);
    }
}
