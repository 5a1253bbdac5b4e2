//! Which tunnels to open and to close: the state machine of a pool, without I/O.
//!
//! A tunnel begins as a lease: the lease waits, dials, and says hello. The proxy's welcome turns the lease into a
//! claim, or shows that the pool already has a tunnel to the proxy. After each input the machine compares the tunnels
//! with the number that is wanted, and adds or removes leases. A failed attempt or a lost tunnel becomes a lease that
//! waits.
//!
//! ```text
//!              ┌──────────── failed, refused, duplicate ◀─┐
//!              ▼                                          │
//!  lease ─▶ waiting ─▶ dialling ─▶ hello ─▶ welcome ──────┴─▶ claimed ─▶ leaving ─▶ (gone)
//!              ▲                                                 │
//!              └─────────────────── lost ◀───────────────────────┘
//! ```
//!
//! After a proxy's reconnect signal, a claimed tunnel waits for a random part of the signal's window. Then the tunnel
//! no longer counts, so that a lease for another proxy begins. The tunnel leaves when the number is reached without it.
//! If no other proxy is known, the pool dials once, because the load balancer may know another proxy. If this attempt
//! fails, the tunnel counts again until a list names another proxy. A minute after the window, the pool forgets the
//! signal: the proxy has recovered, and the tunnel stays.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;
use proto::agent_message::Message as ToProxy;
use proto::proxy_message::Message as FromProxy;
use tracing::{debug, info, warn};

use crate::backoff::Backoff;
use crate::clock::after;
use crate::control::keep_alive::{Due, KeepAlive};
use crate::control::{MAX_TEXT, PROTOCOL_VERSION, cut, duration, is_id, proto};
use crate::pool::config::{PoolConfig, Target};
use crate::pool::counts::{Counts, LastErrors, PoolStats};
use crate::pool::proxies::{Claim, Proxies};

/// The longest window of a reconnect signal.
const MAX_WINDOW: Duration = Duration::from_secs(3600);

/// The longest spread.
const MAX_SPREAD: Duration = Duration::from_secs(3600);

/// Names one attempt of a pool to open a tunnel, and the tunnel if the attempt succeeds. No ID is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(pub(super) u64);

/// What has happened to a tunnel.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// The tunnel and its control stream are open.
    Opened,
    /// The proxy has sent a message.
    Received(proto::ProxyMessage),
    /// The attempt has failed, or the tunnel has ended, for this reason.
    Ended(String),
}

/// What to do with a tunnel.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Open a tunnel to the target, and its control stream.
    Connect(TunnelId, Target),
    /// Send a message on the control stream.
    Send(TunnelId, proto::AgentMessage),
    /// Close the tunnel at once. The machine needs no more inputs of the tunnel.
    Close(TunnelId),
}

/// The state machine of a pool. Needs memory for at most 512 proxies of each target, and their tunnels.
#[derive(Debug)]
pub struct PoolMachine {
    config: PoolConfig,
    targets: BTreeMap<Target, Proxies>,
    tunnels: BTreeMap<TunnelId, Tunnel>,
    last_id: u64,
    actions: VecDeque<Action>,
    random: Rng,
    stats: PoolStats,
    last_errors: LastErrors,
}

#[derive(Debug)]
struct Tunnel {
    target: Target,
    discovering: bool,
    backoff: Backoff,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting { until: Instant },
    Dialling { deadline: Instant },
    Claimed(Claimed),
}

#[derive(Debug)]
struct Claimed {
    since: Instant,
    keep_alive: KeepAlive,
    leave: Leave,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leave {
    /// The tunnel stays.
    No,
    /// The proxy has sent a reconnect signal.
    At(Instant),
    /// The tunnel leaves when another tunnel has replaced it.
    WhenReplaced,
    /// As `WhenReplaced`, but only after a list has named another proxy: an attempt to find an unknown proxy has
    /// failed.
    WhenListed,
    /// The goodbye was sent. The streams may last until this time.
    Leaving(Instant),
}

impl PoolMachine {
    /// Creates the machine of a pool without targets. Machines with the same seed and the same inputs do the same.
    #[must_use]
    pub fn new(config: PoolConfig, seed: u64) -> Self {
        Self {
            config,
            targets: BTreeMap::new(),
            tunnels: BTreeMap::new(),
            last_id: 0,
            actions: VecDeque::new(),
            random: Rng::with_seed(seed),
            stats: PoolStats::default(),
            last_errors: LastErrors::new(),
        }
    }

