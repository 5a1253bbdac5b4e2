//! The state machine of a session with one tracker, without I/O.
//!
//! ```text
//!              connect           hello            welcome
//!   WAITING ────────────▶ CALLING ──────▶ GREETING ──────▶ OPEN ─────▶ ENDED
//!      ▲                                      │             │  superseded, drained
//!      └──────────────────────────────────────┴─────────────┘
//!            stream lost, no answer in time, contract violated: wait with backoff
//! ```
//!
//! The driver calls [`handle`](Machine::handle) with what it received. Then it calls
//! [`handle_timeout`](Machine::handle_timeout), and [`poll_event`](Machine::poll_event) and
//! [`poll_transmit`](Machine::poll_transmit) in turns, until both return `None`. It does the same at each
//! [`next_timeout`](Machine::next_timeout), and after a change of the [`NodeSet`] that reports something to do.
//!
//! # What is sent
//!
//! Requests go out while fewer than [`MAX_IN_FLIGHT`] have no answer, because the tracker reads no request while
//! answers wait. Withdrawals go first, then heartbeats, then announcements.
//!
//! * A *round* of heartbeats begins once an interval. The round has the handles of all nodes that were seen since the
//!   last round. So each sign of life is reported once, within an interval, and a silent node is not refreshed.
//! * Announcements have a bounded pace. If the tracker has lost its routes, the announcements begin after a random
//!   wait.
//! * The machine collects handles that the tracker reports as gone during a round. One *pass* over all nodes after the
//!   round finds their nodes.
//!
//! # Memory
//!
//! Two queues have up to [`BACKLOG`] IDs each, and room for the IDs that are in flight. A round has eight bytes for
//! each node.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodetracker::{NodeId, ProxyDetails};
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;

pub use nodetracker_proto::v1::SessionSupersededReason;

use crate::backoff::Backoff;
use crate::session::messages::{self, Batch, Terms, Violation};
use crate::session::nodes::{NodeSet, Outcome, Pass, Task};
use crate::session::stats::Counters;
use crate::session::times::SessionTimes;
use crate::wire;

/// The most requests without an answer.
pub const MAX_IN_FLIGHT: usize = 8;

/// The most IDs that a pass or a flush puts into a queue.
pub const BACKLOG: usize = 65_536;

/// For how long a hello without an answer may still arrive at the tracker.
const LATE_HELLO: Duration = Duration::from_secs(60);

/// How often a session begins again because of its own late hellos, after [`SessionSupersededReason::NewerSession`].
const MAX_RETAKES: u32 = 3;

/// The longest time left that a go-away can name.
const MAX_TIME_LEFT: Duration = Duration::from_secs(3600);

/// Who reports the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The proxy.
    pub proxy: ProxyDetails,
    /// A number that grows with each start of the proxy, below 2^63.
    pub incarnation: NonZeroU64,
}

/// What the driver received, or what its program asks for.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// A message of the present stream.
    Message(v1::SessionResponse),
    /// The present stream has ended, or it could not begin.
    Lost,
    /// The present stream could not begin, and the tracker has received nothing of it.
    Unreachable,
    /// The proxy is about to stop: end the incarnation with all of its routes.
    Drain,
}

/// What the driver has to do, or to report.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Begin a stream. What [`poll_transmit`](Machine::poll_transmit) returns from now on is for this stream.
    Connect {
        /// The position of the tracker in the list of trackers.
        tracker: usize,
        /// Whether the present stream must stay open, although its messages no longer count, until [`Event::Moved`].
        keeps_previous: bool,
    },
    /// The new tracker has all nodes: drop the stream before the present stream.
    Moved,
    /// Drop the present stream. An [`Event::Connect`] follows later.
    Disconnect(Fault),
    /// Another process is this proxy now, or an operator has removed the proxy. The machine has ended.
    Superseded(Superseded),
    /// The tracker has ended the incarnation. The machine has ended.
    Drained,
}

