//! A containerd and a store of Orlop's on one file system.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use orlop_oci::{Compression, Digest};
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::disk::{Disk, FILE_SYSTEMS, in_memory};
use orlop_testkit::fingerprint::{self, Fingerprint};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{need, need_root};
use orlop_testkit::tar::Entry;
use serde_json::Value;

use crate::common::{Done, binary};

/// The namespace that images are in.
pub(crate) const NAMESPACE: &str = "k8s.io";

/// A directory on some file system.
pub(crate) enum Ground {
    Memory(tempfile::TempDir),
    Disk(Disk),
}

impl Ground {
    /// In memory, on ext4 and on XFS, whose files share extents; as far as they can be made here.
    pub(crate) fn all() -> Vec<Self> {
        let disks = [FILE_SYSTEMS.first(), FILE_SYSTEMS.last()].into_iter().flatten().filter_map(Disk::of);
        [Self::memory()].into_iter().chain(disks.map(Self::Disk)).collect()
    }

    pub(crate) fn memory() -> Self {
        Self::Memory(in_memory())
    }

    pub(crate) fn path(&self) -> PathBuf {
        match self {
            Self::Memory(directory) => directory.path().to_owned(),
            Self::Disk(disk) => disk.path(),
        }
    }

    /// Bytes in use after all was written out; nothing where others write too.
    pub(crate) fn used(&self) -> Option<u64> {
        let Self::Disk(disk) = self else { return None };
        let directory = std::fs::File::open(disk.path()).unwrap();
        rustix::fs::syncfs(&directory).unwrap();
        let found = rustix::fs::fstatvfs(&directory).unwrap();
        Some((found.f_blocks - found.f_bfree) * found.f_frsize)
    }

    /// Whether files share extents here instead of having two names.
    pub(crate) fn reflinks(&self) -> bool {
        let directory = std::fs::File::open(self.path()).unwrap();
        orlop_snapshot::extents::may_be_shared(&directory)
    }
}