    /// Begins to keep tunnels to a target. A target that is already there stays as it is.
    pub fn add_target(&mut self, now: Instant, target: Target) {
        self.targets.entry(target.clone()).or_default();
        self.balance(now, &target);
    }

    /// Leaves a target. Open streams may last for [`close_timeout`](PoolConfig::close_timeout).
    pub fn remove_target(&mut self, now: Instant, target: &Target) {
        self.targets.remove(target);
        self.last_errors.remove(target);
        for id in self.ids(target) {
            match self.tunnels[&id].state {
                State::Claimed(_) => self.leave(now, id),
                _ => drop(self.close(id)),
            }
        }
    }

    /// Leaves all targets.
    pub fn remove_all_targets(&mut self, now: Instant) {
        while let Some(target) = self.targets.keys().next().cloned() {
            self.remove_target(now, &target);
        }
    }

    /// Whether there is no target, and no tunnel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.tunnels.is_empty()
    }

    /// Takes an input about a tunnel. An input for a tunnel that was closed changes nothing.
    pub fn handle(&mut self, now: Instant, id: TunnelId, input: Input) {
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        let target = tunnel.target.clone();
        match input {
            Input::Opened => {
                let hello = proto::Hello {
                    protocol_version: PROTOCOL_VERSION,
                    node_id: self.config.node.to_string(),
                    cluster_name: target.cluster.clone(),
                    agent_version: cut(&self.config.agent_version).to_owned(),
                };
                self.send(id, ToProxy::Hello(hello));
            }
            Input::Received(message) => {
                if let State::Claimed(claimed) = &mut tunnel.state {
                    claimed.keep_alive.heard(now);
                }
                // A message that this version does not know has no content.
                if let Some(message) = message.message {
                    self.received(now, id, message);
                }
            }
            Input::Ended(reason) => self.ended(now, id, &reason),
        }
        self.balance(now, &target);
    }

    /// Records that bytes of any stream came through a tunnel at this time. A proxy that still sends is not silent,
    /// also if its pong waits behind other bytes.
    pub fn bytes_received(&mut self, id: TunnelId, at: Instant) {
        if let Some(State::Claimed(claimed)) = self.tunnels.get_mut(&id).map(|tunnel| &mut tunnel.state) {
            claimed.keep_alive.bytes_received(at);
        }
    }

    fn received(&mut self, now: Instant, id: TunnelId, message: FromProxy) {
        let Some(tunnel) = self.tunnels.get(&id) else { return };
        match (&tunnel.state, message) {
            (_, FromProxy::Goodbye(goodbye)) => {
                let reason = goodbye.reason();
                self.end(
                    now,
                    id,
                    &format!("the proxy said goodbye: {reason:?} {:?}", cut(&goodbye.text)),
                );
            }
            (State::Dialling { .. }, FromProxy::Welcome(welcome)) => self.welcome(now, id, &welcome),
            (State::Claimed(_), FromProxy::ProxyList(list)) => self.listed(now, id, &list),
            (State::Claimed(_), FromProxy::Ping(_)) => self.send(id, ToProxy::Pong(proto::Pong {})),
            (State::Claimed(_), FromProxy::Pong(_)) => {}
            (State::Claimed(_), FromProxy::Reconnect(signal)) => self.reconnect(now, id, &signal),
            (State::Claimed(_), FromProxy::Welcome(_)) => self.end(now, id, "a second welcome"),
            (State::Waiting { .. } | State::Dialling { .. }, _) => {
                self.end(now, id, "a message came before the welcome")
            }
        }
    }

