//! A whole fleet in a simulated network: pools of agents, the listeners and sessions of proxies, and model trackers.
//!
//! The machines and their glue are the code of programs: how a listener knows its nodes, how the listener reports the
//! nodes to a session, and how a session wakes its tasks. Only the tasks themselves are simulated. The checks compare
//! the trackers' routes with the tunnels that work:
//!
//! * A proxy has each node with a working tunnel, and no other node for longer than [`SILENCE`].
//! * No route survives the proxy's last tunnel of the node for longer than the keep-alive interval. If the session was
//!   not disturbed, the route ends after [`PROMPT`].
//! * No working tunnel is without its route for longer than [`PROMPT`]. After a disturbance of the session, the bound
//!   is [`SESSION`] and [`PROMPT`].
//!
//! `NODETRACKER_SEEDS=5000 cargo test --release -p nodetracker-client --lib fleet` runs more seeds.

#[expect(dead_code, reason = "the tests of sessions use all of it")]
pub(crate) mod model;
#[expect(dead_code, reason = "the tests of sessions use all of it")]
pub(crate) mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use nodetracker::{NodeId, Uuid};
use tokio::runtime::{Builder, Runtime};
use tokio::time;

use self::model::{LIMITS, ModelTracker};
use self::world::World as Sessions;
use crate::backoff::Limits;
use crate::clock;
use crate::control::keep_alive::KeepAliveTimes;
use crate::control::proto::agent_message::Message;
use crate::control::proto::{AgentMessage, ProxyInfo};
use crate::listener::{AgentListener, ListenerConfig, SimulatedAgent};
use crate::pool::machine::{Action, Input, PoolMachine};
use crate::pool::{PoolConfig, Target, TunnelId};
use crate::proxy::ReportNodes;
use crate::seeds::{Fault, Recovery, recoveries};
use crate::session::{self, ProxySession, SessionTimes};

const PROXIES: usize = 3;
const AGENTS: usize = 8;

/// How long a route lives without a refresh.
const KEEP_ALIVE: Duration = Duration::from_secs(90);
/// The longest time of a message in one direction.
const LATENCY: Duration = Duration::from_millis(50);
const STEP: Duration = Duration::from_millis(50);
/// Both ends notice a half-open tunnel within this time.
const SILENCE: Duration = Duration::from_secs(15);
/// An agent notices a half-open tunnel before the proxy. So a node may have a second tunnel to the proxy meanwhile.
const AGENT_KEEP_ALIVE: KeepAliveTimes = KeepAliveTimes {
    interval: Duration::from_secs(5),
    timeout: Duration::from_secs(5),
};
/// The end of a wait after a lost tunnel, the shortest backoff, and a dial of four messages.
const REDIAL: Duration = Duration::from_millis(2_000 + 100 + 4 * 50);
/// A tracker has a change of a node within this time: an earlier request gets its answer, then the change goes out.
const PROMPT: Duration = Duration::from_millis(2 * 10 + 4 * 50);
/// A session is open and has announced its nodes: the longest first wait, and four round trips.
const OPEN: Duration = Duration::from_millis(100 + 10 + 8 * 50);
/// The next heartbeat, within 30 s, gets no answer on a half-open stream. The session begins again 20 s later.
const SESSION: Duration = Duration::from_secs(30 + 20 + 5);
/// The window of a drain, and how long later the last agents have to leave.
const WINDOW: Duration = Duration::from_secs(60);
const LAST_AGENTS: Duration = Duration::from_secs(5);

