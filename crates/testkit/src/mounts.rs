//! What is mounted, and which files are behind loop devices.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

/// How long the kernel may take to give a device back.
const PATIENCE: Duration = Duration::from_secs(60);

/// Mount points below a directory, in the order in which they were made, each with the type of its file system.
///
/// # Panics
/// Without /proc.
pub fn mounted(below: &Path) -> Vec<(PathBuf, String)> {
    let info = std::fs::read_to_string("/proc/self/mountinfo").expect("a mounted /proc");
    let line = |line: &str| {
        let (point, kind) = (line.split(' ').nth(4)?, line.split(" - ").nth(1)?.split(' ').next()?);
        Path::new(point).starts_with(below).then(|| (point.into(), kind.to_owned()))
    };
    info.lines().filter_map(line).collect()
}

/// Unmounts what a test that fails leaves below a directory, before the directory goes.
#[derive(Debug)]
pub struct Cleaned(pub PathBuf);

impl Drop for Cleaned {
    fn drop(&mut self) {
        for (point, _) in mounted(&self.0).into_iter().rev() {
            // What cannot be unmounted stays to be seen.
            let _ = rustix::mount::unmount(&point, UnmountFlags::DETACH);
        }
    }
}

/// A loop device with a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Loop {
    /// The file.
    pub file: PathBuf,
    /// Nothing can be written to it.
    pub read_only: bool,
    /// It goes with its last user.
    pub autoclear: bool,
    /// It goes around the page cache.
    pub direct: bool,
}

/// Loop devices whose file is, or was, below a directory; sorted.
///
/// # Panics
/// Without /sys.
pub fn loops(below: &Path) -> Vec<Loop> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").expect("a mounted /sys") {
        let device = entry.expect("a readable directory").path();
        // Not attached, or not any more.
        let Ok(file) = std::fs::read_to_string(device.join("loop/backing_file")) else { continue };
        let says = |name: &str| std::fs::read_to_string(device.join(name)).is_ok_and(|text| text.trim() == "1");
        let file = PathBuf::from(file.trim_end());
        if file.starts_with(below) {
            let (read_only, autoclear, direct) = (says("ro"), says("loop/autoclear"), says("loop/dio"));
            found.push(Loop { file, read_only, autoclear, direct });
        }
    }
    found.sort();
    found
}

/// Waits until no loop device has a file below a directory.
///
/// # Panics
/// With those that are left, after a minute.
#[track_caller]
pub fn no_loops(below: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !loops(below).is_empty() {
        assert!(Instant::now() < deadline, "still attached: {:?}", loops(below));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether this kernel has a type of file system; if not, says that the test is skipped.
pub fn need_file_system(kind: &str) -> bool {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let found = known.lines().any(|line| line.split_whitespace().last() == Some(kind));
    if !found {
        eprintln!("skipped: this kernel has no {kind} (modprobe {kind})");
    }
    found
}

/// Whether this machine has loop devices for us; if not, says that the test is skipped.
pub fn need_loop_devices() -> bool {
    let found = std::fs::File::options().read(true).write(true).open("/dev/loop-control");
    if let Err(error) = &found {
        eprintln!("skipped: /dev/loop-control: {error} (as root: modprobe loop)");
    }
    found.is_ok()
}
