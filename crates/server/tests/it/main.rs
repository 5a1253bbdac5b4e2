//! Tests of the server over real connections, and of the `nodetracker` command as users run it.

mod bad_input;
mod command;
mod config_errors;
mod deadlines;
mod deployment;
mod generate;
mod health_reflection;
mod http2_abuse;
mod log;
mod operate;
mod quota;
mod refusals;
#[path = "../../examples/client/replica.rs"]
mod replica;
mod request_framing;
mod rfd47;
mod session;
mod slow_clients;
mod stop;
mod support;
mod systemd;
mod tls;
mod v1;
mod validate;
mod watch;
