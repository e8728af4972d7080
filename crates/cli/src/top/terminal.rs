//! The terminal as a resource: taken for the view, and given back as it was, however the view ends.

use std::io;
use std::sync::mpsc as blocking;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use tokio::sync::mpsc::UnboundedSender;

use super::state::Message;

/// A terminal that shows the view. When it is dropped, by whatever way, the terminal is as it was; a panic gives it back
/// before its message is printed.
pub(crate) struct Screen {
    pub(crate) terminal: DefaultTerminal,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn take() -> io::Result<Self> {
        Ok(Self { terminal: ratatui::try_init()? })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Keys and sizes as messages, from a thread of their own: a read waits for the next key and cannot be cancelled. It ends
/// with the process, or when the terminal is gone.
pub(crate) fn listen(messages: UnboundedSender<Message>) -> blocking::Receiver<io::Error> {
    let (failed, failure) = blocking::channel();
    std::thread::spawn(move || {
        loop {
            let message = match event::read() {
                // Some terminals tell of the release too.
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Message::Key(key),
                Ok(Event::Resize(..)) => Message::Resized,
                Ok(_) => continue,
                Err(error) => {
                    let _ = failed.send(error);
                    let _ = messages.send(Message::Resized);
                    return;
                }
            };
            if messages.send(message).is_err() {
                return;
            }
        }
    });
    failure
}
