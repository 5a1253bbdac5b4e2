//! Trackers that are dead, die, do not answer, do not serve, or are far away: calls succeed as long as one tracker
//! answers.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nodetracker_client::client::{ClientConfig, TrackerClient, TrackerStats};
use nodetracker_client::connect::WriteTo;
use nodetracker_client::connect::addr::TrackerAddr;
use nodetracker_client::tracker::{NodeTracker, TrackerError};
use nodetracker_server::Config;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::support::{ClosedPort, PROXY, Running, at, client, node, patient, wait_until};

fn is_healthy(stats: &[TrackerStats]) -> Vec<bool> {
    stats.iter().map(|tracker| tracker.is_healthy).collect()
}

async fn assert_serves(client: &TrackerClient, name: &str) {
    let nodes = [node(name)];
    client.add_nodes(&PROXY, &nodes).await.unwrap();
    assert_eq!(client.get_proxies(&nodes[0]).await.unwrap().len(), 1, "{name}");
    assert_eq!(client.get_proxies_batch(&nodes).await.unwrap()[0].len(), 1, "{name}");
}

#[tokio::test]
async fn a_tracker_that_is_dead_from_the_start_costs_nothing_but_a_metric() {
    let tracker = Running::start().await;
    let dead = ClosedPort::new();
    let client = client([dead.at(), tracker.at()], patient());
    // Before any probe has ended.
    assert_serves(&client, "node-1").await;
    wait_until(&client, |stats| is_healthy(stats) == [false, true]).await;
    let before = client.stats();
    for number in 0..20 {
        assert_serves(&client, &format!("node-{number}")).await;
    }
    let after = client.stats();
    assert_eq!(after[0].attempts, before[0].attempts, "a dead tracker gets no calls");
    assert_eq!(after[0].missed_writes, before[0].missed_writes + 20);
    assert_eq!(after[1].attempts, before[1].attempts + 60);
    assert_eq!((after[1].failed_attempts, after[1].missed_writes), (0, 0));
}

#[tokio::test]
async fn calls_go_on_while_a_tracker_dies_and_after_it_returns() {
    let (first, second) = (Running::start().await, Running::start().await);
    let mut client_config = patient();
    // Short, so that the test need not wait for the return.
    client_config.health.backoff.max = Duration::from_millis(100);
    let client = client([first.at(), second.at()], client_config);
    assert_serves(&client, "node-1").await;
    assert_eq!(first.proxies(&node("node-1")), ["proxy-1"]);

    let config = Config::default().listen_on(first.addr.to_string());
    let stop = tokio::spawn(first.stop());
    let mut calls = 0;
    while !stop.is_finished() {
        calls += 1;
        assert_serves(&client, &format!("node-{calls}")).await;
    }
    stop.await.unwrap();
    assert_serves(&client, "stopped").await;
    wait_until(&client, |stats| is_healthy(stats) == [false, true]).await;
    assert_eq!(second.proxies(&node("stopped")), ["proxy-1"]);
    assert!(client.stats()[0].missed_writes > 0);

    // At the same address, with an empty table.
    let first = Running::with_config(&config).await;
    wait_until(&client, |stats| is_healthy(stats) == [true, true]).await;
    assert_serves(&client, "returned").await;
    assert_eq!(first.proxies(&node("returned")), ["proxy-1"]);
}

#[tokio::test]
async fn a_tracker_that_accepts_and_never_answers_delays_few_calls() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tracker = Running::start().await;
    let mut client_config = patient();
    client_config.attempt_timeout = ClientConfig::default().attempt_timeout;
    client_config.health.timeout = client_config.attempt_timeout;
    let client = client([at(silent.local_addr().unwrap()), tracker.at()], client_config);
    for number in 0..20 {
        assert_serves(&client, &format!("node-{number}")).await;
    }
    let stats = client.stats();
    assert_eq!(is_healthy(&stats), [false, true]);
    // Two failures in a row end its health; of these, some are probes.
    assert!((1..=2).contains(&stats[0].attempts), "{stats:?}");
    assert_eq!(stats[0].failed_attempts, stats[0].attempts);
    assert_eq!(stats[0].missed_writes, 20);
    assert_eq!(tracker.table.len(), 20);
}

