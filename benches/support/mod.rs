//! Modules that the benches share, beside the peers.

pub(crate) mod args;
pub(crate) mod check;
pub(crate) mod contestant;
pub(crate) mod counting;
pub(crate) mod histogram;
pub(crate) mod machine;
pub(crate) mod own_time;
pub(crate) mod report;
pub(crate) mod results;
pub(crate) mod steps;
pub(crate) mod turn;
