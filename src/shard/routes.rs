//! The routes of one record: reads them, and changes them with one CAS.

use smallvec::SmallVec;

use crate::feed::{Event, Reason};
use crate::layout::MAX_ROUTES_PER_NODE;
use crate::liveness::Liveness;
use crate::route_limit::Reservation;
use crate::shard::key::Key;
use crate::shard::list::{List, NewList};
use crate::shard::published::Published;
use crate::shard::slab::{Record, Slab};
use crate::shard::{CapacityError, Scope};
use crate::sync::{AtomicU64, Guard, Ordering, failpoint};
use crate::types::route::Added;
use crate::word::{LAST_RANK, State, Word};

/// LIVE words. Words of a list may have ranks instead of a state.
pub(crate) type Words = SmallVec<[Word; 8]>;

/// All routes of one record, without allocating.
pub(crate) type AllWords = SmallVec<[Word; MAX_ROUTES_PER_NODE]>;

/// How an operation changes a record's routes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    /// Refreshes the route through this proxy, or adds one.
    Add(u32),
    /// Refreshes the route through this proxy, if the route exists and is valid.
    Refresh(u32),
    /// Adds a route through this proxy that was last refreshed at `time`. Does nothing if the record has the route with
    /// a later refresh, or is full of routes with later refreshes.
    Restore { proxy: u32, time: u64 },
    /// Removes the route through this proxy.
    RemoveRoute(u32),
    /// Removes all routes.
    RemoveNode,
    /// Removes every route that [`Scope::is_kept`] does not keep.
    Sweep,
}

/// The result of a [`Change`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Changed {
    /// [`Change::Add`], [`Change::Refresh`] or [`Change::Restore`] has succeeded.
    Added(Added),
    /// There is no route for [`Change::Refresh`] to refresh.
    Absent,
    /// Another change has succeeded. It removed this many routes that could still be returned, and this many stale
    /// routes. A sweep counts how many of the stale routes were expired.
    Removed { valid: usize, stale: usize, expired: usize },
    /// The record is RETIRED: search for the key again.
    Retired,
    /// The record is moving to another slab: finish the move, and search for the key again.
    Frozen,
}

/// Counts a route that a proxy is about to get, unless the proxy or its client has its maximum. A snapshot's routes
/// count beyond the maximum.
fn reserve_for<P: Liveness>(what: Change, proxy: u32, proxies: &P) -> Result<(), CapacityError> {
    match what {
        Change::Restore { .. } => {
            proxies.count(proxy, 1);
            Ok(())
        }
        _ => proxies.reserve(proxy).map_err(CapacityError::RoutesOf),
    }
}

/// Returns the proxy that gets the first of `routes`, if the proxy had no route in `word` or in its frozen `list`.
///
/// Not inlined: removals and sweeps add no route.
#[inline(never)]
fn added_proxy(what: Change, routes: &[Word], word: Word, list: Option<List<'_>>) -> Option<u32> {
    let (Change::Add(proxy) | Change::Restore { proxy, .. }) = what else {
        return None;
    };
    if routes.first()?.proxy() != proxy {
        return None;
    }
    let had_route = match list {
        None => word.state() == State::Live && word.proxy() == proxy,
        // Relaxed: frozen words are final.
        Some(list) => list
            .words()
            .iter()
            .any(|word| Word(word.load(Ordering::Relaxed)).proxy() == proxy),
    };
    (!had_route).then_some(proxy)
}

/// Calls `each` with the routes that may be returned now, in the record's order. Returns whether the record still
/// belongs to its key: it is not RETIRED.
#[inline]
pub(crate) fn read<P: Liveness>(record: &Record, scope: &Scope<'_, P>, mut each: impl FnMut(Word)) -> bool {
    read_all(record, scope.guard, |word| {
        if scope.is_valid(word) {
            each(word);
        }
    })
}

/// Calls `each` with all routes, in the record's order. Returns whether the record still belongs to its key.
#[inline]
pub(crate) fn read_all(record: &Record, guard: &Guard, mut each: impl FnMut(Word)) -> bool {
    let word = record.load();
    match word.state() {
        State::Retired => return false,
        State::Dead => {}
        State::Live => each(word),
        State::Spill => {
            // SAFETY: `Record::load` loaded the word with Acquire under the guard (invariant 8).
            let list = unsafe { List::of(word, guard) };
            for word in list.words() {
                // Relaxed: a list's word publishes nothing but its own bits.
                each(Word(word.load(Ordering::Relaxed)).thawed());
            }
        }
    }
    true
}

