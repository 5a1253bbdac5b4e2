//! Panics: a bug that panics in one call costs that call, not its connection.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tonic::Status;
use tracing::error;

/// Runs a part of a call.
///
/// # Errors
///
/// INTERNAL if it panicked.
pub(crate) fn catch<T>(part: impl FnOnce() -> T) -> Result<T, Status> {
    // Calls share only the table and services, which a panic leaves usable: their locks ignore poison.
    catch_unwind(AssertUnwindSafe(part)).map_err(|_| {
        error!("a call panicked");
        Status::internal("the tracker has a bug: the call panicked")
    })
}
