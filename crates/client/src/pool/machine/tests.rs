//! The machine, step by step.

use super::*;
use crate::control::MAX_PROXIES;
use crate::control::keep_alive::KeepAliveTimes;
use crate::pool::counts::StateCounts;

struct Pool {
    machine: PoolMachine,
    now: Instant,
}

fn target() -> Target {
    Target::new("main", "balancer:1")
}

fn proxy(id: &str, incarnation: u64) -> proto::ProxyInfo {
    proto::ProxyInfo {
        proxy_id: id.into(),
        incarnation,
        version: String::new(),
    }
}

fn list(ids: &[&str]) -> proto::ProxyList {
    proto::ProxyList {
        proxies: ids.iter().map(|id| proxy(id, 1)).collect(),
        valid_for: Some(prost_types::Duration { seconds: 600, nanos: 0 }),
    }
}

fn received(message: FromProxy) -> Input {
    Input::Received(proto::ProxyMessage { message: Some(message) })
}

fn welcome(proxy: proto::ProxyInfo, known: &[&str]) -> Input {
    received(FromProxy::Welcome(proto::Welcome {
        proxy: Some(proxy),
        proxy_list: Some(list(known)),
    }))
}

fn reconnect(seconds: i64) -> Input {
    let window = Some(prost_types::Duration { seconds, nanos: 0 });
    received(FromProxy::Reconnect(proto::Reconnect { window }))
}

impl Pool {
    fn new(connection_count: usize) -> Self {
        let mut config = PoolConfig::new("node-1".parse().unwrap());
        config.connection_count = connection_count;
        let mut pool = Self {
            machine: PoolMachine::new(config, 1),
            now: Instant::now(),
        };
        pool.machine.add_target(pool.now, target());
        pool
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action(self.now)).collect()
    }

    fn handle(&mut self, id: TunnelId, input: Input) -> Vec<Action> {
        self.machine.handle(self.now, id, input);
        self.actions()
    }

    fn advance(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.actions()
    }

    /// Does what is due until the next dial, and then moves to the next timeout. Pings get answers meanwhile.
    fn step(&mut self) -> Option<TunnelId> {
        while let Some(action) = self.machine.poll_action(self.now) {
            match action {
                Action::Connect(id, _) => return Some(id),
                Action::Send(id, message) if message.message == Some(ToProxy::Ping(proto::Ping {})) => {
                    self.machine
                        .handle(self.now, id, received(FromProxy::Pong(proto::Pong {})));
                }
                _ => {}
            }
        }
        self.now = self.machine.next_timeout().expect("something is due");
        None
    }

    /// Waits for the next dial.
    fn dial(&mut self) -> TunnelId {
        (0..100).find_map(|_| self.step()).expect("a dial")
    }

    /// Whether the pool dials within a time.
    fn dials_within(&mut self, time: Duration) -> bool {
        let end = self.now + time;
        while self.now < end {
            if self.step().is_some() {
                return true;
            }
        }
        false
    }

    /// Dials, and gets a welcome.
    fn connect(&mut self, id: &str, known: &[&str]) -> TunnelId {
        let tunnel = self.dial();
        self.handle(tunnel, Input::Opened);
        let actions = self.handle(tunnel, welcome(proxy(id, 1), known));
        assert_eq!(sent(&actions, tunnel), [ToProxy::Claim(proto::Claim {})], "{actions:?}");
        tunnel
    }

    fn counts(&self) -> StateCounts {
        self.machine.counts().remove("main").unwrap_or_default()
    }
}

fn sent(actions: &[Action], tunnel: TunnelId) -> Vec<ToProxy> {
    let messages = actions.iter().filter_map(|action| match action {
        Action::Send(id, message) if *id == tunnel => message.message.clone(),
        _ => None,
    });
    messages.collect()
}

fn is_goodbye(messages: &[ToProxy]) -> bool {
    matches!(messages, [ToProxy::Goodbye(_)])
}

