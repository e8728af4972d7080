//! A small file system of its own for one test: to be filled, remounted, or cut off as by a power failure.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::process::{need_root, output};

/// How long a file system may be in use before that is an error.
const PATIENCE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(20);

/// A file system as it is made and mounted.
#[derive(Debug)]
pub struct FileSystem {
    make: &'static [&'static str],
    package: &'static str,
    mebibytes: u64,
    options: &'static str,
}

impl FileSystem {
    /// Whether it is XFS.
    pub fn is_xfs(&self) -> bool {
        self.package == XFS.package
    }
}

/// Those that a store may be on, with options by which they order what they write otherwise.
pub const FILE_SYSTEMS: &[FileSystem] = &[
    EXT4,
    FileSystem { options: "loop,commit=1,data=writeback", ..EXT4 },
    FileSystem { options: "loop,data=journal", ..EXT4 },
    FileSystem { options: "loop,nodelalloc", ..EXT4 },
    XFS,
];

/// Those that differ in how space runs out: by blocks of 4 KiB and of 1 KiB, in extents.
pub const SMALL: &[FileSystem] = &[
    FileSystem { mebibytes: 96, ..EXT4 },
    FileSystem { make: &["mkfs.ext4", "-q", "-m", "0", "-b", "1024"], mebibytes: 96, ..EXT4 },
    XFS,
];

const XFS: FileSystem =
    FileSystem { make: &["mkfs.xfs", "-q", "-f"], package: "xfsprogs", mebibytes: 320, options: "loop" };

const EXT4: FileSystem =
    FileSystem { make: &["mkfs.ext4", "-q", "-m", "0"], package: "e2fsprogs", mebibytes: 128, options: "loop" };

/// What the file system needs for itself is on the disk from the beginning.
const WITH_ITS_OWN_BLOCKS: FileSystem = FileSystem {
    make: &["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard"],
    ..EXT4
};

/// A file system in a file, mounted until this is dropped. Needs root.
#[derive(Debug)]
pub struct Disk {
    directory: tempfile::TempDir,
    options: &'static str,
}

/// Cuts a disk off, at any moment and from any thread.
#[derive(Debug)]
pub struct Switch(File);

impl Switch {
    /// From now on nothing reaches the disk, what the journal has in memory neither: as when the power fails. Whoever has files
    /// open there gets errors. Once is enough.
    ///
    /// # Panics
    /// If the file system cannot do that.
    pub fn cut_off(&mut self) {
        // XFS_IOC_GOINGDOWN, which is EXT4_IOC_SHUTDOWN too, and the flag by which the log is not flushed.
        const SHUTDOWN: libc::Ioctl = 0x8004_587D;
        let without_log: u32 = 2;
        // SAFETY: the call reads one word from the pointer.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), SHUTDOWN, &raw const without_log) };
        assert_eq!(done, 0, "the disk cannot be cut off: {}", std::io::Error::last_os_error());
    }
}

/// A temporary directory, in memory where there is a file system in it.
///
/// # Panics
/// If none can be made.
pub fn in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let ended = output(Command::new(program).args(arguments));
    if ended.status.success() { Ok(()) } else { Err(format!("{}: {}", ended.command, ended.stderr.trim())) }
}

impl Disk {
    /// Makes and mounts one of `mebibytes`, or says that the test is skipped.
    ///
    /// # Panics
    /// If the temporary directory cannot be used.
    pub fn new(mebibytes: u64) -> Option<Self> {
        Self::made(&FileSystem { mebibytes, ..EXT4 }, Self::unmounted())
    }

    /// Makes and mounts one of this kind, in memory where there is a file system in it; or says that the test is skipped.
    ///
    /// # Panics
    /// If the temporary directory cannot be used.
    pub fn of(kind: &FileSystem) -> Option<Self> {
        Self::made(kind, Self::within(in_memory(), kind.options))
    }

    /// Makes and mounts one whose blocks are on another disk, which has given it none for files yet: when that one is full, what was
    /// written here cannot be kept. Or says that the test is skipped.
    ///
    /// # Panics
    /// If the other disk cannot be used.
    pub fn on(&self, mebibytes: u64) -> Option<Self> {
        let directory = tempfile::tempdir_in(self.path()).expect("a directory on the other disk");
        Self::made(&FileSystem { mebibytes, ..WITH_ITS_OWN_BLOCKS }, Self::within(directory, EXT4.options))
    }

