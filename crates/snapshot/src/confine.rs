//! What the threads that unpack a layer may do, kept by the kernel: so that a fault in a decompressor or in the reading of a
//! tar leads nowhere.
//!
//! - A thread that only computes ([`to_memory`]: it unpacks, or hashes, or lists a tar) opens nothing: it may take memory, wait,
//!   and write to what is open, which is the log.
//! - The thread that writes a tree ([`to_directory`]) may open and change what is below the snapshot's directory and nothing
//!   else.
//!
//! Neither runs programs, has a network, or reaches other processes, mounts, namespaces and the like; of root's capabilities
//! the first keeps none, the second those that files need. Landlock (Linux 5.19 or later: before, it allows no links between
//! directories) keeps the paths, seccomp the system calls. Where the kernel lacks one, or somebody's filter forbids it, the
//! other still holds and layers are unpacked all the same; [`confinement`] says what holds.
//!
//! # Invariants
//! - A thread that confines itself ends with its layer: what it gave up it cannot get back, and threads that it started
//!   would have no more. So neither reads from whoever hands the layer over, which may start threads that outlive it.
//! - Where the kernel can, no layer is unpacked without: what fails for another reason (no descriptors, no memory) is an error.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::BpfProgram;

use crate::Result;
use crate::error::At as _;

mod calls;

/// What of Landlock is asked for; kernels that know less are asked for less.
const FILES: ABI = ABI::V6;

/// What operations on files ask for.
const FOR_FILES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    // Attributes of the class `trusted`, which overlayfs' marks are.
    .union(CapabilitySet::SYS_ADMIN)
    // What the file system reserves for root.
    .union(CapabilitySet::SYS_RESOURCE);

/// What holds for the threads that unpack layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// Whether Landlock keeps them below the snapshot's directory, or why not.
    pub files: Result<(), String>,
    /// Whether seccomp keeps them from system calls that they do not need, or why not.
    pub calls: Result<(), String>,
}

impl Confinement {
    /// Whether nothing is missing.
    pub fn is_whole(&self) -> bool {
        self.files.is_ok() && self.calls.is_ok()
    }
}

impl fmt::Display for Confinement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = |name: &str, found: &Result<(), String>| match found {
            Ok(()) => name.to_owned(),
            Err(why) => format!("no {name} ({why})"),
        };
        write!(f, "{}, {}", said("landlock", &self.files), said("seccomp", &self.calls))
    }
}

/// What holds here: tried once, by a thread that ends with it. The log says what is missing, once.
pub fn confinement() -> &'static Confinement {
    static FOUND: OnceLock<Confinement> = OnceLock::new();
    FOUND.get_or_init(|| {
        let text = |error: io::Error| error.to_string();
        let tried = std::thread::Builder::new().spawn(move || Confinement {
            files: files(&[]).map_err(text),
            calls: filter(calls::writing()).map_err(text),
        });
        let stopped = |error: io::Error| Confinement { files: Err(text(error)), calls: Err("not tried".into()) };
        let found =
            tried.and_then(|thread| thread.join().map_err(|_| io::Error::other("the thread that tried it stopped")));
        let found = found.unwrap_or_else(stopped);
        if !found.is_whole() {
            tracing::info!(confinement = %found, "threads that unpack layers are confined in part only");
        }
        found
    })
}

/// Gives up everything but changing what is below these directories, for good, for this thread.
///
/// # Errors
/// If the kernel can confine it, and failed to; if a directory cannot be opened.
pub(crate) fn to_directory(directories: &[&Path]) -> Result<()> {
    confine(directories, FOR_FILES, calls::writing())
}

/// Gives up everything but computing, for good, for this thread.
///
/// # Errors
/// If the kernel can confine it, and failed to.
pub(crate) fn to_memory() -> Result<()> {
    confine(&[], CapabilitySet::empty(), calls::computing())
}

fn confine(directories: &[&Path], kept: CapabilitySet, program: &Result<BpfProgram, String>) -> Result<()> {
    const CONFINE: &str = "confine the thread that unpacks a layer into";
    let shown = directories.first().copied().unwrap_or(Path::new("memory"));
    let mut opened = Vec::new();
    for directory in directories {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        opened.push(rustix::fs::open(*directory, flags, Mode::empty()).at("open", directory)?);
    }
    or_without(files(&opened)).at(CONFINE, shown)?;
    give_up_capabilities(kept);
    or_without(filter(program)).at(CONFINE, shown)
}

/// What a kernel or a container does not offer is done without.
fn or_without(confined: io::Result<()>) -> io::Result<()> {
    const IN_PASSING: [Errno; 5] = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::INTR];
    confined.or_else(|error| match error.raw_os_error() {
        Some(code) if IN_PASSING.iter().any(|errno| errno.raw_os_error() == code) => Err(error),
        _ => Ok(()),
    })
}

/// Opens nothing, and changes nothing, but below these directories; connects to nothing.
fn files(directories: &[rustix::fd::OwnedFd]) -> io::Result<()> {
    let restricted = || -> Result<_, landlock::RulesetError> {
        // Without this right, links between directories are refused always: then it is no use.
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(AccessFs::Refer)?;
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(FILES))?
            .handle_access(AccessNet::from_all(FILES))?
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        let rights = AccessFs::from_all(FILES) & !(AccessFs::Execute | AccessFs::IoctlDev);
        for directory in directories {
            ruleset = ruleset.add_rule(PathBeneath::new(directory, rights))?;
        }
        ruleset.restrict_self()
    };
    match restricted() {
        Ok(status) if status.ruleset == RulesetStatus::NotEnforced => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel does not enforce it"))
        }
        Ok(_) => Ok(()),
        Err(error) => Err(system_error(&error)),
    }
}

/// The system's own error where it is the cause, so that it is known by its number.
fn system_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let code = causes.find_map(|cause| cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error));
    code.map_or_else(|| io::Error::new(io::ErrorKind::Unsupported, error.to_string()), io::Error::from_raw_os_error)
}

/// Keeps at most these capabilities. That some cannot be given up is no fault: then there are none to give.
fn give_up_capabilities(kept: CapabilitySet) {
    let given_up = rustix::thread::capabilities(None).and_then(|had| {
        let (effective, permitted) = (had.effective.intersection(kept), had.permitted.intersection(kept));
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() },
        )
    });
    if let Err(error) = given_up {
        tracing::debug!(%error, "a thread that unpacks a layer keeps its capabilities");
    }
}

/// Makes no other system calls from now on than `program` lets pass.
fn filter(program: &Result<BpfProgram, String>) -> io::Result<()> {
    let program = program.as_ref().map_err(|why| io::Error::new(io::ErrorKind::Unsupported, why.clone()))?;
    seccompiler::apply_filter(program).map_err(|error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => error,
        other => io::Error::other(other.to_string()),
    })
}

#[cfg(test)]
mod tests;
