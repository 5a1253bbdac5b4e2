//! Sequences of operations on the table and on a plain model, compared after every step.

use std::time::Duration;

use crate::common::model::Setup;
use crate::common::ops::{Op, Subject};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, RngSeed};

/// `cases` sequences in a normal run, generated from the seed of the run.
fn config(cases: usize) -> ProptestConfig {
    ProptestConfig {
        cases: u32::try_from(cases * crate::common::scale()).expect("a moderate scale"),
        rng_seed: RngSeed::Fixed(crate::common::seed()),
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("proptest-regressions"))),
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

/// Applies the operations to a new table and to its model.
fn run(setup: Setup, ops: &[Op]) -> Result<(), TestCaseError> {
    let mut subject = Subject::new(setup);
    let steps = ops.iter().enumerate().try_for_each(|(step, &op)| {
        let result = subject.apply(op);
        result.map_err(|message| format!("step {step}, {op:?}: {message}"))
    });
    steps
        .and_then(|()| subject.finish().map_err(|message| format!("at the end: {message}")))
        .map_err(|message| TestCaseError::fail(format!("{message} (NODETRACKER_SEED={})", crate::common::seed())))
}

/// Any operation. Operations that add are more frequent than operations that remove.
fn any_op() -> impl Strategy<Value = Op> {
    let (node, proxy) = (any::<u16>, any::<u16>);
    prop_oneof![
        16 => (node(), proxy()).prop_map(|(node, proxy)| Op::Add { node, proxy }),
        4 => (proxy(), any::<u8>()).prop_map(|(proxy, variant)| Op::Register { proxy, variant }),
        2 => proxy().prop_map(|proxy| Op::Details { proxy }),
        1 => proxy().prop_map(|proxy| Op::RemoveProxy { proxy }),
        3 => (node(), 1_u16..200, proxy()).prop_map(|(first, count, proxy)| Op::AddBatch { first, count, proxy }),
        3 => proxy().prop_map(|proxy| Op::RefreshHandles { proxy }),
        1 => (node(), any::<u16>()).prop_map(|(node, which)| Op::AddByOldRef { node, which }),
        8 => node().prop_map(|node| Op::Get { node }),
        2 => node().prop_map(|node| Op::RemoveNode { node }),
        3 => (node(), proxy()).prop_map(|(node, proxy)| Op::RemoveRoute { node, proxy }),
        3 => (1_u16..12).prop_map(|max_records| Op::Sweep { max_records }),
        1 => Just(Op::SweepFully),
        5 => clock_op(),
        2 => (node(), proxy(), any::<u8>()).prop_map(|(node, proxy, variant)| Op::Report { node, proxy, variant }),
        1 => node().prop_map(|node| Op::Explain { node }),
        1 => prop_oneof![Just(Op::CheckAll), Just(Op::Walk), Just(Op::Snapshot)],
    ]
}

/// Clock steps: within a tick, some ticks, about an interval, several intervals, backwards.
fn clock_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (1_u32..2_500).prop_map(|micros| Op::Advance { micros }),
        3 => (1_u32..60).prop_map(|millis| Op::Advance { micros: millis * 1_000 }),
        3 => (-1_i8..=2).prop_map(|off_by| Op::AdvanceByInterval { off_by }),
        1 => (100_u32..500).prop_map(|millis| Op::Advance { micros: millis * 1_000 }),
        2 => (1_u16..400).prop_map(|millis| Op::StepBack { millis }),
    ]
}

/// Operations on ranges of nodes, so that a table grows, empties and fills again.
fn bulk_op() -> impl Strategy<Value = Op> {
    let (first, count) = (any::<u16>, || prop_oneof![1_u16..50, 200_u16..3_000]);
    prop_oneof![
        6 => (first(), count(), any::<u16>())
            .prop_map(|(first, count, proxy)| Op::AddRange { first, count, proxy }),
        3 => (first(), count(), any::<u16>())
            .prop_map(|(first, count, proxy)| Op::AddBatch { first, count, proxy }),
        2 => (first(), count()).prop_map(|(first, count)| Op::RemoveRange { first, count }),
        1 => (50_u16..2_000).prop_map(|max_records| Op::Sweep { max_records }),
        4 => any_op(),
    ]
}

/// Operations that fill two nodes with routes, and rarely remove a route.
fn spread_op() -> impl Strategy<Value = Op> {
    let number = any::<u16>;
    prop_oneof![
        8 => (number(), number(), 1_u16..=70)
            .prop_map(|(node, first, count)| Op::Spread { node, first, count }),
        8 => (number(), number()).prop_map(|(node, proxy)| Op::Add { node, proxy }),
        4 => number().prop_map(|node| Op::Get { node }),
        2 => (number(), number()).prop_map(|(node, proxy)| Op::RemoveRoute { node, proxy }),
        4 => (1_u32..300).prop_map(|millis| Op::Advance { micros: millis * 1_000 }),
        2 => any_op(),
    ]
}

proptest! {
    #![proptest_config(config(512))]

    /// A few nodes and proxies, so that everything collides with everything.
    #[test]
    fn table_equals_model(ops in vec(any_op(), 1..150)) {
        run(Setup::default(), &ops)?;
    }

    /// One interval is one tick: every step of the clock expires something.
    #[test]
    fn table_equals_model_with_an_interval_of_a_tick(ops in vec(any_op(), 1..80)) {
        run(Setup { keep_alive: Duration::from_millis(1), nodes: 3, proxies: 3, ..Setup::default() }, &ops)?;
    }

    /// So few routes and proxies are allowed that most additions meet a limit.
    #[test]
    fn table_equals_model_at_its_limits(
        ops in vec(any_op(), 1..150),
        max_routes in 1_usize..12,
        max_proxies in 1_usize..5,
    ) {
        let (max_routes, max_proxies) = (Some(max_routes), Some(max_proxies));
        run(Setup { max_routes, max_proxies, ..Setup::default() }, &ops)?;
    }
}

proptest! {
    #![proptest_config(config(96))]

    /// More proxies reach a node than it can have routes.
    #[test]
    fn table_equals_model_with_70_proxies_on_a_node(ops in vec(spread_op(), 1..100)) {
        run(Setup { nodes: 2, proxies: 70, keep_alive: Duration::from_secs(1), ..Setup::default() }, &ops)?;
    }

    /// As above, and a limit on routes that two full nodes reach.
    #[test]
    fn table_equals_model_with_full_nodes_at_the_limit(ops in vec(spread_op(), 1..100), max_routes in 60_usize..130) {
        let max_routes = Some(max_routes);
        run(Setup { nodes: 2, proxies: 70, keep_alive: Duration::from_secs(1), max_routes, ..Setup::default() }, &ops)?;
    }
}

proptest! {
    #![proptest_config(config(48))]

    /// Thousands of nodes come and go, so that the index grows, compacts and shrinks.
    #[test]
    fn table_equals_model_with_thousands_of_nodes(ops in vec(bulk_op(), 1..60), nodes in 100_u16..6_000) {
        run(Setup { nodes, proxies: 4, ..Setup::default() }, &ops)?;
    }
}
