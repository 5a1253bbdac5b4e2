//! The state machine of a replica: which tracker to watch, when to watch again, and how old the copy is.
//!
//! # How old the copy is
//!
//! A message proves little about the present: it may have waited in the tracker or on the way. So the machine asks the
//! tracker for the latest place in its changes at regular intervals, in a *probe*. When the copy has reached that
//! place, it has every change that was logged before the probe was sent. A snapshot has every change before its watch
//! was sent. [`View::staleness`] is the time since the latest such moment.

use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use nodetracker::NodeId;
use nodetracker_proto::v1;
use nodetracker_proto::v1::watch_response::Message;

use crate::backoff::{Backoff, Limits, SHORTEST};
use crate::clock::bounded;
use crate::replica::copy::{ApplyError, TableCopy, Writer};
use crate::tracker::Route;

/// Records of the table that a step of the sweeper visits.
const SWEEP_STEP: usize = 1 << 16;

/// The times of a replica.
#[derive(Debug, Clone, Copy)]
pub struct ReplicaTimes {
    /// How often the replica asks how far behind it is, at least a millisecond. [`View::staleness`] stays below this
    /// and a round trip while the replica keeps up.
    pub probe_interval: Duration,
    /// The replica ends a watch that is silent for this time. Trackers send a message at least every 25 seconds.
    pub silence_limit: Duration,
    /// The waits after a watch has ended. After a watch that has lasted for `backoff.max`, the waits begin again with
    /// `backoff.base`.
    pub backoff: Limits,
}

impl Default for ReplicaTimes {
    /// A probe every 5 s, 40 s of silence, and the default backoff.
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_secs(5),
            silence_limit: Duration::from_secs(40),
            backoff: Limits::default(),
        }
    }
}

/// What comes in from the tracker.
#[derive(Debug)]
pub enum Input {
    /// A message of the watch.
    Message(v1::WatchResponse),
    /// The watch has ended, or could not begin. The text is the reason.
    Ended(String),
    /// The answer to [`Transmit::Probe`]; `None` if there was none.
    Probed(Option<v1::WatchPlace>),
}

/// What goes out to the tracker.
#[derive(Debug, Clone, PartialEq)]
pub enum Transmit {
    /// Begin this watch. The former watch and its probe have ended.
    Watch {
        /// The position of the tracker in the list of trackers.
        tracker: usize,
        /// The call's message.
        request: v1::WatchRequest,
    },
    /// Ask the watched tracker for the latest place in its changes.
    Probe,
    /// End the watch and its probe.
    Close,
}

/// What happened, for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The replica has the table of this tracker, and follows it.
    Following {
        /// The position of the tracker in the list of trackers.
        tracker: usize,
    },
    /// The watch of this tracker has ended.
    Ended {
        /// The position of the tracker in the list of trackers.
        tracker: usize,
        /// Why.
        reason: String,
    },
}

/// Whether a replica has a copy, and follows the tracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Status {
    /// The first snapshot is not complete, so look-ups have no answer.
    #[default]
    Starting,
    /// The copy follows a tracker's changes.
    Following,
    /// The replica serves the last copy while it has no watch, or while a new snapshot comes.
    Behind,
}

/// Figures of a replica, counted since its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// The present status.
    pub status: Status,
    /// The position of the watched tracker, or of the next tracker to watch, in the list of trackers.
    pub tracker: usize,
    /// Routes of the copy, including those of removed proxies that were not swept yet.
    pub routes: usize,
    /// Messages that were applied.
    pub messages: u64,
    /// Snapshots that became complete.
    pub snapshots: u64,
    /// Watches that resumed at the place of the watch before, without a snapshot.
    pub resumes: u64,
    /// Watches that could not resume, because the tracker had dropped changes that the replica lacked.
    pub lost_places: u64,
    /// Resyncs of parts or of the proxies that began.
    pub resyncs: u64,
    /// Watches that ended.
    pub ended: u64,
}

/// What readers see of a replica.
#[derive(Debug)]
pub struct View {
    copy: ArcSwapOption<TableCopy>,
    /// The wall-clock time at `origin`, the machine's first `now`.
    wall: SystemTime,
    origin: Instant,
    /// Nanoseconds from `origin` to the moment before which the copy lacks no change.
    complete_until: AtomicU64,
}

impl View {
    /// Returns the routes of a node, in the tracker's order; `None` until the first snapshot is complete.
    #[must_use]
    pub fn look_up(&self, node: &NodeId) -> Option<Vec<Route>> {
        Some(self.copy.load().as_ref()?.look_up(node))
    }

