//! Options as mount(8) takes them, apart: flags of mount(2), what is done before, and what the file system is told.

use rustix::mount::MountFlags;

use super::{bad, idmap};
use crate::Result;

/// Options that set flags of mount(2), or clear them.
const FLAGS: [(&str, bool, MountFlags); 21] = [
    ("async", false, MountFlags::SYNCHRONOUS),
    ("atime", false, MountFlags::NOATIME),
    ("dev", false, MountFlags::NODEV),
    ("diratime", false, MountFlags::NODIRATIME),
    ("dirsync", true, MountFlags::DIRSYNC),
    ("exec", false, MountFlags::NOEXEC),
    ("noatime", true, MountFlags::NOATIME),
    ("nodev", true, MountFlags::NODEV),
    ("nodiratime", true, MountFlags::NODIRATIME),
    ("noexec", true, MountFlags::NOEXEC),
    ("norelatime", false, MountFlags::RELATIME),
    ("nostrictatime", false, MountFlags::STRICTATIME),
    ("nosuid", true, MountFlags::NOSUID),
    ("rbind", true, MountFlags::BIND.union(MountFlags::REC)),
    ("bind", true, MountFlags::BIND),
    ("relatime", true, MountFlags::RELATIME),
    ("ro", true, MountFlags::RDONLY),
    ("rw", false, MountFlags::RDONLY),
    ("strictatime", true, MountFlags::STRICTATIME),
    ("suid", false, MountFlags::NOSUID),
    ("sync", true, MountFlags::SYNCHRONOUS),
];

/// What the options of a mount come to.
#[derive(Debug)]
pub(super) struct Options {
    pub(super) flags: MountFlags,
    /// The source is a file, which a loop device makes a block device.
    pub(super) looped: bool,
    /// The loop device goes around the page cache.
    pub(super) direct: bool,
    /// Whose files they are shown to be.
    pub(super) mapped: idmap::Asked,
    /// Everything else.
    pub(super) data: Vec<String>,
}

/// Takes options apart; the last one that says something about a flag is right.
pub(super) fn parse(options: &[String]) -> Result<Options> {
    let mut parsed = Options {
        flags: MountFlags::empty(),
        looped: false,
        direct: false,
        mapped: idmap::Asked::default(),
        data: Vec::new(),
    };
    for option in options {
        consumed(option)?;
        match option.as_str() {
            "loop" => parsed.looped = true,
            "defaults" => {}
            other if parsed.mapped.take(other) => {}
            other => match FLAGS.iter().find(|(name, ..)| *name == other) {
                Some((_, set, flag)) => parsed.flags.set(*flag, *set),
                None => parsed.data.push(other.to_owned()),
            },
        }
    }
    if parsed.looped {
        parsed.direct = parsed.data.iter().any(|option| option == "direct-io");
        parsed.data.retain(|option| option != "direct-io");
    }
    Ok(parsed)
}

/// No option is left that nobody but this program could understand.
pub(super) fn consumed(option: &str) -> Result<()> {
    if option.starts_with("X-containerd.") {
        return Err(bad(format!("option {option:?} belongs to a transform that the mount's type does not name")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(options: &[&str]) -> Result<Options> {
        parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_set_and_cleared_in_order_and_the_rest_is_the_file_systems() {
        let found =
            parsed(&["ro", "nosuid", "loop", "rw", "size=1", "direct-io", "defaults", "uidmap=0:1:1", "sync"]).unwrap();
        assert_eq!(found.flags, MountFlags::NOSUID | MountFlags::SYNCHRONOUS);
        assert!(found.looped && found.direct);
        assert_eq!(found.data, ["size=1"]);
        let found = parsed(&["rw", "ro", "direct-io", "rbind", "atime"]).unwrap();
        assert_eq!(found.flags, MountFlags::RDONLY | MountFlags::BIND | MountFlags::REC);
        assert!(!found.looped && !found.direct, "without a loop device it is nobody's");
        assert_eq!(found.data, ["direct-io"]);
    }

    #[test]
    fn what_nobody_took_is_refused() {
        let option = "X-containerd.mkfs.size=1";
        let told = parsed(&["ro", option]).unwrap_err().to_string();
        assert!(told.contains(option), "{told}");
    }
}
