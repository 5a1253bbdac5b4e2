//! Tests of the server over real connections, and of the `nodetracker` command as users run it.

mod address_space;
mod authorization;
mod authorization_matrix;
mod bad_input;
mod bench;
mod command;
mod config_errors;
mod deadlines;
mod deployment;
mod diag;
mod generate;
mod health_reflection;
mod http2_abuse;
mod key_files;
mod log;
mod operate;
mod ops;
mod pki;
mod quota;
mod refusals;
#[path = "../../examples/client/replica.rs"]
mod replica;
mod request_framing;
mod rfd47;
mod session;
mod slow_clients;
mod stop;
mod stopped;
mod support;
mod systemd;
mod tls;
mod top;
mod v1;
mod validate;
mod warm_restart;
mod watch;
