//! What an error of the operating system comes to, wherever it was met.

use std::io;

use rustix::io::Errno;

/// What is the matter when the operating system says no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// No space is left, or a quota is used up.
    Full,
    /// This user may not.
    Denied,
    /// The file system is read-only.
    ReadOnly,
    /// The disk, or the file system on it, fails.
    Disk,
    /// This process or the system has as many open files as it may have.
    Files,
    /// Anything else.
    Other,
}

/// By these a disk says that it fails or has gone. The last two: what a file system reads of itself does not check (EUCLEAN, EBADMSG).
/// ENODEV is not among them: by it the kernel says that it does not know a type of file system.
const FAILING: [Errno; 6] = [Errno::IO, Errno::NXIO, Errno::NOMEDIUM, Errno::STALE, Errno::UCLEAN, Errno::BADMSG];

impl Trouble {
    /// What this error comes to.
    pub fn of(error: &io::Error) -> Self {
        let is = |errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly,
            _ if FAILING.into_iter().any(is) => Self::Disk,
            _ if is(Errno::MFILE) || is(Errno::NFILE) => Self::Files,
            _ => Self::Other,
        }
    }

    /// The same for the error that lies beneath another one; [`Trouble::Other`] if there is none.
    pub fn beneath(error: &(dyn std::error::Error + 'static)) -> Self {
        let chain = std::iter::successors(Some(error), |error| error.source());
        chain.filter_map(|error| error.downcast_ref::<io::Error>()).last().map_or(Self::Other, Self::of)
    }

    /// What to do; empty if that depends on more.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Disk => {
                "the disk or its file system fails: look at the kernel's log (dmesg) and at the disk; then \
                 `orlop check --deep` says what is damaged"
            }
            Self::ReadOnly => {
                "the file system is read-only. If nobody mounted it so, the kernel did after an error: look at its log \
                 (dmesg), check the file system, and mount it for writing again"
            }
            Self::Files => {
                "let this process have more open files (LimitNOFILE= of its unit, or ulimit -n), and try again"
            }
            Self::Full | Self::Denied | Self::Other => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_the_system_are_told_apart() {
        for (errno, trouble) in [
            (Errno::NOSPC, Trouble::Full),
            (Errno::DQUOT, Trouble::Full),
            (Errno::ACCESS, Trouble::Denied),
            (Errno::PERM, Trouble::Denied),
            (Errno::ROFS, Trouble::ReadOnly),
            (Errno::IO, Trouble::Disk),
            (Errno::UCLEAN, Trouble::Disk),
            (Errno::MFILE, Trouble::Files),
            (Errno::NFILE, Trouble::Files),
            (Errno::NOENT, Trouble::Other),
            (Errno::NODEV, Trouble::Other),
        ] {
            assert_eq!(Trouble::of(&errno.into()), trouble, "{errno}");
            let beneath = crate::Error::Io { operation: "read", path: "/x".into(), source: errno.into() };
            assert_eq!(Trouble::beneath(&beneath), trouble, "{errno}");
        }
        assert_eq!(Trouble::beneath(&crate::Error::Locked("x".into())), Trouble::Other);
    }
}
