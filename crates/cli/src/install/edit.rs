//! Changes to a containerd's configuration file that leave the rest of it as it is: comments, order, quotes, indentation.
//!
//! # Invariants
//! - [`apply`] and [`take_out`] do no I/O, and touch no key but those that are wanted.
//! - What [`apply`] did, [`take_out`] undoes, also in a file that somebody has edited since; where that somebody edited the very
//!   same keys it says so and changes nothing.
//! - Values are compared by what they mean, not by how they are written.

use serde::{Deserialize, Serialize};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Key, Table, TableLike, Value};

use super::hide::hide;

/// What stands above the first table that is added.
const NOTE: &str = "\n# Added by `orlop install`; `orlop install --revert` takes it out again.\n";

/// One key and what it is to be.
#[derive(Debug, Clone)]
pub(super) struct Want {
    pub(super) path: Vec<String>,
    pub(super) how: How,
}

/// How a value gets in.
#[derive(Debug, Clone)]
pub(super) enum How {
    /// The key has this value.
    Set(Value),
    /// The array of strings has this one among them.
    Member(String),
    /// The array of tables has this table among them, in the place of one with the same value under `by`.
    Row { by: &'static str, row: Vec<(&'static str, String)> },
}

impl Want {
    pub(super) fn set(path: &[&str], value: impl Into<Value>) -> Self {
        Self { path: owned(path), how: How::Set(value.into()) }
    }

    pub(super) fn member(path: &[&str], value: &str) -> Self {
        Self { path: owned(path), how: How::Member(value.to_owned()) }
    }

    pub(super) fn row(path: &[&str], by: &'static str, row: Vec<(&'static str, String)>) -> Self {
        Self { path: owned(path), how: How::Row { by, row } }
    }
}

fn owned(path: &[&str]) -> Vec<String> {
    path.iter().map(|part| (*part).to_owned()).collect()
}

/// A change that was made, with all that is needed to take it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Change {
    path: Vec<String>,
    kind: Kind,
    /// As TOML; none: there was nothing.
    before: Option<String>,
    after: String,
    /// How many tables of the path were there before.
    tables: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Set,
    Member,
    Row,
}

/// Why a file cannot be edited.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum EditError {
    /// It is no TOML.
    #[error("it is no TOML: {0}")]
    Syntax(String),
    /// Something else is where a table or an array is needed.
    #[error("{path}: expected {expected}, found {found}")]
    Shape { path: String, expected: &'static str, found: &'static str },
    /// Somebody has changed what was added.
    #[error("{path}: expected {expected}, found {found}")]
    Changed { path: String, expected: String, found: String },
}

type Result<T> = std::result::Result<T, EditError>;

/// Reads a file's text.
pub(super) fn parse(text: &str) -> Result<DocumentMut> {
    text.parse().map_err(|error: toml_edit::TomlError| EditError::Syntax(hide(error.to_string().trim())))
}

/// The value at a path, if there is one.
pub(super) fn get<'d>(document: &'d DocumentMut, path: &[&str]) -> Option<&'d Item> {
    path.iter().try_fold(document.as_item(), |item, part| item.as_table_like()?.get(part))
}

/// Makes everything so as it is wanted; returns what was changed, nothing where all was so already.
pub(super) fn apply(document: &mut DocumentMut, wants: &[Want]) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    for want in wants {
        let tables = there(document, &want.path);
        let (table, key) = enter(document, &want.path)?;
        let done = match &want.how {
            How::Set(value) => set(table, key, value),
            How::Member(value) => add_member(table, key, value, &want.path)?,
            How::Row { by, row } => add_row(table, key, by, row, &want.path)?,
        };
        if let Some((kind, before, after)) = done {
            changes.push(Change { path: want.path.clone(), kind, before, after, tables });
        }
    }
    if !changes.is_empty() {
        note(document, &changes);
    }
    Ok(changes)
}

