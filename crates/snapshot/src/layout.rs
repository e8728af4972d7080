//! The directories that both drivers keep: `<root>/<id>/` with `fs/`, `meta` and what a driver adds.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::{fs as stdfs, io};

use rustix::fs::{RenameFlags, Stat};
use rustix::io::Errno;

use crate::disk::Disk;
use crate::error::At as _;
use crate::fs::walk::{Step, Walk};
use crate::linked::{self, Linked};
use crate::record::{self, Comparison, Notes, TreeComparison};
use crate::{Error, Link, Meta, Result, SnapshotId, Usage, extents, fs};

/// A driver's directory.
#[derive(Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    /// As long as the driver is used; `None` where a call needs no more than the directory.
    disk: Option<Disk>,
}

/// Nobody but the owner may look into the store; containers see trees through mounts.
const PRIVATE: u32 = 0o700;

/// What a tree is to begin with.
const PUBLIC: u32 = 0o755;

/// So many directories are synced one by one. Without a journal each waits for the disk anew; more of them are cheaper with the whole
/// file system, of which most was written just now or by the same operation.
const FEW: usize = 4;

/// Bytes of notes about applied layers, some hundred files' worth, from which on it takes longer to record trees than to begin a sync.
const MUCH: u64 = 32 << 10;

impl Layout {
    /// Uses `root`, which is made if it is missing.
    pub(crate) fn open(root: PathBuf) -> Result<Self> {
        make_directory(&root).at("make the directory", &root)?;
        let root = root.canonicalize().at("find", &root)?;
        let disk = Some(Disk::open(&root)?);
        Ok(Self { root, disk })
    }

