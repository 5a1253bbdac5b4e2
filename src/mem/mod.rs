//! Memory: arrays that grow in place, short strings, prefetching.

pub(crate) mod prefetch;
pub(crate) mod segmented_vec;
pub(crate) mod segments;
pub(crate) mod thin_str;