#[test]
fn a_tunnel_is_dialled_at_once_and_claimed_after_the_welcome() {
    let mut pool = Pool::new(1);
    assert_eq!(
        pool.counts(),
        StateCounts {
            disconnected: 1,
            ..Default::default()
        }
    );
    let actions = pool.actions();
    let [Action::Connect(id, to)] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(*to, target());
    assert_eq!(
        pool.counts(),
        StateCounts {
            connecting: 1,
            ..Default::default()
        }
    );
    let hello = sent(&pool.handle(*id, Input::Opened), *id);
    let [ToProxy::Hello(hello)] = &hello[..] else {
        panic!("{hello:?}")
    };
    assert_eq!(
        (hello.protocol_version, &*hello.node_id, &*hello.cluster_name),
        (1, "node-1", "main")
    );
    let claim = pool.handle(*id, welcome(proxy("a", 1), &["a", "b"]));
    assert_eq!(sent(&claim, *id), [ToProxy::Claim(proto::Claim {})]);
    assert_eq!(
        pool.counts(),
        StateCounts {
            connected: 1,
            ..Default::default()
        }
    );
    assert_eq!(pool.advance(Duration::from_secs(9)), [], "one tunnel is wanted");
}

#[test]
fn a_second_tunnel_to_a_proxy_is_dropped_and_dialled_again_later() {
    let mut pool = Pool::new(2);
    pool.connect("a", &["a", "b"]);
    let second = pool.dial();
    assert_eq!(
        pool.counts(),
        StateCounts {
            connected: 1,
            discovering: 1,
            ..Default::default()
        }
    );
    pool.handle(second, Input::Opened);
    let actions = pool.handle(second, welcome(proxy("a", 1), &["a", "b"]));
    assert_eq!(actions, [Action::Close(second)]);
    assert_eq!(pool.machine.stats().duplicates, 1);
    assert_eq!(
        pool.counts(),
        StateCounts {
            connected: 1,
            disconnected: 1,
            ..Default::default()
        }
    );
    pool.connect("b", &["a", "b"]);
    assert_eq!(
        pool.counts(),
        StateCounts {
            connected: 1,
            discovered: 1,
            ..Default::default()
        }
    );
}

#[test]
fn the_number_of_tunnels_follows_the_known_proxies() {
    let mut pool = Pool::new(0);
    let first = pool.connect("a", &["a"]);
    assert_eq!(pool.counts().total(), 1);
    pool.handle(first, received(FromProxy::ProxyList(list(&["a", "b", "c", "d", "e"]))));
    assert_eq!(pool.counts().total(), 3, "two leases at a time");
    for id in ["b", "c", "d", "e"] {
        pool.connect(id, &[]);
    }
    assert_eq!((pool.counts().ready(), pool.counts().total()), (5, 5));
}

#[test]
fn a_reconnect_signal_opens_the_new_tunnel_before_the_old_leaves() {
    let mut pool = Pool::new(1);
    let old = pool.connect("a", &["a", "b"]);
    assert_eq!(pool.handle(old, reconnect(60)), []);
    let begin = pool.now;
    let new = pool.dial();
    assert!(pool.now - begin < Duration::from_secs(60));
    assert_eq!(
        pool.counts(),
        StateCounts {
            connected: 1,
            discovering: 1,
            ..Default::default()
        }
    );
    pool.handle(new, Input::Opened);
    let actions = pool.handle(new, welcome(proxy("b", 1), &["b"]));
    assert_eq!(sent(&actions, new), [ToProxy::Claim(proto::Claim {})]);
    assert!(is_goodbye(&sent(&actions, old)), "{actions:?}");
    assert_eq!(
        pool.counts(),
        StateCounts {
            discovered: 1,
            disconnected: 1,
            ..Default::default()
        }
    );
    assert_eq!(pool.handle(old, Input::Ended("left".into())), []);
    assert_eq!(pool.counts().total(), 1);
    assert_eq!(pool.machine.stats().lost, 0);
}

#[test]
fn a_tunnel_without_a_replacement_stays_until_the_proxy_ends_it() {
    let mut pool = Pool::new(1);
    let old = pool.connect("a", &["a"]);
    pool.handle(old, reconnect(1));
    let again = pool.dial();
    pool.handle(again, Input::Opened);
    let goodbye = proto::Goodbye {
        reason: proto::GoodbyeReason::Draining.into(),
        text: String::new(),
    };
    let actions = pool.handle(again, received(FromProxy::Goodbye(goodbye)));
    assert_eq!(actions, [Action::Close(again)]);
    assert_eq!((pool.counts().connected, pool.counts().total()), (1, 1));
    assert!(
        !pool.dials_within(Duration::from_secs(50)),
        "no list names another proxy"
    );
}

