//! Several processes on one store, processes that are killed, and a process without permission.
//!
//! A child is this test binary again, told by an environment variable what to do; see [`child`].

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use orlop_content::{
    Error, IngestManager as _, IngestOptions, Ingester as _, LocalStore, Manager as _, Provider as _, read_verified,
};
use orlop_oci::Digest;

const TASK: &str = "ORLOP_CONTENT_TEST_TASK";
const ROOT: &str = "ORLOP_CONTENT_TEST_ROOT";

fn named(reference: &str) -> IngestOptions {
    IngestOptions { reference: reference.to_owned(), ..IngestOptions::default() }
}

/// Runs a call of a store to its end where there is no runtime.
fn now<T>(call: impl Future<Output = T>) -> T {
    call.now_or_never().expect("without a runtime every call is done at the first poll")
}

fn command(program: &Path, task: &str, root: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--exact", "processes::child", "--nocapture", "--test-threads=1"]);
    command.env(TASK, task).env(ROOT, root).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

fn spawn(task: &str, root: &Path) -> Child {
    command(&std::env::current_exe().unwrap(), task, root).spawn().unwrap()
}

/// What a child says, line by line; the test harness' own lines are left out.
fn said(child: &mut Child) -> impl Iterator<Item = String> + use<> {
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("child: ").map(str::to_owned))
}

/// In the children, the work; in the parent, nothing.
#[test]
fn child() {
    let (Ok(task), Some(root)) = (std::env::var(TASK), std::env::var_os(ROOT)) else { return };
    // On a line of its own, whatever the harness has written before.
    println!();
    let store = LocalStore::open(Path::new(&root)).unwrap();
    match task.as_str() {
        "one-digest" => one_digest(&store),
        "one-ref" => one_ref(&store),
        "hold" => hold(&store),
        "write-for-ever" => write_for_ever(&store),
        "unprivileged" => unprivileged(&store, Path::new(&root)),
        other => panic!("no task {other}"),
    }
}

