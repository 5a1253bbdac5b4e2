//! A bucket of the index, and how to compare all of its slots at once.

use crate::layout::{RECORD_BITS, SLOTS_PER_BUCKET};
use crate::shard::index::{EMPTY, FROZEN};
use crate::sync::AtomicU32;

/// One cache line of slots.
pub(crate) type Bucket = [AtomicU32; SLOTS_PER_BUCKET as usize];

/// The slots with the tag of `tag`: one bit each, the first slot's the lowest. The slots may include EMPTY or FROZEN
/// ones, and may have changed meanwhile: load a slot with Acquire before following it.
///
/// All tags are compared before any is used, without a branch. The place of a key in its bucket cannot be predicted.
/// The processor detects a wrong guess only when the slots have arrived from memory. Until then the processor runs
/// ahead into the next look-up, and would have to discard that work.
#[inline]
pub(crate) fn same_tag(bucket: &Bucket, tag: u32) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: SSE2 is part of x86_64.
    unsafe {
        sse2::same_tag(bucket, tag)
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    one_by_one::same_tag(bucket, tag)
}

/// The slots that are EMPTY or FROZEN, in the same form: a probe sequence that reaches one of them ends there.
#[inline]
pub(crate) fn ends(bucket: &Bucket) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: SSE2 is part of x86_64.
    unsafe {
        sse2::ends(bucket)
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    one_by_one::ends(bucket)
}

/// [`same_tag`] and [`ends`] together, each slot as of one moment. So a slot that is filled meanwhile is included, as
/// EMPTY or with its new value.
#[inline]
pub(crate) fn same_tag_or_end(bucket: &Bucket, tag: u32) -> u32 {
    #[cfg(all(target_arch = "x86_64", not(loom)))]
    // SAFETY: SSE2 is part of x86_64.
    unsafe {
        sse2::same_tag_or_end(bucket, tag)
    }
    #[cfg(not(all(target_arch = "x86_64", not(loom))))]
    one_by_one::same_tag_or_end(bucket, tag)
}

/// Turns the result of a function above into the order of a probe sequence that starts at a slot of the bucket. The
/// lowest bit is for the first slot of the sequence.
#[inline]
pub(crate) fn from_offset(slots: u32, offset: u32) -> u32 {
    (slots | slots << SLOTS_PER_BUCKET) >> offset & ((1 << SLOTS_PER_BUCKET) - 1)
}

/// The slot of the lowest bit, from a result of [`from_offset`].
#[inline]
pub(crate) fn first(turned: u32, offset: u32) -> usize {
    ((turned.trailing_zeros() + offset) % SLOTS_PER_BUCKET) as usize
}

#[cfg(any(test, not(all(target_arch = "x86_64", not(loom)))))]
mod one_by_one {
    use super::{Bucket, EMPTY, FROZEN, RECORD_BITS};
    use crate::sync::{AtomicU32, Ordering};

    pub(super) fn same_tag(bucket: &Bucket, tag: u32) -> u32 {
        which(bucket, |slot| has_tag(slot, tag))
    }

    pub(super) fn ends(bucket: &Bucket) -> u32 {
        which(bucket, is_end)
    }

    pub(super) fn same_tag_or_end(bucket: &Bucket, tag: u32) -> u32 {
        which(bucket, |slot| has_tag(slot, tag) || is_end(slot))
    }

    fn has_tag(slot: u32, tag: u32) -> bool {
        (slot ^ tag) >> RECORD_BITS == 0
    }

    fn is_end(slot: u32) -> bool {
        slot == EMPTY || slot == FROZEN
    }

    fn which(bucket: &Bucket, test: impl Fn(u32) -> bool) -> u32 {
        // Acquire: pairs with the CAS that filled the slot.
        let bit = |(at, slot): (usize, &AtomicU32)| u32::from(test(slot.load(Ordering::Acquire))) << at;
        bucket.iter().enumerate().map(bit).sum()
    }
}