#[test]
fn a_tunnel_without_a_replacement_leaves_after_a_list_names_another_proxy() {
    let mut pool = Pool::new(1);
    let old = pool.connect("a", &["a"]);
    pool.handle(old, reconnect(1));
    let again = pool.dial();
    pool.handle(again, Input::Opened);
    pool.handle(again, welcome(proxy("a", 1), &["a"]));
    pool.handle(old, received(FromProxy::ProxyList(list(&["a"]))));
    assert!(!pool.dials_within(Duration::from_secs(20)));
    pool.handle(old, received(FromProxy::ProxyList(list(&["a", "b"]))));
    let new = pool.dial();
    pool.handle(new, Input::Opened);
    let actions = pool.handle(new, welcome(proxy("b", 1), &["a", "b"]));
    assert!(is_goodbye(&sent(&actions, old)), "{actions:?}");
}

#[test]
fn a_proxy_that_has_recovered_keeps_its_tunnel() {
    let mut pool = Pool::new(1);
    let tunnel = pool.connect("a", &["a", "b"]);
    pool.handle(tunnel, reconnect(5));
    let end = pool.now + Duration::from_secs(5) + crate::pool::proxies::AVOID;
    // The load balancer always chooses the same proxy.
    while pool.machine.next_timeout().is_some_and(|next| next < end) {
        if let Some(again) = pool.step() {
            pool.handle(again, Input::Opened);
            pool.handle(again, welcome(proxy("a", 1), &["a", "b"]));
        }
    }
    assert!(pool.machine.stats().duplicates > 1);
    pool.now = end;
    assert!(!pool.dials_within(Duration::from_secs(300)), "the signal is forgotten");
    assert_eq!((pool.counts().connected, pool.counts().total()), (1, 1));
}

#[test]
fn streams_of_a_tunnel_that_leaves_are_cut_after_a_time() {
    let mut pool = Pool::new(1);
    let tunnel = pool.connect("a", &["a"]);
    pool.machine.remove_target(pool.now, &target());
    assert!(is_goodbye(&sent(&pool.actions(), tunnel)));
    let limit = pool.now + pool.machine.config.close_timeout;
    // Pings of the proxy still get answers.
    let pong = pool.handle(tunnel, received(FromProxy::Ping(proto::Ping {})));
    assert_eq!(sent(&pong, tunnel), [ToProxy::Pong(proto::Pong {})]);
    while pool.now < limit {
        assert!(!pool.machine.is_empty());
        pool.handle(tunnel, received(FromProxy::Pong(proto::Pong {})));
        pool.now = pool.machine.next_timeout().unwrap().min(limit);
    }
    assert_eq!(pool.actions(), [Action::Close(tunnel)]);
    assert!(pool.machine.is_empty());
    assert_eq!(pool.machine.stats().cut, 1);
}

#[test]
fn a_silent_proxy_is_noticed_within_interval_and_timeout() {
    let mut pool = Pool::new(1);
    let tunnel = pool.connect("a", &["a"]);
    let times = pool.machine.config.keep_alive;
    let ping = pool.advance(times.interval);
    assert_eq!(sent(&ping, tunnel), [ToProxy::Ping(proto::Ping {})]);
    assert_eq!(pool.advance(times.timeout), [Action::Close(tunnel)]);
    assert_eq!((pool.machine.stats().lost, pool.machine.stats().broken), (1, 1));
    assert_ne!(pool.dial(), tunnel);
}

#[test]
fn an_attempt_without_a_welcome_ends() {
    let mut pool = Pool::new(1);
    let tunnel = pool.dial();
    pool.handle(tunnel, Input::Opened);
    assert_eq!(
        pool.advance(pool.machine.config.connect_timeout),
        [Action::Close(tunnel)]
    );
    assert_eq!(pool.machine.stats().failures, 1);
}