/// A connection of an agent. Each end exists until it learns that the other end has ended.
struct Connection {
    agent: usize,
    tunnel: TunnelId,
    proxy: usize,
    agent_end: AgentEnd,
    proxy_end: Option<SimulatedAgent>,
    /// Nothing arrives any more, and neither end notices.
    is_silent: bool,
    /// When the last message in each direction arrives: messages stay in order.
    arrivals: [Instant; 2],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AgentEnd {
    Greeting,
    Claimed,
    Left,
    Gone,
}

/// A message that arrives at an end of a connection.
enum Event {
    ToAgent(usize, Input),
    ToProxy(usize, AgentMessage),
    ProxyEnds(usize),
}

/// A proxy, whose process may be gone.
struct Proxy {
    incarnation: u64,
    process: Option<Process>,
    /// Whether the load balancer chooses the proxy.
    is_balanced: bool,
    /// When the process began, or ended.
    since: Instant,
}

struct Process {
    listener: AgentListener,
    session: Arc<ProxySession>,
    /// The positions of the session's machines in the world of sessions.
    machines: Vec<usize>,
}

/// When a proxy last had a node, as the proxy knows and in truth.
#[derive(Clone, Copy)]
struct Hold {
    held: Option<Instant>,
    works: Option<Instant>,
    /// Since when a tunnel has worked without a break.
    works_since: Option<Instant>,
}

struct Fleet {
    seed: u64,
    random: fastrand::Rng,
    /// Has the clock of the glue.
    runtime: Runtime,
    base: Instant,
    now: Instant,
    sessions: Sessions,
    proxies: Vec<Proxy>,
    nodes: Vec<NodeId>,
    agents: Vec<PoolMachine>,
    connection_count: usize,
    connections: BTreeMap<usize, Connection>,
    last_connection: usize,
    events: BTreeMap<(Instant, u64), Event>,
    last_event: u64,
    holds: BTreeMap<(usize, usize), Hold>,
    /// The last disturbance of a session or a tracker.
    disturbed: Option<Instant>,
    /// For how long each node has had no route that works.
    unreachable: Vec<Duration>,
    trace: DefaultHasher,
}

impl Fleet {
    fn new(seed: u64, connection_count: usize) -> Self {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let base = runtime.block_on(async { clock::now() });
        let trackers = 1..=1 + seed % 2;
        let trackers = trackers.map(|number| ModelTracker::new(KEEP_ALIVE, LIMITS, number));
        let mut sessions = Sessions::new(seed, trackers.collect());
        sessions.base = base;
        sessions.latency = Duration::from_millis(1)..LATENCY;
        let nodes = (1..=AGENTS).map(|number| Uuid::from_u128(number as u128).into());
        let mut fleet = Self {
            seed,
            random: fastrand::Rng::with_seed(!seed),
            runtime,
            base,
            now: base,
            sessions,
            proxies: Vec::new(),
            nodes: nodes.collect(),
            agents: Vec::new(),
            connection_count,
            connections: BTreeMap::new(),
            last_connection: 0,
            events: BTreeMap::new(),
            last_event: 0,
            holds: BTreeMap::new(),
            disturbed: None,
            unreachable: vec![Duration::ZERO; AGENTS],
            trace: DefaultHasher::new(),
        };
        for number in 0..PROXIES {
            fleet.proxies.push(Proxy {
                incarnation: 0,
                process: None,
                is_balanced: true,
                since: base,
            });
            fleet.start(number);
        }
        for node in fleet.nodes.clone() {
            let mut config = PoolConfig::new(node);
            config.connection_count = connection_count;
            config.keep_alive = AGENT_KEEP_ALIVE;
            config.backoff = Limits {
                base: Duration::from_millis(100),
                max: Duration::from_secs(5),
            };
            let mut pool = PoolMachine::new(config, fleet.random.u64(..));
            pool.add_target(base, Target::new("main", "balancer:1"));
            fleet.agents.push(pool);
        }
        fleet
    }

    fn latency(&mut self) -> Duration {
        Duration::from_micros(self.random.u64(1_000..LATENCY.as_micros() as u64))
    }