    fn welcome(&mut self, now: Instant, id: TunnelId, welcome: &proto::Welcome) {
        let Some(proxy) = welcome.proxy.as_ref().filter(|proxy| is_id(&proxy.proxy_id)) else {
            return self.end(now, id, "the welcome has no valid ID of a proxy");
        };
        if let Some(list) = &welcome.proxy_list {
            self.listed(now, id, list);
        }
        let Some(target) = self.tunnels.get(&id).map(|tunnel| tunnel.target.clone()) else {
            return;
        };
        let claim = self
            .targets
            .get_mut(&target)
            .map(|proxies| proxies.claim(now, proxy, id));
        match claim {
            None | Some(Claim::Taken) => {
                self.stats.duplicates += 1;
                if let Some(tunnel) = self.close(id) {
                    self.retry(now, tunnel);
                }
                return;
            }
            Some(Claim::Replaces(older)) => {
                info!(
                    proxy = proxy.proxy_id,
                    "the proxy has started again, so its older tunnel is closed"
                );
                self.close(older);
            }
            Some(Claim::NoRoom) => return self.end(now, id, "there are tunnels to the maximum of proxies"),
            Some(Claim::Granted) => {}
        }
        if self.staying(&target) >= self.wanted(&target) {
            self.stats.surplus += 1;
            self.close(id);
            return;
        }
        self.last_errors.remove(&target);
        if let Some(tunnel) = self.tunnels.get_mut(&id) {
            tunnel.state = State::Claimed(Claimed {
                since: now,
                keep_alive: KeepAlive::new(self.config.keep_alive, now),
                leave: Leave::No,
            });
        }
        self.send(id, ToProxy::Claim(proto::Claim {}));
    }

    fn listed(&mut self, now: Instant, id: TunnelId, list: &proto::ProxyList) {
        let target = self.tunnels.get(&id).map(|tunnel| tunnel.target.clone());
        if let Some(target) = target
            && let Some(proxies) = self.targets.get_mut(&target)
        {
            self.stats.ignored_proxies += proxies.listed(now, list);
            if proxies.usable() > 0 {
                self.change_leaves(&target, |leave| match leave {
                    Leave::WhenListed => Leave::WhenReplaced,
                    other => other,
                });
            }
        }
    }

    /// Changes when the claimed tunnels of a target leave.
    fn change_leaves(&mut self, target: &Target, change: impl Fn(Leave) -> Leave) {
        for tunnel in self.tunnels.values_mut().filter(|tunnel| tunnel.target == *target) {
            if let State::Claimed(claimed) = &mut tunnel.state {
                claimed.leave = change(claimed.leave);
            }
        }
    }

    fn reconnect(&mut self, now: Instant, id: TunnelId, signal: &proto::Reconnect) {
        let window = duration(signal.window.as_ref(), Duration::ZERO, MAX_WINDOW);
        let wait = window.mul_f64(self.random.f64());
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        let Some(proxies) = self.targets.get_mut(&tunnel.target) else {
            return;
        };
        let State::Claimed(claimed) = &mut tunnel.state else {
            return;
        };
        self.stats.reconnects += 1;
        proxies.avoid(now, id, window);
        // A repeated signal does not delay the wait of the first signal.
        if claimed.leave == Leave::No {
            claimed.leave = Leave::At(now + wait);
        }
    }

    /// Ends a tunnel whose task still runs.
    fn end(&mut self, now: Instant, id: TunnelId, reason: &str) {
        self.actions.push_back(Action::Close(id));
        self.ended(now, id, reason);
    }

