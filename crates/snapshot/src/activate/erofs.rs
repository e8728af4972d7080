//! File systems of type `erofs`, which containerd's manager always mounts itself: from the file, where the kernel can
//! (Linux 6.12), else from loop devices.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string,
    fsmount, fsopen, move_mount,
};

use super::idmap::{self, Mapping};
use super::loops::{self, Device};
use super::{Wanted, bad, options, permitted};
use crate::{Error, Result};

/// The type.
pub(super) const KIND: &str = "erofs";

/// The option that names the hashes of a source which is to be verified as it is read.
const VERITY: &str = "X-containerd.dmverity=";

/// Further files of an image.
const DEVICE: &str = "device=";

/// Options about the mount, not the file system: what they set, and what they clear.
const ATTRIBUTES: [(&str, MountAttrFlags, MountAttrFlags); 14] = {
    use MountAttrFlags as F;
    [
        ("suid", F::empty(), F::MOUNT_ATTR_NOSUID),
        ("nosuid", F::MOUNT_ATTR_NOSUID, F::empty()),
        ("dev", F::empty(), F::MOUNT_ATTR_NODEV),
        ("nodev", F::MOUNT_ATTR_NODEV, F::empty()),
        ("exec", F::empty(), F::MOUNT_ATTR_NOEXEC),
        ("noexec", F::MOUNT_ATTR_NOEXEC, F::empty()),
        ("atime", F::empty(), F::MOUNT_ATTR_NOATIME),
        ("noatime", F::MOUNT_ATTR_NOATIME, F::empty()),
        ("diratime", F::empty(), F::MOUNT_ATTR_NODIRATIME),
        ("nodiratime", F::MOUNT_ATTR_NODIRATIME, F::empty()),
        ("relatime", F::empty(), F::MOUNT_ATTR_NOATIME),
        ("strictatime", F::MOUNT_ATTR_STRICTATIME, F::empty()),
        ("nostrictatime", F::empty(), F::MOUNT_ATTR_STRICTATIME),
        ("ro", F::MOUNT_ATTR_RDONLY, F::empty()),
    ]
};

/// Options that say what is so anyway, or what the source is.
const IDLE: [&str; 4] = ["rw", "loop", "defaults", "norelatime"];

/// Refuses what this program cannot make of an `erofs` before anything is made.
pub(super) fn possible(mount: &Wanted) -> Result<()> {
    match mount.options.iter().find(|option| option.starts_with(VERITY)) {
        // Not left to the client: whoever mounts it by himself mounts it unverified.
        Some(option) => Err(Error::Unsupported {
            what: "an erofs that is verified as it is read",
            reason: format!(
                "option {option:?}: this server sets up no dm-verity devices; without the option the same image is mounted \
                 unverified"
            ),
        }),
        None => Ok(()),
    }
}

/// Mounts it, and says what it was mounted from and with which options.
pub(super) fn mount_on(mount: &Wanted, point: &Path) -> Result<Wanted> {
    let mut mount = mount.clone();
    let mut mapped = idmap::Asked::default();
    mount.options.retain(|option| option != "loop" && !mapped.take(option));
    mount.options.iter().try_for_each(|option| options::consumed(option))?;
    let mapping = mapped.mapping()?;
    match tree(&mount) {
        // Only block devices: before Linux 6.12, or built without files.
        Err(Errno::NOTBLK) => from_devices(mount, mapping.as_ref(), point),
        other => {
            attached(other, mapping.as_ref(), point)?;
            Ok(mount)
        }
    }
}

/// Mounts it from loop devices, which go with the mount.
fn from_devices(mut mount: Wanted, mapping: Option<&Mapping>, point: &Path) -> Result<Wanted> {
    let mut devices = Vec::new();
    mount.source = device(&mount.source, &mut devices)?;
    for option in &mut mount.options {
        if let Some(file) = option.strip_prefix(DEVICE) {
            *option = format!("{DEVICE}{}", device(file, &mut devices)?);
        }
    }
    attached(tree(&mount), mapping, point)?;
    Ok(mount)
}