    /// Begins the next incarnation of a proxy.
    fn start(&mut self, number: usize) {
        let id = id(number);
        let proxy = &mut self.proxies[number];
        proxy.incarnation += 1;
        proxy.is_balanced = true;
        proxy.since = self.now;
        let mut times = SessionTimes::default();
        times.reconnect.max = Duration::from_secs(3);
        let (sessions, incarnation) = (&mut self.sessions, proxy.incarnation);
        let trackers = 0..sessions.trackers.len();
        let machines = trackers.map(|tracker| sessions.add_machine(&id, incarnation, times, tracker..tracker + 1));
        let machines: Vec<_> = machines.collect();
        let sets = machines.iter().map(|&machine| &sessions.proxies[machine].nodes);
        let session = Arc::new(ProxySession::without_tasks(sets));
        let mut config = ListenerConfig::new(ProxyInfo {
            proxy_id: id,
            incarnation,
            version: String::new(),
        });
        config.list_interval = Duration::from_secs(20);
        let listener = AgentListener::new(config, ReportNodes(Arc::clone(&session)));
        proxy.process = Some(Process {
            listener: listener.expect("a valid ID"),
            session,
            machines,
        });
        self.gossip();
    }

    /// Lets all proxies learn which proxies serve agents.
    fn gossip(&mut self) {
        let processes = || self.proxies.iter().filter_map(|proxy| proxy.process.as_ref());
        let serving = processes().filter(|process| !process.listener.is_draining());
        let proxies: Vec<_> = serving.map(|process| process.listener.proxy()).collect();
        for process in processes() {
            process.listener.set_proxies(proxies.clone()).expect("a short list");
        }
        self.follow();
    }

    /// Lets the tasks of agents notice that the status of their listener has changed.
    fn follow(&mut self) {
        for connection in Vec::from_iter(self.connections.keys().copied()) {
            if let Some(end) = self.proxy_end(connection) {
                end.follow();
                self.settle_proxy_end(connection);
            }
        }
    }

    fn proxy_end(&mut self, connection: usize) -> Option<&mut SimulatedAgent> {
        self.connections.get_mut(&connection)?.proxy_end.as_mut()
    }

    fn push(&mut self, at: Instant, event: Event) {
        self.last_event += 1;
        self.events.insert((at, self.last_event), event);
    }

