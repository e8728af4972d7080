//! What is to become of which file.
//!
//! # Invariants
//! - Nothing is written here.
//! - What is planned starts from the file without Orlop: as it was kept, or, where somebody has edited it since, without what the
//!   journal says was changed. So another choice takes the place of the first, and the same choice is nothing to do.
//! - k3s and rke2 write containerd's file themselves. They get a file of Orlop's own, which theirs imports; where theirs does not
//!   yet, a template adds that line to their own.

use std::path::Path;

use toml_edit::{DocumentMut, Item};

use super::edit::{self, EditError};
use super::files::{self, Changed, Edit, Journal, Now, Place};
use super::report::diff;
use super::target::{Layout, Target};
use super::wants::{self, Containerd, SNAPSHOTTER, Wanted};
use crate::error::{Class, CliError, Result};

/// What a file of Orlop's own begins with.
const OWN: &str = "# Written by `orlop install`; `orlop install --revert` removes it.\n";
/// What is added to a template, before the line that imports.
const NOTE: &str = "# Added by `orlop install`; `orlop install --revert` takes it out again.\n";
/// How k3s' and rke2's own configuration gets into a template.
const BASE: &str = "{{ template \"base\" . }}\n";
/// Where files lie that they import.
const DROP_INS: &str = "config-v3.toml.d";
const TEMPLATE: &str = "config-v3.toml.tmpl";
const OLD_TEMPLATE: &str = "config.toml.tmpl";

/// What an installation changes.
///
/// # Errors
/// [`Class::Conflict`] if what is there and what is wanted do not go together.
pub(super) fn install(
    target: &Target,
    wanted: &Wanted,
    above: Containerd,
    place: &Place,
    journal: Option<&Journal>,
) -> Result<Vec<Edit>> {
    match &target.layout {
        Layout::File(file) => Ok(vec![in_file(target, file, wanted, above, place, journal)?]),
        Layout::Generated(directory) => generated(target, directory, wanted, above, journal.is_some()),
    }
}

fn in_file(
    target: &Target,
    file: &Path,
    wanted: &Wanted,
    above: Containerd,
    place: &Place,
    journal: Option<&Journal>,
) -> Result<Edit> {
    let now = files::text(file)?;
    let known = journal.and_then(|journal| journal.files.first());
    let before = match known {
        Some(changed) => without(target, place, changed)?,
        None => now.clone(),
    };
    let fresh = || format!("{OWN}version = {}\n", if above.generation < 2 { 2 } else { 3 });
    let mut document = parsed(file, &before.clone().unwrap_or_else(fresh))?;
    let version = wants::file_version(&document, file)?;
    refuse_others(file, &document)?;
    let wants = wants::wants(&document, version, wanted, above);
    let is_same = |journal: &Journal| journal.profile == wanted.profile && journal.content_store == wanted.content;
    if let Some(text) = now.as_ref().filter(|_| journal.is_some_and(is_same))
        && edit::apply(&mut parsed(file, text)?, &wants).is_ok_and(|changes| changes.is_empty())
    {
        // Whoever edited it since may have put it in another order.
        return Ok(Edit { path: file.to_owned(), before, after: text.clone(), now, changes: None });
    }
    let was = document.clone();
    let changes = edit::apply(&mut document, &wants).map_err(|error| conflict(file, &error))?;
    let after = document.to_string();
    if !changes.is_empty() && edit::get(&was, &["proxy_plugins", SNAPSHOTTER]).is_some() {
        let message =
            format!("{} has a plugin {SNAPSHOTTER} already, which `orlop install` did not write", file.display());
        return Err(CliError::new(Class::Conflict, message)
            .hint(format!("take it out, or make it so by hand:\n{}", diff(file, before.as_deref(), Some(&after)))));
    }
    let changes = before.is_some().then_some(changes);
    Ok(Edit { path: file.to_owned(), before, now, after, changes })
}

/// What else may lie beneath is not pushed aside.
fn refuse_others(file: &Path, document: &DocumentMut) -> Result<()> {
    let Some(other) = wants::snapshotter(document).filter(|name| *name != SNAPSHOTTER) else { return Ok(()) };
    if edit::get(document, &["proxy_plugins", other]).is_none() {
        return Ok(());
    }
    let message = format!("{}: expected a snapshotter of containerd's own, found {other}, a plugin", file.display());
    Err(CliError::new(Class::Conflict, message)
        .hint("two cannot be the snapshotter of CRI: take that one out first, as its documentation says"))
}

fn generated(
    target: &Target,
    directory: &Path,
    wanted: &Wanted,
    above: Containerd,
    installed: bool,
) -> Result<Vec<Edit>> {
    if above.generation < 2 {
        let message = format!("{}: expected containerd 2 or later", target.name());
        return Err(CliError::new(Class::Conflict, message).hint(
            "the template of older ones has no place for another snapshotter of CRI; update to a k3s or rke2 of 1.31.6, 1.32.2 \
             or later",
        ));
    }
    let mut document = parsed(directory, &format!("{OWN}version = 3\n"))?;
    let wants = wants::wants_beside(wanted, above);
    edit::apply(&mut document, &wants).map_err(|error| conflict(directory, &error))?;
    let path = target.file();
    let now = files::text(&path)?;
    let after = document.to_string();
    if now.is_some() && !installed && now.as_ref() != Some(&after) {
        let message = format!("{} is there already, and `orlop install` did not write it", path.display());
        return Err(CliError::new(Class::Conflict, message)
            .hint(format!("remove it, or make it so by hand:\n{}", diff(&path, now.as_deref(), Some(&after)))));
    }
    let before = if installed { None } else { now.clone().filter(|now| *now == after) };
    let own = Edit { path, before, now, after, changes: None };
    Ok(template(target, directory)?.into_iter().chain([own]).collect())
}

