use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;

use rustix::fs::AtFlags;

use super::*;

/// A directory to be confined to, and a canary beside it.
fn cage() -> (tempfile::TempDir, std::path::PathBuf, std::path::PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let (inside, canary) = (parent.path().join("inside"), parent.path().join("canary"));
    fs::create_dir(&inside).unwrap();
    fs::write(&canary, "untouched").unwrap();
    (parent, inside, canary)
}

fn has(found: &Result<(), String>, what: &str) -> bool {
    if let Err(why) = found {
        println!("skipped: no {what} here: {why}");
    }
    found.is_ok()
}

/// Runs it in a thread of its own.
fn in_thread(run: impl FnOnce() + Send) {
    std::thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

fn is_denied<T>(result: std::io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(Errno::ACCESS.raw_os_error()))
}

fn is_refused<T>(result: std::io::Result<T>) -> bool {
    let refusals = [Errno::PERM, Errno::NOSYS].map(|errno| Some(errno.raw_os_error()));
    result.is_err_and(|error| refusals.contains(&error.raw_os_error()))
}

/// What unpacking does, by the calls that it makes.
fn write_a_tree(inside: &Path) {
    let dir = rustix::fs::open(inside, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for name in ["a", "b"] {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
    }
    fs::write(inside.join("a/f"), "x").unwrap();
    rustix::fs::linkat(&dir, "a/f", &dir, "b/f", AtFlags::empty()).unwrap();
    rustix::fs::symlinkat("/", &dir, "s").unwrap();
    rustix::fs::unlinkat(&dir, "b/f", AtFlags::empty()).unwrap();
    assert_eq!(fs::read_dir(inside).unwrap().count(), 3);
    // A call that cannot fail, to rustix: it panics where it does.
    assert_eq!(fs::metadata(inside).unwrap().uid(), rustix::process::geteuid().as_raw());
}

#[test]
fn a_thread_confined_to_a_directory_reaches_no_canary_beside_it() {
    let (_parent, inside, canary) = cage();
    if !has(&confinement().files, "landlock") {
        return;
    }
    let open = fs::File::open(&inside).unwrap();
    in_thread(|| {
        // Landlock alone, without what seccomp refuses: calls that the writing thread may make are not kept within by that.
        let rooted = rustix::fs::open(&inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        files(&[rooted]).unwrap();
        assert!(is_denied(fs::read(&canary)), "read");
        assert!(is_denied(fs::write(&canary, "evil")), "written");
        assert!(is_denied(fs::read_dir("/")), "listed");
        assert!(is_denied(fs::remove_file(&canary)), "removed");
        assert!(is_denied(fs::create_dir(canary.with_extension("new"))), "made beside");
        assert!(is_denied(fs::rename(&canary, inside.join("taken"))), "taken in");
        assert!(fs::hard_link(&canary, inside.join("link")).is_err(), "linked in");
        // A descriptor that is open leads no further either.
        let up = rustix::fs::openat(&open, "../canary", OFlags::RDONLY, Mode::empty());
        assert_eq!(up.unwrap_err(), Errno::ACCESS);
        write_a_tree(&inside);
    });
    assert_eq!(fs::read(&canary).unwrap(), b"untouched");
    // Only that thread gave anything up.
    fs::write(&canary, "free").unwrap();
}

#[test]
fn a_confined_thread_runs_no_program_and_has_no_network() {
    let (parent, inside, canary) = cage();
    if !has(&confinement().calls, "seccomp") {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let local = parent.path().join("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&local).unwrap();
    in_thread(|| {
        to_directory(&[&inside]).unwrap();
        assert!(is_refused(TcpStream::connect(address)), "connected");
        assert!(is_refused(UdpSocket::bind("127.0.0.1:0")), "bound");
        assert!(is_refused(UnixStream::connect(&local)), "connected to a program here");
        assert!(is_refused(Command::new("/bin/true").status()), "run");
        assert!(is_refused(std::thread::Builder::new().spawn(|| ())), "a thread");
        assert!(is_refused(fs::rename(inside.join("a"), inside.join("b"))), "a call that is not needed");
        assert!(rustix::thread::set_no_new_privs(false).is_err(), "taken back");
        // Requests to devices: what is typed on a terminal, for one.
        assert!(is_refused(rustix::io::ioctl_fionread(&listener).map_err(Into::into)), "ioctl");
        assert!(fs::read(&canary).is_err(), "read");
        write_a_tree(&inside);
    });
    TcpStream::connect(address).unwrap();
    assert!(Command::new("/bin/true").status().unwrap().success());
}

#[test]
fn a_thread_that_only_computes_opens_nothing() {
    let (_parent, inside, canary) = cage();
    if !has(&confinement().calls, "seccomp") {
        return;
    }
    in_thread(|| {
        to_memory().unwrap();
        assert!(is_refused(fs::read(&canary)) && is_refused(fs::read_dir(&inside)));
        assert!(is_refused(fs::write(inside.join("new"), "x")));
        assert!(is_refused(fs::metadata(&canary)), "looked at");
        // Memory, and waiting for others.
        assert_eq!(vec![1_u8; 64 << 20].iter().map(|b| u64::from(*b)).sum::<u64>(), 64 << 20);
        std::thread::yield_now();
    });
    assert!(!inside.join("new").exists());
}

#[test]
fn capabilities_that_no_file_asks_for_are_given_up_by_that_thread_alone() {
    let all = rustix::thread::capabilities(None).unwrap();
    in_thread(|| {
        give_up_capabilities(FOR_FILES);
        let left = rustix::thread::capabilities(None).unwrap();
        assert!(FOR_FILES.contains(left.effective) && FOR_FILES.contains(left.permitted), "{left:?}");
        assert_eq!(left.effective, all.effective.intersection(FOR_FILES));
        give_up_capabilities(CapabilitySet::empty());
        assert!(rustix::thread::capabilities(None).unwrap().permitted.is_empty());
    });
    assert_eq!(rustix::thread::capabilities(None).unwrap(), all);
}

#[test]
fn what_the_kernel_lacks_is_done_without_and_what_fails_is_told() {
    let of = |errno: Errno| or_without(Err(errno.into()));
    for lacking in [Errno::NOSYS, Errno::OPNOTSUPP, Errno::PERM, Errno::INVAL] {
        of(lacking).unwrap();
    }
    or_without(Err(io::Error::new(io::ErrorKind::Unsupported, "not enforced"))).unwrap();
    for failing in [Errno::MFILE, Errno::NOMEM] {
        assert_eq!(of(failing).unwrap_err().raw_os_error(), Some(failing.raw_os_error()));
    }
    let (_parent, inside, _) = cage();
    in_thread(|| assert!(to_directory(&[&inside.join("missing")]).is_err()));
}
