//! Pools of agents in a model of a network. A load balancer chooses at random; proxies come, go and drain; connections
//! fail, break, or go silent. Both ends are the machines of the crate.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodetracker_client::backoff::Limits;
use nodetracker_client::control::keep_alive::KeepAliveTimes;
use nodetracker_client::control::proto::{AgentMessage, GoodbyeReason, ProxyInfo, ProxyList};
use nodetracker_client::listener::link::{AgentLink, LinkEvent, LinkTimes};
use nodetracker_client::pool::machine::{Action, Input, PoolMachine};
use nodetracker_client::pool::{PoolConfig, StateCounts, Target, TunnelId};

use crate::seeds::{Fault, Recovery, recoveries};

const LIST_INTERVAL: Duration = Duration::from_secs(20);
const KEEP_ALIVE: KeepAliveTimes = KeepAliveTimes {
    interval: Duration::from_secs(10),
    timeout: Duration::from_secs(5),
};
/// The waits of the pools: so a lease that always fails dials every 2.5 s on average.
const BACKOFF: Limits = Limits {
    base: Duration::from_millis(100),
    max: Duration::from_secs(5),
};

/// How often tunnels have messages that change nothing.
#[derive(Clone, Copy)]
struct Times {
    keep_alive: KeepAliveTimes,
    list_interval: Duration,
}

const TIMES: Times = Times {
    keep_alive: KEEP_ALIVE,
    list_interval: LIST_INTERVAL,
};
/// For many agents whose connections do not fail.
const RARE: Times = Times {
    keep_alive: KeepAliveTimes {
        interval: Duration::from_secs(150),
        timeout: KEEP_ALIVE.timeout,
    },
    list_interval: Duration::from_secs(120),
};

/// A tunnel, or an attempt, of a pool.
type Key = (usize, TunnelId);

#[derive(Debug)]
enum Event {
    ToAgent(Key, Input),
    ToProxy(Key, AgentMessage),
    PollAgent(usize),
    PollProxy(Key),
}

struct Proxy {
    info: ProxyInfo,
    is_up: bool,
    is_draining: bool,
    /// Whether the load balancer chooses the proxy.
    is_balanced: bool,
}

struct Connection {
    proxy: usize,
    incarnation: u64,
    link: AgentLink,
    /// What the agent has said.
    claimed: bool,
    left: bool,
    /// Nothing arrives any more, and neither end notices.
    is_silent: bool,
    /// When the last message in each direction arrives: messages stay in order.
    last: [Instant; 2],
    wake: Wake,
}

/// When a machine is polled next, so that it has only one such event at a time that counts.
#[derive(Default, Clone, Copy)]
struct Wake(Option<Instant>);

impl Wake {
    /// Whether an event at `next` is needed.
    fn sooner(&mut self, next: Instant) -> bool {
        let is_sooner = self.0.is_none_or(|at| next < at);
        if is_sooner {
            self.0 = Some(next);
        }
        is_sooner
    }

    /// Whether an event at `now` counts.
    fn is_due(&mut self, now: Instant) -> bool {
        self.0.take_if(|at| *at == now).is_some()
    }
}

struct World {
    seed: u64,
    now: Instant,
    start: Instant,
    random: fastrand::Rng,
    target: Target,
    times: Times,
    proxies: Vec<Proxy>,
    pools: Vec<PoolMachine>,
    wakes: Vec<Wake>,
    /// The connections of each pool.
    connections: Vec<BTreeMap<TunnelId, Connection>>,
    /// Attempts of each pool that find no proxy.
    hopeless: Vec<BTreeSet<TunnelId>>,
    /// Until then, the process of each pool does nothing.
    asleep_until: Vec<Instant>,
    /// Whether each pool must have a tunnel at all times.
    must_be_ready: bool,
    events: BTreeMap<(Instant, u64), Event>,
    last_event: u64,
    /// When each pool dialled.
    dials: Vec<Vec<Instant>>,
    /// How many attempts of a hundred fail.
    failing: u32,
    /// A hash of the moments and kinds of all events.
    trace: DefaultHasher,
}