    /// Runs for a time, and checks the fleet after each [`STEP`].
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.run_until(end.min(self.now + STEP));
            self.check();
        }
    }

    fn run_until(&mut self, end: Instant) {
        loop {
            let event = self.events.keys().next().map(|(at, _)| *at);
            let ends = self.connections.values().filter_map(|it| it.proxy_end.as_ref());
            let timeouts = ends.filter_map(SimulatedAgent::next_timeout);
            let timeouts = timeouts.chain(self.agents.iter().filter_map(PoolMachine::next_timeout));
            let next = timeouts.chain(event).min().unwrap_or(end).max(self.now);
            self.advance(next.min(end));
            if next > end {
                return;
            }
            if event == Some(next)
                && let Some((_, event)) = self.events.pop_first()
            {
                self.happens(event);
            }
            let is_due = |timeout: Option<Instant>| timeout.is_some_and(|at| at <= next);
            for agent in 0..AGENTS {
                if is_due(self.agents[agent].next_timeout()) {
                    self.settle_agent(agent);
                }
            }
            let due = self.connections.iter().filter(|(_, connection)| {
                let end = connection.proxy_end.as_ref();
                is_due(end.and_then(SimulatedAgent::next_timeout))
            });
            for connection in Vec::from_iter(due.map(|(number, _)| *number)) {
                self.settle_proxy_end(connection);
            }
        }
    }

    /// Sets all clocks to a time, and runs the sessions up to this time.
    fn advance(&mut self, to: Instant) {
        let time = to.duration_since(self.now);
        if !time.is_zero() {
            self.runtime.block_on(time::advance(time));
        }
        self.now = to;
        self.sessions.run_until(to.duration_since(self.base));
    }

    /// Runs glue that reads the clock.
    fn in_runtime<T>(&self, act: impl FnOnce() -> T) -> T {
        let _guard = self.runtime.enter();
        assert_eq!(clock::now(), self.now, "the clocks differ, seed {}", self.seed);
        act()
    }

    fn happens(&mut self, event: Event) {
        (self.now.duration_since(self.base), discriminant(&event)).hash(&mut self.trace);
        match event {
            Event::ToAgent(number, input) => {
                let Some(connection) = self.connections.get_mut(&number) else {
                    return;
                };
                if connection.is_silent || connection.agent_end == AgentEnd::Gone {
                    return;
                }
                let (agent, tunnel) = (connection.agent, connection.tunnel);
                if let Input::Ended(_) = input {
                    connection.agent_end = AgentEnd::Gone;
                }
                self.agents[agent].handle(self.now, tunnel, input);
                self.settle_agent(agent);
                self.forget(number);
            }
            Event::ToProxy(number, message) => {
                let now = self.now;
                let connection = self.connections.get(&number);
                if connection.is_some_and(|connection| !connection.is_silent)
                    && let Some(end) = self.proxy_end(number)
                {
                    end.handle(now, message);
                    self.settle_proxy_end(number);
                }
            }
            Event::ProxyEnds(number) => {
                if let Some(connection) = self.connections.get_mut(&number)
                    && !connection.is_silent
                {
                    self.end_proxy_end(number);
                }
            }
        }
    }

    /// Forgets a connection that has no ends.
    fn forget(&mut self, number: usize) {
        let is_gone = |it: &Connection| it.agent_end == AgentEnd::Gone && it.proxy_end.is_none();
        if self.connections.get(&number).is_some_and(is_gone) {
            self.connections.remove(&number);
        }
    }

    /// Performs the actions of an agent.
    fn settle_agent(&mut self, agent: usize) {
        while let Some(action) = self.agents[agent].poll_action(self.now) {
            match action {
                Action::Connect(tunnel, _) => self.dial(agent, tunnel),
                Action::Send(tunnel, message) => {
                    let Some(number) = self.connection(agent, tunnel) else {
                        continue;
                    };
                    let connection = self.connections.get_mut(&number).expect("it is there");
                    match message.message {
                        Some(Message::Claim(_)) => connection.agent_end = AgentEnd::Claimed,
                        Some(Message::Goodbye(_)) => connection.agent_end = AgentEnd::Left,
                        _ => {}
                    }
                    let at = self.arrival(number, 0);
                    self.push(at, Event::ToProxy(number, message));
                }
                Action::Close(tunnel) => {
                    if let Some(number) = self.connection(agent, tunnel) {
                        self.connections.get_mut(&number).expect("it is there").agent_end = AgentEnd::Gone;
                        let at = self.arrival(number, 0);
                        self.push(at, Event::ProxyEnds(number));
                        self.forget(number);
                    }
                }
            }
        }
        let next = self.agents[agent].next_timeout();
        assert!(next.is_none_or(|at| at > self.now), "a loop, seed {}", self.seed);
    }

    /// The connection of an agent's tunnel, unless the agent's end has ended.
    fn connection(&self, agent: usize, tunnel: TunnelId) -> Option<usize> {
        let is_it = |it: &Connection| (it.agent, it.tunnel) == (agent, tunnel) && it.agent_end != AgentEnd::Gone;
        let mut connections = self.connections.iter();
        connections.find(|(_, it)| is_it(it)).map(|(number, _)| *number)
    }

    fn arrival(&mut self, number: usize, direction: usize) -> Instant {
        let at = self.now + self.latency();
        let Some(connection) = self.connections.get_mut(&number) else {
            return at;
        };
        let arrival = &mut connection.arrivals[direction];
        *arrival = at.max(*arrival);
        *arrival
    }

    fn dial(&mut self, agent: usize, tunnel: TunnelId) {
        let running = |proxy: &Proxy| proxy.is_balanced && proxy.process.is_some();
        let running: Vec<_> = (0..PROXIES).filter(|&number| running(&self.proxies[number])).collect();
        self.last_connection += 1;
        let number = self.last_connection;
        let chosen = self.random.choice(running);
        let process = chosen.and_then(|chosen| self.proxies[chosen].process.as_ref());
        let proxy_end = process.map(|process| SimulatedAgent::new(&process.listener, self.now));
        let input = match &proxy_end {
            Some(_) => Input::Opened,
            None => Input::Ended("refused".into()),
        };
        self.connections.insert(
            number,
            Connection {
                agent,
                tunnel,
                proxy: chosen.unwrap_or_default(),
                agent_end: AgentEnd::Greeting,
                proxy_end,
                is_silent: false,
                arrivals: [self.now; 2],
            },
        );
        let at = self.arrival(number, 1);
        self.push(at, Event::ToAgent(number, input));
    }

    /// Does what is due at the proxy's end of a connection.
    fn settle_proxy_end(&mut self, number: usize) {
        let Some(Connection {
            proxy,
            proxy_end: Some(end),
            ..
        }) = self.connections.get_mut(&number)
        else {
            return;
        };
        let proxy = *proxy;
        let (has_ended, messages) = {
            let _guard = self.runtime.enter();
            let has_ended = end.advance(self.now);
            (has_ended, Vec::from_iter(std::iter::from_fn(|| end.poll_transmit())))
        };
        for message in messages {
            let at = self.arrival(number, 1);
            self.push(at, Event::ToAgent(number, Input::Received(message)));
        }
        if has_ended {
            let at = self.arrival(number, 1);
            self.push(at, Event::ToAgent(number, Input::Ended("closed".into())));
            self.end_proxy_end(number);
        }
        self.wake(proxy);
    }

    fn end_proxy_end(&mut self, number: usize) {
        if let Some(connection) = self.connections.get_mut(&number) {
            let (proxy, end) = (connection.proxy, connection.proxy_end.take());
            self.in_runtime(|| drop(end));
            self.wake(proxy);
            self.forget(number);
        }
    }

    /// Drives the machines of a proxy's session that were woken.
    fn wake(&mut self, proxy: usize) {
        let Some(process) = &self.proxies[proxy].process else {
            return;
        };
        let is_closed = process.session.is_closed();
        let wakes = process.session.take_wakes();
        for (machine, is_woken) in process.machines.clone().into_iter().zip(wakes) {
            if is_woken {
                if is_closed {
                    let drain = session::machine::Input::Drain;
                    self.sessions.proxies[machine].machine.handle(self.now, drain);
                }
                self.sessions.drive(machine);
            }
        }
    }
}

