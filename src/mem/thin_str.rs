//! A short string on the heap behind a one-word pointer.

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::{NonNull, with_exposed_provenance_mut};

use crate::sync::stripes::StripedCounter;

/// The bytes of all texts of the process.
static BYTES: StripedCounter = StripedCounter::new();

/// A heap string of at most 255 bytes behind a one-word pointer: a length byte, then the text. It costs one byte beside
/// its text; a boxed str costs sixteen, a `CompactString` twenty-four.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ThinStr(*mut u8);

impl ThinStr {
    /// Copies `text`, of at most 255 bytes; `None` if there is no memory.
    pub(crate) fn new(text: &str) -> Option<ThinStr> {
        let len = u8::try_from(text.len()).expect("names were checked to be at most 255 bytes");
        // SAFETY: the layout has at least one byte.
        let to = NonNull::new(unsafe { alloc(Self::layout(len)) })?;
        // SAFETY: the allocation has a byte for the length there.
        unsafe { to.write(len) };
        // SAFETY: `len` bytes follow the length.
        let bytes = unsafe { to.add(1) };
        // SAFETY: both are `len` bytes, and the allocation is new, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), bytes.as_ptr(), text.len()) };
        BYTES.add(Self::layout(len).size());
        Some(ThinStr(to.as_ptr()))
    }

    /// Copies `text`, of at most 255 bytes. Without memory, it aborts the process, like collections.
    pub(crate) fn new_or_abort(text: &str) -> ThinStr {
        ThinStr::new(text).unwrap_or_else(|| std::alloc::handle_alloc_error(Layout::for_value(text)))
    }

    /// The bytes of all texts of the process.
    pub(crate) fn bytes_of_all() -> usize {
        BYTES.get()
    }

    /// Whether all texts of the process and one more text, of `len` bytes, take at most `limit` bytes. Texts that other
    /// threads make at the same time may not count.
    pub(crate) fn has_room(len: usize, limit: usize) -> bool {
        limit == usize::MAX || BYTES.get() + len < limit
    }

    fn layout(len: u8) -> Layout {
        Layout::array::<u8>(usize::from(len) + 1).expect("256 bytes fit into memory")
    }

    pub(crate) fn to_bits(self) -> u64 {
        self.0.expose_provenance() as u64
    }

    /// The text whose [`to_bits`](ThinStr::to_bits) returned these bits. For other bits, only `to_bits` may be called
    /// on the result.
    pub(crate) fn from_bits(bits: u64) -> ThinStr {
        ThinStr(with_exposed_provenance_mut(bits as usize))
    }

    /// # Safety
    ///
    /// [`new`](ThinStr::new) made the text, which is not freed while the result is in use.
    pub(crate) unsafe fn as_str<'a>(self) -> &'a str {
        // SAFETY: the caller promises that the text is not freed; its first byte is the length.
        let len = unsafe { self.0.read() };
        // SAFETY: `len` bytes follow the length.
        let bytes = unsafe { self.0.add(1) };
        // SAFETY: `new` initialised the bytes, and no thread writes them again.
        let bytes = unsafe { std::slice::from_raw_parts(bytes, len.into()) };
        // SAFETY: the bytes are a copy of a str.
        unsafe { std::str::from_utf8_unchecked(bytes) }
    }

    /// # Safety
    ///
    /// [`new`](ThinStr::new) made the text. No thread uses the text any more, and it is freed once.
    pub(crate) unsafe fn free(self) {
        // SAFETY: the caller promises that the text is not freed yet; its first byte is the length.
        let len = unsafe { self.0.read() };
        BYTES.sub(Self::layout(len).size());
        // SAFETY: `new` allocated it with this layout.
        unsafe { dealloc(self.0, Self::layout(len)) };
    }
}
