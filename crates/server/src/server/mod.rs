//! The server: its port, its acceptor, its worker threads, its background tasks, and how it stops.

mod accept;
mod drain;
mod listen;
mod run;
mod sweeper;
mod worker;

pub use drain::Drained;
pub(crate) use listen::Listeners;
pub use run::{Server, StartError};
pub(crate) use worker::Liveness;
