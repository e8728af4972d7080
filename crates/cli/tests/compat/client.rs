//! The clients, and how each is called.

use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_testkit::containerd::Programs;
use orlop_testkit::process::output;

use crate::words;

/// A client, in the way that it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// Debian's, which does the work on images itself.
    Ctr16,
    /// Which leaves the work to the transfer service.
    Ctr24,
    /// The same with `--local`, where a command has it.
    Ctr24Local,
    Crictl,
}

pub(crate) const EVERY_CTR: &[Client] = &[Client::Ctr16, Client::Ctr24, Client::Ctr24Local];
pub(crate) const OLD: &[Client] = &[Client::Ctr16];
pub(crate) const NEW: &[Client] = &[Client::Ctr24, Client::Ctr24Local];
/// What is done by the client itself.
pub(crate) const BY_CLIENT: &[Client] = &[Client::Ctr16, Client::Ctr24Local];
/// What is done by the transfer service.
pub(crate) const BY_SERVER: &[Client] = &[Client::Ctr24];
pub(crate) const CRICTL: &[Client] = &[Client::Crictl];

impl Client {
    /// As the table calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ctr16 => "ctr 1.6",
            Self::Ctr24 => "ctr 2.4",
            Self::Ctr24Local => "ctr 2.4 --local",
            Self::Crictl => "crictl 1.37",
        }
    }

    /// The program and the containerd that it is compared at; or says that the rows are skipped.
    pub(crate) fn find(self) -> Option<(PathBuf, Programs)> {
        let programs = if self == Self::Ctr16 { Programs::debian()? } else { Programs::current()? };
        let generation = if self == Self::Ctr16 { "1.6." } else { "2.4." };
        let is_it = |word: &str| word.trim_start_matches('v').starts_with(generation);
        if !programs.version().split_whitespace().any(is_it) {
            eprintln!("skipped: the table is of containerd {generation}x, this is {}", programs.version());
            return None;
        }
        let program = match self {
            Self::Crictl => programs.ctr.with_file_name("crictl"),
            _ => programs.ctr.clone(),
        };
        if !program.exists() {
            eprintln!("skipped: {} is not installed (scripts/peers)", program.display());
            return None;
        }
        Some((program, programs))
    }

    /// The command line of one step.
    pub(crate) fn command(self, program: &Path, socket: &Path, namespace: &str, line: &str) -> Command {
        let local = if self == Self::Ctr24Local { "--local" } else { "" };
        let words = words::split(&line.replace("%LOCAL", local));
        let mut command = Command::new(program);
        match self {
            Self::Crictl => {
                let endpoint = format!("unix://{}", socket.display());
                command.args(["--config", "/dev/null", "-t", "60s", "-r", &endpoint, "-i", &endpoint]);
            }
            _ => drop(command.arg("-a").arg(socket).args(["-n", namespace])),
        }
        // What containerd finds old-fashioned about the machine is not about images.
        command.args(words).env("CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS", "1").env("TERM", "xterm");
        command.env("TZ", "UTC").env_remove("CONTAINERD_SNAPSHOTTER").env_remove("EDITOR");
        command
    }
}

/// What a program says to `--help` after these words.
pub(crate) fn help(program: &Path, words: &[&str]) -> String {
    let said = output(Command::new(program).args(words).arg("--help"));
    said.stdout
}
