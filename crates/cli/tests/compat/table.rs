//! The table in docs/compatibility.md, between two marks for each client.

use crate::deviation::{Deviation, How};
use crate::help::Leaf;

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
        let of_kind =
            found.iter().filter(|(deviation, _)| matches!(deviation.how, How::Other { .. } | How::Refused(_)) == other);
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
