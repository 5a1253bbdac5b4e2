//! Line charts as SVG, readable on a light and on a dark page.

use std::fmt::Write;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 360.0;
/// The tops and bottoms of the panels.
const TOP: f64 = 78.0;
const BOTTOM: f64 = HEIGHT - 52.0;
/// Beside a panel: for the values' labels, and after it.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 28.0;

const STYLE: &str = "\
text{font:13px system-ui,sans-serif;fill:#24292f}.page{fill:#fff}.grid{stroke:#d0d7de}.title{font-weight:600}\
.line{fill:none;stroke-width:2;stroke-linejoin:round}.table{stroke-width:3.5}\
.blue{stroke:#0969da}.orange{stroke:#bc4c00}.green{stroke:#1a7f37}.purple{stroke:#8250df}.grey{stroke:#6e7781}\
.red{stroke:#cf222e}.pink{stroke:#bf3989}.dashed{stroke-dasharray:7 4}.dotted{stroke-dasharray:2 4}.dot{stroke-dasharray:none}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117}.grid{stroke:#30363d}\
.blue{stroke:#58a6ff}.orange{stroke:#f0883e}.green{stroke:#3fb950}.purple{stroke:#a371f7}.grey{stroke:#8b949e}\
.red{stroke:#ff7b72}.pink{stroke:#f778ba}}";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    Linear,
    Logarithmic,
}

#[derive(Debug, Clone)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) scale: Scale,
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// The positions of the labels, and their texts.
    pub(crate) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Which part of the axis is before a value.
    fn part(&self, value: f64) -> f64 {
        let value = value.clamp(self.from, self.to);
        match self.scale {
            Scale::Linear => (value - self.from) / (self.to - self.from),
            Scale::Logarithmic => (value / self.from).ln() / (self.to / self.from).ln(),
        }
    }

    /// An axis from zero on, in round steps to a little beyond a value.
    pub(crate) fn up_to(label: &str, value: f64) -> Self {
        let magnitude = 10_f64.powf(value.log10().floor());
        let step = [0.2, 0.5, 1.0, 2.0]
            .into_iter()
            .map(|step| step * magnitude)
            .find(|step| value / step <= 6.0)
            .unwrap_or(magnitude);
        let steps = (value / step).ceil();
        let tick = |at: u32| {
            let value = f64::from(at) * step;
            (value, format!("{}", (value * 1e6).round() / 1e6))
        };
        Self {
            label: label.into(),
            scale: Scale::Linear,
            from: 0.0,
            to: steps * step,
            ticks: (0..=steps as u32).map(tick).collect(),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    /// Of those in [`STYLE`].
    pub(crate) class: &'static str,
    pub(crate) points: Vec<(f64, f64)>,
    /// Whether each point is to be seen.
    pub(crate) has_dots: bool,
}

/// One diagram; those of a chart are side by side.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn text(x: f64, y: f64, attributes: &str, text: &str) -> String {
    format!(
        "<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{}</text>\n",
        escaped(text)
    )
}

/// Draws the panels under one title and one legend, which is the first panel's.
pub(crate) fn draw(title: &str, panels: &[Panel]) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n<rect class=\"page\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n",
        escaped(title)
    );
    svg += &text(16.0, 22.0, "class=\"title\"", title);
    let mut x = 16.0;
    for series in panels.first().map(|panel| &panel.series).into_iter().flatten() {
        _ = writeln!(svg, "<path class=\"line {}\" d=\"M{x:.1} 41h22\"/>", series.class);
        svg += &text(x + 27.0, 45.0, "", &series.name);
        // The width of a letter, on the average.
        x += 43.0 + 7.3 * series.name.len() as f64;
    }
    let width = WIDTH / panels.len() as f64;
    for (at, panel) in panels.iter().enumerate() {
        draw_panel(&mut svg, panel, at as f64 * width, width);
    }
    svg + "</svg>\n"
}

