//! The corpus itself: names are unique, what is right is readable by GNU tar, what is broken is not.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use orlop_oci::{Compression, DiffId, Digest};
use orlop_testkit::corpus::stream::{BOMB_UNIT, bomb, many_entries};
use orlop_testkit::corpus::{Case, Expect, Hideout, Layer, all, awkward, broken};

fn unpacked(layer: &Layer) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    match layer.compression {
        Compression::None => out.extend_from_slice(&layer.bytes),
        Compression::Gzip => {
            flate2::read::MultiGzDecoder::new(&layer.bytes[..]).read_to_end(&mut out)?;
        }
        Compression::Zstd => {
            zstd::Decoder::new(&layer.bytes[..])?.read_to_end(&mut out)?;
        }
    }
    Ok(out)
}

/// What GNU tar says to listing a tar.
fn gnu_tar_lists(tar: &[u8]) -> bool {
    let mut child = Command::new("tar")
        .args(["-tvf", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tar is installed");
    // A broken pipe is tar giving up early, which its status says too.
    let _ = child.stdin.take().expect("piped").write_all(tar);
    child.wait().expect("tar ran").success()
}

#[test]
fn names_are_unique_and_bytes_are_the_same_every_time() {
    let dir = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(dir.path()).unwrap();
    let (cases, again) = (all(&hideout), all(&hideout));
    let names: HashSet<_> = cases.iter().map(|c| c.name).collect();
    assert_eq!(names.len(), cases.len());
    for (a, b) in cases.iter().zip(&again) {
        let digests = |c: &Case| c.layers.iter().map(Layer::digest).collect::<Vec<_>>();
        assert_eq!(digests(a), digests(b), "{}", a.name);
        assert!(!a.layers.is_empty(), "{}", a.name);
    }
}

#[test]
fn awkward_layers_unpack_to_their_diff_id_and_gnu_tar_reads_them() {
    for case in awkward() {
        assert_eq!(case.expect, Expect::Applies, "{}", case.name);
        for layer in &case.layers {
            let tar = unpacked(layer).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            assert_eq!(layer.diff_id, Some(DiffId::new(Digest::of(&tar))), "{}", case.name);
            // GNU tar takes whole blocks alone, which containerd does not ask for.
            assert!(!tar.len().is_multiple_of(512) || gnu_tar_lists(&tar), "GNU tar refuses {:?}", case.name);
        }
    }
}

#[test]
fn broken_packings_do_not_unpack() {
    for case in broken() {
        assert_eq!(case.expect, Expect::Refused, "{}", case.name);
        if case.name.starts_with("gzip") || case.name.starts_with("zstd") {
            assert!(unpacked(&case.layers[0]).is_err(), "{}", case.name);
        }
    }
}

#[test]
fn a_hideout_tells_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(dir.path()).unwrap();
    hideout.check().unwrap();
    std::fs::hard_link(hideout.path().join("victim"), dir.path().join("link")).unwrap();
    assert!(hideout.check().unwrap_err().contains("2 links"));
    std::fs::remove_file(dir.path().join("link")).unwrap();
    std::fs::write(hideout.path().join("sub/victim"), "evil").unwrap();
    assert!(hideout.check().unwrap_err().contains("sub/victim"));
    std::fs::write(hideout.path().join("sub/victim"), "untouched").unwrap();
    std::fs::write(hideout.path().join("evil"), "").unwrap();
    assert!(hideout.check().unwrap_err().contains("evil"));
}

#[test]
fn bombs_are_small_and_unpack_to_what_they_promise() {
    for (compression, limit) in [(Compression::Gzip, 1 << 17), (Compression::Zstd, 1 << 14)] {
        let mut packed = Vec::new();
        bomb(compression, 3 * BOMB_UNIT).read_to_end(&mut packed).unwrap();
        assert!(packed.len() < limit, "{compression:?}: {}", packed.len());
        let tar = unpacked(&Layer::broken(packed, compression)).unwrap();
        assert_eq!(tar.len() as u64, 512 + 3 * BOMB_UNIT + 1024);
        assert!(gnu_tar_lists(&tar));
    }
}

#[test]
fn many_entries_are_a_tar() {
    let mut tar = Vec::new();
    many_entries(2_500).read_to_end(&mut tar).unwrap();
    assert_eq!(tar.len(), (2_500 + 3 + 2) * 512);
    assert!(gnu_tar_lists(&tar));
}
