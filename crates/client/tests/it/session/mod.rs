//! Sessions of proxies: the machine in a simulated world, and the whole session with a tracker.

pub(crate) mod faults;
mod machine;
mod model;
mod recovery;
mod relay;
pub(crate) mod single_faults;
mod tracker;
pub(crate) mod two_sessions;
pub(crate) mod two_trackers;
mod world;