/// Why the machine ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The tracker violates the contract.
    #[error("the tracker violates the contract: {0}")]
    Violation(#[from] Violation),
    /// No answer came in time.
    #[error("the tracker did not answer in time")]
    NoAnswer,
    /// A late hello of this session has taken over the proxy.
    #[error("a late hello of this session has taken over the proxy")]
    LateHello,
}

/// Why a session has ended and is not begun again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session was superseded ({}); the latest incarnation is {latest_incarnation}", .reason.as_str_name())]
pub struct Superseded {
    /// The tracker's reason.
    pub reason: SessionSupersededReason,
    /// The latest incarnation of the proxy that the tracker knows.
    pub latest_incarnation: u64,
}

/// The session of a proxy with one tracker, or with one of several trackers at a time.
#[derive(Debug)]
pub struct Machine {
    nodes: Arc<NodeSet>,
    identity: Identity,
    times: SessionTimes,
    random: fastrand::Rng,
    state: State,
    /// The position of the present tracker among `trackers` trackers.
    tracker: usize,
    trackers: usize,
    reconnect: Backoff,
    /// Hellos that may still arrive at the tracker, until `late_until`.
    unanswered_hellos: u32,
    late_until: Instant,
    /// The terms of the last welcome.
    terms: Option<Terms>,
    sequence: u64,
    in_flight: VecDeque<InFlight>,
    last_answer: Instant,
    queues: Queues,
    /// When the collected changes are sent.
    flush_at: Option<Instant>,
    announce_at: Instant,
    refused: Backoff,
    refused_until: Option<Instant>,
    /// The handles of this round that were not sent.
    round: Vec<u64>,
    last_round: Instant,
    next_round: Option<Instant>,
    /// Whether the last round was not sent, or was lost.
    owes_round: bool,
    gone: Vec<u64>,
    owes_sign_of_life: bool,
    /// When to go to another tracker.
    move_at: Option<Instant>,
    is_moving: bool,
    wants_drain: bool,
    /// On any stream: an answer may have been lost.
    has_sent_drain: bool,
    events: VecDeque<Event>,
    counters: Counters,
}

/// The nodes that need a request.
#[derive(Debug, Default)]
struct Queues {
    announce: VecDeque<NodeId>,
    withdraw: VecDeque<NodeId>,
    /// Whether some nodes may need a request and are in no queue.
    needs_pass: bool,
}

impl Queues {
    fn of(&mut self, task: Task) -> &mut VecDeque<NodeId> {
        match task {
            Task::Announce => &mut self.announce,
            Task::Withdraw => &mut self.withdraw,
        }
    }

    /// Queues a node. If the queue is full, returns `false`, and a pass has to find the node later. A queue that is
    /// full of refused announcements leaves room for withdrawals.
    fn push(&mut self, node: NodeId, task: Task) -> bool {
        let has_room = self.of(task).len() < BACKLOG;
        if has_room {
            self.of(task).push_back(node);
        }
        self.needs_pass |= !has_room;
        has_room
    }

    fn are_empty(&self) -> bool {
        self.announce.is_empty() && self.withdraw.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting { until: Instant },
    Calling,
    Greeting,
    Open,
    Ended,
}

/// A request without an answer.
#[derive(Debug)]
struct InFlight {
    sequence: u64,
    sent_at: Instant,
    sent: Sent,
}

#[derive(Debug)]
enum Sent {
    Hello,
    Up(Vec<NodeId>),
    Down(Vec<NodeId>),
    /// The number of handles.
    Heartbeat(usize),
    Drain,
}

impl Machine {
    /// Creates a machine that connects at once to the first of `trackers` trackers; 0 means 1. Machines with the same
    /// seed and the same inputs do the same.
    #[must_use]
    pub fn new(
        nodes: Arc<NodeSet>,
        identity: Identity,
        trackers: usize,
        times: SessionTimes,
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let times = times.bounded();
        Self {
            nodes,
            identity,
            times,
            state: State::Waiting { until: now },
            tracker: 0,
            trackers: trackers.max(1),
            reconnect: Backoff::new(times.reconnect, random.u64(..)),
            unanswered_hellos: 0,
            late_until: now,
            terms: None,
            sequence: 0,
            in_flight: VecDeque::new(),
            last_answer: now,
            queues: Queues::default(),
            flush_at: None,
            announce_at: now,
            refused: Backoff::new(times.refused, random.u64(..)),
            refused_until: None,
            round: Vec::new(),
            last_round: now,
            next_round: None,
            owes_round: false,
            gone: Vec::new(),
            owes_sign_of_life: false,
            move_at: None,
            is_moving: false,
            wants_drain: false,
            has_sent_drain: false,
            events: VecDeque::new(),
            counters: Counters::default(),
            random,
        }
    }