#[tokio::test]
async fn a_tracker_that_drains_gets_no_calls_and_has_failed_none() {
    let config = Config::default()
        .listen_on("127.0.0.1:0")
        .with("shutdown_delay", "1h")
        .unwrap();
    let mut draining = Running::with_config(&config).await;
    let tracker = Running::start().await;
    let mut client_config = patient();
    client_config.health.interval = Duration::from_millis(10);
    let client = client([draining.at(), tracker.at()], client_config);
    wait_until(&client, |stats| {
        stats.iter().all(|tracker| tracker.round_trip.is_some())
    })
    .await;
    assert_serves(&client, "before").await;
    assert_eq!(draining.proxies(&node("before")), ["proxy-1"]);

    draining.begin_stop();
    wait_until(&client, |stats| is_healthy(stats) == [false, true]).await;
    let before = client.stats();
    assert_serves(&client, "after").await;
    let after = client.stats();
    assert_eq!(draining.proxies(&node("after")), [""; 0]);
    assert_eq!(after[0].attempts, before[0].attempts);
    assert_eq!((after[0].failed_attempts, after[0].failed_probes), (0, 0));
}

#[tokio::test]
async fn a_tracker_that_drains_alone_still_gets_calls() {
    let config = Config::default()
        .listen_on("127.0.0.1:0")
        .with("shutdown_delay", "1h")
        .unwrap();
    let mut draining = Running::with_config(&config).await;
    draining.begin_stop();
    let client = client([draining.at()], patient());
    wait_until(&client, |stats| is_healthy(stats) == [false]).await;
    assert_serves(&client, "node-1").await;
}

#[tokio::test]
async fn if_no_tracker_can_be_reached_the_error_says_so_and_retries_are_few() {
    let dead = [ClosedPort::new(), ClosedPort::new()];
    let mut client_config = patient();
    client_config.backoff.max = Duration::from_millis(1);
    client_config.health.interval = Duration::from_secs(3600);
    client_config.health.backoff.base = Duration::from_secs(3600);
    client_config.health.backoff.max = Duration::from_secs(3600);
    let client = client(dead.iter().map(ClosedPort::at), client_config);
    for call in 1..=20 {
        let error = client.get_proxies(&node("node-1")).await.unwrap_err();
        assert!(matches!(error, TrackerError::Unavailable(_)), "{error:?}");
        let message = error.to_string();
        assert!(
            message.starts_with("no tracker is available: http://127.0.0.1:"),
            "{message}"
        );
        assert!(message.contains("Connection refused"), "{message}");
        let attempts: Vec<_> = client.stats().iter().map(|tracker| tracker.attempts).collect();
        // One attempt for each call, and at most four repeated attempts on each tracker.
        assert_eq!(attempts, [call + 4; 2]);
    }
    let error = client.add_nodes(&PROXY, &[node("node-1")]).await.unwrap_err();
    assert!(matches!(error, TrackerError::Unavailable(_)), "{error:?}");
    assert_eq!(client.stats()[0].missed_writes, 0, "the write was not done anywhere");
}

/// Listens on a port, and carries bytes between its connections and a tracker, each part after a delay.
async fn distant(tracker: SocketAddr, delay: Duration) -> SocketAddr {
    async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) -> io::Result<()> {
        let mut part = [0; 4096];
        loop {
            match from.read(&mut part).await? {
                0 => return to.shutdown().await,
                len => {
                    sleep(delay).await;
                    to.write_all(&part[..len]).await?;
                }
            }
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = TcpStream::connect(tracker).await.unwrap().into_split();
            tokio::spawn(carry(near_read, far_write, delay));
            tokio::spawn(carry(far_read, near_write, delay));
        }
    });
    addr
}

