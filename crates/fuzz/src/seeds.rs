//! What a corpus begins with, and how it is written.

use std::path::Path;

use crate::Target;

/// Texts as seeds, numbered.
pub fn texts(all: impl IntoIterator<Item = String>) -> Vec<(String, Vec<u8>)> {
    all.into_iter().enumerate().map(|(at, text)| (format!("{at:02}"), text.into_bytes())).collect()
}

/// Writes a target's seeds into the directory of its corpus, beside what runs have found.
///
/// # Errors
/// What the file system says.
pub fn write(target: &Target, directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for (name, bytes) in (target.seeds)() {
        std::fs::write(directory.join(format!("seed-{name}")), bytes)?;
    }
    Ok(())
}
