//! Types `fuse.…` and `fuse3.…`, which a helper program mounts, called as mount(8) calls it.

use std::io::{Error as IoError, ErrorKind};
use std::path::Path;
use std::process::{Command, Stdio};

use super::Wanted;
use crate::error::At as _;
use crate::{Error, Result};

/// What types begin with, and the program that mounts what comes after it.
const HELPERS: [(&str, &str); 2] = [("fuse.", "mount.fuse"), ("fuse3.", "mount.fuse3")];

/// The program that mounts a type, and what it knows the type as.
pub(super) fn helper(kind: &str) -> Option<(&'static str, &str)> {
    HELPERS.iter().find_map(|(before, program)| Some((*program, kind.strip_prefix(before)?)))
}

/// Has it mounted; whatever serves the file system goes on by itself.
pub(super) fn mount_on(mount: &Wanted, (program, kind): (&str, &str), point: &Path) -> Result<()> {
    let mut command = Command::new(program);
    command.arg(&mount.source).arg(point);
    for option in &mount.options {
        command.args(["-o", option]);
    }
    command.args(["-t", kind]).stdin(Stdio::null());
    let ended = match command.output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let reason = format!("{program} is not installed: install fuse3, or mount it on the client's side");
            return Err(Error::Unsupported { what: "this mount", reason });
        }
        other => other.at("run the program that mounts on", point)?,
    };
    if ended.status.success() {
        return Ok(());
    }
    let said = [ended.stderr, ended.stdout].map(|said| String::from_utf8_lossy(&said).trim().to_owned()).join(" ");
    Err(IoError::other(format!("{program} failed ({}): {}", ended.status, said.trim()))).at("mount on", point)
}
