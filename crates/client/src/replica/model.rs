//! The machine against a model of one or two trackers, under random changes, delays, cuts, restarts and sleeps.
//!
//! The model follows `watch.proto`. It has a table, a log of changes that is late and bounded, and resyncs of parts
//! whose marks overflowed. Its watches send chunks of a snapshot and the log in turns. The order of the nodes and their
//! parts are fixed, so a seed has one trace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::iter::zip;
use std::mem;
use std::num::NonZeroU64;
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;
use nodetracker::{ManualClock, NodeId, Proxy, ProxyCursor, ProxyDetails, ProxyRef, RouteTable, Uuid, Verdict};
use nodetracker_proto::v1;
use nodetracker_proto::v1::ProxyChangeReason;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::v1::watch_response::Message;

use super::{Event, Input, Machine, ReplicaTimes, Stats, Status, Transmit};
use crate::seeds::{Fault, Recovery, Seeds, recoveries};
use crate::wire;

const NODES: u64 = 30;
const PARTS: u64 = 3;
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// How many marks of one part, or of the proxies, fit until the log takes them.
const RING: usize = 8;
/// How many changes the log keeps.
const LOG: usize = 60;
const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(25);

fn node(number: u64) -> NodeId {
    match number % 3 {
        0 => format!("node-{number}").parse().expect("a name"),
        _ => Uuid::from_u64_pair(1, number).into(),
    }
}

fn part_of(number: u64) -> u32 {
    (number % PARTS) as u32
}

/// A change that the log has not taken.
#[derive(Debug, Clone)]
enum Mark {
    Node(u64),
    Moved(ProxyRef),
    /// The proxy as it was.
    Removed(v1::WatchedProxy),
}

/// A resync that has begun.
#[derive(Debug)]
enum Resync {
    /// The nodes that come next.
    Part(u32, VecDeque<u64>),
    Proxies,
}

impl Resync {
    fn part(&self) -> Option<u32> {
        match self {
            Resync::Part(part, _) => Some(*part),
            Resync::Proxies => None,
        }
    }
}

/// A change in the log.
#[derive(Debug, Clone)]
struct Entry {
    change: v1::WatchChange,
    /// The proxies of its routes.
    proxies: Vec<v1::WatchedProxy>,
    /// The turn of the log in which it was encoded.
    tail: u64,
}

#[derive(Debug)]
struct Tracker {
    table: RouteTable,
    clock: ManualClock,
    generation: u64,
    is_reachable: bool,
    marks: Vec<Mark>,
    resyncs: VecDeque<Resync>,
    log: VecDeque<Entry>,
    /// How often the log took the marks.
    tails: u64,
    /// The number of the next change.
    next: u64,
    incarnation: u64,
}

impl Tracker {
    fn new(generation: u64) -> Self {
        let clock = ManualClock::new();
        let table = RouteTable::builder().clock(clock.clone()).keep_alive(KEEP_ALIVE);
        Self {
            table: table.build().expect("possible limits"),
            clock,
            generation,
            is_reachable: true,
            marks: Vec::new(),
            resyncs: VecDeque::new(),
            log: VecDeque::new(),
            tails: 0,
            next: 1,
            incarnation: 0,
        }
    }

    /// Starts again, with the next generation. With a snapshot, the table stays, and the log is lost.
    fn restart(&mut self, has_snapshot: bool) {
        let mut next = Self::new(self.generation + 2);
        if has_snapshot {
            mem::swap(&mut next.table, &mut self.table);
            next.clock = self.clock.clone();
            next.incarnation = self.incarnation;
        }
        next.is_reachable = self.is_reachable;
        *self = next;
    }

