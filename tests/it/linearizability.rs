//! Histories of real threads on one node, checked against the sequential table: each route is linearizable, and so is
//! the set of a node's routes. Of the order within an answer, the test checks only that it is newest first.

use std::hint;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::gate::Gate;
use crate::common::wgl::{Event, Spec, is_linearizable};
use crate::common::{check_answer, ops, proxy, scale, seed};
use fastrand::Rng;
use nodetracker::{Added, ManualClock, NodeId, ProxyRef, RouteTable};
use proptest::prelude::*;

/// One node: the set of proxies, by number, that it has routes through.
struct Membership;

/// An operation on the node, and its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Add(u32, Added),
    Get(u64),
    RemoveRoute(u32, bool),
    RemoveNode(bool),
}

use Added::{Inserted, Refreshed};
use Call::{Add, Get, RemoveNode, RemoveRoute};

impl Spec for Membership {
    type State = u64;
    type Call = Call;

    fn apply(&routes: &u64, &call: &Call) -> Option<u64> {
        let has = |proxy: u32| routes & (1 << proxy) != 0;
        let (allowed, next) = match call {
            Add(proxy, added) => ((added == Refreshed) == has(proxy), routes | 1 << proxy),
            Get(answer) => (answer == routes, routes),
            RemoveRoute(proxy, removed) => (removed == has(proxy), routes & !(1 << proxy)),
            RemoveNode(removed) => (removed == (routes != 0), 0),
        };
        allowed.then_some(next)
    }
}

// --- the checker itself

/// The finding about a history, and its calls in three columns: invoked, returned, call.
type Case = (&'static str, &'static [(u64, u64, Call)]);

fn history(events: &[(u64, u64, Call)]) -> Vec<Event<Call>> {
    events
        .iter()
        .map(|&(invoked, returned, call)| Event {
            invoked,
            returned,
            call,
        })
        .collect()
}

#[test]
fn checker_rejects_what_no_order_explains() {
    let cases: &[Case] = &[
        (
            "a completed add is not seen",
            &[(1, 2, Add(0, Inserted)), (3, 4, Get(0))],
        ),
        ("a route appears from nowhere", &[(1, 2, Get(1))]),
        ("inserted twice", &[(1, 2, Add(0, Inserted)), (3, 4, Add(0, Inserted))]),
        (
            "inserted twice, overlapping",
            &[(1, 3, Add(0, Inserted)), (2, 4, Add(0, Inserted))],
        ),
        (
            "refreshed before it can have been inserted",
            &[(1, 2, Add(0, Refreshed)), (3, 4, Add(0, Inserted))],
        ),
        (
            "one route removed twice, overlapping",
            &[
                (1, 2, Add(0, Inserted)),
                (3, 5, RemoveNode(true)),
                (4, 6, RemoveRoute(0, true)),
            ],
        ),
        (
            "two readers see two adds in opposite orders",
            &[
                (1, 10, Add(0, Inserted)),
                (2, 9, Add(1, Inserted)),
                (3, 4, Get(0b01)),
                (5, 6, Get(0b10)),
            ],
        ),
        (
            "a route that was seen is gone again",
            &[(1, 10, Add(0, Inserted)), (2, 3, Get(1)), (4, 5, Get(0))],
        ),
        (
            "a lost update: of two overlapping adds one is left",
            &[(1, 3, Add(0, Inserted)), (2, 4, Add(1, Inserted)), (5, 6, Get(0b10))],
        ),
        (
            "a torn answer: neither the old route nor the new one, which was there before the old one went",
            &[
                (1, 2, Add(0, Inserted)),
                (3, 8, Get(0)),
                (4, 5, Add(1, Inserted)),
                (6, 7, RemoveRoute(0, true)),
            ],
        ),
        (
            "a removed node keeps one of its two routes",
            &[
                (1, 2, Add(0, Inserted)),
                (3, 4, Add(1, Inserted)),
                (5, 6, RemoveNode(true)),
                (7, 8, Get(0b01)),
            ],
        ),
        (
            "an answer joins two instants that never were one",
            // 0 is removed before 1 is added, both within the look-up.
            &[
                (1, 2, Add(0, Inserted)),
                (3, 8, Get(0b11)),
                (4, 5, RemoveRoute(0, true)),
                (6, 7, Add(1, Inserted)),
            ],
        ),
    ];
    for (name, events) in cases {
        assert!(!is_linearizable::<Membership>(0, &history(events)), "accepted: {name}");
    }
}

