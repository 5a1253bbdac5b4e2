//! The running server: its port, its acceptor, its worker threads, and the way it stops.

mod accept;
mod run;
mod sweeper;
mod worker;

pub use run::{Drained, Server, StartError};
