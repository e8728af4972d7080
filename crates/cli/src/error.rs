//! What a failure becomes at the edge: a message, a hint, an exit code.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use orlop_content::Trouble;

use crate::paint::{self, Tone};

/// Stopped by a signal (contract: exit codes).
pub(crate) const INTERRUPTED: u8 = 130;

pub(crate) use orlop_api::error::{Class, causes};

/// The exit code of a class (contract: exit codes).
const fn exit_code(class: Class) -> u8 {
    match class {
        Class::Failed => 1,
        Class::Usage => 2,
        Class::NotFound => 3,
        Class::Conflict => 4,
        Class::Verification => 5,
        Class::NoSpace => 6,
        Class::NotPermitted => 7,
        Class::Unavailable => 8,
        Class::Interrupted => INTERRUPTED,
    }
}

/// The class of an answer that says nothing but a gRPC code: a server other than Orlop.
fn class_of_code(code: tonic::Code) -> Class {
    use tonic::Code;
    match code {
        Code::InvalidArgument | Code::OutOfRange => Class::Usage,
        Code::NotFound => Class::NotFound,
        Code::AlreadyExists | Code::FailedPrecondition | Code::Aborted => Class::Conflict,
        Code::DataLoss => Class::Verification,
        Code::ResourceExhausted => Class::NoSpace,
        Code::PermissionDenied | Code::Unauthenticated => Class::NotPermitted,
        Code::Unavailable | Code::DeadlineExceeded => Class::Unavailable,
        _ => Class::Failed,
    }
}

/// The class of an operating system error.
pub(crate) fn class_of_io(error: &io::Error) -> Class {
    match (Trouble::of(error), error.kind()) {
        (_, io::ErrorKind::NotFound) => Class::NotFound,
        (_, io::ErrorKind::AlreadyExists) => Class::Conflict,
        (Trouble::Denied | Trouble::ReadOnly, _) => Class::NotPermitted,
        (Trouble::Full, _) => Class::NoSpace,
        (Trouble::Files, _) => Class::Unavailable,
        (Trouble::Disk | Trouble::Other, _) => Class::Failed,
    }
}

/// A failed command.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    pub(crate) class: Class,
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: Option<String>,
}

impl CliError {
    pub(crate) fn new(class: Class, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), hint: None }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn io(operation: &str, path: Option<&Path>, source: io::Error) -> Self {
        let place = path.map(|p| format!(" {}", p.display())).unwrap_or_default();
        let advice = Trouble::of(&source).advice();
        let hint = (!advice.is_empty()).then(|| advice.to_owned());
        Self { hint, ..Self::new(class_of_io(&source), format!("{operation}{place}: {source}")) }
    }

    /// For `map_err` on file operations.
    pub(crate) fn at(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path: PathBuf = path.to_owned();
        move |source| Self::io(operation, Some(&path), source)
    }
}

/// The version of the daemon that this command speaks to, if it is Orlop's and another one than this command's.
static OTHER_VERSION: OnceLock<String> = OnceLock::new();

/// Remembers what a server says of its version: a call that it lacks is explained by that.
pub(crate) fn heard_version(said: &str) {
    let own = env!("CARGO_PKG_VERSION");
    let Some((_, daemon)) = said.split_once("+orlop.") else { return };
    if daemon != own && OTHER_VERSION.set(daemon.to_owned()).is_ok() {
        tracing::info!(daemon, command = own, "the daemon is of another version than this command");
    }
}

/// What to do about a call that the server lacks.
fn about_missing_call() -> String {
    match OTHER_VERSION.get() {
        Some(daemon) => format!(
            "the daemon is orlop {daemon}, this command is orlop {}: start the daemon again with this version's program, or use the \
             command of its version",
            env!("CARGO_PKG_VERSION")
        ),
        None => {
            "the server lacks this call (orlop.v1 is Orlop's own); --root DIR uses Orlop's own store there".to_owned()
        }
    }
}