/// A client of a distant tracker, and of a tracker that the client knows to be nearer.
async fn far_and_near(far: SocketAddr, near: TrackerAddr, mut client_config: ClientConfig) -> TrackerClient {
    let far = distant(far, Duration::from_millis(50)).await;
    client_config.health.interval = Duration::from_millis(10);
    let client = client([at(far), near], client_config);
    let round_trips = |stats: &[TrackerStats]| Some((stats[0].round_trip?, stats[1].round_trip?));
    wait_until(&client, |stats| {
        round_trips(stats).is_some_and(|(far, near)| near < far)
    })
    .await;
    client
}

fn attempts(client: &TrackerClient) -> Vec<u64> {
    client.stats().iter().map(|tracker| tracker.attempts).collect()
}

#[tokio::test]
async fn reads_go_to_the_nearest_tracker_and_writes_to_all() {
    let trackers = [Running::start().await, Running::start().await];
    let near = format!("localhost:{}", trackers[1].addr.port()).parse().unwrap();
    let client = far_and_near(trackers[0].addr, near, patient()).await;
    let before = client.stats();
    client.add_nodes(&PROXY, &[node("node-1")]).await.unwrap();
    for _ in 0..10 {
        assert_eq!(client.get_proxies(&node("node-1")).await.unwrap().len(), 1);
    }
    let after = client.stats();
    assert_eq!(after[0].attempts, before[0].attempts + 1);
    assert_eq!(after[1].attempts, before[1].attempts + 11);
    for tracker in &trackers {
        assert_eq!(tracker.proxies(&node("node-1")), ["proxy-1"]);
    }
}

#[tokio::test]
async fn a_tracker_that_a_proxy_cannot_reach_does_not_hide_the_routes_of_the_proxy() {
    let [far, near] = [Running::start().await, Running::start().await];
    let nodes = ["far", "near", "both", "neither"].map(node);
    for (tracker, nodes) in [(&far, [&nodes[0], &nodes[2]]), (&near, [&nodes[1], &nodes[2]])] {
        let nodes = nodes.map(Clone::clone);
        tracker.table.report_nodes(&nodes, &PROXY).unwrap();
    }
    let client = far_and_near(far.addr, near.at(), patient()).await;
    for (node, (routes, calls)) in nodes.iter().zip([(1, [1, 1]), (1, [0, 1]), (1, [0, 1]), (0, [1, 1])]) {
        let before = attempts(&client);
        assert_eq!(client.get_proxies(node).await.unwrap().len(), routes, "{node}");
        let after = attempts(&client);
        assert_eq!([after[0] - before[0], after[1] - before[1]], calls, "{node}");
    }
    let routes = client.get_proxies_batch(&nodes).await.unwrap();
    assert_eq!(routes.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 1, 0]);
    // Only nodes without a route are asked for again.
    let before = attempts(&client);
    client.get_proxies_batch(&nodes[1..3]).await.unwrap();
    assert_eq!(attempts(&client), [before[0], before[1] + 1]);

    // Trackers that share their routes have the same answer.
    let client_config = ClientConfig {
        write_to: WriteTo::One,
        ..patient()
    };
    let client = far_and_near(far.addr, near.at(), client_config).await;
    assert_eq!(client.get_proxies(&nodes[0]).await, Ok(vec![]));
    assert_eq!(client.get_proxies_batch(&nodes[..1]).await, Ok(vec![vec![]]));
    assert_eq!(attempts(&client), [0, 2]);

    // A second tracker that fails takes no answer away.
    let client = far_and_near(failing().await, near.at(), patient()).await;
    assert_eq!(client.get_proxies(&nodes[0]).await, Ok(vec![]));
    assert_eq!(client.get_proxies_batch(&nodes[..1]).await, Ok(vec![vec![]]));
    assert_eq!(attempts(&client), [2, 2]);
}