#[test]
fn checker_accepts_what_some_order_explains() {
    let cases: &[Case] = &[
        ("nothing", &[]),
        (
            "a look-up during an add sees it",
            &[(1, 4, Add(0, Inserted)), (2, 3, Get(1))],
        ),
        (
            "a look-up during an add does not see it",
            &[(1, 4, Add(0, Inserted)), (2, 3, Get(0))],
        ),
        (
            "the add invoked later comes first",
            &[(1, 4, Add(0, Refreshed)), (2, 3, Add(0, Inserted))],
        ),
        (
            "inserted twice, with a removal that overlaps both",
            &[
                (2, 3, Add(0, Inserted)),
                (4, 5, Add(0, Inserted)),
                (1, 6, RemoveNode(true)),
            ],
        ),
        (
            "a removal finds nothing although an add is over, for another removal was first",
            &[
                (1, 2, Add(0, Inserted)),
                (3, 6, RemoveNode(false)),
                (4, 5, RemoveRoute(0, true)),
            ],
        ),
        (
            "one reader is long past before the slow add takes effect for the next",
            &[
                (1, 12, Add(0, Inserted)),
                (2, 3, Get(0)),
                (4, 5, Get(0)),
                (6, 7, Get(1)),
                (8, 9, Get(1)),
            ],
        ),
        (
            "a chain in which every call must be moved",
            &[
                (1, 8, RemoveRoute(0, true)),
                (2, 7, Add(0, Inserted)),
                (3, 6, Get(0b11)),
                (4, 5, Add(1, Inserted)),
                (9, 10, Get(0b10)),
            ],
        ),
        (
            "the first choice is a dead end: the removal must wait for the second add",
            &[
                (1, 6, RemoveNode(true)),
                (2, 3, Add(0, Inserted)),
                (4, 5, Add(0, Refreshed)),
                (7, 8, Get(0)),
            ],
        ),
    ];
    for (name, events) in cases {
        assert!(is_linearizable::<Membership>(0, &history(events)), "rejected: {name}");
    }
    assert!(is_linearizable::<Membership>(
        0b11,
        &history(&[(1, 2, RemoveRoute(1, true)), (3, 4, Get(0b01))])
    ));
}

fn any_call() -> impl Strategy<Value = Call> {
    let added = prop_oneof![Just(Inserted), Just(Refreshed)];
    prop_oneof![
        3 => (0_u32..2, added).prop_map(|(proxy, added)| Add(proxy, added)),
        2 => (0_u64..4).prop_map(Get),
        1 => (0_u32..2, any::<bool>()).prop_map(|(proxy, removed)| RemoveRoute(proxy, removed)),
        1 => any::<bool>().prop_map(RemoveNode),
    ]
}

/// Histories of up to six calls, with instants in any order.
fn any_history() -> impl Strategy<Value = Vec<Event<Call>>> {
    (1_usize..=6).prop_flat_map(|calls| {
        let instants: Vec<u64> = (0..2 * calls as u64).collect();
        (Just(instants).prop_shuffle(), prop::collection::vec(any_call(), calls)).prop_map(|(instants, calls)| {
            let spans = instants
                .chunks(2)
                .map(|pair| (pair[0].min(pair[1]), pair[0].max(pair[1])));
            spans
                .zip(calls)
                .map(|((invoked, returned), call)| Event {
                    invoked,
                    returned,
                    call,
                })
                .collect()
        })
    })
}

/// Linearizability by its definition: some order of all the calls respects real time and the specification.
fn some_order_explains(history: &[Event<Call>]) -> bool {
    fn extend(routes: u64, rest: &[Event<Call>]) -> bool {
        rest.is_empty()
            || (0..rest.len()).any(|next| {
                let mut others = rest.to_vec();
                let event = others.remove(next);
                others.iter().all(|other| other.returned > event.invoked)
                    && Membership::apply(&routes, &event.call).is_some_and(|routes| extend(routes, &others))
            })
    }
    extend(0, history)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 4096,
        rng_seed: proptest::test_runner::RngSeed::Fixed(seed()),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn checker_agrees_with_the_definition(history in any_history()) {
        prop_assert_eq!(
            is_linearizable::<Membership>(0, &history), some_order_explains(&history), "NODETRACKER_SEED={}", seed()
        );
    }
}

