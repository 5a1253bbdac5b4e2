//! A proxy reports to two trackers. The network cuts one tracker off for some time. Each tracker has a machine and a set
//! of nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use nodetracker_client::session::Timing;
use nodetracker_client::{NodeId, Uuid};

use crate::session::model::{LIMITS, ModelTracker};
use crate::session::seeds::Seeds;
use crate::session::world::World;

const KEEP_ALIVE: Duration = Duration::from_secs(90);
const STEP: Duration = Duration::from_secs(5);
const OUTAGE: u32 = 60;
/// The answer to a hello may be lost, and the wait before the next attempt follows.
const RECOVERY: Duration = Duration::from_secs(55);

/// Some nodes come, some go, and all others give a sign of life.
fn step(world: &mut World, up: &mut BTreeSet<NodeId>) {
    let mut is_woken = vec![false; world.proxies.len()];
    for number in 0..50 {
        let node = NodeId::from(Uuid::from_u128(number));
        if world.random.u8(..20) == 0 && !up.remove(&node) {
            up.insert(node.clone());
        }
        let now = world.instant();
        for (proxy, is_woken) in world.proxies.iter().zip(&mut is_woken) {
            *is_woken |= match up.contains(&node) {
                true => proxy.nodes.up(&node, now).expect("there is room"),
                false => proxy.nodes.down(&node, now),
            };
        }
    }
    for (proxy, is_woken) in is_woken.into_iter().enumerate() {
        if is_woken {
            world.drive(proxy);
        }
    }
    world.run_until(world.now + STEP);
}

fn routes(world: &World, tracker: usize) -> BTreeSet<NodeId> {
    world.trackers[tracker].nodes("proxy", world.now).into_iter().collect()
}

#[test]
fn a_tracker_that_was_cut_off_catches_up_and_the_other_misses_nothing() {
    for (seed, is_greeted) in Seeds::new(50).flat_map(|seed| [(seed, false), (seed, true)]) {
        let trackers = [1, 2].map(|generation| ModelTracker::new(KEEP_ALIVE, LIMITS, generation));
        let mut world = World::new(seed, trackers.into());
        for tracker in 0..2 {
            world.add_machine("proxy", 1, Timing::default(), tracker..tracker + 1);
        }
        let mut up = BTreeSet::new();
        if is_greeted {
            step(&mut world, &mut up);
            assert_eq!(
                (routes(&world, 0), routes(&world, 1)),
                (up.clone(), up.clone()),
                "seed {seed}"
            );
        }
        world.set_reachable(1, false);
        for _ in 0..OUTAGE {
            step(&mut world, &mut up);
            assert_eq!(routes(&world, 0), up, "seed {seed}");
        }
        assert!(routes(&world, 1).is_empty(), "seed {seed}: routes expire");
        let len = world.proxies[1].nodes.len();
        assert!(is_greeted || len == up.len(), "seed {seed}: {len} nodes");

        world.set_reachable(1, true);
        let healed = world.now;
        while world.now < healed + RECOVERY {
            step(&mut world, &mut up);
            assert_eq!(routes(&world, 0), up, "seed {seed}");
        }
        for _ in 0..10 {
            step(&mut world, &mut up);
            assert_eq!(
                (routes(&world, 0), routes(&world, 1)),
                (up.clone(), up.clone()),
                "seed {seed}"
            );
        }
        let is_settled = |proxy: usize| world.proxies[proxy].machine.is_settled();
        assert!(is_settled(0) && is_settled(1), "seed {seed}");
    }
}
