//! The client against real trackers.

mod cache;
mod in_process;
mod replica;
