//! The proxy's side of tunnels: accepts agents, and knows which nodes have a tunnel to this proxy.
//!
//! | module | contents |
//! | --- | --- |
//! | [`link`] | the protocol with one agent: the state machine, without I/O |
//! | [`nodes`] | which nodes have a tunnel, and the events of nodes |
//! | [`agent_listener`] | [`AgentListener`] |
//! | `task` | the task of one agent |
//!
//! A proxy that stops calls [`AgentListener::drain`], waits for the window, and calls [`AgentListener::close`]. A proxy
//! that is sick drains, and calls [`AgentListener::resume`] when it has recovered; or it only
//! [sheds](AgentListener::shed) some of its agents.
//!
//! # What agents can make a proxy hold
//!
//! * An agent has one connection, two tokio tasks, and a control stream whose messages have at most 4 KiB. The tasks
//!   end with the connection.
//! * If an agent opens another stream, the proxy closes the tunnel. A stream that the proxy has opened buffers up to
//!   256 KiB that the proxy has not read; see [`transport::mux`](crate::transport::mux).
//! * There are at most [`ListenerConfig::max_agents`] agents, those in the handshake among them, and at most
//!   [`MAX_TUNNELS`](nodes::MAX_TUNNELS) tunnels of one node.
//! * A connection holds one frame that it receives, of up to 1 MiB, also before the claim.
//! * TLS, and the time until the claim, may each last for [`ListenerConfig::handshake_timeout`], however slowly bytes
//!   arrive.

pub mod agent_listener;
pub mod link;
pub mod nodes;
mod task;

pub use agent_listener::{AgentListener, ListenerConfig, ListenerConfigError, ListenerStats, OpenError};
pub use nodes::NodeObserver;
#[cfg(test)]
pub(crate) use task::simulated::SimulatedAgent;
