//! The sources of the metrics, and the figures that a scrape has read.

use std::sync::Arc;
use std::time::Duration;

use nodetracker::{MemoryUse, Stats};
use tracing::debug;

use crate::connection_counters::{ConnectionCounters, Counter};
use crate::grpc::call_counters::CallCounts;
use crate::grpc::method::MethodTable;
use crate::grpc::worker_counters::WorkerCounters;
use crate::rpc::statistics::Statistics;
use crate::server::diag::Readiness;
use crate::server::metrics::process::{ProcessFigures, ProcessReader};
use crate::server::sweeper::SweepCounters;
use crate::tls::Certificates;

/// What the metrics read.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) statistics: Arc<Statistics>,
    pub(crate) methods: Arc<MethodTable>,
    /// The counters of each worker.
    pub(crate) counters: Vec<WorkerCounters>,
    pub(crate) sweeps: Arc<SweepCounters>,
    pub(crate) readiness: Arc<Readiness>,
    /// The most connections at one time.
    pub(crate) max_connections: u32,
    /// `None` if the server uses plaintext.
    pub(crate) certificates: Option<Certificates>,
    /// The time between two snapshots.
    pub(crate) snapshot_interval: Duration,
}

/// The figures of one scrape that several metrics need, or that are expensive to read.
#[derive(Debug)]
pub(super) struct Reading<'s> {
    pub(super) sources: &'s Sources,
    pub(super) table: Stats,
    pub(super) memory: MemoryUse,
    /// The calls of each method, by its number, and then the calls of no method. The sum over all workers.
    pub(super) calls: Vec<CallCounts>,
    /// `None` if `/proc` cannot be read.
    pub(super) process: Option<ProcessFigures>,
}

impl<'s> Reading<'s> {
    pub(super) fn new(sources: &'s Sources, process: &ProcessReader) -> Self {
        let table = &sources.statistics.table;
        let of_method = |method| {
            let mut sum = CallCounts::default();
            sources
                .counters
                .iter()
                .for_each(|worker| worker.calls.add_to(method, &mut sum));
            sum
        };
        let process = process.read();
        let process = process.inspect_err(|error| debug!(%error, "cannot read the figures of the process"));
        Self {
            sources,
            table: table.stats(),
            memory: table.memory_use(),
            calls: (0..=sources.methods.rows().len()).map(of_method).collect(),
            process: process.ok(),
        }
    }

    /// Returns the sum of a counter over all workers.
    pub(super) fn connections(&self, counter: impl Fn(&ConnectionCounters) -> &Counter) -> u64 {
        let workers = self.sources.counters.iter();
        workers.map(|worker| counter(&worker.connections).get()).sum()
    }
}
