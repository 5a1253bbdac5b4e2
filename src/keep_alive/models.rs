//! A loom model of a keep-alive interval that becomes longer, on a whole table; see `src/shard/models.rs`.

use std::time::Duration;

use loom::sync::Arc;
use loom::thread;
use uuid::Uuid;

use crate::sync::epoch;
use crate::verify::models::{Seen, proxy};
use crate::{ManualClock, NodeId, RouteTable};

/// An addition that removes an expired route runs beside a longer interval, under which the route is valid.
#[test]
fn a_route_that_a_longer_interval_brought_back_stays() {
    let returned = Seen::default();
    let noted = returned.clone();
    epoch::check(3, move || {
        // Also orders an addition that has ended before the interval is set before the look-ups.
        epoch::order_unpins();
        let clock = ManualClock::new();
        let interval = Duration::from_secs(10);
        let builder = RouteTable::builder().clock(clock.clone()).keep_alive(interval);
        let table = Arc::new(builder.build().expect("possible limits"));
        let node: NodeId = Uuid::from_u128(1).into();
        let [old, new] = ["old", "new"].map(|id| table.register_proxy(&proxy(id)).expect("there is room"));
        table.add_node(&node, old).expect("there is room");
        clock.advance(2 * interval);
        let adder = thread::spawn({
            let (table, node) = (Arc::clone(&table), node.clone());
            move || _ = table.add_node(&node, new).expect("there is room")
        });
        table.set_keep_alive(4 * interval);
        let has_old = || table.get_proxies(&node).iter().any(|route| route.proxy == old);
        let was_returned = has_old();
        noted.note(was_returned);
        adder.join().expect("it ends");
        assert!(!was_returned || has_old(), "a route that was returned is gone");
    });
    returned.assert("the longer interval never came into force");
}
