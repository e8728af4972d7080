//! What an installation tells.

use std::path::{Path, PathBuf};

use serde::Serialize;
use similar::TextDiff;

use super::files::Edit;
use super::hide::hide;
use super::plan::Back;
use super::target::Target;
use crate::args::Format;
use crate::error::Result;
use crate::output;

/// Lines around a difference.
const CONTEXT: usize = 3;

/// A file that is or was changed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct File {
    path: PathBuf,
    action: &'static str,
    diff: String,
}

/// The document.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    schema: &'static str,
    /// `install` or `revert`.
    action: &'static str,
    /// What has become of it.
    pub(super) state: State,
    product: &'static str,
    version: Option<String>,
    address: Option<PathBuf>,
    files: Vec<File>,
    commands: Vec<String>,
    /// Whether a container was started.
    pub(super) checked: bool,
    pub(super) notes: Vec<String>,
    #[serde(skip)]
    name: String,
}

/// How an installation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum State {
    /// Nothing was changed: it was only to be shown.
    Planned,
    /// There was nothing to do.
    Unchanged,
    /// It is done.
    Done,
}

impl Report {
    pub(super) fn new(action: &'static str, target: &Target) -> Self {
        Self {
            schema: "orlop.install/v1",
            action,
            state: State::Unchanged,
            product: target.product.id(),
            version: target.server.as_ref().and_then(|server| server.version.clone()),
            address: target.socket.clone(),
            files: Vec::new(),
            commands: Vec::new(),
            checked: false,
            notes: Vec::new(),
            name: target.name(),
        }
    }

    /// Tells of what an installation changes.
    pub(super) fn edits(&mut self, target: &Target, edits: &[Edit]) {
        let changed = edits.iter().filter(|edit| !edit.is_done());
        self.files = changed.map(|edit| file(&edit.path, edit.now.as_deref(), Some(&edit.after))).collect();
        self.commands = vec![target.restart.clone()];
    }

    /// Tells of what a revert changes.
    pub(super) fn backs(&mut self, target: &Target, backs: &[Back]) {
        let changed = backs.iter().filter(|back| back.now != back.text);
        self.files = changed.map(|back| file(&back.path, back.now.as_deref(), back.text.as_deref())).collect();
        self.commands = vec![target.restart.clone()];
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    pub(super) fn print(&self, format: Format) -> Result<()> {
        match format {
            Format::Json | Format::Yaml => output::document(format, self),
            Format::Name => {
                let paths: Vec<String> = self.files.iter().map(|file| file.path.display().to_string()).collect();
                output::names(paths.iter().map(String::as_str))
            }
            Format::Table | Format::Wide => self.print_words(),
        }
    }

    fn print_words(&self) -> Result<()> {
        for file in &self.files {
            output::print_text(&file.diff)?;
        }
        if !self.commands.is_empty() && self.state == State::Planned {
            output::line("\nand then:")?;
            self.commands.iter().try_for_each(|command| output::line(format!("  {command}")))?;
            output::line("")?;
        }
        let name = &self.name;
        let checked = if self.checked { "; a container was started and removed again" } else { "" };
        output::line(match (self.action, self.state) {
            (_, State::Planned) => "Nothing was changed.".to_owned(),
            ("install", State::Unchanged) => format!("{name}: nothing to do, Orlop lies beneath it already"),
            ("install", State::Done) => format!("\n{name}: Orlop lies beneath it{checked}"),
            (_, State::Unchanged) => format!("{name}: nothing to do, `orlop install` has changed nothing of it"),
            (_, State::Done) => format!("\n{name}: it is as it was before `orlop install`{checked}"),
        })?;
        self.notes.iter().try_for_each(|note| output::line(format!("  {note}")))
    }
}

fn file(path: &Path, now: Option<&str>, then: Option<&str>) -> File {
    let action = match (now, then) {
        (None, _) => "create",
        (_, None) => "remove",
        _ => "change",
    };
    File { path: path.to_owned(), action, diff: diff(path, now, then) }
}

/// The difference between two texts of a file, as `diff -u` shows it, without credentials that stand near.
pub(super) fn diff(path: &Path, now: Option<&str>, then: Option<&str>) -> String {
    let name = |text: Option<&str>| text.map_or("/dev/null".to_owned(), |_| path.display().to_string());
    let [old, new] = [now, then].map(|text| hide(text.unwrap_or_default()));
    TextDiff::from_lines(&old, &new).unified_diff().context_radius(CONTEXT).header(&name(now), &name(then)).to_string()
}