    /// Returns how far the replica may be behind the tracker: the replica has every change that the tracker logged
    /// longer ago. `None` until the first snapshot is complete.
    ///
    /// To bound the age of an answer, read the staleness *before* the look-up. A tracker logs a change some
    /// milliseconds after it was made. If the tracker itself lost changes of a part of the nodes, these nodes may be
    /// older until the part's resync begins; see `WatchService.Watch`. On Linux, the staleness leaves out the time for
    /// which this machine was suspended.
    #[must_use]
    pub fn staleness(&self, now: Instant) -> Option<Duration> {
        // Acquire: pairs with the store in `set_complete_until`, so that a later look-up finds the changes.
        let nanos = self.complete_until.load(Ordering::Acquire);
        self.copy.load().as_ref()?;
        Some(now.saturating_duration_since(self.origin + Duration::from_nanos(nanos)))
    }

    /// The time on the copy's clock, which [`Route::last_refresh`] has.
    pub(super) fn clock(&self, now: Instant) -> SystemTime {
        self.wall + now.saturating_duration_since(self.origin)
    }

    /// For the only writer, after the copy has the changes.
    fn set_complete_until(&self, moment: Instant) {
        let nanos = moment.saturating_duration_since(self.origin).as_nanos();
        let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
        // Release: pairs with `staleness`.
        self.complete_until.fetch_max(nanos, Ordering::Release);
    }
}

#[derive(Debug)]
enum State {
    /// Without a watch until this moment.
    Waiting(Instant),
    Watching {
        /// When the request was sent.
        since: Instant,
        /// When the last message came.
        heard: Instant,
        probe: Probe,
    },
}

#[derive(Debug, Clone, Copy)]
enum Probe {
    /// The copy has no place yet.
    Unplaced,
    Due(Instant),
    /// Sent at this moment, without an answer yet.
    Sent(Instant),
    /// Sent at this moment, and answered with a place that the copy has not reached yet.
    Answered(Instant, v1::WatchPlace),
}

impl Probe {
    fn is_due(self, now: Instant) -> bool {
        matches!(self, Probe::Due(due) if due <= now)
    }
}

/// The state machine of a replica.
#[derive(Debug)]
pub struct Machine {
    times: ReplicaTimes,
    trackers: usize,
    now: Instant,
    state: State,
    backoff: Backoff,
    writer: Writer,
    view: Arc<View>,
    stats: Stats,
    closes: bool,
    events: VecDeque<Event>,
}

/// The most events that wait to be polled. Later events are dropped.
const MAX_EVENTS: usize = 64;

impl Machine {
    /// Creates the machine of a replica that watches one of `trackers` trackers. `wall` is the wall-clock time of
    /// `now`, for [`Route::last_refresh`]. The seed is for the backoff.
    #[must_use]
    pub fn new(now: Instant, wall: SystemTime, trackers: usize, times: ReplicaTimes, seed: u64) -> Self {
        let times = ReplicaTimes {
            probe_interval: bounded(times.probe_interval).max(SHORTEST),
            silence_limit: bounded(times.silence_limit),
            backoff: times.backoff.bounded(),
        };
        Self {
            times,
            trackers,
            now,
            state: State::Waiting(now),
            backoff: Backoff::new(times.backoff, seed),
            writer: Writer::new(wall),
            view: Arc::new(View {
                copy: ArcSwapOption::empty(),
                wall,
                origin: now,
                complete_until: AtomicU64::new(0),
            }),
            stats: Stats::default(),
            closes: false,
            events: VecDeque::new(),
        }
    }

