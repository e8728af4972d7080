//! From a path to the snapshots that it belongs to.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat, fstat, open, openat2, readlinkat};

use super::{Tree, Trees, inode, mounts};

/// A path in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The snapshot's position in [`Trees::all`].
    pub tree: usize,
    /// The path as a container on the snapshot sees it; without one it is the snapshot's directory that was meant.
    pub inside: Option<PathBuf>,
    /// What is there.
    pub kind: FileType,
    /// Its bytes; of a directory nothing.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Where a symbolic link leads.
    pub link: Option<PathBuf>,
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A layer's sign that a path of a layer below is deleted.
    Whiteout,
    /// A device, a pipe or a socket.
    Special,
}

impl FileType {
    /// In a word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Directory => "directory",
            Self::Link => "link",
            Self::Whiteout => "whiteout",
            Self::Special => "special file",
        }
    }
}

impl Trees {
    /// The snapshots that an absolute path belongs to: see the [module](super). Nothing if it is in none.
    pub fn find(&self, path: &Path) -> Vec<Hit> {
        let path = normal(path);
        match self.above(&path) {
            Some(hit) => hit.into_iter().collect(),
            None => self.everywhere(&path),
        }
    }

    /// The nearest directory above a path that is a snapshot's or a mount of some: what of it the path is, if it is there.
    fn above(&self, path: &Path) -> Option<Option<Hit>> {
        let mounts = mounts::list();
        for directory in path.ancestors() {
            let rest = path.strip_prefix(directory).unwrap_or(Path::new(""));
            // A link in the last place is what is asked about.
            let real =
                if rest.as_os_str().is_empty() && path.is_symlink() { continue } else { directory.canonicalize() };
            let Ok(real) = real else { continue };
            if let Some(at) = inode(&real).and_then(|inode| self.by_inode.get(&inode).copied()) {
                let tree = &self.trees[at];
                if inode(&tree.files) == inode(&real) {
                    return Some(self.hit(at, rest));
                }
                // Beside the files: the directory itself, scratch space.
                return Some(Some(Hit { inside: None, ..self.hit(at, Path::new(""))? }));
            }
            if let Some(overlay) = mounts::overlay_in(&mounts, &real) {
                let layers: Vec<usize> = overlay.layers.iter().filter_map(|layer| self.layer(layer)).collect();
                if layers.len() == overlay.layers.len() {
                    return Some(self.merged(&layers, &resolved(&real, rest)));
                }
            }
        }
        None
    }

    /// The tree of an overlay's directory. One that is relative to nobody knows what is known by its end, if that is one's only.
    fn layer(&self, directory: &Path) -> Option<usize> {
        if directory.is_absolute() {
            return self.by_inode.get(&inode(directory)?).copied();
        }
        let mut named = self.trees.iter().enumerate().filter(|(_, tree)| tree.files.ends_with(directory));
        named.next().filter(|_| named.next().is_none()).map(|(at, _)| at)
    }

    /// The uppermost of some layers that says what is at a path, which has no link on its way.
    fn merged(&self, layers: &[usize], path: &Path) -> Option<Hit> {
        for at in layers {
            let mut is_last = false;
            for above in path.ancestors().skip(1).collect::<Vec<_>>().into_iter().rev() {
                match self.hit(*at, above) {
                    Some(hit) if hit.kind == FileType::Directory => {
                        is_last |= is_opaque(&self.trees[*at].files.join(above))
                    }
                    Some(hit) if hit.kind == FileType::Whiteout => return Some(hit),
                    Some(_) => return None,
                    None => break,
                }
            }
            if let Some(hit) = self.hit(*at, path) {
                return Some(hit);
            }
            if is_last {
                return None;
            }
        }
        None
    }

    /// Every snapshot that has the path.
    fn everywhere(&self, path: &Path) -> Vec<Hit> {
        (0..self.trees.len()).filter_map(|at| self.hit(at, path)).collect()
    }

    /// What a snapshot itself has at a path.
    fn hit(&self, at: usize, inside: &Path) -> Option<Hit> {
        let Tree { files, .. } = &self.trees[at];
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(files, directory, Mode::empty()).ok()?;
        let relative = inside.strip_prefix("/").unwrap_or(inside);
        let file = if relative.as_os_str().is_empty() {
            root
        } else {
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            openat2(&root, relative, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?
        };
        let found = fstat(&file).ok()?;
        let kind = kind(&found);
        Some(Hit {
            tree: at,
            inside: Some(Path::new("/").join(relative)),
            kind,
            size: if kind == FileType::File { found.st_size.try_into().unwrap_or(0) } else { 0 },
            mode: found.st_mode & 0o7777,
            link: if kind == FileType::Link { target(&file) } else { None },
        })
    }
}

fn kind(found: &Stat) -> FileType {
    use rustix::fs::FileType as Kind;
    match Kind::from_raw_mode(found.st_mode) {
        Kind::RegularFile => FileType::File,
        Kind::Directory => FileType::Directory,
        Kind::Symlink => FileType::Link,
        // overlayfs' own form: device 0/0.
        Kind::CharacterDevice if found.st_rdev == 0 => FileType::Whiteout,
        _ => FileType::Special,
    }
}

/// Whether a layer's directory hides what is below it in the layers under it.
fn is_opaque(directory: &Path) -> bool {
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::lgetxattr(directory, *name, &mut value).is_ok_and(|length| length == 1 && value == *b"y")
    })
}

/// A path within a mount without links on its way, if it is there.
fn resolved(mount: &Path, path: &Path) -> PathBuf {
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else { return path.to_owned() };
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let real = || {
        let root = open(mount, directory, Mode::empty()).ok()?;
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let above = openat2(&root, above, directory, Mode::empty(), resolve).ok()?;
        let at = std::fs::read_link(format!("/proc/self/fd/{}", above.as_raw_fd())).ok()?;
        Some(at.strip_prefix(mount).ok()?.join(name))
    };
    real().unwrap_or_else(|| path.to_owned())
}

fn target(link: &OwnedFd) -> Option<PathBuf> {
    let bytes = readlinkat(link, c"", Vec::new()).ok()?;
    Some(PathBuf::from(String::from_utf8_lossy(bytes.as_bytes()).into_owned()))
}

/// Without `.`, `..` and doubled slashes, as text: a link before `..` is not looked at.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => drop(plain.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    plain
}
