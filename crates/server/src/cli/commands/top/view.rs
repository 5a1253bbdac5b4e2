//! Draws the model: on a screen of any size, and as plain lines.
//!
//! A text that has no room ends with an ellipsis, so that no part of a figure looks like a figure. If a table is too wide,
//! the sparklines are left out first, and then columns from the right.

use clap::ValueEnum;
use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{RenderDirection, Sparkline, Widget};
use tokio::time::Instant;

use crate::cli::commands::top::model::Model;
use crate::cli::commands::top::scrape::enable_hint;
use crate::cli::commands::top::tabs::{Row, Tab, Table};
use crate::cli::commands::top::ui::Ui;
use crate::cli::print::{age, visible};
use crate::config::duration;

/// Marks a row at which an operator should look.
const ALERT: &str = "!";
/// The columns of the mark, and the gap between columns.
const GAP: u16 = 2;
/// The least columns of a name, and of a sparkline.
const MIN_NAME: u16 = 20;
const MIN_RATES: u16 = 8;

const HELP: &[&str] = &[
    "1 to 5            the tabs; also Tab, Shift-Tab and the arrows left and right",
    "arrows, PgUp/PgDn scroll",
    "p                 pause: the figures stay, and the tracker is not asked",
    "? or h            this help",
    "q, Esc, Ctrl-C    leave",
    "",
    "A row with ! needs a look; ops/alerts.yaml has the same bounds.",
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
    draw_tabs(tabs, buffer, ui.tab);
    if ui.is_help {
        for (area, line) in body.rows().zip(HELP) {
            put(area, buffer, line, Style::new());
        }
    } else if model.interval().is_none() {
        let hint = enable_hint(&ui.addr);
        let lost = [model.failure(now).map_or("", |(reason, _)| reason), &hint];
        let lines: &[&str] = if model.failure(now).is_some() {
            &lost
        } else {
            &["waiting for the first figures"]
        };
        for (area, line) in body.rows().zip(lines) {
            put(area, buffer, &visible(line), Style::new());
        }
    } else {
        draw_table(body, buffer, &ui.tab.table(model), &mut ui.scroll);
    }
    let keys = "q quit  1-5 tabs  ? help  p pause";
    put(foot, buffer, keys, Style::new().add_modifier(Modifier::DIM));
    if !ui.has_colors {
        for cell in &mut buffer.content {
            cell.fg = Color::Reset;
        }
    }
}

/// Draws who the tracker is, and how old its figures are. The part that matters most is first.
fn draw_head(area: Rect, buffer: &mut Buffer, model: &Model, ui: &Ui, now: Instant) {
    let mut texts = Vec::new();
    if let Some((reason, since)) = model.failure(now) {
        texts.push((format!("LOST for {}: {}", age(since), visible(reason)), alert_style()));
    } else if ui.is_paused {
        texts.push(("PAUSED".to_owned(), alert_style()));
    }
    let version = model.interval().and_then(|interval| {
        let versions = interval.values("nodetracker_build_info", &["version"]);
        versions.into_keys().next().map(|version| visible(&version.concat()))
    });
    let name = format!("nodetracker {} at {}", version.unwrap_or_default(), ui.addr);
    texts.push((name, Style::new().add_modifier(Modifier::BOLD)));
    texts.push((format!("every {}", duration::format(ui.interval)), Style::new()));
    let mut area = area;
    for (text, style) in texts {
        let used = put(area, buffer, &text, style) + GAP;
        area = Rect {
            x: area.x.saturating_add(used).min(area.right()),
            width: area.width.saturating_sub(used),
            ..area
        };
    }
}