    /// One random change.
    fn change(&mut self, random: &mut Rng) {
        let (any, id) = (random.u64(..NODES), format!("proxy-{}", random.u8(..5)));
        match random.u8(..100) {
            0..60 => self.report(any, &id, random.u8(1..3)),
            60..75 => {
                // The removal of an expired route is a change, too.
                self.table.remove_node(&node(any));
                self.marks.push(Mark::Node(any));
            }
            75..85 => {
                if let Some(proxy) = self.table.find_proxy(&id) {
                    self.table.remove_route(&node(any), proxy);
                    self.marks.push(Mark::Node(any));
                }
            }
            85..90 => self.remove_proxy(&id),
            90..94 => self.restart_proxy(&id),
            94..97 => (0..12).for_each(|_| {
                // More marks of one part than fit.
                self.report(any, &id, 1);
                self.table.remove_node(&node(any));
                self.marks.push(Mark::Node(any));
            }),
            _ => self.sweep(),
        }
    }

    fn report(&mut self, number: u64, id: &str, port: u8) {
        let addr = format!("proxy:{port}");
        let proxy = Proxy {
            id,
            cluster_name: "cluster",
            addr: &addr,
        };
        let before = self.table.find_proxy(id).map(|known| (known, self.table.proxy(known)));
        let proxy = self.table.register_proxy(&proxy).expect("there is room");
        if before.is_some_and(|(_, details)| details != self.table.proxy(proxy)) {
            self.marks.push(Mark::Moved(proxy));
        }
        if self.table.add_node(&node(number), proxy) == Ok(nodetracker::Added::Inserted) {
            self.marks.push(Mark::Node(number));
        }
    }

    fn remove_proxy(&mut self, id: &str) {
        if let Some(proxy) = self.table.find_proxy(id) {
            self.marks.extend(self.watched(proxy).map(Mark::Removed));
            self.table.remove_proxy(proxy);
        }
    }

    /// The proxy's next incarnation takes over. A proxy without an incarnation keeps its registration.
    fn restart_proxy(&mut self, id: &str) {
        let before = self.table.find_proxy(id).map(|proxy| (proxy, self.watched(proxy)));
        self.incarnation += 1;
        let proxy = Proxy {
            id,
            cluster_name: "cluster",
            addr: "proxy:9",
        };
        let incarnation = NonZeroU64::new(self.incarnation).expect("not zero");
        let begun = self
            .table
            .begin_incarnation(&proxy, incarnation)
            .expect("it is the latest");
        match before {
            Some((old, _)) if old == begun.proxy => self.marks.push(Mark::Moved(old)),
            Some((_, watched)) => self.marks.extend(watched.map(Mark::Removed)),
            None => {}
        }
    }

    fn watched(&self, proxy: ProxyRef) -> Option<v1::WatchedProxy> {
        let (proxy_id, cluster_name, addr) = self.table.proxy(proxy)?.into_parts();
        Some(v1::WatchedProxy {
            registration: proxy.to_bits(),
            proxy: Some(v1::Proxy {
                proxy_id,
                cluster_name,
                addr,
            }),
        })
    }

    fn sweep(&mut self) {
        let is_stale = |number: &u64| {
            let routes = self.table.explain(&node(*number));
            let stale = [Verdict::Expired, Verdict::ProxyRemoved];
            routes.iter().any(|route| stale.contains(&route.verdict))
        };
        let stale: Vec<_> = (0..NODES).filter(is_stale).collect();
        for _ in 0..2 {
            while !self.table.sweep(4096).round_completed {}
        }
        self.marks.extend(stale.into_iter().map(Mark::Node));
    }

