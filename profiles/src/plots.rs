//! The plots, and their data.

use crate::chart::{Axis, Panel, Scale, Series, draw};
use crate::programs::Point;
use crate::results::{Comparison, Results};
use crate::speed::size;

/// A contestant's line.
fn class(name: &str) -> &'static str {
    match name {
        "nodetracker" => "table blue",
        "dashmap" => "orange",
        "dashmap, 256 shards" => "orange dashed",
        "scc" => "green",
        "papaya" => "purple",
        "RwLock<HashMap>" => "grey",
        _ => "pink dotted",
    }
}

fn series(name: &str, points: Vec<(f64, f64)>, has_dots: bool) -> Series {
    Series {
        name: name.into(),
        class: class(name),
        points,
        has_dots,
    }
}

/// A logarithmic axis with a label at each power of ten, from the first one's.
fn powers(label: &str, from: f64, labels: &[&str]) -> Axis {
    let ticks = (0..)
        .zip(labels)
        .map(|(at, label)| (from * 10_f64.powi(at), (*label).into()));
    let ticks: Vec<_> = ticks.collect();
    Axis {
        label: label.into(),
        scale: Scale::Logarithmic,
        from,
        to: ticks.last().map_or(from, |(to, _)| *to),
        ticks,
    }
}

fn sizes() -> Axis {
    powers("routes", 1e4, &["10k", "100k", "1M", "10M"])
}

/// The table's own bytes, with the budgets as steps: each from a size on.
pub(crate) fn bytes_of_table(curve: &[Point], budgets: &[(f64, f64)]) -> String {
    let x = sizes();
    let steps = budgets.iter().enumerate().flat_map(|(at, &(from, bytes))| {
        let to = budgets.get(at + 1).map_or(x.to, |&(to, _)| to);
        [(from, bytes), (to, bytes)]
    });
    let line = |name: &str, class, points| Series {
        name: name.into(),
        class,
        points,
        has_dots: false,
    };
    let measured = curve.iter().map(|point| (point.routes as f64, point.peak)).collect();
    let series = vec![
        line("the table", "table blue", measured),
        line("budget", "red dashed", steps.collect()),
        line("a record alone", "grey dotted", vec![(x.from, 24.0), (x.to, 24.0)]),
    ];
    let panel = Panel {
        title: String::new(),
        y: Axis::up_to("bytes per route", 60.0),
        x,
        series,
    };
    draw("Peak heap bytes per route, over 1,000 proxies", &[panel])
}

/// The same beside the peers.
pub(crate) fn bytes_of_all(record: &Results) -> String {
    let curves = record.curves();
    let most = curves.iter().flat_map(|(_, points)| points).map(|&(_, bytes)| bytes);
    let panel = Panel {
        title: String::new(),
        x: sizes(),
        y: Axis::up_to("bytes per route", most.fold(1.0, f64::max)),
        // The locked map takes as much as the unsynchronised map, and lies over it.
        series: curves
            .into_iter()
            .filter(|(name, _)| *name != "hashbrown, one thread")
            .map(|(name, points)| series(name, points, false))
            .collect(),
    };
    draw("Peak heap bytes per route", &[panel])
}

/// Operations over threads.
pub(crate) fn throughput(record: &Results) -> Option<String> {
    over_threads(
        record,
        "Throughput, one million routes, uniform, on two cores",
        ["one refresh in twenty, else look-up", "half refresh, half look-up"],
        &[1, 2, 4],
        1_000_000,
    )
}

/// Throughput over threads from a record of `scaling`.
pub(crate) fn scaling(record: &Results) -> Option<String> {
    let (cores, nodes) = (record.machine.cores, record.nodes()?);
    over_threads(
        record,
        &format!(
            "Throughput by the wall, {} routes, uniform, on {cores} cores",
            size(nodes)
        ),
        ["look-up", "half refresh, half look-up"],
        &record.threads(),
        nodes,
    )
}

/// Throughput over threads, with a panel for each operation. `None` if the record lacks a row.
fn over_threads(
    record: &Results,
    title: &str,
    operations: [&'static str; 2],
    threads: &[usize],
    nodes: usize,
) -> Option<String> {
    // A line needs two points.
    let &[first, .., last] = threads else { return None };
    let all = operations.map(|operation| {
        let rows: Option<Vec<_>> = threads
            .iter()
            .map(|&count| Some((count, record.comparison(operation, count, "uniform", nodes)?)))
            .collect();
        Some((operation, rows?))
    });
    let all: Vec<_> = all.into_iter().collect::<Option<_>>()?;
    let figures = all
        .iter()
        .flat_map(|(_, rows)| rows.iter().flat_map(|(_, row)| &row.contestants));
    let most = figures.map(|figure| figure.mops()).fold(1.0, f64::max);
    let panels = all.iter().map(|(operation, rows)| {
        let contestants = rows.iter().take(1).flat_map(|(_, row)| &row.contestants);
        let line = |name: &str| {
            let of = |&(count, row): &(usize, &Comparison)| Some((count as f64, row.of(name)?.mops()));
            series(name, rows.iter().filter_map(of).collect(), true)
        };
        Panel {
            title: (*operation).into(),
            x: Axis {
                label: "threads".into(),
                scale: Scale::Logarithmic,
                from: first as f64,
                to: last as f64,
                ticks: threads.iter().map(|&count| (count as f64, count.to_string())).collect(),
            },
            y: Axis::up_to("million operations per second", most),
            series: contestants.map(|contestant| line(&contestant.name)).collect(),
        }
    });
    Some(draw(title, &panels.collect::<Vec<_>>()))
}

/// How many insertions of a million took longer than a time.
pub(crate) fn pauses(record: &Results) -> String {
    let lines = record.histograms().into_iter().map(|(name, counts)| {
        let total: f64 = counts.iter().map(|&(_, count)| count).sum();
        let mut longer = total;
        let mut points = Vec::new();
        for (nanos, count) in counts {
            points.push((nanos / 1e3, longer / total * 1e6));
            longer -= count;
        }
        series(name, points, false)
    });
    let panel = Panel {
        title: String::new(),
        x: powers(
            "an insert takes at least",
            0.1,
            &["100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms"],
        ),
        y: powers(
            "inserts of a million",
            0.1,
            &["0.1", "1", "10", "100", "1k", "10k", "100k", "1M"],
        ),
        series: lines.collect(),
    };
    draw("Pauses of single inserts, from empty to one million routes", &[panel])
}