    /// Acts on the end of a tunnel: a new lease waits.
    fn ended(&mut self, now: Instant, id: TunnelId, reason: &str) {
        let Some(mut tunnel) = self.forget(id) else { return };
        let target = &tunnel.target;
        match &tunnel.state {
            State::Claimed(Claimed {
                leave: Leave::Leaving(_),
                ..
            }) => {}
            State::Claimed(claimed) => {
                info!(
                    cluster = target.cluster,
                    addr = target.addr,
                    "a tunnel is lost: {reason}"
                );
                self.stats.lost += 1;
                if now.saturating_duration_since(claimed.since) >= self.config.backoff.max {
                    tunnel.backoff.reset();
                }
                let spread = self.spread();
                self.wait(now, tunnel, spread);
            }
            State::Waiting { .. } | State::Dialling { .. } => {
                self.stats.failures += 1;
                let last = self.last_errors.get(target);
                match last.is_some_and(|last| last == reason) {
                    true => debug!(cluster = target.cluster, addr = target.addr, "no tunnel: {reason}"),
                    false => {
                        warn!(cluster = target.cluster, addr = target.addr, "no tunnel: {reason}");
                        self.last_errors.insert(target.clone(), reason.to_owned());
                    }
                }
                self.retry(now, tunnel);
            }
        }
    }

    /// Replaces an attempt that has found no proxy by a lease. If the pool knows no other proxy, its tunnels stay
    /// instead: they have sent a reconnect signal, and still work.
    fn retry(&mut self, now: Instant, tunnel: Tunnel) {
        let target = &tunnel.target;
        let has_other = self.targets.get(target).is_none_or(|proxies| proxies.usable() > 0);
        let of_target = |other: &&Tunnel| other.target == *target;
        let may_leave = |other: &Tunnel| other.is(Leave::WhenReplaced) || other.is(Leave::WhenListed);
        if has_other || !self.tunnels.values().filter(of_target).any(may_leave) {
            return self.wait(now, tunnel, Duration::ZERO);
        }
        self.change_leaves(&tunnel.target, |leave| match leave {
            Leave::WhenReplaced => Leave::WhenListed,
            other => other,
        });
    }

    /// Replaces a tunnel that has ended by a lease. The lease waits for its backoff, and then for `longer`.
    fn wait(&mut self, now: Instant, mut tunnel: Tunnel, longer: Duration) {
        let until = after(now, tunnel.backoff.next_wait().saturating_add(longer));
        self.lease(tunnel.target, tunnel.backoff, until);
    }

    fn lease(&mut self, target: Target, backoff: Backoff, until: Instant) {
        self.last_id += 1;
        let discovering = self.tunnels.values().any(|tunnel| tunnel.target == target);
        let tunnel = Tunnel {
            target,
            discovering,
            backoff,
            state: State::Waiting { until },
        };
        self.tunnels.insert(TunnelId(self.last_id), tunnel);
    }

    /// Sends a goodbye. The proxy ends the tunnel when its streams have ended.
    fn leave(&mut self, now: Instant, id: TunnelId) {
        let limit = after(now, self.config.close_timeout);
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        let State::Claimed(claimed) = &mut tunnel.state else {
            return;
        };
        if matches!(claimed.leave, Leave::Leaving(_)) {
            return;
        }
        claimed.leave = Leave::Leaving(limit);
        if let Some(proxies) = self.targets.get_mut(&tunnel.target) {
            proxies.release(id);
        }
        let reason = proto::GoodbyeReason::Stopping.into();
        self.send(
            id,
            ToProxy::Goodbye(proto::Goodbye {
                reason,
                text: String::new(),
            }),
        );
    }

    /// Closes a tunnel at once, without another attempt.
    fn close(&mut self, id: TunnelId) -> Option<Tunnel> {
        let tunnel = self.forget(id)?;
        if !matches!(tunnel.state, State::Waiting { .. }) {
            self.actions.push_back(Action::Close(id));
        }
        Some(tunnel)
    }

    fn forget(&mut self, id: TunnelId) -> Option<Tunnel> {
        let tunnel = self.tunnels.remove(&id)?;
        if let Some(proxies) = self.targets.get_mut(&tunnel.target) {
            proxies.release(id);
        }
        Some(tunnel)
    }

    fn send(&mut self, id: TunnelId, message: ToProxy) {
        let message = proto::AgentMessage { message: Some(message) };
        self.actions.push_back(Action::Send(id, message));
    }