    /// Takes an input. Ignores messages of streams that the machine has ended.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match (self.state, input) {
            (State::Ended, _) => {}
            (_, Input::Drain) => self.drain(now),
            (State::Greeting | State::Open, Input::Message(message)) => {
                if let Err(fault) = self.on_message(now, message) {
                    self.give_up(now, fault);
                }
            }
            (State::Calling | State::Greeting, Input::Unreachable) => {
                // The hello cannot arrive.
                self.state = State::Calling;
                self.lose(now);
            }
            (State::Calling | State::Greeting | State::Open, Input::Lost | Input::Unreachable) => self.lose(now),
            (_, Input::Message(_) | Input::Lost | Input::Unreachable) => {}
        }
    }

    /// Does what is due. Once an interval, makes a pass over all nodes.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.state {
            State::Waiting { .. } if self.wants_drain && self.is_unknown(now) => self.end(Event::Drained),
            State::Waiting { until } if now >= until => self.connect(false),
            State::Greeting | State::Open if self.answer_is_due().is_some_and(|at| now >= at) => {
                self.give_up(now, Fault::NoAnswer);
            }
            State::Open if self.move_at.is_some_and(|at| now >= at) => {
                self.forget_stream(now);
                self.tracker = (self.tracker + 1) % self.trackers;
                self.is_moving = true;
                self.connect(true);
            }
            _ => {}
        }
        if self.state != State::Ended && self.round.is_empty() && self.next_round.is_some_and(|at| now >= at) {
            self.begin_round(now);
        }
        if self.is_moving && self.is_settled() {
            self.is_moving = false;
            self.events.push_back(Event::Moved);
        }
    }

    /// Returns the next thing that the driver has to do.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Returns the next message for the present stream.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<v1::SessionRequest> {
        match self.state {
            State::Calling => {
                self.state = State::Greeting;
                let hello = self.hello();
                Some(self.request(now, Sent::Hello, hello))
            }
            State::Open => {
                let terms = self.terms?;
                loop {
                    self.collect(now);
                    let lens = |queues: &Queues| (queues.announce.len(), queues.withdraw.len());
                    let before = lens(&self.queues);
                    let request = self.next_request(now, &terms);
                    // If a queue's nodes need no request, or need the other request, there may be more to send now.
                    if request.is_some() || before == lens(&self.queues) {
                        return request;
                    }
                }
            }
            _ => None,
        }
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout) next.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        let round = self.next_round.filter(|_| self.round.is_empty());
        match self.state {
            State::Waiting { until } => Some(round.map_or(until, |round| round.min(until))),
            State::Calling | State::Ended => None,
            State::Greeting => self.answer_is_due(),
            State::Open => {
                let has_room = self.in_flight.len() < MAX_IN_FLIGHT && !self.wants_drain;
                let announce = (has_room && !self.queues.announce.is_empty()).then(|| self.announce_is_due());
                let due = [self.answer_is_due(), round, self.flush_at, self.move_at, announce];
                due.into_iter().flatten().min()
            }
        }
    }

    /// Whether a tracker has accepted the session, and the stream is not lost.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// The heartbeat interval that the tracker dictates. `None` before the first welcome.
    #[must_use]
    pub fn heartbeat_interval(&self) -> Option<Duration> {
        self.terms.map(|terms| terms.interval)
    }

    /// Whether the session is over: superseded or drained.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }

    /// Whether the tracker has confirmed every announcement and withdrawal.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let is_pending = |request: &InFlight| matches!(request.sent, Sent::Up(_) | Sent::Down(_));
        self.is_open()
            && !self.queues.needs_pass
            && self.queues.are_empty()
            && self.gone.is_empty()
            && !self.nodes.has_changes()
            && !self.in_flight.iter().any(is_pending)
    }

    /// Returns the counts so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }
}