/// # Faults
impl Fleet {
    fn process(&self, proxy: usize) -> &Process {
        self.proxies[proxy].process.as_ref().expect("the proxy runs")
    }

    /// Ends the process of a proxy, with its tunnels. Its trackers may not notice.
    fn kill(&mut self, proxy: usize) {
        let is_half_open = self.random.bool();
        let process = self.proxies[proxy].process.take().expect("the proxy runs");
        self.proxies[proxy].since = self.now;
        for machine in process.machines {
            self.sessions.cut(machine, is_half_open);
            self.sessions.sleep_until(machine, Duration::MAX);
        }
        for number in self.connections_of(|it| it.proxy == proxy && it.proxy_end.is_some()) {
            let at = self.arrival(number, 1);
            self.push(at, Event::ToAgent(number, Input::Ended("reset".into())));
            self.end_proxy_end(number);
        }
        self.gossip();
    }

    fn restart_proxy(&mut self, proxy: usize) {
        if self.proxies[proxy].process.is_some() {
            self.kill(proxy);
        }
        self.start(proxy);
    }

    fn connections_of(&self, condition: impl Fn(&Connection) -> bool) -> Vec<usize> {
        let connections = self.connections.iter().filter(|(_, connection)| condition(connection));
        connections.map(|(number, _)| *number).collect()
    }

    /// Makes a connection of an agent half open.
    fn silence(&mut self) {
        let claimed = self.connections_of(|it| it.agent_end == AgentEnd::Claimed);
        if let Some(number) = self.random.choice(claimed)
            && let Some(connection) = self.connections.get_mut(&number)
        {
            connection.is_silent = true;
        }
    }

