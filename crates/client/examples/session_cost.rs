//! What a session costs the proxy: bytes and nanoseconds for each node, without the network and the tracker.
//!
//!     cargo run --release -p nodetracker-client --example session_cost [NODES]

use std::error::Error;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nodetracker_client::session::SessionTimes;
use nodetracker_client::session::machine::{Identity, Input, Machine};
use nodetracker_client::session::nodes::NodeSet;
use nodetracker_client::{NodeId, Proxy, Uuid};
use nodetracker_proto::v1;
use nodetracker_proto::v1::session_request::Request;
use nodetracker_proto::v1::session_response::Response;
use prost::Message;

const INTERVAL: Duration = Duration::from_secs(100);

/// Answers a request as a tracker with room for everything.
fn answer(request: &v1::SessionRequest) -> v1::SessionResponse {
    let response = match &request.request {
        Some(Request::Hello(_)) => Response::Welcome(v1::SessionWelcome {
            generation: 1,
            heartbeat_interval: INTERVAL.try_into().ok(),
            handles_hold: false,
            limits: Some(v1::SessionLimits {
                max_nodes: 512,
                max_handles: 4096,
                max_message_bytes: 256 * 1024,
                idle_timeout: (3 * INTERVAL).try_into().ok(),
            }),
        }),
        Some(Request::NodesUp(up)) => {
            let nodes = up.nodes.iter().map(|nodes| nodes.uuids.len() / 16).sum::<usize>() as u64;
            let handles = (1..=nodes).map(|at| request.sequence << 32 | at);
            Response::Handles(v1::SessionHandles {
                handles: handles.flat_map(u64::to_le_bytes).collect(),
                refusal: 0,
            })
        }
        _ => Response::Ack(v1::SessionAck::default()),
    };
    v1::SessionResponse {
        sequence: request.sequence,
        response: Some(response),
    }
}

/// Runs the machine while it has something to do before `until`. Returns the bytes of its requests.
fn exchange(machine: &mut Machine, now: &mut Instant, until: Instant) -> usize {
    let mut bytes = 0;
    loop {
        machine.handle_timeout(*now);
        while machine.poll_event().is_some() {}
        while let Some(request) = machine.poll_transmit(*now) {
            bytes += request.encode_to_vec().len();
            machine.handle(*now, Input::Message(answer(&request)));
        }
        match machine.next_timeout() {
            Some(at) if at <= until => *now = at,
            _ => return bytes,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(1_000_000), |text| text.parse::<usize>())?;
    let mut random = fastrand::Rng::with_seed(1);
    let ids: Vec<NodeId> = (0..count).map(|_| Uuid::from_u128(random.u128(..)).into()).collect();
    let mut now = Instant::now();
    let nodes = Arc::new(NodeSet::new(count, 1, now));
    let proxy = Proxy {
        id: "proxy-1",
        cluster_name: "main",
        addr: "10.0.0.1:3080",
    };
    let identity = Identity {
        proxy: proxy.into(),
        incarnation: NonZeroU64::MIN,
    };
    let mut times = SessionTimes::default();
    times.announced_per_second = u32::MAX;
    let mut machine = Machine::new(Arc::clone(&nodes), identity, 1, times, 1, now);
    let report = |what: &str, begun: Instant, bytes: usize| {
        let nanoseconds = begun.elapsed().as_nanos() as f64 / count as f64;
        println!(
            "{what}: {nanoseconds:.1} ns and {:.2} bytes a node",
            bytes as f64 / count as f64
        );
    };

    let begun = Instant::now();
    for id in &ids {
        nodes.up(id, now)?;
    }
    report("node_up", begun, 0);

    let begun = Instant::now();
    let until = now + Duration::from_secs(1);
    let bytes = exchange(&mut machine, &mut now, until);
    report("announcement", begun, bytes);
    assert!(machine.is_settled(), "not all nodes are announced");

    let begun = Instant::now();
    for id in &ids {
        nodes.seen(id, now);
    }
    report("node_seen", begun, 0);

    let begun = Instant::now();
    let until = now + INTERVAL;
    let bytes = exchange(&mut machine, &mut now, until);
    report("heartbeat", begun, bytes);
    assert!(
        machine.counters().heartbeat_handles >= count as u64,
        "not all nodes are refreshed"
    );
    Ok(())
}
