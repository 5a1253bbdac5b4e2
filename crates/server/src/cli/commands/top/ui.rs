//! The user's choices, and the keys for them.

use std::time::Duration;

use clap::ValueEnum;
use crossterm::event::{Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use crate::cli::commands::top::tabs::Tab;

/// The lines that PgUp and PgDn scroll.
const PAGE: usize = 10;

/// The user's choices.
#[derive(Debug)]
pub(super) struct Ui {
    pub(super) addr: String,
    /// The time between two scrapes.
    pub(super) interval: Duration,
    pub(super) tab: Tab,
    /// The first row of the tab that is shown.
    pub(super) scroll: usize,
    pub(super) is_help: bool,
    pub(super) is_paused: bool,
    pub(super) has_colors: bool,
}

/// Whether the command continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Continue,
    Leave,
}

impl Ui {
    /// Acts on a key. Other events only need a new drawing.
    pub(super) fn on_event(&mut self, event: &Event) -> Flow {
        match event {
            Event::Key(key) if key.kind != KeyEventKind::Release => self.on_key(*key),
            _ => Flow::Continue,
        }
    }

    fn on_key(&mut self, key: KeyEvent) -> Flow {
        match key.code {
            KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Flow::Leave,
            KeyCode::Char('q') | KeyCode::Esc => return Flow::Leave,
            KeyCode::Char('?' | 'h') => self.is_help = !self.is_help,
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char(digit @ '1'..='9') => {
                let number = digit as usize - '1' as usize;
                self.show(Tab::value_variants().get(number).copied().unwrap_or(self.tab));
            }
            KeyCode::Tab | KeyCode::Right => self.show(self.neighbour(1)),
            KeyCode::BackTab | KeyCode::Left => self.show(self.neighbour(-1)),
            KeyCode::Up => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::Down => self.scroll = self.scroll.saturating_add(1),
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(PAGE),
            KeyCode::PageDown => self.scroll = self.scroll.saturating_add(PAGE),
            _ => {}
        }
        Flow::Continue
    }

    fn show(&mut self, tab: Tab) {
        self.tab = tab;
        self.scroll = 0;
        self.is_help = false;
    }

    /// Returns the tab this many places after the current tab. After the last tab, the first follows.
    fn neighbour(&self, places: isize) -> Tab {
        let tabs = Tab::value_variants();
        let next = (self.tab as isize + places).rem_euclid(tabs.len() as isize);
        tabs[next as usize]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn ui() -> Ui {
        Ui {
            addr: "127.0.0.1:3030".to_owned(),
            interval: Duration::from_secs(1),
            tab: Tab::Overview,
            scroll: 0,
            is_help: false,
            is_paused: false,
            has_colors: true,
        }
    }

    fn press(ui: &mut Ui, code: KeyCode) -> Flow {
        ui.on_event(&Event::Key(code.into()))
    }

    #[test]
    fn keys_choose_tabs() {
        let mut ui = ui();
        for (key, tab) in [
            (KeyCode::Char('4'), Tab::Sessions),
            (KeyCode::Char('9'), Tab::Sessions),
            (KeyCode::Tab, Tab::Memory),
            (KeyCode::Right, Tab::Overview),
            (KeyCode::BackTab, Tab::Memory),
            (KeyCode::Left, Tab::Sessions),
            (KeyCode::Char('1'), Tab::Overview),
            (KeyCode::Char('x'), Tab::Overview),
        ] {
            assert_eq!((press(&mut ui, key), ui.tab), (Flow::Continue, tab), "{key:?}");
        }
    }

    #[test]
    fn keys_scroll_pause_and_help() {
        let mut ui = ui();
        for (key, scroll) in [
            (KeyCode::Up, 0),
            (KeyCode::Down, 1),
            (KeyCode::PageDown, 11),
            (KeyCode::PageUp, 1),
            (KeyCode::Char('2'), 0),
        ] {
            press(&mut ui, key);
            assert_eq!(ui.scroll, scroll, "{key:?}");
        }
        press(&mut ui, KeyCode::Char('p'));
        press(&mut ui, KeyCode::Char('?'));
        assert!(ui.is_paused && ui.is_help);
        press(&mut ui, KeyCode::Char('p'));
        // A tab replaces the help.
        press(&mut ui, KeyCode::Char('3'));
        assert!(!ui.is_paused && !ui.is_help);
    }

    #[test]
    fn three_keys_leave() {
        let mut ui = ui();
        for code in [KeyCode::Char('q'), KeyCode::Esc] {
            assert_eq!(press(&mut ui, code), Flow::Leave);
        }
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(ui.on_event(&Event::Key(control_c)), Flow::Leave);
        assert_eq!(press(&mut ui, KeyCode::Char('c')), Flow::Continue);
        assert_eq!(ui.on_event(&Event::Resize(1, 1)), Flow::Continue);
    }
}
