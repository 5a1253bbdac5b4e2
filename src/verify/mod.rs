//! Proofs that need the internals of several modules.

#[cfg(not(loom))]
pub(crate) mod failpoints;
#[cfg(loom)]
pub(crate) mod models;
