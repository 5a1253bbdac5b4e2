//! The proxies behind one load balancer: which proxies are known, which have a tunnel of this pool, and how many
//! tunnels are wanted.
//!
//! A *lease* is the right to dial. A *claim* makes a proxy the proxy of one tunnel. The load balancer chooses the
//! proxy, so a lease becomes a claim only when a proxy has sent its ID. A second tunnel to a claimed proxy is dropped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::control::{MAX_PROXIES, duration, is_id, proto};
use crate::pool::TunnelId;

/// The bounds of how long a list of proxies is valid.
const LIST_VALID: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));

/// How long a proxy does not count after the window of its reconnect signal. After this time, the proxy may have
/// recovered.
pub(super) const AVOID: Duration = Duration::from_secs(60);

/// The proxies of one target.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    known: BTreeMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    incarnation: u64,
    /// Until when a list that names the proxy is valid. A claimed proxy stays known.
    listed_until: Instant,
    /// Set by a reconnect signal.
    avoid_until: Option<Instant>,
    claim: Option<(TunnelId, u64)>,
}

/// The answer to a tunnel that asks for a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// The proxy is this tunnel's.
    Granted,
    /// The proxy is this tunnel's. It has started again, so its older tunnel is dead.
    Replaces(TunnelId),
    /// The proxy is another tunnel's.
    Taken,
    /// The pool has tunnels to the maximum of proxies.
    NoRoom,
}

impl Proxies {
    /// Records a list of proxies. Returns how many proxies were ignored: proxies with bad IDs, and proxies beyond the
    /// maximum.
    pub(super) fn listed(&mut self, now: Instant, list: &proto::ProxyList) -> u64 {
        let until = now + duration(list.valid_for.as_ref(), LIST_VALID.0, LIST_VALID.1);
        let mut ignored = 0;
        for proxy in &list.proxies {
            let has_room = self.known.len() < MAX_PROXIES || self.known.contains_key(&proxy.proxy_id);
            if !is_id(&proxy.proxy_id) || !has_room {
                ignored += 1;
                continue;
            }
            let known = self.entry(now, proxy);
            known.listed_until = known.listed_until.max(until);
            if proxy.incarnation > known.incarnation {
                known.incarnation = proxy.incarnation;
                known.avoid_until = None;
            }
        }
        ignored
    }

    fn entry(&mut self, now: Instant, proxy: &proto::ProxyInfo) -> &mut Known {
        self.known.entry(proxy.proxy_id.clone()).or_insert(Known {
            incarnation: proxy.incarnation,
            listed_until: now,
            avoid_until: None,
            claim: None,
        })
    }

    /// Claims a proxy that has answered a tunnel. The answer is newer than any list, so its incarnation counts.
    pub(super) fn claim(&mut self, now: Instant, proxy: &proto::ProxyInfo, tunnel: TunnelId) -> Claim {
        if !self.make_room(&proxy.proxy_id) {
            return Claim::NoRoom;
        }
        let known = self.entry(now, proxy);
        let claim = match known.claim {
            Some((_, incarnation)) if incarnation >= proxy.incarnation => return Claim::Taken,
            Some((older, _)) => Claim::Replaces(older),
            None => Claim::Granted,
        };
        known.claim = Some((tunnel, proxy.incarnation));
        known.incarnation = proxy.incarnation;
        known.avoid_until = None;
        claim
    }

    /// Forgets a proxy without a tunnel if there is no room for this proxy. A fleet may have more proxies than a pool
    /// remembers, and any of them may answer.
    fn make_room(&mut self, id: &str) -> bool {
        if self.known.len() < MAX_PROXIES || self.known.contains_key(id) {
            return true;
        }
        let unclaimed = self.known.iter().filter(|(_, known)| known.claim.is_none());
        let first = unclaimed
            .min_by_key(|(_, known)| known.listed_until)
            .map(|(id, _)| id.clone());
        first.is_some_and(|first| self.known.remove(&first).is_some())
    }

    /// Releases the claim of a tunnel, if the tunnel has a claim.
    pub(super) fn release(&mut self, tunnel: TunnelId) {
        for known in self.known.values_mut() {
            known.claim.take_if(|(by, _)| *by == tunnel);
        }
    }