#[test]
fn failures_wait_longer_and_longer_until_a_tunnel_has_lasted() {
    let mut pool = Pool::new(1);
    let begin = pool.now;
    for _ in 0..50 {
        let tunnel = pool.dial();
        // A tunnel that ends at once is no success.
        pool.handle(tunnel, Input::Opened);
        pool.handle(tunnel, welcome(proxy("a", 1), &[]));
        pool.handle(tunnel, Input::Ended("reset".into()));
    }
    // Waits of 15 s on average.
    assert!(pool.now - begin > Duration::from_secs(400), "{:?}", pool.now - begin);
    let tunnel = pool.connect("a", &[]);
    pool.now += pool.machine.config.backoff.max;
    pool.handle(tunnel, Input::Ended("reset".into()));
    let begin = pool.now;
    pool.dial();
    let longest = pool.machine.config.backoff.base + pool.machine.config.spread;
    assert!(pool.now - begin <= longest);
}

#[test]
fn a_proxy_that_has_started_again_gets_a_new_tunnel_although_the_old_has_not_ended() {
    let mut pool = Pool::new(2);
    let old = pool.connect("a", &["a", "b"]);
    let new = pool.dial();
    pool.handle(new, Input::Opened);
    let actions = pool.handle(new, welcome(proxy("a", 2), &["a", "b"]));
    assert_eq!(actions[0], Action::Close(old));
    assert_eq!(sent(&actions, new), [ToProxy::Claim(proto::Claim {})]);
    assert_eq!(pool.counts().ready(), 1);
}

#[test]
fn messages_out_of_order_and_bad_messages_end_the_attempt() {
    let no_id = proto::Welcome::default();
    for bad in [
        received(FromProxy::ProxyList(list(&["a"]))),
        received(FromProxy::Ping(proto::Ping {})),
        received(FromProxy::Reconnect(proto::Reconnect::default())),
        received(FromProxy::Welcome(no_id)),
        welcome(proxy("", 1), &[]),
        welcome(proxy(&"x".repeat(256), 1), &[]),
    ] {
        let mut pool = Pool::new(1);
        let tunnel = pool.dial();
        pool.handle(tunnel, Input::Opened);
        assert_eq!(pool.handle(tunnel, bad.clone()), [Action::Close(tunnel)], "{bad:?}");
        assert_eq!(pool.machine.stats().failures, 1, "{bad:?}");
    }
    let mut pool = Pool::new(1);
    let tunnel = pool.connect("a", &["a"]);
    assert_eq!(
        pool.handle(tunnel, welcome(proxy("b", 1), &[])),
        [Action::Close(tunnel)]
    );
    assert_eq!(pool.machine.stats().lost, 1);
}

#[test]
fn unknown_messages_and_late_inputs_change_nothing() {
    let mut pool = Pool::new(1);
    let tunnel = pool.connect("a", &["a"]);
    assert_eq!(
        pool.handle(tunnel, Input::Received(proto::ProxyMessage { message: None })),
        []
    );
    pool.handle(tunnel, Input::Ended("reset".into()));
    let counts = pool.counts();
    assert_eq!(pool.handle(tunnel, welcome(proxy("b", 1), &["a", "b"])), []);
    assert_eq!(pool.handle(tunnel, Input::Ended("reset".into())), []);
    assert_eq!(pool.counts(), counts);
}

#[test]
fn targets_are_independent() {
    let mut pool = Pool::new(1);
    pool.connect("a", &["a"]);
    let other = Target::new("leaf", "balancer:2");
    pool.machine.add_target(pool.now, other.clone());
    // The same ID behind another load balancer is another proxy.
    let second = pool.connect("a", &["a"]);
    let counts = pool.machine.counts();
    assert_eq!((counts["main"].connected, counts["leaf"].connected), (1, 1));
    pool.machine.remove_target(pool.now, &other);
    assert!(is_goodbye(&sent(&pool.actions(), second)));
    pool.handle(second, Input::Ended("left".into()));
    assert_eq!(pool.machine.counts().keys().collect::<Vec<_>>(), ["main"]);
}

#[test]
fn a_target_that_is_removed_while_it_is_dialled_is_not_dialled_again() {
    let mut pool = Pool::new(1);
    let tunnel = pool.dial();
    pool.machine.remove_target(pool.now, &target());
    assert_eq!(pool.actions(), [Action::Close(tunnel)]);
    assert!(pool.machine.is_empty());
    assert_eq!(pool.machine.next_timeout(), None);
}

