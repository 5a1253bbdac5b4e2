//! The tests of the public API that may share a process.

#[path = "../common/mod.rs"]
mod common;

mod api;
mod brake;
mod clients;
mod feed;
mod incarnations;
mod limits;
mod linearizability;
mod model;
mod page;
mod restore;
mod results;
mod reuse;
#[cfg(feature = "serde")]
mod serialize;
mod snapshot;
mod stops;
mod stress;
mod takeovers;
mod walk;
