//! The routes of one record: reading them, and changing them with one CAS.

use smallvec::SmallVec;

use crate::feed::{Event, Reason};
use crate::key::Key;
use crate::proxies::Liveness;
use crate::route::Added;
use crate::shard::list::{List, MAX_ROUTES_PER_NODE, NewList};
use crate::shard::slab::{Record, Slab};
use crate::shard::word::{State, Word};
use crate::shard::{Refused, Scope};
use crate::sync::{Guard, Ordering, step};
use crate::table::SHARDS;

/// LIVE words, newest first.
pub(crate) type Words = SmallVec<[Word; 8]>;

/// What an operation wants a record's routes to become.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// A refresh of the route through this proxy, or a new one.
    Add(u32),
    /// A refresh of the route through this proxy, if it is there and valid.
    Refresh(u32),
    /// A route through this proxy that was last refreshed at `time`, unless it is there and was refreshed since, or the
    /// record is full of routes that were.
    Restore { proxy: u32, time: u64 },
    /// No route through this proxy.
    RemoveRoute(u32),
    /// No route.
    RemoveNode,
    /// No expired route, and none of a proxy that is gone.
    Sweep,
}

/// What came of a [`Change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    /// [`Change::Add`], [`Change::Refresh`] or [`Change::Restore`] was done.
    Added(Added),
    /// There is nothing that [`Change::Refresh`] could refresh.
    Absent,
    /// One of the other changes was done; it took away so many routes that could still be returned, and so many that
    /// could not.
    Removed { valid: usize, stale: usize },
    /// The record is RETIRED: look for the key again.
    Retired,
    /// The record is moving to another slab: finish that, and look for the key again.
    Frozen,
}

/// Hands the routes that may be returned now to `each`, in the record's order; tells whether the key is this record's.
#[inline]
pub(crate) fn read<P: Liveness>(record: &Record, scope: &Scope<'_, P>, mut each: impl FnMut(Word)) -> bool {
    read_all(record, scope.guard, |word| {
        if scope.is_valid(word) {
            each(word);
        }
    })
}

/// Hands all routes to `each`, in the record's order; tells whether the key is this record's.
#[inline]
pub(crate) fn read_all(record: &Record, guard: &Guard, mut each: impl FnMut(Word)) -> bool {
    let word = record.load();
    match word.state() {
        State::Retired => return false,
        State::Dead => {}
        State::Live => each(word),
        State::Spill => {
            // SAFETY: the word was loaded with Acquire under the guard.
            let list = unsafe { List::of(word, guard) };
            for word in list.words() {
                // Relaxed: a list's words have no more to them than their own bits.
                each(Word(word.load(Ordering::Relaxed)).thawed());
            }
        }
    }
    true
}

/// Changes a record's routes: the linearization point is the CAS that succeeds, or the load that shows that there is
/// nothing to change.
#[inline]
pub(crate) fn change<K: Key, P: Liveness>(
    record: &Record,
    what: Change,
    slab: &Slab,
    scope: &Scope<'_, P>,
) -> Result<Changed, Refused> {
    let word = record.load();
    // A refresh of a node with one route, which is what most writes are. Losing to a later time is success. The proxy was
    // found to take routes under this pin, so it need not be looked at again: if it was removed since, that came after.
    if let Change::Add(proxy) | Change::Refresh(proxy) = what
        && word.state() == State::Live
        && !word.is_frozen()
        && word.proxy() == proxy
        && scope.is_fresh(word)
        && (word.time() >= scope.now || record.compare_exchange(word, Word::live(proxy, scope.now)).is_ok())
    {
        return Ok(Changed::Added(Added::Refreshed));
    }
    // The first route of a node, as of one that was just inserted.
    if let Change::Add(proxy) = what
        && word == Word::DEAD
        && scope.count.reserve(1)
    {
        step("change: before the CAS");
        if record.compare_exchange(word, Word::live(proxy, scope.now)).is_ok() {
            step("change: done, not counted");
            slab.count_live(false, true);
            tell::<K, P>(record, Reason::Added, scope);
            return Ok(Changed::Added(Added::Inserted));
        }
        scope.count.release(1);
    }
    change_any::<K, P>(record, what, slab, scope)
}

