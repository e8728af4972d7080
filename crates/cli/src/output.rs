//! Printing: tables, JSON, YAML, names; logging.

use std::io::{self, Write};

use serde::Serialize;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use crate::args::{Format, Global};
use crate::config::{Log, LogFormat};
use crate::error::{Class, CliError, Result};
use crate::paint::{self, Tone};

/// Bytes of output that are gathered before they are written.
const CHUNK_BYTES: usize = 64 << 10;

/// Sends logs to standard error: warnings, with `-v` information, with `-vv` everything.
pub(crate) fn set_up_logging(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, 0) => "error",
        (false, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let colour = paint::of_logs(global);
    tracing_subscriber::fmt().with_env_filter(level).with_ansi(colour).with_writer(io::stderr).init();
}

/// The same for a daemon: at the configured level, unless options say otherwise, as text or JSON. `spans` takes spans
/// whatever is logged.
pub(crate) fn set_up_daemon_logging(
    global: &Global,
    log: &Log,
    spans: Option<Box<dyn Layer<Registry> + Send + Sync>>,
) -> LogLevel {
    let by_option = match (global.quiet, global.verbose) {
        (true, 0) => Some("error"),
        (false, 0) => None,
        (_, 1) => Some("debug"),
        _ => Some("trace"),
    };
    let (filter, handle) = reload::Layer::new(EnvFilter::new(by_option.unwrap_or(&log.level)));
    let colour = paint::of_logs(global);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let lines = match log.format {
        LogFormat::Text => lines.with_ansi(colour).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    let lines = lines.with_filter(filter).boxed();
    tracing_subscriber::registry().with(spans.into_iter().chain([lines]).collect::<Vec<_>>()).init();
    LogLevel { handle, by_option: by_option.is_some() }
}

/// How much a daemon logs, while it runs.
pub(crate) struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    by_option: bool,
}

impl LogLevel {
    /// Logs at the configured level, unless an option had said otherwise.
    pub(crate) fn set(&self, log: &Log) {
        if !self.by_option {
            // Fails only when nothing is logged any more.
            let _ = self.handle.reload(EnvFilter::new(&log.level));
        }
    }
}

/// Columns for people. A cell may have several lines.
///
/// All cells are one text: of ten thousand rows each cell would cost more than what is in it.
pub(crate) struct Table {
    header: Vec<&'static str>,
    widths: Vec<usize>,
    text: String,
    /// Where each cell ends in the text, row by row.
    ends: Vec<usize>,
}

impl Table {
    pub(crate) fn new(header: &[&'static str]) -> Self {
        let widths = header.iter().map(|h| width(h)).collect();
        Self { header: header.to_vec(), widths, text: String::new(), ends: Vec::new() }
    }

    /// Adds a row; cells that are missing are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = impl AsRef<str>>) {
        let mut cells = cells.into_iter();
        for column in &mut self.widths {
            if let Some(cell) = cells.next() {
                let cell = cell.as_ref();
                let columns =
                    if cell.contains('\n') { cell.lines().map(width).max().unwrap_or(0) } else { width(cell) };
                *column = columns.max(*column);
                self.text.push_str(cell);
            }
            self.ends.push(self.text.len());
        }
    }

    /// Gives the lines to `write`, some thousand bytes at a time, until it fails.
    fn render<E>(&self, mut write: impl FnMut(&str) -> std::result::Result<(), E>) -> std::result::Result<(), E> {
        let mut lines = String::new();
        let header: Vec<String> = self.header.iter().map(|title| Tone::Title.paint(title).to_string()).collect();
        self.push_line(&mut lines, header.iter().map(String::as_str));
        let mut start = 0;
        let mut cells = Vec::new();
        for ends in self.ends.chunks_exact(self.widths.len().max(1)) {
            cells.clear();
            let row = start;
            cells.extend(ends.iter().map(|end| &self.text[std::mem::replace(&mut start, *end)..*end]));
            if !self.text[row..start].contains('\n') {
                self.push_line(&mut lines, cells.iter().copied());
            } else {
                let height = cells.iter().map(|cell| cell.lines().count()).max().unwrap_or(0);
                let line = |n| cells.iter().map(move |cell| cell.lines().nth(n).unwrap_or(""));
                (0..height).for_each(|n| self.push_line(&mut lines, line(n)));
            }
            if lines.len() >= CHUNK_BYTES {
                write(&lines)?;
                lines.clear();
            }
        }
        write(&lines)
    }

    fn push_line<'c>(&self, text: &mut String, cells: impl Iterator<Item = &'c str>) {
        let start = text.len();
        for (column, cell) in self.widths.iter().zip(cells) {
            text.push_str(cell);
            let pad = column.saturating_sub(width(cell)) + 2;
            text.extend(std::iter::repeat_n(' ', pad));
        }
        let trimmed = text[start..].trim_end().len();
        text.truncate(start + trimmed);
        text.push('\n');
    }

    pub(crate) fn print(&self) -> Result<()> {
        let mut out = io::stdout().lock();
        written(self.render(|lines| out.write_all(paint::fit(lines).as_bytes())).and_then(|()| out.flush()))
    }
}

/// Columns that a text takes.
fn width(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { paint::width(text) }
}

/// A reader that went away is not an error.
fn written(result: io::Result<()>) -> Result<()> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(CliError::io("write to standard output", None, e)),
        _ => Ok(()),
    }
}

