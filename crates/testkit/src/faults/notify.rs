//! The kernel's side: a filter in the child, and the descriptor through which it asks.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};

use super::{Verdict, calls};

/// A call that waits for an answer.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) thread: u32,
    pub(super) number: i32,
    pub(super) arguments: [u64; 6],
}

impl Asked {
    /// Bytes of the program's memory, as many as can be read there.
    pub(super) fn memory(&self, at: u64, most: usize) -> Option<Vec<u8>> {
        let file = File::open(format!("/proc/{}/mem", self.thread)).ok()?;
        let mut bytes = vec![0; most];
        let count = file.read_at(&mut bytes, at).ok()?;
        bytes.truncate(count);
        Some(bytes)
    }

    /// The process that the thread is one of.
    fn process(&self) -> Option<Pid> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.thread)).ok()?;
        Pid::from_raw(status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())?)
    }
}

/// How the filter is set: the kernel asks, and whoever waits for an answer may be killed (Linux 5.19).
const FLAGS: libc::c_ulong = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;

/// Whether the kernel can ask in this way.
pub(super) fn is_known() -> bool {
    let none = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: without a filter the call changes nothing: it fails for its flags, or for what is not there.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, FLAGS, none) };
    done != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Lets a command, when it is started, be asked about; `answer` is called for each call, in a thread that ends with the program.
pub(super) fn install(
    command: &mut Command,
    answer: impl Fn(&Asked) -> Verdict + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let (near, far) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let filter = filter();
    let enter = move || {
        let listener = enter(&filter)?;
        // What is sent is fetched from this process before it goes on: its own copy ends with the new program.
        let told = [std::process::id().to_ne_bytes(), listener.to_ne_bytes()].concat();
        send(&far, &told, SendFlags::empty())?;
        recv(&far, &mut [0; 1][..], RecvFlags::empty())?;
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls; what it allocates are a few bytes, and glibc's allocator is
    // usable in the child of a process with threads.
    unsafe { command.pre_exec(enter) };
    Ok(std::thread::spawn(move || {
        if let Ok(listener) = fetch(&near) {
            answer_all(&listener, &answer);
        }
    }))
}

/// The program of the filter: which calls are asked about.
fn filter() -> Vec<libc::sock_filter> {
    #[cfg(target_arch = "x86_64")]
    const ARCHITECTURE: u32 = 0xC000_003E;
    #[cfg(target_arch = "aarch64")]
    const ARCHITECTURE: u32 = 0xC000_00B7;
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The architecture is the second word of what a filter sees, the call's number the first.
    let mut program = vec![
        step(LOAD, 0, 0, 4),
        step(EQUAL, 1, 0, ARCHITECTURE),
        step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        step(LOAD, 0, 0, 0),
    ];
    for number in calls::numbers() {
        program.push(step(EQUAL, 0, 1, number));
        program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(step(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW));
    program
}

/// Puts this process behind the filter; returns the descriptor through which the kernel asks.
fn enter(filter: &[libc::sock_filter]) -> io::Result<i32> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: the first call takes no pointer; the second reads the program, which lives until it returns.
    let listener = unsafe {
        if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, FLAGS, &raw const program)
    };
    if listener < 0 { Err(io::Error::last_os_error()) } else { Ok(listener as i32) }
}

/// Fetches the child's descriptor, and lets the child go on.
fn fetch(near: &OwnedFd) -> io::Result<OwnedFd> {
    let mut told = [0_u8; 8];
    let (count, _) = recv(near, &mut told[..], RecvFlags::empty())?;
    let word = |at: usize| i32::from_ne_bytes([told[at], told[at + 1], told[at + 2], told[at + 3]]);
    let process = Pid::from_raw(word(0)).filter(|_| count == told.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
    let process = pidfd_open(process, PidfdFlags::empty())?;
    let listener = pidfd_getfd(process, word(4), PidfdGetfdFlags::empty())?;
    send(near, &[1], SendFlags::empty())?;
    Ok(listener)
}

fn answer_all(listener: &OwnedFd, answer: &dyn Fn(&Asked) -> Verdict) {
    loop {
        let mut polled = [PollFd::new(listener, PollFlags::IN)];
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        if !polled[0].revents().contains(PollFlags::IN) {
            // Nobody is left who is behind the filter.
            return;
        }
        let Some((id, asked)) = next(listener) else { continue };
        match answer(&asked) {
            Verdict::GoOn => reply(listener, id, None),
            Verdict::Error(errno) => reply(listener, id, Some(errno)),
            // Without an answer it never gets beyond this call.
            Verdict::Killed => {
                if let Some(process) = asked.process() {
                    let _ = kill_process(process, Signal::KILL);
                }
            }
        }
    }
}

fn next(listener: &OwnedFd) -> Option<(u64, Asked)> {
    let mut asked = libc::seccomp_notif {
        id: 0,
        pid: 0,
        flags: 0,
        data: libc::seccomp_data { nr: 0, arch: 0, instruction_pointer: 0, args: [0; 6] },
    };
    // SAFETY: the call fills the structure that is given, which is zeroed as it wants it.
    let done = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut asked) };
    // Whoever asked may have been killed meanwhile.
    (done == 0).then_some((asked.id, Asked { thread: asked.pid, number: asked.data.nr, arguments: asked.data.args }))
}

fn reply(listener: &OwnedFd, id: u64, errno: Option<i32>) {
    let flags = if errno.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 };
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: -errno.unwrap_or(0), flags };
    // SAFETY: the call reads the structure that is given. That nobody waits for it any more is no matter.
    let _ = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut answer) };
}
