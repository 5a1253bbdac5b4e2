//! The server over real connections, and the `nodetracker` command as its users run it.

mod arrivals;
mod attacks;
mod bad_input;
mod beside;
mod command;
mod config_errors;
mod hostile;
mod scenarios;
mod session;
mod stop;
mod support;
mod tls;
mod v1;
mod watch;