    fn restart_tracker(&mut self) {
        let tracker = self.random.usize(..self.sessions.trackers.len());
        self.sessions.restart(tracker, false);
        self.disturbed = Some(self.now);
    }

    fn cut_session(&mut self, proxy: usize) {
        let is_half_open = self.random.bool();
        let machine = self.random.choice(self.process(proxy).machines.clone());
        self.sessions.cut(machine.expect("a tracker"), is_half_open);
        self.disturbed = Some(self.now);
    }

    /// Stops a proxy as `ProxyService::stop` does. The load balancer notices after some seconds.
    fn drain(&mut self, proxy: usize) {
        self.process(proxy).listener.drain(WINDOW);
        self.gossip();
        self.run(Duration::from_secs(5));
        self.proxies[proxy].is_balanced = false;
        let end = self.now + WINDOW + LAST_AGENTS;
        while self.now < end && !self.process(proxy).listener.nodes().is_empty() {
            self.run(STEP);
        }
        self.in_runtime(|| self.process(proxy).listener.close_at_once());
        self.follow();
        self.run(STEP);
        let session = Arc::clone(&self.process(proxy).session);
        self.in_runtime(|| drop(session.drain(Duration::from_secs(5)).now_or_never()));
        self.wake(proxy);
        self.run(4 * LATENCY);
        for &machine in &self.process(proxy).machines {
            // After a disturbance, the routes may stay until they expire.
            let has_ended = self.sessions.proxies[machine].machine.has_ended();
            assert!(has_ended || self.opened(proxy) >= self.now, "seed {}", self.seed);
        }
        self.kill(proxy);
    }

    /// Causes one of several faults.
    fn fault(&mut self) {
        let proxy = self.random.usize(..PROXIES);
        match (self.random.u32(0..10), self.proxies[proxy].process.is_some()) {
            (0..=1, true) => self.kill(proxy),
            (2, true) => self.restart_proxy(proxy),
            (3, true) => self.drain(proxy),
            (4, true) => self.cut_session(proxy),
            (0..=4, false) => self.restart_proxy(proxy),
            (5, _) => self.restart_tracker(),
            _ => self.silence(),
        }
    }
}

/// # Checks
impl Fleet {
    /// The nodes and the proxies with a tunnel that works.
    fn works(&self) -> BTreeSet<(usize, usize)> {
        let works = |it: &&Connection| {
            let is_held = it.proxy_end.as_ref().is_some_and(SimulatedAgent::is_held);
            it.agent_end == AgentEnd::Claimed && is_held && !it.is_silent
        };
        let connections = self.connections.values().filter(works);
        connections.map(|it| (it.agent, it.proxy)).collect()
    }

    /// The nodes and the proxies with a route.
    fn routes(&self, tracker: usize) -> BTreeSet<(usize, usize)> {
        let (now, tracker) = (self.now.duration_since(self.base), &self.sessions.trackers[tracker]);
        let of_proxy = |proxy| {
            let nodes = tracker.nodes(&id(proxy), now);
            nodes.into_iter().map(move |node| (self.number(&node), proxy))
        };
        (0..PROXIES).flat_map(of_proxy).collect()
    }

    fn number(&self, node: &NodeId) -> usize {
        self.nodes
            .iter()
            .position(|other| other == node)
            .expect("an agent's node")
    }

    fn trackers(&self) -> impl Iterator<Item = BTreeSet<(usize, usize)>> {
        (0..self.sessions.trackers.len()).map(|tracker| self.routes(tracker))
    }

    /// When the sessions of a proxy have announced its nodes, at the latest.
    fn opened(&self, proxy: usize) -> Instant {
        let opened = self.proxies[proxy].since + OPEN;
        self.disturbed.map_or(opened, |at| opened.max(at + SESSION))
    }