/// Compilers do not merge atomics: they make sixteen loads and comparisons for a bucket, half of the instructions of a
/// look-up in a batch. The processor loads four slots at once.
#[cfg(all(target_arch = "x86_64", not(loom)))]
mod sse2 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi32, _mm_movemask_epi8, _mm_or_si128, _mm_packs_epi16, _mm_packs_epi32, _mm_set1_epi32,
        _mm_setzero_si128, _mm_srli_epi32, _mm_xor_si128,
    };

    use super::{Bucket, EMPTY, FROZEN, RECORD_BITS};

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn same_tag(bucket: &Bucket, tag: u32) -> u32 {
        let tag = _mm_set1_epi32(tag as i32);
        bits(load(bucket).map(|slots| have_tag(slots, tag)))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn ends(bucket: &Bucket) -> u32 {
        bits(load(bucket).map(|slots| are_ends(slots)))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    pub(super) fn same_tag_or_end(bucket: &Bucket, tag: u32) -> u32 {
        let tag = _mm_set1_epi32(tag as i32);
        bits(load(bucket).map(|slots| _mm_or_si128(have_tag(slots, tag), are_ends(slots))))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn have_tag(slots: __m128i, tag: __m128i) -> __m128i {
        let difference = _mm_srli_epi32::<{ RECORD_BITS as i32 }>(_mm_xor_si128(slots, tag));
        _mm_cmpeq_epi32(difference, _mm_setzero_si128())
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn are_ends(slots: __m128i) -> __m128i {
        let (empty, frozen) = (_mm_set1_epi32(EMPTY as i32), _mm_set1_epi32(FROZEN as i32));
        _mm_or_si128(_mm_cmpeq_epi32(slots, empty), _mm_cmpeq_epi32(slots, frozen))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn load(bucket: &Bucket) -> [__m128i; 4] {
        let (a, b, c, d);
        // SAFETY: this reads the bucket, which is aligned to its 64 bytes (`Index::bucket`), and has the effect of
        // sixteen atomic loads with Acquire. An aligned vector load reads each aligned word whole, this processor keeps
        // loads in order, and without `nomem`, the compiler moves no access across.
        unsafe {
            asm!(
                "movdqa {a}, xmmword ptr [{bucket}]",
                "movdqa {b}, xmmword ptr [{bucket} + 16]",
                "movdqa {c}, xmmword ptr [{bucket} + 32]",
                "movdqa {d}, xmmword ptr [{bucket} + 48]",
                bucket = in(reg) bucket.as_ptr(),
                a = out(xmm_reg) a,
                b = out(xmm_reg) b,
                c = out(xmm_reg) c,
                d = out(xmm_reg) d,
                options(nostack, preserves_flags),
            );
        }
        [a, b, c, d]
    }

    /// One bit for each word. All bits of a word are equal.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn bits([a, b, c, d]: [__m128i; 4]) -> u32 {
        _mm_movemask_epi8(_mm_packs_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d))) as u32
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[repr(align(64))]
    struct Aligned(Bucket);

    #[test]
    fn a_bucket_compared_at_once_is_as_one_slot_after_the_other() {
        let tagged = |tag: u32, number: u32| tag << RECORD_BITS | number;
        let slots = [
            EMPTY,
            FROZEN,
            tagged(0, 1),
            tagged(5, 7),
            tagged(5, 0),
            tagged(6, 7),
            tagged(1_023, 9),
        ];
        let mut state = 1u64;
        for _ in 0..10_000 {
            let bucket = Aligned(std::array::from_fn(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                AtomicU32::new(slots[(state >> 33) as usize % slots.len()])
            }));
            for tag in [0, 5, 6, 1_023].map(|tag| tagged(tag, 0)) {
                let expected = one_by_one::same_tag(&bucket.0, tag);
                assert_eq!(same_tag(&bucket.0, tag), expected, "{:?}", bucket.0);
                let expected = one_by_one::same_tag_or_end(&bucket.0, tag);
                assert_eq!(same_tag_or_end(&bucket.0, tag), expected, "{:?}", bucket.0);
            }
            assert_eq!(ends(&bucket.0), one_by_one::ends(&bucket.0), "{:?}", bucket.0);
        }
    }

    #[test]
    fn the_ends_of_a_bucket_are_its_empty_and_frozen_slots() {
        let mut slots: [u32; SLOTS_PER_BUCKET as usize] = std::array::from_fn(|at| at as u32 + 1);
        assert_eq!(ends(&Aligned(slots.map(AtomicU32::new)).0), 0);
        for end in [EMPTY, FROZEN] {
            for at in 0..SLOTS_PER_BUCKET as usize {
                let former = std::mem::replace(&mut slots[at], end);
                assert_eq!(ends(&Aligned(slots.map(AtomicU32::new)).0), 1 << at);
                slots[at] = former;
            }
        }
    }

    #[test]
    fn a_sequence_starts_at_its_offset_and_goes_round() {
        let (mut left, mut sequence) = (from_offset(1 << 3 | 1 << 9 | 1 << 15, 9), Vec::new());
        while left != 0 {
            sequence.push(first(left, 9));
            left &= left - 1;
        }
        assert_eq!(sequence, [9, 15, 3]);
    }
}
