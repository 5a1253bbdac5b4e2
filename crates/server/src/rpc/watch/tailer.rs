//! The tailer: reads the table's change feed and appends to the change log.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;

use nodetracker::{Event, NodeId, Reason, Routes, Subscription};
use nodetracker_proto::v1;
use tokio::select;
use tokio::sync::watch::Receiver;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep_until};

use crate::limits::{
    MAX_WATCH_CHANGES, MAX_WATCH_PAUSE, NODE_WORK, PAUSE_PER_WATCH, ROUTE_WORK, WATCH_INTERVAL, WORK_PER_PASS,
};
use crate::rpc::watch::entry::EntryBuilder;
use crate::rpc::watch::resync::Resyncs;
use crate::rpc::watch::{Activity, Watches};

/// Tails the table while there are watches, and for some time after the last watch. Never returns.
///
/// The tailer shares its thread with the acceptor and the sweeper, and the table may change faster than the tailer
/// reads. So the tailer yields after each part, and then checks whether there still are watches.
pub(crate) async fn tail(watches: &Watches) -> Infallible {
    let mut activity = watches.activity.subscribe();
    // After a panic: changes since then do not reach the log.
    if watches
        .activity
        .send_if_modified(|activity| std::mem::take(&mut activity.is_tailing))
    {
        watches.log.invalidate();
    }
    loop {
        // An error cannot happen: the sender lives as long as `watches`.
        let _ = activity.wait_for(|activity| activity.watches > 0).await;
        let mut tailer = Tailer {
            watches,
            subscription: watches.table.subscribe(),
            events: Vec::new(),
            resyncs: Resyncs::new(),
            publish_due: Instant::now(),
        };
        watches.activity.send_modify(|activity| activity.is_tailing = true);
        let mut is_up_to_date = true;
        loop {
            if is_up_to_date {
                tailer.wait(&mut activity).await;
            } else {
                yield_now().await;
            }
            let stops = watches.activity.send_if_modified(|activity| {
                activity.is_tailing = !activity.has_ended(watches);
                !activity.is_tailing
            });
            if stops {
                // Later changes do not reach the log.
                watches.log.invalidate();
                break;
            }
            is_up_to_date = tailer.turn().await;
        }
    }
}

impl Activity {
    /// Whether the last watch has ended, and no client has resumed within [`Watches::linger`].
    fn has_ended(&self, watches: &Watches) -> bool {
        self.idle_since.is_some_and(|since| since.elapsed() >= watches.linger)
    }
}

struct Tailer<'t> {
    watches: &'t Watches,
    subscription: Subscription<'t>,
    /// The events of one turn.
    events: Vec<Event>,
    resyncs: Resyncs,
    /// When the watches may be woken again.
    publish_due: Instant,
}

impl Tailer<'_> {
    /// Waits until there is something to do.
    async fn wait(&mut self, activity: &mut Receiver<Activity>) {
        let is_asked = |activity: &Activity| activity.drains_due > activity.drains_done;
        // A pause first, so that changes come in batches.
        let pause = Instant::now() + WATCH_INTERVAL;
        let resync_due = self.resyncs.due();
        select! {
            () = sleep_until(resync_due.map_or(pause, |due| due.min(pause))) => {}
            _ = activity.wait_for(is_asked) => return,
        }
        let idle_since = activity.borrow().idle_since;
        let end = idle_since.map(|since| since + self.watches.linger);
        let publish_due = self.watches.log.has_unpublished().then_some(self.publish_due);
        let wake = [end, resync_due, publish_due].into_iter().flatten().min();
        select! {
            () = poll_fn(|cx| self.subscription.poll_ready(cx)) => {}
            () = sleep_until(wake.unwrap_or(pause)), if wake.is_some() => {}
            _ = activity.wait_for(|activity| is_asked(activity) || activity.idle_since != idle_since) => {}
        }
    }

    /// Appends a part of the feed's changes to the log, and a part of a resync that is due. Returns `true` if the feed
    /// has no more.
    async fn turn(&mut self) -> bool {
        let drains_due = self.watches.activity.borrow().drains_due;
        self.events.clear();
        let drained = self
            .subscription
            .drain_events(MAX_WATCH_CHANGES, |event| self.events.push(event.clone()));
        append(self.watches, &self.events).await;
        match drained {
            Err(lagged) => self.resyncs.add(lagged),
            // The drain has seen the ends of all rings.
            Ok(count) if count < MAX_WATCH_CHANGES => {
                self.watches.activity.send_if_modified(|activity| {
                    let is_new = activity.drains_done < drains_due;
                    activity.drains_done = drains_due;
                    is_new
                });
            }
            Ok(_) => {}
        }
        self.resyncs.turn(self.watches);
        self.publish();
        drained == Ok(0)
    }

    /// Wakes the watches, unless they were woken a short time ago. To wake many watches takes long.
    fn publish(&mut self) {
        let (now, log) = (Instant::now(), &self.watches.log);
        if log.has_unpublished() && now >= self.publish_due {
            log.publish();
            let watches = u32::try_from(self.watches.count()).unwrap_or(u32::MAX);
            let pause = PAUSE_PER_WATCH.saturating_mul(watches);
            self.publish_due = now + pause.clamp(WATCH_INTERVAL, MAX_WATCH_PAUSE);
        }
    }
}

