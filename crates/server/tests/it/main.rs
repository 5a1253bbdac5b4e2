//! The server over real connections.

mod bad_input;
mod hostile;
mod scenarios;
mod stop;
mod support;
