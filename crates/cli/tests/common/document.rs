//! Parts of docs/compatibility.md that tests write, each between two marks.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Set to write what was found instead of comparing it.
const WRITE: &str = "ORLOP_WRITE_TABLE";

/// Several tests run at once, and all may write.
static FILE: Mutex<()> = Mutex::new(());

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