/// [`change`], whatever the record holds.
#[inline(never)]
fn change_any<K: Key, P: Liveness>(
    record: &Record,
    what: Change,
    slab: &Slab,
    scope: &Scope<'_, P>,
) -> Result<Changed, Refused> {
    let mut word = record.load();
    let (mut former, mut routes) = (Words::new(), Words::new());
    loop {
        routes.clear();
        if word.is_frozen() && word.state() != State::Retired {
            return Ok(Changed::Frozen);
        }
        let list = match word.state() {
            State::Retired => return Ok(Changed::Retired),
            State::Dead => None,
            State::Live => {
                routes.push(word);
                None
            }
            State::Spill => {
                // SAFETY: the word was loaded with Acquire under the scope's guard, by `load` or by a CAS that failed.
                let list = unsafe { List::of(word, scope.guard) };
                if let Some(done) = try_in_place(list, what, scope) {
                    return Ok(done);
                }
                list.freeze(&mut routes);
                step("list: frozen");
                Some(list)
            }
        };

        former.clone_from(&routes);
        let changed = apply(what, &mut routes, scope);
        let (before, after) = (former.len(), routes.len());
        if list.is_none() && after == before && routes.first().is_none_or(|&route| route == word) {
            return Ok(changed);
        }

        // The limits bind before the CAS, so that a refused route never shows.
        let reserved = after.saturating_sub(before);
        if !scope.count.reserve(reserved) {
            return Err(Refused::Routes);
        }
        let (new, new_list) = match routes.as_slice() {
            [] => (Word::DEAD, None),
            [only] => (*only, None),
            several => match NewList::new(several) {
                Some(list) => (list.word(), Some(list)),
                None => {
                    scope.count.release(reserved);
                    return Err(Refused::Memory);
                }
            },
        };
        step("change: before the CAS");
        match record.compare_exchange(word, new) {
            Ok(()) => {
                step("change: done, not counted");
                if let Some(list) = new_list {
                    list.publish();
                }
                scope.count.release(before.saturating_sub(after));
                slab.count_live(before > 0, after > 0);
                let mut lost = false;
                for gone in former
                    .iter()
                    .filter(|gone| routes.iter().all(|route| route.proxy() != gone.proxy()))
                {
                    lost = true;
                    // A route that is stale was a proxy's until it expired.
                    scope.proxies.left(
                        gone.proxy(),
                        scope.now.min(gone.time().saturating_add(scope.keep_alive)),
                    );
                }
                if let Some(reason) = reason(what, changed, lost) {
                    tell::<K, P>(record, reason, scope);
                }
                if let Some(list) = list {
                    // SAFETY: the CAS above unlinked it.
                    unsafe { list.retire(scope.guard) };
                }
                return Ok(changed);
            }
            Err(won) => {
                scope.count.release(reserved);
                word = won;
            }
        }
    }
}

/// Tells the feed of a change of the record's routes, after the CAS that made it.
fn tell<K: Key, P>(record: &Record, reason: Reason, scope: &Scope<'_, P>) {
    scope.feed.mark(ring::<K>(scope.shard), scope.guard, || Event::Node {
        // SAFETY: an index has the record, and the guard is pinned.
        node: unsafe { K::node(record.key()) },
        reason,
    });
}

/// Why the feed tells of a change, if it does. `lost`: the record had a route of a proxy of which it has none now.
fn reason(what: Change, changed: Changed, lost: bool) -> Option<Reason> {
    match (what, changed) {
        (_, Changed::Added(Added::Inserted)) => Some(Reason::Added),
        // A refresh that had to replace the list took the stale routes out of it, which no sweeper will find.
        (_, Changed::Added(Added::Refreshed)) => lost.then_some(Reason::Expired),
        (_, Changed::Removed { valid: 0, stale: 0 }) => None,
        (Change::Sweep, Changed::Removed { .. }) => Some(Reason::Expired),
        (_, Changed::Removed { .. }) => Some(Reason::Removed),
        _ => None,
    }
}

/// The feed's ring of a shard.
pub(crate) fn ring<K: Key>(shard: usize) -> usize {
    shard + if K::IS_NAME { SHARDS } else { 0 }
}

