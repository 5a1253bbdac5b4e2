//! The link, step by step.

use super::*;
use crate::control::proto::GoodbyeReason;

const TIMES: LinkTimes = LinkTimes {
    handshake_timeout: Duration::from_secs(10),
    keep_alive: KeepAliveTimes {
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(5),
    },
    list_interval: Duration::from_secs(60),
};

struct Agent {
    link: AgentLink,
    now: Instant,
}

fn list(id: &str) -> Arc<proto::ProxyList> {
    let proxy_id = id.to_owned();
    let proxies = vec![proto::ProxyInfo {
        proxy_id,
        ..Default::default()
    }];
    Arc::new(proto::ProxyList {
        proxies,
        valid_for: None,
    })
}

fn hello() -> FromAgent {
    FromAgent::Hello(proto::Hello {
        protocol_version: PROTOCOL_VERSION,
        node_id: "node-1".into(),
        ..Default::default()
    })
}

impl Agent {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            link: AgentLink::new(now, TIMES, list("a")),
            now,
        }
    }

    fn claimed() -> Self {
        let mut agent = Self::new();
        agent.says(hello());
        agent.link.welcome(proto::ProxyInfo::default());
        assert_eq!(agent.says(FromAgent::Claim(proto::Claim {})), [LinkEvent::Claimed]);
        assert!(matches!(agent.hears()[..], [ToAgent::Welcome(_)]));
        agent
    }

    fn events(&mut self) -> Vec<LinkEvent> {
        std::iter::from_fn(|| self.link.poll_event(self.now)).collect()
    }

    fn says(&mut self, message: FromAgent) -> Vec<LinkEvent> {
        self.link
            .handle(self.now, proto::AgentMessage { message: Some(message) });
        self.events()
    }

    fn hears(&mut self) -> Vec<ToAgent> {
        std::iter::from_fn(|| self.link.poll_transmit()?.message).collect()
    }

    fn advance(&mut self, time: Duration) -> Vec<LinkEvent> {
        self.now += time;
        self.events()
    }
}

fn is_closed(events: &[LinkEvent]) -> bool {
    matches!(events, [LinkEvent::Closed(_)])
}

#[test]
fn an_agent_is_connected_only_after_its_claim() {
    let mut agent = Agent::new();
    assert!(matches!(agent.says(hello())[..], [LinkEvent::Hello(_)]));
    assert_eq!(agent.hears(), []);
    agent.link.welcome(proto::ProxyInfo::default());
    let heard = agent.hears();
    let [ToAgent::Welcome(welcome)] = &heard[..] else {
        panic!("{heard:?}")
    };
    assert_eq!(welcome.proxy_list.as_ref(), Some(&*list("a")));
    assert_eq!(agent.says(FromAgent::Claim(proto::Claim {})), [LinkEvent::Claimed]);
}

#[test]
fn an_agent_that_does_not_claim_in_time_is_closed() {
    let mut agent = Agent::new();
    agent.advance(TIMES.handshake_timeout / 2);
    agent.says(hello());
    agent.link.welcome(proto::ProxyInfo::default());
    assert!(is_closed(&agent.advance(TIMES.handshake_timeout / 2)));
}

#[test]
fn messages_out_of_order_close_the_link() {
    for message in [FromAgent::Claim(proto::Claim {}), FromAgent::Ping(proto::Ping {})] {
        assert!(is_closed(&Agent::new().says(message)));
    }
    for message in [hello(), FromAgent::Claim(proto::Claim {})] {
        let mut agent = Agent::claimed();
        assert!(is_closed(&agent.says(message)));
        assert_eq!(agent.says(FromAgent::Ping(proto::Ping {})), [], "nothing follows");
        assert_eq!(agent.link.next_timeout(), None);
    }
}

#[test]
fn a_bad_hello_is_refused_with_the_reason() {
    let bad = [
        proto::Hello {
            protocol_version: 2,
            ..Default::default()
        },
        proto::Hello {
            protocol_version: PROTOCOL_VERSION,
            agent_version: "x".repeat(256),
            ..Default::default()
        },
    ];
    for hello in bad {
        let mut agent = Agent::new();
        assert!(is_closed(&agent.says(FromAgent::Hello(hello))));
        let heard = agent.hears();
        let [ToAgent::Goodbye(goodbye)] = &heard[..] else {
            panic!("{heard:?}")
        };
        assert_eq!(goodbye.reason(), GoodbyeReason::InvalidHello);
    }
}

#[test]
fn the_text_of_a_goodbye_is_bounded() {
    let mut agent = Agent::new();
    agent.link.refuse(GoodbyeReason::NotAllowed, &"ä".repeat(200));
    let heard = agent.hears();
    let [ToAgent::Goodbye(goodbye)] = &heard[..] else {
        panic!("{heard:?}")
    };
    assert_eq!(goodbye.text, "ä".repeat(127));
}