    /// Uses a directory that was opened before.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), disk: None }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn dir(&self, id: SnapshotId) -> PathBuf {
        self.root.join(id.0.to_string())
    }

    /// The tree.
    pub(crate) fn tree(&self, id: SnapshotId) -> PathBuf {
        self.dir(id).join("fs")
    }

    /// overlayfs' scratch directory.
    pub(crate) fn work(&self, id: SnapshotId) -> PathBuf {
        self.dir(id).join("work")
    }

    /// Where a layer's open ends are noted.
    pub(crate) fn deferred(&self, id: SnapshotId) -> PathBuf {
        self.dir(id).join("deferred")
    }

    /// Where a layer's hashes are noted until the commit.
    pub(crate) fn applied(&self, id: SnapshotId) -> PathBuf {
        self.dir(id).join("applied")
    }

    /// What a tree was when it was committed.
    pub(crate) fn digests(&self, id: SnapshotId) -> PathBuf {
        self.dir(id).join("digests")
    }

    /// Where it is noted that a tree shares its files with another place.
    fn adopted(&self, id: SnapshotId) -> PathBuf {
        self.dir(id).join("adopted")
    }

    /// Fills an empty tree with what `from` is, without copying content.
    pub(crate) fn take_in(&self, id: SnapshotId, from: &Path) -> Result<Linked> {
        let note = self.adopted(id);
        stdfs::write(&note, from.as_os_str().as_encoded_bytes()).at("write", &note)?;
        linked::tree(from, &self.tree(id))
    }

    /// Lets the empty directory `to` be what a tree is, without copying content. From then on the tree shares.
    pub(crate) fn give(&self, id: SnapshotId, to: &Path) -> Result<Linked> {
        let note = self.adopted(id);
        stdfs::write(&note, to.as_os_str().as_encoded_bytes()).at("write", &note)?;
        linked::tree(&self.tree(id), to)
    }

    /// Bytes of a tree that files elsewhere have too; of one that was never shared nothing is looked at.
    pub(crate) fn elsewhere(&self, id: SnapshotId) -> Result<u64> {
        if self.adopted(id).exists() { linked::elsewhere(&self.tree(id)) } else { Ok(0) }
    }

    /// Makes the directory of a snapshot, which must not be there, with an empty tree.
    pub(crate) fn create(&self, id: SnapshotId) -> Result<()> {
        let dir = self.dir(id);
        stdfs::DirBuilder::new().mode(PRIVATE).create(&dir).at("make the directory", &dir)?;
        let tree = self.tree(id);
        stdfs::DirBuilder::new().mode(PUBLIC).create(&tree).at("make the directory", &tree)?;
        let made = tree.symlink_metadata().at("stat", &tree)?.permissions().mode() & 0o7777;
        if made == PUBLIC {
            return Ok(());
        }
        // This process's mask took something away.
        stdfs::set_permissions(&tree, stdfs::Permissions::from_mode(PUBLIC)).at("set the mode of", &tree)?;
        self.sync_tree(id)
    }

    /// The same with overlayfs' scratch directory, if anything will be written to the snapshot.
    pub(crate) fn create_upper(&self, id: SnapshotId, meta: &Meta) -> Result<()> {
        self.create(id)?;
        if meta.kind == "view" {
            return Ok(());
        }
        let work = self.work(id);
        stdfs::create_dir(&work).at("make the directory", &work)
    }

    /// Makes several snapshots, as `make` makes one, and then all of them durable.
    pub(crate) fn make_all(&self, trees: &[Link], make: impl FnMut(&Link) -> Result<()>) -> Result<()> {
        trees.iter().try_for_each(make)?;
        self.sync_new(&trees.iter().map(|tree| tree.id).collect::<Vec<_>>())
    }

    /// Writes `meta` in one step, as long as there is no power cut.
    pub(crate) fn write_meta(&self, id: SnapshotId, meta: &Meta) -> Result<()> {
        let new = self.write_new_meta(id, meta)?;
        stdfs::rename(&new, self.dir(id).join("meta")).at("rename", &new)
    }

    /// The same of a snapshot that was on disk before, so that a power cut leaves the one or the other.
    pub(crate) fn rewrite_meta(&self, id: SnapshotId, meta: &Meta) -> Result<()> {
        let new = self.write_new_meta(id, meta)?;
        stdfs::File::open(&new).and_then(|file| file.sync_all()).at("sync", &new)?;
        stdfs::rename(&new, self.dir(id).join("meta")).at("rename", &new)
    }

    /// Makes durable that snapshots are there, with what is in their directories. What is in the trees is not looked at.
    pub(crate) fn sync_new(&self, snapshots: &[SnapshotId]) -> Result<()> {
        if snapshots.len() > FEW {
            return self.sync_all();
        }
        snapshots.iter().try_for_each(|id| sync(&self.dir(*id)))
    }

    /// Makes everything durable that is in the file system.
    fn sync_all(&self) -> Result<()> {
        match &self.disk {
            Some(disk) => disk.sync(&self.root),
            None => Disk::open(&self.root)?.sync(&self.root),
        }
    }

    /// Makes durable what the tree's own directory is like.
    pub(crate) fn sync_tree(&self, id: SnapshotId) -> Result<()> {
        sync(&self.tree(id))
    }

    /// Records what the tree is, if a layer was applied to it, and counts what it takes on disk. Only [`Self::commit`] may follow.
    pub(crate) fn record(&self, id: SnapshotId) -> Result<Usage> {
        self.while_written(&[id], || self.record_tree(id))
    }

    /// The same of several.
    pub(crate) fn record_all(&self, ids: &[SnapshotId]) -> Result<Vec<Usage>> {
        self.while_written(ids, || ids.iter().map(|id| self.record_tree(*id)).collect())
    }

    /// Has the disk write what is in trees while they are recorded, if that takes a while: so the commit waits for less.
    fn while_written<T>(&self, ids: &[SnapshotId], record: impl FnOnce() -> Result<T>) -> Result<T> {
        let noted: u64 = ids.iter().filter_map(|id| Some(self.applied(*id).metadata().ok()?.len())).sum();
        if noted < MUCH {
            return record();
        }
        std::thread::scope(|scope| {
            let early = std::thread::Builder::new().name("orlop-sync".into()).spawn_scoped(scope, || self.sync_all());
            let recorded = record();
            // Without a thread all of it is left to the commit.
            if let Ok(early) = early {
                early.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
            }
            recorded
        })
    }

    fn record_tree(&self, id: SnapshotId) -> Result<Usage> {
        let digests = self.digests(id);
        if let Some(notes) = Notes::load(&self.applied(id))? {
            return record::write(&self.tree(id), &notes, &digests);
        }
        // An earlier commit has used the notes and was not the last: what it recorded may be true still, or not any more.
        if !self.is_as_recorded(id) {
            remove_file(&digests)?;
        }
        self.usage(id)
    }

    fn is_as_recorded(&self, id: SnapshotId) -> bool {
        let compared = || -> Result<bool> {
            let Some(mut comparison) = self.compare(id)? else { return Ok(false) };
            while comparison.step()?.is_some() {}
            Ok(comparison.compared().fault().is_none())
        };
        // What cannot be compared is not known to be so.
        compared().unwrap_or(false)
    }

    /// Compares the tree with what was recorded; `None` if nothing was.
    pub(crate) fn compare(&self, id: SnapshotId) -> Result<Option<Comparison>> {
        Ok(TreeComparison::open(&self.tree(id), &self.digests(id))?.map(Comparison::of_tree))
    }

    /// Makes everything in a snapshot durable, and then that it is so: `meta` takes its place only when the tree and
    /// itself are on disk.
    ///
    /// # Durability
    /// Tree and `meta` survive a power cut when this returns.
    pub(crate) fn commit(&self, id: SnapshotId, meta: &Meta) -> Result<()> {
        self.commit_all(&[(id, meta)])
    }

    /// The same for several that stand on each other, the lowest first.
    pub(crate) fn commit_chain(&self, chain: &[Link]) -> Result<()> {
        self.commit_all(&chain.iter().map(|link| (link.id, &link.meta)).collect::<Vec<_>>())
    }

    /// The same for several at once, each before those that stand on it: they share the wait for the disk.
    fn commit_all(&self, snapshots: &[(SnapshotId, &Meta)]) -> Result<()> {
        let written = snapshots.iter().map(|(id, meta)| self.write_new_meta(*id, meta));
        let written = written.collect::<Result<Vec<_>>>()?;
        self.sync_all()?;
        if let Some(disk) = &self.disk {
            snapshots.iter().try_for_each(|(id, _)| disk.trust(*id, &self.dir(*id)))?;
        }
        for ((id, _), new) in snapshots.iter().zip(written) {
            stdfs::rename(&new, self.dir(*id).join("meta")).at("rename", &new)?;
            remove_file(&self.applied(*id))?;
        }
        self.sync_new(&snapshots.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    }

    fn write_new_meta(&self, id: SnapshotId, meta: &Meta) -> Result<PathBuf> {
        let new = self.dir(id).join("meta.new");
        let bytes = serde_json::to_vec(meta).map_err(io::Error::other).at("encode", &new)?;
        stdfs::write(&new, bytes).at("write", &new)?;
        Ok(new)
    }

    /// Reads `meta`; `None` if there is none, or none that can be read.
    pub(crate) fn read_meta(&self, id: SnapshotId) -> Option<Meta> {
        let bytes = stdfs::read(self.dir(id).join("meta")).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Lets two snapshots' directories change places; if there is none at `b`, that of `a` goes there.
    pub(crate) fn exchange(&self, a: SnapshotId, b: SnapshotId) -> Result<()> {
        let root = fs::open_dir(&self.root).at("open", &self.root)?;
        let [from, to] = [a, b].map(|id| id.0.to_string());
        let exchange = |flags| rustix::fs::renameat_with(&root, &*from, &root, &*to, flags);
        match exchange(RenameFlags::EXCHANGE) {
            Err(Errno::NOENT) => exchange(RenameFlags::NOREPLACE).at("rename", self.dir(a))?,
            Err(Errno::INVAL | Errno::NOSYS) => {
                return Err(Error::Unsupported {
                    what: "putting a fresh tree in the place of a damaged one",
                    reason:
                        "this file system cannot let two directories change places: remove the image and pull it again"
                            .into(),
                });
            }
            done => done.at("exchange", self.dir(b))?,
        }
        rustix::fs::fsync(&root).at("sync", &self.root)
    }

    /// Counts what the tree takes on disk.
    pub(crate) fn usage(&self, id: SnapshotId) -> Result<Usage> {
        // What an adopted tree shares is its own once the other place is gone.
        usage(&self.tree(id), self.adopted(id).exists())
    }

    /// Moves a snapshot's directory into `trash`, or removes it.
    pub(crate) fn remove(&self, id: SnapshotId, trash: Option<&Path>) -> Result<()> {
        let dir = self.dir(id);
        let Some(trash) = trash else {
            return remove_tree(&dir);
        };
        // On disk before anything is in it: a power cut would take that along.
        fs::make_directories(trash, PRIVATE)?;
        match stdfs::rename(&dir, trash.join(id.0.to_string())) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            moved => moved.at("move into the trash", &dir),
        }
    }

    /// What is on disk, by number.
    pub(crate) fn list(&self) -> Result<Vec<(SnapshotId, Option<Meta>)>> {
        let mut found = Vec::new();
        for entry in stdfs::read_dir(&self.root).at("read", &self.root)? {
            let name = entry.at("read", &self.root)?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse().ok()).map(SnapshotId) else { continue };
            found.push((id, self.read_meta(id)));
        }
        found.sort_by_key(|(id, _)| *id);
        Ok(found)
    }
}