/// Takes changes out again, the last one first.
pub(super) fn take_out(document: &mut DocumentMut, changes: &[Change]) -> Result<()> {
    for change in changes.iter().rev() {
        let Some(table) = find_mut(document, &change.path[..change.path.len() - 1]) else { continue };
        let key = change.path[change.path.len() - 1].as_str();
        match change.kind {
            Kind::Set => unset(table, key, change)?,
            Kind::Member => drop_member(table, key, change),
            Kind::Row => drop_row(table, key, change),
        }
        prune(document, change);
    }
    Ok(())
}

/// Whether two texts of values mean the same.
pub(super) fn is_same(one: &str, other: &str) -> bool {
    let value = |text: &str| toml::from_str::<toml::Table>(&format!("v = {text}")).ok();
    one == other || value(one).is_some_and(|one| Some(one) == value(other))
}

/// What is done and what was there: kind, before, after.
type Done = Option<(Kind, Option<String>, String)>;

fn set(table: &mut dyn TableLike, key: &str, value: &Value) -> Done {
    let after = text(value);
    let before = table.get(key).map(item_text);
    if before.as_deref().is_some_and(|before| is_same(before, &after)) {
        return None;
    }
    put(table, key, value.clone());
    Some((Kind::Set, before, after))
}

/// Puts a value where one is, with what stands around it, or at the end of the table, indented like its neighbour.
fn put(table: &mut dyn TableLike, key: &str, mut value: Value) {
    if let Some(old) = table.get_mut(key).and_then(Item::as_value_mut) {
        *value.decor_mut() = old.decor().clone();
        *old = value;
        return;
    }
    let indent = table.iter().filter(|(_, item)| item.is_value()).last().map(|(name, _)| name.to_owned());
    let indent = indent.and_then(|name| table.key(&name).and_then(indent_of));
    let mut entry_key = Key::new(key);
    if let Some(indent) = indent {
        entry_key.leaf_decor_mut().set_prefix(indent);
    }
    *table.entry_format(&entry_key).or_insert(Item::None) = Item::Value(value);
}

/// The white space before a key, without the comments and lines above it.
fn indent_of(key: &Key) -> Option<String> {
    let prefix = key.leaf_decor().prefix()?.as_str()?;
    let last = prefix.rsplit('\n').next().unwrap_or_default();
    (!last.is_empty() && last.chars().all(|c| c == ' ' || c == '\t')).then(|| last.to_owned())
}

fn add_member(table: &mut dyn TableLike, key: &str, member: &str, path: &[String]) -> Result<Done> {
    let after = text(&Value::from(member));
    let Some(item) = table.get_mut(key) else {
        put(table, key, Value::Array(Array::from_iter([member])));
        return Ok(Some((Kind::Member, None, after)));
    };
    let found = item.type_name();
    let array = item.as_array_mut().ok_or_else(|| shape(path, "an array of strings", found))?;
    if array.iter().any(|value| value.as_str() == Some(member)) {
        return Ok(None);
    }
    let before = Some(array.to_string().trim().to_owned());
    array.push(member);
    Ok(Some((Kind::Member, before, after)))
}

