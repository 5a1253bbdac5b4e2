//! A simulated world: machines, model trackers, and streams that are slow, lost or half-open.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;
use std::hash::{DefaultHasher, Hasher};
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodetracker_client::session::SessionTimes;
use nodetracker_client::session::machine::{Event, Identity, Input, MAX_IN_FLIGHT, Machine};
use nodetracker_client::session::nodes::NodeSet;
use nodetracker_client::{NodeId, Proxy};
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use prost::Message;

use super::model::{ModelTracker, StreamId};
use crate::seeds::Recovery;

/// Bytes of gRPC in front of each message.
const FRAME: usize = 5;

/// Machines and trackers that exchange messages.
pub(crate) struct World {
    /// The moment at which `now` is zero.
    pub(crate) base: Instant,
    pub(crate) now: Duration,
    pub(crate) random: fastrand::Rng,
    pub(crate) trackers: Vec<ModelTracker>,
    pub(crate) proxies: Vec<SimProxy>,
    /// The times that a message takes in one direction.
    pub(crate) latency: Range<Duration>,
    streams: Vec<Stream>,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    deliveries: BTreeMap<u64, Delivery>,
    next_delivery: u64,
    pub(crate) traffic: Traffic,
    /// Whether the trackers do each request twice.
    pub(crate) repeats_requests: bool,
    /// The node of each announcement and refresh, in the order of the trackers' work; the reader empties the list.
    pub(crate) refreshes: Vec<(Duration, usize, NodeId)>,
    trace: DefaultHasher,
}

pub(crate) struct SimProxy {
    pub(crate) id: String,
    pub(crate) nodes: Arc<NodeSet>,
    pub(crate) machine: Machine,
    pub(crate) events: Vec<Event>,
    /// The position of the machine's first tracker.
    first_tracker: usize,
    /// Until then, the process does nothing.
    asleep_until: Duration,
    stream: Option<StreamId>,
    /// The round trips that each present stream has needed so far.
    depth: usize,
}

struct Stream {
    proxy: usize,
    tracker: usize,
    /// When the last message of each direction arrives: messages do not overtake each other.
    arrivals: [Duration; 2],
    /// The proxy hears nothing any more.
    is_lost: bool,
    /// The tracker hears nothing any more.
    is_dead: bool,
    unanswered: usize,
}

enum Delivery {
    ToTracker(StreamId, v1::SessionRequest, usize),
    ToProxy(StreamId, v1::SessionResponse, usize),
    Lost(StreamId),
}

/// What went over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Traffic {
    pub(crate) requests: usize,
    pub(crate) request_bytes: usize,
    pub(crate) responses: usize,
    pub(crate) response_bytes: usize,
    pub(crate) announced: usize,
    /// The longest chain of requests, each sent after the answer to the previous request.
    pub(crate) round_trips: usize,
}

impl World {
    pub(crate) fn new(seed: u64, trackers: Vec<ModelTracker>) -> Self {
        Self {
            base: Instant::now(),
            now: Duration::ZERO,
            random: fastrand::Rng::with_seed(seed),
            trackers,
            proxies: Vec::new(),
            latency: Duration::from_millis(1)..Duration::from_millis(2),
            streams: Vec::new(),
            queue: BinaryHeap::new(),
            deliveries: BTreeMap::new(),
            next_delivery: 0,
            traffic: Traffic::default(),
            repeats_requests: false,
            refreshes: Vec::new(),
            trace: DefaultHasher::new(),
        }
    }

    pub(crate) fn instant(&self) -> Instant {
        self.base + self.now
    }

    /// Adds a proxy that knows all trackers.
    pub(crate) fn add_proxy(&mut self, id: &str, incarnation: u64, times: SessionTimes) -> usize {
        self.add_machine(id, incarnation, times, 0..self.trackers.len())
    }

    /// Adds the machine of a proxy that knows these trackers.
    pub(crate) fn add_machine(
        &mut self,
        id: &str,
        incarnation: u64,
        times: SessionTimes,
        trackers: Range<usize>,
    ) -> usize {
        let identity = Identity {
            proxy: Proxy {
                id,
                cluster_name: "main",
                addr: "10.0.0.1:3080",
            }
            .into(),
            incarnation: NonZeroU64::new(incarnation).expect("not zero"),
        };
        let nodes = Arc::new(NodeSet::new(1_000_000, self.random.u64(..), self.instant()));
        let seed = self.random.u64(..);
        let machine = Machine::new(
            Arc::clone(&nodes),
            identity,
            trackers.len(),
            times,
            seed,
            self.instant(),
        );
        self.proxies.push(SimProxy {
            id: id.into(),
            nodes,
            machine,
            events: Vec::new(),
            first_tracker: trackers.start,
            asleep_until: Duration::ZERO,
            stream: None,
            depth: 0,
        });
        self.proxies.len() - 1
    }

    /// A number that two runs share only if all of their messages are the same.
    pub(crate) fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// The result of a run whose recovery took this time.
    pub(crate) fn recovery(&self, time: Duration) -> Recovery {
        let trace = self.trace();
        Recovery { time, trace }
    }

