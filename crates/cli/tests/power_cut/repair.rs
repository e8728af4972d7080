//! A damaged blob and a damaged tree are found and mended, and cut in between: the rest of the store is whole at every moment, what was
//! damaged is known to be so or sound, a blob's bytes are in their place or in the quarantine, a tree is the one or the other, and the
//! same command again mends both.

use std::path::{Path, PathBuf};

use orlop_image::{CheckRequest, Problem};
use orlop_oci::Digest;
use orlop_testkit::archive::oci_archive;
use serde_json::Value;

use crate::verdict::images::{base, image};
use crate::verdict::{self, Seen, command};
use crate::workload::{Workload, explored};

/// After one of so many states the repair is given again.
const AGAIN: usize = 6;

/// How many states are tried at each point in the short tier.
const SHORT: usize = 3;

/// What somebody has made of a blob, and of a file of a tree.
const DAMAGED: &[u8] = b"not what it was";

/// A root with what is damaged in it.
struct Damaged {
    blob: Digest,
    /// The file of the tree, below the root.
    file: PathBuf,
    /// What it was.
    sound: Vec<u8>,
    /// What a check calls the tree.
    snapshot: String,
}

impl Damaged {
    /// Unpacks an image, and damages its lower layer: the blob, and what it was unpacked to.
    fn make(top: &Path) -> Self {
        let root = top.join("root");
        let done = command(&root, &["import", &archive(&top.with_file_name("made"))]).output().expect("orlop starts");
        assert!(done.status.success(), "{done:?}");
        let diff_id = base().diff_id();
        let content = image("one");
        let manifest: Value = serde_json::from_slice(&content.blobs[&content.root.digest].bytes).expect("a manifest");
        let blob: Digest =
            manifest["layers"][0]["digest"].as_str().and_then(|text| text.parse().ok()).expect("a layer");
        std::fs::remove_file(blob_path(&root, &blob)).expect("the blob goes");
        std::fs::write(blob_path(&root, &blob), DAMAGED).expect("and comes back otherwise");
        let trees = std::fs::read_dir(root.join("snapshots/overlayfs")).expect("trees");
        let files = trees.map(|tree| tree.expect("a tree").path().join("fs/bin/program"));
        let path = files.into_iter().find(|file| file.exists()).expect("the lower layer");
        let sound = std::fs::read(&path).expect("the file is read");
        std::fs::write(&path, DAMAGED).expect("the file is written");
        let file = path.strip_prefix(&root).expect("it is below the root").to_owned();
        Self { blob, file, sound, snapshot: format!("k8s.io/overlayfs/{diff_id}") }
    }

    /// Whether the damaged bytes of the blob are kept: in their place, or set aside.
    fn is_kept(&self, root: &Path) -> bool {
        let aside = std::fs::read_dir(root.join("quarantine")).into_iter().flatten().flatten();
        let aside =
            aside.map(|entry| entry.path().join("blobs").join(self.blob.algorithm().as_str()).join(self.blob.hex()));
        aside.chain([blob_path(root, &self.blob)]).any(|path| std::fs::read(path).is_ok_and(|bytes| bytes == DAMAGED))
    }

    fn judge(&self, root: &Path, answered: bool) -> Result<(), String> {
        let found = problems(root)?;
        if answered && !found.is_empty() {
            return Err(format!("it was mended, and check finds {found:#?}"));
        }
        let is_known = |problem: &&Problem| problem.subject != self.blob.as_str() && problem.subject != self.snapshot;
        if let Some(other) = found.iter().find(is_known) {
            return Err(format!("something else is wrong: {other:#?}"));
        }
        if !self.is_kept(root) {
            return Err("the damaged bytes are neither in their place nor set aside".to_owned());
        }
        let file = std::fs::read(root.join(&self.file))
            .map_err(|e| format!("the tree is neither the one nor the other: {e}"))?;
        let is_found = found.iter().any(|problem| problem.subject == self.snapshot);
        match is_found {
            true if file == DAMAGED => Ok(()),
            false if file == self.sound => Ok(()),
            _ => Err(format!("check finds the tree damaged: {is_found}; its file has {} bytes", file.len())),
        }
    }
}

fn archive(beside: &Path) -> String {
    let path = beside.with_extension("tar");
    std::fs::write(&path, oci_archive(&[("docker.io/library/one:1", &image("one"))])).expect("the archive is written");
    path.display().to_string()
}

fn blob_path(root: &Path, digest: &Digest) -> PathBuf {
    root.join("content/blobs").join(digest.algorithm().as_str()).join(digest.hex())
}

fn problems(root: &Path) -> Result<Vec<Problem>, String> {
    let images = verdict::open(root)?;
    let request = CheckRequest { deep: true, name: None };
    verdict::runtime().block_on(images.check(&verdict::scope(), &request)).map_err(|e| format!("check fails: {e}"))
}

fn repaired(root: &Path, archive: &str, sound: &Seen) -> Result<(), String> {
    let done = command(root, &["repair", "--from", archive]).output().map_err(|e| e.to_string())?;
    if !done.status.success() {
        return Err(format!("given again: {}: {}", done.status, String::from_utf8_lossy(&done.stderr)));
    }
    match verdict::look(root)? == *sound {
        true => Ok(()),
        false => Err("given again, it leads elsewhere".to_owned()),
    }
}

#[test]
fn scrubs_and_repairs() {
    let mut damaged = None;
    let Some(mut work) = Workload::on(|top| damaged = Some(Damaged::make(top))) else { return };
    let damaged = damaged.expect("it was made");
    // It is there as long as states are judged.
    let beside = tempfile::tempdir().expect("a temporary directory");
    let archive = archive(&beside.path().join("again"));
    work.ends_with(&["scrub"], 5);
    work.run(&["repair", "--known", "--from", &archive]);
    let (timeline, scratch) = work.finish();
    let sound = verdict::look(&scratch.lay(|top| timeline.at_mark(2).lay(top))).expect("what is mended is sound");
    explored(&timeline, &scratch, SHORT, &mut |root, state| {
        damaged.judge(root, state.marks == 2)?;
        if state.number % AGAIN == 0 { repaired(root, &archive, &sound) } else { Ok(()) }
    });
}
