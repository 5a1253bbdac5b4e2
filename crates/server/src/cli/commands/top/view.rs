//! Draws the model: on a screen of any size, and as plain lines.
//!
//! A text that has no room ends with an ellipsis, so that no part of a figure looks like a figure. If a table is too
//! wide, the sparklines are left out first, and then columns from the right.

use clap::ValueEnum;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{RenderDirection, Sparkline, Widget};
use tokio::time::Instant;

use crate::cli::commands::top::model::Model;
use crate::cli::commands::top::scrape::BUILD_INFO;
use crate::cli::commands::top::tabs::{Row, Tab, Table};
use crate::cli::commands::top::ui::Ui;
use crate::cli::print::{age, visible};
use crate::config::duration;

/// Marks a row at which an operator should look.
const ALERT: &str = "!";
/// The columns of the mark, and the gap between columns.
const GAP: u16 = 2;
/// The most columns of a text.
const MAX_TEXT: u16 = 1000;
/// The least columns of a name, and of a sparkline.
const MIN_NAME: u16 = 20;
const MIN_RATES: u16 = 8;
/// The most columns of a sparkline.
const MAX_RATES: u16 = 60;

const HELP: &[&str] = &[
    "1 to 5            the tabs; also Tab, Shift-Tab and the arrows left and right",
    "arrows, PgUp/PgDn scroll",
    "p                 pause: keep these figures, and read no further ones",
    "? or h            this help",
    "q, Esc, Ctrl-C    leave",
    "",
    "A row or a tab with ! needs a look; ops/alerts.yaml has the same bounds.",
    "Rates and latencies are those of the last interval. A latency is exact to a",
    "factor of two. Sparklines show the rates of earlier intervals, each on a",
    "scale of its own; the newest is on the right.",
    "Calls that a client cancelled are no failures.",
];

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, ui: &mut Ui, now: Instant) {
    let [head, tabs, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let buffer = frame.buffer_mut();
    draw_head(head, buffer, model, ui, now);
    draw_tabs(tabs, buffer, model, ui.tab);
    if ui.is_help {
        for (area, line) in body.rows().zip(HELP) {
            put(area, buffer, line, Style::new());
        }
    } else if model.interval().is_none() {
        let lines = match model.failure(now) {
            Some((error, _)) => [visible(&error.to_string()), error.hint(&ui.addr)],
            None => ["waiting for the first figures".to_owned(), String::new()],
        };
        for (area, line) in body.rows().zip(&lines) {
            put(area, buffer, line, Style::new());
        }
    } else {
        draw_table(body, buffer, &ui.tab.table(model), &mut ui.scroll);
    }
    let keys = "q quit  1-5 tabs  ? help  p pause";
    put(foot, buffer, keys, Style::new());
    if !ui.has_colors {
        for cell in &mut buffer.content {
            cell.fg = Color::Reset;
        }
    }
}

/// Draws who the tracker is, and how old its figures are. The part that matters most is first.
fn draw_head(area: Rect, buffer: &mut Buffer, model: &Model, ui: &Ui, now: Instant) {
    let mut texts = Vec::new();
    if let Some((error, since)) = model.failure(now) {
        let reason = visible(&error.to_string());
        texts.push((format!("LOST for {}: {reason}", age(since)), alert_style()));
    } else if ui.is_paused {
        texts.push(("PAUSED".to_owned(), alert_style()));
    }
    let interval = model.interval();
    let versions = interval.map(|interval| interval.values(BUILD_INFO, &["version"]));
    let version = versions.and_then(|versions| versions.into_keys().next());
    let name = match version {
        Some(version) => format!("nodetracker {} at {}", visible(&version.concat()), ui.addr),
        None => format!("nodetracker at {}", ui.addr),
    };
    texts.push((name, Style::new().add_modifier(Modifier::BOLD)));
    texts.push((format!("every {}", duration::format(ui.interval)), Style::new()));
    let mut rest = area;
    for (text, style) in texts {
        let used = put(rest, buffer, &text, style);
        rest = skip(rest, used + GAP);
    }
}

/// Draws the titles of the tabs, or the numbers if the titles have no room. Marks the tabs with marked rows.
fn draw_tabs(area: Rect, buffer: &mut Buffer, model: &Model, selected: Tab) {
    let tabs = Tab::value_variants().iter().zip(1..);
    let spans = |with_titles: bool| {
        tabs.clone().map(move |(&tab, number)| {
            let is_selected = tab == selected;
            let mark = if tab.is_alert(model) { ALERT } else { " " };
            let text = match with_titles || is_selected {
                true => format!("{mark}{number} {} ", tab.title()),
                false => format!("{mark}{number} "),
            };
            let modifier = if is_selected {
                Modifier::REVERSED
            } else {
                Modifier::empty()
            };
            Span::styled(text, Style::new().add_modifier(modifier))
        })
    };
    let titles = Line::from_iter(spans(true));
    match titles.width() <= area.width.into() {
        true => titles.render(area, buffer),
        false => Line::from_iter(spans(false)).render(area, buffer),
    }
}

/// Draws a table from row `scroll` on. Corrects `scroll` if it is beyond the end.
fn draw_table(area: Rect, buffer: &mut Buffer, table: &Table, scroll: &mut usize) {
    let columns = Columns::new(table, area.width);
    let mut lines = area.rows();
    if !table.heading.is_empty()
        && let Some(line) = lines.next()
    {
        let heading = Row {
            cells: table.heading.iter().map(|&text| text.to_owned()).collect(),
            ..Row::default()
        };
        columns.draw(line, buffer, &heading, Style::new().add_modifier(Modifier::BOLD));
    }
    let lines: Vec<_> = lines.collect();
    let note = usize::from(!table.note.is_empty());
    let needed = table.rows.len() + note;
    // The last line shows that there is more.
    let room = if needed > lines.len() {
        lines.len().saturating_sub(1)
    } else {
        lines.len()
    };
    *scroll = (*scroll).min(needed.saturating_sub(room));
    let shown = table.rows.iter().skip(*scroll);
    for (line, row) in lines.iter().take(room).zip(shown) {
        let style = if row.is_alert { alert_style() } else { Style::new() };
        columns.draw(*line, buffer, row, style);
    }
    let end = needed.saturating_sub(*scroll);
    if note > 0 && end <= room && end > 0 {
        put(skip(lines[end - 1], GAP), buffer, &table.note, Style::new());
    }
    if let Some(last) = lines.last().filter(|_| needed > lines.len()) {
        let (above, below) = (*scroll, end.saturating_sub(room));
        let more = format!("{below} lines below, {above} above: arrows scroll");
        put(skip(*last, GAP), buffer, &more, Style::new());
    }
}

/// The widths of a table's columns.
#[derive(Default)]
struct Columns {
    widths: Vec<u16>,
    /// The width of the sparklines. 0 for none.
    rates: u16,
    /// Whether columns were left out.
    is_cut: bool,
    /// Whether the columns after the first are figures, which are aligned at their last digit.
    has_figures: bool,
}

impl Columns {
    fn new(table: &Table, width: u16) -> Self {
        let mut widths: Vec<_> = table.heading.iter().map(|text| text_width(text)).collect();
        for row in &table.rows {
            widths.resize(widths.len().max(row.cells.len()), 0);
            for (width, text) in widths.iter_mut().zip(&row.cells) {
                *width = (*width).max(text_width(text));
            }
        }
        // The method of a call, and the value beside a name, may be cut.
        let flexible = usize::from(table.heading.is_empty());
        let Some(&natural) = widths.get(flexible) else {
            return Self::default();
        };
        let (room, all) = (width.saturating_sub(GAP), widths.len());
        let least = natural.min(MIN_NAME);
        let others = |widths: &[u16]| widths.iter().map(|width| width + GAP).sum::<u16>() - natural - GAP;
        // An ellipsis stands for columns that are left out.
        let ellipsis = |columns: usize| if columns < all { GAP + 1 } else { 0 };
        while widths.len() > flexible + 1 && others(&widths) + least + ellipsis(widths.len()) > room {
            widths.pop();
        }
        let others = others(&widths);
        let has_rates = table.rows.iter().any(|row| row.rates.len() > 1) && others + least + GAP + MIN_RATES <= room;
        let reserved = if has_rates {
            GAP + MIN_RATES
        } else {
            ellipsis(widths.len())
        };
        widths[flexible] = natural.min(room.saturating_sub(others + reserved));
        let left = room.saturating_sub(others + widths[flexible] + GAP);
        Self {
            rates: if has_rates { left.min(MAX_RATES) } else { 0 },
            is_cut: widths.len() < all,
            has_figures: !table.heading.is_empty(),
            widths,
        }
    }

    fn draw(&self, area: Rect, buffer: &mut Buffer, row: &Row, style: Style) {
        if row.is_alert {
            put(area, buffer, ALERT, style);
        }
        let mut rest = skip(area, GAP);
        for (column, (text, &width)) in row.cells.iter().zip(&self.widths).enumerate() {
            let cell = Rect {
                width: width.min(rest.width),
                ..rest
            };
            match column > 0 && self.has_figures {
                true => put(skip(cell, width.saturating_sub(text_width(text))), buffer, text, style),
                false => put(cell, buffer, text, style),
            };
            rest = skip(rest, width + GAP);
        }
        if self.is_cut {
            put(rest, buffer, ELLIPSIS, Style::new());
        }
        if row.rates.len() > 1 {
            // Thousandths of events per second.
            let bars = row.rates.iter().rev().map(|rate| (rate * 1000.0) as u64);
            Sparkline::default()
                .data(bars.collect::<Vec<_>>())
                .direction(RenderDirection::RightToLeft)
                .render(
                    Rect {
                        width: self.rates.min(rest.width),
                        ..rest
                    },
                    buffer,
                );
        }
    }
}

/// Returns an area without its first columns.
fn skip(area: Rect, columns: u16) -> Rect {
    let columns = columns.min(area.width);
    Rect {
        x: area.x + columns,
        width: area.width - columns,
        ..area
    }
}

fn alert_style() -> Style {
    Style::new().fg(Color::Red).add_modifier(Modifier::BOLD)
}

const ELLIPSIS: &str = "…";

/// Writes a text into the first line of an area. Returns the columns of the text. A text that has no room ends with an
/// ellipsis.
fn put(area: Rect, buffer: &mut Buffer, text: &str, style: Style) -> u16 {
    let mut line = Line::styled(text, style);
    if text_width(text) > area.width {
        let mut cut = String::new();
        for character in text.chars() {
            cut.push(character);
            if text_width(&cut) >= area.width {
                cut.pop();
                break;
            }
        }
        line = Line::styled(cut + ELLIPSIS, style);
    }
    let width = line.width() as u16;
    line.render(area, buffer);
    width
}

/// Returns the columns of a text, and of a longer text the most columns that count.
fn text_width(text: &str) -> u16 {
    Span::raw(text).width().min(MAX_TEXT.into()) as u16
}

/// Returns a tab as lines of any width, without colours and sparklines.
pub(super) fn lines(tab: Tab, model: &Model) -> String {
    let mut table = tab.table(model);
    table.rows.iter_mut().for_each(|row| row.rates.clear());
    let columns = Columns::new(&table, u16::MAX);
    let width = columns.widths.iter().map(|width| width + GAP).sum::<u16>();
    let width = GAP + width.max(text_width(&table.note));
    let height = usize::from(!table.heading.is_empty()) + table.rows.len() + usize::from(!table.note.is_empty());
    let area = Rect::new(0, 0, width, height as u16);
    let mut buffer = Buffer::empty(area);
    draw_table(area, &mut buffer, &table, &mut 0);
    let lines = area.rows().map(|row| {
        let cells = row.columns().map(|cell| buffer[cell.as_position()].symbol());
        cells.collect::<String>().trim_end().to_owned() + "\n"
    });
    let title = format!("{}\n", tab.title());
    [title].into_iter().chain(lines).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::cli::commands::top::json::tests as all_figures;
    use crate::cli::commands::top::model::tests::scrape;
    use crate::cli::commands::top::scrape::ScrapeError;
    use crate::cli::commands::top::ui::tests::ui;

    /// A page of a tracker that has had this many calls.
    fn page(calls: u32) -> String {
        let mut text = "\
nodetracker_build_info{version=\"0.1.0\"} 1
nodetracker_routes 1234567
nodetracker_routes_limit 16777216
nodetracker_expiry_held{cause=\"brake\"} 1
nodetracker_expiry_hold_remaining_seconds 90
nodetracker_refusals_total{reason=\"table_routes\"} 12
"
        .to_owned();
        for method in ["AddNode", "GetProxies", "RemoveNode"] {
            let labels = format!("service=\"api.NodeTrackerService\",method=\"{method}\"");
            text += &format!("nodetracker_calls_total{{{labels},code=\"OK\"}} {}\n", calls * 1000);
            for le in ["0.001", "+Inf"] {
                let count = calls * 1000;
                text += &format!("nodetracker_call_duration_seconds_bucket{{{labels},le=\"{le}\"}} {count}\n");
            }
        }
        text.trim_end().to_owned()
    }

    /// A model after this many scrapes, a second apart.
    fn model(scrapes: u32) -> (Model, Instant) {
        let mut model = Model::default();
        let start = Instant::now();
        for number in 0..scrapes {
            let at = start + Duration::from_secs(number.into());
            model.push(Ok(scrape(at, &page(number * number))), at);
        }
        (model, start + Duration::from_secs(scrapes.into()))
    }

    /// Draws a screen, and returns its lines.
    fn screen((width, height): (u16, u16), (model, now): &(Model, Instant), ui: &mut Ui) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, model, ui, *now)).unwrap();
        let buffer = terminal.backend().buffer();
        let line = |row: Rect| {
            row.columns()
                .map(|cell| buffer[cell.as_position()].symbol())
                .collect::<String>()
        };
        buffer.area.rows().map(|row| line(row).trim_end().to_owned()).collect()
    }

    #[test]
    fn a_screen_of_80_columns_has_all_of_the_overview() {
        let lines = screen((80, 24), &model(30), &mut ui());
        assert_eq!(lines[0], "nodetracker 0.1.0 at 127.0.0.1:3030  every 1s");
        assert_eq!(
            lines[1],
            "!1 Overview  2 Calls  3 Proxies  4 Sessions and watches !5 Sweep and memory"
        );
        assert!(
            lines.contains(&"  Routes                     1,234,567 of 16,777,216 (7 %)".to_owned()),
            "{lines:#?}"
        );
        assert!(
            lines.contains(&"! Expiry                     HELD (brake), for at most 1m 30s".to_owned()),
            "{lines:#?}"
        );
        let calls = lines.iter().find(|line| line.starts_with("  Calls  ")).expect("a row");
        assert!(calls.contains(" 171,000/s ") && calls.ends_with("▇▇█"), "{calls}");
        assert_eq!(lines[23], "q quit  1-5 tabs  ? help  p pause");
    }

    /// A terminal over SSH often has this size.
    #[test]
    fn every_tab_fits_into_80_columns_and_24_lines() {
        let model = (all_figures::model(all_figures::page), Instant::now());
        for &tab in Tab::value_variants() {
            let lines = screen((80, 24), &model, &mut Ui { tab, ..ui() });
            for line in &lines {
                assert!(!line.contains(ELLIPSIS) && !line.contains("lines below"), "{lines:#?}");
            }
        }
    }

    #[test]
    fn calls_have_rates_latencies_and_sparklines() {
        let mut ui = ui();
        ui.tab = Tab::Calls;
        let lines = screen((80, 24), &model(30), &mut ui);
        let heading = "  METHOD                     CALLS  ERRORS     P50     P90     P99";
        assert_eq!(lines[3], heading);
        let row = "  NodeTracker/AddNode     57,000/s     0/s  500 µs  900 µs  990 µs  ";
        assert!(lines[4].starts_with(row) && lines[4].ends_with('█'), "{}", lines[4]);
        // Without room, columns and sparklines are left out, and an ellipsis stands for the columns.
        let lines = screen((40, 10), &model(30), &mut ui);
        assert_eq!(lines[3], "  METHOD                     CALLS  …");
        assert_eq!(lines[4], "  NodeTracker/AddNode     57,000/s  …");
    }

    #[test]
    fn a_text_without_room_ends_with_an_ellipsis() {
        let lines = screen((40, 10), &model(2), &mut ui());
        assert!(
            lines.contains(&"  Routes                     1,234,567 …".to_owned()),
            "{lines:#?}"
        );
        assert_eq!(lines[8], "  12 lines below, 0 above: arrows scroll");
        assert_eq!(lines[1], "!1 Overview  2  3  4 !5");
    }

    #[test]
    fn every_row_can_be_reached_by_scrolling_and_no_further() {
        let model = model(2);
        let mut ui = ui();
        ui.scroll = usize::MAX;
        let lines = screen((80, 12), &model, &mut ui);
        assert_eq!(ui.scroll, 10);
        assert!(lines[9].starts_with("  Memory of the process"), "{lines:#?}");
        assert_eq!(lines[10], "  0 lines below, 10 above: arrows scroll");
        // A larger screen has room for all of the rows.
        screen((200, 60), &model, &mut ui);
        assert_eq!(ui.scroll, 0);
    }

    #[test]
    fn no_size_makes_the_drawing_panic() {
        let empty = (Model::default(), Instant::now());
        let full = model(3);
        for size in [
            (0, 0),
            (1, 1),
            (2, 3),
            (3, 50),
            (19, 7),
            (40, 10),
            (80, 24),
            (200, 60),
            (1, 60),
            (500, 1),
        ] {
            for &tab in Tab::value_variants() {
                let mut ui = Ui { tab, scroll: 3, ..ui() };
                screen(size, &empty, &mut ui);
                screen(size, &full, &mut ui);
                lines(tab, &empty.0);
                ui.is_help = true;
                screen(size, &full, &mut ui);
            }
        }
    }

    #[test]
    fn a_lost_tracker_is_named_first_and_its_figures_stay() {
        let (mut model, now) = model(3);
        model.push(
            Err(ScrapeError::NoAnswer("cannot connect: \u{202e}refused".to_owned())),
            now,
        );
        let lines = screen((80, 24), &(model, now + Duration::from_secs(60)), &mut ui());
        assert!(
            lines[0].starts_with(r"LOST for 1m 1s: cannot connect: \u{202e}refused  nodetracker"),
            "{}",
            lines[0]
        );
        assert!(lines.iter().any(|line| line.contains("1,234,567")), "{lines:#?}");

        let mut never = (Model::default(), now);
        assert!(screen((80, 24), &never, &mut ui())[3].starts_with("waiting"));
        never.0.push(Err(ScrapeError::NoAnswer("refused".to_owned())), now);
        let lines = screen((80, 24), &never, &mut ui());
        assert_eq!(
            lines[0],
            "LOST for 0s: refused  nodetracker at 127.0.0.1:3030  every 1s"
        );
        assert!(lines[4].contains("--diag-addr 127.0.0.1:3030"), "{lines:#?}");
    }

    #[test]
    fn colours_can_be_switched_off() {
        let (model, now) = model(3);
        for has_colors in [true, false] {
            let mut ui = Ui { has_colors, ..ui() };
            let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
            terminal.draw(|frame| draw(frame, &model, &mut ui, now)).unwrap();
            let cells = &terminal.backend().buffer().content;
            assert_eq!(cells.iter().any(|cell| cell.fg != Color::Reset), has_colors);
        }
    }

    #[test]
    fn plain_lines_are_not_cut() {
        let (model, _) = model(30);
        let text = lines(Tab::Calls, &model);
        assert_eq!(
            text,
            "\
Calls
  METHOD                     CALLS  ERRORS     P50     P90     P99
  NodeTracker/AddNode     57,000/s     0/s  500 µs  900 µs  990 µs
  NodeTracker/GetProxies  57,000/s     0/s  500 µs  900 µs  990 µs
  NodeTracker/RemoveNode  57,000/s     0/s  500 µs  900 µs  990 µs
  0 methods had no call. A stream counts when it ends, and has no latency.
"
        );
    }
}
