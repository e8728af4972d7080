//! Writes changes as a tar.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read as _, Write};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use orlop_oci::Compression;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use tar_core::{EntryBuilder, EntryType};

use super::sink::Sink;
use super::{Change, Changes, Made};
use crate::error::At as _;
use crate::fs::{self, xattr};
use crate::{Error, Result, overlay};

/// The name of the entry that hides a directory's lower content.
pub(super) const OPAQUE_NAME: &[u8] = b".wh..wh..opq";
const WHITEOUT: &[u8] = b".wh.";
const BLOCK: usize = 512;
const READ_BYTES: usize = 128 << 10;

/// Whether an extended attribute belongs to the file and not to this machine.
pub(super) fn is_portable(name: &[u8]) -> bool {
    overlay::is_foreign(name) && name != b"security.selinux"
}

/// Writes `changes`, whose files are in the tree at `root`.
pub(super) fn layer(root: &Path, changes: &Changes, out: impl Write, compression: Compression) -> Result<Made> {
    let sink = Sink::new(out, compression).at("start the layer of", root)?;
    let dir = fs::open_dir(root).at("open", root)?;
    let mut writer = Writer { root, dir, sink, links: HashMap::new(), parent: None };
    for (path, change) in changes.iter() {
        match change {
            Change::Put => writer.put(&path)?,
            Change::Delete => writer.delete(&path)?,
            Change::Opaque => writer.mark(&path)?,
        }
    }
    writer.sink.write_all(&[0; 2 * BLOCK]).at("write the layer of", root)?;
    writer.sink.end().at("write the layer of", root)
}

struct Writer<'a, W: Write> {
    root: &'a Path,
    dir: OwnedFd,
    sink: Sink<W>,
    /// The name under which a file with several was written.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// The directory that was used last.
    parent: Option<(Vec<u8>, OwnedFd)>,
}

impl<W: Write> Writer<'_, W> {
    fn shown(&self, path: &[u8]) -> PathBuf {
        fs::shown(self.root, path)
    }

    fn delete(&mut self, path: &[u8]) -> Result<()> {
        let (parent, name) = fs::split(path);
        self.mark(&fs::join(parent, &[WHITEOUT, name].concat()))
    }

    /// Writes an entry that only its name makes meaningful.
    fn mark(&mut self, path: &[u8]) -> Result<()> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path).entry_type(EntryType::Regular);
        self.header(&mut entry, path)
    }

    fn header(&mut self, entry: &mut EntryBuilder, path: &[u8]) -> Result<()> {
        let shown = self.shown(path);
        self.sink.write_all(&entry.finish_bytes()).at("write the entry of", shown)
    }

    fn put(&mut self, path: &[u8]) -> Result<()> {
        let (parent, name) = fs::split(path);
        self.enter(parent)?;
        let Some((_, dir)) = &self.parent else { return Ok(()) };
        if name.starts_with(WHITEOUT) {
            let entry = String::from_utf8_lossy(path).into_owned();
            return Err(Error::Hostile { entry, reason: "in a layer, names that begin with .wh. mean deletions" });
        }
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).at("stat", self.shown(path))?;
        let kind = fs::file_type(&stat);
        if kind == FileType::Socket {
            return Ok(());
        }
        let mut entry = self.describe(path, name, &stat)?;
        let inode = (stat.st_dev, stat.st_ino);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&inode) {
                entry.entry_type(EntryType::Link).link_name(first);
                return self.header(&mut entry, path);
            }
            self.links.insert(inode, path.to_vec());
        }
        self.body(entry, path, name, &stat)
    }

    fn body(&mut self, mut entry: EntryBuilder, path: &[u8], name: &[u8], stat: &Stat) -> Result<()> {
        let Some((_, dir)) = &self.parent else { return Ok(()) };
        match fs::file_type(stat) {
            FileType::Directory => {
                entry.entry_type(EntryType::Directory).path([path, b"/"].concat());
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).at("read the link", self.shown(path))?;
                entry.entry_type(EntryType::Symlink).link_name(target.as_bytes());
            }
            FileType::RegularFile => return self.file(entry, path, name, stat),
            FileType::Fifo => {
                entry.entry_type(EntryType::Fifo);
            }
            kind => {
                let kind = if kind == FileType::BlockDevice { EntryType::Block } else { EntryType::Char };
                let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                let described = entry.entry_type(kind).device(major, minor).map(drop);
                described.map_err(std::io::Error::other).at("describe", self.shown(path))?;
            }
        }
        self.header(&mut entry, path)
    }

    /// An entry with everything but kind and content.
    fn describe(&self, path: &[u8], name: &[u8], stat: &Stat) -> Result<EntryBuilder> {
        let mut entry = EntryBuilder::new_ustar();
        entry.path(path);
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        let described = (|| {
            entry
                .mode(stat.st_mode & 0o7777)?
                .uid(stat.st_uid.into())?
                .gid(stat.st_gid.into())?
                .mtime(seconds)
                .map(drop)
        })();
        described.map_err(std::io::Error::other).at("describe", self.shown(path))?;
        if stat.st_mtime_nsec != 0 && stat.st_mtime >= 0 {
            entry.add_pax("mtime", format!("{seconds}.{:09}", stat.st_mtime_nsec));
        }
        let Some((_, dir)) = &self.parent else { return Ok(entry) };
        for (attribute, value) in xattr::all(dir.as_fd(), name).at("read the attributes of", self.shown(path))? {
            if is_portable(&attribute) {
                let key = std::str::from_utf8(&attribute).map_err(std::io::Error::other);
                let key = key.at("name an extended attribute of", self.shown(path))?;
                entry.add_pax(&format!("SCHILY.xattr.{key}"), value);
            }
        }
        Ok(entry)
    }

    fn file(&mut self, mut entry: EntryBuilder, path: &[u8], name: &[u8], stat: &Stat) -> Result<()> {
        let shown = self.shown(path);
        let Some((_, dir)) = &self.parent else { return Ok(()) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::empty()).at("open", &shown)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        entry.size(size).map_err(std::io::Error::other).at("describe", &shown)?;
        self.header(&mut entry, path)?;
        let mut content = File::from(file).take(size);
        let mut buffer = vec![0; READ_BYTES.min(usize::try_from(size).unwrap_or(READ_BYTES))];
        let mut left = size;
        while left > 0 {
            let read = content.read(&mut buffer).at("read", &shown)?;
            if read == 0 {
                let reason =
                    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "it became shorter while it was read");
                return Err(reason).at("read", &shown);
            }
            self.sink.write_all(&buffer[..read]).at("write the content of", &shown)?;
            left -= read as u64;
        }
        let padding = usize::try_from(size.next_multiple_of(BLOCK as u64) - size).unwrap_or(0);
        self.sink.write_all(&[0; BLOCK][..padding]).at("write the content of", &shown)
    }

    fn enter(&mut self, parent: &[u8]) -> Result<()> {
        if self.parent.as_ref().is_none_or(|(path, _)| path != parent) {
            let dir = fs::open_beneath(self.dir.as_fd(), parent, OFlags::RDONLY | OFlags::DIRECTORY);
            self.parent = Some((parent.to_vec(), dir.at("open", self.shown(parent))?));
        }
        Ok(())
    }
}