#[test]
fn a_target_that_is_added_again_is_dialled_while_its_old_tunnel_leaves() {
    let mut pool = Pool::new(1);
    let old = pool.connect("a", &["a"]);
    pool.machine.remove_target(pool.now, &target());
    pool.machine.add_target(pool.now, target());
    let actions = pool.actions();
    assert!(is_goodbye(&sent(&actions, old)), "{actions:?}");
    assert!(matches!(actions[..], [_, Action::Connect(..)]), "{actions:?}");

    // The old tunnel is silent. It is not lost, because it leaves.
    let times = KeepAliveTimes::default();
    pool.advance(times.interval);
    let actions = pool.advance(times.timeout);
    assert!(actions.contains(&Action::Close(old)), "{actions:?}");
    assert_eq!((pool.machine.stats().lost, pool.machine.stats().broken), (0, 0));
}

#[test]
fn the_reason_of_a_failure_is_kept_until_a_tunnel_is_claimed() {
    let mut pool = Pool::new(1);
    let first = pool.dial();
    pool.handle(first, Input::Ended("connection refused".into()));
    assert_eq!(pool.machine.last_errors()[&target()], "connection refused");
    pool.connect("a", &["a"]);
    assert!(pool.machine.last_errors().is_empty());

    let long = Target::new("x".repeat(256), "balancer:2");
    pool.machine.add_target(pool.now, long.clone());
    assert_eq!(pool.actions(), []);
    let error = "the name of the cluster has 256 bytes, and the maximum is 255";
    assert_eq!(pool.machine.last_errors()[&long], error);
}

#[test]
fn the_text_of_a_goodbye_is_kept_only_in_part() {
    let mut pool = Pool::new(1);
    let first = pool.dial();
    pool.handle(first, Input::Opened);
    let goodbye = proto::Goodbye {
        reason: proto::GoodbyeReason::NotAllowed.into(),
        text: "x".repeat(100_000),
    };
    pool.handle(first, received(FromProxy::Goodbye(goodbye)));
    let error = &pool.machine.last_errors()[&target()];
    assert!(
        error.contains("NotAllowed") && error.len() < 1024,
        "{} bytes",
        error.len()
    );
}

#[test]
fn an_attempt_that_fails_at_once_is_made_again_later_even_without_a_backoff() {
    let mut pool = Pool::new(1);
    pool.machine.config.backoff = crate::backoff::Limits {
        base: Duration::ZERO,
        max: Duration::ZERO,
    };
    pool.machine
        .add_target(pool.now, Target::new("x".repeat(256), "balancer:2"));
    pool.actions();
    assert!(pool.machine.next_timeout() > Some(pool.now));
}

/// The proxy, or its load balancer, names another proxy each time, and a list names a proxy that never answers.
#[test]
fn a_proxy_of_many_names_gets_a_bounded_number_of_tunnels() {
    let mut pool = Pool::new(0);
    // Without the pings of many tunnels, the next dial is a few steps away.
    pool.machine.config.keep_alive.interval = Duration::from_secs(86_400);
    for number in 0..2 * MAX_PROXIES {
        let Some(tunnel) = (0..10).find_map(|_| pool.step()) else {
            break;
        };
        pool.handle(tunnel, Input::Opened);
        pool.handle(tunnel, welcome(proxy(&format!("proxy-{number}"), 1), &["silent"]));
    }
    assert_eq!(pool.counts().ready(), MAX_PROXIES);
}

#[test]
fn the_longest_times_do_not_overflow() {
    let mut config = PoolConfig::new("node-1".parse().unwrap());
    config.backoff = crate::backoff::Limits {
        base: Duration::MAX,
        max: Duration::MAX,
    };
    config.spread = Duration::MAX;
    config.connect_timeout = Duration::MAX;
    config.close_timeout = Duration::MAX;
    config.keep_alive = KeepAliveTimes {
        interval: Duration::MAX,
        timeout: Duration::MAX,
    };
    let mut pool = Pool {
        machine: PoolMachine::new(config, 1),
        now: Instant::now(),
    };
    pool.machine.add_target(pool.now, target());
    let lost = pool.connect("a", &["a"]);
    pool.handle(lost, Input::Ended("lost".into()));
    let failed = pool.dial();
    pool.handle(failed, Input::Ended("failed".into()));
    pool.machine.remove_target(pool.now, &target());
}
