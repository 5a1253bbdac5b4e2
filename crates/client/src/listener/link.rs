//! The proxy's side of the protocol with one agent: the state machine, without I/O.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::agent_message::Message as FromAgent;
use proto::proxy_message::Message as ToAgent;

use crate::clock::after;
use crate::control::keep_alive::{Due, KeepAlive, KeepAliveTimes};
use crate::control::{MAX_TEXT, PROTOCOL_VERSION, cut, proto, proto_duration};

/// The times of an [`AgentLink`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkTimes {
    /// The longest time until the agent's claim.
    pub handshake_timeout: Duration,
    /// When a silent agent is pinged, and when its tunnel is broken.
    pub keep_alive: KeepAliveTimes,
    /// How often the list of proxies is sent, also if it is unchanged.
    pub list_interval: Duration,
}

/// An event of a link.
#[derive(Debug, Clone, PartialEq)]
pub enum LinkEvent {
    /// The agent has said hello. Call [`AgentLink::welcome`] or [`AgentLink::refuse`].
    Hello(proto::Hello),
    /// The agent stays: the proxy may open streams.
    Claimed,
    /// The agent has sent a ping, a pong, or other bytes instead of an awaited pong, after its claim.
    Seen,
    /// The agent leaves: open no more streams, and close the tunnel when the open streams have ended.
    Left,
    /// Send what is left, and close the tunnel, for this reason. The last event.
    Closed(String),
}

/// The protocol with one agent.
///
/// Read the agent's next message only when [`AgentLink::poll_transmit`] returns `None`. Then a link holds only the
/// answers to one message.
#[derive(Debug)]
pub struct AgentLink {
    times: LinkTimes,
    state: State,
    keep_alive: KeepAlive,
    list: Arc<proto::ProxyList>,
    next_list: Instant,
    list_is_due: bool,
    messages: VecDeque<ToAgent>,
    events: VecDeque<LinkEvent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting { deadline: Instant },
    Welcomed { deadline: Instant },
    Claimed,
    Left,
    Closed,
}

