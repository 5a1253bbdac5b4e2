//! The gRPC front end of nodetracker: it parses, checks, calls the table, and answers.

mod config;

pub use config::{
    Config, ConfigError, DEFAULT_KEEP_ALIVE, DEFAULT_LISTEN_ADDR, Keypair, MAX_KEEP_ALIVE, Origin, Setting,
};