    /// The log takes all marks. For a part with too many marks, the log gets a resync instead.
    fn tail(&mut self) {
        self.tails += 1;
        let marks = mem::take(&mut self.marks);
        let ring = |mark: &Mark| match mark {
            Mark::Node(number) => Some(part_of(*number)),
            Mark::Moved(_) | Mark::Removed(_) => None,
        };
        let mut counts = BTreeMap::new();
        for mark in &marks {
            *counts.entry(ring(mark)).or_insert(0) += 1;
        }
        for (part, _) in counts.iter().filter(|(_, count)| **count > RING) {
            self.push(Change::Resync(v1::WatchResync {
                part: *part,
                is_complete: false,
            }));
            // A resync of the same part starts over.
            self.resyncs.retain(|resync| resync.part() != *part);
            let of_part = |part| (0..NODES).filter(move |number| part_of(*number) == part).collect();
            self.resyncs.push_back(match part {
                Some(part) => Resync::Part(*part, of_part(*part)),
                None => Resync::Proxies,
            });
        }
        for mark in marks.iter().filter(|mark| counts[&ring(mark)] <= RING) {
            match mark.clone() {
                Mark::Node(number) => self.push_node(number, v1::NodeChangeReason::Added),
                // If the proxy is gone, its removal is a change of its own.
                Mark::Moved(proxy) => {
                    if let Some(proxy) = self.watched(proxy) {
                        self.push_proxy(proxy, ProxyChangeReason::Moved);
                    }
                }
                Mark::Removed(proxy) => self.push_proxy(proxy, ProxyChangeReason::Removed),
            }
        }
        self.resync();
    }

    /// Sends some more of the oldest resync.
    fn resync(&mut self) {
        let Some(resync) = self.resyncs.pop_front() else { return };
        let (part, is_complete) = match resync {
            Resync::Part(part, mut rest) => {
                for number in rest.drain(..rest.len().min(4)).collect::<Vec<_>>() {
                    if !self.table.get_proxies(&node(number)).is_empty() {
                        self.push_node(number, v1::NodeChangeReason::Resync);
                    }
                }
                let is_complete = rest.is_empty();
                if !is_complete {
                    self.resyncs.push_front(Resync::Part(part, rest));
                }
                (Some(part), is_complete)
            }
            Resync::Proxies => {
                let mut all: Vec<_> = self.table.proxies_page(ProxyCursor::default(), 100).proxies;
                all.sort_by(|one, other| one.1.id().cmp(other.1.id()));
                for (proxy, _) in all {
                    let watched = self.watched(proxy).expect("it is registered");
                    self.push_proxy(watched, ProxyChangeReason::Resync);
                }
                (None, true)
            }
        };
        if is_complete {
            self.push(Change::Resync(v1::WatchResync { part, is_complete }));
        }
    }

    fn push_node(&mut self, number: u64, reason: v1::NodeChangeReason) {
        let mut proxies = Vec::new();
        let change = Change::Node(v1::WatchNodeChange {
            routes: Some(self.encode(number, &mut proxies)),
            reason: reason.into(),
            part: part_of(number),
        });
        self.push_with(change, proxies);
    }

    fn push_proxy(&mut self, mut proxy: v1::WatchedProxy, reason: ProxyChangeReason) {
        if reason == ProxyChangeReason::Removed {
            let proxy_id = proxy.proxy.unwrap_or_default().proxy_id;
            proxy.proxy = Some(v1::Proxy {
                proxy_id,
                ..v1::Proxy::default()
            });
        }
        self.push(Change::Proxy(v1::WatchProxyChange {
            proxy: Some(proxy),
            reason: reason.into(),
        }));
    }

    fn push(&mut self, change: Change) {
        self.push_with(change, Vec::new());
    }

    fn push_with(&mut self, change: Change, proxies: Vec<v1::WatchedProxy>) {
        let change = v1::WatchChange {
            sequence: self.next,
            change: Some(change),
        };
        self.log.push_back(Entry {
            change,
            proxies,
            tail: self.tails,
        });
        self.next += 1;
        if self.log.len() > LOG {
            self.log.pop_front();
        }
    }

    /// The node with its present routes, whose proxies are added to `proxies`.
    fn encode(&self, number: u64, proxies: &mut Vec<v1::WatchedProxy>) -> v1::NodeRoutes {
        let id = node(number);
        let mut routes = Vec::new();
        for route in self.table.get_proxies(&id).iter() {
            routes.push(v1::IndexedRoute {
                proxy_index: proxies.len() as u32,
                last_refresh_time: None,
            });
            proxies.extend(self.watched(route.proxy));
        }
        v1::NodeRoutes {
            node: Some(wire::node(&id)),
            routes,
        }
    }

