//! Programs in Go, in `tests/go`: clients and suites that their makers publish for Go alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Output, output, which};

/// What a build says when the modules that it needs cannot be fetched here.
const NO_MODULES: [&str; 3] = ["dial tcp", "no such host", "GOPROXY"];

/// A module in `tests/go`.
#[derive(Debug)]
pub struct Module {
    go: PathBuf,
    dir: PathBuf,
}

impl Module {
    /// The module of that name, or says that the test is skipped.
    pub fn find(name: &str) -> Option<Self> {
        let usual = PathBuf::from("/usr/local/go/bin/go");
        let Some(go) = which("go").or_else(|| usual.exists().then_some(usual)) else {
            eprintln!("skipped: go is not installed (scripts/peers)");
            return None;
        };
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/go").join(name);
        Some(Self { go, dir })
    }

    /// Builds the program of the module; says that the test is skipped if what it needs cannot be fetched.
    ///
    /// # Panics
    /// If it does not compile.
    pub fn program(&self, into: &Path) -> Option<PathBuf> {
        self.build(&["build"], into.join("program"), ".")
    }

    /// Builds a program of another module that this one names as a tool, likewise.
    ///
    /// # Panics
    /// If it does not compile.
    pub fn tool(&self, package: &str, into: &Path) -> Option<PathBuf> {
        self.build(&["build"], into.join("tool"), package)
    }

    /// Builds the tests of the module, likewise.
    ///
    /// # Panics
    /// If they do not compile.
    pub fn tests(&self, into: &Path) -> Option<PathBuf> {
        self.build(&["test", "-vet=all", "-c"], into.join("tests"), ".")
    }

    /// The module's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn build(&self, how: &[&str], binary: PathBuf, package: &str) -> Option<PathBuf> {
        let mut command = Command::new(&self.go);
        command.current_dir(&self.dir).args(how).arg("-buildvcs=false").arg("-o").arg(&binary).arg(package);
        // A Go that is older than the module asks for fetches the right one.
        if std::env::var_os("GOTOOLCHAIN").is_none() {
            command.env("GOTOOLCHAIN", "auto");
        }
        self.built(output(&mut command)).then_some(binary)
    }

    fn built(&self, done: Output) -> bool {
        if !done.status.success() && NO_MODULES.iter().any(|word| done.stderr.contains(word)) {
            eprintln!("skipped: what {} needs cannot be fetched here: {}", self.dir.display(), done.stderr);
            return false;
        }
        done.ok();
        true
    }
}