/// # The stream
impl Machine {
    fn connect(&mut self, keeps_previous: bool) {
        self.state = State::Calling;
        self.events.push_back(Event::Connect {
            tracker: self.tracker,
            keeps_previous,
        });
    }

    fn give_up(&mut self, now: Instant, fault: Fault) {
        self.counters.faults += 1;
        self.events.push_back(Event::Disconnect(fault));
        self.lose(now);
    }

    fn lose(&mut self, now: Instant) {
        if self.state == State::Greeting {
            self.unanswered_hellos = (self.unanswered_hellos + 1).min(MAX_RETAKES);
            self.late_until = now + LATE_HELLO;
        }
        self.counters.lost_streams += 1;
        self.forget_stream(now);
        self.is_moving = false;
        self.tracker = (self.tracker + 1) % self.trackers;
        let wait = self.reconnect.next_wait();
        let is_drained = self.wants_drain && self.is_unknown(now);
        self.state = State::Waiting {
            until: if is_drained { now } else { now + wait },
        };
    }

    /// Forgets the requests of a stream. The tracker may have done them or not.
    fn forget_stream(&mut self, now: Instant) {
        self.owes_round |= !self.is_round_over();
        for request in std::mem::take(&mut self.in_flight) {
            if let Sent::Up(nodes) | Sent::Down(nodes) = request.sent {
                for node in &nodes {
                    self.settle(node, Outcome::Unknown, now);
                }
            }
        }
        self.round = Vec::new();
        self.owes_sign_of_life = false;
        self.move_at = None;
        self.flush_at = None;
    }

    fn end(&mut self, event: Event) {
        self.state = State::Ended;
        self.in_flight = VecDeque::new();
        self.queues = Queues::default();
        self.round = Vec::new();
        self.events.push_back(event);
    }

    fn drain(&mut self, now: Instant) {
        if std::mem::replace(&mut self.wants_drain, true) {
            return;
        }
        if let State::Waiting { until } = &mut self.state {
            *until = now;
        }
    }

    /// Whether no tracker knows the session, or can still learn about it.
    fn is_unknown(&self, now: Instant) -> bool {
        self.terms.is_none() && (self.unanswered_hellos == 0 || now >= self.late_until)
    }

    fn answer_is_due(&self) -> Option<Instant> {
        let oldest = self.in_flight.front()?;
        Some(oldest.sent_at.max(self.last_answer) + self.times.answer_timeout)
    }
}

/// # Messages of the tracker
impl Machine {
    fn on_message(&mut self, now: Instant, message: v1::SessionResponse) -> Result<(), Fault> {
        let Some(response) = message.response else {
            // A newer tracker's message.
            return Ok(());
        };
        match response {
            Response::Superseded(superseded) => return self.on_superseded(now, superseded),
            Response::KeepAlive(_) => self.owes_sign_of_life = true,
            Response::GoAway(go_away) => self.on_go_away(now, go_away),
            response => {
                let is_next = |oldest: &mut InFlight| oldest.sequence == message.sequence;
                let request = self.in_flight.pop_front_if(is_next).ok_or(Violation::Order)?;
                self.last_answer = now;
                let is_greeted = self.state == State::Open;
                if let Err(violation) = self.on_answer(now, &request.sent, response) {
                    // The stream ends, with all of its requests.
                    self.in_flight.push_front(request);
                    return Err(violation.into());
                }
                // A welcome alone is no success, because the next answer may end the stream again.
                if is_greeted {
                    self.reconnect.reset();
                }
            }
        }
        Ok(())
    }

