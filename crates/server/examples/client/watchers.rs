//! Ordinary watches of all nodes, and the age of the changes when they arrive.
//!
//! A prober adds a hundred nodes a second, each with its own name, and removes the nodes later. A change has the time
//! of its route. So each watch can compute the age of a probe when the probe arrives for the first time. A change that
//! arrives in a resync counts like any other change.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use nodetracker_proto::v1::node_id::Id;
use nodetracker_proto::v1::watch_change::Change;
use nodetracker_proto::{api, v1};
use prost::Message;
use prost::encoding::decode_varint;
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::client::Failure;
use crate::client::role::say;
use crate::client::wire::{ADD, Messages, REMOVE, WATCH, call, connect};

/// The name of a probe begins with this text.
const PROBE: &str = "probe-";
/// Probes a second.
const RATE: u32 = 100;
/// The prober removes a probe after this many further probes.
const KEPT: u64 = 100;
/// The field numbers of a WatchResponse.
const SNAPSHOT_END: u8 = 2;
const CHANGES: u8 = 3;
const LOST_PLACE: u8 = 4;

/// The figures of all watches together.
#[derive(Debug, Default)]
struct Seen {
    ages: Vec<Duration>,
    resyncs: usize,
    lost_places: usize,
    changes: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ages = self.ages.clone();
        ages.sort_unstable();
        let millis = |share: f64| {
            let age = ages.get((ages.len() as f64 * share) as usize).or(ages.last());
            age.map_or(f64::NAN, |age| age.as_secs_f64() * 1e3)
        };
        write!(
            f,
            "{:.0}, {:.0}, {:.0} | {} | {} | {}",
            millis(0.5),
            millis(0.99),
            millis(1.0),
            self.changes,
            self.resyncs,
            self.lost_places
        )
    }
}

/// The titles of the columns that [`watch`] reports.
pub(crate) const COLUMNS: &str = "age of changes p50, p99, max, ms | changes | resyncs | places lost";

/// Opens the watches, and prints "on" when all watches have their snapshots. For each line of stdin, reports the
/// figures since the last report.
pub(crate) async fn watch(count: usize, addr: &str) -> Result<(), Failure> {
    let seen = Arc::<Mutex<Seen>>::default();
    let (up_to_date, mut completed) = tokio::sync::mpsc::channel(count);
    for number in 0..count {
        let (addr, seen, up_to_date) = (addr.to_owned(), Arc::clone(&seen), up_to_date.clone());
        tokio::task::spawn_local(async move {
            let ended = follow(&addr, &seen, &up_to_date).await;
            // A watch that ends has lost its place.
            seen.lock().unwrap_or_else(PoisonError::into_inner).lost_places += 1;
            eprintln!("watch {number} ended: {ended:?}");
        });
    }
    for _ in 0..count {
        completed.recv().await;
    }
    let prober = addr.to_owned();
    tokio::task::spawn_local(async move {
        while let Err(error) = probe(&prober).await {
            eprintln!("the prober connects again: {error}");
            sleep(Duration::from_millis(100)).await;
        }
    });
    say("on");
    let (asked, mut questions) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        std::io::stdin()
            .lines()
            .map_while(Result::ok)
            .try_for_each(|_| asked.send(()))
    });
    while questions.recv().await.is_some() {
        let seen = std::mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner));
        say(&seen.to_string());
    }
    Ok(())
}

/// Adds probes at a constant rate, and removes the old probes.
async fn probe(addr: &str) -> Result<(), Failure> {
    let mut client = connect(addr).await?;
    let mut ticks = interval(Duration::from_secs(1) / RATE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    // A prober that connects again uses other names.
    let first = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_micros() as u64;
    for number in first.. {
        ticks.tick().await;
        let add = api::AddNodeRequest {
            node_id: format!("{PROBE}{number}"),
            proxy_id: "prober".into(),
            cluster_name: "main".into(),
            addr: "prober:1".into(),
        };
        call(&mut client, ADD, &add).await?;
        if number >= first + KEPT {
            let remove = api::RemoveNodeRequest {
                node_id: format!("{PROBE}{}", number - KEPT),
            };
            call(&mut client, REMOVE, &remove).await?;
        }
    }
    Ok(())
}

async fn follow(addr: &str, seen: &Mutex<Seen>, up_to_date: &tokio::sync::mpsc::Sender<()>) -> Result<(), Failure> {
    let mut client = connect(addr).await?;
    let request = v1::WatchRequest {
        accepts_resync: true,
        ..v1::WatchRequest::default()
    };
    let mut messages = Messages::begin(&mut client, WATCH, &request).await?;
    let mut probes = HashSet::new();
    while let Some(message) = messages.next().await? {
        match message.first().map(|tag| tag >> 3) {
            Some(SNAPSHOT_END) => up_to_date.send(()).await?,
            Some(CHANGES) => take(
                &message,
                &mut probes,
                &mut seen.lock().unwrap_or_else(PoisonError::into_inner),
            ),
            Some(LOST_PLACE) => seen.lock().unwrap_or_else(PoisonError::into_inner).lost_places += 1,
            _ => {}
        }
    }
    Err("the stream ended".into())
}

/// Returns the fields of a message that have a length: their numbers and their bytes. Ends at any other field.
fn fields(mut message: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    std::iter::from_fn(move || {
        const HAS_LENGTH: u64 = 2;
        let tag = decode_varint(&mut message).ok()?;
        if tag & 7 != HAS_LENGTH {
            return None;
        }
        let len = decode_varint(&mut message).ok()? as usize;
        let (field, rest) = message.split_at_checked(len)?;
        message = rest;
        Some(((tag >> 3) as u32, field))
    })
}

/// Takes the changes of a message. `probes` has the probes that this watch has seen.
///
/// Decodes only the changes of probes, and resyncs: with all changes decoded, the watches would be too slow.
fn take(message: &[u8], probes: &mut HashSet<String>, seen: &mut Seen) {
    const CHANGE: u32 = 2;
    let messages = fields(message).map(|(_, changes)| changes);
    for (_, change) in messages.flat_map(fields).filter(|&(field, _)| field == CHANGE) {
        seen.changes += 1;
        let is_probe = change.windows(PROBE.len()).any(|part| part == PROBE.as_bytes());
        // The longest resync has a sequence, a part and whether it is complete.
        if !is_probe && change.len() > 24 {
            continue;
        }
        match v1::WatchChange::decode(change).ok().and_then(|change| change.change) {
            Some(Change::Resync(resync)) => seen.resyncs += usize::from(!resync.is_complete),
            Some(Change::Node(node)) => seen.ages.extend(age(&node, probes)),
            _ => {}
        }
    }
}

/// Returns the age of a probe that arrives for the first time.
fn age(change: &v1::WatchNodeChange, probes: &mut HashSet<String>) -> Option<Duration> {
    let routes = change.routes.as_ref()?;
    let Some(Id::Name(name)) = &routes.node.as_ref()?.id else {
        return None;
    };
    let added = SystemTime::try_from(routes.routes.first()?.last_refresh_time?).ok()?;
    let is_first = name.starts_with(PROBE) && probes.insert(name.clone());
    is_first.then(|| SystemTime::now().duration_since(added).unwrap_or_default())
}