/// Refreshes the route of a node with one route, like most writes. Returns whether the route is refreshed: losing to a
/// later time is success.
///
/// The caller has checked under this pin that the proxy takes routes, so this does not check again. If the proxy was
/// removed since, the removal counts as later.
#[inline]
pub(crate) fn refresh_only_route<P: Liveness>(
    record: Published<'_>,
    word: Word,
    proxy: u32,
    scope: &Scope<'_, P>,
) -> bool {
    word.is_live_through(proxy)
        && scope.is_fresh(word)
        && (word.time() >= scope.now || record.compare_exchange(word, Word::live(proxy, scope.now)).is_ok())
}

/// Changes a record's routes. The linearization point is the CAS that succeeds, or the load that shows that there is
/// nothing to change. Returns `place` if no route is inserted.
#[inline]
pub(crate) fn change<'a, K: Key, P: Liveness>(
    record: Published<'_>,
    what: Change,
    place: Option<Reservation<'a>>,
    slab: &Slab,
    scope: &Scope<'a, P>,
) -> Result<Changed, CapacityError> {
    let word = record.load();
    if let Change::Add(proxy) | Change::Refresh(proxy) = what
        && refresh_only_route(record, word, proxy, scope)
    {
        return Ok(Changed::Added(Added::Refreshed));
    }
    match what {
        Change::Add(proxy) if word == Word::DEAD => add_first::<K, P>(record, proxy, place, slab, scope),
        _ => change_any::<K, P>(record, what, place, slab, scope),
    }
}

/// [`Change::Add`] to a record that had no route a moment ago, like a new record.
#[inline(never)]
fn add_first<'a, K: Key, P: Liveness>(
    record: Published<'_>,
    proxy: u32,
    place: Option<Reservation<'a>>,
    slab: &Slab,
    scope: &Scope<'a, P>,
) -> Result<Changed, CapacityError> {
    let place = match place {
        Some(place) => place,
        None => Reservation::new(scope.route_limit).ok_or(CapacityError::Routes)?,
    };
    scope.proxies.reserve(proxy).map_err(CapacityError::RoutesOf)?;
    failpoint("change: before the CAS");
    if record
        .compare_exchange(Word::DEAD, Word::live(proxy, scope.now))
        .is_err()
    {
        scope.proxies.count(proxy, -1);
        return change_any::<K, P>(record, Change::Add(proxy), Some(place), slab, scope);
    }
    place.use_up();
    failpoint("change: done, not counted");
    slab.count_live(false, true);
    mark::<K, P>(record, Reason::Added, slab, scope);
    Ok(Changed::Added(Added::Inserted))
}

/// [`change`] of a record with any number of routes.
#[inline(never)]
fn change_any<'a, K: Key, P: Liveness>(
    record: Published<'_>,
    what: Change,
    mut place: Option<Reservation<'a>>,
    slab: &Slab,
    scope: &Scope<'a, P>,
) -> Result<Changed, CapacityError> {
    let mut word = record.load();
    let mut routes = AllWords::new();
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
                // The guard keeps the list (invariant 8).
                let list = unsafe { List::of(word, scope.guard) };
                if let Some(done) = try_in_place(list, what, &mut place, scope)? {
                    return Ok(done);
                }
                list.freeze(&mut routes);
                failpoint("list: frozen");
                Some(list)
            }
        };

        let before = routes.len();
        let changed = apply(what, &mut routes, scope);
        let after = routes.len();
        if list.is_none() && after == before && routes.first().is_none_or(|&route| route == word) {
            return Ok(changed);
        }

        // Reserve the place before the CAS, so that a refused route is never visible.
        if after > before && place.is_none() {
            place = Some(Reservation::new(scope.route_limit).ok_or(CapacityError::Routes)?);
        }
        let added = match changed {
            Changed::Added(Added::Inserted) => added_proxy(what, &routes, word, list),
            _ => None,
        };
        // Before the new list, so that a refused route allocates nothing.
        if let Some(proxy) = added {
            reserve_for(what, proxy, scope.proxies)?;
        }
        let (new, new_list) = match routes.as_slice() {
            [] => (Word::DEAD, None),
            [only] => (*only, None),
            several => match NewList::new(several) {
                Some(list) => (list.word(), Some(list)),
                None => {
                    added.into_iter().for_each(|proxy| scope.proxies.count(proxy, -1));
                    return Err(CapacityError::Memory);
                }
            },
        };
        failpoint("change: before the CAS");
        match record.compare_exchange(word, new) {
            Ok(()) => {
                failpoint("change: done, not counted");
                if let Some(list) = new_list {
                    list.publish();
                }
                if after > before
                    && let Some(place) = place
                {
                    place.use_up();
                }
                scope.route_limit.release(before.saturating_sub(after));
                slab.count_live(before > 0, after > 0);
                let lost = note_removed(word, list, changed, &routes, scope);
                if let Some(list) = list {
                    // SAFETY: this thread's CAS above replaced the record's word, and so unlinked the list (invariant
                    // 8).
                    unsafe { list.retire(scope.guard) };
                }
                // Last: it calls the wakers of subscribers, which may panic.
                if let Some(reason) = reason(what, changed, lost) {
                    mark::<K, P>(record, reason, slab, scope);
                }
                return Ok(changed);
            }
            Err(won) => {
                if let Some(proxy) = added {
                    scope.proxies.count(proxy, -1);
                }
                word = won;
            }
        }
    }
}