    fn on_answer(&mut self, now: Instant, sent: &Sent, response: Response) -> Result<(), Violation> {
        match (sent, response) {
            (Sent::Hello, Response::Welcome(welcome)) => self.on_welcome(now, Terms::try_from(welcome)?),
            (Sent::Up(nodes), Response::Handles(answer)) => self.on_handles(now, nodes, &answer.handles)?,
            (Sent::Down(nodes), Response::Ack(ack)) => {
                self.counters.withdrawn_nodes += nodes.len() as u64;
                for node in nodes {
                    self.settle(node, Outcome::Withdrawn, now);
                }
                self.on_interval(now, ack)?;
            }
            (Sent::Heartbeat(count), Response::Ack(ack)) => {
                let before = self.gone.len();
                self.gone.extend(messages::handles(&ack.gone_handles, *count)?);
                self.counters.gone_handles += (self.gone.len() - before) as u64;
                self.on_interval(now, ack)?;
            }
            (Sent::Heartbeat(_), Response::Resync(_)) => self.announce_all(now, false),
            (Sent::Drain, Response::Ack(_)) => self.end(Event::Drained),
            _ => return Err(Violation::Kind),
        }
        Ok(())
    }

    fn on_welcome(&mut self, now: Instant, terms: Terms) {
        let previous = self.terms.replace(terms);
        let is_resumed = previous.is_some_and(|previous| terms.handles_hold && terms.generation == previous.generation);
        self.state = State::Open;
        self.counters.sessions += 1;
        if is_resumed {
            let latest = if self.owes_round { now } else { now + terms.interval };
            self.next_round = self.next_round.map(|next| next.min(latest));
            return;
        }
        self.next_round = Some(now + terms.interval.mul_f64(0.5 + self.random.f64() / 2.0));
        self.announce_all(now, previous.is_none());
    }

    fn on_handles(&mut self, now: Instant, nodes: &[NodeId], handles: &[u8]) -> Result<(), Violation> {
        let count = nodes.len();
        let outcomes = messages::handles(handles, count)?
            .map(Outcome::Announced)
            .chain(std::iter::repeat(Outcome::Unknown));
        let mut announced = 0;
        for (node, outcome) in nodes.iter().zip(outcomes) {
            announced += usize::from(matches!(outcome, Outcome::Announced(_)));
            self.settle(node, outcome, now);
        }
        self.counters.announced_nodes += announced as u64;
        self.counters.refused_nodes += (count - announced) as u64;
        if self.refused_until.is_some_and(|until| now < until) {
            return Ok(());
        }
        if announced < count {
            self.refused_until = Some(now + self.refused.next_wait());
        } else {
            self.refused_until = None;
            self.refused.reset();
        }
        Ok(())
    }

    fn on_interval(&mut self, now: Instant, ack: v1::SessionAck) -> Result<(), Violation> {
        if let (Some(terms), wire @ Some(_)) = (&mut self.terms, ack.heartbeat_interval) {
            terms.interval = messages::interval(wire)?.min(terms.lifetime / 2);
            let next = now + terms.interval;
            self.next_round = self.next_round.map(|round| round.min(next));
        }
        Ok(())
    }

    fn on_go_away(&mut self, now: Instant, go_away: v1::SessionGoAway) {
        // A client of one tracker waits for the end of the stream.
        if self.trackers > 1 && !self.wants_drain {
            let left = messages::interval(go_away.time_left)
                .unwrap_or_default()
                .min(MAX_TIME_LEFT);
            // The last quarter is left for the move.
            self.move_at = Some(now + left.mul_f64(0.75 * self.random.f64()));
        }
    }

