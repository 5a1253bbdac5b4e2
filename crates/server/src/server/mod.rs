//! The server: its port, its acceptor, its worker threads, its background tasks, and how it stops.

mod accept;
mod data_dir;
mod drain;
mod listen;
mod run;
pub(crate) mod snapshot_status;
mod snapshots;
mod sweeper;
mod worker;

pub use drain::Drained;
pub use run::{Server, StartError};