/// Whether a status is no answer of a server's: the connection broke before one came.
pub(crate) fn is_broken(status: &tonic::Status) -> bool {
    // A status that came over the wire has no source in this process.
    status.source().is_some()
}

impl From<orlop_lens::Error> for CliError {
    fn from(error: orlop_lens::Error) -> Self {
        match error {
            orlop_lens::Error::Call { call, namespace, status } => {
                let failed = Self::from(*status);
                let place = if namespace.is_empty() { String::new() } else { format!(" in namespace {namespace}") };
                Self { message: format!("{call}{place}: {}", failed.message), ..failed }
            }
            other => Self::new(Class::Failed, other.to_string()),
        }
    }
}

impl From<tonic::Status> for CliError {
    fn from(status: tonic::Status) -> Self {
        if is_broken(&status) {
            let cause = status.source().map_or_else(String::new, causes);
            return Self::new(Class::Unavailable, format!("the connection to the server broke: {cause}")).hint(
                "what was answered before holds; whether this call was carried out, the server's log or a look tells",
            );
        }
        let details = orlop_api::error::details(&status);
        let class = details.as_ref().map_or_else(|| class_of_code(status.code()), |d| d.class);
        let mut message = status.message().to_owned();
        if message.is_empty() {
            message = format!("the server answered {:?} without a message", status.code());
        }
        let mut error = Self::new(class, message);
        error.hint = details.and_then(|d| (!d.hint.is_empty()).then_some(d.hint));
        if status.code() == tonic::Code::Unimplemented && error.hint.is_none() {
            error.hint = Some(about_missing_call());
        }
        error
    }
}

/// Prints a failure to standard error and picks the exit code.
pub(crate) fn report(error: &CliError) -> ExitCode {
    eprintln!("{}", paint::fit(&format!("{} {}", Tone::Bad.paint_error("orlop:"), cut(&error.message))));
    if let Some(hint) = &error.hint {
        eprintln!("{}", paint::fit(&format!("  {} {}", Tone::Kind.paint_error("hint:"), cut(hint))));
    }
    ExitCode::from(exit_code(error.class))
}

/// A message without its middle, if somebody's name has filled it with more than anybody reads.
fn cut(message: &str) -> Cow<'_, str> {
    const READ: usize = 4_000;
    const ENDS: usize = 200;
    if message.len() <= READ {
        return message.into();
    }
    let (head, tail) = (message.floor_char_boundary(ENDS), message.ceil_char_boundary(message.len() - ENDS));
    format!("{} … {}", &message[..head], &message[tail..]).into()
}

/// Commands of docker, podman, crictl and skopeo by the names they have here.
const ELSEWHERE: &[(&str, &str)] = &[
    ("copy", "orlop pull, then orlop push SRC DEST"),
    ("image", "orlop images, and a command for each thing that is done with them: orlop --help"),
    ("imagefsinfo", "orlop df"),
    ("inspecti", "orlop inspect NAME"),
    ("list", "orlop images"),
    ("load", "orlop import FILE (or -)"),
    (
        "login",
        "docker login or a credential helper: orlop reads ~/.docker/config.json, and --user NAME --password-stdin",
    ),
    ("rmi", "orlop rm NAME"),
    ("save", "orlop export NAME -O FILE (or -)"),
    ("system", "orlop df, orlop prune and orlop gc"),
    ("unmount", "orlop umount DIR"),
];

/// Prints clap's answer; help and version are not failures.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    // A closed standard output is not worth a second message.
    let _ = error.print();
    if let (ErrorKind::InvalidSubcommand, Some(ContextValue::String(word))) =
        (error.kind(), error.get(ContextKind::InvalidSubcommand))
        && let Some((_, here)) = ELSEWHERE.iter().find(|(there, _)| there == word)
    {
        eprintln!("  hint: what other tools call {word} is {here}");
    }
    if error.use_stderr() { ExitCode::from(exit_code(Class::Usage)) } else { ExitCode::SUCCESS }
}

/// Result of a command.
pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;
