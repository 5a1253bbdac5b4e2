//! Writes the samples of one metric.

use std::fmt;
use std::time::Duration;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;

use crate::grpc::call_counters::{CallCounts, bound};

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

impl MetricKind {
    pub(super) fn to_type(self) -> MetricType {
        match self {
            MetricKind::Counter => MetricType::Counter,
            MetricKind::Gauge => MetricType::Gauge,
            MetricKind::Histogram => MetricType::Histogram,
        }
    }
}

/// The value of a sample.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value {
    Whole(u64),
    Fraction(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(u64::from(value))
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Fraction(value)
    }
}

/// Seconds.
impl From<Duration> for Value {
    fn from(value: Duration) -> Self {
        Self::Fraction(value.as_secs_f64())
    }
}

/// The samples of one metric.
pub(super) struct Samples<'a> {
    pub(super) encoder: MetricEncoder<'a>,
    pub(super) kind: MetricKind,
    /// The names of the labels that every sample has.
    pub(super) labels: &'static [&'static str],
}

impl Samples<'_> {
    /// Writes the sample of a metric without labels.
    pub(super) fn only(&mut self, value: impl Into<Value>) -> fmt::Result {
        debug_assert!(self.labels.is_empty());
        write(&mut self.encoder, self.kind, value.into())
    }

    /// Writes the sample with these values of the labels.
    pub(super) fn of<const N: usize>(&mut self, values: [&str; N], value: impl Into<Value>) -> fmt::Result {
        let labels = pairs(self.labels, values);
        write(&mut self.encoder.encode_family(&labels)?, self.kind, value.into())
    }

    /// Writes the histogram of a method's latencies.
    pub(super) fn latencies<const N: usize>(&mut self, values: [&str; N], counts: &CallCounts) -> fmt::Result {
        let labels = pairs(self.labels, values);
        let bounds = (0..).map(|bucket| bound(bucket).map_or(f64::INFINITY, |bound| bound.as_secs_f64()));
        let buckets: Vec<_> = bounds.zip(counts.by_latency).collect();
        // The count is that of the buckets, so that the two agree although calls continue.
        let count = counts.by_latency.iter().sum();
        let mut encoder = self.encoder.encode_family(&labels)?;
        encoder.encode_histogram::<NoLabelSet>(counts.latency.as_secs_f64(), count, &buckets, None)
    }
}

fn pairs<'v, const N: usize>(names: &'static [&'static str], values: [&'v str; N]) -> [(&'static str, &'v str); N] {
    debug_assert_eq!(names.len(), N);
    std::array::from_fn(|number| (names[number], values[number]))
}

fn write(encoder: &mut MetricEncoder<'_>, kind: MetricKind, value: Value) -> fmt::Result {
    const NONE: Option<&Exemplar<NoLabelSet, f64>> = None;
    match (kind, value) {
        (MetricKind::Counter, Value::Whole(value)) => encoder.encode_counter(&value, NONE),
        (MetricKind::Counter, Value::Fraction(value)) => encoder.encode_counter(&value, NONE),
        (_, Value::Whole(value)) => encoder.encode_gauge(&value),
        (_, Value::Fraction(value)) => encoder.encode_gauge(&value),
    }
}
