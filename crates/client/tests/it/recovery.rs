//! How long the recovery from each fault takes, in simulated time. `README.md` has the command that prints the table.

use crate::pool_simulation;
use crate::seeds::measure;
use crate::session::{single_faults, two_sessions, two_trackers};

#[test]
fn recovery_of_sessions_is_bounded() {
    let faults = [single_faults::FAULTS, two_trackers::FAULTS, two_sessions::FAULTS];
    faults.into_iter().for_each(|faults| measure(faults, 100));
}

#[test]
fn recovery_of_pools_is_bounded() {
    measure(pool_simulation::FAULTS, 100);
}
