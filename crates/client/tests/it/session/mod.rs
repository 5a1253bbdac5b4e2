//! Sessions of proxies: the machine in a simulated world, and the whole session with a tracker.

mod faults;
mod machine;
#[path = "../../../src/fleet/model.rs"]
mod model;
mod recovery;
mod relay;
mod single_faults;
mod tracker;
mod two_sessions;
mod two_trackers;
#[path = "../../../src/fleet/world.rs"]
mod world;
