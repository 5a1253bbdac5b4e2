//! Nodes that come and go, while their number stays.

use nodetracker::Added;

use crate::heap::peak;
use crate::input::{Fleet, KEEP_ALIVE, node};
use crate::programs::Findings;

const NODES: u64 = 1_000_000;
const ROUNDS: u64 = 10;
/// How many nodes are replaced in a round.
const REPLACED: u64 = NODES / 10;

/// Ten rounds that replace the oldest tenth each. In one round the nodes are removed, in the next they expire.
fn rounds(findings: &mut Findings, key: &str, mut replace: impl FnMut(&Fleet, u64, bool)) {
    let fleet = Fleet::with_nodes(NODES);
    fleet.sweep_round();
    fleet.clock.advance(KEEP_ALIVE / 2);
    let before = peak();
    for round in 0..ROUNDS {
        let oldest = round * REPLACED;
        let is_removal = round % 2 == 0;
        if !is_removal {
            // All but the oldest tenth are refreshed in time, so that only those expire.
            fleet.clock.advance(KEEP_ALIVE / 4);
            (oldest + REPLACED..oldest + NODES).for_each(|n| assert_eq!(fleet.add(n), Added::Refreshed));
            fleet.clock.advance(KEEP_ALIVE / 2);
        }
        replace(&fleet, oldest, is_removal);
    }
    assert_eq!(fleet.table.stats().nodes as u64, NODES);
    findings.found(key, peak() as f64 / before as f64);
}

fn replace_some(fleet: &Fleet, from: u64, count: u64, is_removal: bool, sweep: impl FnOnce()) {
    if is_removal {
        (from..from + count).for_each(|n| assert!(fleet.table.remove_node(&node(n))));
    }
    sweep();
    (from + NODES..from + NODES + count).for_each(|n| _ = fleet.add(n));
}

/// A tenth goes, the sweeper takes a round, and as many come.
pub(crate) fn churn(findings: &mut Findings) {
    rounds(findings, "churn", |fleet, oldest, is_removal| {
        replace_some(fleet, oldest, REPLACED, is_removal, || fleet.sweep_round());
    });
}

/// Nodes come all the time that others go, and the sweeper takes its round meanwhile.
pub(crate) fn churn_under_way(findings: &mut Findings) {
    const TURN: u64 = REPLACED / 100;
    rounds(findings, "churn-under-way", |fleet, oldest, is_removal| {
        for from in (oldest..oldest + REPLACED).step_by(TURN as usize) {
            replace_some(fleet, from, TURN, is_removal, || {
                fleet.table.sweep((NODES / 100) as usize);
            });
        }
        // The end of the round, which is behind the records that the table has more than nodes.
        fleet.sweep_round();
    });
}