    /// Runs until a time.
    pub(crate) fn run_until(&mut self, end: Duration) {
        loop {
            let timeout = (0..self.proxies.len()).filter_map(|proxy| self.timeout(proxy)).min();
            let delivery = self.queue.peek().map(|Reverse((at, _))| *at);
            let next = timeout.into_iter().chain(delivery).min().unwrap_or(end);
            if next >= end {
                self.now = end;
                return;
            }
            self.now = self.now.max(next);
            let receiver = (delivery == Some(next)).then(|| self.deliver()).flatten();
            // Other machines have no reason to do something. So a machine that forgets a timeout fails its test.
            for proxy in 0..self.proxies.len() {
                if receiver == Some(proxy) || self.timeout(proxy).is_some_and(|at| at <= self.now) {
                    self.drive(proxy);
                }
            }
        }
    }

    fn timeout(&self, proxy: usize) -> Option<Duration> {
        let proxy = &self.proxies[proxy];
        let timeout = proxy.machine.next_timeout()?.saturating_duration_since(self.base);
        Some(timeout.max(proxy.asleep_until))
    }

    /// Ends the present stream of a proxy. What is on its way to the tracker arrives. A proxy of a half-open connection
    /// does not notice the end, and nothing arrives.
    pub(crate) fn cut(&mut self, proxy: usize, is_half_open: bool) {
        if let Some(stream) = self.proxies[proxy].stream {
            self.streams[stream].is_lost = true;
            self.streams[stream].is_dead = is_half_open;
            if !is_half_open {
                self.push(self.now, Delivery::Lost(stream));
            }
        }
    }

    /// Stops the process of a proxy until a time. Its messages on the way arrive, and others wait for the process.
    pub(crate) fn sleep_until(&mut self, proxy: usize, end: Duration) {
        self.proxies[proxy].asleep_until = end;
    }

    /// Cuts a tracker off from all proxies, which do not notice, or ends this.
    pub(crate) fn set_reachable(&mut self, tracker: usize, is_reachable: bool) {
        self.trackers[tracker].is_reachable = is_reachable;
        for stream in self.streams.iter_mut().filter(|stream| stream.tracker == tracker) {
            stream.is_lost = true;
            stream.is_dead = true;
        }
    }

    /// Restarts a tracker.
    pub(crate) fn restart(&mut self, tracker: usize, has_snapshot: bool) {
        self.trackers[tracker].restart(has_snapshot, self.now);
        for proxy in 0..self.proxies.len() {
            if self.proxies[proxy]
                .stream
                .is_some_and(|stream| self.streams[stream].tracker == tracker)
            {
                self.cut(proxy, false);
            }
        }
        // A message that is still on its way finds no stream.
        for stream in self.streams.iter_mut().filter(|stream| stream.tracker == tracker) {
            stream.is_lost = true;
            stream.is_dead = true;
        }
    }

    /// A tracker sends a message without a request to all proxies.
    pub(crate) fn broadcast(&mut self, tracker: usize, response: &Response) {
        for proxy in 0..self.proxies.len() {
            if let Some(stream) = self.proxies[proxy].stream
                && self.streams[stream].tracker == tracker
            {
                self.respond(stream, 0, response.clone(), 0);
            }
        }
    }

    /// Lets a machine do what it has to do now.
    pub(crate) fn drive(&mut self, proxy: usize) {
        if self.now < self.proxies[proxy].asleep_until {
            return;
        }
        let now = self.instant();
        self.proxies[proxy].machine.handle_timeout(now);
        loop {
            while let Some(event) = self.proxies[proxy].machine.poll_event() {
                self.on_event(proxy, event);
            }
            let Some(request) = self.proxies[proxy].machine.poll_transmit(now) else {
                break;
            };
            self.send(proxy, request);
        }
        let timeout = self.proxies[proxy].machine.next_timeout();
        assert!(
            timeout.is_none_or(|at| at > now),
            "the machine has a timeout that does nothing"
        );
    }

    fn on_event(&mut self, proxy: usize, event: Event) {
        match &event {
            Event::Connect { tracker, .. } => {
                let tracker = self.proxies[proxy].first_tracker + tracker;
                let is_reachable = self.trackers[tracker].is_reachable;
                self.streams.push(Stream {
                    proxy,
                    tracker,
                    arrivals: [self.now; 2],
                    is_lost: !is_reachable,
                    is_dead: !is_reachable,
                    unanswered: 0,
                });
                self.proxies[proxy].stream = Some(self.streams.len() - 1);
                self.proxies[proxy].depth = 0;
            }
            Event::Disconnect(_) => self.proxies[proxy].stream = None,
            _ => {}
        }
        self.proxies[proxy].events.push(event);
    }

