//! The server: its port, its acceptor, its worker threads, its background tasks, its diagnostics port, and how it
//! stops.

mod accept;
mod data_dir;
mod diag;
mod drain;
mod listen;
mod metrics;
mod run;
mod snapshots;
mod sweeper;
mod worker;

pub use drain::Drained;
pub(crate) use listen::Listeners;
pub use run::{Server, StartError};
pub(crate) use snapshots::LAST_SNAPSHOT_TIME;
pub(crate) use worker::Liveness;
