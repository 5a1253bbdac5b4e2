//! The tests of the public API that may share a process. The others have an allocator, a signal, or figures of the
//! whole process of their own.

#[path = "../common/mod.rs"]
mod common;

mod api;
mod brake;
mod feed;
mod incarnations;
mod limits;
mod linearizability;
mod model;
mod page;
mod restore;
mod results;
#[cfg(feature = "serde")]
mod serialize;
mod snapshot;
mod stops;
mod stress;
mod walk;
