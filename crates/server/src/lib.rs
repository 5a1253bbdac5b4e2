//! The gRPC server of nodetracker: parses requests, calls the table, and encodes the replies.
//!
//! One [acceptor](Server::run) hands each connection to the least loaded of the workers. Each core has one worker, and
//! each worker has one thread, so a call never changes threads. A worker drives `h2` for its connections. Unary calls
//! with small replies take a fast path from the frame to the table. Other calls become tasks; tonic reads the messages
//! of streams, and requests of several frames.
//!
//! Imports point in one direction:
//!
//! ```text
//! cli ──▶ server ──▶ http2 ──▶ grpc ◀── rpc ──▶ convert
//! ```
//!
//! * `cli`: the command line.
//! * `server`: the port, the threads, the background tasks, and the diagnostics port with the metrics. Fills the router
//!   with the methods of `rpc`.
//! * `http2`: one connection and its calls.
//! * `grpc`: from a request to a handler and back; knows no service.
//! * `rpc`: the services and the method table.
//! * `convert`: messages to table types and back. Uses the framing of `grpc` for one message that it encodes by hand.
//!
//! Every module may use `auth`, `client_key`, `config`, `connection_counters`, `fair_queue`, `host`, `idle`, `limits`,
//! `log`, `memory`, `named`, `quota`, `refusal`, `snapshot_status`, `tls` and `turns`. `memory` and `turns` share the
//! server's memory and time between connections, and `quota` shares the limits between addresses. Every limit that
//! keeps a hostile client from hurting other clients is in [`limits`]. `refusal` counts how often each limit was
//! reached.

#![deny(unsafe_code)]

mod auth;
mod cli;
mod client_key;
mod config;
mod connection_counters;
mod convert;
mod fair_queue;
mod grpc;
mod host;
mod http2;
mod idle;
pub mod limits;
mod log;
mod memory;
mod named;
mod quota;
mod refusal;
mod rpc;
mod server;
mod snapshot_status;
mod tls;
mod turns;

pub use cli::Cli;
pub use config::{
    ClientAuth, ClientIdentity, Config, ConfigError, DEFAULT_KEEP_ALIVE, DEFAULT_LISTEN_ADDR, Keypair, MAX_KEEP_ALIVE,
    Origin, Setting,
};
pub use limits::Limits;
pub use log::{LogFormat, LogLevel};
pub use server::{Drained, Server, StartError};
pub use tls::Certificates;