fn draw_panel(svg: &mut String, panel: &Panel, left: f64, width: f64) {
    let (from, to) = (left + LEFT, left + width - RIGHT);
    let x = |value| from + panel.x.part(value) * (to - from);
    let y = |value| BOTTOM - panel.y.part(value) * (BOTTOM - TOP);
    let middle = (from + to) / 2.0;
    *svg += &text(middle, TOP - 12.0, "text-anchor=\"middle\"", &panel.title);
    *svg += &text(middle, HEIGHT - 12.0, "text-anchor=\"middle\"", &panel.x.label);
    let (label_x, label_y) = (left + 15.0, (TOP + BOTTOM) / 2.0);
    let turned = format!("text-anchor=\"middle\" transform=\"rotate(-90 {label_x:.1} {label_y:.1})\"");
    *svg += &text(label_x, label_y, &turned, &panel.y.label);
    for (value, label) in &panel.y.ticks {
        let y = y(*value);
        _ = writeln!(svg, "<path class=\"grid\" d=\"M{from:.1} {y:.1}H{to:.1}\"/>");
        *svg += &text(from - 7.0, y + 4.0, "text-anchor=\"end\"", label);
    }
    for (value, label) in &panel.x.ticks {
        let x = x(*value);
        _ = writeln!(svg, "<path class=\"grid\" d=\"M{x:.1} {BOTTOM}v5\"/>");
        *svg += &text(x, BOTTOM + 19.0, "text-anchor=\"middle\"", label);
    }
    // The table's line is the first, and over the others.
    for series in panel.series.iter().rev() {
        let mut points = String::new();
        for &(at, value) in &series.points {
            _ = write!(points, "{:.1},{:.1} ", x(at), y(value));
        }
        _ = writeln!(
            svg,
            "<polyline class=\"line {}\" points=\"{}\"/>",
            series.class,
            points.trim_end()
        );
        for &(at, value) in series.points.iter().filter(|_| series.has_dots) {
            _ = writeln!(
                svg,
                "<circle class=\"line dot {}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"2\"/>",
                series.class,
                x(at),
                y(value)
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(points: Vec<(f64, f64)>) -> Panel {
        Panel {
            title: "a < b".into(),
            x: Axis {
                label: "routes".into(),
                scale: Scale::Logarithmic,
                from: 1e4,
                to: 1e6,
                ticks: vec![(1e4, "10k".into())],
            },
            y: Axis::up_to("B", 44.0),
            series: vec![Series {
                name: "a & b".into(),
                class: "blue",
                points,
                has_dots: true,
            }],
        }
    }

    #[test]
    fn every_point_is_inside_of_its_panel() {
        let panels = [
            panel(vec![(1.0, -1.0), (1e9, 99.0)]),
            panel(vec![(1e4, 0.0), (1e5, 30.0), (1e6, 45.0)]),
        ];
        let svg = draw("title", &panels);
        let lines: Vec<_> = svg.lines().filter(|line| line.starts_with("<polyline")).collect();
        assert_eq!(lines.len(), panels.len());
        for (at, line) in lines.into_iter().enumerate() {
            let (_, points) = line.split_once("points=\"").unwrap();
            for point in points.trim_end_matches("\"/>").split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let left = at as f64 * WIDTH / 2.0;
                assert!(
                    (left + LEFT..=left + WIDTH / 2.0 - RIGHT).contains(&x.parse().unwrap()),
                    "{point}"
                );
                assert!((TOP..=BOTTOM).contains(&y.parse().unwrap()), "{point}");
            }
        }
        assert!(svg.contains("a &lt; b") && svg.contains("a &amp; b"));
    }

    #[test]
    fn an_axis_ends_at_a_round_step_beyond_the_value() {
        for (value, to) in [(44.0, 50.0), (133.2, 150.0), (7.7, 8.0), (12.0, 12.0), (0.31, 0.4)] {
            let axis = Axis::up_to("", value);
            assert!((axis.to - to).abs() < 1e-9, "{value}: {}", axis.to);
            assert!(axis.ticks.len() <= 8, "{value}");
        }
    }
}
