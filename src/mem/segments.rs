//! The place of a number in an array that grows segment by segment.
//!
//! Segments never move, so an element's address is stable. Each segment is a 32nd of its doubling, so at most a 32nd of
//! an array of any size is empty. Segments 0 to 31 have 8 elements each, 32 to 63 have 16, and so on. (The levelled
//! sizes are those of Brodnik et al., "Resizable arrays in optimal time and space", 1999, with the split fixed at 32.)

/// Elements of the first segments, as a power of two.
const FIRST_BITS: u32 = if cfg!(loom) { 1 } else { 3 };
/// Segments of one size, as a power of two.
const PER_SIZE_BITS: u32 = if cfg!(loom) { 0 } else { 5 };

/// A number's segment, and its offset there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
}

impl Location {
    /// The place of a number below 2^31.
    #[inline]
    pub(crate) fn of(number: u32) -> Location {
        Split::<PER_SIZE_BITS>::place(number)
    }

    /// How many elements a segment has.
    pub(crate) fn len(segment: u32) -> u32 {
        Split::<PER_SIZE_BITS>::len(segment)
    }

    /// How many segments hold the numbers below `count`.
    pub(crate) fn segments(count: u32) -> u32 {
        Split::<PER_SIZE_BITS>::segments(count)
    }

    /// How many elements the segments have that hold the numbers below `count`.
    pub(crate) fn capacity(count: u32) -> u32 {
        Split::<PER_SIZE_BITS>::first(Self::segments(count))
    }
}

/// Such an array with another split: `1 << PER_SIZE_BITS` segments of one size. Fewer pointers mean more empty
/// elements.
pub(crate) struct Split<const PER_SIZE_BITS: u32>;

impl<const PER_SIZE_BITS: u32> Split<PER_SIZE_BITS> {
    /// Like [`Location::of`].
    #[inline]
    pub(crate) fn place(number: u32) -> Location {
        let shifted = number + (1 << (FIRST_BITS + PER_SIZE_BITS));
        let shift = shifted.ilog2() - PER_SIZE_BITS;
        Location {
            // The leading bits, minus those of the first segments, count the segments.
            segment: (shift << PER_SIZE_BITS) + (shifted >> shift) - ((FIRST_BITS + 1) << PER_SIZE_BITS),
            offset: shifted & ((1 << shift) - 1),
        }
    }

    /// Like [`Location::len`].
    pub(crate) fn len(segment: u32) -> u32 {
        1 << (FIRST_BITS + (segment >> PER_SIZE_BITS))
    }

    /// The first number of a segment.
    fn first(segment: u32) -> u32 {
        let shift = segment >> PER_SIZE_BITS;
        let leading = (segment & ((1 << PER_SIZE_BITS) - 1)) + (1 << PER_SIZE_BITS);
        (leading << (FIRST_BITS + shift)) - (1 << (FIRST_BITS + PER_SIZE_BITS))
    }

    /// Like [`Location::segments`].
    pub(crate) fn segments(count: u32) -> u32 {
        count.checked_sub(1).map_or(0, |last| Self::place(last).segment + 1)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn fills_one_after_the_other<const PER_SIZE_BITS: u32>() {
        let mut expected = Location { segment: 0, offset: 0 };
        for number in 0..300_000 {
            assert_eq!(Split::<PER_SIZE_BITS>::place(number), expected, "number {number}");
            assert_eq!(
                Split::<PER_SIZE_BITS>::first(expected.segment),
                number - expected.offset
            );
            expected.offset += 1;
            if expected.offset == Split::<PER_SIZE_BITS>::len(expected.segment) {
                assert_eq!(Split::<PER_SIZE_BITS>::segments(number + 1), expected.segment + 1);
                expected = Location {
                    segment: expected.segment + 1,
                    offset: 0,
                };
            }
        }
        assert_eq!(Split::<PER_SIZE_BITS>::segments(0), 0);
    }

    #[test]
    fn numbers_fill_segments_one_after_the_other() {
        fills_one_after_the_other::<PER_SIZE_BITS>();
        fills_one_after_the_other::<2>();
        fills_one_after_the_other::<0>();
    }

    #[test]
    fn no_segment_is_more_than_a_32nd_of_what_precedes_it() {
        let mut before = 0;
        for segment in 0..200 {
            let len = Location::len(segment);
            assert!(
                len <= 8 || len <= before / 32 + 8,
                "segment {segment} of {len} after {before}"
            );
            before += len;
        }
    }
}