    fn spread(&mut self) -> Duration {
        self.config.spread.min(MAX_SPREAD).mul_f64(self.random.f64())
    }

    fn ids(&self, target: &Target) -> Vec<TunnelId> {
        let of_target = self.tunnels.iter().filter(|(_, tunnel)| tunnel.target == *target);
        of_target.map(|(id, _)| *id).collect()
    }

    fn wanted(&self, target: &Target) -> usize {
        let proxies = self.targets.get(target);
        proxies.map_or(0, |proxies| proxies.wanted(self.config.connection_count))
    }

    /// Returns how many tunnels have a proxy, and need no replacement.
    fn staying(&self, target: &Target) -> usize {
        let of_target = self.tunnels.values().filter(|tunnel| tunnel.target == *target);
        of_target.filter(|tunnel| tunnel.stays()).count()
    }

    /// Compares a target's tunnels with the number that is wanted, and adds or removes leases.
    fn balance(&mut self, now: Instant, target: &Target) {
        if !self.targets.contains_key(target) {
            return;
        }
        let missing = self.wanted(target).saturating_sub(self.staying(target));
        let (leases, claimed): (Vec<_>, Vec<_>) = self
            .ids(target)
            .into_iter()
            .partition(|id| !matches!(self.tunnels[id].state, State::Claimed(_)));
        let replaceable: Vec<_> = claimed
            .iter()
            .filter(|id| self.tunnels[id].is(Leave::WhenReplaced))
            .collect();
        if missing == 0 {
            replaceable.iter().for_each(|id| self.leave(now, **id));
        }
        let allowed = missing.min(self.config.max_leases.max(1));
        // A lease that already dials is kept. If the pool no longer needs the lease, the lease ends at the welcome.
        let waiting = leases
            .iter()
            .rev()
            .filter(|id| matches!(self.tunnels[id].state, State::Waiting { .. }));
        let surplus: Vec<_> = waiting.take(leases.len().saturating_sub(allowed)).copied().collect();
        surplus.into_iter().for_each(|id| drop(self.close(id)));
        let has_usable = claimed.iter().any(|id| self.tunnels[id].stays());
        for _ in leases.len()..allowed {
            let at_once = !has_usable || !replaceable.is_empty();
            let until = if at_once { now } else { now + self.spread() };
            let backoff = Backoff::new(self.config.backoff, self.random.u64(..));
            self.lease(target.clone(), backoff, until);
        }
    }

    /// Does what is due, and returns the next action. Call `poll_action` until it returns `None`, after each other call
    /// and at [`PoolMachine::next_timeout`].
    pub fn poll_action(&mut self, now: Instant) -> Option<Action> {
        while self.actions.is_empty() && self.next_timeout().is_some_and(|due| due <= now) {
            self.advance(now);
        }
        self.actions.pop_front()
    }