impl World {
    fn new(seed: u64, proxies: usize, pools: usize, connection_count: usize) -> Self {
        Self::with_times(seed, proxies, pools, connection_count, TIMES)
    }

    fn with_times(seed: u64, proxies: usize, pools: usize, connection_count: usize, times: Times) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let target = Target::new("main", "balancer:1");
        let machines = (0..pools).map(|n| {
            let mut config = PoolConfig::new(format!("node-{n}").parse().unwrap());
            config.connection_count = connection_count;
            config.backoff = BACKOFF;
            config.keep_alive = times.keep_alive;
            PoolMachine::new(config, random.u64(..))
        });
        let machines: Vec<_> = machines.collect();
        let mut world = Self {
            seed,
            now: start,
            start,
            random,
            target,
            times,
            proxies: Vec::new(),
            dials: vec![Vec::new(); pools],
            pools: machines,
            wakes: vec![Wake::default(); pools],
            connections: (0..pools).map(|_| BTreeMap::new()).collect(),
            hopeless: vec![BTreeSet::new(); pools],
            asleep_until: vec![start; pools],
            must_be_ready: false,
            events: BTreeMap::new(),
            last_event: 0,
            failing: 0,
            trace: DefaultHasher::new(),
        };
        (0..proxies).for_each(|_| world.add_proxy());
        for n in 0..pools {
            let target = world.target.clone();
            world.pools[n].add_target(start, target);
            world.settle(n);
        }
        world
    }

    fn add_proxy(&mut self) {
        let proxy_id = format!("proxy-{}", self.proxies.len());
        let info = ProxyInfo {
            proxy_id,
            incarnation: 1,
            version: String::new(),
        };
        self.proxies.push(Proxy {
            info,
            is_up: true,
            is_draining: false,
            is_balanced: true,
        });
        self.gossip();
    }

    fn list(&self) -> Arc<ProxyList> {
        let up = self.proxies.iter().filter(|proxy| proxy.is_up && !proxy.is_draining);
        Arc::new(ProxyList {
            proxies: up.map(|proxy| proxy.info.clone()).collect(),
            valid_for: Some(prost_types::Duration {
                seconds: 3 * self.times.list_interval.as_secs() as i64,
                nanos: 0,
            }),
        })
    }

    /// All proxies learn which proxies there are.
    fn gossip(&mut self) {
        let list = self.list();
        for key in self.keys(|_| true) {
            self.on_link(key, |link| link.set_list(Arc::clone(&list)));
        }
    }

    /// The connections that fulfil a condition.
    fn keys(&self, condition: impl Fn(&Connection) -> bool) -> Vec<Key> {
        let pools = self.connections.iter().enumerate();
        let all =
            pools.flat_map(|(pool, of_pool)| of_pool.iter().map(move |(id, connection)| ((pool, *id), connection)));
        all.filter(|(_, connection)| condition(connection))
            .map(|(key, _)| key)
            .collect()
    }

    fn forget(&mut self, (pool, id): Key) {
        self.connections[pool].remove(&id);
        self.hopeless[pool].remove(&id);
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.last_event += 1;
        self.events.insert((at, self.last_event), event);
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.random.u64(1_000..50_000))
    }

    /// Runs for a time.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            (at.duration_since(self.start), mem::discriminant(&event)).hash(&mut self.trace);
            self.happens(event);
        }
        self.now = end;
    }

    fn happens(&mut self, event: Event) {
        if let Event::ToAgent((pool, _), _) | Event::PollAgent(pool) = event
            && self.now < self.asleep_until[pool]
        {
            if let Event::PollAgent(pool) = event {
                self.wakes[pool].0 = Some(self.asleep_until[pool]);
            }
            return self.at(self.asleep_until[pool], event);
        }
        match event {
            Event::ToAgent(key, input) => {
                if let Input::Ended(_) = input {
                    self.forget(key);
                }
                self.pools[key.0].handle(self.now, key.1, input);
                self.settle(key.0);
            }
            Event::PollAgent(pool) => {
                if self.wakes[pool].is_due(self.now) {
                    self.settle(pool);
                }
            }
            Event::ToProxy(key, message) => {
                let now = self.now;
                self.on_link(key, |link| link.handle(now, message));
            }
            Event::PollProxy(key) => {
                let connection = self.connections[key.0].get_mut(&key.1);
                if connection.is_some_and(|connection| connection.wake.is_due(self.now)) {
                    self.on_link(key, |_| {});
                }
            }
        }
    }

    /// Does what a pool asks for, and checks the pool.
    fn settle(&mut self, pool: usize) {
        while let Some(action) = self.pools[pool].poll_action(self.now) {
            match action {
                Action::Connect(id, target) => {
                    assert_eq!(target, self.target, "seed {}", self.seed);
                    self.dial((pool, id));
                }
                Action::Send(id, message) => self.agent_sends((pool, id), message),
                Action::Close(id) => self.forget((pool, id)),
            }
        }
        if let Some(next) = self.pools[pool].next_timeout() {
            assert!(
                next > self.now,
                "a loop at {:?}, seed {}",
                self.now - self.start,
                self.seed
            );
            if self.wakes[pool].sooner(next) {
                self.at(next, Event::PollAgent(pool));
            }
        }
        self.check(pool);
    }

    fn dial(&mut self, key: Key) {
        self.dials[key.0].push(self.now);
        let at = self.now + self.latency();
        let up: Vec<_> = (0..self.proxies.len())
            .filter(|&n| self.proxies[n].is_up && self.proxies[n].is_balanced)
            .collect();
        if up.is_empty() || self.random.u32(0..100) < self.failing {
            self.hopeless[key.0].insert(key.1);
            return self.at(at, Event::ToAgent(key, Input::Ended("refused".into())));
        }
        let proxy = up[self.random.usize(..up.len())];
        let times = LinkTimes {
            handshake_timeout: Duration::from_secs(10),
            keep_alive: self.times.keep_alive,
            list_interval: self.times.list_interval,
        };
        let connection = Connection {
            proxy,
            incarnation: self.proxies[proxy].info.incarnation,
            link: AgentLink::new(self.now, times, self.list()),
            claimed: false,
            left: false,
            is_silent: false,
            last: [self.now; 2],
            wake: Wake::default(),
        };
        self.connections[key.0].insert(key.1, connection);
        self.at(at, Event::ToAgent(key, Input::Opened));
        self.on_link(key, |_| {});
    }

    fn agent_sends(&mut self, key: Key, message: AgentMessage) {
        use nodetracker_client::control::proto::agent_message::Message;
        let latency = self.latency();
        let Some(connection) = self.connections[key.0].get_mut(&key.1) else {
            return;
        };
        match message.message {
            Some(Message::Claim(_)) => connection.claimed = true,
            Some(Message::Goodbye(_)) => connection.left = true,
            _ => {}
        }
        let at = connection.last[0].max(self.now + latency);
        connection.last[0] = at;
        self.at(at, Event::ToProxy(key, message));
    }

    /// Changes the proxy's side of a connection, and does what it then asks for.
    fn on_link(&mut self, key: Key, change: impl FnOnce(&mut AgentLink)) {
        let Some(connection) = self.connections[key.0].get_mut(&key.1) else {
            return;
        };
        if connection.is_silent {
            return;
        }
        let proxy = &self.proxies[connection.proxy];
        change(&mut connection.link);
        let mut messages = Vec::new();
        let mut ended = None;
        while let Some(event) = connection.link.poll_event(self.now) {
            match event {
                LinkEvent::Hello(_) if proxy.is_draining => connection.link.refuse(GoodbyeReason::Draining, ""),
                LinkEvent::Hello(_) => connection.link.welcome(proxy.info.clone()),
                LinkEvent::Left => ended = Some("left".to_owned()),
                LinkEvent::Closed(reason) => ended = Some(reason),
                LinkEvent::Claimed if proxy.is_draining => connection.link.reconnect(WINDOW),
                LinkEvent::Claimed | LinkEvent::Seen => {}
            }
        }
        while let Some(message) = connection.link.poll_transmit() {
            messages.push(Input::Received(message));
        }
        let next = connection
            .link
            .next_timeout()
            .filter(|next| connection.wake.sooner(*next));
        messages.extend(ended.map(Input::Ended));
        for input in messages {
            let at = self.now + self.latency();
            let Some(connection) = self.connections[key.0].get_mut(&key.1) else {
                return;
            };
            let at = at.max(connection.last[1]);
            connection.last[1] = at;
            self.at(at, Event::ToAgent(key, input));
        }
        if let Some(next) = next {
            self.at(next, Event::PollProxy(key));
        }
    }

    fn counts(&self, pool: usize) -> StateCounts {
        self.pools[pool].counts()["main"]
    }

    /// What holds at all times.
    fn check(&self, pool: usize) {
        let seed = self.seed;
        let counts = self.counts(pool);
        let mut claims = Vec::new();
        let (mut claimed, mut left, mut dialling) = (0, 0, self.hopeless[pool].len());
        for connection in self.connections[pool].values() {
            if connection.left {
                left += 1;
            } else if connection.claimed {
                claimed += 1;
                claims.push((connection.proxy, connection.incarnation));
            } else {
                dialling += 1;
            }
        }
        assert!(
            counts.ready() > 0 || !self.must_be_ready,
            "an agent has no tunnel, seed {seed}"
        );
        claims.sort_unstable();
        assert!(
            claims.is_sorted_by(|one, next| one < next),
            "two tunnels to one proxy, seed {seed}"
        );
        assert_eq!(counts.ready(), claimed, "seed {seed}");
        assert_eq!(counts.connecting + counts.discovering, dialling, "seed {seed}");
        assert!(counts.disconnected >= left, "seed {seed}");
        assert_eq!(counts.total(), claimed + dialling + counts.disconnected, "seed {seed}");
    }

    fn drain(&mut self, proxy: usize) {
        self.proxies[proxy].is_draining = true;
        self.gossip();
        for key in self.keys(|connection| connection.proxy == proxy && connection.claimed) {
            self.on_link(key, |link| link.reconnect(WINDOW));
        }
    }

    /// A proxy is gone. Its connections end at once, or silently.
    fn kill(&mut self, proxy: usize, silently: bool) {
        self.proxies[proxy].is_up = false;
        for key in self.keys(|connection| connection.proxy == proxy) {
            self.break_connection(key, silently);
        }
        self.gossip();
    }

    fn break_connection(&mut self, key: Key, silently: bool) {
        let at = self.now + self.latency();
        if let Some(connection) = self.connections[key.0].get_mut(&key.1) {
            connection.is_silent = true;
            if !silently {
                let at = at.max(connection.last[1]);
                self.at(at, Event::ToAgent(key, Input::Ended("reset".into())));
            }
        }
    }

    /// A proxy starts again. If it has not stopped, its connections end.
    fn restart(&mut self, proxy: usize) {
        if self.proxies[proxy].is_up {
            self.kill(proxy, false);
        }
        let proxy = &mut self.proxies[proxy];
        proxy.info.incarnation += 1;
        proxy.is_up = true;
        proxy.is_draining = false;
        self.gossip();
    }

    /// One fault, or the end of one.
    fn fault(&mut self) {
        let proxy = self.random.usize(..self.proxies.len());
        let silently = self.random.bool();
        match (self.random.u32(0..10), self.proxies[proxy].is_up) {
            (0..=2, true) => self.kill(proxy, silently),
            (3..=4, true) => self.drain(proxy),
            (0..=5, false) => self.restart(proxy),
            (6, _) => self.failing = self.random.u32(0..50),
            _ => {
                let keys = self.keys(|_| true);
                if let Some(key) = self.random.choice(keys) {
                    self.break_connection(key, silently);
                }
            }
        }
    }
}

