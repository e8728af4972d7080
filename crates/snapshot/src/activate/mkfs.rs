//! File systems that a mount needs: options `X-containerd.mkfs.size=SIZE`, `.fs=TYPE`, `.uuid=UUID` of a mount whose source is
//! the file to make one in.
//!
//! A file that is there is left as it is: it has somebody's data. One that is not is made without a name, and gets it when
//! the file system is complete and on disk; so no failure, not even a power cut, leaves half of one behind.

use std::fs::File;
use std::io::{Error as IoError, ErrorKind};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::roots::{Place, place};
use super::{Wanted, bad};
use crate::error::At as _;
use crate::{Error, Result, fs};

const OPTION: &str = "X-containerd.mkfs.";

const MODE: Mode = Mode::from_raw_mode(0o640);

/// A type of file system, and how its program is called.
struct Program {
    fs: &'static str,
    name: &'static str,
    package: &'static str,
    /// How it is told the UUID: an option, and what comes before the value.
    uuid: (&'static str, &'static str),
}

const PROGRAMS: [Program; 4] = [
    Program { fs: "ext2", name: "mkfs.ext2", package: "e2fsprogs", uuid: ("-U", "") },
    Program { fs: "ext3", name: "mkfs.ext3", package: "e2fsprogs", uuid: ("-U", "") },
    Program { fs: "ext4", name: "mkfs.ext4", package: "e2fsprogs", uuid: ("-U", "") },
    Program { fs: "xfs", name: "mkfs.xfs", package: "xfsprogs", uuid: ("-m", "uuid=") },
];

/// What is asked for.
struct Asked {
    size: u64,
    program: &'static Program,
    uuid: Option<String>,
}

/// Makes the file system in the source, unless that is there, and takes the options away.
pub(super) fn make(mount: &mut Wanted, roots: &[&Path]) -> Result<()> {
    let path = Path::new(&mount.source);
    let Some(Place { parent, name }) = place("file", path, roots)? else {
        return Err(bad(format!("{} is a directory: mkfs makes a file", path.display())));
    };
    let asked = asked(&mount.options)?;
    match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(found) if fs::file_type(&found) == FileType::RegularFile => {}
        Ok(_) => return Err(bad(format!("{} is there and is no file", path.display()))),
        Err(Errno::NOENT) => {
            let image = image(&parent, &asked, path)?;
            named(&image, &Place { parent, name }, path)?;
        }
        Err(error) => return Err(error).at("look at", path),
    }
    mount.options.retain(|option| !option.starts_with(OPTION));
    Ok(())
}

fn asked(options: &[String]) -> Result<Asked> {
    let (mut bytes, mut fs, mut uuid) = (0, "ext4", None);
    for (option, rest) in options.iter().filter_map(|option| Some((option, option.strip_prefix(OPTION)?))) {
        match rest.split_once('=') {
            Some(("size", value)) => bytes = size(value).ok_or_else(|| wrong(option, "a size such as 64MiB"))?,
            Some(("fs", value)) => fs = value,
            // Of xfs it is one of several settings in one argument.
            Some(("uuid", value)) if value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') => {
                uuid = Some(value.to_owned()).filter(|uuid| !uuid.is_empty());
            }
            Some(("uuid", _)) => return Err(wrong(option, "a UUID")),
            _ => return Err(wrong(option, &format!("{OPTION}size=, {OPTION}fs= or {OPTION}uuid="))),
        }
    }
    if bytes == 0 {
        return Err(bad(format!("a file system is made of a size alone: give the option {OPTION}size=")));
    }
    let known = || PROGRAMS.map(|program| program.fs).join(", ");
    let program = PROGRAMS.iter().find(|program| program.fs == fs);
    let program = program.ok_or_else(|| bad(format!("file system {fs:?}: expected one of {}", known())))?;
    Ok(Asked { size: bytes, program, uuid })
}

fn wrong(option: &str, expected: &str) -> Error {
    bad(format!("option {option:?}: expected {expected}"))
}

/// A number, perhaps with a fraction, and a unit in powers of 1024: `512`, `64k`, `1.5 GiB`.
fn size(text: &str) -> Option<u64> {
    let end = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, unit) = text.split_at(end + 1);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1_u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        "p" | "pb" | "pib" => 1 << 50,
        _ => return None,
    };
    let number = number.strip_suffix(' ').unwrap_or(number);
    // A file's size is a signed number.
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    (0.0..i64::MAX as f64).contains(&bytes).then_some(bytes as u64)
}

/// A file without a name in `directory` with the file system in it, on disk.
fn image(directory: &impl std::os::fd::AsFd, asked: &Asked, path: &Path) -> Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file: File = match rustix::fs::openat(directory, ".", flags, MODE) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let reason = "its file system cannot make files without a name: use ext4, xfs, btrfs or tmpfs".to_owned();
            return Err(Error::Unsupported { what: "making a file system", reason });
        }
        opened => opened.at("make the file", path)?.into(),
    };
    // Whatever this process's mask is.
    rustix::fs::fchmod(&file, MODE).at("set the mode of", path)?;
    file.set_len(asked.size).at("set the size of", path)?;
    run(asked, &file, path)?;
    file.sync_all().at("sync", path)?;
    Ok(file)
}

fn run(asked: &Asked, file: &File, path: &Path) -> Result<()> {
    let Program { name, package, uuid: (option, before), .. } = *asked.program;
    let mut command = Command::new(name);
    command.arg("-q").env("LC_ALL", "C");
    if let Some(uuid) = &asked.uuid {
        command.args([option, &format!("{before}{uuid}")]);
    }
    // The file has no name but this one, in the program's own process.
    command.arg("/proc/self/fd/0").stdin(file.try_clone().at("open", path)?).stdout(Stdio::null());
    let ended = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let reason = format!("{name} is not installed: install {package}, or make {} beforehand", path.display());
            return Err(Error::Unsupported { what: "making a file system", reason });
        }
        other => other.at("run the program that makes a file system in", path)?,
    };
    if ended.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
    let reason = format!("{name} failed ({}): {said}", ended.status);
    let kind = if said.contains("No space left on device") { ErrorKind::StorageFull } else { ErrorKind::Other };
    Err(IoError::new(kind, reason)).at("make a file system in", path)
}

/// Gives the file its name, which outlasts a power cut. That somebody else was faster is fine: theirs is complete too.
fn named(image: &File, place: &Place<'_>, path: &Path) -> Result<()> {
    let source = fs::proc_path(image.as_fd(), b"");
    match rustix::fs::linkat(CWD, &source, &place.parent, place.name, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(Errno::EXIST) => {}
        other => other.at("name the file", path)?,
    }
    rustix::fs::fsync(&place.parent).at("sync the directory of", path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_in_powers_of_1024() {
        for (text, expected) in [
            ("512", Some(512)),
            ("64k", Some(65536)),
            ("64KB", Some(65536)),
            ("2MiB", Some(2 << 20)),
            ("1.5 GiB", Some(3 << 29)),
            ("1.5 ", Some(1)),
            ("7b", Some(7)),
            ("1p", Some(1 << 50)),
            ("", None),
            ("k", None),
            ("1kbb", None),
            ("1xib", None),
            ("1bb", None),
            ("-1", None),
            ("1e30", None),
            ("8192p", None),
        ] {
            assert_eq!(size(text), expected, "{text}");
        }
    }
}