/// Receives calls, and answers none. Returns the paths of the calls.
async fn mute() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let paths = Arc::new(Mutex::new(Vec::new()));
    let received = Arc::clone(&paths);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let received = Arc::clone(&received);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                // A call that is dropped has an answer.
                let mut calls = Vec::new();
                while let Some(Ok((request, call))) = connection.accept().await {
                    received.lock().unwrap().push(request.uri().path().to_owned());
                    calls.push(call);
                }
            });
        }
    });
    (addr, paths)
}

#[tokio::test]
async fn a_call_that_may_have_been_done_is_repeated_only_if_a_repeated_call_changes_nothing() {
    let (mute, paths) = mute().await;
    let mut client_config = patient();
    client_config.attempt_timeout = Duration::from_millis(100);
    client_config.backoff.max = Duration::from_millis(1);
    let node = node("node-1");
    for (method, is_repeated) in [
        ("ReportUnreachable", false),
        ("RemoveProxy", false),
        ("GetProxies", true),
    ] {
        let client = client([at(mute)], client_config.clone());
        let result = match method {
            "ReportUnreachable" => client.report_unreachable(&node, PROXY.id).await,
            "RemoveProxy" => client.remove_proxy(PROXY.id).await,
            _ => client.get_proxies(&node).await.map(drop),
        };
        assert!(matches!(result, Err(TrackerError::Unavailable(_))), "{result:?}");
        let paths = paths.lock().unwrap();
        let calls = paths.iter().filter(|path| path.ends_with(method)).count();
        assert_eq!(calls > 1, is_repeated, "{calls} calls of {method}");
    }

    // Without a connection, nothing was done.
    let dead = ClosedPort::new();
    let client = client([dead.at()], client_config);
    client.report_unreachable(&node, PROXY.id).await.unwrap_err();
    assert!(attempts(&client)[0] > 1);
}

#[tokio::test]
async fn a_call_that_one_tracker_failed_to_do_goes_to_another_only_if_it_is_repeatable() {
    let tracker = Running::start().await;
    let client_config = ClientConfig {
        write_to: WriteTo::One,
        ..patient()
    };
    let client = far_and_near(tracker.addr, at(failing().await), client_config).await;
    client.add_nodes(&PROXY, &[node("node-1")]).await.unwrap();
    assert_eq!(attempts(&client), [1, 1]);
    let error = client.remove_proxy(PROXY.id).await.unwrap_err();
    assert!(matches!(error, TrackerError::Internal(_)), "{error:?}");
    assert_eq!(attempts(&client), [1, 2]);
    assert_eq!(tracker.proxies(&node("node-1")), [PROXY.id]);
}

/// Answers each call with `INTERNAL`, as a proxy in front of a tracker may do.
async fn failing() -> SocketAddr {
    const HEADERS: u8 = 1;
    const SETTINGS: u8 = 4;
    const END_HEADERS_AND_STREAM: u8 = 5;
    const ACK: u8 = 1;
    fn frame(kind: u8, flags: u8, stream: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&len[1..], &[kind, flags], &stream, payload].concat()
    }
    async fn serve(mut connection: TcpStream) -> io::Result<()> {
        let mut preface = [0; 24];
        connection.read_exact(&mut preface).await?;
        connection.write_all(&frame(SETTINGS, 0, [0; 4], &[])).await?;
        loop {
            let mut header = [0; 9];
            connection.read_exact(&mut header).await?;
            let [l1, l2, l3, kind, flags, stream @ ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, l1, l2, l3]) as usize];
            connection.read_exact(&mut payload).await?;
            let answer = match kind {
                // `:status: 200` and two literal fields.
                HEADERS => {
                    let fields = b"\x88\x00\x0ccontent-type\x10application/grpc\x00\x0bgrpc-status\x0213";
                    frame(HEADERS, END_HEADERS_AND_STREAM, stream, fields)
                }
                SETTINGS if flags & ACK == 0 => frame(SETTINGS, ACK, [0; 4], &[]),
                _ => continue,
            };
            connection.write_all(&answer).await?;
        }
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(connection));
        }
    });
    addr
}