    /// What readers see.
    #[must_use]
    pub fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// The figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let copy = self.view.copy.load();
        Stats {
            status: match &self.state {
                _ if copy.is_none() => Status::Starting,
                State::Watching { probe, .. } if !matches!(probe, Probe::Unplaced) => Status::Following,
                _ => Status::Behind,
            },
            routes: copy.as_ref().map_or(0, |copy| copy.route_count()),
            ..self.stats
        }
    }

    /// Takes an input. An input that belongs to no watch is ignored.
    pub fn handle(&mut self, now: Instant, input: Input) {
        self.advance(now);
        let State::Watching { heard, probe, .. } = &mut self.state else {
            return;
        };
        match input {
            Input::Ended(reason) => self.end(reason),
            Input::Message(response) => {
                *heard = now;
                self.stats.messages += 1;
                // A message of a newer contract is ignored.
                if let Some(message) = response.message
                    && let Err(error) = self.apply(message)
                {
                    self.writer = self.new_writer();
                    self.closes = true;
                    // The same tracker might send the same message again. Another tracker might not.
                    self.unplace();
                    self.end(error.to_string());
                }
            }
            Input::Probed(answer) => {
                if let Probe::Sent(sent) = *probe {
                    let own = self.writer.place.map(|own| own.generation);
                    *probe = match answer {
                        Some(place) if own == Some(place.generation) => Probe::Answered(sent, place),
                        _ => Probe::Due(now + self.times.probe_interval),
                    };
                }
            }
        }
        self.check_probe();
    }

    /// Does what is due at `now`. Call `handle_timeout` at [`next_timeout`](Self::next_timeout).
    pub fn handle_timeout(&mut self, now: Instant) {
        self.advance(now);
        if let State::Watching { heard, .. } = self.state
            && now >= heard + self.times.silence_limit
        {
            self.closes = true;
            self.end(format!("no message for {:?}", self.times.silence_limit));
        }
    }

    /// Returns when the machine has to be called next, if no input comes before.
    #[must_use]
    pub fn next_timeout(&self) -> Instant {
        match self.state {
            State::Waiting(until) => until,
            State::Watching { heard, probe, .. } => {
                let silence = heard + self.times.silence_limit;
                match probe {
                    Probe::Due(due) => due.min(silence),
                    Probe::Unplaced | Probe::Sent(_) | Probe::Answered(..) => silence,
                }
            }
        }
    }

    /// Returns the next thing to send. Call `poll_transmit` until it returns `None`.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        self.advance(now);
        if mem::take(&mut self.closes) {
            return Some(Transmit::Close);
        }
        match &mut self.state {
            State::Waiting(until) if *until <= now => Some(self.begin(now)),
            State::Watching { probe, .. } if probe.is_due(now) => {
                *probe = Probe::Sent(now);
                self.writer.sweep(SWEEP_STEP);
                Some(Transmit::Probe)
            }
            _ => None,
        }
    }

    /// Returns the next event. At most 64 events wait to be polled.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn advance(&mut self, now: Instant) {
        self.writer.advance(now.saturating_duration_since(self.now));
        self.now = self.now.max(now);
    }

    fn new_writer(&self) -> Writer {
        Writer::new(self.view.clock(self.now))
    }

    fn begin(&mut self, now: Instant) -> Transmit {
        if self.writer.place.is_none() {
            // The copy has only a part of a snapshot, and no place to resume at.
            self.writer = self.new_writer();
        }
        self.state = State::Watching {
            since: now,
            heard: now,
            probe: Probe::Unplaced,
        };
        Transmit::Watch {
            tracker: self.stats.tracker,
            request: v1::WatchRequest {
                nodes: None,
                resume: self.writer.place,
                accepts_resync: true,
            },
        }
    }

    /// Ends the watch. The replica watches the same tracker again if it has the tracker's whole table from this watch,
    /// and the next tracker otherwise.
    fn end(&mut self, reason: String) {
        let State::Watching { since, probe, .. } = self.state else {
            return;
        };
        self.stats.ended += 1;
        if self.now >= since + self.times.backoff.max {
            self.backoff.reset();
        }
        self.event(Event::Ended {
            tracker: self.stats.tracker,
            reason,
        });
        if matches!(probe, Probe::Unplaced) {
            self.stats.tracker = (self.stats.tracker + 1) % self.trackers.max(1);
        }
        self.state = State::Waiting(self.now + self.backoff.next_wait());
    }

    fn apply(&mut self, message: Message) -> Result<(), ApplyError> {
        let resyncs = self.writer.resyncs;
        match message {
            Message::Snapshot(snapshot) => self.writer.snapshot(&snapshot)?,
            Message::Changes(changes) => self.writer.changes(&changes)?,
            Message::KeepAlive(keep_alive) => self.writer.reach(keep_alive.sequence),
            Message::LostPlace(_) => {
                self.stats.lost_places += 1;
                self.writer = self.new_writer();
                self.unplace();
                return Ok(());
            }
            Message::SnapshotEnd(end) => self.end_snapshot(end),
        }
        self.stats.resyncs += self.writer.resyncs - resyncs;
        Ok(())
    }

    /// Records that the copy waits for a snapshot.
    fn unplace(&mut self) {
        if let State::Watching { probe, .. } = &mut self.state {
            *probe = Probe::Unplaced;
        }
    }

    fn end_snapshot(&mut self, end: v1::WatchSnapshotEnd) {
        let State::Watching { since, probe, .. } = &mut self.state else {
            return;
        };
        *probe = Probe::Due(self.now);
        let since = *since;
        let was_placed = self.writer.place.replace(v1::WatchPlace {
            generation: end.generation,
            sequence: end.sequence,
        });
        if was_placed.is_some() {
            self.stats.resumes += 1;
        } else {
            self.stats.snapshots += 1;
            self.view.copy.store(Some(Arc::clone(self.writer.copy())));
            self.view.set_complete_until(since);
        }
        self.event(Event::Following {
            tracker: self.stats.tracker,
        });
    }

    /// Records how far the copy is complete, if the copy has reached the place of the last probe.
    fn check_probe(&mut self) {
        if let State::Watching { probe, .. } = &mut self.state
            && let Probe::Answered(sent, place) = *probe
            && self.writer.has_reached(&place)
            && !self.writer.is_resyncing()
        {
            *probe = Probe::Due(sent + self.times.probe_interval);
            self.view.set_complete_until(sent);
        }
    }

    fn event(&mut self, event: Event) {
        if self.events.len() < MAX_EVENTS {
            self.events.push_back(event);
        }
    }
}