/// Reports the removed routes to their proxies: the routes of `word`, or of its frozen `list`, that are not among
/// `routes`. Returns whether there were any.
fn note_removed<P: Liveness>(
    word: Word,
    list: Option<List<'_>>,
    changed: Changed,
    routes: &[Word],
    scope: &Scope<'_, P>,
) -> bool {
    let note_one = |gone: Word| {
        let is_lost = routes.iter().all(|route| route.proxy() != gone.proxy());
        if is_lost {
            // An expired route counted for its proxy until it expired.
            let until = gone.time().saturating_add(scope.keep_alive).min(scope.now);
            scope.proxies.left(gone.proxy(), until);
        }
        is_lost
    };
    match list {
        None => word.state() == State::Live && note_one(word),
        Some(list) => {
            // Nearly always no route is lost. Comparing every pair of routes would cost more than the rest of the
            // change.
            let inserted = usize::from(changed == Changed::Added(Added::Inserted));
            if routes.len() - inserted == list.words().len() {
                return false;
            }
            // Relaxed: frozen words are final.
            let former = list.words().iter().map(|word| Word(word.load(Ordering::Relaxed)));
            former.fold(false, |lost, gone| note_one(gone) | lost)
        }
    }
}

/// Marks a change of the record's routes in the feed, after the CAS that made the change.
fn mark<K: Key, P>(record: Published<'_>, reason: Reason, slab: &Slab, scope: &Scope<'_, P>) {
    scope.feed.mark(usize::from(slab.shard), scope.guard, || Event::Node {
        node: record.node::<K>(),
        reason,
    });
}

/// The reason for marking a change in the feed, or `None` for no mark. `lost`: a proxy had a route before the change,
/// and has none now.
fn reason(what: Change, changed: Changed, lost: bool) -> Option<Reason> {
    match (what, changed) {
        (_, Changed::Added(Added::Inserted)) => Some(Reason::Added),
        // A refresh that replaced the list has removed its stale routes, so no sweeper will find and mark them.
        (_, Changed::Added(Added::Refreshed)) => lost.then_some(Reason::Expired),
        (_, Changed::Removed { valid: 0, stale: 0, .. }) => None,
        (Change::Sweep, Changed::Removed { .. }) => Some(Reason::Expired),
        (_, Changed::Removed { .. }) => Some(Reason::Removed),
        _ => None,
    }
}