    fn on_superseded(&mut self, now: Instant, superseded: v1::SessionSuperseded) -> Result<(), Fault> {
        match superseded.reason() {
            SessionSupersededReason::ProxyRemoved if self.has_sent_drain => self.end(Event::Drained),
            SessionSupersededReason::NewerSession if self.unanswered_hellos > 0 && now < self.late_until => {
                self.unanswered_hellos -= 1;
                // This hello has its answer.
                self.state = State::Open;
                return Err(Fault::LateHello);
            }
            reason => self.end(Event::Superseded(Superseded {
                reason,
                latest_incarnation: superseded.latest_incarnation,
            })),
        }
        Ok(())
    }
}

/// # Nodes
impl Machine {
    /// The longest silence of a node that is announced or refreshed: an interval, or a little more if the last round
    /// was late.
    fn window(&self, now: Instant) -> Duration {
        let interval = self.terms.map_or(Duration::ZERO, |terms| terms.interval);
        now.saturating_duration_since(self.last_round)
            .clamp(interval, interval.mul_f64(1.5))
    }

    fn settle(&mut self, node: &NodeId, outcome: Outcome, now: Instant) {
        if let Some(task) = self.nodes.settle(node, outcome, self.window(now), now) {
            self.queues.of(task).push_back(node.clone());
        }
    }

    /// Moves changed nodes to the queues.
    fn collect(&mut self, now: Instant) {
        if self.nodes.has_changes() {
            let due = *self.flush_at.get_or_insert(now + self.times.batch_delay);
            if now >= due {
                self.flush_at = None;
                self.flush(now);
            }
        }
        self.queues.needs_pass |= self.is_round_over() && !self.gone.is_empty();
        if self.queues.needs_pass && self.queues.are_empty() {
            self.pass(now, false, None);
        }
    }

    fn flush(&mut self, now: Instant) {
        let window = self.window(now);
        self.nodes.begin_flush();
        // Takes all changes, even if a queue is full: withdrawals may be behind announcements. A change that finds no
        // room waits for a pass, at most until the next round.
        // The loop is bounded because other threads may add changes faster than the loop takes them.
        for _ in 0..BACKLOG {
            let Some(node) = self.nodes.next_changed() else { break };
            let queues = &mut self.queues;
            self.nodes
                .task(&node, window, now, |task| queues.push(node.clone(), task));
        }
        self.queues.needs_pass |= self.nodes.take_overflow();
        if self.nodes.has_changes() {
            self.flush_at = Some(now + self.times.batch_delay);
        }
    }

    /// Makes a pass over all nodes.
    fn pass(&mut self, now: Instant, discards_handles: bool, handles: Option<&mut Vec<u64>>) {
        self.counters.passes += 1;
        let mut gone = std::mem::take(&mut self.gone);
        gone.sort_unstable();
        let pass = Pass {
            window: self.window(now),
            lifetime: self.terms.map_or(Duration::MAX, |terms| terms.lifetime),
            discards_handles,
            gone: &gone,
            handles,
        };
        // This pass finds the changes of the flag.
        self.nodes.take_overflow();
        self.queues.needs_pass = false;
        let queues = &mut self.queues;
        self.nodes.pass(pass, now, |node, task| queues.push(node, task));
    }

    /// Announces all nodes, because the tracker has none of them. Unless this is the first time, the announcements
    /// begin after a random wait: other proxies of the tracker may do the same at this moment.
    fn announce_all(&mut self, now: Instant, is_first: bool) {
        self.counters.full_announcements += 1;
        self.announce_at = now;
        if !is_first {
            self.announce_at += self.times.announce_jitter.mul_f64(self.random.f64());
        }
        self.round = Vec::new();
        self.gone = Vec::new();
        self.pass(now, true, None);
    }