#[test]
fn pings_are_answered_and_show_that_the_node_is_alive() {
    let mut agent = Agent::claimed();
    assert_eq!(agent.says(FromAgent::Ping(proto::Ping {})), [LinkEvent::Seen]);
    assert_eq!(agent.hears(), [ToAgent::Pong(proto::Pong {})]);
    assert_eq!(agent.says(FromAgent::Pong(proto::Pong {})), [LinkEvent::Seen]);
    assert_eq!(agent.hears(), []);
}

#[test]
fn a_silent_agent_is_closed_within_interval_and_timeout() {
    let mut agent = Agent::claimed();
    assert_eq!(agent.advance(TIMES.keep_alive.interval), []);
    assert_eq!(agent.hears(), [ToAgent::Ping(proto::Ping {})]);
    assert!(is_closed(&agent.advance(TIMES.keep_alive.timeout)));
}

#[test]
fn an_agent_that_sends_other_bytes_than_a_pong_is_alive() {
    let mut agent = Agent::claimed();
    agent.advance(TIMES.keep_alive.interval);
    assert_eq!(agent.hears(), [ToAgent::Ping(proto::Ping {})]);
    agent.link.bytes_received(agent.now + TIMES.keep_alive.timeout / 2);
    assert_eq!(agent.advance(TIMES.keep_alive.timeout), [LinkEvent::Seen]);
    assert_eq!(
        agent.hears(),
        [ToAgent::Ping(proto::Ping {})],
        "the agent may hear nothing else"
    );
    assert!(is_closed(&agent.advance(TIMES.keep_alive.timeout)));
}

#[test]
fn pings_can_come_earlier() {
    let mut agent = Agent::claimed();
    agent.link.ping_within(Some(TIMES.keep_alive.interval / 10));
    agent.advance(TIMES.keep_alive.interval / 10);
    assert_eq!(agent.hears(), [ToAgent::Ping(proto::Ping {})]);
    // Pings can come later again.
    agent.link.ping_within(Some(TIMES.keep_alive.interval * 6));
    agent.says(FromAgent::Pong(proto::Pong {}));
    let next = agent.link.next_timeout();
    assert_eq!(next, Some(agent.now + TIMES.keep_alive.interval));
}

#[test]
fn a_list_is_sent_when_it_changes_and_each_interval() {
    let mut agent = Agent::claimed();
    agent.link.set_list(list("a"));
    assert_eq!(agent.hears(), [], "the same list");
    agent.link.set_list(list("b"));
    agent.link.set_list(list("c"));
    assert_eq!(
        agent.hears(),
        [ToAgent::ProxyList((*list("c")).clone())],
        "only the last"
    );
    let mut lists = 0;
    for _ in 0..180 {
        agent.advance(Duration::from_secs(1));
        agent.says(FromAgent::Pong(proto::Pong {}));
        lists += agent
            .hears()
            .iter()
            .filter(|message| matches!(message, ToAgent::ProxyList(_)))
            .count();
    }
    assert_eq!(lists, 3);
}

#[test]
fn an_agent_that_leaves_is_served_until_it_is_closed() {
    let mut agent = Agent::claimed();
    assert_eq!(
        agent.says(FromAgent::Goodbye(proto::Goodbye::default())),
        [LinkEvent::Left]
    );
    assert_eq!(agent.says(FromAgent::Ping(proto::Ping {})), [], "no longer seen");
    assert_eq!(agent.hears(), [ToAgent::Pong(proto::Pong {})]);
    agent.advance(TIMES.keep_alive.interval);
    assert!(is_closed(&agent.advance(TIMES.keep_alive.timeout)));
}

#[test]
fn a_list_that_changes_before_the_claim_follows_after_the_claim() {
    let mut agent = Agent::new();
    agent.says(hello());
    agent.link.welcome(proto::ProxyInfo::default());
    assert!(matches!(agent.hears()[..], [ToAgent::Welcome(_)]));
    agent.link.set_list(list("b"));
    assert_eq!(agent.hears(), []);
    assert_eq!(agent.says(FromAgent::Claim(proto::Claim {})), [LinkEvent::Claimed]);
    assert_eq!(agent.hears(), [ToAgent::ProxyList((*list("b")).clone())]);
}

#[test]
fn the_longest_times_do_not_overflow() {
    let times = LinkTimes {
        handshake_timeout: Duration::MAX,
        keep_alive: KeepAliveTimes {
            interval: Duration::MAX,
            timeout: Duration::MAX,
        },
        list_interval: Duration::MAX,
    };
    let now = Instant::now();
    let link = AgentLink::new(now, times, list("a"));
    let mut agent = Agent { link, now };
    agent.says(hello());
    agent.link.welcome(proto::ProxyInfo::default());
    assert_eq!(agent.says(FromAgent::Claim(proto::Claim {})), [LinkEvent::Claimed]);
    assert_eq!(agent.advance(Duration::from_secs(1 << 29)), []);
}
