//! Extended attributes of anything, links and devices too, by directory descriptor and name.

use std::os::fd::BorrowedFd;

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use super::proc_path;

/// Room for the first try at a list or a value; most fit.
const FIRST_TRY: usize = 1024;

/// The names of the attributes of `name` in `dir`, or of `dir` if `name` is empty. No attributes where the file
/// system has none.
pub(crate) fn list(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Vec<Vec<u8>>> {
    let path = proc_path(dir, name);
    let names = grown(|buffer| {
        if name.is_empty() { rustix::fs::listxattr(&path, buffer) } else { rustix::fs::llistxattr(&path, buffer) }
    });
    match names {
        Ok(names) => Ok(names.split(|&b| b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect()),
        Err(Errno::NOTSUP) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// An attribute's value; `None` if it is not there.
pub(crate) fn get(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8]) -> rustix::io::Result<Option<Vec<u8>>> {
    let path = proc_path(dir, name);
    let value = grown(|buffer| {
        if name.is_empty() {
            rustix::fs::getxattr(&path, attribute, buffer)
        } else {
            rustix::fs::lgetxattr(&path, attribute, buffer)
        }
    });
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error),
    }
}

/// All attributes with their values.
pub(crate) fn all(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut found = Vec::new();
    for attribute in list(dir, name)? {
        if let Some(value) = get(dir, name, &attribute)? {
            found.push((attribute, value));
        }
    }
    found.sort();
    Ok(found)
}

/// Sets an attribute.
pub(crate) fn set(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    let path = proc_path(dir, name);
    if name.is_empty() {
        rustix::fs::setxattr(&path, attribute, value, XattrFlags::empty())
    } else {
        rustix::fs::lsetxattr(&path, attribute, value, XattrFlags::empty())
    }
}

/// Removes an attribute; it need not be there.
pub(crate) fn remove(dir: BorrowedFd<'_>, name: &[u8], attribute: &[u8]) -> rustix::io::Result<()> {
    let path = proc_path(dir, name);
    let removed = if name.is_empty() {
        rustix::fs::removexattr(&path, attribute)
    } else {
        rustix::fs::lremovexattr(&path, attribute)
    };
    match removed {
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        other => other,
    }
}

fn grown(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; FIRST_TRY];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            // Neither lists nor values exceed 64 KiB in Linux (XATTR_LIST_MAX, XATTR_SIZE_MAX).
            Err(Errno::RANGE) if buffer.len() <= 64 << 10 => buffer.resize(buffer.len() * 8, 0),
            Err(error) => return Err(error),
        }
    }
}
