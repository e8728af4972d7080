//! Takes up an unsealed image again: its tree becomes the builder's, its content stays where it is.

use std::collections::HashMap;
use std::path::Path;

use super::build::{Builder, OPAQUE};
use super::format::{Layout, SLOT, broken};
use super::read::{Found, Image};
use super::stream::Stream;
use super::tree::{Content, Inode, Kind, Node, Place, ROOT, Slot, Tree};
use crate::Result;
use crate::apply::Time;

impl Builder {
    /// Begins a new image.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Ok(Self::new(Stream::create(path)?, Tree::default(), super::table::Table::default()))
    }

    /// Goes on with an image that was left.
    pub(crate) fn resume(path: &Path, unsealed: &Path) -> Result<Self> {
        let (image, known) = Image::open_unsealed(path, unsealed)?;
        let stream = Stream::resume(path, known.parts)?;
        let mut builder = Self::new(stream, Tree::default(), image.table()?);
        Loader { image: &image, builder: &mut builder, nodes: HashMap::new() }.run()?;
        Ok(builder)
    }
}

struct Loader<'a> {
    image: &'a Image,
    builder: &'a mut Builder,
    nodes: HashMap<u64, Node>,
}

impl Loader<'_> {
    fn run(&mut self) -> Result<()> {
        let root = self.image.root()?;
        let inode = self.inode(&root)?;
        *self.builder.tree.change(ROOT) = Inode { links: 1, ..inode };
        self.nodes.insert(root.nid, ROOT);
        let mut ahead = vec![(ROOT, root)];
        while let Some((dir, found)) = ahead.pop() {
            for (name, nid) in self.image.entries(&found)? {
                self.builder.hold(name.len())?;
                if let Some(node) = self.nodes.get(&nid).copied() {
                    if self.builder.tree.get(node).is_directory() {
                        return Err(broken("a directory has two names"));
                    }
                    self.name(dir, &name, node);
                    continue;
                }
                let child = self.image.inode(nid)?;
                let inode = self.inode(&child)?;
                let node = self.builder.tree.add(inode);
                self.nodes.insert(nid, node);
                self.name(dir, &name, node);
                if child.is_directory() {
                    ahead.push((node, child));
                }
            }
        }
        Ok(())
    }

    /// Names an inode as it was: what is in the image of it stays right.
    fn name(&mut self, dir: Node, name: &[u8], node: Node) {
        let written = self.builder.tree.get(node).written;
        self.builder.tree.name(dir, name, node);
        self.builder.tree.place(node).written = written;
    }

    fn inode(&mut self, found: &Found) -> Result<Inode> {
        let xattrs = self.image.xattr_places(found)?;
        let mut opaque = false;
        for place in &xattrs {
            let (name, value) = self.builder.table.get(*place)?;
            opaque |= name == OPAQUE && value == b"y";
        }
        let raw = &found.raw;
        let kind = self.kind(found)?;
        let tailed = matches!(&kind, Kind::File(Content { place: Place::Tailed(_), .. }));
        Ok(Inode {
            uid: raw.uid,
            gid: raw.gid,
            mtime: Time { seconds: raw.seconds as i64, nanos: raw.nanos },
            opaque: opaque && found.is_directory(),
            slot: tailed.then_some(Slot { at: found.nid * SLOT, xattrs: xattrs.len() as u8 }),
            written: tailed,
            xattrs: xattrs.into(),
            ..Inode::new(kind, u32::from(raw.mode) & 0o7777)
        })
    }

    fn kind(&mut self, found: &Found) -> Result<Kind> {
        let raw = &found.raw;
        Ok(match found.kind() {
            libc::S_IFDIR => Kind::Directory(Default::default()),
            libc::S_IFLNK => {
                let target = self.image.target(found)?;
                self.builder.hold(target.len())?;
                Kind::Symlink(target.into())
            }
            libc::S_IFCHR => Kind::Character(raw.place),
            libc::S_IFBLK => Kind::Block(raw.place),
            libc::S_IFIFO => Kind::Fifo,
            libc::S_IFSOCK => Kind::Socket,
            _ => Kind::File(Content { size: raw.size, place: self.place(found)? }),
        })
    }

    fn place(&mut self, found: &Found) -> Result<Place> {
        let raw = &found.raw;
        Ok(match raw.layout {
            Layout::Plain => Place::Blocks(raw.place),
            Layout::Inline if self.image.base().is_none_or(|base| found.nid * SLOT < base) => Place::Tailed(raw.place),
            Layout::Inline => return Err(broken("a file's end is where there is no content")),
            Layout::Chunks => {
                let (bits, map) = self.image.chunks(found)?;
                self.builder.hold(map.len() * 4)?;
                Place::Chunks(bits, map.into())
            }
        })
    }
}