const WINDOW: Duration = Duration::from_secs(60);

/// Faults for ten minutes, then none: how long until each pool has the tunnels that it wants.
fn faults_and_recovery(seed: u64) -> Recovery {
    let mut random = fastrand::Rng::with_seed(!seed);
    let (proxies, connection_count) = (random.usize(1..=5), random.usize(0..=3));
    let mut world = World::new(seed, proxies, 3, connection_count);
    while world.now.duration_since(world.start) < Duration::from_secs(600) {
        world.run(Duration::from_millis(random.u64(0..10_000)));
        world.fault();
    }
    world.failing = 0;
    for proxy in 0..proxies {
        if !world.proxies[proxy].is_up || world.proxies[proxy].is_draining {
            world.restart(proxy);
        }
    }
    let wanted = if connection_count == 0 {
        proxies
    } else {
        connection_count.min(proxies)
    };
    let recovery = world.recovery(wanted);
    world.run(Duration::from_secs(450));
    world.assert_stays(wanted);
    for dials in &world.dials {
        assert_attempts_are_bounded(dials, seed);
    }
    world.result(recovery)
}

impl World {
    /// Whether each pool has this many tunnels, and no tunnel to a proxy that is gone. Nothing moves on its tunnels yet
    /// if a connection is silent.
    fn has_recovered(&self, wanted: usize) -> bool {
        let is_held = |connection: &Connection| {
            let proxy = &self.proxies[connection.proxy];
            let is_present = proxy.is_up && !proxy.is_draining && proxy.info.incarnation == connection.incarnation;
            connection.claimed && !connection.left && !connection.is_silent && is_present
        };
        let held = |connections: &BTreeMap<_, _>| connections.values().filter(|it| is_held(it)).count() == wanted;
        // Before the counts, which cost more.
        self.connections.iter().all(held) && (0..self.pools.len()).all(|pool| self.counts(pool).ready() == wanted)
    }

