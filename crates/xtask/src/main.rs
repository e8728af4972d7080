//! `cargo xtask`: repeats the figures of docs/reliability.md, each by one command.
//!
//! A figure is a test that is there anyway, started with the variables that say how much it tries and by which seed, so that its
//! counts are seen. Nothing is done here that a test does not do; what a test needs (root, strace, peers) is its own matter.

use std::path::Path;
use std::process::{Command, ExitCode};

/// A figure and what repeats it.
struct Figure {
    name: &'static str,
    what: &'static str,
    /// The variable of how much is tried, and how much that is if nobody says otherwise.
    amount: Option<(&'static str, u32)>,
    /// The variable of the seed.
    seed: Option<&'static str>,
    /// Program and arguments, each of which is run; `{amount}` is replaced.
    runs: &'static [&'static [&'static str]],
}

const CUTS: Option<(&str, u32)> = Some(("ORLOP_TEST_CUTS", 60));
const FAULTS: Option<(&str, u32)> = Some(("ORLOP_TEST_FAULTS", 2));
const ROUNDS: Option<(&str, u32)> = Some(("ORLOP_TEST_ROUNDS", 300));
const SCHEDULES: Option<(&str, u32)> = Some(("ORLOP_TEST_SCHEDULES", 10_000));
const SEED: Option<&str> = Some("ORLOP_TEST_SEED");

const FIGURES: &[Figure] = &[
    Figure {
        name: "power-cuts",
        what: "states that a power cut may leave, AMOUNT at each point (0: all)",
        amount: CUTS,
        seed: SEED,
        runs: &[&["cargo", "test", "-p", "orlop", "--test", "power_cut", "--", "--nocapture"]],
    },
    Figure {
        name: "kills",
        what: "rounds in which a daemon with clients is killed",
        amount: ROUNDS,
        seed: SEED,
        runs: &[&["cargo", "test", "-p", "orlop", "--test", "faults", "--", "--nocapture", "a_killed_daemon"]],
    },
    Figure {
        name: "disks",
        what: "rounds in which a disk is cut off beneath a daemon with clients",
        amount: ROUNDS,
        seed: SEED,
        runs: &[&["cargo", "test", "-p", "orlop", "--test", "faults", "--", "--nocapture", "a_disk_that_is_cut_off"]],
    },
    Figure {
        name: "faults",
        what: "errors put into system calls, AMOUNT kinds of calls of each command (0: every call)",
        amount: FAULTS,
        seed: SEED,
        runs: &[&["cargo", "test", "-p", "orlop", "--test", "faults", "--", "--nocapture", "--skip", "cuts::"]],
    },
    Figure {
        name: "collections",
        what: "histories of everything at once, compared with a model",
        amount: SCHEDULES,
        seed: Some("PROPTEST_RNG_SEED"),
        runs: &[
            &["cargo", "test", "-p", "orlop-metadata", "--test", "gc_model", "--", "--nocapture"],
            &["cargo", "test", "-p", "orlop-metadata", "--test", "it", "--", "--nocapture", "gc_concurrent::"],
        ],
    },
    Figure {
        name: "storm",
        what: "AMOUNT seconds of pushers, collector, killed gateways and databases, a busy bucket",
        amount: Some(("ORLOP_TEST_STORM_SECONDS", 3600)),
        seed: SEED,
        runs: &[&["cargo", "test", "-p", "orlop", "--test", "fleet", "--", "--nocapture", "storm::"]],
    },
    Figure {
        name: "writers",
        what: "orders of the threads that share a transaction, AMOUNT of each kind",
        amount: SCHEDULES,
        seed: None,
        runs: &[&["cargo", "test", "-p", "orlop-metadata", "--lib", "--", "--nocapture", "transact_orders"]],
    },
    Figure {
        name: "storms",
        what: "pull storms of AMOUNT nodes on a virtual network",
        amount: Some(("ORLOP_TEST_NODES", 1_000)),
        seed: None,
        runs: &[&["cargo", "test", "-p", "orlop-peer", "--test", "it", "--", "--nocapture", "storm::"]],
    },
    Figure {
        name: "fuzz",
        what: "inputs made of the corpora, AMOUNT seconds for each parser",
        amount: Some(("ORLOP_FUZZ_SECONDS", 10)),
        seed: Some("ORLOP_FUZZ_SEED"),
        runs: &[&["cargo", "test", "-p", "orlop-fuzz", "--", "--nocapture"]],
    },
    Figure {
        name: "fuzz-guided",
        what: "inputs made by libFuzzer, guided by coverage, AMOUNT seconds for each parser",
        amount: Some(("ORLOP_FUZZ_GUIDED_SECONDS", 75)),
        seed: None,
        runs: &[&["scripts/fuzz", "{amount}"]],
    },
    Figure {
        name: "layers",
        what: "the corpus of hostile layers, by both drivers and one of AMOUNT beside both containerds",
        amount: Some(("ORLOP_TEST_LAYERS", 1)),
        seed: None,
        runs: &[&["cargo", "test", "-p", "orlop-snapshot", "--test", "it", "--", "--nocapture", "corpus::"]],
    },
    Figure {
        name: "damage",
        what: "damage to blobs, trees and meta.db: found, told, mended",
        amount: None,
        seed: None,
        runs: &[
            &["cargo", "test", "-p", "orlop", "--test", "it", "--", "repair::", "scrub::", "trees::", "rebuild::"],
            &["cargo", "test", "-p", "orlop-snapshot", "--test", "it", "--", "record::"],
            &["cargo", "test", "-p", "orlop-metadata", "--test", "it", "--", "healing::", "damage::", "rebuild::"],
        ],
    },
];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let Some(name) = words.first() else {
        list();
        return ExitCode::SUCCESS;
    };
    let numbers: Option<Vec<u32>> = words[1..].iter().map(|word| word.parse().ok()).collect();
    match (FIGURES.iter().find(|figure| figure.name == *name), numbers.as_deref()) {
        (Some(figure), Some(numbers)) if fits(figure, numbers) => repeat(figure, numbers),
        (figure, _) => {
            match figure {
                Some(figure) => eprintln!("usage: cargo xtask {}", usage(figure)),
                None => {
                    eprintln!("there is no figure {name:?}; these there are:");
                    list();
                }
            }
            ExitCode::from(2)
        }
    }
}

fn fits(figure: &Figure, numbers: &[u32]) -> bool {
    numbers.len() <= usize::from(figure.amount.is_some()) + usize::from(figure.seed.is_some())
}

fn usage(figure: &Figure) -> String {
    let amount = figure.amount.map_or(String::new(), |(_, amount)| format!(" [AMOUNT={amount}]"));
    let seed = figure.seed.map_or("", |_| " [SEED=1]");
    format!("{}{amount}{seed}", figure.name)
}

fn list() {
    for figure in FIGURES {
        println!("cargo xtask {:36} {}", usage(figure), figure.what);
    }
}

/// Starts what makes the figure, and says what that is: the same can be typed.
fn repeat(figure: &Figure, numbers: &[u32]) -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut numbers = numbers.iter().copied();
    let amount = figure.amount.map(|(variable, usual)| (variable, numbers.next().unwrap_or(usual)));
    let seed = figure.seed.zip(numbers.next());
    let mut failed = false;
    for words in figure.runs {
        let words: Vec<String> =
            words.iter().map(|w| w.replace("{amount}", &amount.map_or(0, |a| a.1).to_string())).collect();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(&root);
        let mut typed = String::new();
        for (variable, value) in amount.iter().chain(&seed) {
            command.env(variable, value.to_string());
            typed.push_str(&format!("{variable}={value} "));
        }
        eprintln!("{typed}{}", words.join(" "));
        failed |= match command.status() {
            Ok(status) => !status.success(),
            Err(error) => {
                eprintln!("cannot start {}: {error}", words[0]);
                true
            }
        };
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;

    /// What docs/reliability.md says repeats its figures is there, and nothing else.
    #[test]
    fn the_figures_are_those_of_the_document() {
        let text =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reliability.md")).unwrap();
        let name = |rest: &str| rest.split([' ', '`']).next().unwrap().to_owned();
        let named: BTreeSet<String> = text.split("`cargo xtask ").skip(1).map(name).collect();
        let known: BTreeSet<String> = FIGURES.iter().map(|figure| figure.name.to_owned()).collect();
        assert_eq!(named, known);
    }

    fn after<'a>(run: &[&'a str], word: &str) -> Option<&'a str> {
        run.iter().position(|given| *given == word).and_then(|at| run.get(at + 1)).copied()
    }

    /// Where the tests of a crate are.
    fn tests_of(package: &str) -> PathBuf {
        let name = package.strip_prefix("orlop-").unwrap_or("cli");
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("tests")
    }

    /// cargo says so itself of a test program that is not there; of a filter that fits no test it says nothing.
    #[test]
    fn what_is_run_is_there() {
        let mut checked = 0;
        for figure in FIGURES {
            for run in figure.runs {
                let Some(program) = after(run, "--test") else { continue };
                let main = tests_of(after(run, "-p").unwrap()).join(program).join("main.rs");
                let source = std::fs::read_to_string(&main);
                let source = source.unwrap_or_else(|error| panic!("{}: {}: {error}", figure.name, main.display()));
                for filter in run.iter().filter_map(|word| word.strip_suffix("::")) {
                    let declared = format!("mod {filter};");
                    assert!(source.contains(&declared), "{}: {} has no {declared}", figure.name, main.display());
                }
                checked += 1;
            }
        }
        assert!(checked > 5, "only {checked} were looked at");
    }
}