    fn is_round_over(&self) -> bool {
        let is_heartbeat = |request: &InFlight| matches!(request.sent, Sent::Heartbeat(_));
        self.round.is_empty() && !self.in_flight.iter().any(is_heartbeat)
    }

    /// Begins a round of heartbeats. Without a stream, only forgets nodes whose routes have expired.
    fn begin_round(&mut self, now: Instant) {
        let Some(terms) = self.terms else { return };
        let mut handles = Vec::new();
        let is_open = self.state == State::Open;
        self.pass(now, false, is_open.then_some(&mut handles));
        self.last_round = now;
        self.next_round = Some(now + terms.interval);
        self.owes_round = !is_open;
        if is_open {
            self.owes_sign_of_life |= handles.is_empty();
            self.round = handles;
        }
    }
}

/// # Requests
impl Machine {
    fn next_request(&mut self, now: Instant, terms: &Terms) -> Option<v1::SessionRequest> {
        let is_draining = self
            .in_flight
            .back()
            .is_some_and(|last| matches!(last.sent, Sent::Drain));
        if self.in_flight.len() >= MAX_IN_FLIGHT || is_draining {
            return None;
        }
        if self.wants_drain {
            self.has_sent_drain = true;
            return Some(self.request(now, Sent::Drain, Request::Drain(v1::SessionDrain {})));
        }
        if let Some((field, nodes)) = self.batch(now, Task::Withdraw, terms) {
            let down = v1::SessionNodesDown { nodes: Some(field) };
            return Some(self.request(now, Sent::Down(nodes), Request::NodesDown(down)));
        }
        if !self.round.is_empty() || self.owes_sign_of_life {
            self.owes_sign_of_life = false;
            let (heartbeat, count) = messages::heartbeat(&mut self.round, terms.limits);
            if self.round.is_empty() {
                self.round = Vec::new();
            }
            self.counters.heartbeat_handles += count as u64;
            return Some(self.request(now, Sent::Heartbeat(count), heartbeat));
        }
        if now < self.announce_is_due() {
            return None;
        }
        let (field, nodes) = self.batch(now, Task::Announce, terms)?;
        let seconds = nodes.len() as f64 / f64::from(self.times.announced_per_second.max(1));
        self.announce_at = self.announce_at.max(now) + Duration::from_secs_f64(seconds);
        let up = v1::SessionNodesUp { nodes: Some(field) };
        Some(self.request(now, Sent::Up(nodes), Request::NodesUp(up)))
    }

    fn announce_is_due(&self) -> Instant {
        self.refused_until
            .map_or(self.announce_at, |until| until.max(self.announce_at))
    }

    /// Takes the nodes of one message off a queue.
    fn batch(&mut self, now: Instant, task: Task, terms: &Terms) -> Option<(v1::NodeIds, Vec<NodeId>)> {
        let window = self.window(now);
        let mut batch = Batch::new(terms.limits);
        while batch.has_room()
            && let Some(node) = self.queues.of(task).pop_front()
        {
            if self.nodes.take(&node, task, window, now) {
                batch.push(node);
            } else {
                let queues = &mut self.queues;
                self.nodes
                    .task(&node, window, now, |other| queues.push(node.clone(), other));
            }
        }
        batch.finish()
    }

    fn request(&mut self, now: Instant, sent: Sent, request: Request) -> v1::SessionRequest {
        self.sequence += 1;
        self.counters.requests += 1;
        self.in_flight.push_back(InFlight {
            sequence: self.sequence,
            sent_at: now,
            sent,
        });
        v1::SessionRequest {
            sequence: self.sequence,
            request: Some(request),
        }
    }

    fn hello(&self) -> Request {
        let proxy = &self.identity.proxy;
        let generation = self.terms.map_or(0, |terms| terms.generation);
        Request::Hello(v1::SessionHello {
            proxy: Some(wire::proxy(&proxy.into())),
            incarnation: self.identity.incarnation.get(),
            generation,
            has_handles: generation != 0,
        })
    }
}
