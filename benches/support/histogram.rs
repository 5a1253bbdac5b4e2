//! A histogram of durations, small enough to stay in the first-level cache while it is filled.

use std::time::Duration;

/// Linear steps per doubling: a value is told to 3 %.
const STEPS_BITS: u32 = 5;
const STEPS: usize = 1 << STEPS_BITS;

#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    counts: Box<[u32]>,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; (64 - STEPS_BITS as usize) * STEPS + STEPS].into(),
            max: 0,
        }
    }
}

impl Histogram {
    pub(crate) fn record(&mut self, duration: Duration) {
        let nanos = duration.as_nanos() as u64;
        self.counts[Self::bucket(nanos)] += 1;
        self.max = self.max.max(nanos);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.max = self.max.max(other.max);
    }

    /// The values that there are, each in nanoseconds and rounded down to its step, and how often.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (u64, u32)> {
        let counts = self.counts.iter().enumerate().filter(|&(_, &count)| count > 0);
        counts.map(|(bucket, &count)| (Self::value(bucket), count))
    }

    /// The least value that is counted there.
    fn value(bucket: usize) -> u64 {
        let shift = (bucket / STEPS).saturating_sub(1);
        ((bucket - shift * STEPS) as u64) << shift
    }

    fn bucket(nanos: u64) -> usize {
        let shift = (nanos | STEPS as u64).ilog2() - STEPS_BITS;
        (shift as usize) * STEPS + (nanos >> shift) as usize
    }

    /// The value in nanoseconds that so great a share of the values do not exceed.
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let total: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        let rank = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        for (bucket, &count) in self.counts.iter().enumerate() {
            seen += u64::from(count);
            if seen >= rank {
                return Self::value(bucket) as f64;
            }
        }
        self.max as f64
    }
}
