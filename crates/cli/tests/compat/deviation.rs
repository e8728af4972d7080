//! Where Orlop may answer otherwise than containerd, and how far.
//!
//! # Invariants
//! - A deviation that is declared must happen: one that no longer does fails the test, and so goes from the table.
//! - Each allows one thing and nothing beside it.

use crate::answer::Answer;

/// One way to differ.
pub(crate) struct Deviation {
    /// As the table calls it.
    pub(crate) name: &'static str,
    /// What containerd does, what Orlop does, and why.
    pub(crate) reason: &'static str,
    pub(crate) how: How,
}

/// What a deviation allows.
pub(crate) enum How {
    /// Both fail, with the same exit code, output and class of error; the sentence differs.
    Words,
    /// The answers are the same after this was done to both.
    Same(fn(Answer) -> Answer),
    /// Something else is answered: lines of containerd's answer and of Orlop's hold these words.
    Other { containerd: &'static str, orlop: &'static str },
    /// containerd refuses, in these words, what Orlop does. That it did it, other steps see: progress may show nothing.
    Refused(&'static str),
}

/// Classes of errors as containerd's clients end a sentence with them.
const CLASSES: [&str; 8] = [
    "not found",
    "already exists",
    "failed precondition",
    "invalid argument",
    "unavailable",
    "not implemented",
    "out of range",
    "permission denied",
];

impl Deviation {
    /// Whether the answers differ in this way alone, the other deviations of the step taken into account.
    pub(crate) fn explain(all: &[&Self], theirs: &Answer, ours: &Answer) -> bool {
        let (mut theirs, mut ours) = (theirs.clone(), ours.clone());
        for deviation in all {
            if let How::Same(change) = deviation.how {
                (theirs, ours) = (change(theirs), change(ours));
            }
        }
        if theirs == ours {
            return true;
        }
        all.iter().any(|deviation| match deviation.how {
            How::Same(_) => false,
            How::Words => same_but_words(&theirs, &ours),
            How::Other { containerd, orlop } => holds(&theirs, containerd) && holds(&ours, orlop),
            How::Refused(words) => theirs.code != 0 && holds(&theirs, words) && ours.code == 0 && ours.err.is_empty(),
        })
    }
}

fn same_but_words(theirs: &Answer, ours: &Answer) -> bool {
    // A client that shows the sentence alone may show no class.
    let same_class = match (class(theirs), class(ours)) {
        (Some(theirs), Some(ours)) => theirs == ours,
        _ => true,
    };
    theirs.code == ours.code && theirs.out == ours.out && !theirs.err.is_empty() && !ours.err.is_empty() && same_class
}

fn class(answer: &Answer) -> Option<&str> {
    let coded = answer.err.iter().find_map(|line| line.split("code = ").nth(1)?.split(' ').next());
    coded.or_else(|| {
        let last = answer.err.last()?;
        CLASSES.into_iter().find(|class| last.trim_end_matches('"').ends_with(class))
    })
}

fn holds(answer: &Answer, words: &str) -> bool {
    words.is_empty() || answer.out.iter().chain(&answer.err).chain(&answer.drawn).any(|line| line.contains(words))
}
