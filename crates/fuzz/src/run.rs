//! Runs a target over a corpus and its mutations, without instrumentation.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::Target;
use crate::mutate::{Random, mutate};

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ran {
    /// Inputs of the corpus.
    pub corpus: usize,
    /// Times that the target was called.
    pub executions: u64,
}

/// Where the corpus of a target is kept.
pub fn corpus_directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target.name)
}

/// The inputs of a directory, by name.
///
/// # Errors
/// What the file system says.
pub fn read_corpus(directory: &Path) -> std::io::Result<Vec<Vec<u8>>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        paths.push(entry?.path());
    }
    paths.sort();
    paths.iter().filter(|path| path.is_file()).map(std::fs::read).collect()
}

/// Calls the target with every input, then with mutations until the time is over. `after` is called after each
/// execution, with the target's panics caught as the target's own are.
///
/// # Panics
/// If the target does. The input is left in `found`, and the message says where.
pub fn run(
    target: &Target,
    corpus: &[Vec<u8>],
    time: Duration,
    seed: u64,
    found: &Path,
    mut after: impl FnMut(),
) -> Ran {
    let mut executions = 0;
    let mut one = |input: &[u8]| {
        executions += 1;
        let called = catch_unwind(AssertUnwindSafe(|| {
            (target.run)(input);
            after();
        }));
        if called.is_err() {
            let path = found.join(format!("{}-{seed}-{executions}", target.name));
            let kept = std::fs::create_dir_all(found).and_then(|()| std::fs::write(&path, input));
            panic!(
                "target {}: execution {executions} of seed {seed} broke a promise (see above); its input is {} \
                 ({kept:?}): ORLOP_FUZZ_INPUT=FILE cargo test -p orlop-fuzz {}",
                target.name,
                path.display(),
                target.name,
            );
        }
    };
    corpus.iter().for_each(|input| one(input));
    let (mut random, start) = (Random::new(seed), Instant::now());
    while start.elapsed() < time {
        one(&mutate(&mut random, corpus, target.words, target.limit));
    }
    Ran { corpus: corpus.len(), executions }
}
