//! What a tree is, in text: to compare trees that two programs made of one image.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use orlop_oci::{Algorithm, Digester};
use rustix::fs::{lgetxattr, llistxattr, major, minor};

/// What to leave out of a comparison.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Leave out the root directory's own mode, owner, time and xattrs: programs make it before they apply.
    pub skip_root: bool,
    /// Leave out the times of directories.
    pub skip_dir_times: bool,
    /// Leave out all times.
    pub skip_times: bool,
    /// Leave out xattrs whose name starts so.
    pub skip_xattrs: Vec<String>,
}

/// A sorted list of what is in a tree, one line a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// By path (`.` is the root): type, mode, owner, size, time, link target or device, xattrs, hard links, content.
    pub lines: BTreeMap<String, String>,
}

impl Fingerprint {
    /// Walks a tree, without following links and without crossing into it by name.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn of(root: &Path, options: &Options) -> io::Result<Self> {
        let mut walk = Walk { root, options, lines: BTreeMap::new(), links: BTreeMap::new() };
        // Not by recursion: trees may be deeper than a thread's stack.
        let mut ahead = vec![PathBuf::new()];
        while let Some(path) = ahead.pop() {
            walk.visit(&path, &mut ahead)?;
        }
        for mut paths in walk.links.into_values().filter(|paths| paths.len() > 1) {
            paths.sort();
            for path in &paths {
                let line = walk.lines.entry(path.clone()).or_default();
                let _ = write!(line, " linked-with={paths:?}");
            }
        }
        Ok(Self { lines: walk.lines })
    }

    /// Leaves out, here and in `other`, the times of directories that are later here than `since` (seconds since
    /// 1970): those that nobody set.
    pub fn forget_clock(&mut self, other: &mut Self, since: u64) {
        let time = |line: &str| {
            let (_, rest) = line.split_once(" mtime=")?;
            rest.split_once('.')?.0.parse::<u64>().ok()
        };
        for (path, line) in &mut self.lines {
            if line.starts_with("dir") && time(line).is_some_and(|t| t >= since) {
                for line in other.lines.get_mut(path).into_iter().chain([line]) {
                    *line = line.split(' ').filter(|w| !w.starts_with("mtime=")).collect::<Vec<_>>().join(" ");
                }
            }
        }
    }

    /// How two trees differ; empty if they do not.
    pub fn diff(&self, other: &Self) -> Vec<String> {
        let mut out = Vec::new();
        for (path, line) in &self.lines {
            match other.lines.get(path) {
                None => out.push(format!("only in the first: {path}: {line}")),
                Some(theirs) if theirs != line => out.push(format!("{path}:\n  first  {line}\n  second {theirs}")),
                Some(_) => {}
            }
        }
        let more = other.lines.iter().filter(|(path, _)| !self.lines.contains_key(*path));
        out.extend(more.map(|(path, line)| format!("only in the second: {path}: {line}")));
        out
    }

    /// Panics with the differences if there are any; at most forty are shown.
    pub fn assert_same(&self, other: &Self, what: &str) {
        let diff = self.diff(other);
        let shown = diff.iter().take(40).cloned().collect::<Vec<_>>().join("\n");
        assert!(diff.is_empty(), "{what}: {} paths differ\n{shown}", diff.len());
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|(path, line)| writeln!(f, "{path}: {line}"))
    }
}

struct Walk<'a> {
    root: &'a Path,
    options: &'a Options,
    lines: BTreeMap<String, String>,
    /// Paths by device and inode, of files with several links.
    links: BTreeMap<(u64, u64), Vec<String>>,
}

impl Walk<'_> {
    fn visit(&mut self, relative: &Path, ahead: &mut Vec<PathBuf>) -> io::Result<()> {
        let path = self.root.join(relative);
        let context = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        let is_root = relative.as_os_str().is_empty();
        let metadata = match path.symlink_metadata() {
            // overlayfs lists whiteouts in directories that only one layer has, and says that they are not there.
            Err(e) if e.kind() == io::ErrorKind::NotFound && !is_root => return Ok(()),
            other => other.map_err(context)?,
        };
        let name = shown(relative);
        let line = if is_root && self.options.skip_root {
            "dir".to_owned()
        } else {
            self.line(&path, &metadata).map_err(context)?
        };
        if !metadata.is_dir() && metadata.nlink() > 1 {
            self.links.entry((metadata.dev(), metadata.ino())).or_default().push(name.clone());
        }
        self.lines.insert(name, line);
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&path).map_err(context)? {
                ahead.push(relative.join(entry.map_err(context)?.file_name()));
            }
        }
        Ok(())
    }

    fn line(&self, path: &Path, metadata: &std::fs::Metadata) -> io::Result<String> {
        let kind = metadata.file_type();
        let mut line = format!("{} mode={:04o}", kind_name(kind), metadata.mode() & 0o7777);
        let _ = write!(line, " owner={}:{}", metadata.uid(), metadata.gid());
        let timeless = self.options.skip_times || (kind.is_dir() && self.options.skip_dir_times);
        if !timeless {
            let _ = write!(line, " mtime={}.{:09}", metadata.mtime(), metadata.mtime_nsec());
        }
        if kind.is_char_device() || kind.is_block_device() {
            let _ = write!(line, " device={}:{}", major(metadata.rdev()), minor(metadata.rdev()));
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(path)?;
            let _ = write!(line, " target={}", escape(target.as_os_str().as_bytes()));
        }
        for (name, value) in xattrs(path)? {
            if !self.options.skip_xattrs.iter().any(|s| name.starts_with(s.as_str())) {
                let _ = write!(line, " {name}={}", escape(&value));
            }
        }
        if kind.is_file() {
            let _ = write!(line, " size={} {}", metadata.len(), digest(path)?);
        }
        Ok(line)
    }
}

fn kind_name(kind: std::fs::FileType) -> &'static str {
    match () {
        () if kind.is_file() => "file",
        () if kind.is_dir() => "dir",
        () if kind.is_symlink() => "symlink",
        () if kind.is_char_device() => "char",
        () if kind.is_block_device() => "block",
        () if kind.is_fifo() => "fifo",
        () => "socket",
    }
}

fn shown(relative: &Path) -> String {
    if relative.as_os_str().is_empty() { ".".to_owned() } else { escape(relative.as_os_str().as_bytes()) }
}

fn escape(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn digest(path: &Path) -> io::Result<orlop_oci::Digest> {
    let mut file = File::open(path)?;
    let mut digester = Digester::new(Algorithm::Sha256);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(digester.finish());
        }
        digester.update(&buffer[..length]);
    }
}

pub(crate) fn xattrs(path: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut names = vec![0; 1 << 16];
    let length = match llistxattr(path, &mut names) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(e) => return Err(e.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..length].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let name = std::ffi::OsStr::from_bytes(name);
        let length = lgetxattr(path, name, &mut value)?;
        value.truncate(length);
        found.insert(name.to_string_lossy().into_owned(), value);
    }
    Ok(found)
}
