//! What an inode has besides its content, as a file system of the kernel's would have it after the same calls: an image that
//! overlayfs shows must be what an upper directory would be.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::io::Errno;

use super::acl;
use super::build::{Builder, OPAQUE};
use super::tree::{Inode, Kind, Node};
use crate::apply::Metadata;
use crate::error::At as _;
use crate::{Error, Result};

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";
const CAPABILITY: &[u8] = b"security.capability";

/// Lengths of capabilities that the kernel takes: version 2, with the identity of their namespace (version 3), and version 1.
const CAPABILITY_BYTES: [usize; 3] = [20, 24, 12];

type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// Gives an inode that nobody names yet, or a directory, what its entry says; `shown` is for error messages.
pub(crate) fn describe(builder: &mut Builder, inode: &mut Inode, wanted: &Metadata, shown: &Path) -> Result<()> {
    let mut xattrs = Xattrs::new();
    // What a directory hides, and its label, are not the entry's to take away.
    for (name, value) in builder.xattrs_of(inode)? {
        if (inode.opaque && name == OPAQUE) || name.starts_with(b"security.selinux") {
            xattrs.insert(name, value);
        }
    }
    (inode.uid, inode.gid, inode.mtime) = (wanted.uid, wanted.gid, wanted.mtime);
    if !matches!(inode.kind, Kind::Symlink(_)) {
        inode.mode = wanted.mode;
    }
    for (name, value) in &wanted.xattrs {
        // A file hands nothing down.
        if name != DEFAULT_ACL || inode.is_directory() {
            set(&mut xattrs, inode, name, value).at("set an extended attribute of", shown)?;
        }
    }
    store(builder, inode, &xattrs)
}

/// Gives a file all that the entry of a hard link to it says.
pub(crate) fn describe_link(builder: &mut Builder, node: Node, wanted: &Metadata, shown: &Path) -> Result<()> {
    let mut inode = builder.tree.get(node).clone();
    let mut xattrs: Xattrs = builder.xattrs_of(&inode)?.into_iter().collect();
    if (wanted.uid, wanted.gid) != (inode.uid, inode.gid) {
        // Who gets a file gets no privilege with it.
        xattrs.remove(CAPABILITY);
    }
    (inode.uid, inode.gid, inode.mtime) = (wanted.uid, wanted.gid, wanted.mtime);
    if !matches!(inode.kind, Kind::Symlink(_)) {
        inode.mode = wanted.mode;
        if let Some(list) = xattrs.remove(ACCESS_ACL) {
            set(&mut xattrs, &inode, ACCESS_ACL, &list).at("set the mode of", shown)?;
        }
    }
    for (name, value) in &wanted.xattrs {
        set(&mut xattrs, &inode, name, value).at("set an extended attribute of", shown)?;
    }
    store(builder, &mut inode, &xattrs)?;
    *builder.tree.change(node) = inode;
    Ok(())
}

fn store(builder: &mut Builder, inode: &mut Inode, xattrs: &Xattrs) -> Result<()> {
    inode.xattrs = builder.xattrs(xattrs.iter().map(|(name, value)| (name.as_slice(), value.as_slice())))?;
    Ok(())
}

/// What setting an attribute does.
fn set(xattrs: &mut Xattrs, inode: &Inode, name: &[u8], value: &[u8]) -> Result<(), Errno> {
    let is_link = matches!(inode.kind, Kind::Symlink(_));
    let value = match name {
        ACCESS_ACL | DEFAULT_ACL if is_link => return left_out(name),
        ACCESS_ACL => acl::access(value, inode.mode),
        DEFAULT_ACL if inode.is_directory() => acl::default(value),
        DEFAULT_ACL => match acl::default(value)? {
            Some(_) => Err(Errno::ACCESS),
            None => Ok(None),
        },
        CAPABILITY if !CAPABILITY_BYTES.contains(&value.len()) => Err(Errno::INVAL),
        _ => plain(inode, name, value),
    };
    match value {
        // A file system that has none of its kind keeps the file without it.
        Err(Errno::OPNOTSUPP) => return left_out(name),
        Err(error) => return Err(error),
        Ok(Some(value)) => drop(xattrs.insert(name.to_vec(), value)),
        Ok(None) => drop(xattrs.remove(name)),
    }
    Ok(())
}

fn plain(inode: &Inode, name: &[u8], value: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
    let is_user = name.starts_with(b"user.");
    if is_user && !matches!(inode.kind, Kind::File(_) | Kind::Directory(_)) {
        return Err(Errno::PERM);
    }
    match [&b"user."[..], b"trusted.", b"security."].iter().find_map(|prefix| name.strip_prefix(*prefix)) {
        None => Err(Errno::OPNOTSUPP),
        Some(b"") => Err(Errno::INVAL),
        Some(_) => Ok(Some(value.to_vec())),
    }
}

fn left_out(name: &[u8]) -> Result<(), Errno> {
    tracing::warn!(name = %String::from_utf8_lossy(name), "extended attribute not supported here: left out");
    Ok(())
}

/// Says what would help where an attribute was refused for want of a right.
pub(crate) fn explained(error: Error, entry: &str) -> Error {
    match &error {
        Error::Io { source, .. } if source.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Error::Unsupported {
            what: "giving a file the owner and attributes that the layer names",
            reason: format!("{error} (entry {entry:?}): not even root may do that"),
        },
        _ => error,
    }
}