/// Writes text to standard output; a reader that went away is not an error.
pub(crate) fn print_text(text: &str) -> Result<()> {
    print_as_it_is(&paint::fit(text))
}

fn print_as_it_is(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))
}

/// Prints one line.
pub(crate) fn line(text: impl AsRef<str>) -> Result<()> {
    print_text(&format!("{}\n", text.as_ref()))
}

/// Prints names, one a line.
pub(crate) fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut text = String::new();
    names.into_iter().for_each(|name| push_name(&mut text, name));
    print_text(&text)
}

/// Adds a name as one line.
pub(crate) fn push_name(text: &mut String, name: &str) {
    text.push_str(&paint::plain(name));
    text.push('\n');
}

/// Prints a document as JSON or YAML.
pub(crate) fn document(format: Format, document: &impl Serialize) -> Result<()> {
    let bad = |e: &dyn std::fmt::Display| CliError::new(Class::Failed, format!("render output: {e}"));
    match format {
        Format::Yaml => print_as_it_is(&serde_norway::to_string(document).map_err(|e| bad(&e))?),
        _ => {
            let mut out = io::BufWriter::with_capacity(CHUNK_BYTES, io::stdout().lock());
            match serde_json::to_writer_pretty(&mut out, document) {
                Err(e) if e.is_io() => written(Err(e.into())),
                Err(e) => Err(bad(&e)),
                Ok(()) => written(out.write_all(b"\n").and_then(|()| out.flush())),
            }
        }
    }
}

/// What a command made, changed or removed, by name: each one a line as soon as it is done, or all together as a document,
/// whose schema is of the command.
pub(crate) struct Names {
    format: Format,
    document: NamesDocument,
}

#[derive(Serialize)]
struct NamesDocument {
    schema: &'static str,
    names: Vec<String>,
}

impl Names {
    pub(crate) fn new(format: Format, schema: &'static str) -> Self {
        Self { format, document: NamesDocument { schema, names: Vec::new() } }
    }

    /// Tells of the one thing that a command made or changed.
    pub(crate) fn one(format: Format, schema: &'static str, name: impl Into<String>) -> Result<()> {
        let mut names = Self::new(format, schema);
        let told = names.add(name);
        names.end(told)
    }

    /// The same of a command that says nothing to people when all went well.
    pub(crate) fn one_quietly(format: Format, schema: &'static str, name: impl Into<String>) -> Result<()> {
        if matches!(format, Format::Table | Format::Wide) { Ok(()) } else { Self::one(format, schema, name) }
    }

    /// Tells of one.
    pub(crate) fn add(&mut self, name: impl Into<String>) -> Result<()> {
        let name = name.into();
        if !is_document(self.format) {
            return line(name);
        }
        self.document.names.push(name);
        Ok(())
    }

    /// Prints the document, if it is one. What ended the work comes after what was done before.
    pub(crate) fn end(self, worked: Result<()>) -> Result<()> {
        if is_document(self.format) && (worked.is_ok() || !self.document.names.is_empty()) {
            document(self.format, &self.document)?;
        }
        worked
    }
}

/// Whether a format is a document.
pub(crate) const fn is_document(format: Format) -> bool {
    matches!(format, Format::Json | Format::Yaml)
}

/// Bytes for people, in powers of 1024.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A number of things: `1 blob`, `2 blobs`.
pub(crate) fn count(number: impl Into<u64>, thing: &str) -> String {
    match number.into() {
        1 => format!("1 {thing}"),
        number => format!("{number} {thing}s"),
    }
}

/// `sha256:` and twelve digits.
pub(crate) fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

/// RFC 3339 in UTC.
pub(crate) fn time(timestamp: Option<&prost_types::Timestamp>) -> String {
    timestamp.and_then(|t| jiff::Timestamp::new(t.seconds, t.nanos).ok()).map(|t| t.to_string()).unwrap_or_default()
}

/// The same to the second, for tables.
pub(crate) fn time_short(timestamp: Option<&prost_types::Timestamp>) -> String {
    timestamp.and_then(|t| jiff::Timestamp::from_second(t.seconds).ok()).map(|t| t.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(5 * 1024 * 1024 + 512 * 1024), "5.5 MiB");
    }

    #[test]
    fn cells_may_have_several_lines() {
        let mut table = Table::new(&["NAME", "SIZE"]);
        table.row(["a\nlonger", "1"]);
        table.row(["é", ""]);
        table.row(["b"]);
        let mut text = String::new();
        let push = |lines: &str| {
            text.push_str(lines);
            Ok::<_, ()>(())
        };
        table.render(push).unwrap();
        assert_eq!(text, "NAME    SIZE\na       1\nlonger\né\nb\n");
    }

    #[test]
    fn long_tables_come_in_pieces() {
        let mut table = Table::new(&["N", "SQUARE"]);
        (0..9_000_u64).for_each(|n| table.row([n.to_string(), (n * n).to_string()]));
        let (mut text, mut pieces) = (String::new(), 0);
        table
            .render(|lines| {
                pieces += 1;
                text.push_str(lines);
                Ok::<_, ()>(())
            })
            .unwrap();
        assert!(pieces > 1);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((lines.len(), lines[1], lines[9_000]), (9_001, "0     0", "8999  80982001"));
        assert_eq!(table.render(|_| Err("no more")), Err("no more"));
    }
}
