//! `nodetracker.v1`: parse at the edge, call the table, answer.
//!
//! One service for each role. What they mean is told where they are declared, in `crates/proto/proto/nodetracker/v1`; the
//! watch has a [module](crate::watch) of its own.

mod admin;
pub(crate) mod answer;
pub(crate) mod parse;
mod routes;
mod token;

pub(crate) use admin::Admin;
pub(crate) use routes::Routes;
