//! Running other programs: once with their output, or in the background until dropped.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long a program may take to become ready, and to end when it is asked to.
const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(20);

/// What a program that has ended said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Panics with all that was said if the program failed.
    #[track_caller]
    pub fn ok(self) -> Self {
        let Self { command, status, stdout, stderr } = &self;
        assert!(status.success(), "{command}: {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        self
    }

    /// Panics with all that was said unless the program ended with this exit code.
    #[track_caller]
    pub fn code(self, expected: i32) -> Self {
        let Self { command, status, stdout, stderr } = &self;
        assert_eq!(
            status.code(),
            Some(expected),
            "{command}: {status}, expected exit code {expected}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        );
        self
    }
}

/// Runs a program to its end.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Output {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null());
    output(&mut command)
}

/// Runs a prepared command to its end.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn output(command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    let out = command.output().unwrap_or_else(|e| panic!("{shown}: {e}"));
    Output {
        command: shown,
        status: out.status,
        stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// Finds a program on `PATH`.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// Finds a program, or says on standard error that the test is skipped and how to get it.
pub fn need(program: &str, package: &str) -> Option<PathBuf> {
    let found = which(program);
    if found.is_none() {
        eprintln!("skipped: {program} is not installed (apt-get install {package})");
    }
    found
}

/// Finds a program of Go's that `scripts/peers` builds, on `PATH` or where that puts it; or says that the test is skipped.
pub fn need_peer(program: &str) -> Option<PathBuf> {
    let built = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join("go/bin").join(program);
    let found = which(program).or_else(|| built.is_file().then_some(built));
    if found.is_none() {
        eprintln!("skipped: {program} is not installed (scripts/peers)");
    }
    found
}

/// Whether this process may do what root may; if not, says that the test is skipped.
pub fn need_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A program that ends when this process does, however that ends: a shell beside it waits for the end of a pipe.
#[derive(Debug)]
pub struct Tied {
    shell: Child,
}

/// `$1` is removed when the end comes without a word.
const TIE: &str = r#"dir=$1; shift; exec 3<&0; "$@" </dev/null & server=$!
(trap '' INT TERM HUP; read word <&3; kill -INT $server; [ -n "$word" ] && exit
 while kill -0 $server 2>/dev/null; do sleep 0.1; done; rm -rf "$dir") & wait $server"#;

impl Tied {
    /// Starts `command`, made by `dress` what the whole is to be (its user, say), with its output at the end of `log`. With this
    /// process `dir` is removed.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(command: &Command, dir: &Path, log: &Path, dress: impl FnOnce(&mut Command)) -> io::Result<Self> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", TIE, "sh"]).arg(dir).arg(command.get_program()).args(command.get_args());
        shell.current_dir(dir).stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
        dress(&mut shell);
        Ok(Self { shell: shell.spawn()? })
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.shell.try_wait(), Ok(None))
    }

    /// Ends it, or waits for it if it was killed; its directory stays.
    pub fn end(mut self) {
        self.finish();
    }

    fn finish(&mut self) {
        if let Some(mut pipe) = self.shell.stdin.take() {
            // If nobody reads this it has ended.
            let _ = io::Write::write_all(&mut pipe, b"end\n");
        }
        let _ = self.shell.wait();
    }
}

impl Drop for Tied {
    fn drop(&mut self) {
        self.finish();
    }
}

/// A program in the background; ended when dropped: SIGTERM first, SIGKILL if it does not listen.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts a command with standard output and error into `log`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn start(command: &mut Command, log: &Path) -> io::Result<Self> {
        let out = File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).spawn()?;
        let name = command.get_program().to_string_lossy().into_owned();
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until `ready` says something.
    ///
    /// # Panics
    /// With the log, if the program ends before, or after a minute.
    #[track_caller]
    pub fn wait_for<T>(&mut self, mut ready: impl FnMut(&Self) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = ready(self) {
                return found;
            }
            let ended = self.child.try_wait().ok().flatten();
            assert!(ended.is_none(), "{} ended: {ended:?}\n{}", self.name, self.log());
            assert!(Instant::now() < deadline, "{} is not ready after {PATIENCE:?}\n{}", self.name, self.log());
            std::thread::sleep(STEP);
        }
    }

    /// Ends it at once, as a power cut would, and waits for the end.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it cannot be sent: the program has ended and was waited for.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// With the log, if it has not after a minute.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} does not end\n{}", self.name, self.log());
            std::thread::sleep(STEP);
        }
    }

    /// Asks it to end, and ends it if it does not.
    pub fn stop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(STEP);
        }
        self.kill();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}