impl AgentLink {
    /// Begins when the control stream is open.
    #[must_use]
    pub fn new(now: Instant, times: LinkTimes, list: Arc<proto::ProxyList>) -> Self {
        let deadline = after(now, times.handshake_timeout);
        Self {
            times,
            state: State::Greeting { deadline },
            keep_alive: KeepAlive::new(times.keep_alive, now),
            list,
            next_list: after(now, times.list_interval),
            list_is_due: false,
            messages: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// Takes a message of the agent.
    pub fn handle(&mut self, now: Instant, message: proto::AgentMessage) {
        self.keep_alive.heard(now);
        // A message that this version does not know has no content.
        let Some(message) = message.message else { return };
        match (self.state, message) {
            (State::Closed, _) => {}
            (State::Greeting { .. }, FromAgent::Hello(hello)) => self.hello(hello),
            (State::Welcomed { .. }, FromAgent::Claim(_)) => {
                self.state = State::Claimed;
                self.events.push_back(LinkEvent::Claimed);
            }
            (State::Claimed | State::Left, FromAgent::Ping(_)) => {
                self.messages.push_back(ToAgent::Pong(proto::Pong {}));
                self.seen();
            }
            (State::Claimed | State::Left, FromAgent::Pong(_)) => self.seen(),
            (State::Claimed, FromAgent::Goodbye(_)) => {
                self.state = State::Left;
                self.events.push_back(LinkEvent::Left);
            }
            (_, FromAgent::Goodbye(goodbye)) => self.close(format!("the agent said goodbye: {:?}", goodbye.reason())),
            (state, message) => self.close(format!("{message:?} came in the state {state:?}")),
        }
    }

    /// Records when the agent has last sent bytes, of any stream. An agent that still sends is alive, also if its pong
    /// waits behind other bytes.
    pub fn bytes_received(&mut self, at: Instant) {
        self.keep_alive.bytes_received(at);
    }

    /// Pings the agent after a silence of `interval`, if this is shorter than the interval of the [`LinkTimes`].
    /// Replaces the interval of an earlier call. With `None`, the interval of the [`LinkTimes`] counts again.
    pub fn ping_within(&mut self, interval: Option<Duration>) {
        self.keep_alive.ping_within(interval);
    }

    fn hello(&mut self, hello: proto::Hello) {
        let invalid = proto::GoodbyeReason::InvalidHello;
        if hello.protocol_version != PROTOCOL_VERSION {
            let version = hello.protocol_version;
            self.refuse(
                invalid,
                &format!("version {version} of the protocol, expected {PROTOCOL_VERSION}"),
            );
        } else if hello.cluster_name.len() > MAX_TEXT || hello.agent_version.len() > MAX_TEXT {
            self.refuse(invalid, "the name of the cluster, or the agent's version, is too long");
        } else {
            self.events.push_back(LinkEvent::Hello(hello));
        }
    }

    fn seen(&mut self) {
        if self.state == State::Claimed {
            self.events.push_back(LinkEvent::Seen);
        }
    }

    /// Answers a hello: the agent may claim this proxy.
    pub fn welcome(&mut self, proxy: proto::ProxyInfo) {
        if let State::Greeting { deadline } = self.state {
            self.state = State::Welcomed { deadline };
            let list = (*self.list).clone();
            self.messages.push_back(ToAgent::Welcome(proto::Welcome {
                proxy: Some(proxy),
                proxy_list: Some(list),
            }));
        }
    }

    /// Says goodbye, and closes the link.
    pub fn refuse(&mut self, reason: proto::GoodbyeReason, text: &str) {
        self.messages.push_back(ToAgent::Goodbye(proto::Goodbye {
            reason: reason.into(),
            text: cut(text).to_owned(),
        }));
        self.close(format!("refused: {reason:?} {text}"));
    }

    /// Sends a new list of proxies, if the agent has had its welcome.
    pub fn set_list(&mut self, list: Arc<proto::ProxyList>) {
        let has_changed = !Arc::ptr_eq(&self.list, &list) && self.list != list;
        self.list_is_due |= has_changed && !matches!(self.state, State::Greeting { .. });
        self.list = list;
    }

    /// Asks the agent to find another proxy within a window.
    pub fn reconnect(&mut self, window: Duration) {
        let window = proto_duration(window);
        self.messages.push_back(ToAgent::Reconnect(proto::Reconnect { window }));
    }

    /// Queues a ping, unless a ping waits because the agent does not read.
    fn ping(&mut self) {
        let ping = ToAgent::Ping(proto::Ping {});
        if !self.messages.contains(&ping) {
            self.messages.push_back(ping);
        }
    }

    fn close(&mut self, reason: String) {
        self.state = State::Closed;
        self.events.push_back(LinkEvent::Closed(reason));
    }

    /// Returns the next message to send.
    pub fn poll_transmit(&mut self) -> Option<proto::ProxyMessage> {
        let message = self.messages.pop_front().or_else(|| {
            let is_due = self.state == State::Claimed && std::mem::take(&mut self.list_is_due);
            is_due.then(|| ToAgent::ProxyList((*self.list).clone()))
        })?;
        Some(proto::ProxyMessage { message: Some(message) })
    }

    /// Does what is due, and returns the next event.
    pub fn poll_event(&mut self, now: Instant) -> Option<LinkEvent> {
        if self.next_timeout().is_some_and(|due| due <= now) {
            self.due(now);
        }
        self.events.pop_front()
    }

    /// When [`AgentLink::poll_event`] has something to do, if no message comes before.
    #[must_use]
    pub fn next_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Greeting { deadline } | State::Welcomed { deadline } => Some(deadline),
            State::Claimed => Some(self.keep_alive.next_timeout().min(self.next_list)),
            State::Left => Some(self.keep_alive.next_timeout()),
            State::Closed => None,
        }
    }

    fn due(&mut self, now: Instant) {
        if matches!(self.state, State::Greeting { .. } | State::Welcomed { .. }) {
            return self.close(format!("no claim within {:?}", self.times.handshake_timeout));
        }
        if self.next_list <= now {
            self.next_list = after(now, self.times.list_interval);
            self.list_is_due = true;
        }
        match self.keep_alive.due(now) {
            Some(Due::Ping) => self.ping(),
            Some(Due::PingAgain) => {
                self.ping();
                self.seen();
            }
            Some(Due::Broken) => self.close("the keep-alive has no answer".to_owned()),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests;
