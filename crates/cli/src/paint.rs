//! Colour, used sparingly: what is wrong, what kind of thing something is, marks. Every text says the same without it.
//!
//! Only on a terminal, and not with `--no-color`, with `NO_COLOR` set to something (no-color.org), or where `TERM` is `dumb`
//! or nothing. Documents and names are never painted.

use std::fmt;
use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use crate::args::Global;

/// Whether standard output and standard error are painted.
static PAINTED: OnceLock<[bool; 2]> = OnceLock::new();

/// How something is painted: by what it means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Something is broken.
    Bad,
    /// Something should be looked at.
    Warning,
    /// As it should be.
    Good,
    /// What kind of thing it is.
    Kind,
    /// A title.
    Title,
    /// What can be passed over.
    Faint,
}

impl Tone {
    const fn code(self) -> &'static str {
        match self {
            Self::Bad => "31",
            Self::Warning => "33",
            Self::Good => "32",
            Self::Kind => "36",
            Self::Title => "1",
            Self::Faint => "2",
        }
    }

    /// A text for standard output in this tone.
    pub(crate) fn paint<T: fmt::Display>(self, text: T) -> Painted<T> {
        Painted { tone: is_painted(0).then_some(self), text }
    }

    /// The same for standard error.
    pub(crate) fn paint_error<T: fmt::Display>(self, text: T) -> Painted<T> {
        Painted { tone: is_painted(1).then_some(self), text }
    }
}

/// A text with its tone, if there is colour.
#[derive(Debug)]
pub(crate) struct Painted<T> {
    tone: Option<Tone>,
    text: T,
}

impl<T: fmt::Display> fmt::Display for Painted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.tone {
            Some(tone) => write!(f, "\u{1b}[{}m{}\u{1b}[0m", tone.code(), self.text),
            None => self.text.fmt(f),
        }
    }
}

/// Decides for the whole process; until then nothing is painted.
pub(crate) fn set_up(global: &Global) {
    let wanted = is_wanted(global);
    // Only the first decision counts.
    let _ = PAINTED.set([wanted && io::stdout().is_terminal(), wanted && io::stderr().is_terminal()]);
}

/// Whether logs on standard error have colour.
pub(crate) fn of_logs(global: &Global) -> bool {
    is_wanted(global) && io::stderr().is_terminal()
}

fn is_painted(stream: usize) -> bool {
    PAINTED.get().is_some_and(|painted| painted[stream])
}

/// Whether colour is wanted, where it can be shown.
pub(crate) fn is_wanted(global: &Global) -> bool {
    is_wanted_with(global.no_color)
}

/// The same before options are understood.
pub(crate) fn is_wanted_with(no_color: bool) -> bool {
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb");
    !no_color && !refused && !dumb
}

/// Columns that a text takes on a terminal: its characters, without what only paints.
pub(crate) fn width(text: &str) -> usize {
    let mut columns = 0;
    let mut rest = text;
    while let Some(at) = rest.find("\u{1b}[") {
        columns += rest[..at].chars().count();
        // Painting ends with the first letter.
        let end =
            rest[at + 2..].find(|c: char| c.is_ascii_alphabetic()).map_or(rest.len(), |letter| at + 2 + letter + 1);
        rest = &rest[end..];
    }
    columns + rest.chars().count()
}

#[cfg(test)]
mod tests {
    use super::width;

    #[test]
    fn what_only_paints_takes_no_column() {
        assert_eq!(width("\u{1b}[31mrot\u{1b}[0m é"), 5);
        assert_eq!((width("plain"), width("\u{1b}[")), (5, 0));
    }
}