fn add_row(
    table: &mut dyn TableLike,
    key: &str,
    by: &str,
    row: &[(&'static str, String)],
    path: &[String],
) -> Result<Done> {
    let wanted = Table::from_iter(row.iter().map(|(key, value)| (*key, value.as_str())));
    let after = row_text(&wanted);
    let Some(item) = table.get_mut(key) else {
        let mut rows = ArrayOfTables::new();
        rows.push(wanted);
        table.insert(key, Item::ArrayOfTables(rows));
        return Ok(Some((Kind::Row, None, after)));
    };
    let found = item.type_name();
    let mut rows = Rows::of(item).ok_or_else(|| shape(path, "an array of tables", found))?;
    let is_of = |row: &dyn TableLike| row.get(by).and_then(Item::as_str) == wanted.get(by).and_then(Item::as_str);
    let (at, before) = rows.find(|row, _| is_of(row)).unzip();
    if before.as_ref().is_some_and(|before| is_same(before, &after)) {
        return Ok(None);
    }
    rows.put(at, wanted);
    Ok(Some((Kind::Row, before, after)))
}

fn unset(table: &mut dyn TableLike, key: &str, change: &Change) -> Result<()> {
    let found = table.get(key).map(item_text);
    match (&found, &change.before) {
        // Somebody has taken it out already.
        (None, _) => return Ok(()),
        (Some(found), Some(before)) if is_same(found, before) => return Ok(()),
        (Some(found), _) if !is_same(found, &change.after) => {
            return Err(changed(change, found));
        }
        _ => {}
    }
    match change.before.as_deref().and_then(|before| before.parse::<Value>().ok()) {
        Some(before) => put(table, key, before),
        None => drop(table.remove(key)),
    }
    Ok(())
}

fn drop_member(table: &mut dyn TableLike, key: &str, change: &Change) {
    let Some(array) = table.get_mut(key).and_then(Item::as_array_mut) else { return };
    array.retain(|value| !is_same(&text(value), &change.after));
    if array.is_empty() && change.before.is_none() {
        table.remove(key);
    }
}

fn drop_row(table: &mut dyn TableLike, key: &str, change: &Change) {
    let Some(mut rows) = table.get_mut(key).and_then(Rows::of) else { return };
    if let Some((at, _)) = rows.find(|_, text| is_same(text, &change.after)) {
        let before = change.before.as_deref().and_then(|before| before.parse::<Value>().ok());
        match before.as_ref().and_then(Value::as_inline_table) {
            Some(before) => rows.put_back(at, before.clone()),
            None => rows.remove(at),
        }
    }
    if rows.is_empty() {
        table.remove(key);
    }
}

/// An array of tables, in either way of writing one.
enum Rows<'d> {
    Tables(&'d mut ArrayOfTables),
    Inline(&'d mut Array),
}

impl<'d> Rows<'d> {
    fn of(item: &'d mut Item) -> Option<Self> {
        match item {
            Item::ArrayOfTables(rows) => Some(Self::Tables(rows)),
            Item::Value(Value::Array(rows)) => Some(Self::Inline(rows)),
            _ => None,
        }
    }

    /// The first row of which something is so, by itself or by its text: where it is, and its text.
    fn find(&self, is_it: impl Fn(&dyn TableLike, &str) -> bool) -> Option<(usize, String)> {
        let rows: Vec<(usize, &dyn TableLike, String)> = match self {
            Self::Tables(rows) => {
                rows.iter().enumerate().map(|(at, row)| (at, row as &dyn TableLike, row_text(row))).collect()
            }
            Self::Inline(rows) => {
                let tables = rows.iter().enumerate();
                tables.filter_map(|(at, row)| Some((at, row.as_inline_table()? as &dyn TableLike, text(row)))).collect()
            }
        };
        rows.into_iter().find(|(_, row, text)| is_it(*row, text)).map(|(at, _, text)| (at, text))
    }

    /// Puts a row where another is, or at the end.
    fn put(&mut self, at: Option<usize>, row: Table) {
        match (self, at) {
            (Self::Tables(rows), Some(at)) => drop(rows.replace(at, row)),
            (Self::Tables(rows), None) => rows.push(row),
            (Self::Inline(rows), Some(at)) => drop(rows.replace(at, row.into_inline_table())),
            (Self::Inline(rows), None) => rows.push(row.into_inline_table()),
        }
    }

    /// Puts a row where another is, as it was written.
    fn put_back(&mut self, at: usize, row: InlineTable) {
        match self {
            Self::Tables(rows) => drop(rows.replace(at, row.into_table())),
            Self::Inline(rows) => drop(rows.replace(at, row)),
        }
    }

    fn remove(&mut self, at: usize) {
        match self {
            Self::Tables(rows) => drop(rows.remove(at)),
            Self::Inline(rows) => drop(rows.remove(at)),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Self::Tables(rows) => rows.is_empty(),
            Self::Inline(rows) => rows.is_empty(),
        }
    }
}

/// Removes the tables that were made for a change, as far as they are empty again.
fn prune(document: &mut DocumentMut, change: &Change) {
    for depth in (change.tables + 1..change.path.len()).rev() {
        let Some(parent) = find_mut(document, &change.path[..depth - 1]) else { continue };
        let key = change.path[depth - 1].as_str();
        if parent.get(key).and_then(Item::as_table_like).is_some_and(TableLike::is_empty) {
            parent.remove(key);
        }
    }
}

/// How many tables of a path are there, without the key itself.
fn there(document: &DocumentMut, path: &[String]) -> usize {
    let tables = &path[..path.len() - 1];
    (0..=tables.len())
        .rev()
        .find(|depth| {
            let parts: Vec<&str> = tables[..*depth].iter().map(String::as_str).collect();
            get(document, &parts).is_some()
        })
        .unwrap_or(0)
}

/// The table of a path, made where it is not there, and the key in it.
fn enter<'d, 'p>(document: &'d mut DocumentMut, path: &'p [String]) -> Result<(&'d mut dyn TableLike, &'p str)> {
    let (key, tables) = path.split_last().expect("a path has a key");
    let mut table: &mut dyn TableLike = document.as_table_mut();
    for (depth, part) in tables.iter().enumerate() {
        let item = table.entry(part).or_insert_with(|| {
            let mut made = Table::new();
            // It has a line of its own only if it holds more than tables.
            made.set_implicit(true);
            Item::Table(made)
        });
        let found = item.type_name();
        table = item.as_table_like_mut().ok_or_else(|| shape(&path[..=depth], "a table", found))?;
    }
    Ok((table, key))
}

fn find_mut<'d>(document: &'d mut DocumentMut, path: &[String]) -> Option<&'d mut dyn TableLike> {
    let table: &mut dyn TableLike = document.as_table_mut();
    path.iter().try_fold(table, |table, part| table.get_mut(part)?.as_table_like_mut())
}

/// Says above the first added table where it comes from.
fn note(document: &mut DocumentMut, changes: &[Change]) {
    let added = changes.iter().find(|change| change.before.is_none() && change.tables + 1 < change.path.len());
    let Some(change) = added else { return };
    let path: Vec<&str> = change.path[..change.path.len() - 1].iter().map(String::as_str).collect();
    let table = path.iter().try_fold(document.as_item_mut(), |item, part| item.as_table_like_mut()?.get_mut(part));
    if let Some(Item::Table(table)) = table {
        table.decor_mut().set_prefix(NOTE);
    }
}

/// A value's text, bare of what stands around it.
fn text(value: &Value) -> String {
    let mut bare = value.clone();
    bare.decor_mut().clear();
    bare.to_string().trim().to_owned()
}

fn item_text(item: &Item) -> String {
    match item {
        Item::Value(value) => text(value),
        Item::Table(table) => row_text(table),
        Item::ArrayOfTables(rows) => text(&Value::Array(rows.clone().into_array())),
        Item::None => String::new(),
    }
}

fn row_text(table: &Table) -> String {
    text(&Value::InlineTable(table.clone().into_inline_table()))
}

fn shape(path: &[String], expected: &'static str, found: &'static str) -> EditError {
    EditError::Shape { path: path.join("."), expected, found }
}

fn changed(change: &Change, found: &str) -> EditError {
    EditError::Changed { path: change.path.join("."), expected: change.after.clone(), found: found.to_owned() }
}

#[cfg(test)]
#[path = "edit_tests.rs"]
mod tests;
