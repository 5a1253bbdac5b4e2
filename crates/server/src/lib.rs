//! The gRPC front end of nodetracker: it parses, checks, calls the table, and answers.
//!
//! One [acceptor](crate::Server::run) hands each connection to the least loaded of as many single-threaded workers as
//! there are cores. A worker drives the `h2` crate's HTTP/2 for each of its connections, with tonic's generated services as
//! plain services behind a small router, and a short way for unary calls: no call ever changes threads. Every limit that
//! keeps a hostile client from hurting the others is set in [`limits`].

#![forbid(unsafe_code)]

mod cli;
mod config;
mod convert;
mod grpc;
mod http2;
pub mod limits;
mod log;
mod rpc;
mod server;
mod tls;

pub use cli::Cli;
pub use config::{
    Config, ConfigError, DEFAULT_KEEP_ALIVE, DEFAULT_LISTEN_ADDR, Keypair, MAX_KEEP_ALIVE, Origin, Setting,
};
pub use limits::Limits;
pub use log::LogFormat;
pub use server::{Drained, Server, StartError};
