//! The tests of the client's parts, in one program.

mod faults;
mod fleet;
mod node_tracker;
mod pool_simulation;
mod proxy;
mod session;
mod support;
mod tls;
mod tunnels;
