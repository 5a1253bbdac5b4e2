//! A histogram of durations.

/// Counts nanoseconds, to 1 %.
pub(crate) type Histogram = hdrhistogram::Histogram<u32>;

/// Longer durations count as an hour.
const LONGEST: u64 = 3_600_000_000_000;

pub(crate) fn histogram() -> Histogram {
    Histogram::new_with_bounds(1, LONGEST, 2).expect("the bounds are in order")
}