/// Removes a file, if it is there.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match stdfs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.at("remove", path),
    }
}

fn sync(directory: &Path) -> Result<()> {
    let handle = fs::open_dir(directory).at("open", directory)?;
    rustix::fs::fsync(&handle).at("sync", directory)
}

/// Removes a tree for good, whatever modes, depth or immutable flags it has. It need not be there.
pub fn remove_tree(path: &Path) -> Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    match fs::open_dir(parent) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        opened => {
            let parent = opened.at("open", parent)?;
            fs::remove::remove(parent.as_fd(), name.as_encoded_bytes()).at("remove", path)
        }
    }
}

/// What a tree alone takes on disk: the root too, hard links once, and what it shares with other files only if `whole` says so.
fn usage(tree: &Path, whole: bool) -> Result<Usage> {
    let root = fs::open_dir(tree).at("open", tree)?;
    let stat = rustix::fs::fstat(&root).at("stat", tree)?;
    let mut counter = if whole { Counter::default() } else { Counter::on(&root) };
    counter.directory(&stat);
    let mut walk = Walk::new(root).at("read", tree)?;
    while let Some(step) = walk.next().at("read", tree)? {
        match step {
            Step::Enter { stat, .. } => counter.directory(&stat),
            Step::Other { name, stat } => counter.file(walk.dir(), &name, &stat).at("read", tree)?,
            Step::Leave { .. } => {}
        }
    }
    Ok(counter.total())
}

