//! Where targets write, and how they are kept from everything else.

use std::path::Path;
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;

use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

/// A directory of its own: in memory where there is one, since every execution waits for what it writes.
///
/// # Panics
/// If none can be made.
pub fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("of-").rand_bytes(6);
        builder
    };
    builder().tempdir_in(memory).or_else(|_| builder().tempdir()).expect("a scratch directory can be made")
}

/// Whether targets that could reach other hosts may run.
pub fn may_isolate() -> bool {
    rustix::process::geteuid().is_root()
}

type Job = (Vec<u8>, mpsc::Sender<thread::Result<()>>);

/// A thread that inputs are handed to, one after the other.
pub struct Cell(Mutex<mpsc::Sender<Job>>);

impl Cell {
    /// Starts the thread: `setup` runs in it first, then `each` for every input. If `network`, it is alone with a loopback
    /// device, as are the threads that it starts.
    ///
    /// # Panics
    /// If no thread can be started.
    pub fn start<S>(
        name: &str,
        network: bool,
        setup: impl FnOnce() -> S + Send + 'static,
        mut each: impl FnMut(&mut S, &[u8]) + Send + 'static,
    ) -> Self {
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name(name.to_owned());
        let started = thread.spawn(move || {
            if network {
                leave_the_network();
            }
            let mut state = setup();
            for (input, done) in jobs {
                let call = std::panic::AssertUnwindSafe(|| each(&mut state, &input));
                // Whoever asked may have given up.
                let _ = done.send(std::panic::catch_unwind(call));
            }
        });
        started.expect("a thread can be started");
        Self(Mutex::new(sender))
    }

    /// Runs one input.
    ///
    /// # Panics
    /// If that does.
    pub fn run(&self, input: &[u8]) {
        let (done, answer) = mpsc::channel();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).send((input.to_vec(), done)).expect("the cell is there");
        if let Err(panic) = answer.recv().expect("the cell answers") {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Moves the thread, and those that it will start, to a network namespace where only loopback is.
fn leave_the_network() {
    // SAFETY: a network namespace is the thread's own from now on; nothing in this process depends on threads sharing it.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.expect("root may have a network namespace");
    raise_loopback().expect("loopback can be switched on");
}

fn raise_loopback() -> std::io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all bytes zero are a valid `ifreq`: integers, arrays of them and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is open, and the request a whole `ifreq` that lives as long as the call.
    let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), libc::SIOCSIFFLAGS, &raw mut request) };
    if done == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Lets the thread, and those that it will start, write below one directory only and mount nothing, where the kernel can.
pub fn write_only_below(directory: &Path) {
    let writing = AccessFs::from_write(ABI::V3);
    let ruled = || -> Result<_, landlock::RulesetError> {
        let ruleset = Ruleset::default().handle_access(writing)?.create()?;
        ruleset.add_rules(landlock::path_beneath_rules([directory, Path::new("/dev/null")], writing))?.restrict_self()
    };
    ruled().expect("the rules are right");
}
