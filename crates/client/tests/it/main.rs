//! The tests of the client's parts, in one program.

mod pool_simulation;
mod session;
mod support;
mod tunnels;
