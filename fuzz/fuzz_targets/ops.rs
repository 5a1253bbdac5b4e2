//! Any sequence of operations, applied to a table and to its model. See `fuzz/README.md`.
#![no_main]

#[path = "../../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::model::Setup;
use common::ops::{Op, Subject};
use libfuzzer_sys::fuzz_target;

/// Takes numbers from the front of the input; zeros when it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    fn small(&mut self) -> u16 {
        self.byte().into()
    }

    fn number(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn setup(&mut self) -> Setup {
        let kind = self.byte();
        Setup {
            keep_alive: Duration::from_millis([100, 1, 1_000, 7][usize::from(kind & 3)]),
            nodes: [6, 2, 300, 2_000][usize::from(kind >> 2 & 3)],
            proxies: [5, 2, 70, 3][usize::from(kind >> 4 & 3)],
            max_routes: (kind & 64 != 0).then(|| usize::from(self.byte()) + 1),
            max_proxies: (kind & 128 != 0).then(|| usize::from(self.byte() % 8) + 1),
        }
    }

    fn op(&mut self) -> Op {
        match self.byte() % 24 {
            0 => Op::Register {
                proxy: self.small(),
                variant: self.byte(),
            },
            1 => Op::Details { proxy: self.small() },
            2 => Op::RemoveProxy { proxy: self.small() },
            3..=5 => Op::Add {
                node: self.number(),
                proxy: self.small(),
            },
            6 => Op::AddRange {
                first: self.number(),
                count: self.number() % 512,
                proxy: self.small(),
            },
            7 => Op::Spread {
                node: self.number(),
                first: self.small(),
                count: self.small() % 80,
            },
            8 => Op::AddBatch {
                first: self.number(),
                count: self.number() % 512,
                proxy: self.small(),
            },
            9 => Op::RefreshHandles { proxy: self.small() },
            10 => Op::AddByOldRef {
                node: self.number(),
                which: self.small(),
            },
            11 => Op::Get { node: self.number() },
            12 => Op::RemoveNode { node: self.number() },
            13 => Op::RemoveRange {
                first: self.number(),
                count: self.number() % 512,
            },
            14 => Op::RemoveRoute {
                node: self.number(),
                proxy: self.small(),
            },
            15 => Op::Sweep {
                max_records: self.small() + 1,
            },
            16 => Op::SweepFully,
            17 => Op::Advance {
                micros: u32::from(self.number()) * 4,
            },
            18 => Op::AdvanceByInterval {
                off_by: self.byte() as i8 % 3,
            },
            19 => Op::StepBack { millis: self.small() },
            20 => Op::Report {
                node: self.number(),
                proxy: self.small(),
                variant: self.byte(),
            },
            21 => Op::Explain { node: self.number() },
            22 => Op::Walk,
            _ => Op::Snapshot,
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut subject = Subject::new(input.setup());
    while !input.0.is_empty() {
        let op = input.op();
        subject.apply(op).unwrap_or_else(|message| panic!("{op:?}: {message}"));
    }
    subject
        .finish()
        .unwrap_or_else(|message| panic!("at the end: {message}"));
});
