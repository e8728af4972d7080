//! Bytes in two places of one file system, without a copy: shared extents where the file system has them, else a second name.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use async_trait::async_trait;
use orlop_oci::Digest;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::files::{self, IoContext as _};
use super::{LocalStore, opened, run};
use crate::{Error, Linking, Result, Shared};

/// Gives the empty file `to` the content of `from`; says whether the file system can do that.
pub(super) fn clone(from: &File, to: impl AsFd) -> Result<bool, Errno> {
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS | Errno::PERM) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Gives an open file a further name, whatever names it has had meanwhile.
pub(super) fn link(file: impl AsFd, to: &Path) -> Result<(), Errno> {
    let named = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::linkat(CWD, named, CWD, to, AtFlags::SYMLINK_FOLLOW)
}

#[async_trait]
impl Linking for LocalStore {
    async fn give(&self, digest: &Digest, to: &Path) -> Result<Shared> {
        let (paths, digest, to) = (self.paths.clone(), digest.clone(), to.to_owned());
        run(move || {
            let (file, info) = opened(&paths, digest.clone())?;
            let (digester, size) =
                files::hash(&file, digest.algorithm(), info.size).context("read", &paths.blob(&digest))?;
            let actual = digester.finish();
            if actual != digest {
                return Err(Error::Damaged { digest, actual });
            }
            let directory = to.parent().ok_or(Error::Invalid("a blob is given a path in a directory"))?;
            let given = match cloned(&file, directory)? {
                Some(own) => link(own, &to).map(|()| true),
                None => link(&file, &to).map(|()| false),
            };
            let cloned = match given {
                Err(Errno::EXIST) => return Err(Error::AlreadyExists(digest)),
                given => given.context("link to", &to)?,
            };
            files::sync_directory(directory)?;
            Ok(Shared { size, cloned })
        })
        .await
    }

    async fn file(&self, digest: &Digest) -> Result<File> {
        let (paths, digest) = (self.paths.clone(), digest.clone());
        run(move || opened(&paths, digest).map(|(file, _)| file)).await
    }
}

/// A file without a name that has the content of another and shares its extents; none where the file system cannot.
fn cloned(file: &File, directory: &Path) -> Result<Option<File>> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let own = match rustix::fs::open(directory, flags, Mode::from_raw_mode(0o600)) {
        Ok(own) => File::from(own),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOSYS) => return Ok(None),
        Err(error) => return Err(error).context("make a file in", directory),
    };
    if !clone(file, &own).context("share the extents of a blob in", directory)? {
        return Ok(None);
    }
    rustix::fs::fchmod(&own, Mode::from_raw_mode(0o444)).context("chmod in", directory)?;
    own.sync_all().context("fsync in", directory)?;
    Ok(Some(own))
}