/// Makes a change without a new list, if possible. A refresh is one CAS on the route's own word, and a change without
/// effect writes nothing. `None`: the list has to be replaced. Reserves a `place` for a further route, or fails.
///
/// The words are read one by one, but the answer holds at one instant: a list's membership never changes, and times
/// only grow. So a proxy that is absent now was absent when the record's word was loaded, and a route that is expired
/// now was expired then. A route that was seen valid, or later than some time, still is when all words are read.
fn try_in_place<'a, P: Liveness>(
    list: List<'_>,
    what: Change,
    place: &mut Option<Reservation<'a>>,
    scope: &Scope<'a, P>,
) -> Result<Option<Changed>, CapacityError> {
    // Relaxed: a list's word publishes nothing but its own bits.
    let words = || {
        list.words()
            .iter()
            .map(|word| Word(word.load(Ordering::Relaxed)).thawed())
    };
    let unchanged = Changed::Removed {
        valid: 0,
        stale: 0,
        expired: 0,
    };
    Ok(match what {
        Change::Add(proxy) => match refresh_in_place(list, proxy, scope) {
            Refreshed::Done => Some(Changed::Added(Added::Refreshed)),
            // The new route would be displaced at once.
            Refreshed::Absent if is_full_of_later(words(), scope.now, scope) => Some(Changed::Added(Added::Inserted)),
            Refreshed::Absent => {
                reserve_before_freeze(words(), proxy, place, scope)?;
                None
            }
            Refreshed::Expired | Refreshed::MustReplace => None,
        },
        Change::Refresh(proxy) => match refresh_in_place(list, proxy, scope) {
            Refreshed::Done => Some(Changed::Added(Added::Refreshed)),
            Refreshed::Absent | Refreshed::Expired => Some(Changed::Absent),
            Refreshed::MustReplace => None,
        },
        Change::Restore { proxy, time } => {
            let known = words().find(|word| word.proxy() == proxy);
            let gives_way = match known {
                Some(known) => known.time() < time,
                None => !is_full_of_later(words(), time.saturating_sub(1), scope),
            };
            let all_kept = words().all(|word| scope.is_kept(word));
            (all_kept && !gives_way).then_some(Changed::Added(Added::Refreshed))
        }
        Change::Sweep => words().all(|word| scope.is_kept(word)).then_some(unchanged),
        Change::RemoveRoute(proxy) => (!words().any(|word| word.proxy() == proxy)).then_some(unchanged),
        Change::RemoveNode => None,
    })
}

/// Reserves a place for a further route of a list, before the list is frozen. So a refused route leaves the list as it
/// is. (If the list was frozen, the next refresh would replace the list with an equal copy.)
fn reserve_before_freeze<'a, P: Liveness>(
    mut words: impl ExactSizeIterator<Item = Word>,
    proxy: u32,
    place: &mut Option<Reservation<'a>>,
    scope: &Scope<'a, P>,
) -> Result<(), CapacityError> {
    scope.proxies.has_room(proxy).map_err(CapacityError::RoutesOf)?;
    // In a full list, or in a list with a stale route, the new route takes the place of another route.
    if place.is_none() && words.len() < MAX_ROUTES_PER_NODE {
        *place = Reservation::new(scope.route_limit);
        if place.is_none() && words.all(|word| scope.is_kept(word)) {
            return Err(CapacityError::Routes);
        }
    }
    Ok(())
}

/// The result of a refresh in place.
enum Refreshed {
    Done,
    /// The list has no route of the proxy.
    Absent,
    /// The route is not valid. A refresh counts as an insertion, and puts the route first.
    Expired,
    MustReplace,
}

/// Refreshes the route of a proxy with one CAS on its word.
///
/// Of the routes that were refreshed in one tick, the latest comes first. So the word gets a rank that puts it before
/// the other words of this tick. A refresh that returned before this refresh began is visible here, and comes after
/// this one. Other refreshes overlap this one, and may come before or after it. When the ranks of a tick are used up,
/// the list must be replaced by a list in the right order, without ranks.
fn refresh_in_place<P: Liveness>(list: List<'_>, proxy: u32, scope: &Scope<'_, P>) -> Refreshed {
    let words = list.words();
    // Relaxed, here and below: a list's word publishes nothing but its own bits.
    let load = |word: &AtomicU64| Word(word.load(Ordering::Relaxed));
    let Some(own) = words.iter().position(|word| load(word).proxy() == proxy) else {
        return Refreshed::Absent;
    };
    loop {
        let word = load(&words[own]);
        if !scope.is_valid(word.thawed()) {
            return Refreshed::Expired;
        }
        let rank = words
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != own)
            .map(|(at, other)| (at, load(other)))
            .filter(|(_, other)| other.time() == scope.now)
            // Among equal ranks, the position decides.
            .map(|(at, other)| other.rank() + u64::from(at < own))
            .max()
            .unwrap_or(0);
        if word.time() > scope.now || word.time() == scope.now && word.rank() >= rank {
            return Refreshed::Done;
        }
        if rank > LAST_RANK || word.is_frozen() {
            return Refreshed::MustReplace;
        }
        let new = Word::live(proxy, scope.now).ranked(rank);
        // AcqRel: pairs with the `fetch_or` in `List::freeze`. Release: the freezing thread sees the earlier writes of
        // this thread, as with a record's word. Relaxed on failure: a list's word publishes nothing but its own bits.
        let exchanged = words[own].compare_exchange(word.0, new.0, Ordering::AcqRel, Ordering::Relaxed);
        if exchanged.is_ok() {
            return Refreshed::Done;
        }
    }
}

