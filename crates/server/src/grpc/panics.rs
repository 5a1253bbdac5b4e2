//! Panics: a bug that panics in one call costs that call, not its connection.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tonic::Status;
use tracing::error;

use crate::log::peer;

/// Runs a part of a call. `method` is the path of the call's method.
///
/// # Errors
///
/// INTERNAL if it panicked.
pub(crate) fn catch<T>(method: &str, part: impl FnOnce() -> T) -> Result<T, Status> {
    // Calls share only the table and services, which a panic leaves usable: their locks ignore poison.
    catch_unwind(AssertUnwindSafe(part)).map_err(|_| {
        error!(method, peer = peer::field(), "a call panicked");
        Status::internal("the tracker has a bug: the call panicked")
    })
}