    /// The place of a new watch, and the answer to a probe.
    fn place(&self) -> v1::WatchPlace {
        v1::WatchPlace {
            generation: self.generation,
            sequence: self.next - 1,
        }
    }

    fn has(&self, place: u64) -> bool {
        place <= self.next && self.next - place <= self.log.len() as u64
    }

    /// The routes that a look-up returns.
    fn routes(&self) -> BTreeSet<Row> {
        let rows = |number| {
            self.table
                .resolve(&node(number))
                .into_iter()
                .map(move |route| row(number, &route.details))
        };
        (0..NODES).flat_map(rows).collect()
    }

    /// The routes that expired and were not swept.
    fn expired(&self) -> BTreeSet<Row> {
        let rows = |number| {
            let expired = |route: &nodetracker::ExplainedRoute| route.verdict == Verdict::Expired;
            let routes = self.table.explain(&node(number)).into_iter().filter(expired);
            routes.filter_map(move |route| Some(row(number, &route.proxy?)))
        };
        (0..NODES).flat_map(rows).collect()
    }
}

/// A route: the node, the proxy's ID and its address.
type Row = (u64, String, String);

fn row(number: u64, proxy: &ProxyDetails) -> Row {
    (number, proxy.id().to_owned(), proxy.addr().to_owned())
}

/// A watch, as the tracker has it.
#[derive(Debug)]
struct Watch {
    tracker: usize,
    resume: Option<v1::WatchPlace>,
    /// The number of the next change to send; 0 before the watch has begun.
    place: u64,
    /// The next node of the snapshot, and the place up to which changes come before it.
    snapshot: Option<(u64, u64)>,
    keep_alive_due: Instant,
}

impl Watch {
    /// The next message, if there is one.
    fn next(&mut self, tracker: &Tracker, now: Instant) -> Option<Message> {
        let message = self.next_message(tracker, now)?;
        self.keep_alive_due = now + STREAM_KEEP_ALIVE;
        Some(message)
    }

    fn next_message(&mut self, tracker: &Tracker, now: Instant) -> Option<Message> {
        if self.place == 0 {
            if let Some(resume) = self.resume.take() {
                self.place = resume.sequence + 1;
                if resume.generation == tracker.generation && tracker.has(self.place) {
                    return Some(self.snapshot_end(tracker));
                }
                self.place = 0;
                return Some(Message::LostPlace(v1::WatchLostPlace {}));
            }
            self.place = tracker.next;
            self.snapshot = Some((0, self.place));
        }
        if !tracker.has(self.place) {
            self.place = 0;
            return Some(Message::LostPlace(v1::WatchLostPlace {}));
        }
        match self.snapshot {
            Some((_, until)) if self.place < until => Some(self.changes(tracker, until)),
            Some((NODES.., _)) => {
                self.snapshot = None;
                Some(self.snapshot_end(tracker))
            }
            Some((from, _)) => {
                // One node at a time: the nodes of a message are of one part.
                self.snapshot = Some((from + 1, tracker.next));
                let mut proxies = Vec::new();
                let nodes = vec![tracker.encode(from, &mut proxies)];
                Some(Message::Snapshot(v1::WatchSnapshot {
                    proxies,
                    nodes,
                    part: part_of(from),
                }))
            }
            None if self.place < tracker.next => Some(self.changes(tracker, tracker.next)),
            None => (now >= self.keep_alive_due).then(|| {
                Message::KeepAlive(v1::WatchKeepAlive {
                    sequence: self.place - 1,
                })
            }),
        }
    }

    fn snapshot_end(&self, tracker: &Tracker) -> Message {
        Message::SnapshotEnd(v1::WatchSnapshotEnd {
            generation: tracker.generation,
            sequence: self.place - 1,
        })
    }

