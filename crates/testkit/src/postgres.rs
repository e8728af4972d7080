//! PostgreSQL from Debian's packages, started for the tests of one program, or for one test that kills it.
//!
//! The server refuses to run as root, so that it then runs as `nobody`. It listens on a socket in a directory of its own.

use std::io;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::process::{Tied, output, which};
use crate::tls::Certificates;

const NOBODY: u32 = 65534;
const USUAL_PORT: u16 = 5432;
const PATIENCE: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(50);

/// What is durable is what a killed process leaves with the kernel; no test here cuts the power of a database.
const SETTINGS: &[&str] = &[
    "listen_addresses=",
    "fsync=off",
    "full_page_writes=off",
    "max_connections=200",
    "shared_buffers=32MB",
    "autovacuum_naptime=10s",
    "log_min_messages=warning",
];

/// A server with a directory of its own.
#[derive(Debug)]
pub struct Postgres {
    programs: PathBuf,
    // Ended before its directory is removed.
    server: Option<Tied>,
    settings: Vec<String>,
    port: u16,
    dir: tempfile::TempDir,
    databases: AtomicU32,
}

/// Where `initdb` and `postgres` are: Debian keeps each version's in a directory that is not in `PATH`.
fn programs() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .map(|entries| entries.flatten().map(|entry| entry.path().join("bin")).collect())
        .unwrap_or_default();
    found.retain(|dir| dir.join("initdb").is_file() && dir.join("postgres").is_file());
    found.sort();
    found.pop().or_else(|| which("initdb")?.parent().map(Path::to_owned))
}

/// As somebody who may run a server.
fn unprivileged(command: &mut Command) -> &mut Command {
    if rustix::process::geteuid().is_root() { command.uid(NOBODY).gid(NOBODY) } else { command }
}

/// A copy of a file that the server may read and nobody else.
fn own(file: &Path, dir: &Path, name: &str) -> PathBuf {
    let copy = dir.join(name);
    std::fs::copy(file, &copy).expect("a file can be copied");
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o600)).expect("its mode can be set");
    if rustix::process::geteuid().is_root() {
        chown(&copy, Some(NOBODY), Some(NOBODY)).expect("root may give a file away");
    }
    copy
}