fn big() -> Bytes {
    (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>().into()
}

fn one_digest(store: &LocalStore) {
    let mut writer = now(store.writer(named(&format!("process {}", std::process::id())))).unwrap();
    now(writer.write(big())).unwrap();
    match now(writer.commit(4_000_000, None)) {
        Ok(digest) => println!("child: committed {digest}"),
        Err(Error::AlreadyExists(digest)) => println!("child: exists {digest}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn processes_that_write_one_digest_leave_one_blob() {
    let root = tempfile::tempdir().unwrap();
    let mut children: Vec<_> = (0..6).map(|_| spawn("one-digest", root.path())).collect();
    let mut outcomes: Vec<_> = children.iter_mut().flat_map(said).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    outcomes.sort();
    let digest = Digest::of(&big());
    let mut expected = vec![format!("exists {digest}"); 6];
    expected[0] = format!("committed {digest}");
    assert_eq!(outcomes, expected);
    let store = LocalStore::open(root.path()).unwrap();
    assert_eq!(now(read_verified(&store, &digest, 1 << 30)).unwrap(), big());
    assert!(now(store.statuses()).unwrap().is_empty());
    assert_eq!(std::fs::read_dir(root.path().join("ingest")).unwrap().count(), 0);
}

/// Adds one byte at a time under the lock of the ref.
fn one_ref(store: &LocalStore) {
    let mut added = 0;
    while added < 50 {
        match now(store.writer(named("counter"))) {
            Ok(mut writer) => {
                let before = writer.status().offset;
                now(writer.write(Bytes::from_static(b"x"))).unwrap();
                assert_eq!(writer.status().offset, before + 1);
                added += 1;
            }
            Err(Error::Locked(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_ref_has_one_writer_over_all_processes() {
    let root = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..4).map(|_| spawn("one-ref", root.path())).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let store = LocalStore::open(root.path()).unwrap();
    let writer = now(store.writer(named("counter"))).unwrap();
    assert_eq!((writer.status().offset, writer.digest()), (200, Digest::of(&[b'x'; 200])));
}

/// Holds a ref until it is killed.
fn hold(store: &LocalStore) {
    let mut writer = now(store.writer(named("held"))).unwrap();
    now(writer.write(Bytes::from_static(b"held"))).unwrap();
    println!("child: holding");
    loop {
        std::thread::sleep(Duration::from_secs(60));
    }
}

#[test]
fn a_killed_process_frees_its_ref() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let mut child = spawn("hold", root.path());
    assert_eq!(said(&mut child).next().unwrap(), "holding");
    assert!(matches!(now(store.writer(named("held"))), Err(Error::Locked(_))));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(now(store.writer(named("held"))).unwrap().status().offset, 4);
}

#[test]
fn an_abort_reaches_the_writer_of_another_process() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let mut child = spawn("hold", root.path());
    assert_eq!(said(&mut child).next().unwrap(), "holding");
    now(store.abort("held")).unwrap();
    let mut writer = now(store.writer(named("held"))).unwrap();
    assert_eq!(writer.status().offset, 0);
    now(writer.write(Bytes::from_static(b"mine"))).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(now(writer.commit(4, None)).unwrap(), Digest::of(b"mine"));
}

/// Writes, resumes, commits and says what is committed, until it is killed.
fn write_for_ever(store: &LocalStore) {
    let seed = std::process::id();
    for round in 0.. {
        let length = (round * 7919) % 50_000 + 1;
        let bytes = Bytes::from(format!("{seed} {round} ").repeat(length / 8 + 1));
        let reference = format!("ref {}", round % 3);
        let mut writer = now(store.writer(named(&reference))).unwrap();
        now(writer.truncate(0)).unwrap();
        for piece in [bytes.slice(..bytes.len() / 2), bytes.slice(bytes.len() / 2..)] {
            now(writer.write(piece)).unwrap();
        }
        let digest = now(writer.commit(bytes.len() as u64, Some(&Digest::of(&bytes)))).unwrap();
        println!("child: {digest}");
    }
}

#[test]
fn a_process_killed_at_any_moment_leaves_a_good_store() {
    let root = tempfile::tempdir().unwrap();
    let store = LocalStore::open(root.path()).unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..12 {
        let mut child = spawn("write-for-ever", root.path());
        let mut lines = said(&mut child);
        acknowledged.extend(lines.by_ref().take(1 + round));
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts too.
        acknowledged.extend(lines.filter(|line| line.len() == 71));
        for digest in &acknowledged {
            now(store.open(&digest.parse().unwrap())).unwrap();
        }
        for status in now(store.statuses()).unwrap() {
            let mut writer = now(store.writer(named(&status.reference))).unwrap();
            let bytes = Bytes::from(format!("continued {round} {}", status.reference));
            now(writer.write(bytes)).unwrap();
        }
    }
    let listed = now(store.list()).unwrap();
    assert!(listed.len() >= acknowledged.len());
    for info in listed {
        now(read_verified(&store, &info.digest, 1 << 30)).unwrap();
    }
}

/// Reads what root has written and cannot add to it.
fn unprivileged(store: &LocalStore, root: &Path) {
    let digest = Digest::of(b"root wrote this");
    assert_eq!(now(read_verified(store, &digest, 100)).unwrap(), "root wrote this");
    let denied = [
        now(store.writer(named("mine"))).err().unwrap(),
        now(store.abort("roots")).unwrap_err(),
        now(store.delete(&digest)).unwrap_err(),
    ];
    for error in denied {
        assert_eq!(error.io_kind(), Some(std::io::ErrorKind::PermissionDenied), "{error}");
        assert!(error.to_string().contains(&root.display().to_string()), "{error}");
    }
    let exists = IngestOptions { expected: Some(digest), ..named("mine") };
    assert!(matches!(now(store.writer(exists)), Err(Error::AlreadyExists(_))));
    // In a store of its own, a file that a killed commit has made read-only can be opened again without privilege.
    let own = tempfile::tempdir().unwrap();
    let store = LocalStore::open(own.path()).unwrap();
    drop(now(store.writer(named("r"))).unwrap());
    let data = own.path().join("ingest").join(Digest::of(b"r").hex()).join("data");
    std::fs::set_permissions(data, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    let mut writer = now(store.writer(named("r"))).unwrap();
    now(writer.write(Bytes::from_static(b"resumed"))).unwrap();
    now(writer.commit(7, None)).unwrap();
    println!("child: done");
}

#[test]
fn without_permission_errors_say_so() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can start a process of another user");
        return;
    }
    let directory = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
    let directory = directory.unwrap();
    let root = directory.path().join("store");
    let store = LocalStore::open(&root).unwrap();
    let mut writer = now(store.writer(named("w"))).unwrap();
    now(writer.write(Bytes::from_static(b"root wrote this"))).unwrap();
    now(writer.commit(0, None)).unwrap();
    drop(now(store.writer(named("roots"))).unwrap());
    // The test binary may lie where others cannot reach it. A copy cannot be run while a process that another test has just
    // begun still holds the descriptor that it was written through; a link was never written.
    let (own, program) = (std::env::current_exe().unwrap(), directory.path().join("program"));
    std::fs::hard_link(&own, &program).or_else(|_| std::fs::copy(&own, &program).map(drop)).unwrap();
    let mut child = command(&program, "unprivileged", &root).uid(65534).gid(65534).current_dir("/").spawn().unwrap();
    let said: Vec<_> = said(&mut child).collect();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, ["done"]);
}