    /// Runs until each pool has this many tunnels, and returns for how long.
    fn recovery(&mut self, wanted: usize) -> Duration {
        let begin = self.now;
        while !self.has_recovered(wanted) {
            self.run(Duration::from_millis(100));
            let time = self.now.duration_since(begin);
            let seed = self.seed;
            assert!(
                time < Duration::from_secs(600),
                "no recovery of {wanted} tunnels, seed {seed}"
            );
        }
        self.now.duration_since(begin)
    }

    /// The result of a run whose recovery took this time.
    fn result(&self, time: Duration) -> Recovery {
        let trace = self.trace.finish();
        Recovery { time, trace }
    }

    /// The tunnels stay, and nothing else does.
    fn assert_stays(&mut self, wanted: usize) {
        self.assert_stays_for(wanted, Duration::from_secs(150));
    }

    fn assert_stays_for(&mut self, wanted: usize, time: Duration) {
        self.run(time);
        let seed = self.seed;
        for pool in 0..self.pools.len() {
            let counts = self.counts(pool);
            assert_eq!((counts.ready(), counts.total()), (wanted, wanted), "seed {seed}");
            assert_eq!(self.connections[pool].len(), wanted, "a connection leaks, seed {seed}");
            assert!(self.hopeless[pool].is_empty(), "an attempt leaks, seed {seed}");
        }
    }
}