    /// Records that the proxy of a tunnel has sent a reconnect signal with this window.
    pub(super) fn avoid(&mut self, now: Instant, tunnel: TunnelId, window: Duration) {
        for known in self.known.values_mut() {
            if known
                .claim
                .is_some_and(|(by, incarnation)| by == tunnel && incarnation == known.incarnation)
            {
                known.avoid_until = Some(now + window + AVOID);
            }
        }
    }

    /// Forgets proxies that no list names any more, and reconnect signals after their time. Returns the tunnels to the
    /// proxies whose signals are forgotten: they may stay.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<TunnelId> {
        self.known
            .retain(|_, known| known.claim.is_some() || known.listed_until > now);
        let mut recovered = Vec::new();
        for known in self.known.values_mut() {
            if known.avoid_until.take_if(|until| *until <= now).is_some() {
                recovered.extend(known.claim.map(|(tunnel, _)| tunnel));
            }
        }
        recovered
    }

    /// When [`Proxies::expire`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        let times = self.known.values().flat_map(|known| {
            let listed = known.claim.is_none().then_some(known.listed_until);
            [listed, known.avoid_until]
        });
        times.flatten().min()
    }

    /// Returns how many tunnels are wanted: `connection_count`, but at most a tunnel to each known proxy. If
    /// `connection_count` is 0, a tunnel to each known proxy. At least one tunnel, because tunnels find the proxies.
    /// Proxies with a reconnect signal do not count.
    pub(super) fn wanted(&self, connection_count: usize) -> usize {
        let count = if connection_count == 0 {
            usize::MAX
        } else {
            connection_count
        };
        count.min(self.usable()).max(1)
    }

    /// Returns the number of known proxies without a reconnect signal.
    pub(super) fn usable(&self) -> usize {
        self.known.values().filter(|known| known.avoid_until.is_none()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(id: &str, incarnation: u64) -> proto::ProxyInfo {
        proto::ProxyInfo {
            proxy_id: id.into(),
            incarnation,
            version: String::new(),
        }
    }

    fn list(ids: &[&str], seconds: i64) -> proto::ProxyList {
        proto::ProxyList {
            proxies: ids.iter().map(|id| proxy(id, 1)).collect(),
            valid_for: Some(prost_types::Duration { seconds, nanos: 0 }),
        }
    }

    #[test]
    fn a_proxy_has_one_tunnel() {
        let now = Instant::now();
        let mut proxies = Proxies::default();
        assert_eq!(proxies.claim(now, &proxy("a", 2), TunnelId(1)), Claim::Granted);
        assert_eq!(proxies.claim(now, &proxy("a", 2), TunnelId(2)), Claim::Taken);
        assert_eq!(proxies.claim(now, &proxy("a", 1), TunnelId(2)), Claim::Taken);
        assert_eq!(proxies.claim(now, &proxy("b", 2), TunnelId(2)), Claim::Granted);
        proxies.release(TunnelId(1));
        assert_eq!(proxies.claim(now, &proxy("a", 1), TunnelId(3)), Claim::Granted);
    }

    #[test]
    fn a_proxy_that_has_started_again_replaces_its_tunnel() {
        let now = Instant::now();
        let mut proxies = Proxies::default();
        assert_eq!(proxies.claim(now, &proxy("a", 1), TunnelId(1)), Claim::Granted);
        assert_eq!(
            proxies.claim(now, &proxy("a", 2), TunnelId(2)),
            Claim::Replaces(TunnelId(1))
        );
        proxies.release(TunnelId(1));
        assert_eq!(proxies.claim(now, &proxy("a", 2), TunnelId(3)), Claim::Taken);
    }

    #[test]
    fn wanted_is_bounded_by_the_known_proxies() {
        let now = Instant::now();
        let mut proxies = Proxies::default();
        assert_eq!([0, 1, 3].map(|count| proxies.wanted(count)), [1, 1, 1]);
        assert_eq!(proxies.listed(now, &list(&["a", "b"], 60)), 0);
        assert_eq!([0, 1, 3].map(|count| proxies.wanted(count)), [2, 1, 2]);
        proxies.claim(now, &proxy("a", 1), TunnelId(1));
        proxies.avoid(now, TunnelId(1), Duration::from_secs(5));
        assert_eq!([0, 1, 3].map(|count| proxies.wanted(count)), [1, 1, 1]);
    }

    #[test]
    fn a_proxy_that_no_list_names_expires_unless_it_has_a_tunnel() {
        let now = Instant::now();
        let mut proxies = Proxies::default();
        proxies.listed(now, &list(&["a", "b"], 60));
        proxies.listed(now, &list(&["b", "c"], 90));
        proxies.claim(now, &proxy("c", 1), TunnelId(1));
        for (seconds, known, next) in [(59, 3, Some(60)), (60, 2, Some(90)), (90, 1, None)] {
            let at = now + Duration::from_secs(seconds);
            proxies.expire(at);
            let next = next.map(|seconds| now + Duration::from_secs(seconds));
            assert_eq!(
                (proxies.known.len(), proxies.next_timeout()),
                (known, next),
                "after {seconds} s"
            );
        }
        proxies.release(TunnelId(1));
        proxies.expire(now + Duration::from_secs(90));
        assert_eq!(proxies.known.len(), 0);
    }

    #[test]
    fn a_reconnect_signal_is_forgotten_after_a_time_or_a_restart() {
        let now = Instant::now();
        let window = Duration::from_secs(5);
        let signalled = || {
            let mut proxies = Proxies::default();
            proxies.listed(now, &list(&["a", "b"], 3600));
            proxies.claim(now, &proxy("a", 1), TunnelId(1));
            proxies.avoid(now, TunnelId(1), window);
            assert_eq!(proxies.wanted(0), 1);
            proxies
        };
        let mut proxies = signalled();
        assert_eq!(proxies.expire(now + window), []);
        assert_eq!(proxies.expire(now + window + AVOID), [TunnelId(1)]);
        assert_eq!(proxies.wanted(0), 2);

        let mut proxies = signalled();
        let mut restarted = list(&[], 60);
        restarted.proxies.push(proxy("a", 2));
        proxies.listed(now, &restarted);
        assert_eq!(proxies.wanted(0), 2);
    }

    #[test]
    fn a_list_cannot_fill_the_memory_or_last_for_longer_than_an_hour() {
        let now = Instant::now();
        let mut proxies = Proxies::default();
        let names: Vec<_> = (0..2 * MAX_PROXIES).map(|n| format!("proxy-{n}")).collect();
        let mut ids: Vec<_> = names.iter().map(String::as_str).collect();
        let long = "x".repeat(256);
        ids.extend(["", "line\nbreak", &long]);
        assert_eq!(proxies.listed(now, &list(&ids, i64::MAX)), MAX_PROXIES as u64 + 3);
        assert_eq!(proxies.known.len(), MAX_PROXIES);
        assert_eq!(proxies.next_timeout(), Some(now + Duration::from_secs(3600)));
        proxies.listed(now, &list(&["proxy-0"], -1));
        assert_eq!(proxies.wanted(0), MAX_PROXIES);
    }

    #[test]
    fn a_proxy_that_no_list_names_has_room_unless_all_others_have_tunnels() {
        let now = Instant::now();
        let mut proxies = Proxies::default();
        let names: Vec<_> = (0..MAX_PROXIES).map(|n| format!("listed-{n}")).collect();
        let ids: Vec<_> = names.iter().map(String::as_str).collect();
        proxies.listed(now, &list(&ids[1..], 60));
        proxies.listed(now, &list(&ids[..1], 50));
        for number in 0..2 * MAX_PROXIES as u64 {
            let claim = proxies.claim(now, &proxy(&format!("other-{number}"), 1), TunnelId(number));
            let expected = match number < MAX_PROXIES as u64 {
                true => Claim::Granted,
                false => Claim::NoRoom,
            };
            assert_eq!(claim, expected, "{number}");
            assert_eq!(proxies.known.len(), MAX_PROXIES);
            assert!(!proxies.known.contains_key(&names[0]), "its list ends first");
        }
        assert_eq!(proxies.claim(now, &proxy("other-0", 1), TunnelId(9_999)), Claim::Taken);
    }
}