    /// When [`PoolMachine::poll_action`] has something to do, if no input comes before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let tunnels = self.tunnels.values().map(Tunnel::next_timeout);
        let proxies = self.targets.values().filter_map(Proxies::next_timeout);
        tunnels.chain(proxies).min()
    }

    fn advance(&mut self, now: Instant) {
        let recovered: Vec<_> = self
            .targets
            .values_mut()
            .flat_map(|proxies| proxies.expire(now))
            .collect();
        for id in recovered {
            if let Some(State::Claimed(claimed)) = self.tunnels.get_mut(&id).map(|tunnel| &mut tunnel.state) {
                claimed.leave = Leave::No;
            }
        }
        let due = self.tunnels.iter().filter(|(_, tunnel)| tunnel.next_timeout() <= now);
        let due: Vec<_> = due.map(|(id, _)| *id).collect();
        due.into_iter().for_each(|id| self.due(now, id));
        let targets: Vec<_> = self.targets.keys().cloned().collect();
        targets.iter().for_each(|target| self.balance(now, target));
    }

    fn due(&mut self, now: Instant, id: TunnelId) {
        let is_of = |target: &Target, other: &Tunnel| other.target == *target && other.is(Leave::WhenListed);
        let waits_for_list = self
            .tunnels
            .get(&id)
            .is_some_and(|tunnel| self.tunnels.values().any(|other| is_of(&tunnel.target, other)));
        let Some(tunnel) = self.tunnels.get_mut(&id) else {
            return;
        };
        match &mut tunnel.state {
            State::Waiting { .. } => {
                let deadline = after(now, self.config.connect_timeout);
                tunnel.state = State::Dialling { deadline };
                self.stats.attempts += 1;
                let len = tunnel.target.cluster.len();
                if len > MAX_TEXT {
                    let reason = format!("the name of the cluster has {len} bytes, and the maximum is {MAX_TEXT}");
                    return self.ended(now, id, &reason);
                }
                self.actions.push_back(Action::Connect(id, tunnel.target.clone()));
            }
            State::Dialling { .. } => {
                let reason = format!("no welcome within {:?}", self.config.connect_timeout);
                self.end(now, id, &reason);
            }
            State::Claimed(claimed) => {
                match claimed.leave {
                    Leave::At(at) if at <= now && waits_for_list => claimed.leave = Leave::WhenListed,
                    Leave::At(at) if at <= now => claimed.leave = Leave::WhenReplaced,
                    Leave::Leaving(limit) if limit <= now => {
                        self.stats.cut += 1;
                        self.close(id);
                        return;
                    }
                    _ => {}
                }
                match claimed.keep_alive.due(now) {
                    Some(Due::Ping | Due::PingAgain) => self.send(id, ToProxy::Ping(proto::Ping {})),
                    None => {}
                    Some(Due::Broken) => {
                        self.stats.broken += u64::from(!matches!(claimed.leave, Leave::Leaving(_)));
                        self.end(now, id, "the keep-alive has no answer");
                    }
                }
            }
        }
    }

    /// Returns how many tunnels of each cluster are in each state. A cluster without tunnels and targets is left out.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts: Counts = self
            .targets
            .keys()
            .map(|target| (target.cluster.clone(), Default::default()))
            .collect();
        for tunnel in self.tunnels.values() {
            let of_cluster = counts.entry(tunnel.target.cluster.clone()).or_default();
            *match (&tunnel.state, tunnel.discovering) {
                (State::Waiting { .. }, _) => &mut of_cluster.disconnected,
                (
                    State::Claimed(Claimed {
                        leave: Leave::Leaving(_),
                        ..
                    }),
                    _,
                ) => &mut of_cluster.disconnected,
                (State::Dialling { .. }, false) => &mut of_cluster.connecting,
                (State::Dialling { .. }, true) => &mut of_cluster.discovering,
                (State::Claimed(_), false) => &mut of_cluster.connected,
                (State::Claimed(_), true) => &mut of_cluster.discovered,
            } += 1;
        }
        counts
    }

    /// Returns what has happened so far.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.stats
    }

    /// Returns why the last attempt of each target failed, if no tunnel was claimed since.
    #[must_use]
    pub fn last_errors(&self) -> &LastErrors {
        &self.last_errors
    }
}

impl Tunnel {
    fn is(&self, leave: Leave) -> bool {
        matches!(&self.state, State::Claimed(claimed) if claimed.leave == leave)
    }

    fn stays(&self) -> bool {
        matches!(
            &self.state,
            State::Claimed(Claimed {
                leave: Leave::No | Leave::At(_) | Leave::WhenListed,
                ..
            })
        )
    }

    fn next_timeout(&self) -> Instant {
        match &self.state {
            State::Waiting { until } => *until,
            State::Dialling { deadline } => *deadline,
            State::Claimed(claimed) => match claimed.leave {
                Leave::At(at) | Leave::Leaving(at) => at.min(claimed.keep_alive.next_timeout()),
                Leave::No | Leave::WhenReplaced | Leave::WhenListed => claimed.keep_alive.next_timeout(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
