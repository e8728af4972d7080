//! Compares applying a layer, with and without noting what files hash to, with `tar` unpacking the same file.
//!
//! `cargo bench -p orlop-snapshot --bench apply -- [DIRECTORY [SCRATCH]]` packs DIRECTORY (by default Python's library)
//! with tar, gzip and zstd, and unpacks each by all, five times in turn, below SCRATCH (by default the system's
//! temporary directory). Printed are medians: seconds, CPU seconds of the process and its children, MB of tar a second.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use orlop_snapshot::apply::{Options, apply};
use orlop_snapshot::{ApplyTarget, Whiteouts};

const ROUNDS: usize = 5;

fn main() {
    // Cargo passes --bench.
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let source = arguments.next().unwrap_or_else(|| "/usr/lib/python3".to_owned());
    let scratch = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let work = tempfile::tempdir_in(scratch).expect("a scratch directory");
    let plain = work.path().join("layer.tar");
    run(Command::new("tar").args(["-C", &source, "-cf"]).arg(&plain).arg("."));
    println!("{source}: {} MB of tar", megabytes(&plain));
    println!("{:10} {:>22} {:>22} {:>22}", "packing", "orlop s/cpu/MBps", "without digests", "tar s/cpu/MBps");
    for (name, packer, unpacker) in [("none", "", ""), ("gzip", "gzip -6", "-z"), ("zstd", "zstd -3", "--zstd")] {
        let layer = pack(&plain, name, packer);
        let (mut ours, mut without, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            ours.push(timed(&work.path().join(format!("o{round}")), |to| unpack(&layer, to, true)));
            without.push(timed(&work.path().join(format!("w{round}")), |to| unpack(&layer, to, false)));
            theirs.push(timed(&work.path().join(format!("t{round}")), |to| {
                let mut tar = Command::new("tar");
                tar.arg("-C").arg(to).args(["--numeric-owner", "-xpf"]).arg(&layer);
                run(if unpacker.is_empty() { &mut tar } else { tar.arg(unpacker) });
            }));
        }
        let columns = [ours, without, theirs].map(|runs| shown(runs, &plain));
        println!("{name:10} {:>22} {:>22} {:>22}", columns[0], columns[1], columns[2]);
    }
}

fn pack(plain: &Path, name: &str, packer: &str) -> PathBuf {
    if packer.is_empty() {
        return plain.to_owned();
    }
    let packed = plain.with_extension(name);
    let out = File::create(&packed).expect("a packed layer");
    let mut words = packer.split(' ');
    let program = words.next().unwrap_or_default();
    run(Command::new(program).args(words).stdin(File::open(plain).expect("the layer")).stdout(out));
    packed
}

fn unpack(layer: &Path, to: &Path, digests: bool) {
    let whiteouts = Whiteouts::Overlay { userxattr: false };
    let applied = digests.then(|| to.with_extension("applied"));
    let target = ApplyTarget { root: to.to_owned(), whiteouts, deferred: None, applied, image: None };
    apply(File::open(layer).expect("the layer"), &target, &Options::default()).expect("the layer applies");
}

fn run(command: &mut Command) {
    assert!(command.status().expect("the program runs").success(), "{command:?}");
}

fn timed(to: &Path, work: impl FnOnce(&Path)) -> (Duration, f64) {
    fs::create_dir(to).expect("a target");
    rustix::fs::sync();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    work(to);
    let spent = (start.elapsed(), cpu_seconds() - cpu);
    fs::remove_dir_all(to).expect("the target goes");
    spent
}

/// User and system time of this process and its children that ended: fields 14 to 17 of proc_pid_stat(5).
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").expect("proc");
    let after_name = stat.rsplit_once(')').expect("a name in brackets").1;
    let ticks: u64 =
        after_name.split_whitespace().skip(11).take(4).map(|ticks| ticks.parse::<u64>().expect("ticks")).sum();
    // USER_HZ is 100 on every Linux that has containers.
    ticks as f64 / 100.0
}

fn megabytes(path: &Path) -> u64 {
    fs::metadata(path).expect("the layer").len() / 1_000_000
}

fn shown(mut runs: Vec<(Duration, f64)>, plain: &Path) -> String {
    runs.sort_by_key(|(wall, _)| *wall);
    let (wall, cpu) = runs[runs.len() / 2];
    let wall = wall.as_secs_f64();
    format!("{wall:.2} / {cpu:.2} / {:.0}", megabytes(plain) as f64 / wall)
}
