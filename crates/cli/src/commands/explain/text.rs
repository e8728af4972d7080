//! Explanations for people.

use orlop_graph::model::Root;

use super::facts::Explanation;
use crate::look::facts::{Bytes, Keeper, Named};
use crate::look::words;
use crate::output::{count, size};
use crate::paint::{Tone, plain};

/// The column in which texts begin.
const INDENT: usize = 14;
/// Where lines are broken.
const WIDTH: usize = 110;
/// How many of a kind are named.
const NAMED: usize = 6;

/// All explanations, one after the other.
pub(crate) fn all(things: &[Explanation]) -> String {
    things.iter().map(one).collect::<Vec<_>>().join("\n")
}

fn one(thing: &Explanation) -> String {
    let (name, kind_of) = (Tone::Title.paint(plain(&thing.thing.name)), Tone::Kind.paint(kind(&thing.thing)));
    let mut text = format!("{name}   ({kind_of}, namespace {})\n", thing.thing.namespace);
    field(&mut text, "what", [thing.what.clone()]);
    field(&mut text, "why", thing.why.clone());
    field(&mut text, "beware", thing.trouble.clone());
    let author = thing.written_by.as_ref().map(|a| format!("{}{}", a.who, if a.inferred { " (inferred)" } else { "" }));
    field(&mut text, "written by", author);
    let since = thing.since.as_ref().map(|since| match &thing.updated {
        Some(updated) => format!("{since}, changed {updated}"),
        None => since.clone(),
    });
    field(&mut text, "since", since);
    field(&mut text, "image ID", thing.image_id.clone().filter(|id| *id != thing.thing.name));
    field(&mut text, "points to", names(&thing.points_to, |n| format!("{} {}", role(n), n.name)));
    let other = |n: &Named| {
        let elsewhere = n.namespace != thing.thing.namespace;
        let place = if elsewhere { format!("  in namespace {}", n.namespace) } else { String::new() };
        format!("{}  ({}){place}", n.name, kind(n))
    };
    field(&mut text, "other names", names(&thing.other_names, other));
    field(&mut text, "part of", names(&thing.part_of, |n| n.name.clone()));
    field(&mut text, "used by", users(thing));
    field(&mut text, "kept by", keepers(thing));
    field(&mut text, "costs", costs(thing));
    field(&mut text, "if deleted", thing.if_deleted.words.clone());
    text
}

fn kind(thing: &Named) -> String {
    match (thing.kind, thing.role) {
        ("record", Some("tag")) => "tag".into(),
        ("record", Some("digest")) => "hash reference, name@digest".into(),
        ("record", Some("id")) => "hash reference, image ID".into(),
        ("record", _) => "image record".into(),
        (_, Some(role)) => role.into(),
        (kind, None) => kind.into(),
    }
}

fn role(thing: &Named) -> &str {
    thing.role.unwrap_or(thing.kind)
}

fn names(all: &[Named], show: impl Fn(&Named) -> String) -> Vec<String> {
    let mut lines: Vec<String> = all.iter().take(NAMED).map(show).collect();
    if all.len() > NAMED {
        lines.push(format!("and {} more", all.len() - NAMED));
    }
    lines
}

fn users(thing: &Explanation) -> Vec<String> {
    let mut lines: Vec<String> = thing.users.iter().take(NAMED).cloned().collect();
    if thing.users.len() > NAMED {
        lines.push(format!("and {} more", thing.users.len() - NAMED));
    }
    if lines.is_empty() && thing.thing.kind == "record" {
        lines.push("no container".into());
    }
    lines
}

fn keepers(thing: &Explanation) -> Vec<String> {
    let itself = |k: &&Keeper| k.chain.is_empty();
    let mut lines: Vec<String> =
        thing.kept_by.iter().filter(itself).map(|k| format!("itself: it is a {}", root(k))).collect();
    let others: Vec<&Keeper> = thing.kept_by.iter().filter(|k| !itself(k)).collect();
    let shown = others.iter().take(NAMED);
    lines.extend(shown.map(|k| format!("{} {}", root(k), k.root.name)));
    if others.len() > NAMED {
        lines.push(format!("and {} more (`orlop why` shows the ways)", others.len() - NAMED));
    }
    if lines.is_empty() {
        lines.push("nothing: the next collection takes it".into());
    }
    lines
}

fn root(keeper: &Keeper) -> String {
    match keeper.root.kind {
        "record" => match keeper.root.role {
            Some("digest" | "id") => "hash reference".into(),
            _ => "name".into(),
        },
        kind if keeper.reason == words::root(Root::Owner) => format!("{kind} of the containerd above"),
        "blob" | "snapshot" => format!("{} with the label containerd.io/gc.root", keeper.root.kind),
        "ingest" => "write in progress".into(),
        kind => kind.into(),
    }
}

fn costs(thing: &Explanation) -> Vec<String> {
    let mut lines = Vec::new();
    match &thing.image_cost {
        Some(image) => {
            lines.push("the record itself: a row in a database, no content".into());
            lines.push(format!("the image: {}", bytes(&image.all)));
            let shared = image.all.bytes.saturating_sub(image.alone.bytes);
            if shared > 0 {
                lines.push(format!(
                    "of that {} are its own, {} are kept by others too",
                    size(image.alone.bytes),
                    size(shared)
                ));
            }
        }
        None => {
            lines.push(bytes(&thing.cost.all));
            let shared = thing.cost.all.bytes.saturating_sub(thing.cost.alone.bytes);
            if shared > 0 && thing.cost.alone.bytes > 0 {
                lines.push(format!(
                    "of that {} are its own, {} are kept by others too",
                    size(thing.cost.alone.bytes),
                    size(shared)
                ));
            }
        }
    }
    lines
}

fn bytes(bytes: &Bytes) -> String {
    let mut parts = Vec::new();
    if bytes.blobs > 0 {
        parts.push(format!("{} in {}", size(bytes.blob_bytes), count(bytes.blobs, "blob")));
    }
    if bytes.snapshots > 0 {
        parts.push(format!("{} in {}", size(bytes.snapshot_bytes), count(bytes.snapshots, "snapshot")));
    }
    if bytes.unmeasured > 0 {
        parts.push(format!("{} of unknown size", count(bytes.unmeasured, "snapshot")));
    }
    if parts.is_empty() { "no content that is here".into() } else { parts.join(" and ") }
}

/// A title and its lines, each broken where it is too long.
fn field(text: &mut String, title: &str, lines: impl IntoIterator<Item = String>) {
    let mut title = title;
    for line in lines {
        for part in broken(&plain(&line)) {
            let title_painted = if title == "beware" { Tone::Warning.paint(title) } else { Tone::Faint.paint(title) };
            let pad = " ".repeat(INDENT - 2 - title.len());
            text.push_str(&format!("  {title_painted}{pad}{part}\n"));
            title = "";
        }
    }
}

fn broken(line: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let last = lines.last_mut().expect("there is one");
        if !last.is_empty() && !word.is_empty() && INDENT + last.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(word.to_owned());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    // Two blanks between columns are none at the end of a line.
    lines.iter_mut().for_each(|line| line.truncate(line.trim_end().len()));
    lines
}

#[cfg(test)]
mod tests {
    use super::broken;

    #[test]
    fn long_lines_are_broken_without_blanks_at_their_end() {
        let long = format!("{}  (hash reference, name@digest)", "x".repeat(95));
        assert_eq!(broken(&long), ["x".repeat(95), "(hash reference, name@digest)".to_owned()]);
        assert_eq!(broken("a  b"), ["a  b"]);
    }
}