// --- histories of the table

/// The steps of a thread.
#[derive(Debug, Clone, Copy)]
enum Step {
    Add(u32),
    Get,
    RemoveRoute(u32),
    RemoveNode,
    /// Not part of the history: a sweep changes nothing that a look-up can see.
    Sweep,
}

/// The delay before a step, so that the steps of different threads meet in many ways.
#[derive(Debug, Clone, Copy)]
enum Pause {
    None,
    Spin(u32),
    /// Lets a thread continue that has no core of its own.
    Yield,
}

impl Pause {
    fn any(rng: &mut Rng) -> Self {
        match rng.u32(..8) {
            0..4 => Self::None,
            4..7 => Self::Spin(rng.u32(..40)),
            _ => Self::Yield,
        }
    }

    fn take(self) {
        match self {
            Self::None => {}
            Self::Spin(turns) => (0..turns).for_each(|_| hint::spin_loop()),
            Self::Yield => thread::yield_now(),
        }
    }
}

const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A table that lives through many histories, each on a node of its own.
struct Arena {
    table: RouteTable,
    clock: ManualClock,
    proxies: Vec<ProxyRef>,
    /// Orders invocations and returns.
    instant: AtomicU64,
}

impl Arena {
    fn new() -> Self {
        let (table, clock) = crate::common::table(KEEP_ALIVE);
        let proxies = (0..8)
            .map(|i| table.register_proxy(&proxy(&format!("proxy-{i}"))).expect("registers"))
            .collect();
        Self {
            table,
            clock,
            proxies,
            instant: AtomicU64::new(0),
        }
    }

    /// Brings a new node into the state from which a history starts: without routes, with expired routes that a sweep
    /// may remove at any time, with live routes, or with both. Returns the set of live routes.
    fn prepare(&self, node: &NodeId, proxies: u32, rng: &mut Rng) -> u64 {
        let add_some = |rng: &mut Rng| {
            let chosen = rng.u64(0..1 << proxies);
            for proxy in (0..proxies).filter(|proxy| chosen & (1 << proxy) != 0) {
                self.table.add_node(node, self.proxies[proxy as usize]).expect("adds");
            }
            chosen
        };
        if rng.bool() {
            add_some(rng);
            self.clock.advance(KEEP_ALIVE + Duration::from_millis(1));
        }
        // A route of another node, so that no proxy is ever idle.
        let anchor: NodeId = "anchor".parse().expect("a name");
        for &proxy in &self.proxies {
            self.table.add_node(&anchor, proxy).expect("adds");
        }
        if rng.bool() { add_some(rng) } else { 0 }
    }

    fn now(&self) -> u64 {
        // SeqCst, though the counter's own order would do: one order of all instants.
        self.instant.fetch_add(1, Ordering::SeqCst)
    }

    fn call(&self, node: &NodeId, step: Step) -> Option<Call> {
        let proxy = |number: u32| self.proxies[number as usize];
        Some(match step {
            Step::Add(number) => Add(number, self.table.add_node(node, proxy(number)).expect("adds")),
            Step::Get => {
                let answer = self.table.get_proxies(node);
                check_answer(&answer).expect("a sound answer");
                let numbers = answer
                    .iter()
                    .map(|route| self.proxies.iter().position(|&proxy| proxy == route.proxy));
                Get(numbers.fold(0, |set, number| set | 1 << number.expect("a proxy of this table")))
            }
            Step::RemoveRoute(number) => RemoveRoute(number, self.table.remove_route(node, proxy(number))),
            Step::RemoveNode => RemoveNode(self.table.remove_node(node)),
            Step::Sweep => {
                _ = self.table.sweep(64);
                return None;
            }
        })
    }

    /// Runs one thread's steps, and returns their results.
    fn record(&self, node: &NodeId, steps: &[(Pause, Step)]) -> Vec<Event<Call>> {
        let mut events = Vec::with_capacity(steps.len());
        for &(pause, step) in steps {
            pause.take();
            let invoked = self.now();
            let call = self.call(node, step);
            let returned = self.now();
            events.extend(call.map(|call| Event {
                invoked,
                returned,
                call,
            }));
        }
        events
    }
}