#[tokio::test]
async fn a_read_that_the_nearest_tracker_cannot_do_goes_to_another() {
    let tracker = Running::start().await;
    let client = far_and_near(tracker.addr, at(failing().await), patient()).await;
    let before = client.stats();
    assert_eq!(client.get_proxies(&node("node-1")).await, Ok(vec![]));
    let after = client.stats();
    for tracker in 0..2 {
        assert_eq!(after[tracker].attempts, before[tracker].attempts + 1);
    }
    // A write goes to all trackers, and one of them has refused it.
    let error = client.add_nodes(&PROXY, &[node("node-1")]).await.unwrap_err();
    assert!(matches!(error, TrackerError::Internal(_)), "{error:?}");
}

#[tokio::test]
async fn a_write_asks_an_unhealthy_tracker_if_the_healthy_one_dies_meanwhile() {
    let (first, second) = (Running::start().await, Running::start().await);
    let (addr, at) = (first.addr.to_string(), first.at());
    first.stop().await;
    let hour = Duration::from_secs(3600);
    let deadline = Duration::from_secs(20);
    let mut client_config = ClientConfig { deadline, ..patient() };
    client_config.health.unhealthy_after = 1;
    // No probe notices the return of the first tracker, or the end of the second.
    client_config.health.interval = hour;
    (client_config.health.backoff.base, client_config.health.backoff.max) = (hour, hour);
    let client = client([at, second.at()], client_config);
    wait_until(&client, |stats| {
        is_healthy(stats) == [false, true] && stats[1].round_trip.is_some()
    })
    .await;
    let first = Running::start_on(&addr).await;
    second.stop().await;
    client.add_nodes(&PROXY, &[node("node-1")]).await.unwrap();
    assert_eq!(first.proxies(&node("node-1")), ["proxy-1"]);
}

#[tokio::test]
async fn times_without_a_bound_are_no_error() {
    let tracker = Running::start().await;
    let mut client_config = patient();
    (client_config.deadline, client_config.attempt_timeout) = (Duration::MAX, Duration::MAX);
    (client_config.health.interval, client_config.health.timeout) = (Duration::MAX, Duration::MAX);
    client_config.connect.connect_timeout = Duration::MAX;
    client_config.connect.keep_alive_interval = Duration::MAX;
    client_config.connect.keep_alive_timeout = Duration::MAX;
    let client = client([tracker.at()], client_config);
    assert_serves(&client, "node-1").await;
}

#[tokio::test]
async fn a_call_ends_at_its_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let deadline = Duration::from_millis(50);
    let client_config = ClientConfig { deadline, ..patient() };
    let client = client([at(silent.local_addr().unwrap())], client_config);
    let late = TrackerError::DeadlineExceeded(deadline);
    assert_eq!(client.get_proxies(&node("node-1")).await, Err(late.clone()));
    assert_eq!(client.add_nodes(&PROXY, &[node("node-1")]).await, Err(late));
    assert_eq!(client.stats()[0].failed_attempts, 2);
}

#[tokio::test]
async fn a_client_needs_a_tracker_and_tls_for_https() {
    let new = |addrs: &[&str]| {
        let addrs: Vec<_> = addrs.iter().map(|addr| addr.parse().unwrap()).collect();
        TrackerClient::start(addrs, ClientConfig::default())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(new(&[]), "no tracker is given");
    assert_eq!(
        new(&["a:1", "https://b:1"]),
        "https://b:1 needs TLS: set ConnectConfig::tls"
    );
}
