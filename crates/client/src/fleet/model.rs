//! A model of a tracker: what `session.proto` promises, in a few maps.

use std::collections::BTreeMap;
use std::time::Duration;

use nodetracker_client::NodeId;
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use nodetracker_proto::v1::{SessionRefusal, SessionSupersededReason};

/// Names a stream in the world.
pub(crate) type StreamId = usize;

/// The limits of a message: small, so that runs reach them.
pub(crate) const LIMITS: v1::SessionLimits = v1::SessionLimits {
    max_nodes: 16,
    max_handles: 24,
    max_message_bytes: 400,
    idle_timeout: None,
};

/// A tracker. Times are times of the world.
pub(crate) struct ModelTracker {
    pub(crate) keep_alive: Duration,
    pub(crate) limits: v1::SessionLimits,
    /// Whether new streams reach the tracker.
    pub(crate) is_reachable: bool,
    /// The most routes.
    pub(crate) capacity: usize,
    generation: u64,
    next_handle: u64,
    proxies: BTreeMap<String, ModelProxy>,
}

#[derive(Default)]
struct ModelProxy {
    incarnation: u64,
    is_over: bool,
    owner: Option<StreamId>,
    /// Whether the table has the proxy.
    is_registered: bool,
    routes: BTreeMap<NodeId, ModelRoute>,
}

struct ModelRoute {
    handle: u64,
    refreshed: Duration,
}

/// What a tracker does because of a request.
pub(crate) struct Reply {
    /// The answer, and whether it ends the stream.
    pub(crate) answer: Option<Response>,
    pub(crate) ends: bool,
    /// A stream that has lost its proxy, and the message that ends it.
    pub(crate) superseded: Option<(StreamId, Response)>,
    /// The nodes that the request has announced or refreshed.
    pub(crate) refreshed: Vec<NodeId>,
}

impl ModelTracker {
    /// Creates a tracker. Two trackers must not have the same generation.
    pub(crate) fn new(keep_alive: Duration, limits: v1::SessionLimits, generation: u64) -> Self {
        Self {
            keep_alive,
            limits,
            is_reachable: true,
            capacity: usize::MAX,
            generation,
            next_handle: 1,
            proxies: BTreeMap::new(),
        }
    }

    /// Begins a new generation; all streams are lost. With a snapshot, the routes stay, and their handles do not hold.
    pub(crate) fn restart(&mut self, has_snapshot: bool, now: Duration) {
        self.generation += 100;
        if !has_snapshot {
            self.proxies.clear();
        }
        for proxy in self.proxies.values_mut() {
            proxy.owner = None;
            for route in proxy.routes.values_mut() {
                self.next_handle += 1;
                route.handle = self.next_handle;
                // Expiry is held for an interval.
                route.refreshed = now;
            }
        }
    }

    /// The table drops all proxies, as those that had no routes for long.
    pub(crate) fn drop_proxies(&mut self) {
        for proxy in self.proxies.values_mut() {
            proxy.is_registered = false;
            proxy.routes.clear();
        }
    }

    /// An operator removes the routes of some nodes, and the table moves others.
    pub(crate) fn disturb_routes(&mut self, random: &mut fastrand::Rng) {
        for proxy in self.proxies.values_mut() {
            proxy.routes.retain(|_, _| random.u8(..10) != 0);
            for route in proxy.routes.values_mut().filter(|_| random.u8(..10) == 0) {
                self.next_handle += 1;
                route.handle = self.next_handle;
            }
        }
    }

    /// The nodes with a route that has not expired.
    pub(crate) fn nodes(&self, proxy: &str, now: Duration) -> Vec<NodeId> {
        let routes = self.proxies.get(proxy).into_iter().flat_map(|proxy| &proxy.routes);
        let live = routes.filter(|(_, route)| now - route.refreshed <= self.keep_alive);
        live.map(|(node, _)| node.clone()).collect()
    }

