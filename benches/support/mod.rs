//! What the benches share beside the peers.

pub(crate) mod check;
pub(crate) mod contestant;
pub(crate) mod histogram;
pub(crate) mod own_time;
pub(crate) mod report;
pub(crate) mod steps;
