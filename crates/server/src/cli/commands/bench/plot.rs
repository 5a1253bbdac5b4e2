//! The latencies by percentile, as SVG, as HdrHistogram's plots: the tail has as much room as the rest.
//!
//! Own code: a crate for plots would need some thousand lines for these two axes and a line.

use std::fmt::Write;

use hdrhistogram::Histogram;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
/// The place of the axes.
const LEFT: f64 = 70.0;
const RIGHT: f64 = WIDTH - 30.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = HEIGHT - 55.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#24292f}.page{fill:#fff}.grid{stroke:#d0d7de}\
.line{fill:none;stroke:#0969da;stroke-width:2;stroke-linejoin:round}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117}.grid{stroke:#30363d}.line{stroke:#58a6ff}}";

/// Points of the line for each power of ten.
const STEPS: u32 = 20;

/// Returns pairs of the number of nines of a percentile and the latency in milliseconds: 2 nines are the 99th
/// percentile. Ends with the percentile above which there is one call.
pub(super) fn spectrum(latencies: &Histogram<u64>) -> Vec<(f64, f64)> {
    if latencies.is_empty() {
        return Vec::new();
    }
    let last = (latencies.len() as f64).log10();
    let steps = (last * f64::from(STEPS)).ceil() as u32;
    let point = |step| {
        let nines = f64::from(step) / f64::from(STEPS);
        let quantile = 1.0 - 10_f64.powf(-nines);
        (nines, millis(latencies.value_at_quantile(quantile)))
    };
    (0..steps).map(point).chain([(last, millis(latencies.max()))]).collect()
}

fn millis(nanos: u64) -> f64 {
    nanos as f64 / 1e6
}

/// Draws a spectrum.
pub(super) fn draw(title: &str, spectrum: &[(f64, f64)]) -> String {
    // Both axes have at least one power of ten.
    let right = spectrum.last().map_or(1.0, |(nines, _)| nines.ceil().max(1.0));
    let decades = spectrum.iter().map(|(_, millis)| millis.log10());
    let lowest = decades.clone().fold(f64::INFINITY, f64::min).floor().clamp(-6.0, 6.0);
    // A latency that the histogram rounded up to just above a power of ten needs no further decade.
    let highest = decades.fold(f64::NEG_INFINITY, f64::max) - 0.001;
    let highest = highest.ceil().clamp(lowest + 1.0, 8.0);
    let x = |nines: f64| LEFT + nines / right * (RIGHT - LEFT);
    let y = |decade: f64| BOTTOM - (decade - lowest) / (highest - lowest) * (BOTTOM - TOP);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    text(&mut svg, (LEFT, TOP - 25.0), "start", title);
    for nines in 0..=right as u32 {
        let x = x(nines.into());
        _ = writeln!(svg, "<path class=\"grid\" d=\"M{x:.1} {TOP}V{BOTTOM}\"/>");
        text(&mut svg, (x, BOTTOM + 20.0), "middle", &percent(nines));
    }
    text(&mut svg, ((LEFT + RIGHT) / 2.0, BOTTOM + 42.0), "middle", "percentile");
    for decade in lowest as i32..=highest as i32 {
        let y = y(decade.into());
        _ = writeln!(svg, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>");
        text(
            &mut svg,
            (LEFT - 8.0, y + 4.0),
            "end",
            &format!("{} ms", 10_f64.powi(decade)),
        );
    }
    let points: Vec<_> = spectrum
        .iter()
        .map(|(nines, millis)| format!("{:.1},{:.1}", x(*nines), y(millis.log10().clamp(lowest, highest))))
        .collect();
    _ = writeln!(
        svg,
        "<polyline class=\"line\" points=\"{}\"/>\n</svg>",
        points.join(" ")
    );
    svg
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

/// Returns the percentile with this many nines.
fn percent(nines: u32) -> String {
    match nines {
        0 => "0".into(),
        1 => "90".into(),
        2 => "99".into(),
        more => format!("99.{}", "9".repeat(more as usize - 2)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(svg: &str) -> Vec<(f64, f64)> {
        let (_, points) = svg.split_once("points=\"").unwrap();
        let (points, _) = points.split_once('"').unwrap();
        let point = |point: &str| {
            let (x, y) = point.split_once(',').unwrap();
            (x.parse().unwrap(), y.parse().unwrap())
        };
        points.split_whitespace().map(point).collect()
    }

    #[test]
    fn the_line_climbs_from_the_first_percentile_to_the_slowest_call() {
        let mut latencies = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for (nanos, count) in [(1_000_000, 900), (5_000_000, 90), (10_000_000, 9), (100_000_000, 1)] {
            latencies.record_n(nanos, count).unwrap();
        }
        let spectrum = spectrum(&latencies);
        assert_eq!(spectrum.len(), 61);
        for (nines, expected) in [(0.0, 1.0), (0.9, 1.0), (1.5, 5.0), (2.5, 10.0), (3.0, 100.0)] {
            let (_, millis) = spectrum.iter().find(|(at, _)| (at - nines).abs() < 1e-9).unwrap();
            assert!((millis / expected - 1.0).abs() < 0.001, "{nines}: {millis}");
        }
        let svg = draw("a title", &spectrum);
        let points = points(&svg);
        assert_eq!(points.len(), spectrum.len());
        assert!(
            points
                .windows(2)
                .all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 >= pair[1].1)
        );
        assert_eq!(points.last(), Some(&(RIGHT, TOP)));
        for label in [
            "a title", ">0<", ">90<", ">99<", ">99.9<", ">1 ms<", ">10 ms<", ">100 ms<",
        ] {
            assert!(svg.contains(label), "{label}");
        }
    }

    #[test]
    fn one_call_or_none_can_be_drawn() {
        let mut latencies = Histogram::new(3).unwrap();
        assert_eq!(points(&draw("", &spectrum(&latencies))), []);
        latencies.record(1_000_000).unwrap();
        let points = points(&draw("", &spectrum(&latencies)));
        assert!(
            points
                .iter()
                .all(|(x, y)| (LEFT..=RIGHT).contains(x) && (TOP..=BOTTOM).contains(y)),
            "{points:?}"
        );
    }
}
