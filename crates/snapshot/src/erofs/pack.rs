//! Makes an image of an upper directory: of what a container has written, or somebody who unpacked through a mount.
//!
//! A tree's own marks for overlayfs stay as they are, but for those that name inodes of the file system that it comes from.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::build::{Builder, OPAQUE};
use super::tree::{Inode, Kind, Node, ROOT};
use crate::apply::Time;
use crate::error::At as _;
use crate::fs::walk::{Step, Walk};
use crate::fs::{self, xattr};
use crate::overlay::OF_THE_PLACE;
use crate::{Result, copy};

/// Bytes read at a time.
const READ_BYTES: usize = 128 << 10;

/// Takes everything in the directory `from` into the tree, which is empty.
pub(super) fn pack(builder: &mut Builder, from: &Path) -> Result<()> {
    let root = fs::open_dir(from).at("open", from)?;
    let stat = rustix::fs::fstat(&root).at("stat", from)?;
    let mut packer = Packer { from, builder, dirs: vec![ROOT], links: HashMap::new(), buffer: vec![0; READ_BYTES] };
    let inode = packer.attributes(root.as_fd(), b"", &stat, Kind::Directory(Default::default()), from)?;
    *packer.builder.tree.change(ROOT) = Inode { links: 1, ..inode };
    packer.run(Walk::new(root).at("read", from)?)
}

struct Packer<'a> {
    from: &'a Path,
    builder: &'a mut Builder,
    /// The directories down to the one that the walk is in.
    dirs: Vec<Node>,
    /// Files with several names.
    links: HashMap<(u64, u64), Node>,
    buffer: Vec<u8>,
}

impl Packer<'_> {
    fn run(&mut self, mut walk: Walk) -> Result<()> {
        while let Some(step) = walk.next().at("read", self.from)? {
            let here = self.dirs.last().copied().unwrap_or(ROOT);
            match step {
                Step::Enter { name, stat } => {
                    let name = name.as_bytes();
                    let shown = fs::shown(self.from, &fs::join(&walk.path(), name));
                    let kind = Kind::Directory(Default::default());
                    let inode = self.attributes(walk.dir(), name, &stat, kind, &shown)?;
                    self.builder.hold(name.len())?;
                    self.dirs.push(self.builder.tree.make(here, name, inode));
                }
                Step::Leave { .. } => drop(self.dirs.pop()),
                Step::Other { name, stat } => {
                    let name = name.as_bytes();
                    let node = match self.links.get(&(stat.st_dev, stat.st_ino)) {
                        Some(node) => *node,
                        None => self.file(&walk, name, &stat)?,
                    };
                    self.builder.hold(name.len())?;
                    self.builder.tree.name(here, name, node);
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, walk: &Walk, name: &[u8], stat: &Stat) -> Result<Node> {
        let shown = fs::shown(self.from, &fs::join(&walk.path(), name));
        let dir = walk.dir();
        let kind = match fs::file_type(stat) {
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).at("read the link", &shown)?.into_bytes();
                self.builder.hold(target.len())?;
                Kind::Symlink(target.into())
            }
            FileType::CharacterDevice => Kind::Character(device(stat)),
            FileType::BlockDevice => Kind::Block(device(stat)),
            FileType::Socket => Kind::Socket,
            // A file's content takes its place below.
            _ => Kind::Fifo,
        };
        let inode = self.attributes(dir, name, stat, kind, &shown)?;
        let node = match fs::file_type(stat) {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(dir, name, flags, Mode::empty()).at("open", &shown)?);
                self.content(&file, stat.st_size.unsigned_abs(), inode, &shown)?
            }
            _ => self.builder.tree.add(inode),
        };
        if stat.st_nlink > 1 {
            self.links.insert((stat.st_dev, stat.st_ino), node);
        }
        Ok(node)
    }

    fn content(&mut self, file: &File, size: u64, inode: Inode, shown: &Path) -> Result<Node> {
        let first = copy::next_data(file, 0, size).at("read", shown)?;
        if size == 0 || first == Some((0, size)) {
            let mut filling = self.builder.begin(size, inode.xattrs.len())?;
            self.stretch(file, 0, size, shown, |builder, _, bytes| builder.push(&mut filling, bytes))?;
            return self.builder.end(filling, inode);
        }
        let mut sparse = self.builder.begin_sparse(size)?;
        let mut next = first;
        while let Some((start, end)) = next {
            self.stretch(file, start, end, shown, |builder, at, bytes| builder.push_at(&mut sparse, at, bytes))?;
            next = copy::next_data(file, end, size).at("read", shown)?;
        }
        self.builder.end_sparse(sparse, inode)
    }

    fn stretch(
        &mut self,
        file: &File,
        mut at: u64,
        end: u64,
        shown: &Path,
        mut put: impl FnMut(&mut Builder, u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        while at < end {
            let now = (end - at).min(READ_BYTES as u64) as usize;
            // A file that shrinks meanwhile is somebody's who writes to what is being committed.
            file.read_exact_at(&mut self.buffer[..now], at).at("read", shown)?;
            put(self.builder, at, &self.buffer[..now])?;
            at += now as u64;
        }
        Ok(())
    }

    fn attributes(
        &mut self,
        dir: std::os::fd::BorrowedFd<'_>,
        name: &[u8],
        stat: &Stat,
        kind: Kind,
        shown: &Path,
    ) -> Result<Inode> {
        let xattrs = xattr::all(dir, name).or_else(none).at("read the attributes of", shown)?;
        let kept = xattrs.iter().filter(|(name, _)| !is_of_the_place(name));
        let opaque = xattrs.iter().any(|(name, value)| name == OPAQUE && value == b"y");
        let places = self.builder.xattrs(kept.map(|(name, value)| (name.as_slice(), value.as_slice())))?;
        Ok(Inode {
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: Time { seconds: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
            xattrs: places,
            opaque: opaque && matches!(kind, Kind::Directory(_)),
            ..Inode::new(kind, stat.st_mode & 0o7777)
        })
    }
}

/// Whether it is a mark that says nothing in an image: it names an inode of another file system.
fn is_of_the_place(attribute: &[u8]) -> bool {
    attribute.strip_prefix(b"trusted.overlay.").is_some_and(|own| OF_THE_PLACE.contains(&own))
}

/// Where the system has no attributes for files of a kind, there are none.
fn none<T: Default>(error: Errno) -> rustix::io::Result<T> {
    match error {
        Errno::NOTSUP => Ok(T::default()),
        error => Err(error),
    }
}

/// A device's number as images have it, which is how the kernel hands it to programs.
fn device(stat: &Stat) -> u32 {
    stat.st_rdev as u32
}
