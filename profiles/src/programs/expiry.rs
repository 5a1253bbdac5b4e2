//! A table that was large once.

use crate::heap::live;
use crate::input::{Fleet, KEEP_ALIVE};
use crate::programs::Findings;

const NODES: u64 = 1_000_000;
const SURVIVORS: u64 = NODES / 10;

/// Nine in ten nodes expire, and the sweeper goes twice through the table. The rest is compared with a table that
/// never had more than the survivors.
pub(crate) fn mass_expiry(findings: &mut Findings) {
    let before = live();
    let small = Fleet::with_nodes(SURVIVORS);
    small.sweep_round();
    small.sweep_round();
    let fresh = live() - before;
    drop(small);

    let before = live();
    let fleet = Fleet::with_nodes(NODES);
    fleet.clock.advance(KEEP_ALIVE / 2);
    for n in 0..SURVIVORS {
        fleet.add(n);
    }
    fleet.clock.advance(KEEP_ALIVE / 4 * 3);
    fleet.sweep_round();
    fleet.sweep_round();
    assert_eq!(fleet.table.stats().nodes as u64, SURVIVORS);
    findings.found("mass-expiry", (live() - before) as f64 / fresh as f64);
}
