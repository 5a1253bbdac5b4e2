//! The heap list of a node with two routes or more.
//!
//! A list's membership never changes; only the times in its words do, by a CAS each, until a word is frozen. How long it is
//! stands in the record's word, beside its address; so a list of n routes is n words.

use std::alloc::{Layout, alloc, dealloc};
use std::cmp::Reverse;
use std::ptr::{self, NonNull};

use crate::shard::routes::AllWords;
use crate::shard::word::Word;
#[cfg(loom)]
use crate::sync::epoch::Fate;
use crate::sync::{AtomicU64, Guard, Ordering, Reclaim, retire, step};

/// The most routes that one node may have.
pub(crate) const MAX_ROUTES_PER_NODE: usize = if cfg!(loom) { 3 } else { 64 };

/// What is on the heap.
#[repr(C)]
struct Body {
    #[cfg(loom)]
    fate: Fate,
    words: [AtomicU64],
}

/// Where the words begin.
#[cfg(not(loom))]
const WORDS_AT: usize = 0;
#[cfg(loom)]
const WORDS_AT: usize = size_of::<Fate>().next_multiple_of(align_of::<AtomicU64>());

fn layout(len: usize) -> Layout {
    let align = align_of::<AtomicU64>();
    let bytes = (WORDS_AT + len * size_of::<AtomicU64>()).next_multiple_of(align);
    // 8 at least: a word's lowest bits are not the address's.
    Layout::from_size_align(bytes, align.max(8)).expect("a list of 64 words fits into memory")
}

fn body(at: *mut u8, len: usize) -> *mut Body {
    ptr::slice_from_raw_parts_mut(at, len) as *mut Body
}

fn len_of(body: *const Body) -> usize {
    (body as *const [AtomicU64]).len()
}

/// The list that a SPILL word points to.
fn body_of(word: Word) -> *mut Body {
    body(
        ptr::with_exposed_provenance_mut(word.address() as usize),
        word.list_len(),
    )
}

/// A list that nobody else knows yet; freed when it is dropped.
pub(crate) struct NewList(NonNull<Body>);

impl NewList {
    /// Copies `words`, newest first and not none at all; `None` where there is no memory for them.
    pub(crate) fn new(words: &[Word]) -> Option<NewList> {
        debug_assert!(!words.is_empty());
        // SAFETY: the layout has a word, so its size is not zero.
        let raw = NonNull::new(unsafe { alloc(layout(words.len())) })?;
        #[cfg(loom)]
        // SAFETY: the allocation starts with room for it, and is ours alone.
        unsafe {
            raw.cast::<Fate>().write(Fate::default());
        }
        // SAFETY: the layout has room for the words there.
        let first = unsafe { raw.add(WORDS_AT) }.cast::<AtomicU64>();
        for (i, word) in words.iter().enumerate() {
            // SAFETY: as above.
            let at = unsafe { first.add(i) };
            // SAFETY: as above, and the allocation is ours alone.
            unsafe { at.write(AtomicU64::new(word.thawed().ranked(0).0)) };
        }
        NonNull::new(body(raw.as_ptr(), words.len())).map(NewList)
    }

    /// The word that a record points to this list with.
    pub(crate) fn word(&self) -> Word {
        let body = self.0.as_ptr();
        Word::spill(body.cast::<u8>().expose_provenance() as u64, len_of(body))
    }

    /// Leaves the list to the record that points to it now.
    pub(crate) fn publish(self) {
        std::mem::forget(self);
    }
}

impl Drop for NewList {
    fn drop(&mut self) {
        // SAFETY: it was never published, so nobody else can reach it.
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
        // SAFETY: a SPILL word has a list's address and length (`NewList::word`); it was initialised before it was published,
        // and was reachable under the guard, so it is not freed before the guard goes (invariant 8).
        let body = unsafe { &*body_of(word) };
        #[cfg(loom)]
        body.fate.assert_alive();
        List(body)
    }

    /// The words, newest membership first.
    #[inline]
    pub(crate) fn words(self) -> &'g [AtomicU64] {
        &self.0.words
    }

    /// Makes every word final, and returns them as LIVE words, with the latest first of those that were refreshed in one tick.
    /// Refreshes that come later find a frozen word and replace the list.
    pub(crate) fn freeze(self, into: &mut AllWords) {
        let frozen = Word(0).frozen().0;
        let mut ranks = 0;
        into.extend(self.words().iter().map(|word| {
            step("list: before a freeze");
            // AcqRel: this is where a refresh of the word comes before the freeze or fails; whoever replaces the list
            // sees what the refresh wrote.
            let word = Word(word.fetch_or(frozen, Ordering::AcqRel)).thawed();
            ranks |= word.rank();
            word
        }));
        if ranks != 0 {
            // Stable: within one rank, the position decides.
            into.sort_by_key(|word| Reverse(word.recency()));
            into.iter_mut().for_each(|word| *word = word.ranked(0));
        }
    }

    /// Frees the list once nobody can look at it any more.
    ///
    /// # Safety
    ///
    /// This thread's CAS made the record stop pointing to the list.
    pub(crate) unsafe fn retire(self, guard: &Guard) {
        // SAFETY: no record points to the list any more, so a thread that pins from now on cannot find it; it is
        // retired by the one thread that unlinked it.
        unsafe { retire(guard, ptr::from_ref(self.0).cast_mut()) };
    }

    /// Frees the list of a SPILL word at once.
    ///
    /// # Safety
    ///
    /// Nobody else can reach the list, and the record that points to it is going away.
    pub(crate) unsafe fn free_at(word: Word) {
        // SAFETY: as the caller promises.
        unsafe { Body::free(body_of(word)) };
    }
}

impl Reclaim for Body {
    fn after_grace(&self) {}

    unsafe fn free(object: *mut Self) {
        let len = len_of(object);
        // No atomic needs dropping outside of loom, and inside they hold nothing either.
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
