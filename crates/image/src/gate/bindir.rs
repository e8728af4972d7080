//! Programs that judge images: containerd's protocol for a directory of verifiers (docs/image-verification.md there).
//!
//! Each file of the directory is called `-name NAME -digest DIGEST -stdin-media-type TYPE` with the target's descriptor
//! as JSON on standard input. Exit code 0 lets the image in; standard output is the reason either way. Every verifier
//! must agree; the first that does not ends the asking. They are called one after the other, sorted by file name.
//!
//! # Invariants
//! - Whatever cannot be asked refuses: a file that is no program, one that is killed, one that takes too long.
//! - No verifier outlives its time: each has a process group of its own, which is killed as a whole, also when the
//!   operation is dropped.
//! - Output is bounded; what goes beyond is read and thrown away, so that the verifier does not hang.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use orlop_oci::Descriptor;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

/// What the descriptor on standard input is.
const INPUT_TYPE: &str = "application/vnd.oci.descriptor.v1+json";
/// Bytes of output that are kept, as in containerd.
const MAX_OUTPUT: u64 = 32 << 10;
/// Says that there was more.
const TRUNCATED: &str = "(stdout truncated)";

/// A directory of verifiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verifiers {
    /// The directory; one that does not exist has no verifiers.
    pub directory: PathBuf,
    /// At most so many are called, the first by name; `None`: all.
    pub max: Option<usize>,
    /// How long each may take.
    pub timeout: Duration,
}

impl Verifiers {
    /// A directory with containerd's limits: ten verifiers of ten seconds.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), max: Some(10), timeout: Duration::from_secs(10) }
    }

    /// Asks them all; gives each one's name and reason.
    pub(super) async fn judge(&self, name: &str, target: &Descriptor) -> Result<Vec<(String, String)>, Objection> {
        let mut reasons = Vec::new();
        for program in self.programs().await? {
            let reason = self.ask(&program, name, target).await?;
            reasons.push((program.to_string_lossy().into_owned(), reason));
        }
        Ok(reasons)
    }

    async fn programs(&self) -> Result<Vec<OsString>, Objection> {
        let directory = self.directory.clone();
        let listed = tokio::task::spawn_blocking(move || list(&directory)).await.map_err(io::Error::other).flatten();
        let mut programs =
            listed.map_err(|source| Objection::Directory { directory: self.directory.clone(), source })?;
        if let Some(max) = self.max.filter(|max| programs.len() > *max) {
            let (directory, found) = (self.directory.display(), programs.len());
            tracing::warn!(%directory, found, max, "more verifiers than are called: the last ones are passed over");
            programs.truncate(max);
        }
        Ok(programs)
    }

    async fn ask(&self, program: &OsString, name: &str, target: &Descriptor) -> Result<String, Objection> {
        let path = self.directory.join(program);
        let failed = |problem| Objection::Failed { program: path.clone(), problem };
        let mut running = Running::start(&path, name, target).map_err(|e| failed(Problem::Start(e)))?;
        let input = serde_json::to_vec(target).expect("a descriptor is JSON");
        let asked = tokio::time::timeout(self.timeout, running.finish(input)).await;
        let (status, reason) = match asked {
            Ok(result) => result.map_err(|e| failed(Problem::Talk(e)))?,
            Err(_) => return Err(failed(Problem::Slow(self.timeout))),
        };
        match status.code() {
            Some(0) => Ok(reason),
            Some(code) => Err(Objection::Refused { program: path, code, reason }),
            None => Err(failed(Problem::Killed)),
        }
    }
}

/// File names, sorted; none where there is no such directory.
fn list(directory: &Path) -> io::Result<Vec<OsString>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = entries.map(|entry| entry.map(|e| e.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// A verifier at work. When this is dropped before it has finished, its process group is killed.
struct Running {
    child: Child,
    group: Option<Pid>,
}

impl Running {
    fn start(path: &Path, name: &str, target: &Descriptor) -> io::Result<Self> {
        let mut command = Command::new(path);
        command.args(["-name", name, "-digest", target.digest.as_str(), "-stdin-media-type", INPUT_TYPE]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.process_group(0).kill_on_drop(true).spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group })
    }

    /// Feeds it, hears it out, and waits for its end. Its output ends only when all its children have closed it too.
    async fn finish(&mut self, mut input: Vec<u8>) -> io::Result<(std::process::ExitStatus, String)> {
        input.push(b'\n');
        let (stdin, stdout, stderr) = (self.child.stdin.take(), self.child.stdout.take(), self.child.stderr.take());
        let feed = async {
            if let Some(mut stdin) = stdin {
                // It need not read; then the pipe breaks.
                let _ = stdin.write_all(&input).await;
            }
        };
        let ((), out, err) = tokio::join!(feed, hear(stdout), hear(stderr));
        let (err, _) = err?;
        for line in err.lines().filter(|line| !line.is_empty()) {
            tracing::debug!(line, "verifier");
        }
        let (out, truncated) = out?;
        let mut reason = plain(out.trim());
        if truncated {
            reason.push_str(TRUNCATED);
        }
        // Not before: a number that was waited for may belong to somebody else's group.
        let status = self.child.wait().await?;
        self.group = None;
        Ok((status, reason))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            // An error means that all of it has ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// What it says, up to the bound, and whether it says more. All of it is read.
async fn hear(source: Option<impl AsyncRead + Unpin>) -> io::Result<(String, bool)> {
    let Some(mut source) = source else { return Ok((String::new(), false)) };
    let mut kept = Vec::new();
    (&mut source).take(MAX_OUTPUT).read_to_end(&mut kept).await?;
    let more = tokio::io::copy(&mut source, &mut tokio::io::sink()).await?;
    Ok((String::from_utf8_lossy(&kept).into_owned(), more > 0))
}

/// One line without anything that a terminal would obey.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Why verifiers do not let an image in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Objection {
    /// The directory cannot be read.
    #[error("the directory of verifiers {} cannot be read: {source}", directory.display())]
    Directory {
        /// Which.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A verifier said no.
    #[error("the verifier {} says no (exit code {code}): {reason}", program.display())]
    Refused {
        /// Which.
        program: PathBuf,
        /// Its exit code.
        code: i32,
        /// Its standard output.
        reason: String,
    },
    /// A verifier said nothing.
    #[error("the verifier {} gave no judgement: {problem}", program.display())]
    Failed {
        /// Which.
        program: PathBuf,
        /// What was wrong with it.
        problem: Problem,
    },
}

/// Why a verifier gave no judgement.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// It cannot be run.
    #[error("it cannot be run: {0}")]
    Start(io::Error),
    /// It took too long.
    #[error("it was killed since it took more than {0:?}")]
    Slow(Duration),
    /// A signal ended it.
    #[error("a signal ended it")]
    Killed,
    /// Its output cannot be read.
    #[error("its output cannot be read: {0}")]
    Talk(io::Error),
}
