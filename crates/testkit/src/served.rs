//! `orlop serve` for one test: a socket of its own, ready when it is returned, ended by its PID.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::containerd::Programs;
use crate::process::{Daemon, Output, output};

/// A running `orlop serve`; it ends when it is dropped. The root stays.
#[derive(Debug)]
pub struct Served {
    // Ended before its directory is removed.
    daemon: Daemon,
    root: PathBuf,
    dir: tempfile::TempDir,
}

impl Served {
    /// Starts a daemon on a root and waits until it takes connections. `orlop` is the binary, with the environment it
    /// is to have; `options` come after `serve --root … --socket …`.
    ///
    /// # Panics
    /// With its log, if it does not come up.
    #[track_caller]
    pub fn start(mut orlop: Command, root: &Path, options: &[&str]) -> Self {
        // A socket's path must be short.
        let dir = tempfile::Builder::new().prefix("orlop").tempdir_in("/tmp").expect("a temporary directory");
        let socket = dir.path().join("s");
        orlop.arg("serve").arg("--root").arg(root).arg("--socket").arg(&socket).args(options);
        let mut daemon = Daemon::start(&mut orlop, &dir.path().join("log")).expect("orlop starts");
        daemon.wait_for(|_| UnixStream::connect(&socket).ok());
        Self { daemon, root: root.to_owned(), dir }
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    /// Its root.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.daemon.log()
    }

    /// The process: its PID, to wait for something, to end it.
    pub const fn process(&mut self) -> &mut Daemon {
        &mut self.daemon
    }

    /// Runs a containerd's `ctr` against it in a namespace.
    pub fn ctr(&self, programs: &Programs, namespace: &str, args: &[&str]) -> Output {
        output(Command::new(&programs.ctr).arg("-a").arg(self.socket()).args(["-n", namespace]).args(args))
    }
}
