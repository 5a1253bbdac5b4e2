//! The sweeper: removes expired routes in the background, in small steps.
//!
//! Look-ups never return an expired route, swept or not; sweeping gives its memory back.

use std::convert::Infallible;

use nodetracker::{RouteTable, SweepPace};
use tokio::time::sleep;
use tracing::debug;

/// Sweeps until the task is dropped.
pub(crate) async fn sweep(table: &RouteTable) -> Infallible {
    let mut pace = SweepPace::default();
    let mut expired = 0;
    loop {
        sleep(pace.next_pause(table)).await;
        let report = pace.sweep(table);
        expired += report.removed;
        if report.round_completed && expired > 0 {
            debug!(expired, "removed expired routes");
            expired = 0;
        }
    }
}