/// The template that has the product's own file import others, if that does not do it by itself.
fn template(target: &Target, directory: &Path) -> Result<Option<Edit>> {
    let imports =
        |text: &str| text.lines().any(|line| line.trim_start().starts_with("imports") && line.contains(DROP_INS));
    let path = directory.join(TEMPLATE);
    let now = files::text(&path)?;
    let theirs = now.as_deref().map(|text| text.replace(&import(target, directory), ""));
    let is_ours = theirs != now;
    let rendered = files::text(&directory.join("config.toml"))?;
    if !is_ours && [&rendered, &now].into_iter().flatten().any(|text| imports(text)) {
        return Ok(None);
    }
    if let Some(other) =
        theirs.as_deref().filter(|text| text.lines().any(|line| line.trim_start().starts_with("imports")))
    {
        let line = other.lines().find(|line| line.trim_start().starts_with("imports")).unwrap_or_default();
        let message = format!("{}: expected imports of {DROP_INS}/*.toml, found {line:?}", path.display());
        return Err(CliError::new(Class::Conflict, message)
            .hint(format!("add \"{}/{DROP_INS}/*.toml\" to it", directory.display())));
    }
    if now.is_none() && directory.join(OLD_TEMPLATE).exists() {
        let message = format!("{} uses {OLD_TEMPLATE}, of version 2", target.name());
        return Err(CliError::new(Class::Conflict, message)
            .hint(format!("make a {TEMPLATE} of it, or remove it: it hides what Orlop would add")));
    }
    let kept = if is_ours && theirs.as_deref() == Some(BASE) { None } else { theirs.clone() };
    let after = format!("{}{}", import(target, directory), theirs.as_deref().unwrap_or(BASE));
    Ok(Some(Edit { path, before: kept, now, after, changes: None }))
}

/// The lines that are added to a template. They stand first: what comes later may be in a table.
fn import(target: &Target, directory: &Path) -> String {
    format!("{NOTE}imports = [\"{}/{DROP_INS}/*.toml\"]\n", target.theirs(directory).display())
}

/// What a file is to be after a revert; none: it is to go. Nothing if it is so already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Back {
    pub(super) path: std::path::PathBuf,
    pub(super) now: Option<String>,
    pub(super) text: Option<String>,
}

impl Back {
    /// Makes it so.
    pub(super) fn put(&self) -> Result<()> {
        if self.now == self.text { Ok(()) } else { files::put(&self.path, self.text.as_deref()) }
    }
}

/// What a revert does.
///
/// # Errors
/// [`Class::Conflict`] with the difference, if somebody has edited what Orlop wrote.
pub(super) fn revert(target: &Target, place: &Place, journal: &Journal) -> Result<Vec<Back>> {
    journal
        .files
        .iter()
        .rev()
        .map(|changed| {
            let path = place.path(changed);
            Ok(Back { now: files::text(&path)?, text: without(target, place, changed)?, path })
        })
        .collect()
}

/// A file without Orlop: as it was kept, or, if it was edited since, without what Orlop changed.
fn without(target: &Target, place: &Place, changed: &Changed) -> Result<Option<String>> {
    let path = place.path(changed);
    let found = match place.now(changed)? {
        Now::AsWritten | Now::AsBefore => return place.before(changed),
        // Whoever removed the file wants none.
        Now::Edited(None) => return Ok(None),
        Now::Edited(Some(found)) => found,
    };
    let refused = |why: String| {
        let message = format!("{} was edited since `orlop install` wrote it, {why}", path.display());
        let before = place.before(changed).ok().flatten();
        let shown = diff(&path, before.as_deref(), Some(&found));
        CliError::new(Class::Conflict, message).hint(format!(
            "undo that edit, or take out by hand what is not yours; from what was there before to now:\n{shown}"
        ))
    };
    let Some(changes) = &changed.changes else {
        return without_lines(target, &found, &path).ok_or_else(|| refused("and all of it was Orlop's".to_owned()));
    };
    let mut document = parsed(&path, &found)?;
    edit::take_out(&mut document, changes).map_err(|error| refused(format!("where Orlop's own keys are: {error}")))?;
    Ok(Some(document.to_string()))
}

/// A template without the lines that Orlop added; `None` if it is no template.
fn without_lines(target: &Target, found: &str, path: &Path) -> Option<Option<String>> {
    let ours = import(target, path.parent()?);
    if path.file_name()? != TEMPLATE || !found.contains(&ours) {
        return None;
    }
    let rest = found.replace(&ours, "");
    Some((rest != BASE).then_some(rest))
}

fn parsed(file: &Path, text: &str) -> Result<DocumentMut> {
    edit::parse(text).map_err(|error| conflict(file, &error))
}

fn conflict(file: &Path, error: &EditError) -> CliError {
    let message = format!("{}: {error}", file.display());
    CliError::new(Class::Conflict, message)
        .hint("docs/operations/containerd.md has what has to be in it, to be added by hand")
}

/// Whether CRI is left out by a file.
pub(super) fn leaves_cri_out(text: &str) -> bool {
    let Ok(document) = edit::parse(text) else { return false };
    let disabled = document.get("disabled_plugins").and_then(Item::as_array);
    let is_cri = |name: &str| {
        name == "cri" || name.starts_with("io.containerd.grpc.v1.cri") || name.starts_with("io.containerd.cri.")
    };
    disabled.is_some_and(|names| names.iter().filter_map(|name| name.as_str()).any(is_cri))
}