    fn check(&mut self) {
        let (now, seed, works) = (self.now, self.seed, self.works());
        for proxy in 0..PROXIES {
            let process = self.proxies[proxy].process.as_ref();
            let nodes = process.map(|process| process.listener.nodes()).unwrap_or_default();
            let held: BTreeSet<_> = nodes.iter().map(|node| self.number(node)).collect();
            for agent in 0..AGENTS {
                let (works, held) = (works.contains(&(agent, proxy)), held.contains(&agent));
                let hold = self.holds.entry((agent, proxy)).or_insert(Hold {
                    held: None,
                    works: None,
                    works_since: None,
                });
                assert!(held || !works, "proxy {proxy} does not know node {agent}, seed {seed}");
                if held {
                    hold.held = Some(now);
                }
                if works {
                    hold.works = Some(now);
                }
                hold.works_since = works.then(|| hold.works_since.unwrap_or(now));
                let silence = hold.works.map(|at| now.duration_since(at));
                assert!(
                    !held || silence.is_some_and(|silence| silence <= SILENCE + 2 * LATENCY + STEP),
                    "proxy {proxy} has node {agent} {silence:?} after its tunnel broke, seed {seed}"
                );
            }
        }
        let routes: Vec<_> = self.trackers().collect();
        for (&(agent, proxy), hold) in &self.holds {
            let process = &self.proxies[proxy].process;
            let opened = self.opened(proxy);
            let at = now.duration_since(self.base);
            for (tracker, routes) in routes.iter().enumerate() {
                let what = || format!("tracker {tracker}, node {agent}, proxy {proxy}, at {at:?}, seed {seed}");
                match (routes.contains(&(agent, proxy)), hold.works_since) {
                    (true, None) => {
                        let age = hold.held.map(|at| now.duration_since(at));
                        let is_prompt = process.is_some() && opened < now;
                        let bound = if is_prompt { PROMPT } else { KEEP_ALIVE + LATENCY } + STEP;
                        assert!(
                            age.is_some_and(|age| age <= bound),
                            "a route stays for {age:?}: {}",
                            what()
                        );
                    }
                    (false, Some(since)) => {
                        let lost = now.saturating_duration_since(since.max(opened));
                        assert!(lost <= PROMPT + STEP, "no route for {lost:?}: {}", what());
                    }
                    _ => {}
                }
            }
        }
        for agent in 0..AGENTS {
            let is_reachable = |routes: &BTreeSet<_>| {
                (0..PROXIES).any(|proxy| routes.contains(&(agent, proxy)) && works.contains(&(agent, proxy)))
            };
            match routes.iter().all(is_reachable) {
                true => self.unreachable[agent] = Duration::ZERO,
                false => self.unreachable[agent] += STEP,
            }
        }
    }

    /// Whether each agent has its tunnels, and each tracker has the routes of these tunnels, and no others.
    fn has_recovered(&self) -> bool {
        let works = self.works();
        let running = self.proxies.iter().filter(|proxy| proxy.process.is_some()).count();
        let wanted = self.connection_count.min(running);
        let tunnels = |agent| works.iter().filter(|(of, _)| *of == agent).count();
        (0..AGENTS).all(|agent| tunnels(agent) == wanted) && self.trackers().all(|routes| routes == works)
    }

    /// Runs until the fleet has recovered, and for an interval more. Returns how long the recovery takes.
    fn recovery(&mut self, begun: Instant, reachable_within: Duration) -> Recovery {
        while !self.has_recovered() {
            self.run(STEP);
            let unreachable = self.unreachable.iter().max().copied().unwrap_or_default();
            let (time, seed) = (self.now.duration_since(begun), self.seed);
            assert!(
                unreachable <= reachable_within,
                "unreachable for {unreachable:?}, seed {seed}"
            );
            assert!(time < 3 * KEEP_ALIVE, "no recovery, seed {seed}");
        }
        let time = self.now.duration_since(begun);
        self.run(KEEP_ALIVE);
        assert!(self.has_recovered(), "seed {}", self.seed);
        let live = AGENTS * self.connection_count;
        assert_eq!(self.connections.len(), live, "a connection leaks, seed {}", self.seed);
        for process in self.proxies.iter().filter_map(|proxy| proxy.process.as_ref()) {
            for &machine in &process.machines {
                let machine = &self.sessions.proxies[machine];
                assert!(machine.machine.is_settled(), "seed {}", self.seed);
                assert_eq!(
                    machine.nodes.len(),
                    process.listener.nodes().len(),
                    "seed {}",
                    self.seed
                );
            }
        }
        self.sessions.trace().hash(&mut self.trace);
        let trace = self.trace.finish();
        Recovery { time, trace }
    }
}

