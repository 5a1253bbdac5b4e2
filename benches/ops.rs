//! Look-up and refresh with one thread, in the table and in its peers (criterion).
//!
//! ```console
//! $ cargo bench --bench ops                              # 1,000,000 nodes
//! $ NODES=100k,1M,10M cargo bench --bench ops
//! $ cargo bench --bench ops -- 'look_up/.*/(nodetracker|dashmap)$'
//! $ perf record cargo bench --bench ops -- --profile-time 10 'refresh/uniform-1M/nodetracker$'
//! ```
//!
//! Here, contestants run one after the other. On a machine with other load, use `comparison`, in which contestants take
//! turns.

#![allow(dead_code, reason = "a bench uses a part of what they share")]

mod peers;
mod support;

use std::cell::LazyCell;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use mimalloc::MiMalloc;

use crate::peers::{Peer, for_each_peer};
use crate::support::check::all_agree;
use crate::support::contestant::{Work, filled, pass};
use crate::support::steps::{self, Step, size_name};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The time of `iterations` steps. After the last step of the order comes the first.
fn run<P: Peer>(table: &P, work: Work, steps: &[Step], iterations: u64) -> Duration {
    let iterations = iterations as usize;
    let rounds: Duration = (0..iterations / steps.len()).map(|_| pass(table, work, steps)).sum();
    rounds + pass(table, work, &steps[..iterations % steps.len()])
}

fn one_thread(criterion: &mut Criterion) {
    all_agree();
    for size in steps::sizes(&[1_000_000]) {
        let nodes = steps::nodes(size, 1_000, 1);
        let orders = [("uniform", steps::uniform(&nodes)), ("zipf", steps::zipf(&nodes))];
        for_each_peer!(single-threaded P => {
            // Not filled if a filter leaves nothing to measure.
            let table = LazyCell::new(|| filled::<P>(&nodes));
            let works = [
                ("look_up", Work::LookUp),
                ("look_up_batch", Work::LookUpBatch),
                ("refresh", Work::Refresh),
            ];
            for (work_name, work) in works {
                for (order_name, order) in &orders {
                    let mut group = criterion.benchmark_group(format!("{work_name}/{order_name}-{}", size_name(size)));
                    group
                        .sample_size(20)
                        .warm_up_time(Duration::from_millis(300))
                        .measurement_time(Duration::from_millis(1_500))
                        .throughput(Throughput::Elements(1));
                    group.bench_function(BenchmarkId::from_parameter(P::NAME), |bencher| {
                        // Here, so that the time to fill the table does not count as an iteration.
                        let table = &*table;
                        bencher.iter_custom(|iterations| run(table, work, order, iterations));
                    });
                    group.finish();
                }
            }
        });
    }
}

criterion_group!(benches, one_thread);
criterion_main!(benches);
