//! The memory that a pull takes does not follow the size of what is pulled.

use std::io::Write;
use std::path::Path;
use std::process::Command;

use crate::common;
use crate::common::{Entry, Made, Shelf, scope};
use orlop_image::{PullRequest, Settings};
use orlop_oci::{Digest, media_type};
use orlop_testkit::tar::tar;

const ROOT: &str = "ORLOP_TEST_MEMORY_ROOT";
const REFERENCE: &str = "ORLOP_TEST_MEMORY_REFERENCE";
const LAYERS: usize = 3;
/// Three of them are more than the limit.
const LAYER_BYTES: usize = 32 << 20;
/// What the project promises: 64 MiB and 8 MiB for each layer at once.
const LIMIT_KIB: u64 = (64 + 8 * LAYERS as u64) << 10;

/// Not a test of its own: the process that is measured. It says its peak in KiB.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(root), Ok(reference)) = (std::env::var(ROOT), std::env::var(REFERENCE)) else { return };
    let images = common::open(Path::new(&root), Settings::default());
    let request = PullRequest { reference, concurrency: LAYERS, ..PullRequest::default() };
    images.pull(&scope(), &common::client(), &request, &|_| {}).await.unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    eprintln!("peak {}", peak.trim().trim_end_matches(" kB"));
}

/// Bytes that do not compress, from a linear congruential generator.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33).to_le_bytes()
    };
    (0..LAYER_BYTES / 4).flat_map(|_| next()[..4].to_vec()).collect()
}

/// Pulls an image of these layers, given with their tars, in a process of its own; its peak in KiB.
async fn peak_of(layers: Vec<(&str, Vec<u8>, Vec<u8>)>) -> u64 {
    let (shelf, mut made) = (Shelf::start().await, Made::default());
    let diff_ids: Vec<String> = layers.iter().map(|(_, tar, _)| Digest::of(tar).to_string()).collect();
    let layers: Vec<_> = layers.into_iter().map(|(media_type, _, bytes)| made.add(media_type, bytes)).collect();
    let image = made.image_with("amd64", &diff_ids, &layers);
    shelf.push(&made, "team/large:v1", &image).await;
    let (directory, name) = (tempfile::tempdir().unwrap(), shelf.name("team/large:v1"));
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["memory::child", "--exact", "--nocapture"]).env(ROOT, directory.path()).env(REFERENCE, name);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let peak = said.lines().find_map(|line| line.strip_prefix("peak ")).unwrap_or_else(|| panic!("{said}"));
    let peak = peak.parse().unwrap();
    println!("peak {peak} KiB");
    peak
}

#[tokio::test(flavor = "multi_thread")]
async fn large_layers_are_pulled_in_little_memory() {
    let layer = |i: usize| {
        let tar = tar(&[Entry::file(format!("big{i}"), noise(i as u64 + 1))]);
        (media_type::OCI_LAYER, tar.clone(), tar)
    };
    let peak = peak_of((0..LAYERS).map(layer).collect()).await;
    assert!(peak < LIMIT_KIB, "{peak} KiB, promised are {LIMIT_KIB}");
}

/// Regression: windows of up to 128 MiB were allowed, and each layer had one: three such layers took 400 MiB.
#[tokio::test(flavor = "multi_thread")]
async fn layers_with_the_largest_windows_are_pulled_in_little_memory() {
    let layer = |i: usize| {
        let tar = tar(&[Entry::file(format!("big{i}"), [noise(i as u64 + 1), noise(i as u64 + 1)].concat())]);
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(25)).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(&tar).unwrap();
        (media_type::OCI_LAYER_ZSTD, tar, encoder.finish().unwrap())
    };
    let peak = peak_of((0..LAYERS).map(layer).collect()).await;
    assert!(peak < LIMIT_KIB, "{peak} KiB, promised are {LIMIT_KIB}");
}