    fn made(kind: &FileSystem, disk: Self) -> Option<Self> {
        let (program, arguments) = kind.make.split_first()?;
        if !need_root() || crate::process::need(program, kind.package).is_none() {
            return None;
        }
        let image = File::create(disk.image()).expect("a writable directory");
        image.set_len(kind.mebibytes << 20).expect("a sparse file");
        let image = disk.image().display().to_string();
        let arguments: Vec<&str> = arguments.iter().copied().chain([&*image]).collect();
        match run(program, &arguments).and_then(|()| disk.mount()) {
            Ok(()) => Some(disk),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    fn unmounted() -> Self {
        Self::within(tempfile::tempdir().expect("a temporary directory"), EXT4.options)
    }

    fn within(directory: tempfile::TempDir, options: &'static str) -> Self {
        let disk = Self { directory, options };
        std::fs::create_dir(disk.path()).expect("a new directory");
        disk
    }

    /// What cuts it off.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn switch(&self) -> Switch {
        Switch(File::open(self.path()).expect("the disk opens"))
    }

    /// Unmounts and mounts it again, so that the journal is replayed; nobody may have a file open there for long: what another
    /// thread of this process has just started has copies of all its files until it runs its own program.
    ///
    /// # Panics
    /// If somebody has, or the file system does not survive.
    pub fn power_cycle(&mut self) {
        let unmount = || run("umount", &[&self.path().display().to_string()]);
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = unmount() {
            assert!(Instant::now() < deadline, "somebody has a file open: {error}");
            std::thread::sleep(STEP);
        }
        // Who has made a mount namespace meanwhile, as every container does, has this mount too: what would be mounted then is the
        // same file system, cut off as it is.
        while self.is_in_use() {
            assert!(Instant::now() < deadline, "a mount namespace that somebody made has the disk mounted");
            std::thread::sleep(STEP);
        }
        self.mount().expect("a file system that survives a power cut");
    }

    /// Whether a loop device stands on the image: they go with the last mount.
    fn is_in_use(&self) -> bool {
        let devices = output(Command::new("losetup").arg("--associated").arg(self.image()));
        !devices.stdout.trim().is_empty()
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mounted")
    }

    /// The same disk as a power cut at this moment leaves it: what the kernel has not written to the device yet is lost,
    /// and the journal is replayed. The disk itself goes on.
    ///
    /// Nobody may write to it meanwhile: the copy would not be of one moment.
    ///
    /// # Panics
    /// If it cannot be copied or the file system does not survive.
    pub fn after_power_cut(&self) -> Self {
        let disk = Self::unmounted();
        std::fs::copy(self.image(), disk.image()).expect("space for a copy");
        disk.mount().expect("a file system that survives a power cut");
        disk
    }

    /// Leaves no free block on it, as far as others than root see.
    ///
    /// # Panics
    /// If it cannot be written for another reason.
    pub fn fill(&self) {
        let mut filler = std::fs::File::create(self.path().join("filler")).expect("a writable disk");
        let mut piece = vec![1; 1 << 20];
        while !piece.is_empty() {
            match filler.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => piece.truncate(piece.len() / 2),
                Err(error) => panic!("{}: {error}", self.path().display()),
            }
        }
        filler.sync_all().expect("a disk that can be synced");
    }

    /// Gives back what [`Self::fill`] took.
    ///
    /// # Panics
    /// If that fails.
    pub fn empty(&self) {
        std::fs::remove_file(self.path().join("filler")).expect("the filler is there");
    }

    /// Leaves about so many free bytes on it.
    ///
    /// # Panics
    /// If it cannot be written for another reason, or has not as many.
    pub fn fill_but(&self, bytes: u64) {
        self.fill();
        let filler = File::options().write(true).open(self.path().join("filler")).expect("the filler is there");
        let length = filler.metadata().expect("a file").len();
        filler.set_len(length.checked_sub(bytes).expect("a larger disk")).expect("a file that can be cut");
        filler.sync_all().expect("a disk that can be synced");
    }

    /// Remounts it `ro` or `rw`.
    ///
    /// # Panics
    /// If that fails.
    pub fn remount(&self, option: &str) {
        let options = format!("remount,{option}");
        run("mount", &["-o", &options, &self.path().display().to_string()]).expect("a mount that can be changed");
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-o", self.options, &self.image().display().to_string(), &self.path().display().to_string()])
    }

    /// What the loop device has been given so far, and nothing more.
    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a test that fails may still have files open.
        let _ = run("umount", &["--lazy", &self.path().display().to_string()]);
    }
}
