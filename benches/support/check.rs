//! Checks that all contestants give the same answers. Otherwise, their times mean nothing.

use std::time::Duration;

use nodetracker::{Added, ManualClock};

use crate::peers::nodetracker::Nodetracker;
use crate::peers::{Peer, Setting, for_each_peer};
use crate::support::steps::nodes;

#[derive(Debug, PartialEq, Eq)]
enum Said {
    Routes(Vec<(u32, u64)>),
    Added(Option<Added>),
    Removed(bool),
    Swept(usize),
    Nothing,
}

const PROXIES: u32 = 24;

/// The results of a contestant for one random sequence of operations, time included. Each contestant gets the same
/// sequence.
fn said<P: Peer>() -> Vec<Said> {
    let clock = ManualClock::new();
    let setting = Setting {
        proxies: PROXIES,
        keep_alive: Duration::from_secs(2),
        clock: Some(clock.clone()),
    };
    let table = P::new(&setting);
    let nodes = nodes(300, PROXIES, 5);
    let mut random = fastrand::Rng::with_seed(6);
    let mut said = Vec::new();
    for round in 0..40_000 {
        // No two operations come in one millisecond: peers break ties in different ways.
        clock.advance(Duration::from_millis(random.u64(1..4)));
        let node = nodes[random.usize(..nodes.len())].node;
        said.push(match random.u32(..1_000) {
            0..450 => Said::Routes(table.plain(&table.look_up(node))),
            450..900 => Said::Added(table.add(node, random.u32(..PROXIES))),
            900..990 => Said::Removed(table.remove_node(node)),
            990..998 => Said::Swept(table.sweep(|| {})),
            998 => {
                clock.advance(Duration::from_millis(1_500));
                Said::Nothing
            }
            // Rarely, so that most proxies live to the end.
            _ if round % 4 == 0 => {
                table.remove_proxy(random.u32(..PROXIES));
                Said::Nothing
            }
            _ => Said::Nothing,
        });
    }
    said
}

/// Panics if a result of a contestant differs from that of the table.
pub(crate) fn all_agree() {
    let expected = said::<Nodetracker>();
    for_each_peer!(single-threaded P => {
        for (at, (said, expected)) in said::<P>().iter().zip(&expected).enumerate() {
            assert_eq!(said, expected, "operation {at}: {} beside the table", P::NAME);
        }
    });
}
