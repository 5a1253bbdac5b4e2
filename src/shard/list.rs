//! The heap list of a node with two routes or more.
//!
//! A list's membership never changes; only the times in its words do, by a CAS each, until a word is frozen. So a list
//! of n routes is 8 bytes and n words, allocated at its exact size.

use std::alloc::{Layout, alloc, dealloc};
use std::mem::size_of;
use std::ptr::NonNull;

use crate::shard::word::Word;
#[cfg(loom)]
use crate::sync::epoch::Fate;
use crate::sync::{AtomicU64, Guard, Ordering, Reclaim, retire, step};

/// The most routes that one node may have.
pub(crate) const MAX_ROUTES_PER_NODE: usize = if cfg!(loom) { 3 } else { 64 };

#[repr(C, align(8))]
pub(crate) struct Header {
    len: u32,
    #[cfg(loom)]
    fate: Fate,
}

const WORDS_AT: usize = size_of::<Header>().next_multiple_of(align_of::<AtomicU64>());

fn layout(len: usize) -> Layout {
    let bytes = WORDS_AT + len * size_of::<AtomicU64>();
    Layout::from_size_align(bytes, align_of::<AtomicU64>().max(8)).expect("a list of 64 words fits into memory")
}

/// A list that nobody else knows yet; freed when it is dropped.
pub(crate) struct NewList(NonNull<Header>);

impl NewList {
    /// Copies `words`, newest first; `None` where there is no memory for them.
    pub(crate) fn new(words: &[Word]) -> Option<NewList> {
        // SAFETY: the layout has a header at least, so its size is not zero.
        let raw = unsafe { alloc(layout(words.len())) };
        let header = NonNull::new(raw.cast::<Header>())?;
        let new = Header {
            len: words.len() as u32,
            #[cfg(loom)]
            fate: Fate::default(),
        };
        // SAFETY: the allocation starts with room for a header, and is ours alone.
        unsafe { header.write(new) };
        // SAFETY: the layout has room for the words there.
        let first = unsafe { header.cast::<u8>().add(WORDS_AT) }.cast::<AtomicU64>();
        for (i, word) in words.iter().enumerate() {
            // SAFETY: as above.
            let at = unsafe { first.add(i) };
            // SAFETY: as above, and the allocation is ours alone.
            unsafe { at.write(AtomicU64::new(word.thawed().0)) };
        }
        Some(NewList(header))
    }

    /// The word that a record points to this list with.
    pub(crate) fn word(&self) -> Word {
        Word::spill(self.0.as_ptr().expose_provenance() as u64)
    }

    /// Leaves the list to the record that points to it now.
    pub(crate) fn publish(self) {
        std::mem::forget(self);
    }
}

impl Drop for NewList {
    fn drop(&mut self) {
        // SAFETY: it was never published, so nobody else can reach it.
        unsafe { Header::free(self.0.as_ptr()) };
    }
}

/// A list that a record points to, or pointed to while this thread was pinned.
#[derive(Clone, Copy)]
pub(crate) struct List<'g> {
    words: &'g [AtomicU64],
    header: NonNull<Header>,
}

impl<'g> List<'g> {
    /// The list of a SPILL word.
    ///
    /// # Safety
    ///
    /// `word` was loaded with Acquire from a record while `guard` was pinned.
    #[inline]
    pub(crate) unsafe fn of(word: Word, _guard: &'g Guard) -> List<'g> {
        let raw = std::ptr::with_exposed_provenance_mut::<Header>(word.address() as usize);
        // SAFETY: a SPILL word's address is that of a list (`NewList::word`), never null.
        let header = unsafe { NonNull::new_unchecked(raw) };
        // SAFETY: the list was reachable under the guard, so it is not freed before the guard goes (invariant 8).
        let head = unsafe { header.as_ref() };
        #[cfg(loom)]
        head.fate.assert_alive();
        // SAFETY: `len` words stand behind the header.
        let first = unsafe { header.cast::<u8>().add(WORDS_AT).cast::<AtomicU64>() };
        // SAFETY: as above; the words are atomics, initialised before the list was published.
        let words = unsafe { std::slice::from_raw_parts(first.as_ptr(), head.len as usize) };
        List { words, header }
    }

    /// The words, newest membership first.
    #[inline]
    pub(crate) fn words(self) -> &'g [AtomicU64] {
        self.words
    }

    /// Makes every word final, and returns them: refreshes that come later find a frozen word and replace the list.
    pub(crate) fn freeze(self, into: &mut smallvec::SmallVec<[Word; 8]>) {
        let frozen = Word(0).frozen().0;
        into.extend(self.words.iter().map(|word| {
            step("list: before a freeze");
            // AcqRel: this is where a refresh of the word comes before the freeze or fails; whoever replaces the list
            // sees what the refresh wrote.
            Word(word.fetch_or(frozen, Ordering::AcqRel)).thawed()
        }));
    }

    /// Frees the list once nobody can look at it any more.
    ///
    /// # Safety
    ///
    /// This thread's CAS made the record stop pointing to the list.
    pub(crate) unsafe fn retire(self, guard: &Guard) {
        // SAFETY: no record points to the list any more, so a thread that pins from now on cannot find it; it is
        // retired by the one thread that unlinked it.
        unsafe { retire(guard, self.header.as_ptr()) };
    }

    /// Frees the list of a SPILL word at once.
    ///
    /// # Safety
    ///
    /// Nobody else can reach the list, and the record that points to it is going away.
    pub(crate) unsafe fn free_at(word: Word) {
        // SAFETY: as the caller promises.
        unsafe { Header::free(std::ptr::with_exposed_provenance_mut(word.address() as usize)) };
    }
}

impl Reclaim for Header {
    fn after_grace(&self) {}

    unsafe fn free(object: *mut Self) {
        // SAFETY: the caller is the only one who knows the list.
        let len = unsafe { (*object).len } as usize;
        // Neither the header nor an atomic needs dropping outside of loom, and inside they hold nothing either.
        // SAFETY: `NewList::new` allocated it with this layout.
        unsafe { dealloc(object.cast(), layout(len)) };
    }

    #[cfg(loom)]
    fn fate(&self) -> &Fate {
        &self.fate
    }
}