/// The tunnels are spread over the pools' spread, after the shortest backoff; a dial has up to four messages.
const REDIAL: Duration = Duration::from_millis(2_000 + 100 + 4 * 50 + 100);
/// A silent connection is noticed on both sides.
const SILENCE: Duration = KEEP_ALIVE.interval.saturating_add(KEEP_ALIVE.timeout);

/// One fault in a world of three proxies, and ten pools that want this many tunnels each.
fn one_fault(seed: u64, wanted: usize, fault: impl FnOnce(&mut World)) -> Recovery {
    let mut world = World::new(seed, 3, 10, wanted);
    world.run(Duration::from_secs(120));
    assert!(world.has_recovered(wanted), "seed {seed}");
    world.run(Duration::from_millis(seed * 97 % 20_000));
    fault(&mut world);
    let recovery = world.recovery(wanted);
    world.assert_stays(wanted);
    world.result(recovery)
}

/// All agents of a proxy lose it at the same moment.
fn agents_lose_a_proxy(seed: u64) -> Recovery {
    const AGENTS: usize = 1000;
    let mut world = World::new(seed, 1, AGENTS, 1);
    world.run(Duration::from_secs(60));
    world.add_proxy();
    world.run(Duration::from_secs(1));
    let begin = world.now;
    world.kill(0, false);
    let recovery = world.recovery(1);
    let mut tenths = [0; 100];
    for dial in world.dials.iter().flat_map(|dials| &dials[1..]) {
        tenths[(dial.duration_since(begin).as_millis() / 100) as usize] += 1;
    }
    assert_eq!(tenths.iter().sum::<usize>(), AGENTS, "seed {seed}");
    // Over the pools' spread of two seconds: 50 in a tenth of a second on average.
    assert!(tenths.iter().all(|&dials| dials < 100), "{tenths:?}, seed {seed}");
    world.assert_stays(1);
    world.result(recovery)
}

