//! The table in docs/compatibility.md, between two marks for each client.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::deviation::{Deviation, How};
use crate::help::Leaf;

/// Set to write the table instead of comparing it.
const WRITE: &str = "ORLOP_WRITE_TABLE";

/// Tests of several clients run at once, and all may write.
static FILE: Mutex<()> = Mutex::new(());

/// One form of a command that was tried, and in which ways its answers differed.
pub(crate) struct Tried {
    pub(crate) leaf: usize,
    pub(crate) form: &'static str,
    pub(crate) differs: Vec<&'static Deviation>,
}

/// The rows of a client, in the order of its help.
pub(crate) fn rows(client: &str, leaves: &[Leaf], tried: &[Tried]) -> String {
    let mut table = String::from("| client | command | tried | result |\n|---|---|---|---|\n");
    for (at, leaf) in leaves.iter().enumerate() {
        let of_leaf: Vec<&Tried> = tried.iter().filter(|t| t.leaf == at).collect();
        if of_leaf.is_empty() {
            continue;
        }
        let mut forms: Vec<&str> = Vec::new();
        for form in of_leaf.iter().map(|t| t.form).filter(|form| !form.is_empty()) {
            if !forms.contains(&form) {
                forms.push(form);
            }
        }
        let (forms, result) = (forms.join("; "), result(&of_leaf));
        table += &format!("| {client} | `{}` | {forms} | {result} |\n", leaf.name());
    }
    table
}

fn result(tried: &[&Tried]) -> String {
    let mut found: Vec<(&Deviation, Vec<&str>)> = Vec::new();
    for one in tried {
        for deviation in &one.differs {
            let at = found.iter().position(|(known, _)| std::ptr::eq(*known, *deviation));
            let at = at.unwrap_or_else(|| {
                found.push((deviation, Vec::new()));
                found.len() - 1
            });
            if !found[at].1.contains(&one.form) {
                found[at].1.push(one.form);
            }
        }
    }
    let say = |other: bool| {
        let of_kind = found.iter().filter(|(deviation, _)| matches!(deviation.how, How::Other { .. }) == other);
        of_kind.map(|(deviation, forms)| format!("{} ({})", deviation.name, forms.join("; "))).collect::<Vec<_>>()
    };
    let (but, other) = (say(false).join(", "), say(true).join(", "));
    match (but.as_str(), other.as_str()) {
        ("", "") => "same".to_owned(),
        ("", other) if tried.iter().all(|one| !one.differs.is_empty()) => format!("differs: {other}"),
        ("", other) => format!("same; differs: {other}"),
        (but, "") => format!("same but for {but}"),
        (but, other) => format!("same but for {but}; differs: {other}"),
    }
}

/// What the names of deviations mean.
pub(crate) fn legend(all: &[&Deviation]) -> String {
    let mut table = String::from("| in the table | means |\n|---|---|\n");
    for deviation in all {
        table += &format!("| {} | {} |\n", deviation.name, deviation.reason);
    }
    table
}

/// Compares a part of the document with what was found, or writes it.
///
/// # Panics
/// If they differ.
pub(crate) fn settle(part: &str, found: &str) {
    let _alone = FILE.lock().unwrap_or_else(PoisonError::into_inner);
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/compatibility.md");
    let text = std::fs::read_to_string(&path).expect("the document is there");
    let (begin, end) = (format!("<!-- table of {part} -->\n"), format!("<!-- end of {part} -->\n"));
    let at = text.find(&begin).unwrap_or_else(|| panic!("{}: no line {begin}", path.display())) + begin.len();
    let until = at + text[at..].find(&end).unwrap_or_else(|| panic!("{}: no line {end}", path.display()));
    if text[at..until] == *found {
        return;
    }
    if std::env::var_os(WRITE).is_some() {
        let whole = [&text[..at], found, &text[until..]].concat();
        std::fs::write(&path, whole).expect("the document can be written");
        return;
    }
    let missing = |lines: &str, others: &str, sign: char| -> String {
        let missing = lines.lines().filter(|line| !others.lines().any(|other| other == *line));
        missing.map(|line| format!("  {sign} {line}\n")).collect()
    };
    let differs = missing(&text[at..until], found, '-') + &missing(found, &text[at..until], '+');
    panic!("docs/compatibility.md does not say what was found about {part}; {WRITE}=1 writes it:\n{differs}");
}
