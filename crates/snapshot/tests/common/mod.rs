//! Makes small layer tars and describes trees as text.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use orlop_snapshot::apply::{Applied, Options, apply};
use orlop_snapshot::{ApplyTarget, Result, Whiteouts};
use orlop_testkit::tier::amount;
use tar_core::{EntryBuilder, EntryType};

/// A layer tar under construction.
#[derive(Default, Clone)]
pub struct Tar(pub Vec<u8>);

/// What an entry has besides its name; `Default` is a plain file of root's.
#[derive(Clone, Debug)]
pub struct Meta {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub pax: Vec<(String, Vec<u8>)>,
}

impl Default for Meta {
    fn default() -> Self {
        Self { mode: 0o644, uid: 0, gid: 0, mtime: 1_600_000_000, pax: Vec::new() }
    }
}

pub fn mode(mode: u32) -> Meta {
    Meta { mode, ..Meta::default() }
}

impl Tar {
    pub fn entry(&mut self, kind: EntryType, path: &str, link: &str, meta: &Meta, content: &[u8]) -> &mut Self {
        let mut builder = EntryBuilder::new_ustar();
        builder.path(path).entry_type(kind).link_name(link);
        builder.mode(meta.mode).unwrap();
        builder.uid(meta.uid).unwrap();
        builder.gid(meta.gid).unwrap();
        builder.mtime(meta.mtime).unwrap();
        builder.size(content.len() as u64).unwrap();
        for (key, value) in &meta.pax {
            builder.add_pax(key, value);
        }
        self.0.extend(builder.finish_bytes());
        self.content(content)
    }

    pub fn content(&mut self, content: &[u8]) -> &mut Self {
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub fn file(&mut self, path: &str, content: &str) -> &mut Self {
        self.entry(EntryType::Regular, path, "", &Meta::default(), content.as_bytes())
    }

    pub fn dir(&mut self, path: &str, mode: u32) -> &mut Self {
        self.entry(EntryType::Directory, path, "", &Meta { mode, ..Meta::default() }, b"")
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(EntryType::Symlink, path, target, &mode(0o777), b"")
    }

    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(EntryType::Link, path, target, &Meta::default(), b"")
    }

    pub fn end(&self) -> Vec<u8> {
        let mut bytes = self.0.clone();
        bytes.extend([0; 1024]);
        bytes
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn target(root: &Path) -> ApplyTarget {
    ApplyTarget { root: root.to_owned(), whiteouts: Whiteouts::Delete, deferred: None, applied: None, image: None }
}

/// Applies layers one after the other onto one directory.
pub fn apply_all(layers: &[&Tar], root: &Path) -> Result<Vec<Applied>> {
    layers.iter().map(|tar| apply(&tar.end()[..], &target(root), &Options::default())).collect()
}

/// A tree as text, one line for each path: everything that tells two trees apart except access times.
pub fn describe(root: &Path) -> BTreeMap<String, String> {
    let mut lines = BTreeMap::new();
    let mut names = BTreeMap::new();
    describe_below(root, Path::new(""), &mut lines, &mut names);
    // Link counts tell of names that overlayfs hides; the names that are there tell all.
    for names in names.into_values().filter(|names: &Vec<String>| names.len() > 1) {
        for name in &names {
            lines.entry(name.clone()).and_modify(|line: &mut String| line.push_str(&format!(" = {}", names[0])));
        }
    }
    lines
}

fn describe_below(
    root: &Path,
    path: &Path,
    lines: &mut BTreeMap<String, String>,
    names_by_inode: &mut BTreeMap<(u64, u64), Vec<String>>,
) {
    let mut names: Vec<_> = fs::read_dir(root.join(path)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let relative = path.join(&name);
        let full = root.join(&relative);
        let stat = fs::symlink_metadata(&full).unwrap();
        let shown = relative.display().to_string();
        lines.insert(shown.clone(), line(&full, &stat));
        if stat.is_dir() {
            describe_below(root, &relative, lines, names_by_inode);
        } else {
            names_by_inode.entry((stat.dev(), stat.ino())).or_default().push(shown);
        }
    }
}

fn line(full: &Path, stat: &fs::Metadata) -> String {
    let kind = stat.file_type();
    let what = if kind.is_symlink() {
        format!("link {}", fs::read_link(full).unwrap().display())
    } else if kind.is_file() {
        let bytes = fs::read(full).unwrap();
        let digest = orlop_oci::Digest::of(&bytes);
        format!("file {} {}", bytes.len(), digest.short())
    } else if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        format!("{} {:x}", if kind.is_char_device() { "char" } else { "block" }, stat.rdev())
    };
    let mtime = format!("{}.{:09}", stat.mtime(), stat.mtime_nsec());
    format!("{what} {:o} {}:{} {mtime}{}", stat.mode() & 0o7777, stat.uid(), stat.gid(), xattrs(full))
}

fn xattrs(full: &Path) -> String {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(full, &mut names[..]).unwrap_or(0);
    let mut shown = Vec::new();
    for name in names[..length].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(full, name, &mut value[..]).unwrap();
        shown.push(format!(" {}={}", name.display(), hex::encode(&value[..length])));
    }
    shown.sort();
    shown.concat()
}

/// Whether the tests may own files for others and mount; says so if not.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("{test}: skipped, it needs root");
    }
    root
}

/// How many cases a property test tries: `few`, unless `PROPTEST_CASES` says otherwise.
pub fn cases(few: u32) -> proptest::test_runner::Config {
    proptest::test_runner::Config { cases: amount("PROPTEST_CASES", few), ..Default::default() }
}