    /// At most four changes before `until`, all encoded at the same time.
    fn changes(&mut self, tracker: &Tracker, until: u64) -> Message {
        let first = tracker.next - tracker.log.len() as u64;
        let entries = tracker
            .log
            .range((self.place - first) as usize..(until - first) as usize);
        let mut message = v1::WatchChanges::default();
        let mut tail = None;
        for entry in entries.take(4) {
            if *tail.get_or_insert(entry.tail) != entry.tail {
                break;
            }
            let mut change = entry.change.clone();
            if let Some(Change::Node(change)) = &mut change.change {
                for route in change.routes.iter_mut().flat_map(|node| &mut node.routes) {
                    route.proxy_index += message.proxies.len() as u32;
                }
            }
            message.proxies.extend(entry.proxies.iter().cloned());
            message.changes.push(change);
            self.place += 1;
        }
        Message::Changes(message)
    }
}

/// A probe on its way.
#[derive(Debug)]
enum Call {
    /// Reaches the tracker at this moment.
    Request(Instant),
    /// Reaches the machine at this moment.
    Reply(Instant, Option<v1::WatchPlace>),
}

/// When each fact was true in the tracker. Routes and addresses of proxies are separate facts, because an answer may
/// have them from different moments.
#[derive(Debug, Default)]
struct History {
    /// For each route, of a node through a proxy: the last moment at which a copy may have it.
    routes: BTreeMap<(u64, String), Instant>,
    /// For each proxy and address: the last moment at which the proxy had it.
    addrs: BTreeMap<(String, String), Instant>,
    /// For each route that a look-up returns: since when.
    present_since: BTreeMap<(u64, String), Instant>,
}

impl History {
    fn note(&mut self, tracker: &Tracker, now: Instant) {
        let present = tracker.routes();
        for (number, id, _) in present.iter().cloned().chain(tracker.expired()) {
            self.routes.insert((number, id), now);
        }
        for (_, proxy) in tracker.table.proxies_page(ProxyCursor::default(), 100).proxies {
            self.addrs.insert((proxy.id().to_owned(), proxy.addr().to_owned()), now);
        }
        let present: BTreeSet<_> = present.into_iter().map(|(number, id, _)| (number, id)).collect();
        self.present_since.retain(|route, _| present.contains(route));
        for route in present {
            self.present_since.entry(route).or_insert(now);
        }
    }
}

#[derive(Debug)]
struct World {
    seed: u64,
    random: Rng,
    now: Instant,
    trackers: Vec<Tracker>,
    histories: Vec<History>,
    /// The tracker whose table the copy has.
    source: usize,
    machine: Machine,
    watch: Option<Watch>,
    /// The messages on their way, oldest first.
    messages: VecDeque<(Instant, Message)>,
    probe: Option<Call>,
    staleness: Vec<Duration>,
    trace: DefaultHasher,
}