/// Every containerd there is to test with.
pub(crate) fn generations() -> Vec<Programs> {
    if !need_root() {
        return Vec::new();
    }
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

/// An image with a shell and everything that a tree can have.
pub(crate) fn image(seed: u64) -> Option<Content> {
    let shell = std::fs::read(need("busybox", "busybox-static")?).expect("a program");
    let base = [
        Entry::dir("bin"),
        Entry::file("bin/busybox", shell).mode(0o4755).mtime(1_000_000_000, 0),
        Entry::symlink("bin/sh", "busybox"),
        Entry::dir("etc").mode(0o750).owner(3, 4),
        Entry::file("etc/gone", "soon"),
        Entry::file("etc/kept", "kept").owner(1, 2).xattr("user.note", "a value"),
        Entry::hardlink("etc/twin", "etc/kept"),
        Entry::dir("opt"),
        Entry::file("opt/hidden", "hidden"),
        Entry::file("etc/empty", ""),
    ];
    let above = [
        Entry::whiteout("etc/gone"),
        Entry::file("etc/new", format!("new {seed}")),
        Entry::dir("opt"),
        Entry::opaque("opt"),
        Entry::file("opt/seen", "seen"),
    ];
    let image = Image::host()
        .layer(Layer::new(base).packed(Compression::Gzip))
        .layer(Layer::new(above).packed(Compression::Zstd))
        .layer(Layer::noise("big", seed, 6 << 20).packed(Compression::Gzip));
    Some(Content::image(&image))
}

/// A containerd and where Orlop's store is to be.
pub(crate) struct Place {
    pub(crate) containerd: Containerd,
    pub(crate) programs: Programs,
    pub(crate) ground: Ground,
}

impl Place {
    /// Starts a containerd with an image that is unpacked.
    pub(crate) fn start(programs: &Programs, ground: Ground, images: &[(&str, &Content)]) -> Self {
        let options = Options { root: Some(ground.path().join("containerd")), ..Options::default() };
        let place = Self { containerd: Containerd::start(programs, &options), programs: programs.clone(), ground };
        images.iter().for_each(|(name, content)| place.import(name, content));
        place
    }

    /// Has containerd import and unpack an image.
    pub(crate) fn import(&self, name: &str, content: &Content) {
        self.import_into(NAMESPACE, name, content);
    }

    /// The same in another namespace.
    pub(crate) fn import_into(&self, namespace: &str, name: &str, content: &Content) {
        let file = self.ground.path().join("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
        self.containerd.import(namespace, &file, "overlayfs").ok();
        std::fs::remove_file(file).unwrap();
    }

    pub(crate) fn theirs(&self) -> PathBuf {
        self.containerd.root()
    }

    pub(crate) fn own(&self) -> PathBuf {
        self.ground.path().join("orlop")
    }

    /// Runs `orlop` on the store here.
    pub(crate) fn run(&self, args: &[&str]) -> Done {
        let mut command = binary();
        command.arg("--root").arg(self.own()).args(args);
        Done::of(&command.output().expect("orlop starts"))
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, 0, "orlop {args:?}: {}{}\n{}", done.out, done.err, self.containerd.log());
        done.out
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let out = self.ok(&[args, &["-o", "json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("orlop {args:?} printed no JSON: {e}\n{out}"))
    }

    /// Adopts all that there is.
    #[track_caller]
    pub(crate) fn adopt(&self) -> Value {
        self.json(&["adopt", self.theirs().to_str().unwrap()])
    }

    /// The root of containerd in text, with all times.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.theirs(), &fingerprint::Options::default()).unwrap()
    }

    /// The tree of an image as Orlop mounts it.
    #[track_caller]
    pub(crate) fn mounted(&self, name: &str) -> Fingerprint {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().to_str().unwrap();
        self.ok(&["mount", name, at]);
        let seen = seen(directory.path());
        self.ok(&["umount", at]);
        seen
    }

    /// The same as containerd mounts it.
    #[track_caller]
    pub(crate) fn mounted_there(&self, name: &str) -> Fingerprint {
        self.containerd.mounted(NAMESPACE, name, seen).unwrap_or_else(|said| panic!("{said:?}"))
    }

    /// A name for a container: runc has those of all containerds of the machine in one place.
    pub(crate) fn id(&self, name: &str) -> String {
        let own = self.containerd.socket();
        let own = own.parent().and_then(Path::file_name).expect("a directory of its own");
        format!("{name}-{}", own.to_string_lossy())
    }

    /// Runs a command in a new container of containerd; `None` where this machine runs none, which is said.
    pub(crate) fn container(&self, snapshotter: &str, image: &str, command: &str) -> Option<String> {
        let id = self.id("one");
        let args = ["run", "--rm", "--snapshotter", snapshotter, image, &id, "/bin/sh", "-c", command];
        let done = self.containerd.ctr(NAMESPACE, &args);
        if !done.status.success() && !self.runs_containers() {
            eprintln!("skipped: this machine runs no containers: {}", done.stderr.trim());
            return None;
        }
        Some(done.ok().stdout)
    }

    /// Whether a containerd that has met no Orlop runs containers here.
    fn runs_containers(&self) -> bool {
        let Some(content) = image(99) else { return false };
        let other = Self::start(&self.programs, Ground::memory(), &[("r.example/plain:1", &content)]);
        let id = other.id("plain");
        let args = ["run", "--rm", "r.example/plain:1", &id, "/bin/sh", "-c", "true"];
        other.containerd.ctr(NAMESPACE, &args).status.success()
    }

    /// Has containerd collect, and waits for it.
    pub(crate) fn collect(&self) {
        self.containerd.ctr(NAMESPACE, &["leases", "create", "--id", "collect"]).ok();
        self.containerd.ctr(NAMESPACE, &["leases", "rm", "--sync", "collect"]).ok();
    }

    /// Nothing in Orlop's store is damaged or contradicts something else.
    #[track_caller]
    pub(crate) fn is_sound(&self) {
        let done = self.run(&["check", "--deep", "-o", "json"]);
        assert_eq!(done.code, 0, "check finds something: {}\n{}", done.out, done.err);
    }

    /// The digests of blobs that lie among containerd's files.
    pub(crate) fn their_blobs(&self) -> BTreeSet<String> {
        let blobs = self.theirs().join("io.containerd.content.v1.content/blobs/sha256");
        let found = std::fs::read_dir(blobs).into_iter().flatten().flatten();
        found.map(|entry| format!("sha256:{}", entry.file_name().to_string_lossy())).collect()
    }

    pub(crate) fn their_blob(&self, digest: &Digest) -> PathBuf {
        self.theirs().join("io.containerd.content.v1.content/blobs/sha256").join(digest.hex())
    }

    pub(crate) fn own_blob(&self, digest: &Digest) -> PathBuf {
        self.own().join("content/blobs/sha256").join(digest.hex())
    }

    /// A blob is there twice and its bytes once.
    #[track_caller]
    pub(crate) fn is_shared(&self, digest: &Digest) {
        let (theirs, own) = (self.their_blob(digest), self.own_blob(digest));
        let inode = |path: &Path| std::fs::metadata(path).unwrap().ino();
        if self.ground.reflinks() {
            assert_ne!(inode(&theirs), inode(&own), "{digest} is one inode");
        } else {
            assert_eq!(inode(&theirs), inode(&own), "{digest} was copied");
        }
    }
}

fn seen(path: &Path) -> Fingerprint {
    Fingerprint::of(path, &fingerprint::Options::default()).unwrap()
}

/// A number of a document.
#[track_caller]
pub(crate) fn number(document: &Value, path: &str) -> u64 {
    document.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("{path}: {document:#}"))
}

/// Names of what was left, with the reasons.
pub(crate) fn left(document: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = document["left"].as_array().cloned().unwrap_or_default();
    all.iter().map(|one| (text(&one["name"]), text(&one["reason"]))).collect()
}
