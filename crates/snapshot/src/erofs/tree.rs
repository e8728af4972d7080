//! The tree of an image while it is made: names and inodes in memory, the content of files in the image already.
//!
//! # Invariants
//! - A node that a directory names is counted in its `links`; a directory is named once.
//! - What of an inode is in the image already ([`Inode::written`]) is what the image says; whoever changes it says so by taking it
//!   through [`Tree::change`].

use std::collections::BTreeMap;

use crate::apply::Time;

/// An inode's number in its tree.
pub(crate) type Node = usize;

/// What is left of a directory's names.
type Children<'a> = std::collections::btree_map::Iter<'a, Box<[u8]>, Node>;

/// The root.
pub(crate) const ROOT: Node = 0;

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory(BTreeMap<Box<[u8]>, Node>),
    File(Content),
    Symlink(Box<[u8]>),
    Character(u32),
    Block(u32),
    Fifo,
    Socket,
}

/// Where the content of a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) size: u64,
    pub(crate) place: Place,
}

/// How it lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In blocks from this one on, the last of them perhaps not full.
    Blocks(u32),
    /// In blocks from this one on; what fills none is behind the inode, which is in the image already.
    Tailed(u32),
    /// In chunks of so many blocks, as a power of two; a chunk that is a hole has no block.
    Chunks(u8, Box<[u32]>),
}

/// What all files have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    /// Without the kind.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Places in the table of attributes, in order.
    pub(crate) xattrs: Box<[u32]>,
    /// A directory that hides what is below it.
    pub(crate) opaque: bool,
    /// Names.
    pub(crate) links: u32,
    /// Where in the image it is, if its tail made that necessary before the others.
    pub(crate) slot: Option<Slot>,
    /// What is there is what it should be.
    pub(crate) written: bool,
}

/// The place of an inode that has its tail behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Its offset in the image.
    pub(crate) at: u64,
    /// How many attributes it has there, which are before the tail.
    pub(crate) xattrs: u8,
}

impl Inode {
    pub(crate) fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Box::default(),
            opaque: false,
            links: 0,
            slot: None,
            written: false,
        }
    }

    pub(crate) fn directory(mode: u32) -> Self {
        Self::new(Kind::Directory(BTreeMap::new()), mode)
    }

    /// An empty file.
    pub(crate) fn file() -> Self {
        Self::new(Kind::File(Content { size: 0, place: Place::Blocks(0) }), 0)
    }

    /// overlayfs' mark for a deleted name.
    pub(crate) fn whiteout() -> Self {
        Self::new(Kind::Character(0), 0)
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.kind, Kind::Directory(_))
    }

    pub(crate) fn is_whiteout(&self) -> bool {
        self.kind == Kind::Character(0)
    }

    /// Kind and mode as `stat` has them.
    pub(crate) fn full_mode(&self) -> u16 {
        let kind = match self.kind {
            Kind::Directory(_) => libc::S_IFDIR,
            Kind::File(_) => libc::S_IFREG,
            Kind::Symlink(_) => libc::S_IFLNK,
            Kind::Character(_) => libc::S_IFCHR,
            Kind::Block(_) => libc::S_IFBLK,
            Kind::Fifo => libc::S_IFIFO,
            Kind::Socket => libc::S_IFSOCK,
        };
        (kind | self.mode & 0o7777) as u16
    }
}

/// The tree.
#[derive(Debug)]
pub(crate) struct Tree {
    inodes: Vec<Inode>,
}

impl Default for Tree {
    fn default() -> Self {
        let mut root = Inode::directory(0o755);
        root.links = 1;
        Self { inodes: vec![root] }
    }
}

impl Tree {
    pub(crate) fn get(&self, node: Node) -> &Inode {
        &self.inodes[node]
    }

    /// An inode that is to become another one.
    pub(crate) fn change(&mut self, node: Node) -> &mut Inode {
        let inode = &mut self.inodes[node];
        inode.written = false;
        inode
    }

    /// The same where only its place in the image is noted.
    pub(super) fn place(&mut self, node: Node) -> &mut Inode {
        &mut self.inodes[node]
    }

    /// An inode that nothing names yet.
    pub(crate) fn add(&mut self, inode: Inode) -> Node {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    pub(crate) fn children(&self, node: Node) -> Option<&BTreeMap<Box<[u8]>, Node>> {
        match &self.inodes[node].kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    fn children_mut(&mut self, node: Node) -> Option<&mut BTreeMap<Box<[u8]>, Node>> {
        match &mut self.inodes[node].kind {
            Kind::Directory(children) => Some(children),
            _ => None,
        }
    }

    pub(crate) fn child(&self, dir: Node, name: &[u8]) -> Option<Node> {
        self.children(dir)?.get(name).copied()
    }

    /// What is at a path, without following links.
    pub(crate) fn find(&self, path: &[u8]) -> Option<Node> {
        path.split(|&b| b == b'/').filter(|name| !name.is_empty()).try_fold(ROOT, |dir, name| self.child(dir, name))
    }

    /// Gives an inode a name, where nothing is.
    pub(crate) fn name(&mut self, dir: Node, name: &[u8], node: Node) {
        self.change(node).links += 1;
        if let Some(children) = self.children_mut(dir) {
            let before = children.insert(name.into(), node);
            debug_assert!(before.is_none(), "something was there");
        }
    }

    /// Makes something new under a name where nothing is.
    pub(crate) fn make(&mut self, dir: Node, name: &[u8], inode: Inode) -> Node {
        let node = self.add(inode);
        self.name(dir, name, node);
        node
    }

    /// Takes a name away, with all below it. True if it was there.
    pub(crate) fn remove(&mut self, dir: Node, name: &[u8]) -> bool {
        let Some(gone) = self.children_mut(dir).and_then(|children| children.remove(name)) else { return false };
        // Not by recursion: trees may be deeper than a thread's stack.
        let mut going = vec![gone];
        while let Some(node) = going.pop() {
            self.change(node).links -= 1;
            if let Some(children) = self.children_mut(node) {
                going.extend(std::mem::take(children).into_values());
            }
        }
        true
    }

    /// Every directory and name below the root, parents before their children, names in order; the root is not told.
    pub(crate) fn walk(&self, mut each: impl FnMut(Node, &[u8], Node)) {
        let mut ahead: Vec<(Node, Children<'_>)> = Vec::new();
        ahead.extend(self.children(ROOT).map(|children| (ROOT, children.iter())));
        while let Some((dir, children)) = ahead.last_mut() {
            let dir = *dir;
            let Some((name, node)) = children.next() else {
                ahead.pop();
                continue;
            };
            each(dir, name, *node);
            ahead.extend(self.children(*node).map(|children| (*node, children.iter())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_counted() {
        let mut tree = Tree::default();
        let dir = tree.make(ROOT, b"d", Inode::directory(0o755));
        let file = tree.make(dir, b"f", Inode::new(Kind::Fifo, 0));
        tree.name(ROOT, b"g", file);
        assert_eq!((tree.find(b"d/f"), tree.find(b"g"), tree.find(b"d/g")), (Some(file), Some(file), None));
        assert_eq!(tree.get(file).links, 2);
        let mut seen = Vec::new();
        tree.walk(|dir, name, node| seen.push((dir, name.to_vec(), node)));
        assert_eq!(seen, [(ROOT, b"d".to_vec(), dir), (dir, b"f".to_vec(), file), (ROOT, b"g".to_vec(), file)]);
        assert!(tree.remove(ROOT, b"d") && !tree.remove(ROOT, b"d"));
        assert_eq!((tree.get(file).links, tree.get(dir).links), (1, 0));
    }
}