/// Whether a list has no place for a route of this `time`: the list is full, and all its routes must stay and are
/// later.
fn is_full_of_later<P: Liveness>(words: impl ExactSizeIterator<Item = Word>, time: u64, scope: &Scope<'_, P>) -> bool {
    words.len() == MAX_ROUTES_PER_NODE && { words }.all(|word| word.time() > time && scope.is_kept(word))
}

/// Applies a change to `routes`: all routes of the record, final, the latest addition first.
fn apply<P: Liveness>(what: Change, routes: &mut AllWords, scope: &Scope<'_, P>) -> Changed {
    let before = routes.len();
    match what {
        Change::Refresh(proxy)
            if !routes
                .iter()
                .any(|route| route.proxy() == proxy && scope.is_valid(*route)) =>
        {
            Changed::Absent
        }
        Change::Add(proxy) | Change::Refresh(proxy) => put(proxy, scope.now, Tie::Newer, routes, scope),
        Change::Restore { proxy, time } => put(proxy, time, Tie::Older, routes, scope),
        Change::RemoveRoute(proxy) => {
            let valid = routes
                .iter()
                .filter(|route| route.proxy() == proxy && scope.is_valid(**route))
                .count();
            routes.retain(|route| route.proxy() != proxy);
            Changed::Removed {
                valid,
                stale: before - routes.len() - valid,
                expired: 0,
            }
        }
        Change::RemoveNode => {
            let valid = routes.iter().filter(|route| scope.is_valid(**route)).count();
            routes.clear();
            Changed::Removed {
                valid,
                stale: before - valid,
                expired: 0,
            }
        }
        Change::Sweep => {
            let expired = routes.iter().filter(|route| !scope.is_young(**route)).count();
            routes.retain(|route| scope.is_kept(*route));
            Changed::Removed {
                valid: 0,
                stale: before - routes.len(),
                expired,
            }
        }
    }
}

/// Whether a route precedes or follows the routes that were refreshed in the same tick.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tie {
    Newer,
    Older,
}

/// Puts a route of `proxy` that was refreshed at `time` first. Does nothing if the proxy's own route is later, or if a
/// later route would be displaced.
///
/// The thread may have been stalled since `time`, and `time` may have expired meanwhile. A route that is displaced is
/// not later than `time`, so that route has expired, too: a stalled addition displaces no valid route.
fn put<P: Liveness>(proxy: u32, time: u64, tie: Tie, routes: &mut AllWords, scope: &Scope<'_, P>) -> Changed {
    // Remove stale routes first, so that they never take the place of a valid route.
    routes.retain(|route| scope.is_kept(*route));
    let is_before = |route: Word| match tie {
        Tie::Newer => route.time() <= time,
        Tie::Older => route.time() < time,
    };
    let known = routes.iter().position(|route| route.proxy() == proxy);
    let added = match known {
        Some(at) if scope.is_valid(routes[at]) => Added::Refreshed,
        _ => Added::Inserted,
    };
    // The route to replace: the route of the same proxy, or the stalest route if there is no room.
    let gives_way = known.or_else(|| (routes.len() == MAX_ROUTES_PER_NODE).then(|| stalest(routes)));
    if let Some(at) = gives_way {
        if !is_before(routes[at]) {
            return Changed::Added(if tie == Tie::Older { Added::Refreshed } else { added });
        }
        routes.remove(at);
    }
    routes.insert(0, Word::live(proxy, time));
    Changed::Added(added)
}

/// The position of the last of the oldest routes. The list must not be empty.
fn stalest(routes: &[Word]) -> usize {
    (0..routes.len())
        .rev()
        .min_by_key(|&at| routes[at].time())
        .expect("a full list is not empty")
}
