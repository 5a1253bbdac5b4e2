//! Tables that are filled, and nothing else.

use std::time::Duration;

use nodetracker::{Added, RouteTable};

use crate::heap::{live, peak};
use crate::input::{Fleet, KEEP_ALIVE, named_node, node, register_at};
use crate::programs::{Findings, Point};

const MILLION: u64 = 1_000_000;

fn peak_per(routes: u64) -> f64 {
    peak() as f64 / routes as f64
}

pub(crate) fn one_million(findings: &mut Findings) {
    let _fleet = Fleet::with_nodes(MILLION);
    findings.found("one-million", peak_per(MILLION));
}

pub(crate) fn ten_thousand(findings: &mut Findings) {
    let _fleet = Fleet::with_nodes(10_000);
    findings.found("ten-thousand", peak_per(10_000));
}

/// A table that grows through every size. Up to each size, its peak is the peak of a table filled to this size.
pub(crate) fn every_size(findings: &mut Findings) {
    let fleet = Fleet::new();
    let mut worst = [0.0; 2];
    let mut next = 10_000;
    for n in 0..findings.largest {
        fleet.add(n);
        let routes = n + 1;
        if routes < 10_000 {
            continue;
        }
        let per_route = peak_per(routes);
        let worst = &mut worst[usize::from(routes >= 100_000)];
        *worst = per_route.max(*worst);
        if routes == next || routes == findings.largest {
            findings.curve.push(Point {
                routes,
                peak: per_route,
                live: live() as f64 / routes as f64,
            });
            // Steps of 1 %: enough to see every shard that grows, or that all do.
            next += next / 100;
        }
    }
    findings.found("from-10k", worst[0]);
    findings.found("from-100k", worst[1]);
}

pub(crate) fn two_routes(findings: &mut Findings) {
    let fleet = Fleet::with_nodes(MILLION);
    fleet.clock.advance(KEEP_ALIVE / 2);
    for n in 0..MILLION {
        assert_eq!(fleet.add_second(n), Added::Inserted);
    }
    findings.found("two-routes", peak_per(2 * MILLION));
}

/// The benchmark of the prototype that the design began with: every node comes with a proxy of its own.
pub(crate) fn prototype(findings: &mut Findings) {
    let table = RouteTable::builder()
        .keep_alive(Duration::from_secs(300))
        .build()
        .expect("possible limits");
    for n in 0..MILLION {
        let proxy = register_at(&table, n, "proxy:3080");
        table.add_node(&node(n), proxy).expect("there is room for the route");
    }
    findings.found("prototype", peak_per(MILLION));
}

pub(crate) fn names(findings: &mut Findings) {
    let fleet = Fleet::new();
    for n in 0..MILLION {
        fleet.add_through(&named_node(n), fleet.proxy(n));
    }
    findings.found("names", peak_per(MILLION));
}
