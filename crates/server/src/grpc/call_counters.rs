//! Counters of calls: by method and status code, and the latencies of unary methods.
//!
//! Each worker has counters of its own, and only the worker's thread writes them. So a count is a load and a store,
//! without a locked instruction, and no two threads write to one cache line. The metrics add up the counters of all
//! workers.
//!
//! The latency of a call begins when the server reads the head of the request, and ends when the reply is handed to h2.
//! So the latency includes the wait for the rest of the request and for a turn. It does not include the time until a
//! slow client has read the reply. Streams have no latency: a stream lasts as long as its client wants.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::connection_counters::Counter;
use crate::grpc::handler::Handler;
use crate::grpc::method::MethodTable;

/// gRPC's status codes, from 0 on.
pub(crate) const CODES: usize = 17;

/// The bound of the first bucket is two to this power, in nanoseconds: 8.2 microseconds.
const FIRST_BOUND_BITS: u32 = 13;

/// Buckets with a bound. Each bound is twice the previous bound; the last bound is 268 milliseconds.
const BOUNDED_BUCKETS: usize = 16;

/// All buckets; the last bucket has no bound.
pub(crate) const BUCKETS: usize = BOUNDED_BUCKETS + 1;

/// Returns the greatest latency of a bucket. `None` for the last bucket.
pub(crate) fn bound(bucket: usize) -> Option<Duration> {
    (bucket < BOUNDED_BUCKETS).then(|| Duration::from_nanos(1 << (FIRST_BOUND_BITS as usize + bucket)))
}

/// Returns the bucket of a latency.
#[inline]
fn bucket(nanos: u64) -> usize {
    let above = nanos.saturating_sub(1) >> FIRST_BOUND_BITS;
    ((u64::BITS - above.leading_zeros()) as usize).min(BOUNDED_BUCKETS)
}

/// The counters of one worker. Only the worker's thread may count. If other threads counted, counts would be lost.
#[derive(Debug)]
pub(crate) struct CallCounters {
    /// One for each row of the method table, and one for the calls of no method.
    methods: Box<[MethodCounters]>,
}

/// Aligned so that the counters of two workers share no cache line, nor a pair of lines that the processor prefetches.
#[derive(Debug, Default)]
#[repr(align(128))]
struct MethodCounters {
    is_unary: bool,
    by_code: [Counter; CODES],
    by_latency: [Counter; BUCKETS],
    /// The sum of the latencies, in nanoseconds.
    latency: Counter,
}

impl MethodCounters {
    #[inline]
    fn count(&self, code: Code, latency: Option<Duration>) {
        self.by_code[code as usize % CODES].add(1);
        if let Some(latency) = latency.filter(|_| self.is_unary) {
            // 64 bits are 584 years.
            let nanos = latency.as_secs().wrapping_mul(1_000_000_000) + u64::from(latency.subsec_nanos());
            self.by_latency[bucket(nanos)].add(1);
            self.latency.add(nanos);
        }
    }
}

impl CallCounters {
    /// Returns counters for the methods of a table.
    pub(crate) fn new(methods: &MethodTable) -> Arc<Self> {
        let rows = methods.rows().iter();
        let of_rows = rows.map(|method| MethodCounters {
            is_unary: !matches!(method.handler, Handler::Streaming(_)),
            ..MethodCounters::default()
        });
        Arc::new(Self {
            methods: of_rows.chain([MethodCounters::default()]).collect(),
        })
    }

    /// Counts a call whose reply was just handed to h2.
    #[inline]
    pub(crate) fn replied(&self, call: CallStart, code: Code) {
        self.methods[call.method].count(code, Some(call.arrived.elapsed()));
    }

    /// Counts a call that the client has cancelled.
    pub(crate) fn cancelled(&self, call: CallStart) {
        self.methods[call.method].count(Code::Cancelled, None);
    }

    /// Adds the counts of a method to a sum.
    pub(crate) fn add_to(&self, method: usize, sum: &mut CallCounts) {
        let from = &self.methods[method];
        let add = |sum: &mut u64, counter: &Counter| *sum = sum.wrapping_add(counter.get());
        sum.by_code
            .iter_mut()
            .zip(&from.by_code)
            .for_each(|(sum, counter)| add(sum, counter));
        sum.by_latency
            .iter_mut()
            .zip(&from.by_latency)
            .for_each(|(sum, counter)| add(sum, counter));
        sum.latency += Duration::from_nanos(from.latency.get());
    }
}

