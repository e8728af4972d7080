//! Colour, used sparingly: what is wrong, what kind of thing something is, marks. Every text says the same without it.
//!
//! Only on a terminal, and not with `--no-color`, with `NO_COLOR` set to something (no-color.org), or where `TERM` is `dumb`
//! or nothing. Documents and names are never painted.
//!
//! # Invariants
//! What others put into names and labels never reaches a terminal as more than letters: it moves no cursor, rings no bell,
//! paints nothing and turns no direction of writing. Texts are made [`fit`] where they leave; names that stand in a line of
//! their own are made [`plain`] before, since they must not begin another.

use std::borrow::Cow;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, IsTerminal};
use std::sync::{LazyLock, OnceLock};

use crate::args::Global;

/// Whether standard output and standard error are painted.
static PAINTED: OnceLock<[bool; 2]> = OnceLock::new();

/// What stands for the escape character until a text is printed: a private one that no name can guess.
static MARK: LazyLock<char> = LazyLock::new(|| {
    let random = RandomState::new().hash_one(0u8) % 0xFFFD;
    char::from_u32(0xF_0000 + random as u32).unwrap_or('\u{F0000}')
});

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
            Some(tone) => write!(f, "{0}[{1}m{2}{0}[0m", *MARK, tone.code(), self.text),
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
    while let Some(at) = rest.find(*MARK) {
        columns += rest[..at].chars().count();
        // Painting ends with the first letter.
        let end = rest[at..].find(|c: char| c.is_ascii_alphabetic()).map_or(rest.len(), |letter| at + letter + 1);
        rest = &rest[end..];
    }
    columns + rest.chars().count()
}

/// A text as it may be printed: painting is painting, everything else that is no letter is told by its number.
pub(crate) fn fit(text: &str) -> Cow<'_, str> {
    told(text, |c| match c {
        '\n' | '\t' => Some(c),
        c if c == *MARK => Some('\u{1b}'),
        _ => None,
    })
}

/// A name as it may stand in a line.
pub(crate) fn plain(name: &str) -> Cow<'_, str> {
    told(name, |_| None)
}

/// Tells characters that are none to look at by their number, unless they stand for one.
fn told(text: &str, stands_for: impl Fn(char) -> Option<char>) -> Cow<'_, str> {
    // All of ten thousand lines, usually: many bytes at a time are looked at as one.
    let is_shown = |bytes: &[u8]| bytes.iter().fold(true, |all, byte| all & matches!(byte, b' '..=b'~' | b'\n'));
    if text.as_bytes().chunks(256).all(is_shown) && (stands_for('\n').is_some() || !text.contains('\n')) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match stands_for(c) {
            Some(other) => shown.push(other),
            None if is_letter(c) => shown.push(c),
            None => shown.extend(c.escape_default()),
        }
    }
    shown.into()
}

/// Whether a character is one to look at: no control character, and none that turns the direction of writing or is a line's end.
fn is_letter(c: char) -> bool {
    let turns = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !c.is_control() && c != *MARK && !turns
}

#[cfg(test)]
mod tests {
    use super::{MARK, fit, plain, width};

    #[test]
    fn what_only_paints_takes_no_column() {
        let mark = *MARK;
        assert_eq!(width(&format!("{mark}[31mrot{mark}[0m é")), 5);
        assert_eq!((width("plain"), width(&format!("{mark}["))), (5, 0));
    }

    #[test]
    fn only_what_is_painted_here_paints() {
        let mark = *MARK;
        assert_eq!(fit(&format!("{mark}[31mrot{mark}[0m\tä\n")), "\u{1b}[31mrot\u{1b}[0m\tä\n");
        let hostile = "a\u{1b}[2J\u{9b}31m\u{7}\r\u{7f}\u{202e}b…";
        assert_eq!(fit(hostile), r"a\u{1b}[2J\u{9b}31m\u{7}\r\u{7f}\u{202e}b…");
        assert_eq!(plain("one\ntwo\tthree"), r"one\ntwo\tthree");
        assert_eq!(plain(&mark.to_string()).chars().next(), Some('\\'));
        assert_eq!((plain("r.example/é:1"), fit("x\ny")), ("r.example/é:1".into(), "x\ny".into()));
    }
}
