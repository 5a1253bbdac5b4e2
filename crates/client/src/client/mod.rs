//! The client of one or several trackers.
//!
//! | module | contents |
//! | --- | --- |
//! | [`section`] | the `proxy_service` section of a `teleport.yaml` |
//! | [`health`] | whether a tracker should get calls: a state machine |
//!
//! # Several trackers
//!
//! Trackers do not share routes, so a proxy reports its nodes to all of them, and may ask any of them.
//!
//! * A **read** goes to the nearest healthy tracker: the tracker with the shortest round trip of its probes. If that
//!   tracker does not answer, or fails in an unknown way, the read goes to the next tracker at once. If its answer has
//!   no routes, the client asks the next healthy tracker once ([`WriteTo::All`]). So a tracker that some proxies cannot
//!   reach does not hide their routes. A node without routes costs two calls.
//! * A **write** goes to all healthy trackers at the same time ([`WriteTo::All`]). The write succeeds when one of these
//!   trackers has done it, and each other has done it or could not be reached. So a tracker that stops answering delays
//!   each write by [`ClientConfig::attempt_timeout`], until it is unhealthy. If a tracker refuses the write, the call
//!   fails with the tracker's error; other trackers may have done the write. [`TrackerStats::missed_writes`] counts the
//!   writes that a tracker missed.
//!
//! A report of an unreachable node and the removal of a proxy are not repeated if a tracker may have done them.
//!
//! A tracker that missed a write is wrong only for a while. Proxies report their nodes again with each heartbeat, and a
//! route that was not removed expires. A tracker that restarted without a snapshot is healthy at once, so its answers
//! lack routes until the proxies have reported again. With [`WriteTo::One`], for trackers that share their routes, a
//! write goes where a read goes.
//!
//! If no healthy tracker answers, reads try the others. If no tracker is healthy, writes go to all. Otherwise, an
//! unhealthy tracker gets probes and no calls.
//!
//! # Names with several addresses
//!
//! A connection goes to the first address of the host's name that accepts it. An address of the other family is tried
//! 300 ms after the first (RFC 6555). The addresses of a family share the time to connect. The name is resolved again
//! for each connection. So a name stands for *one* tracker, which may move. List the names of several
//! trackers one by one. If one name has an address for each tracker, calls reach only one of the trackers, and writes
//! miss the rest.

mod batch;
mod calls;
mod config;
mod convert;
mod endpoint;
pub mod health;
mod retry;
pub mod section;
mod stats;
mod tracker_client;

pub use config::ClientConfig;
pub use stats::TrackerStats;
pub use tracker_client::{ClientError, TrackerClient};

#[cfg(doc)]
use crate::connect::WriteTo;