fn any_step(proxies: u32, rng: &mut Rng) -> Step {
    match rng.u32(..32) {
        0..14 => Step::Add(rng.u32(..proxies)),
        14..22 => Step::Get,
        22..27 => Step::RemoveRoute(rng.u32(..proxies)),
        27..31 => Step::RemoveNode,
        _ => Step::Sweep,
    }
}

/// Records and checks histories of this many threads: at least `histories`. On a busy machine, few calls may overlap:
/// then the test runs up to four times as many. Thread 0 prepares each history and checks it.
fn check_histories(threads: usize, histories: usize) {
    let arena = Arena::new();
    let gate = Gate::new(threads);
    let records: Vec<Mutex<Vec<Event<Call>>>> = (0..threads).map(|_| Mutex::default()).collect();
    let enough = AtomicBool::new(false);
    thread::scope(|scope| {
        for thread in 0..threads {
            let (arena, gate, records, enough) = (&arena, &gate, &records, &enough);
            scope.spawn(move || {
                let pass = gate.pass();
                // `shared` gives the same numbers in every thread; `own` gives this thread's numbers.
                let mut shared = Rng::with_seed(seed() ^ threads as u64);
                let mut own = Rng::with_seed(shared.u64(..) ^ thread as u64);
                let mut overlapping = 0;
                for number in 0.. {
                    let node = ops::node(u16::try_from(number % 60_000).expect("a small number"));
                    let proxies = if shared.u32(..4) == 0 { 8 } else { shared.u32(1..=3) };
                    let mut setup = shared.fork();
                    let steps = (0..own.usize(4..=8)).map(|_| (Pause::any(&mut own), any_step(proxies, &mut own)));
                    let steps: Vec<(Pause, Step)> = steps.collect();
                    let mut initial = 0;
                    if thread == 0 {
                        arena.table.remove_node(&node);
                        initial = arena.prepare(&node, proxies, &mut setup);
                        let end = number == 4 * histories || (number >= histories && overlapping >= number / 4);
                        if end {
                            println!("{overlapping} of {number} histories of {threads} threads had overlapping calls");
                        }
                        // Relaxed, as the load below: the gate orders them.
                        enough.store(end, Ordering::Relaxed);
                    }
                    pass.wait();
                    if enough.load(Ordering::Relaxed) {
                        break;
                    }
                    let events = arena.record(&node, &steps);
                    *records[thread].lock().expect("not poisoned") = events;
                    pass.wait();
                    if thread == 0 {
                        let history = records
                            .iter()
                            .map(|record| record.lock().expect("not poisoned").clone());
                        overlapping += usize::from(check(initial, history.collect()));
                    }
                }
            });
        }
    });
}

/// Checks one history, given by thread. Returns whether any of its calls overlapped.
fn check(initial: u64, by_thread: Vec<Vec<Event<Call>>>) -> bool {
    let mut history: Vec<Event<Call>> = by_thread.concat();
    history.sort_by_key(|event| event.invoked);
    assert!(
        is_linearizable::<Membership>(initial, &history),
        "not linearizable from {initial:#b} (NODETRACKER_SEED={}):\n{}",
        seed(),
        draw(&by_thread)
    );
    history.windows(2).any(|pair| pair[1].invoked < pair[0].returned)
}

/// One line for each invocation or return, in their order, indented by thread.
fn draw(by_thread: &[Vec<Event<Call>>]) -> String {
    let mut lines: Vec<(u64, String)> = Vec::new();
    for (thread, events) in by_thread.iter().enumerate() {
        let indent = " ".repeat(28 * thread);
        for event in events {
            lines.push((event.invoked, format!("{indent}┌ {:?}", event.call)));
            lines.push((event.returned, format!("{indent}└")));
        }
    }
    lines.sort();
    lines.into_iter().map(|(_, line)| line + "\n").collect()
}

/// A single test, so that no other test of this program takes cores from its threads.
#[test]
fn histories_are_linearizable() {
    check_histories(2, 12_000 * scale());
    check_histories(3, 4_000 * scale());
    check_histories(4, 4_000 * scale());
}