/// All pools have dialled, or have learnt of a proxy and have no reason to dial.
const WARM_UP: Duration = Duration::from_secs(5);
/// How soon the load balancer notices that a proxy drains.
const HEALTH_INTERVAL: Duration = Duration::from_secs(10);

/// A proxy drains: its agents reconnect over the whole window, each before it leaves. At first, the load balancer still
/// chooses the proxy for some of them, and the proxy refuses them.
fn proxy_drains(seed: u64, agents: usize, times: Times, stays_for: Duration) -> Recovery {
    let mut world = World::with_times(seed, 1, agents, 1, times);
    world.run(WARM_UP);
    assert!(world.has_recovered(1), "seed {seed}");
    world.add_proxy();
    world.add_proxy();
    world.run(WARM_UP);
    let dials: usize = world.dials.iter().map(Vec::len).sum();
    assert_eq!(dials, agents, "seed {seed}");
    world.must_be_ready = true;
    let begin = world.now;
    world.drain(0);
    world.run(HEALTH_INTERVAL);
    world.proxies[0].is_balanced = false;
    let recovery = world.recovery(1) + HEALTH_INTERVAL;
    world.run(Duration::from_secs(1));
    assert_eq!(world.keys(|connection| connection.proxy == 0), [], "seed {seed}");
    let mut seconds = [0; 70];
    for dial in world.dials.iter().flat_map(|dials| &dials[1..]) {
        seconds[dial.duration_since(begin).as_secs() as usize] += 1;
    }
    // Until the load balancer notices, each third dial is refused, and made again.
    let dials: usize = seconds.iter().sum();
    assert!((agents..agents * 5 / 4).contains(&dials), "{dials} dials, seed {seed}");
    assert!(
        seconds.iter().all(|&dials| dials < agents / 20),
        "{seconds:?}, seed {seed}"
    );
    assert!(seconds[..60].iter().all(|&dials| dials > 0), "{seconds:?}, seed {seed}");
    world.assert_stays_for(1, stays_for);
    world.result(recovery)
}

