//! The tests of the client's parts, in one program.

mod cache;
mod examples;
mod faults;
mod fleet;
mod malformed_status;
mod node_tracker;
mod pki;
mod pool_simulation;
mod proxy;
mod replica;
#[path = "../../src/seeds.rs"]
mod seeds;
mod service;
mod session;
mod support;
mod tls;
mod tunnels;