impl World {
    fn new(seed: u64, trackers: u64) -> Self {
        let now = Instant::now();
        let times = ReplicaTimes {
            probe_interval: Duration::from_secs(2),
            ..ReplicaTimes::default()
        };
        // The generations of two trackers differ.
        let trackers: Vec<_> = (1..=trackers).map(Tracker::new).collect();
        Self {
            seed,
            random: Rng::with_seed(seed),
            now,
            machine: Machine::new(now, SystemTime::UNIX_EPOCH, trackers.len(), times, seed),
            histories: trackers.iter().map(|_| History::default()).collect(),
            trackers,
            source: 0,
            watch: None,
            messages: VecDeque::new(),
            probe: None,
            staleness: Vec::new(),
            trace: DefaultHasher::new(),
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        self.trackers.iter().for_each(|tracker| tracker.clock.advance(by));
    }

    fn delay(&mut self) -> Instant {
        self.now + Duration::from_millis(self.random.u64(..400))
    }

    fn any(&mut self) -> usize {
        self.random.usize(..self.trackers.len())
    }

    fn change(&mut self) {
        let any = self.any();
        self.trackers[any].change(&mut self.random);
    }

    fn note(&mut self) {
        zip(&mut self.histories, &self.trackers).for_each(|(history, tracker)| history.note(tracker, self.now));
    }

    fn step(&mut self) {
        let any = self.any();
        match self.random.u8(..100) {
            0..45 => self.trackers[any].change(&mut self.random),
            45..60 => self.trackers[any].tail(),
            60..90 => {
                let by = Duration::from_millis(self.random.u64(..300));
                self.advance(by);
            }
            90..92 => {
                let by = Duration::from_millis(self.random.u64(..8_000));
                self.advance(by);
            }
            92..95 => self.cut(),
            95 => self.trackers[any].is_reachable = false,
            96 => {
                let has_snapshot = self.random.bool();
                self.restart(any, has_snapshot);
            }
            97 => {
                let time = Duration::from_secs(60).mul_f64(self.random.f64().powi(3));
                self.sleep(time);
            }
            _ => self.trackers[any].is_reachable = true,
        }
        self.note();
        self.transport();
        let staleness = self.check();
        self.staleness.extend(staleness);
    }

    /// The process of the replica does nothing for a time, and the trackers do.
    fn sleep(&mut self, time: Duration) {
        let (end, step) = (self.now + time, Duration::from_millis(500).max(time / 100));
        while self.now < end {
            self.change();
            self.trackers.iter_mut().for_each(Tracker::tail);
            self.advance(step.min(end - self.now));
            self.note();
        }
    }

    fn restart(&mut self, at: usize, has_snapshot: bool) {
        self.trackers[at].restart(has_snapshot);
        if self.watch.as_ref().is_some_and(|watch| watch.tracker == at) {
            self.cut();
        }
    }

    /// The connection breaks.
    fn cut(&mut self) {
        if self.watch.take().is_some() {
            self.messages.clear();
            self.probe = None;
            self.machine.handle(self.now, Input::Ended("cut".to_owned()));
        }
    }

    /// Moves what has arrived by now.
    fn transport(&mut self) {
        for _ in 0..self.random.u8(..12) {
            let delay = self.delay();
            let Some(watch) = &mut self.watch else { break };
            let Some(message) = watch.next(&self.trackers[watch.tracker], self.now) else {
                break;
            };
            // No message overtakes another.
            let earliest = self.messages.back().map_or(self.now, |(at, _)| *at);
            self.messages.push_back((delay.max(earliest), message));
        }
        while let Some((at, _)) = self.messages.front()
            && *at <= self.now
            && let Some((at, message)) = self.messages.pop_front()
        {
            // Of routes with the same time, the table has no fixed order.
            (mem::discriminant(&message), self.now - at).hash(&mut self.trace);
            let message = v1::WatchResponse { message: Some(message) };
            self.machine.handle(self.now, Input::Message(message));
        }
        match self.probe {
            Some(Call::Request(at)) if at <= self.now => {
                let tracker = self.watch.as_ref().map_or(0, |watch| watch.tracker);
                // Every change that was made before is in the log, as a moment later in a real tracker.
                self.trackers[tracker].tail();
                let is_answered = self.random.u8(..10) > 0;
                let place = is_answered.then(|| self.trackers[tracker].place());
                self.probe = Some(Call::Reply(self.delay(), place));
            }
            Some(Call::Reply(at, place)) if at <= self.now => {
                self.probe = None;
                self.machine.handle(self.now, Input::Probed(place));
            }
            _ => {}
        }
        if self.machine.next_timeout() <= self.now {
            self.machine.handle_timeout(self.now);
        }
        while let Some(transmit) = self.machine.poll_transmit(self.now) {
            match transmit {
                Transmit::Watch { tracker, request } => {
                    assert!(self.watch.is_none(), "seed {}", self.seed);
                    self.messages.clear();
                    self.watch = Some(Watch {
                        tracker,
                        resume: request.resume,
                        place: 0,
                        snapshot: None,
                        keep_alive_due: self.now + STREAM_KEEP_ALIVE,
                    });
                    if !self.trackers[tracker].is_reachable {
                        self.cut();
                    }
                }
                Transmit::Probe => self.probe = Some(Call::Request(self.delay())),
                Transmit::Close => {
                    self.watch = None;
                    self.messages.clear();
                    self.probe = None;
                }
            }
        }
        while let Some(event) = self.machine.poll_event() {
            if let Event::Following { tracker } = event {
                self.source = tracker;
            }
        }
    }

    fn answer(&self) -> Option<BTreeSet<Row>> {
        let mut all = BTreeSet::new();
        for number in 0..NODES {
            let routes = self.machine.view().look_up(&node(number))?;
            all.extend(routes.iter().map(|route| row(number, &route.proxy)));
        }
        Some(all)
    }

    /// Each answer is what the tracker had, no longer ago than the machine says. Returns for how long.
    fn check(&mut self) -> Option<Duration> {
        let staleness = self.machine.view().staleness(self.now)?;
        let answer = self.answer()?;
        let bound = self
            .now
            .checked_sub(staleness)
            .expect("the bound is later than the start");
        let (seed, history) = (self.seed, &self.histories[self.source]);
        for (number, id, addr) in &answer {
            let last = [
                history.routes.get(&(*number, id.clone())),
                history.addrs.get(&(id.clone(), addr.clone())),
            ];
            let is_possible = last.iter().all(|last| last.is_some_and(|last| *last >= bound));
            assert!(
                is_possible,
                "seed {seed}: {id} at {addr} for {number} is older than {staleness:?}"
            );
        }
        answer.hash(&mut self.trace);
        let answered: BTreeSet<_> = answer.into_iter().map(|(number, id, _)| (number, id)).collect();
        for (route, since) in &history.present_since {
            let is_missing = *since < bound && !answered.contains(route);
            assert!(!is_missing, "seed {seed}: {route:?} is missing after {staleness:?}");
        }
        Some(staleness)
    }

    /// Nothing changes any more: the copy becomes equal to the table, and reports itself complete.
    fn settle(&mut self) {
        // Everything that is about to expire is gone.
        self.advance(2 * KEEP_ALIVE);
        for tracker in &mut self.trackers {
            tracker.is_reachable = true;
            tracker.sweep();
        }
        for _ in 0..400 {
            self.advance(Duration::from_millis(100));
            self.trackers.iter_mut().for_each(Tracker::tail);
            self.note();
            self.transport();
            self.check();
        }
        let present = self.trackers[self.source].routes();
        let (answer, seed) = (self.answer(), self.seed);
        assert_eq!(answer, Some(present), "seed {seed}: the copy differs from the table");
        let staleness = self.machine.view().staleness(self.now).expect("there is a copy");
        // One probe in ten has no answer.
        assert!(staleness < Duration::from_secs(15), "seed {seed}: {staleness:?}");
        assert_eq!(self.machine.stats().status, Status::Following, "seed {seed}");
    }
}

fn run(seed: u64) -> (Stats, Vec<Duration>, u64) {
    let mut world = World::new(seed, 1 + seed % 2);
    for _ in 0..3 {
        (0..300).for_each(|_| world.step());
        world.settle();
    }
    (world.machine.stats(), world.staleness, world.trace.finish())
}

/// `NODETRACKER_SEEDS=5000 cargo test -p nodetracker-client --lib no_answer_is_older` tries more seeds.
#[test]
fn no_answer_is_older_than_the_replica_says() {
    let mut sum = Stats::default();
    let (mut seeds, mut staleness) = (0, Vec::new());
    for seed in Seeds::new(200) {
        seeds += 1;
        let (stats, of_seed, _) = run(seed);
        staleness.extend(of_seed);
        sum.snapshots += stats.snapshots;
        sum.resumes += stats.resumes;
        sum.lost_places += stats.lost_places;
        sum.resyncs += stats.resyncs;
        sum.ended += stats.ended;
    }
    // Each seed sees each of them at least once on average.
    let least = [sum.snapshots, sum.resumes, sum.lost_places, sum.resyncs, sum.ended]
        .into_iter()
        .min();
    let checks = staleness.len();
    assert!(
        seeds == 1 || least >= Some(seeds) && checks > 500 * seeds as usize,
        "{checks} checks, {sum:?}"
    );
    staleness.sort_unstable();
    println!(
        "\n| a replica, under random changes, cuts, restarts and sleeps | seeds | answers | median staleness | worst |"
    );
    println!("| --- | ---: | ---: | ---: | ---: |");
    let [median, worst] = [checks / 2, checks - 1].map(|at| staleness[at].as_secs_f64());
    println!("| look-ups | {seeds} | {checks} | {median:.1} s | {worst:.1} s |");
}

/// Runs with changes until the copy is up to date again. Then the replica follows a tracker, and has its table as the
/// table was at most two probes ago.
fn recovery(seed: u64, trackers: u64, fault: impl FnOnce(&mut World)) -> Recovery {
    let mut world = World::new(seed, trackers);
    world.settle();
    (0..200).for_each(|_| world.live(Duration::from_millis(50)));
    fault(&mut world);
    let ended = world.now;
    loop {
        let staleness = world.machine.view().staleness(world.now);
        let is_recent = staleness.is_some_and(|staleness| world.now - ended > staleness);
        if is_recent && world.machine.stats().status == Status::Following {
            break;
        }
        world.live(Duration::from_millis(50));
        assert!(world.now - ended < KEEP_ALIVE, "no recovery, seed {seed}");
    }
    let time = world.now - ended;
    world.settle();
    let trace = world.trace.finish();
    Recovery { time, trace }
}

impl World {
    /// A change of each tracker, and a short time.
    fn live(&mut self, time: Duration) {
        for tracker in &mut self.trackers {
            tracker.change(&mut self.random);
            tracker.tail();
        }
        self.advance(time);
        self.note();
        self.transport();
        self.check();
    }

