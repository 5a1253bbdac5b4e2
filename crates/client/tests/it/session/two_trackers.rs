//! A proxy reports to two trackers. The network cuts one tracker off for some time. Each tracker has a machine and a
//! set of nodes.

use std::collections::BTreeSet;
use std::time::Duration;

use nodetracker_client::session::SessionTimes;
use nodetracker_client::{NodeId, Uuid};

use crate::seeds::{Fault, Recovery, recoveries};
use crate::session::model::{LIMITS, ModelTracker};
use crate::session::world::World;

const KEEP_ALIVE: Duration = Duration::from_secs(90);
const STEP: Duration = Duration::from_secs(5);
const PRECISION: Duration = Duration::from_millis(20);
const OUTAGE: u32 = 60;
/// The answer to a hello may be lost, and the wait before the next attempt follows.
const RECOVERY: Duration = Duration::from_secs(55);

/// Some nodes come, some go, and all others give a sign of life.
fn change(world: &mut World, up: &mut BTreeSet<NodeId>) {
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
}

fn step(world: &mut World, up: &mut BTreeSet<NodeId>) {
    change(world, up);
    world.run_until(world.now + STEP);
}

fn routes(world: &World, tracker: usize) -> BTreeSet<NodeId> {
    world.trackers[tracker].nodes("proxy", world.now).into_iter().collect()
}

/// Returns how long the tracker that was cut off takes to catch up. The other tracker misses nothing.
fn partition(seed: u64) -> Recovery {
    let is_greeted = seed.is_multiple_of(2);
    let trackers = [1, 2].map(|generation| ModelTracker::new(KEEP_ALIVE, LIMITS, generation));
    let mut world = World::new(seed, trackers.into());
    for tracker in 0..2 {
        world.add_machine("proxy", 1, SessionTimes::default(), tracker..tracker + 1);
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
    let mut recovered = None;
    while recovered.is_none() {
        change(&mut world, &mut up);
        let end = world.now + STEP;
        while world.now < end {
            world.run_until(world.now + PRECISION);
            if recovered.is_none() && routes(&world, 1) == up {
                recovered = Some(world.now - healed);
            }
        }
        assert_eq!(routes(&world, 0), up, "seed {seed}");
        assert!(world.now - healed < 2 * RECOVERY, "seed {seed}: no recovery");
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
    world.recovery(recovered.unwrap_or_default())
}

recoveries! {
    100;
    one_of_two_trackers_is_cut_off: Fault {
        name: "one of two trackers is cut off for five minutes",
        bound: RECOVERY,
        cost: 1,
        recovery: partition,
    },
}
