//! The heap list of a node with two routes or more.
//!
//! A list's membership never changes. Only the times and ranks in its words do, by one CAS each, until a word is
//! frozen. The record's word has the list's length beside its address, so a list of n routes takes n words.

use std::alloc::{Layout, alloc, dealloc};
use std::cmp::Reverse;
use std::ptr::{self, NonNull};

use crate::shard::routes::AllWords;
#[cfg(loom)]
use crate::sync::epoch::Fate;
use crate::sync::stripes::StripedCounter;
use crate::sync::{AtomicU64, Guard, Ordering, Reclaim, failpoint, retire};
use crate::word::Word;

/// The memory of a list.
#[repr(C)]
struct Body {
    #[cfg(loom)]
    fate: Fate,
    words: [AtomicU64],
}

/// The offset of the words.
#[cfg(not(loom))]
const WORDS_AT: usize = 0;
#[cfg(loom)]
const WORDS_AT: usize = size_of::<Fate>().next_multiple_of(align_of::<AtomicU64>());

fn layout(len: usize) -> Layout {
    let align = align_of::<AtomicU64>();
    let bytes = (WORDS_AT + len * size_of::<AtomicU64>()).next_multiple_of(align);
    // At least 8: the lowest three bits of the record's word are not part of the address.
    Layout::from_size_align(bytes, align.max(8)).expect("a list of 64 words fits into memory")
}

fn body(at: *mut u8, len: usize) -> *mut Body {
    ptr::slice_from_raw_parts_mut(at, len) as *mut Body
}

fn len_of(body: *const Body) -> usize {
    (body as *const [AtomicU64]).len()
}

/// The list of a SPILL word.
fn body_of(word: Word) -> *mut Body {
    body(
        ptr::with_exposed_provenance_mut(word.address() as usize),
        word.list_len(),
    )
}

/// The bytes of the lists that records point to, in all tables of the process.
static BYTES: StripedCounter = StripedCounter::new();

/// The bytes of the lists that records point to, in all tables of the process, without garbage.
pub(crate) fn bytes_of_all() -> usize {
    BYTES.get()
}

/// A list that is private to this thread. Dropping it frees it.
pub(crate) struct NewList(NonNull<Body>);

impl NewList {
    /// Copies `words`: at least one, newest first. `None` if there is no memory.
    pub(crate) fn new(words: &[Word]) -> Option<NewList> {
        debug_assert!(!words.is_empty());
        // SAFETY: the layout has a word, so its size is not zero.
        let raw = NonNull::new(unsafe { alloc(layout(words.len())) })?;
        #[cfg(loom)]
        // SAFETY: the allocation starts with room for it, and only this thread has the allocation.
        unsafe {
            raw.cast::<Fate>().write(Fate::default());
        }
        // SAFETY: the layout has room for the words there.
        let first = unsafe { raw.add(WORDS_AT) }.cast::<AtomicU64>();
        for (i, word) in words.iter().enumerate() {
            // SAFETY: the layout has room for this word.
            let at = unsafe { first.add(i) };
            // SAFETY: the layout has room for this word, and only this thread has the allocation.
            unsafe { at.write(AtomicU64::new(word.thawed().ranked(0).0)) };
        }
        NonNull::new(body(raw.as_ptr(), words.len())).map(NewList)
    }

    /// The SPILL word that points to this list.
    pub(crate) fn word(&self) -> Word {
        let body = self.0.as_ptr();
        Word::spill(body.cast::<u8>().expose_provenance() as u64, len_of(body))
    }

    /// Leaves the list to the record that now points to it.
    pub(crate) fn publish(self) {
        BYTES.add(layout(len_of(self.0.as_ptr())).size());
        std::mem::forget(self);
    }
}

impl Drop for NewList {
    fn drop(&mut self) {
        // SAFETY: the list was never published, so no other thread can reach it.
        unsafe { Body::free(self.0.as_ptr()) };
    }
}

/// A list that a record points to, or pointed to while this thread was pinned.
#[derive(Clone, Copy)]
pub(crate) struct List<'g>(&'g Body);

impl<'g> List<'g> {
    /// The list of a SPILL word.
    ///
    /// # Safety
    ///
    /// `word` was loaded with Acquire from a record while `guard` was pinned.
    #[inline]
    pub(crate) unsafe fn of(word: Word, _guard: &'g Guard) -> List<'g> {
        // SAFETY: a SPILL word has a list's address and length (`NewList::word`). The list was initialised before its
        // word was published, and the Acquire load makes it visible. It was reachable under the guard, so it is not
        // freed before the guard is dropped (invariant 8).
        let body = unsafe { &*body_of(word) };
        #[cfg(loom)]
        body.fate.assert_alive();
        List(body)
    }

    /// The words, the latest addition first.
    #[inline]
    pub(crate) fn words(self) -> &'g [AtomicU64] {
        &self.0.words
    }

    /// The words of a SPILL word's list that only the caller can reach.
    ///
    /// # Safety
    ///
    /// No other thread can reach the list, and it is not freed while the result is in use.
    pub(crate) unsafe fn words_of_private<'a>(word: Word) -> &'a [AtomicU64] {
        // SAFETY: a SPILL word has a list's address and length (`NewList::word`), and the caller promises that the list
        // is not freed.
        unsafe { &(*body_of(word)).words }
    }

    /// Makes every word final, and appends the words to `into` as LIVE words. Of routes that were refreshed in one
    /// tick, the latest comes first. Later refreshes find a frozen word, and replace the list.
    pub(crate) fn freeze(self, into: &mut AllWords) {
        let frozen = Word(0).frozen().0;
        let mut ranks = 0;
        into.extend(self.words().iter().map(|word| {
            failpoint("list: before a freeze");
            // AcqRel: pairs with the CAS in `refresh_in_place`, which precedes this freeze, or fails. Acquire: the
            // thread that replaces the list sees the earlier writes of the refreshing thread.
            let word = Word(word.fetch_or(frozen, Ordering::AcqRel)).thawed();
            ranks |= word.rank();
            word
        }));
        if ranks != 0 {
            // Stable: among equal ranks, the position decides.
            into.sort_by_key(|word| Reverse(word.recency()));
            into.iter_mut().for_each(|word| *word = word.ranked(0));
        }
    }

    /// Frees the list when no pinned thread can read it any more.
    ///
    /// # Safety
    ///
    /// This thread's CAS unlinked the list from the record.
    pub(crate) unsafe fn retire(self, guard: &Guard) {
        BYTES.sub(self.0.bytes());
        // SAFETY: this thread's CAS unlinked the list, so no thread that pins from now on can find it (invariant 8).
        unsafe { retire(guard, ptr::from_ref(self.0).cast_mut()) };
    }

    /// Frees the list of a SPILL word at once.
    ///
    /// # Safety
    ///
    /// No other thread can reach the list, and the record that points to it is being freed.
    pub(crate) unsafe fn free_at(word: Word) {
        BYTES.sub(layout(word.list_len()).size());
        // SAFETY: the caller promises that no other thread can reach the list.
        unsafe { Body::free(body_of(word)) };
    }
}

impl Reclaim for Body {
    fn after_grace(&self) {}

    unsafe fn free(object: *mut Self) {
        let len = len_of(object);
        // Atomics need no drop, with or without loom.
        // SAFETY: `NewList::new` allocated it with this layout.
        unsafe { dealloc(object.cast(), layout(len)) };
    }

    fn bytes(&self) -> usize {
        layout(self.words.len()).size()
    }

    #[cfg(loom)]
    fn fate(&self) -> &Fate {
        &self.fate
    }
}