/// Reads the nodes and proxies of the events, and appends their changes to the log.
async fn append(watches: &Watches, events: &[Event]) {
    if events.is_empty() {
        return;
    }
    let table = &*watches.table;
    // The routes are read after the marks were taken, and once for each node.
    let (nodes, positions) = distinct_nodes(events);
    let routes: Vec<Routes> = table.get_proxies_batch(&nodes).collect();

    let mut entry = EntryBuilder::new(table, watches.log.next());
    // The work since other tasks of the thread have run.
    let mut work = 0;
    for event in events {
        if entry.is_full() {
            let next = entry.next();
            entry.finish(watches);
            yield_now().await;
            entry = EntryBuilder::new(table, next);
        }
        match event {
            Event::Node { node, reason } => {
                let routes = &routes[positions[node]];
                if work >= WORK_PER_PASS {
                    // Only this task appends to the log, so the entry keeps its place.
                    yield_now().await;
                    work = 0;
                }
                work += NODE_WORK + routes.len() * ROUTE_WORK;
                entry.node(node, reason_of(*reason), routes);
            }
            Event::ProxyRemoved { proxy, id } => entry.proxy_removed(*proxy, id),
            Event::ProxyChanged { proxy } => entry.proxy_moved(*proxy),
            _ => {}
        }
    }
    entry.finish(watches);
}

fn reason_of(reason: Reason) -> v1::NodeChangeReason {
    match reason {
        Reason::Added => v1::NodeChangeReason::Added,
        Reason::Removed => v1::NodeChangeReason::Removed,
        Reason::Expired => v1::NodeChangeReason::Expired,
        _ => v1::NodeChangeReason::Unspecified,
    }
}

/// Returns the nodes of the events, each once, and the position of each.
fn distinct_nodes(events: &[Event]) -> (Vec<NodeId>, HashMap<&NodeId, usize>) {
    let mut nodes = Vec::new();
    let mut positions = HashMap::new();
    for event in events {
        if let Event::Node { node, .. } = event {
            positions.entry(node).or_insert_with(|| {
                nodes.push(node.clone());
                nodes.len() - 1
            });
        }
    }
    (nodes, positions)
}

