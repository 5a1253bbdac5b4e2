//! The plot of bytes per route over size, as an SVG that is readable on a light and on a dark page.

use std::fmt::Write;

use crate::programs::Point;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 340.0;
/// Margins: left, right, top, bottom.
const MARGINS: [f64; 4] = [56.0, 24.0, 44.0, 44.0];
const TOP_BYTES: f64 = 60.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#24292f}\
.page{fill:#fff}.grid{stroke:#d0d7de}.title{font-weight:600}\
.peak{stroke:#0969da}.budget{stroke:#cf222e}.record{stroke:#6e7781}\
.peak,.budget,.record{fill:none;stroke-width:2}.budget{stroke-dasharray:6 4}.record{stroke-dasharray:2 4}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117}.grid{stroke:#30363d}\
.peak{stroke:#58a6ff}.budget{stroke:#ff7b72}.record{stroke:#8b949e}}";

/// One plot; sizes are on a logarithmic scale.
struct Plot {
    from: f64,
    to: f64,
}

impl Plot {
    fn x(&self, routes: f64) -> f64 {
        let [left, right, ..] = MARGINS;
        left + (routes / self.from).ln() / (self.to / self.from).ln() * (WIDTH - left - right)
    }

    fn y(bytes: f64) -> f64 {
        let [_, _, top, bottom] = MARGINS;
        HEIGHT - bottom - bytes / TOP_BYTES * (HEIGHT - top - bottom)
    }

    fn line(&self, class: &str, points: impl Iterator<Item = (f64, f64)>) -> String {
        let mut line = format!("<polyline class=\"{class}\" points=\"");
        for (routes, bytes) in points {
            _ = write!(line, "{:.1},{:.1} ", self.x(routes), Self::y(bytes.min(TOP_BYTES)));
        }
        line.truncate(line.trim_end().len());
        line + "\"/>\n"
    }
}

fn text(x: f64, y: f64, attributes: &str, text: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{text}</text>\n")
}

/// Draws the curve, with the budgets as steps: each from a size on.
pub(crate) fn draw(curve: &[Point], budgets: &[(f64, f64)]) -> Option<String> {
    let (first, last) = (curve.first()?, curve.last()?);
    let plot = Plot {
        from: first.routes as f64,
        to: last.routes as f64,
    };
    let [left, right, ..] = MARGINS;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>Peak heap bytes per route, by routes</title>\n<style>{STYLE}</style>\n\
         <rect class=\"page\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    svg += &text(
        left,
        24.0,
        "class=\"title\"",
        "Peak heap bytes per route, by routes (1,000 proxies)",
    );
    for bytes in (0..=TOP_BYTES as u32).step_by(10) {
        let y = Plot::y(bytes.into());
        let to = WIDTH - right;
        _ = writeln!(svg, "<path class=\"grid\" d=\"M{left} {y:.1}H{to}\"/>");
        svg += &text(left - 8.0, y + 4.0, "text-anchor=\"end\"", &bytes.to_string());
    }
    for (routes, label) in [(1e4, "10k"), (1e5, "100k"), (1e6, "1M"), (1e7, "10M")] {
        if routes <= plot.to {
            svg += &text(plot.x(routes), HEIGHT - 20.0, "text-anchor=\"middle\"", label);
        }
    }
    let steps = budgets.iter().enumerate().flat_map(|(i, &(from, bytes))| {
        let to = budgets.get(i + 1).map_or(plot.to, |&(to, _)| to);
        [(from, bytes), (to, bytes)]
    });
    svg += &plot.line("budget", steps);
    svg += &plot.line("record", [(plot.from, 24.0), (plot.to, 24.0)].into_iter());
    svg += &plot.line("peak", curve.iter().map(|point| (point.routes as f64, point.peak)));
    let end = "text-anchor=\"end\"";
    let at = WIDTH - right - 4.0;
    svg += &text(at, Plot::y(24.0) - 8.0, end, "a record alone: 24");
    if let Some(&(_, bytes)) = budgets.last() {
        svg += &text(at, Plot::y(bytes) - 10.0, end, &format!("budget: {bytes}"));
    }
    Some(svg + "</svg>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_is_inside_of_the_picture() {
        let point = |routes, peak| Point {
            routes,
            peak,
            live: peak,
        };
        let curve = [point(10_000, 99.0), point(100_000, 35.0), point(1_000_000, 30.0)];
        let svg = draw(&curve, &[(1e4, 40.0), (1e5, 31.0)]).unwrap();
        for line in svg.lines().filter(|line| line.contains("polyline")) {
            let (_, points) = line.split_once("points=\"").unwrap();
            for point in points.trim_end_matches("\"/>").split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                assert!((0.0..=WIDTH).contains(&x.parse().unwrap()), "{point}");
                assert!((0.0..=HEIGHT).contains(&y.parse().unwrap()), "{point}");
            }
        }
        assert_eq!(draw(&[], &[]), None);
    }
}
