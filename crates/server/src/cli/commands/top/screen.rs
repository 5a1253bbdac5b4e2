//! The terminal: raw mode, the alternate screen, and events. Dropping the screen restores the terminal, and so does a
//! panic.

use std::io;

use crossterm::event::{Event, EventStream};
use futures_util::StreamExt;
use ratatui::{DefaultTerminal, Frame};

/// A terminal that shows one picture at a time.
pub(super) struct Screen {
    terminal: DefaultTerminal,
    events: EventStream,
}

impl Screen {
    /// Takes the terminal of stdout.
    pub(super) fn open() -> io::Result<Self> {
        Ok(Self {
            // Installs a hook that restores the terminal before the message of a panic.
            terminal: ratatui::try_init().inspect_err(|_| ratatui::restore())?,
            events: EventStream::new(),
        })
    }

    /// Draws a picture.
    pub(super) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(picture).map(drop)
    }

    /// Waits for a key or a new size.
    pub(super) async fn next_event(&mut self) -> io::Result<Event> {
        let ended = || Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        self.events.next().await.unwrap_or_else(ended)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}
