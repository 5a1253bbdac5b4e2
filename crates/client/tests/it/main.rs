//! Tests of the public interface.

mod pool_simulation;
mod support;
mod tunnels;