/// The counts of one method.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CallCounts {
    pub(crate) by_code: [u64; CODES],
    /// The number of calls of each bucket; zero for streams.
    pub(crate) by_latency: [u64; BUCKETS],
    /// The sum of the latencies.
    pub(crate) latency: Duration,
}

/// The method of a call, and when the head of its request was read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CallStart {
    /// The number of the method in the table. The number of rows stands for no method.
    pub(crate) method: usize,
    pub(crate) arrived: Instant,
}

/// A call that waits for its request or for its handler. Counted once, when dropped: under the code with which the call
/// [ended](Self::end), or else as cancelled.
#[derive(Debug)]
pub(crate) struct OpenCall {
    counters: Arc<CallCounters>,
    start: CallStart,
    /// Set once the reply is ready.
    latency: Option<Duration>,
    code: Code,
}

impl OpenCall {
    pub(crate) fn new(counters: &Arc<CallCounters>, start: CallStart) -> Self {
        Self {
            counters: Arc::clone(counters),
            start,
            latency: None,
            code: Code::Cancelled,
        }
    }

    /// Notes that the reply is ready, so that the time until the client has read the reply does not count.
    pub(crate) fn reply_is_ready(&mut self) {
        self.latency = Some(self.start.arrived.elapsed());
    }

    /// Ends the call.
    pub(crate) fn end(mut self, code: Code) {
        self.code = code;
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let latency = self.latency.filter(|_| self.code != Code::Cancelled);
        self.counters.methods[self.start.method].count(self.code, latency);
    }
}

/// Returns the status code in the headers or trailers of a response. A response without a code is UNKNOWN to clients.
pub(crate) fn code_in(headers: &HeaderMap) -> Code {
    let code = headers.get(Status::GRPC_STATUS);
    code.map_or(Code::Unknown, |code| Code::from_bytes(code.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::methods::methods_of_empty_table;

    #[test]
    fn a_latency_is_in_the_first_bucket_whose_bound_is_not_below() {
        for nanos in [0, 1, 8191, 8192, 8193, 16_384, 16_385, 1 << 28, (1 << 28) + 1, u64::MAX] {
            let latency = Duration::from_nanos(nanos);
            let expected = (0..BUCKETS).position(|bucket| bound(bucket).is_none_or(|bound| latency <= bound));
            assert_eq!(Some(bucket(nanos)), expected, "{nanos}");
        }
        assert_eq!(bound(0), Some(Duration::from_nanos(8192)));
        assert_eq!(bound(BUCKETS - 1), None);
    }

    #[tokio::test(start_paused = true)]
    async fn each_call_is_counted_once() {
        let methods = methods_of_empty_table();
        let number = |path| methods.find(path).expect("the method is in the table");
        let unary = number("/nodetracker.v1.RouteService/AddNodes");
        let stream = number("/nodetracker.v1.WatchService/Watch");
        let counters = CallCounters::new(&methods);
        let start = |method| CallStart {
            method,
            arrived: Instant::now(),
        };
        let pass = |micros| tokio::time::advance(Duration::from_micros(micros));

        let begun = start(unary);
        pass(10).await;
        counters.replied(begun, Code::Ok);
        counters.cancelled(begun);
        let mut late = OpenCall::new(&counters, start(unary));
        let unread = OpenCall::new(&counters, start(unary));
        let mut watch = OpenCall::new(&counters, start(stream));
        pass(20).await;
        late.reply_is_ready();
        watch.reply_is_ready();
        pass(1_000_000).await;
        late.end(Code::NotFound);
        watch.end(Code::Unavailable);
        drop(unread);
        counters.replied(start(methods.rows().len()), Code::Unimplemented);

        let read = |method| {
            let mut counts = CallCounts::default();
            counters.add_to(method, &mut counts);
            counts
        };
        let mut expected = CallCounts::default();
        expected.by_code[Code::Ok as usize] = 1;
        expected.by_code[Code::NotFound as usize] = 1;
        expected.by_code[Code::Cancelled as usize] = 2;
        expected.by_latency[1] = 1;
        expected.by_latency[2] = 1;
        expected.latency = Duration::from_micros(30);
        assert_eq!(read(unary), expected);
        let mut expected = CallCounts::default();
        expected.by_code[Code::Unavailable as usize] = 1;
        assert_eq!(read(stream), expected);
        let mut expected = CallCounts::default();
        expected.by_code[Code::Unimplemented as usize] = 1;
        assert_eq!(read(methods.rows().len()), expected);
        assert_eq!(read(0), CallCounts::default());
    }
}
