//! Loop devices: a file as a block device.
//!
//! # Invariants
//! - A device is attached with autoclear: the kernel takes it back with its last user, be that a mount, this process, or a
//!   process that was killed. Nobody has to remember it.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, Setter, ioctl};

use crate::error::At as _;
use crate::{Error, Result};

/// Says the number of a device that is free; makes one if there is none.
const GET_FREE: Opcode = 0x4C82;
/// Attaches a file with everything else at once: since Linux 5.8.
const CONFIGURE: Opcode = 0x4C0A;

const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;

const CONTROL: &str = "/dev/loop-control";

/// How often others may be faster in taking the device that was free.
const TRIES: u32 = 100;

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
struct Status {
    device: u64,
    inode: u64,
    raw_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encryption: u32,
    key_bytes: u32,
    flags: u32,
    file_name: [u8; 64],
    encryption_name: [u8; 64],
    key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct Config {
    file: u32,
    block_size: u32,
    status: Status,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Status>() == 232 && size_of::<Config>() == 304);

struct GetFree;

// SAFETY: the request takes no argument, so that the kernel neither reads nor writes memory; what it returns is a number.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    // SAFETY: the pointer, which is null, is not looked at.
    unsafe fn output_from_ptr(output: IoctlOutput, _: *mut std::ffi::c_void) -> rustix::io::Result<u32> {
        u32::try_from(output).map_err(|_| Errno::RANGE)
    }
}

/// A device with a file behind it, which stays at least as long as this.
pub(super) struct Device {
    path: PathBuf,
    _held: File,
}

impl Device {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a block device of a file. Whoever mounts it keeps it so; nobody else has to.
///
/// # Errors
/// If the file cannot be opened, or there are no loop devices here. Then nothing is attached.
pub(super) fn attach(path: &Path, read_only: bool, direct: bool) -> Result<Device> {
    let file = File::options().read(true).write(!read_only).open(path).at("open", path)?;
    let control = opened(Path::new(CONTROL), true)?;
    for tried in 0..TRIES {
        // SAFETY: `control` is the loop driver's, to which this request means what `GetFree` says: no argument, a number back.
        let number = unsafe { ioctl(&control, GetFree) }.at("ask for a free device of", CONTROL)?;
        let device = PathBuf::from(format!("/dev/loop{number}"));
        let held = match opened(&device, !read_only) {
            // It was taken away just now.
            Err(Error::Io { source, .. }) if source.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => continue,
            other => other?,
        };
        match configure(&held, &file, path, read_only, direct) {
            Ok(()) => return Ok(Device { path: device, _held: held }),
            // Somebody else was faster.
            Err(Errno::BUSY) => std::thread::sleep(Duration::from_millis(u64::from(tried))),
            Err(error) => return Err(error).at("attach a loop device to", path),
        }
    }
    Err(Errno::BUSY).at("attach a loop device to", path)
}

fn configure(device: &File, file: &File, path: &Path, read_only: bool, direct: bool) -> rustix::io::Result<()> {
    let mut flags = AUTOCLEAR;
    flags |= if read_only { READ_ONLY } else { 0 };
    flags |= if direct { DIRECT_IO } else { 0 };
    let mut status = Status {
        device: 0,
        inode: 0,
        raw_device: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encryption: 0,
        key_bytes: 0,
        flags,
        file_name: [0; 64],
        encryption_name: [0; 64],
        key: [0; 32],
        init: [0; 2],
    };
    // For people who look; cut short, and ended by a zero.
    let name = path.as_os_str().as_encoded_bytes();
    let shown = name.len().min(status.file_name.len() - 1);
    status.file_name[..shown].copy_from_slice(&name[..shown]);
    let file = u32::try_from(file.as_raw_fd()).map_err(|_| Errno::BADF)?;
    let config = Config { file, block_size: 0, status, reserved: [0; 8] };
    // SAFETY: `device` is the loop driver's, which reads a `struct loop_config` for this request, as `Config` is laid out, and
    // writes nothing. What `config` names by number, `file`, is open for as long.
    unsafe { ioctl(device, Setter::<CONFIGURE, Config>::new(config)) }
}

fn opened(device: &Path, write: bool) -> Result<File> {
    match File::options().read(true).write(write).open(device) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Error::Unsupported {
            what: "a loop device",
            reason: format!(
                "{} is not there: load the module (modprobe loop), or give this container {CONTROL} and /dev/loop*",
                device.display()
            ),
        }),
        other => other.at("open", device),
    }
}