fn attached(tree: rustix::io::Result<OwnedFd>, mapping: Option<&Mapping>, point: &Path) -> Result<()> {
    let tree = permitted(tree, "mount erofs on", point)?;
    mapping.map_or(Ok(()), |mapping| mapping.apply(&tree, point))?;
    permitted(attach(&tree, point), "mount erofs on", point)
}

fn device(file: &str, devices: &mut Vec<Device>) -> Result<String> {
    let device = loops::attach(Path::new(file), true, false)?;
    let path = device.path().to_str().ok_or_else(|| bad(format!("{file}: its device has an odd name")))?.to_owned();
    devices.push(device);
    Ok(path)
}

/// The file system, mounted nowhere. Its options are told one by one: there is no bound on their sum.
fn tree(mount: &Wanted) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(KIND, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let context = context.as_fd();
    // It is anyway; but a device that cannot be written is refused otherwise.
    fsconfig_set_flag(context, "ro")?;
    fsconfig_set_string(context, "source", mount.source.as_str())?;
    let mut attributes = MountAttrFlags::empty();
    for option in mount.options.iter().map(String::as_str).filter(|option| !IDLE.contains(option)) {
        if let Some((_, set, clear)) = ATTRIBUTES.iter().find(|(name, ..)| *name == option) {
            attributes = (attributes | *set).difference(*clear);
            continue;
        }
        match option.split_once('=') {
            Some((name, value)) => fsconfig_set_string(context, name, unquoted(name, value))?,
            None => fsconfig_set_flag(context, option)?,
        }
    }
    fsconfig_create(context)?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Labels of SELinux have commas, and come quoted for mount(8).
fn unquoted<'a>(name: &str, value: &'a str) -> &'a str {
    let label = ["context", "fscontext", "defcontext", "rootcontext"].contains(&name);
    let inner = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
    inner.filter(|_| label).unwrap_or(value)
}

fn attach(tree: &OwnedFd, point: &Path) -> rustix::io::Result<()> {
    move_mount(tree, c"", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

#[cfg(test)]
mod tests {
    use orlop_testkit::mounts::{loops, need_file_system, need_loop_devices, no_loops};
    use orlop_testkit::process::{need, need_root, run};

    use super::*;

    /// Where the kernel mounts files nothing else would take this way.
    #[test]
    fn without_a_kernel_that_mounts_files_loop_devices_are_taken_and_given_back() {
        if !(need_root() && need_loop_devices() && need_file_system(KIND))
            || need("mkfs.erofs", "erofs-utils").is_none()
        {
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("tree")).unwrap();
        std::fs::write(at("tree/file"), "content").unwrap();
        std::fs::create_dir(at("point")).unwrap();
        let image = at("image").display().to_string();
        run("mkfs.erofs", [image.as_str(), at("tree").to_str().unwrap()]).ok();
        let options = vec!["nosuid".to_owned()];
        let wanted = Wanted { kind: KIND.into(), source: image.clone(), options, ..Wanted::default() };
        let made = from_devices(wanted.clone(), None, &at("point")).unwrap();
        assert!(made.source.starts_with("/dev/loop"), "{made:?}");
        let attached = loops(directory.path());
        assert!(attached.len() == 1 && attached[0].read_only && attached[0].autoclear, "{attached:?}");
        assert_eq!(std::fs::read_to_string(at("point/file")).unwrap(), "content");
        crate::unmount(&at("point")).unwrap();
        no_loops(directory.path());

        // The second file cannot be attached, and what cannot be mounted is not kept either.
        let broken = Wanted { options: vec![format!("{DEVICE}/nowhere")], ..wanted.clone() };
        from_devices(broken, None, &at("point")).unwrap_err();
        std::fs::write(at("image"), vec![0; 8192]).unwrap();
        from_devices(wanted, None, &at("point")).unwrap_err();
        no_loops(directory.path());
    }
}
