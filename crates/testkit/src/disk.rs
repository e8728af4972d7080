//! A small ext4 of its own for one test: to be filled, remounted, or cut off as by a power failure.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::Command;

use crate::process::{need_root, output};

/// A file system in a file, mounted until this is dropped. Needs root.
#[derive(Debug)]
pub struct Disk {
    directory: tempfile::TempDir,
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
        if !need_root() || crate::process::need("mkfs.ext4", "e2fsprogs").is_none() {
            return None;
        }
        let disk = Self::unmounted();
        let image = std::fs::File::create(disk.image()).expect("a writable directory");
        image.set_len(mebibytes << 20).expect("a sparse file");
        let made = run("mkfs.ext4", &["-q", "-m", "0", &disk.image().display().to_string()]);
        match made.and_then(|()| disk.mount()) {
            Ok(()) => Some(disk),
            Err(error) => {
                eprintln!("skipped: {error}");
                None
            }
        }
    }

    fn unmounted() -> Self {
        let disk = Self { directory: tempfile::tempdir().expect("a temporary directory") };
        std::fs::create_dir(disk.path()).expect("a new directory");
        disk
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

    /// Remounts it `ro` or `rw`.
    ///
    /// # Panics
    /// If that fails.
    pub fn remount(&self, option: &str) {
        let options = format!("remount,{option}");
        run("mount", &["-o", &options, &self.path().display().to_string()]).expect("a mount that can be changed");
    }

    fn mount(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", &self.image().display().to_string(), &self.path().display().to_string()])
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