/// Draws the titles of the tabs, or the numbers if the titles have no room.
fn draw_tabs(area: Rect, buffer: &mut Buffer, selected: Tab) {
    let tabs = Tab::value_variants().iter().zip(1..);
    let spans = |with_titles: bool| {
        tabs.clone().flat_map(move |(&tab, number)| {
            let is_selected = tab == selected;
            let text = match with_titles || is_selected {
                true => format!(" {number} {} ", tab.title()),
                false => format!(" {number} "),
            };
            let modifier = if is_selected {
                Modifier::REVERSED
            } else {
                Modifier::empty()
            };
            [Span::styled(text, Style::new().add_modifier(modifier)), Span::raw(" ")]
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
        put(
            indented(lines[end - 1]),
            buffer,
            &table.note,
            Style::new().add_modifier(Modifier::DIM),
        );
    }
    if let Some(last) = lines.last().filter(|_| needed > lines.len()) {
        let (above, below) = (*scroll, end.saturating_sub(room));
        let more = format!("{above} more lines above, {below} below");
        put(indented(*last), buffer, &more, Style::new().add_modifier(Modifier::DIM));
    }
}

/// The widths of a table's columns.
struct Columns {
    widths: Vec<u16>,
    /// The width of the sparklines. 0 for none.
    rates: u16,
    /// Whether columns were left out.
    is_cut: bool,
}

impl Columns {
    fn new(table: &Table, width: u16) -> Self {
        let heading = table.heading.iter().map(|text| Line::from(*text).width());
        let mut widths: Vec<_> = heading.map(|width| width as u16).collect();
        for row in &table.rows {
            widths.resize(widths.len().max(row.cells.len()), 0);
            for (width, text) in widths.iter_mut().zip(&row.cells) {
                *width = (*width).max(text_width(text));
            }
        }
        let room = width.saturating_sub(GAP);
        let has_rates = table.rows.iter().any(|row| row.rates.len() > 1);
        let all = widths.len();
        let Some(&longest) = widths.first() else {
            return Self {
                widths,
                rates: 0,
                is_cut: false,
            };
        };
        let least = longest.min(MIN_NAME);
        let figures = |widths: &[u16]| widths[1..].iter().map(|width| width + GAP).sum::<u16>();
        if table.heading.is_empty() {
            // A name with a value: the value takes what the name leaves.
            widths[0] = longest.min(room);
            if let Some(value) = widths.get_mut(1) {
                let left = room.saturating_sub(longest + GAP);
                let value_room = if has_rates {
                    left.saturating_sub(MIN_RATES + GAP)
                } else {
                    left
                };
                *value = (*value).min(value_room.max(left.min(MIN_NAME)));
            }
        } else {
            while widths.len() > 1 && least + figures(&widths) > room {
                widths.pop();
            }
            widths[0] = longest.min(room.saturating_sub(figures(&widths)));
            let with_rates = least + figures(&widths) + GAP + MIN_RATES;
            if has_rates && with_rates <= room {
                widths[0] = longest.min(room - (with_rates - least));
            }
        }
        let left = room.saturating_sub(widths[0] + figures(&widths) + GAP);
        Self {
            rates: if has_rates && left >= MIN_RATES { left } else { 0 },
            is_cut: widths.len() < all,
            widths,
        }
    }

    fn draw(&self, area: Rect, buffer: &mut Buffer, row: &Row, style: Style) {
        if row.is_alert {
            put(area, buffer, ALERT, style);
        }
        let mut rest = indented(area);
        for (column, (text, &width)) in row.cells.iter().zip(&self.widths).enumerate() {
            let cell = Rect {
                width: width.min(rest.width),
                ..rest
            };
            let text = match column > 0 && self.widths.len() > 2 {
                // Figures are aligned at their last digit.
                true => format!("{text:>width$}", width = width.into()),
                false => text.clone(),
            };
            put(cell, buffer, &text, style);
            let used = (width + GAP).min(rest.width);
            rest = Rect {
                x: rest.x + used,
                width: rest.width - used,
                ..rest
            };
        }
        if self.is_cut && rest.width > 0 {
            put(rest, buffer, ELLIPSIS, Style::new());
        }
        if self.rates > 0 && row.rates.len() > 1 {
            // Thousandths of events per second.
            let bars = row.rates.iter().rev().map(|rate| (rate * 1000.0) as u64);
            Sparkline::default()
                .data(bars.collect::<Vec<_>>())
                .direction(RenderDirection::RightToLeft)
                .style(Style::new().fg(Color::Blue))
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

fn indented(area: Rect) -> Rect {
    let indent = GAP.min(area.width);
    Rect {
        x: area.x + indent,
        width: area.width - indent,
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
    let mut line = Line::from(text);
    if line.width() > area.width.into() {
        let mut cut = text.to_owned();
        while !cut.is_empty() && text_width(&cut) + 1 > area.width {
            cut.pop();
        }
        line = Line::from(cut + ELLIPSIS);
    }
    let width = line.width() as u16;
    line.style(style).render(area, buffer);
    width
}

fn text_width(text: &str) -> u16 {
    Span::raw(text).width().try_into().unwrap_or(u16::MAX)
}

/// Returns a tab as lines of any width, without colours and sparklines.
pub(super) fn lines(tab: Tab, model: &Model) -> String {
    let mut table = tab.table(model);
    table.rows.iter_mut().for_each(|row| row.rates.clear());
    let columns = Columns::new(&table, u16::MAX / 2);
    let width = columns.widths.iter().map(|width| width + GAP).sum::<u16>();
    let width = (width + GAP).max(text_width(&table.note) + GAP).max(MIN_NAME);
    let height = 1 + usize::from(!table.heading.is_empty()) + table.rows.len();
    let area = Rect::new(0, 0, width, height as u16);
    let mut buffer = Buffer::empty(area);
    draw_table(area, &mut buffer, &table, &mut 0);
    let lines = area.rows().map(|row| {
        let cells = row.columns().map(|cell| buffer[cell.as_position()].symbol());
        cells.collect::<String>().trim_end().to_owned() + "\n"
    });
    let title = format!("{}\n", tab.title());
    [title].into_iter().chain(lines.filter(|line| line != "\n")).collect()
}