    /// Handles a request of `proxy` on a stream.
    pub(crate) fn request(&mut self, now: Duration, id: &str, stream: StreamId, request: Request) -> Reply {
        let mut reply = Reply {
            answer: None,
            ends: false,
            superseded: None,
            refreshed: Vec::new(),
        };
        let proxy = self.proxies.entry(id.into()).or_default();
        if let Request::Hello(hello) = &request {
            if hello.incarnation < proxy.incarnation || (hello.incarnation == proxy.incarnation && proxy.is_over) {
                return reply.superseded(proxy, SessionSupersededReason::NewerIncarnation);
            }
            let is_same = proxy.incarnation == hello.incarnation;
            let is_resumed = is_same && proxy.is_registered;
            let owner = proxy.owner.take();
            if !is_same {
                *proxy = ModelProxy::default();
            }
            proxy.owner = Some(stream);
            if let Some(owner) = owner {
                let reason = match is_same {
                    true => SessionSupersededReason::NewerSession,
                    false => SessionSupersededReason::NewerIncarnation,
                };
                reply.superseded = Some((owner, superseded(reason, hello.incarnation)));
            }
            proxy.incarnation = hello.incarnation;
            proxy.is_registered = true;
            reply.answer = Some(Response::Welcome(v1::SessionWelcome {
                generation: self.generation,
                heartbeat_interval: (self.keep_alive / 3).try_into().ok(),
                handles_hold: hello.has_handles && hello.generation == self.generation && is_resumed,
                limits: Some(v1::SessionLimits {
                    idle_timeout: self.keep_alive.try_into().ok(),
                    ..self.limits
                }),
            }));
            return reply;
        }
        if proxy.owner != Some(stream) || proxy.is_over {
            return reply.superseded(proxy, SessionSupersededReason::NewerSession);
        }
        proxy.routes.retain(|_, route| now - route.refreshed <= self.keep_alive);
        let was_registered = std::mem::replace(&mut proxy.is_registered, true);
        reply.answer = Some(match request {
            Request::NodesUp(up) => {
                let mut handles = Vec::new();
                let mut refusal = SessionRefusal::Unspecified;
                for node in nodes(up.nodes.unwrap_or_default()) {
                    if !proxy.routes.contains_key(&node) && proxy.routes.len() >= self.capacity {
                        refusal = SessionRefusal::TooManyRoutes;
                        break;
                    }
                    self.next_handle += 1;
                    let handle = self.next_handle;
                    let route = proxy
                        .routes
                        .entry(node.clone())
                        .or_insert(ModelRoute { handle, refreshed: now });
                    route.refreshed = now;
                    handles.extend(route.handle.to_le_bytes());
                    reply.refreshed.push(node);
                }
                Response::Handles(v1::SessionHandles {
                    handles,
                    refusal: refusal.into(),
                })
            }
            Request::Heartbeat(_) if !was_registered => Response::Resync(v1::SessionResync {}),
            Request::Heartbeat(heartbeat) => {
                let routes = proxy.routes.iter_mut();
                let mut by_handle: BTreeMap<_, _> = routes.map(|(node, route)| (route.handle, (node, route))).collect();
                let mut gone_handles = Vec::new();
                for handle in heartbeat.handles.as_chunks::<8>().0 {
                    match by_handle.get_mut(&u64::from_le_bytes(*handle)) {
                        Some((node, route)) => {
                            route.refreshed = now;
                            reply.refreshed.push((*node).clone());
                        }
                        None => gone_handles.extend(handle),
                    }
                }
                Response::Ack(v1::SessionAck {
                    gone_handles,
                    heartbeat_interval: None,
                })
            }
            Request::NodesDown(down) => {
                for node in nodes(down.nodes.unwrap_or_default()) {
                    proxy.routes.remove(&node);
                }
                Response::Ack(v1::SessionAck::default())
            }
            Request::Drain(_) | Request::Hello(_) => {
                proxy.is_over = true;
                proxy.routes.clear();
                reply.ends = true;
                Response::Ack(v1::SessionAck::default())
            }
        });
        reply
    }
}

impl Reply {
    fn superseded(mut self, proxy: &ModelProxy, reason: SessionSupersededReason) -> Self {
        let reason = match proxy.is_over {
            true => SessionSupersededReason::ProxyRemoved,
            false => reason,
        };
        self.answer = Some(superseded(reason, proxy.incarnation));
        self.ends = true;
        self
    }
}

fn superseded(reason: SessionSupersededReason, latest_incarnation: u64) -> Response {
    Response::Superseded(v1::SessionSuperseded {
        reason: reason.into(),
        latest_incarnation,
    })
}

/// The nodes of a message in the order of their positions.
pub(crate) fn nodes(ids: v1::NodeIds) -> Vec<NodeId> {
    let (uuids, rest) = ids.uuids.as_chunks::<16>();
    assert!(rest.is_empty(), "a part of a UUID");
    let uuids = uuids.iter().map(|bytes| nodetracker::Uuid::from_bytes(*bytes).into());
    let names = ids.names.iter().map(|name| name.parse().expect("a valid name"));
    uuids.chain(names).collect()
}
