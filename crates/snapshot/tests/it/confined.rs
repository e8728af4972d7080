//! The threads that deal with a layer's bytes can do nothing else, and the thread that hands them over can do as before.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use crate::common::{Tar, target};
use orlop_snapshot::apply::{Limits, Options, apply, list};

/// Bytes after which both threads have given back buffers, so that they are confined: more than are on the way at once.
const LARGE: usize = 8 << 20;

fn may_not<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM) || error.raw_os_error() == Some(libc::ENOSYS))
}

fn has_seccomp() -> bool {
    if let Err(why) = &orlop_snapshot::confinement().calls {
        println!("skipped: {why}");
    }
    orlop_snapshot::confinement().calls.is_ok()
}

/// What is told of entries is told by such a thread: here it does what a fault could be made to do.
#[test]
fn a_confined_thread_opens_no_canary_connects_to_nothing_and_runs_nothing() {
    if !has_seccomp() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    fs::write(&canary, "untouched").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let ran = outside.path().join("ran");
    let mut tried = 0;
    let mut tar = Tar::default();
    tar.file("f", "x");
    let each = |_: &[u8], _| {
        assert!(may_not(fs::read(&canary)), "read");
        assert!(may_not(fs::write(&canary, "evil")), "written");
        assert!(may_not(fs::remove_file(&canary)), "removed");
        assert!(may_not(TcpStream::connect(address)), "connected");
        assert!(may_not(Command::new("/usr/bin/touch").arg(&ran).status()), "run");
        tried += 1;
    };
    list(&tar.end()[..], &Limits::default(), each).unwrap();
    assert_eq!(tried, 1);
    assert_eq!(fs::read(&canary).unwrap(), b"untouched");
    assert!(!ran.exists());
    listener.set_nonblocking(true).unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

/// Looks at the threads of this process when the last bytes of a layer are read.
struct Looking<'a> {
    layer: &'a [u8],
    threads: BTreeMap<String, Thread>,
}

#[derive(Debug)]
struct Thread {
    seccomp: String,
    no_new_privileges: String,
    capabilities: u64,
}

impl Read for Looking<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if !self.layer.is_empty() && self.layer.len() <= out.len() {
            self.threads = threads();
        }
        self.layer.read(out)
    }
}

/// The threads that deal with layers, by name.
fn threads() -> BTreeMap<String, Thread> {
    let mut found = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        // Threads of other tests end while they are looked at.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else { continue };
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
        if field("Name:").starts_with("orlop-") {
            let capabilities = u64::from_str_radix(&field("CapEff:"), 16).unwrap();
            let thread = Thread { seccomp: field("Seccomp:"), no_new_privileges: field("NoNewPrivs:"), capabilities };
            found.insert(field("Name:"), thread);
        }
    }
    found
}

#[test]
fn all_threads_that_unpack_are_confined_and_the_one_that_reads_is_not() {
    if !has_seccomp() {
        return;
    }
    let child = "ORLOP_TEST_ALONE";
    if std::env::var_os(child).is_none() {
        // In a process of its own: other tests of this one have such threads, too.
        let own = std::env::current_exe().unwrap();
        let name = "confined::all_threads_that_unpack_are_confined_and_the_one_that_reads_is_not";
        let output = Command::new(own).args(["--exact", name]).env(child, "1").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let content: String = "x".repeat(LARGE);
    let mut tar = Tar::default();
    tar.file("f", &content);
    let (root, layer) = (tempfile::tempdir().unwrap(), tar.end());
    let mut looking = Looking { layer: &layer, threads: BTreeMap::new() };
    apply(&mut looking, &target(root.path()), &Options::default()).unwrap();
    let threads = looking.threads;
    assert_eq!(threads.keys().collect::<Vec<_>>(), ["orlop-hash", "orlop-unpack", "orlop-write"], "{threads:?}");
    for thread in threads.values() {
        // 2: by a filter.
        assert_eq!((thread.seccomp.as_str(), thread.no_new_privileges.as_str()), ("2", "1"), "{threads:?}");
        // CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_MODULE, CAP_SETUID.
        assert_eq!(thread.capabilities & (1 << 12 | 1 << 19 | 1 << 16 | 1 << 7), 0, "{threads:?}");
    }
    assert_eq!((threads["orlop-unpack"].capabilities, threads["orlop-hash"].capabilities), (0, 0));
    assert_eq!(fs::metadata(root.path().join("f")).unwrap().len(), LARGE as u64);
    assert!(status_of_this_thread().contains("NoNewPrivs:\t0"), "the thread that reads gave something up");
}

fn status_of_this_thread() -> String {
    fs::read_to_string(Path::new("/proc/thread-self/status")).unwrap()
}