/// Does without a new list where it can: a refresh is one CAS on the route's own word, and a sweep of routes that are
/// all valid nothing at all. `None`: the list has to be replaced.
fn try_in_place<P: Liveness>(list: List<'_>, what: Change, scope: &Scope<'_, P>) -> Option<Changed> {
    match what {
        Change::Add(proxy) | Change::Refresh(proxy) => {
            let words = list.words();
            let mut tied = false;
            for slot in words {
                // Relaxed: as in `read`.
                let mut word = Word(slot.load(Ordering::Relaxed));
                while word.proxy() == proxy {
                    if !scope.is_valid(word.thawed()) {
                        // A route that comes back counts as inserted, and goes first.
                        return None;
                    }
                    // A tie is broken by position, so a refresh that is not the first of its tick moves forward.
                    if word.time() > scope.now || word.time() == scope.now && !tied {
                        return Some(Changed::Added(Added::Refreshed));
                    }
                    if tied || word.is_frozen() {
                        return None;
                    }
                    let new = Word::live(proxy, scope.now);
                    // AcqRel: so that a freeze that comes after has seen all that this thread did before, as with a
                    // record's word; the list's membership is not ordered by it. Relaxed on failure: as in `read`.
                    match slot.compare_exchange(word.0, new.0, Ordering::AcqRel, Ordering::Relaxed) {
                        Ok(_) => return Some(Changed::Added(Added::Refreshed)),
                        Err(won) => word = Word(won),
                    }
                }
                tied |= word.time() == scope.now;
            }
            None
        }
        Change::Sweep => {
            // Relaxed: as in `read`.
            let all_valid = list
                .words()
                .iter()
                .all(|w| scope.is_valid(Word(w.load(Ordering::Relaxed)).thawed()));
            all_valid.then_some(Changed::Removed { valid: 0, stale: 0 })
        }
        Change::RemoveRoute(proxy) => {
            // Relaxed: as in `read`; membership does not change.
            let has = |w: &crate::sync::AtomicU64| Word(w.load(Ordering::Relaxed)).proxy() == proxy;
            (!list.words().iter().any(has)).then_some(Changed::Removed { valid: 0, stale: 0 })
        }
        Change::RemoveNode | Change::Restore { .. } => None,
    }
}

/// The sequential meaning of a change: `routes` are all that the record has, final, the latest addition first.
fn apply<P: Liveness>(what: Change, routes: &mut Words, scope: &Scope<'_, P>) -> Changed {
    let before = routes.len();
    match what {
        Change::Refresh(proxy)
            if !routes
                .iter()
                .any(|route| route.proxy() == proxy && scope.is_valid(*route)) =>
        {
            Changed::Absent
        }
        Change::Add(proxy) | Change::Refresh(proxy) => {
            // Stale routes go when others come, so that they never take a valid one's place.
            routes.retain(|route| scope.is_valid(*route));
            let known = routes.iter().position(|route| route.proxy() == proxy);
            let time = known.map_or(scope.now, |at| routes.remove(at).time().max(scope.now));
            if known.is_none() && routes.len() == MAX_ROUTES_PER_NODE {
                routes.remove(stalest(routes));
            }
            routes.insert(0, Word::live(proxy, time));
            Changed::Added(if known.is_some() {
                Added::Refreshed
            } else {
                Added::Inserted
            })
        }
        Change::Restore { proxy, time } => {
            routes.retain(|route| scope.is_valid(*route));
            let known = routes.iter().position(|route| route.proxy() == proxy);
            // What gives way: the same route, or where there is no room, the stalest one.
            let gives_way = known.or_else(|| (routes.len() == MAX_ROUTES_PER_NODE).then(|| stalest(routes)));
            if let Some(at) = gives_way {
                if routes[at].time() >= time {
                    return Changed::Added(Added::Refreshed);
                }
                routes.remove(at);
            }
            routes.insert(0, Word::live(proxy, time));
            Changed::Added(if known.is_some() {
                Added::Refreshed
            } else {
                Added::Inserted
            })
        }
        Change::RemoveRoute(proxy) => {
            let valid = routes
                .iter()
                .filter(|route| route.proxy() == proxy && scope.is_valid(**route))
                .count();
            routes.retain(|route| route.proxy() != proxy);
            Changed::Removed {
                valid,
                stale: before - routes.len() - valid,
            }
        }
        Change::RemoveNode => {
            let valid = routes.iter().filter(|route| scope.is_valid(**route)).count();
            routes.clear();
            Changed::Removed {
                valid,
                stale: before - valid,
            }
        }
        Change::Sweep => {
            routes.retain(|route| scope.is_valid(*route));
            Changed::Removed {
                valid: 0,
                stale: before - routes.len(),
            }
        }
    }
}

/// Where the last of the oldest routes is, in a list that is not empty.
fn stalest(routes: &Words) -> usize {
    (0..routes.len())
        .rev()
        .min_by_key(|&at| routes[at].time())
        .expect("a full list is not empty")
}