/// Adds up what entries alone take on disk: hard links once, extents of other files not at all. Those are of the snapshot below,
/// from which `native` and overlayfs take files over without copying a byte where the file system can.
#[derive(Default)]
pub(crate) struct Counter {
    usage: Usage,
    links: std::collections::HashSet<(u64, u64)>,
    may_share: bool,
}

impl Counter {
    /// For what is on the file system of a directory.
    pub(crate) fn on(directory: impl AsFd) -> Self {
        Self { may_share: extents::may_be_shared(directory), ..Self::default() }
    }

    pub(crate) fn directory(&mut self, stat: &Stat) {
        self.usage.bytes += stat.st_blocks.unsigned_abs() * 512;
        self.usage.inodes += 1;
    }

    /// Counts what is no directory.
    pub(crate) fn file(&mut self, directory: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
        if !self.may_share {
            self.own(stat);
        } else if self.is_new(stat) {
            self.usage.bytes += extents::allocated(directory, name, stat, |shared| shared.end - shared.start)?;
            self.usage.inodes += 1;
        }
        Ok(())
    }

    /// The same of what is known to share nothing with other files.
    pub(crate) fn own(&mut self, stat: &Stat) {
        if self.is_new(stat) {
            self.usage.bytes += stat.st_blocks.unsigned_abs() * 512;
            self.usage.inodes += 1;
        }
    }

    /// Whether it was not counted by another of its names.
    fn is_new(&mut self, stat: &Stat) -> bool {
        stat.st_nlink == 1 || self.links.insert((stat.st_dev, stat.st_ino))
    }

    pub(crate) fn total(&self) -> Usage {
        self.usage
    }
}

/// Refuses a directory whose path cannot be written into mount options.
pub(crate) fn check_mountable(root: &Path) -> Result<()> {
    let bad = root.to_str().is_none_or(|path| path.contains([',', ':', '\\', '"']));
    if bad {
        return Err(Error::Unsupported {
            what: "an overlayfs store in this directory",
            reason: format!(
                "{} has a comma, colon, quote or backslash, or is not UTF-8: choose another",
                root.display()
            ),
        });
    }
    Ok(())
}

/// Makes a directory, and those above it, unless it is there. If that cannot be looked at, the error says so: the standard library
/// says of such a one that it is there already.
fn make_directory(path: &Path) -> io::Result<()> {
    let Err(error) = stdfs::DirBuilder::new().recursive(true).mode(PRIVATE).create(path) else { return Ok(()) };
    match stdfs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Err(unseen) if error.kind() == io::ErrorKind::AlreadyExists => Err(unseen),
        _ => Err(error),
    }
}
