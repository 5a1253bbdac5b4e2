//! Tests of the client over real connections.

mod faults;
mod node_tracker;
mod support;
mod tls;