    fn send(&mut self, proxy: usize, request: v1::SessionRequest) {
        let stream = self.proxies[proxy].stream.expect("a request needs a stream");
        let limits = self.trackers[self.streams[stream].tracker].limits;
        let bytes = request.encode_to_vec();
        assert!(
            bytes.len() <= limits.max_message_bytes as usize,
            "{} bytes",
            bytes.len()
        );
        match request.request.as_ref().expect("a request") {
            Request::NodesUp(v1::SessionNodesUp { nodes }) | Request::NodesDown(v1::SessionNodesDown { nodes }) => {
                let count = nodes.as_ref().map_or(0, |ids| ids.uuids.len() / 16 + ids.names.len());
                assert!((1..=limits.max_nodes as usize).contains(&count), "{count} nodes");
            }
            Request::Heartbeat(heartbeat) => assert!(heartbeat.handles.len() / 8 <= limits.max_handles as usize),
            Request::Hello(_) => assert_eq!(self.streams[stream].unanswered, 0),
            Request::Drain(_) => {}
        }
        self.streams[stream].unanswered += 1;
        assert!(self.streams[stream].unanswered <= MAX_IN_FLIGHT);
        self.trace.write(&bytes);
        self.trace.write_u128(self.now.as_nanos());
        self.traffic.requests += 1;
        self.traffic.request_bytes += FRAME + bytes.len();
        let depth = self.proxies[proxy].depth + 1;
        self.traffic.round_trips = self.traffic.round_trips.max(depth);
        let at = self.arrival(stream, 0);
        self.push(at, Delivery::ToTracker(stream, request, depth));
    }

    fn respond(&mut self, stream: StreamId, sequence: u64, response: Response, depth: usize) {
        let response = v1::SessionResponse {
            sequence,
            response: Some(response),
        };
        self.traffic.responses += 1;
        self.traffic.response_bytes += FRAME + response.encoded_len();
        let at = self.arrival(stream, 1);
        self.push(at, Delivery::ToProxy(stream, response, depth));
    }

    fn arrival(&mut self, stream: StreamId, direction: usize) -> Duration {
        let span = self.latency.end - self.latency.start;
        let at = self.now + self.latency.start + span.mul_f64(self.random.f64());
        let arrival = &mut self.streams[stream].arrivals[direction];
        *arrival = (*arrival).max(at);
        *arrival
    }

    fn push(&mut self, at: Duration, delivery: Delivery) {
        self.next_delivery += 1;
        self.queue.push(Reverse((at, self.next_delivery)));
        self.deliveries.insert(self.next_delivery, delivery);
    }

    /// Makes the next delivery. Returns the proxy that has received something.
    fn deliver(&mut self) -> Option<usize> {
        let Reverse((_, number)) = self.queue.pop()?;
        let delivery = self.deliveries.remove(&number)?;
        if let Delivery::ToProxy(stream, ..) | Delivery::Lost(stream) = delivery {
            let awake_at = self.proxies[self.streams[stream].proxy].asleep_until;
            if self.now < awake_at {
                self.push(awake_at, delivery);
                return None;
            }
        }
        match delivery {
            Delivery::ToTracker(stream, request, depth) => {
                self.on_request(stream, request, depth);
                None
            }
            Delivery::ToProxy(stream, response, depth) => {
                let proxy = self.streams[stream].proxy;
                if self.streams[stream].is_lost || self.proxies[proxy].stream != Some(stream) {
                    return None;
                }
                if response.sequence != 0 {
                    self.streams[stream].unanswered -= 1;
                    self.proxies[proxy].depth = depth;
                }
                let now = self.instant();
                self.proxies[proxy].machine.handle(now, Input::Message(response));
                Some(proxy)
            }
            Delivery::Lost(stream) => {
                let at = self.streams[stream].proxy;
                let proxy = &mut self.proxies[at];
                if proxy.stream != Some(stream) {
                    return None;
                }
                proxy.stream = None;
                proxy.machine.handle(self.base + self.now, Input::Lost);
                Some(at)
            }
        }
    }

    /// A request arrives, even if the proxy has given the stream up meanwhile.
    fn on_request(&mut self, stream: StreamId, request: v1::SessionRequest, depth: usize) {
        let Stream {
            proxy,
            tracker,
            is_dead,
            ..
        } = self.streams[stream];
        if is_dead {
            return;
        }
        let id = self.proxies[proxy].id.clone();
        let body = request.request.expect("a request");
        let again = self.repeats_requests.then(|| body.clone());
        let reply = self.trackers[tracker].request(self.now, &id, stream, body);
        if let Some(again) = again {
            self.trackers[tracker].request(self.now, &id, stream, again);
        }
        for node in reply.refreshed {
            self.traffic.announced += 1;
            self.refreshes.push((self.now, proxy, node));
        }
        if let Some((owner, superseded)) = reply.superseded {
            self.respond(owner, 0, superseded, depth);
        }
        if let Some(answer) = reply.answer {
            self.respond(stream, request.sequence, answer, depth);
        }
        if reply.ends {
            let at = self.streams[stream].arrivals[1];
            self.push(at, Delivery::Lost(stream));
        }
    }
}