    /// The connection breaks, and the replica cannot reach the tracker.
    fn isolate(&mut self) {
        self.trackers[self.source].is_reachable = false;
        self.cut();
    }
}

/// The longest wait for an attempt is 30 s. One answer to a probe in ten is lost.
const BOUND: Duration = Duration::from_secs(45);

recoveries! {
    60;
    tracker_restarts_without_a_snapshot: Fault {
        name: "a tracker restarts without a snapshot: a replica is up to date",
        bound: BOUND,
        cost: 1,
        recovery: |seed| recovery(seed, 1, |world| world.restart(0, false)),
    },
    tracker_restarts_with_a_snapshot: Fault {
        name: "a tracker restarts with a snapshot: a replica is up to date",
        bound: BOUND,
        cost: 1,
        recovery: |seed| recovery(seed, 1, |world| world.restart(0, true)),
    },
    connection_breaks: Fault {
        name: "a replica's connection breaks",
        bound: BOUND,
        cost: 1,
        recovery: |seed| recovery(seed, 1, World::cut),
    },
    tracker_cannot_be_reached: Fault {
        name: "a replica cannot reach the tracker for half a minute",
        bound: BOUND,
        cost: 1,
        recovery: |seed| {
            recovery(seed, 1, |world| {
                world.isolate();
                (0..300).for_each(|_| world.live(Duration::from_millis(100)));
                world.trackers[0].is_reachable = true;
            })
        },
    },
    one_of_two_trackers_cannot_be_reached: Fault {
        name: "a replica cannot reach one of two trackers: it follows the other",
        bound: BOUND,
        cost: 1,
        recovery: |seed| recovery(seed, 2, World::isolate),
    },
    process_sleeps: Fault {
        name: "a replica's process sleeps for up to an hour",
        bound: BOUND,
        cost: 1,
        recovery: |seed| {
            recovery(seed, 1, |world| {
                let time = Duration::from_secs(3600).mul_f64(world.random.f64().powi(3));
                world.sleep(time);
            })
        },
    },
}

#[test]
fn a_seed_has_one_trace() {
    for seed in 0..6 {
        assert!(run(seed) == run(seed), "seed {seed}");
    }
}