recoveries! {
    100;
    proxy_is_killed: Fault {
        name: "a proxy is killed: its agents reach others",
        bound: REDIAL,
        cost: 1,
        recovery: |seed| one_fault(seed, 1, |world| world.kill(0, false)),
    },
    machine_of_a_proxy_is_gone: Fault {
        name: "a proxy's machine is gone without a word: its agents reach others",
        bound: SILENCE.saturating_add(REDIAL),
        cost: 1,
        recovery: |seed| one_fault(seed, 1, |world| world.kill(0, true)),
    },
    proxy_restarts: Fault {
        name: "a proxy restarts under its ID: its agents return",
        bound: REDIAL,
        cost: 1,
        recovery: |seed| one_fault(seed, 1, |world| world.restart(0)),
    },
    one_of_three_proxies_is_killed: Fault {
        name: "one of three proxies is killed: agents have tunnels to both others",
        // The load balancer may choose the same proxy many times.
        bound: Duration::from_secs(120),
        cost: 1,
        recovery: |seed| one_fault(seed, 2, |world| world.kill(0, false)),
    },
    connection_is_half_open: Fault {
        name: "an agent's connection is half open",
        bound: SILENCE.saturating_add(REDIAL),
        cost: 1,
        recovery: |seed| {
            one_fault(seed, 1, |world| {
                let key = world.keys(|_| true)[0];
                world.break_connection(key, true);
            })
        },
    },
    agent_sleeps: Fault {
        name: "an agent's process sleeps for up to an hour",
        bound: REDIAL,
        cost: 1,
        recovery: |seed| {
            one_fault(seed, 1, |world| {
                let time = Duration::from_secs(3600).mul_f64(world.random.f64().powi(3));
                world.asleep_until[0] = world.now + time;
                world.run(time);
            })
        },
    },
    thousand_agents_lose_their_proxy: Fault {
        name: "a thousand agents lose their proxy at once",
        bound: REDIAL,
        cost: 20,
        recovery: agents_lose_a_proxy,
    },
    proxy_with_a_thousand_agents_drains: Fault {
        name: "a proxy with a thousand agents drains within a minute",
        bound: WINDOW.saturating_add(REDIAL),
        cost: 20,
        recovery: |seed| proxy_drains(seed, 1_000, TIMES, Duration::from_secs(150)),
    },
    proxy_with_ten_thousand_agents_drains: Fault {
        name: "a proxy with ten thousand agents drains within a minute",
        bound: WINDOW.saturating_add(REDIAL),
        cost: 100,
        // A thousand agents show that nothing moves later.
        recovery: |seed| proxy_drains(seed, 10_000, RARE, Duration::from_secs(15)),
    },
    random_faults: Fault {
        name: "ten minutes of random faults of proxies and connections",
        bound: Duration::from_secs(180),
        cost: 1,
        recovery: faults_and_recovery,
    },
}

/// Two leases that wait 2.5 s on average make 48 attempts a minute; the first waits are shorter.
fn assert_attempts_are_bounded(dials: &[Instant], seed: u64) {
    for (first, dial) in dials.iter().enumerate() {
        let minute = dials[first..]
            .iter()
            .take_while(|at| at.duration_since(*dial) < Duration::from_secs(60));
        let count = minute.count();
        assert!(count <= 120, "{count} attempts in a minute, seed {seed}");
    }
}

/// A proxy asks its agents to reconnect, and recovers. The load balancer has no other proxy.
#[test]
fn agents_of_a_proxy_that_recovers_dial_once() {
    for seed in 0..5 {
        let mut world = World::new(seed, 1, 100, 1);
        world.run(Duration::from_secs(30));
        world.must_be_ready = true;
        for key in world.keys(|connection| connection.claimed) {
            world.on_link(key, |link| link.reconnect(WINDOW));
        }
        world.run(Duration::from_secs(600));
        let dials: Vec<_> = world.dials.iter().map(Vec::len).collect();
        assert!(dials.iter().all(|&dials| dials == 2), "{dials:?}, seed {seed}");
        world.assert_stays(1);
    }
}
