//! Compares a layer as a directory (overlayfs) with the same layer as an image (erofs): unpacked and committed, on disk, verified,
//! removed.
//!
//! `cargo bench -p orlop-snapshot --bench forms -- [DIRECTORY [SCRATCH]]` packs DIRECTORY (by default Python's library) with gzip, and
//! has both drivers take it in turn, five times, below SCRATCH (by default the system's temporary directory). Printed are medians.
//! Needs root and a kernel with EROFS.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::{Driver, ErofsDriver, Meta, OverlayDriver, SnapshotId};

const ROUNDS: u64 = 5;

fn main() {
    // Cargo passes --bench.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let source = arguments.next().unwrap_or_else(|| "/usr/lib/python3".to_owned());
    let scratch = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let work = tempfile::tempdir_in(scratch).expect("a scratch directory");
    let layer = work.path().join("layer.tar.gz");
    let packed = Command::new("tar").args(["-C", &source, "-czf"]).arg(&layer).arg(".").status();
    assert!(packed.expect("tar runs").success());
    let overlayfs = OverlayDriver::open(work.path().join("overlayfs")).expect("a driver");
    let erofs = ErofsDriver::open(work.path().join("erofs")).expect("a driver");
    let mut runs = [Vec::new(), Vec::new()];
    for id in 1..=ROUNDS {
        for (driver, runs) in [&overlayfs as &dyn Driver, &erofs].into_iter().zip(&mut runs) {
            runs.push(run(driver, SnapshotId(id), &layer));
        }
    }
    println!("{source}, {ROUNDS} rounds, medians");
    println!("{:10} {:>9} {:>9} {:>9} {:>12} {:>9}", "", "unpack s", "verify s", "remove s", "bytes", "inodes");
    for (name, runs) in ["overlayfs", "erofs"].into_iter().zip(&runs) {
        let median = |of: fn(&Run) -> f64| {
            let mut all: Vec<f64> = runs.iter().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let [unpack, verify, remove] = [median(|run| run.unpack), median(|run| run.verify), median(|run| run.remove)];
        let (bytes, inodes) = (median(|run| run.bytes), median(|run| run.inodes));
        println!("{name:10} {unpack:>9.3} {verify:>9.3} {remove:>9.3} {bytes:>12} {inodes:>9}");
    }
}

struct Run {
    unpack: f64,
    verify: f64,
    remove: f64,
    bytes: f64,
    inodes: f64,
}

fn run(driver: &dyn Driver, id: SnapshotId, layer: &Path) -> Run {
    let meta = |kind: &str| Meta {
        namespace: "bench".into(),
        key: "layer".into(),
        kind: kind.into(),
        parent: None,
        labels: Default::default(),
    };
    rustix::fs::sync();
    let (usage, unpack) = timed(|| {
        driver.create(id, &[], &meta("active")).expect("a snapshot");
        let layer = File::open(layer).expect("the layer");
        apply(layer, &driver.apply_target(id), &Options::default()).expect("the layer applies");
        driver.commit(id, &[], &meta("committed")).expect("the snapshot is committed")
    });
    let ((), verify) = timed(|| {
        let mut comparison = driver.compare(id).expect("a record").expect("it was recorded");
        while comparison.step().expect("it is read").is_some() {}
        assert_eq!(comparison.compared().fault(), None);
    });
    let ((), remove) = timed(|| driver.remove(id, None).expect("the snapshot goes"));
    Run { unpack, verify, remove, bytes: usage.bytes as f64, inodes: usage.inodes as f64 }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_secs_f64())
}