fn id(proxy: usize) -> String {
    format!("proxy-{proxy}")
}

/// Causes one fault in a fleet whose agents have a tunnel each. During the recovery, no node is unreachable for longer
/// than `reachable_within`.
fn one_fault(seed: u64, reachable_within: Duration, fault: impl FnOnce(&mut Fleet)) -> Recovery {
    let mut fleet = Fleet::new(seed, 1);
    fleet.run(Duration::from_secs(10) + Duration::from_millis(seed * 997 % 30_000));
    assert!(fleet.has_recovered(), "seed {seed}");
    let begun = fleet.now;
    fault(&mut fleet);
    fleet.recovery(begun, reachable_within)
}

/// Causes faults for five minutes, then none.
fn faults_for_five_minutes(seed: u64) -> Recovery {
    let mut fleet = Fleet::new(seed, 1 + (seed % 2) as usize);
    while fleet.now.duration_since(fleet.base) < Duration::from_secs(300) {
        let time = Duration::from_millis(fleet.random.u64(0..20_000));
        fleet.run(time);
        fleet.fault();
    }
    let begun = fleet.now;
    for proxy in 0..PROXIES {
        if fleet.proxies[proxy].process.is_none() {
            fleet.start(proxy);
        }
    }
    fleet.recovery(begun, Duration::MAX)
}

recoveries! {
    100;
    agent_is_half_open: Fault {
        name: "an agent's tunnel is half open: its node has a route again, and no other route",
        bound: SILENCE.saturating_add(REDIAL).saturating_add(PROMPT),
        cost: 1,
        recovery: |seed| one_fault(seed, SILENCE + REDIAL + PROMPT, Fleet::silence),
    },
    proxy_is_killed: Fault {
        name: "a proxy is killed: its nodes have other routes, and its own routes expire",
        bound: KEEP_ALIVE.saturating_add(LATENCY),
        cost: 1,
        recovery: |seed| one_fault(seed, REDIAL + PROMPT, |fleet| fleet.kill(0)),
    },
    proxy_restarts: Fault {
        name: "a proxy restarts under its ID: its nodes have routes, and its old routes are gone",
        bound: REDIAL.saturating_add(PROMPT),
        cost: 1,
        recovery: |seed| one_fault(seed, REDIAL + PROMPT, |fleet| fleet.restart_proxy(0)),
    },
    tracker_restarts: Fault {
        name: "a tracker restarts without a snapshot: it has the routes of all tunnels",
        bound: OPEN.saturating_add(Duration::from_secs(1)),
        cost: 1,
        recovery: |seed| one_fault(seed, OPEN + Duration::from_secs(1), Fleet::restart_tracker),
    },
    proxy_drains: Fault {
        name: "a proxy stops within a minute: each node keeps a route, and the proxy's routes end",
        bound: WINDOW.saturating_add(LAST_AGENTS).saturating_add(PROMPT),
        cost: 1,
        recovery: |seed| one_fault(seed, PROMPT, |fleet| fleet.drain(0)),
    },
    five_minutes_of_random_faults: Fault {
        name: "five minutes of random faults of tunnels, proxies, sessions and trackers",
        bound: Duration::from_secs(180),
        cost: 2,
        recovery: faults_for_five_minutes,
    },
}
