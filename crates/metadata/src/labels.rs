//! Labels and field masks: the rules every labelled object shares.

use crate::db::unreadable;
use crate::{Error, Labels, Result};

/// Bytes that a key and its value may have together: containerd's bound.
const MAX_LABEL: usize = 4096;

/// Drops labels with an empty value, which is how containerd deletes one.
pub(crate) fn without_empty(mut labels: Labels) -> Labels {
    labels.retain(|_, value| !value.is_empty());
    labels
}

/// Adds or replaces labels; an empty value deletes.
pub(crate) fn merge(into: &mut Labels, from: &Labels) {
    for (key, value) in from {
        set(into, key, value.clone());
    }
}

/// What `labels.<key>` of a field mask sets the label to. The key itself has the bound, even if it is deleted.
pub(crate) fn by_mask(labels: &mut Labels, key: &str, given: &Labels) -> Result<()> {
    let value = given.get(key).cloned().unwrap_or_default();
    within_bound(key, &value)?;
    set(labels, key, value);
    Ok(())
}

/// Sets one label; an empty value deletes it.
pub(crate) fn set(labels: &mut Labels, key: &str, value: String) {
    if value.is_empty() {
        labels.remove(key);
    } else {
        labels.insert(key.to_owned(), value);
    }
}

/// Refuses what is too long.
pub(crate) fn validate(labels: &Labels) -> Result<()> {
    labels.iter().try_for_each(|(key, value)| within_bound(key, value))
}

fn within_bound(key: &str, value: &str) -> Result<()> {
    let length = key.len() + value.len();
    if length <= MAX_LABEL {
        return Ok(());
    }
    let start: String = key.chars().take(40).collect();
    let reason = format!("key and value have {length} bytes together, at most {MAX_LABEL} are allowed: {start:?}");
    Err(Error::Invalid { what: "label", reason })
}

/// What an update with a field mask makes of an object's labels, for objects that can change nothing else. No mask
/// replaces all of them; of `labels.<key>` the key may have dots.
pub(crate) fn masked(old: Labels, new: Labels, mask: &[String]) -> Result<Labels> {
    let mut result = if mask.is_empty() { new.clone() } else { old };
    for path in mask {
        if path == "labels" {
            result = new.clone();
        } else if let Some(key) = path.strip_prefix("labels.") {
            by_mask(&mut result, key, &new)?;
        } else {
            return Err(unknown_field(path, "labels or labels.<key>"));
        }
    }
    let result = without_empty(result);
    validate(&result)?;
    Ok(result)
}

/// A mask that names what cannot be changed.
pub(crate) fn unknown_field(path: &str, allowed: &str) -> Error {
    Error::Invalid { what: "field mask", reason: format!("{path:?} cannot be updated; expected {allowed}") }
}

/// As the database has them.
pub(crate) fn to_json(labels: &Labels) -> String {
    serde_json::to_string(labels).expect("a map of strings is JSON")
}

/// The opposite of [`to_json`].
pub(crate) fn from_json(json: &str) -> Result<Labels, serde_json::Error> {
    if json == "{}" { Ok(Labels::new()) } else { serde_json::from_str(json) }
}

/// Reads a column of labels.
pub(crate) fn column(row: &rusqlite::Row<'_>, index: usize) -> rusqlite::Result<Labels> {
    let json = row.get_ref(index)?.as_str()?;
    from_json(json).map_err(|e| unreadable(index, e))
}

/// The time in an expiry label, if there is one and it parses: containerd ignores what does not.
pub(crate) fn expiry(labels: &Labels) -> Option<i64> {
    let value = labels.get(crate::edges::EXPIRE)?;
    value.parse::<jiff::Timestamp>().ok().map(crate::db::to_nanos)
}