impl Postgres {
    /// The server that all tests of this program share; `None`, with a word on standard error, where none is installed.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Postgres>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref()
    }

    /// A server of its own.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start() -> Option<Self> {
        Self::start_with(|_| Vec::new(), USUAL_PORT)
    }

    /// A server of its own that speaks TLS alone over `localhost`, by these certificates; its port.
    ///
    /// # Panics
    /// If it does not start.
    pub fn with_tls(certificates: &Certificates) -> Option<(Self, u16)> {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.expect("a free port").port();
        let server = Self::start_with(
            |dir| {
                let key = own(&certificates.server_key, dir, "key.pem");
                let certificate = own(&certificates.server, dir, "certificate.pem");
                let rules = dir.join("rules");
                std::fs::write(&rules, "local all all trust\nhostssl all all 127.0.0.1/32 trust\n").expect("a file");
                vec![
                    "listen_addresses=127.0.0.1".to_owned(),
                    "ssl=on".to_owned(),
                    format!("ssl_cert_file={}", certificate.display()),
                    format!("ssl_key_file={}", key.display()),
                    format!("hba_file={}", rules.display()),
                ]
            },
            port,
        )?;
        Some((server, port))
    }

    fn start_with(settings: impl FnOnce(&Path) -> Vec<String>, port: u16) -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!("skipped: PostgreSQL is not installed (apt-get install postgresql)");
            return None;
        };
        // A socket's path must be short.
        let dir = tempfile::Builder::new().prefix("orlop-pg").tempdir_in("/tmp").expect("a temporary directory");
        if rustix::process::geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("root may give a directory away");
        }
        let data = dir.path().join("data");
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args(["-A", "trust", "-U", "orlop", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]).arg(&data);
        output(unprivileged(initdb.current_dir(dir.path()))).ok();
        let settings = settings(dir.path());
        let mut server = Self { programs, server: None, settings, port, dir, databases: AtomicU32::new(0) };
        server.restart();
        Some(server)
    }

    /// Starts it again after [`Postgres::kill`].
    ///
    /// # Panics
    /// With its log, if it does not come up.
    pub fn restart(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.try_restart().unwrap_or_else(|e| panic!("postgres: {e}")) {
            assert!(Instant::now() < deadline, "PostgreSQL does not come up:\n{}", self.log());
        }
    }

    /// What a killed server has left, its shared memory above all, may be in the way for a moment.
    fn try_restart(&mut self) -> io::Result<bool> {
        let mut command = Command::new(self.programs.join("postgres"));
        command.arg("-D").arg(self.dir.path().join("data")).arg("-k").arg(self.dir.path());
        command.arg("-p").arg(self.port.to_string());
        let settings = SETTINGS.iter().copied().chain(self.settings.iter().map(String::as_str));
        command.args(settings.flat_map(|setting| ["-c", setting]));
        let dress = |shell: &mut Command| {
            unprivileged(shell);
        };
        let mut server = Tied::start(&command, self.dir.path(), &self.dir.path().join("log"), dress)?;
        let deadline = Instant::now() + PATIENCE;
        while server.runs() && Instant::now() < deadline {
            if self.run("postgres", "SELECT 1").is_some() {
                self.server = Some(server);
                return Ok(true);
            }
            std::thread::sleep(STEP);
        }
        server.end();
        Ok(false)
    }

    /// Kills the server at once: its processes lose what they had in memory, clients their connections.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let pid = std::fs::read_to_string(self.dir.path().join("data/postmaster.pid")).expect("the server runs");
        let pid = pid.lines().next().and_then(|line| line.parse().ok()).and_then(rustix::process::Pid::from_raw);
        let pid = pid.expect("the first line is its PID");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("the server can be killed");
        drop(self.server.take());
    }

    /// A server that follows this one by streaming replication, and answers readers; with these settings more.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn standby(&self, settings: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("orlop-pg").tempdir_in("/tmp").expect("a temporary directory");
        if rustix::process::geteuid().is_root() {
            chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("root may give a directory away");
        }
        let mut copy = Command::new(self.programs.join("pg_basebackup"));
        copy.args(["-U", "orlop", "-p", &self.port.to_string(), "-c", "fast", "--no-sync", "-R", "-h"]);
        copy.arg(self.dir.path()).arg("-D").arg(dir.path().join("data"));
        output(unprivileged(copy.current_dir(dir.path()))).ok();
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let (programs, port, databases) = (self.programs.clone(), self.port, AtomicU32::new(0));
        let mut standby = Self { programs, server: None, settings, port, dir, databases };
        standby.restart();
        standby
    }

    /// Runs a statement in a database with `psql`; `None` if that fails.
    pub fn run(&self, database: &str, sql: &str) -> Option<String> {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["-X", "-q", "-A", "-t", "-U", "orlop", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql, "-h"]);
        psql.arg(self.dir.path()).arg("-p").arg(self.port.to_string());
        let done = psql.stdin(Stdio::null()).output().ok()?;
        done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
    }

    /// Makes an empty database; returns its name.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.run("postgres", &format!("CREATE DATABASE {name}")).expect("a database can be made");
        name
    }

    /// Copies a database as it is now into a new one, by a dump of it; returns the new one's name.
    ///
    /// # Panics
    /// If that fails.
    pub fn copy(&self, database: &str) -> String {
        let name = self.database();
        let dump = self.dir.path().join(format!("{name}.dump"));
        let at = |program: &str| {
            let mut command = Command::new(self.programs.join(program));
            command.args(["-U", "orlop", "-p", &self.port.to_string(), "-h"]).arg(self.dir.path());
            command
        };
        output(at("pg_dump").arg("-f").arg(&dump).arg(database)).ok();
        output(at("psql").args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &name, "-f"]).arg(&dump)).ok();
        name
    }

    /// The URL of a database.
    pub fn url(&self, database: &str) -> String {
        let dir = self.dir.path().display().to_string().replace('/', "%2F");
        format!("postgres://orlop@{dir}/{database}")
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}
