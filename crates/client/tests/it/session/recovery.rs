//! After a restart of the tracker without a snapshot, all nodes of all proxies are back within stated costs.

use std::time::Duration;

use nodetracker_client::session::SessionTimes;
use nodetracker_client::{NodeId, Uuid};
use nodetracker_proto::v1;

use crate::seeds::Seeds;
use crate::session::model::ModelTracker;
use crate::session::world::{Traffic, World};

const PROXIES: usize = 10;
const NODES: usize = 10_000;
const KEEP_ALIVE: Duration = Duration::from_secs(300);
/// The limits of the server.
const LIMITS: v1::SessionLimits = v1::SessionLimits {
    max_nodes: 512,
    max_handles: 4096,
    max_message_bytes: 256 * 1024,
    idle_timeout: None,
};
/// Longer than eight announcements take at their pace.
const ROUND_TRIP: Duration = Duration::from_millis(200);

fn node(proxy: usize, number: usize) -> NodeId {
    Uuid::from_u128((proxy * NODES + number) as u128).into()
}

#[test]
fn a_hundred_thousand_nodes_of_ten_proxies_are_back_within_the_stated_costs() {
    for seed in Seeds::new(5) {
        let mut world = World::new(seed, vec![ModelTracker::new(KEEP_ALIVE, LIMITS, 1)]);
        world.latency = ROUND_TRIP / 2..ROUND_TRIP / 2;
        let times = SessionTimes::default();
        for proxy in 0..PROXIES {
            world.add_proxy(&format!("proxy-{proxy}"), 1, times);
            for number in 0..NODES {
                let now = world.instant();
                world.proxies[proxy]
                    .nodes
                    .up(&node(proxy, number), now)
                    .expect("there is room");
            }
        }
        world.run_until(Duration::from_secs(30));
        assert_back(&world, seed);

        world.restart(0, false);
        world.traffic = Traffic::default();
        assert!(world.trackers[0].nodes("proxy-0", world.now).is_empty());
        let worst = times.reconnect.base + times.announce_jitter + Duration::from_millis(206) + 4 * ROUND_TRIP;
        world.run_until(world.now + worst);
        assert_back(&world, seed);
        let traffic = world.traffic;
        assert_eq!((traffic.requests, traffic.responses), (210, 210), "seed {seed}");
        assert_eq!(traffic.announced, PROXIES * NODES, "seed {seed}");
        assert!(traffic.request_bytes <= 1_700_000, "seed {seed}: {traffic:?}");
        assert!(traffic.response_bytes <= 900_000, "seed {seed}: {traffic:?}");
        assert!(traffic.round_trips <= 4, "seed {seed}: {traffic:?}");
    }
}

fn assert_back(world: &World, seed: u64) {
    for proxy in &world.proxies {
        let back = world.trackers[0].nodes(&proxy.id, world.now).len();
        assert_eq!(back, NODES, "seed {seed}: {}", proxy.id);
        assert!(proxy.machine.is_settled(), "seed {seed}: {}", proxy.id);
    }
}