#[cfg(test)]
mod tests {
    use std::pin::{Pin, pin};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Wake, Waker};
    use std::time::Duration;

    use nodetracker::{MAX_ROUTES_PER_NODE, Proxy, RouteTable};
    use nodetracker_proto::v1::watch_change::Change;
    use tokio::time::advance;

    use super::*;

    const PART: u64 = MAX_WATCH_CHANGES as u64;

    /// One turn of the tailer.
    fn poll(tailer: Pin<&mut impl Future<Output = Infallible>>) {
        assert!(tailer.poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }

    fn change(table: &RouteTable, nodes: std::ops::Range<u64>) {
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "",
            addr: "proxy:1",
        };
        for number in nodes {
            let node = format!("node-{number}").parse().expect("a name");
            table.report_node(&node, &proxy).expect("there is room");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn other_tasks_of_the_thread_run_after_each_part() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::without_resume(Arc::clone(&table));
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        assert_eq!(table.subscriptions(), 0);
        let slot = watches.take_slot(0).expect("a slot is free");
        poll(tailer.as_mut());
        assert_eq!(table.subscriptions(), 1);

        // The table changes as fast as the tailer reads, so the tailer never catches up.
        change(&table, 0..2 * PART);
        advance(WATCH_INTERVAL).await;
        for part in 1..5 {
            poll(tailer.as_mut());
            assert_eq!(watches.log.next(), 1 + part * PART);
            change(&table, (part + 1) * PART..(part + 2) * PART);
        }
        drop(slot);
        poll(tailer.as_mut());
        assert_eq!(table.subscriptions(), 0, "nobody watches");
        assert_eq!(watches.log.next(), 2 + 4 * PART, "later changes have no number");
    }

    #[tokio::test(start_paused = true)]
    async fn large_changes_are_several_messages_with_turns_in_between() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::without_resume(Arc::clone(&table));
        let _slot = watches.take_slot(0).expect("a slot is free");
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        // Each change has all current routes of its node: two kilobytes.
        const CHANGES: u64 = 960;
        for number in 0..CHANGES {
            let proxy = Proxy {
                id: &format!("proxy-{}", number % 64),
                cluster_name: "",
                addr: "proxy:1",
            };
            let node = format!("node-{}", number / 64).parse().expect("a name");
            table.report_node(&node, &proxy).expect("there is room");
        }
        advance(WATCH_INTERVAL).await;
        let mut ends = Vec::new();
        while watches.log.next() <= CHANGES {
            poll(tailer.as_mut());
            ends.push(watches.log.next());
        }
        assert_eq!(ends.last(), Some(&(1 + CHANGES)));
        // A message takes several turns.
        ends.dedup();
        assert!(ends.len() >= 3 && ends.is_sorted_by(|one, next| one < next), "{ends:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn many_watches_are_woken_less_often() {
        const SECOND: Duration = Duration::from_secs(1);
        for (count, most, age) in [
            (100, SECOND.div_duration_f64(WATCH_INTERVAL), WATCH_INTERVAL),
            (9_000, 10.0, MAX_WATCH_PAUSE),
        ] {
            let table = Arc::new(RouteTable::new());
            let watches = Watches::without_resume(Arc::clone(&table));
            let _slots: Vec<_> = (0..count)
                .map(|_| watches.take_slot(0).expect("a slot is free"))
                .collect();
            let mut published = watches.log.subscribe();
            let mut tailer = pin!(tail(&watches));
            let (begin, mut wakes, mut number) = (Instant::now(), 0, 0);
            while begin.elapsed() < SECOND {
                change(&table, number..number + 8);
                number += 8;
                poll(tailer.as_mut());
                wakes += usize::from(published.has_changed().expect("the log is there"));
                published.borrow_and_update();
                advance(Duration::from_millis(1)).await;
            }
            assert!(wakes as f64 <= most + 1.0 && wakes >= 9, "{wakes} for {count}");
            // The last change is not forgotten.
            advance(WATCH_INTERVAL).await;
            poll(tailer.as_mut());
            advance(age).await;
            poll(tailer.as_mut());
            assert_eq!(*published.borrow(), watches.log.next());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_up_to_date_tailer_sleeps() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::without_resume(Arc::clone(&table));
        let _slot = watches.take_slot(0).expect("a slot is free");
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        change(&table, 0..1);
        poll(tailer.as_mut());
        assert_eq!(watches.log.next(), 1, "the tailer sleeps");
        advance(WATCH_INTERVAL).await;
        for _ in 0..3 {
            poll(tailer.as_mut());
        }
        assert_eq!(watches.log.next(), 2);
        change(&table, 1..2);
        poll(tailer.as_mut());
        assert_eq!(watches.log.next(), 2, "the tailer sleeps again");
        advance(WATCH_INTERVAL).await;
        poll(tailer.as_mut());
        assert_eq!(watches.log.next(), 3);
    }

    /// A burst of changes of one node, more than the feed keeps for its part.
    #[tokio::test(start_paused = true)]
    async fn changes_of_other_parts_outlive_an_overflow() {
        let table = Arc::new(RouteTable::builder().feed_ring(8).build().expect("possible limits"));
        change(&table, 0..100);
        let watches = Watches::without_resume(Arc::clone(&table));
        let _slot = watches.take_slot(0).expect("a slot is free");
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        let place = watches.log.next();
        let busy: NodeId = "node-7".parse().expect("a name");
        for _ in 0..10 {
            table.remove_node(&busy);
            change(&table, 7..8);
        }
        let part = table.part_of(&busy);
        let other = (100..).find(|number| table.part_of(&format!("node-{number}").parse().expect("a name")) != part);
        let other = other.expect("there is another part");
        change(&table, other..other + 1);
        for _ in 0..10 {
            advance(WATCH_INTERVAL).await;
            poll(tailer.as_mut());
        }
        let (mut nodes, mut resyncs, mut place) = (Vec::new(), Vec::new(), place);
        while let Some(entry) = watches.log.entry_at(place).expect("no place is lost") {
            place = entry.end();
            for change in &entry.message.changes {
                match change.change.as_ref().expect("a change") {
                    Change::Node(node) => nodes.push((node.part as usize, node.reason())),
                    Change::Resync(resync) => resyncs.push((resync.part, resync.is_complete)),
                    Change::Proxy(_) => panic!("no proxy has changed"),
                }
            }
        }
        assert_eq!(resyncs, [(Some(part as u32), false), (Some(part as u32), true)]);
        nodes.sort_unstable();
        let mut expected: Vec<_> = (0..100)
            .map(|number| table.part_of(&format!("node-{number}").parse().expect("a name")))
            .filter(|of| *of == part)
            .map(|of| (of, v1::NodeChangeReason::Resync))
            .collect();
        let of_other = table.part_of(&format!("node-{other}").parse().expect("a name"));
        expected.push((of_other, v1::NodeChangeReason::Added));
        expected.sort_unstable();
        assert_eq!(nodes, expected);
    }

    /// Otherwise changes of such nodes would delay the acceptor and the diagnostics port.
    #[tokio::test(start_paused = true)]
    async fn changes_of_nodes_with_many_routes_take_several_turns() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::without_resume(Arc::clone(&table));
        let _slot = watches.take_slot(0).expect("a slot is free");
        for number in 1..MAX_ROUTES_PER_NODE {
            let proxy = Proxy {
                id: &format!("proxy-{number}"),
                cluster_name: "",
                addr: "proxy:1",
            };
            for number in 0..PART {
                let node = format!("node-{number}").parse().expect("a name");
                table.report_node(&node, &proxy).expect("there is room");
            }
        }
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        let place = watches.log.next();
        change(&table, 0..PART);
        let mut turns = 0;
        while watches.log.next() < place + PART {
            advance(WATCH_INTERVAL).await;
            poll(tailer.as_mut());
            turns += 1;
            assert!(turns < 1_000, "the tailer waits");
        }
        let work = PART as usize * (NODE_WORK + MAX_ROUTES_PER_NODE * ROUTE_WORK);
        assert!(turns >= work / WORK_PER_PASS, "{turns}");
    }

    /// The server begins a task again that has panicked.
    #[tokio::test(start_paused = true)]
    async fn after_a_panic_every_watch_begins_again() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::without_resume(Arc::clone(&table));
        let _slot = watches.take_slot(0).expect("a slot is free");
        {
            let mut tailer = pin!(tail(&watches));
            poll(tailer.as_mut());
        }
        let place = watches.log.next();
        change(&table, 0..1);
        let mut tailer = pin!(tail(&watches));
        poll(tailer.as_mut());
        assert!(watches.activity.borrow().is_tailing && !watches.log.has(place));
    }

    /// Counts how often it is woken.
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_table_without_changes_does_not_wake_the_tailer() {
        let table = Arc::new(RouteTable::new());
        let watches = Watches::without_resume(Arc::clone(&table));
        let slot = watches.take_slot(0).expect("a slot is free");
        let mut tailer = pin!(tail(&watches));
        let woken = Arc::new(Woken(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&woken));
        let mut poll = || assert!(tailer.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        for _ in 0..3 {
            poll();
            advance(WATCH_INTERVAL).await;
        }
        poll();
        let before = woken.0.load(Ordering::Relaxed);
        advance(1_000 * WATCH_INTERVAL).await;
        assert_eq!(woken.0.load(Ordering::Relaxed), before, "nothing has changed");
        change(&table, 0..1);
        assert!(woken.0.load(Ordering::Relaxed) > before, "the change wakes the tailer");
        poll();
        assert_eq!(watches.log.next(), 2);

        for _ in 0..3 {
            poll();
            advance(WATCH_INTERVAL).await;
        }
        drop(slot);
        poll();
        assert_eq!(table.subscriptions(), 0, "nobody watches");
    }
}
