//! Printing: tables, JSON, YAML, names; logging.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use crate::args::{Format, Global};
use crate::config::{Log, LogFormat};
use crate::error::{Class, CliError, Result};

/// Sends logs to standard error: warnings, with `-v` information, with `-vv` everything.
pub(crate) fn set_up_logging(global: &Global) {
    let level = match (global.quiet, global.verbose) {
        (true, 0) => "error",
        (false, 0) => "warn",
        (_, 1) => "info",
        _ => "debug",
    };
    let colour = !global.no_color && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(level).with_ansi(colour).with_writer(io::stderr).init();
}

/// The same for a daemon: at the configured level, unless options say otherwise, as text or JSON.
pub(crate) fn set_up_daemon_logging(global: &Global, log: &Log) {
    let level = match (global.quiet, global.verbose) {
        (true, 0) => "error",
        (false, 0) => log.level.as_str(),
        (_, 1) => "debug",
        _ => "trace",
    };
    let colour = !global.no_color && io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt().with_env_filter(level).with_writer(io::stderr);
    match log.format {
        LogFormat::Text => lines.with_ansi(colour).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}

/// Columns for people. A cell may have several lines.
pub(crate) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(header: &[&'static str]) -> Self {
        Self { header: header.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.header.iter().map(|h| h.len()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                let widest = cell.lines().map(|l| l.chars().count()).max().unwrap_or(0);
                *width = (*width).max(widest);
            }
        }
        widths
    }

    fn render(&self) -> String {
        let widths = self.widths();
        let mut text = String::new();
        let header: Vec<&str> = self.header.clone();
        push_line(&mut text, &widths, &header);
        for row in &self.rows {
            let lines: Vec<Vec<&str>> = row.iter().map(|c| c.lines().collect()).collect();
            let height = lines.iter().map(Vec::len).max().unwrap_or(0).max(1);
            for n in 0..height {
                let cells: Vec<&str> = lines.iter().map(|l| l.get(n).copied().unwrap_or("")).collect();
                push_line(&mut text, &widths, &cells);
            }
        }
        text
    }

    pub(crate) fn print(&self) -> Result<()> {
        print_text(&self.render())
    }
}

fn push_line(text: &mut String, widths: &[usize], cells: &[&str]) {
    let start = text.len();
    for (width, cell) in widths.iter().zip(cells) {
        text.push_str(cell);
        let pad = width.saturating_sub(cell.chars().count()) + 2;
        text.extend(std::iter::repeat_n(' ', pad));
    }
    let trimmed = text[start..].trim_end().len();
    text.truncate(start + trimmed);
    text.push('\n');
}

/// Writes text to standard output; a reader that went away is not an error.
pub(crate) fn print_text(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(CliError::io("write to standard output", None, e)),
        _ => Ok(()),
    }
}

/// Prints one line.
pub(crate) fn line(text: impl AsRef<str>) -> Result<()> {
    print_text(&format!("{}\n", text.as_ref()))
}

/// Prints names, one a line.
pub(crate) fn names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let mut text = String::new();
    for name in names {
        text.push_str(name);
        text.push('\n');
    }
    print_text(&text)
}

/// Prints a document as JSON or YAML.
pub(crate) fn document(format: Format, document: &impl Serialize) -> Result<()> {
    let bad = |e: &dyn std::fmt::Display| CliError::new(Class::Failed, format!("render output: {e}"));
    match format {
        Format::Yaml => print_text(&serde_norway::to_string(document).map_err(|e| bad(&e))?),
        _ => {
            let mut text = serde_json::to_string_pretty(document).map_err(|e| bad(&e))?;
            text.push('\n');
            print_text(&text)
        }
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
        table.row(["a\nlonger".into(), "1".into()]);
        assert_eq!(table.render(), "NAME    SIZE\na       1\nlonger\n");
    }
}
