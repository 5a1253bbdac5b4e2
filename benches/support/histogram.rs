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
                let shift = (bucket / STEPS).saturating_sub(1);
                return (((bucket - shift * STEPS) as u64) << shift) as f64;
            }
        }
        self.max as f64
    }
}
