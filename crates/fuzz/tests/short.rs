//! Each target over its whole corpus, then over mutations of it for some seconds.
//!
//! `ORLOP_FUZZ_SECONDS` (10) and `ORLOP_FUZZ_SEED` (1) say how long and with which mutations; `ORLOP_FUZZ_INPUT=FILE` runs that
//! input alone; `ORLOP_WRITE_SEEDS=1` writes what corpora begin with to `fuzz/corpus`.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use orlop_fuzz::{TARGETS, Target, run, scratch, seeds};
use orlop_testkit::tier::amount;

/// What all targets that run at a time may have in memory: none of them has inputs that are worth a tenth of it.
const MEMORY: usize = 512 << 20;
/// Targets at a time, however many processors there are: what is measured is the memory of all.
const AT_A_TIME: usize = 2;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, counted.
struct Counting;

// SAFETY: every call goes to the system's allocator as it came; the counters are apart from what it gives.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

/// One of the places for targets that run.
struct Place;

impl Place {
    fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = ENDED.wait_while(running, |n| *n >= AT_A_TIME).unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

fn target(name: &str) -> &'static Target {
    TARGETS.iter().find(|target| target.name == name).expect("the target is in the list")
}

fn short(name: &str) {
    let target = target(name);
    if target.isolated && !scratch::may_isolate() {
        println!("{name}: skipped, it needs root: what it asks for must not leave this machine");
        return;
    }
    let directory = run::corpus_directory(target);
    if amount("ORLOP_WRITE_SEEDS", 0) == 1 {
        seeds::write(target, &directory).expect("seeds can be written");
    }
    let _place = Place::take();
    if let Ok(path) = std::env::var("ORLOP_FUZZ_INPUT") {
        return (target.run)(&std::fs::read(path).expect("the input can be read"));
    }
    let corpus = run::read_corpus(&directory).expect("the corpus can be read");
    let seeds = (target.seeds)().len();
    assert!(
        corpus.len() >= seeds,
        "{} inputs in {}, {seeds} seeds: ORLOP_WRITE_SEEDS=1",
        corpus.len(),
        directory.display()
    );
    let (time, seed) = (Duration::from_secs(amount("ORLOP_FUZZ_SECONDS", 10)), amount("ORLOP_FUZZ_SEED", 1));
    let found = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz-found");
    let ran = run::run(target, &corpus, time, seed, &found, || {
        let peak = PEAK.load(Ordering::Relaxed);
        assert!(peak <= MEMORY, "{} MiB of memory at the same time", peak >> 20);
    });
    println!("{name}: {} inputs in the corpus, {} executions, seed {seed}", ran.corpus, ran.executions);
}

macro_rules! each {
    ($($name:ident),*) => {
        $(#[test] fn $name() { short(stringify!($name)); })*

        #[test]
        fn every_target_has_its_test_and_its_program() {
            let tests = [$(stringify!($name)),*];
            let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/Cargo.toml");
            let manifest = std::fs::read_to_string(manifest).expect("cargo-fuzz's manifest is there");
            for target in TARGETS {
                assert!(tests.contains(&target.name), "{} has no test", target.name);
                let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets").join(target.name);
                let text = std::fs::read_to_string(program.with_extension("rs")).expect("cargo-fuzz's program is there");
                assert!(text.contains(&format!("targets::{}::TARGET", target.name)), "{text}");
                assert!(manifest.contains(&format!("name = \"{}\"\n", target.name)), "{} is not in it", target.name);
            }
            assert_eq!(tests.len(), TARGETS.len());
        }
    };
}

each!(
    references,
    documents,
    graphs,
    tar_apply,
    compressed,
    deflate,
    archives,
    hosts_toml,
    filters,
    bolt,
    headers,
    calls,
    credentials,
    registry
);
