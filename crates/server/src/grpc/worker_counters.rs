//! All counters of one worker.

use std::sync::Arc;

use crate::connection_counters::ConnectionCounters;
use crate::grpc::call_counters::CallCounters;
use crate::grpc::method::MethodTable;

/// The counters of one worker. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct WorkerCounters {
    pub(crate) calls: Arc<CallCounters>,
    pub(crate) connections: Arc<ConnectionCounters>,
}

impl WorkerCounters {
    /// Returns counters for the methods of a table.
    pub(crate) fn new(methods: &MethodTable) -> Self {
        Self {
            calls: CallCounters::new(methods),
            connections: Arc::default(),
        }
    }
}
