//! The system calls that unpacking needs, as seccomp's filters. What is not listed here is refused.
//!
//! A call that is refused is an error and no signal: a C library that makes a new one must not end the daemon. The writing
//! thread is told that the call does not exist (`ENOSYS`), whereupon libraries make an older one. The computing thread is told
//! that it may not (`EPERM`): `ENOSYS` for calls that other threads may make would be remembered for all of them.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule,
};

type Program = Result<BpfProgram, String>;

/// Nothing but what computing needs, and what writing a tree does.
pub(super) fn writing() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        #[allow(clippy::useless_conversion, reason = "a long has 32 bits elsewhere")]
        let flags = [libc::FS_IOC_GETFLAGS, libc::FS_IOC_SETFLAGS].map(|request| argument(1, u64::from(request)));
        let flags = flags.into_iter().collect::<Result<Vec<_>, _>>()?;
        let listed = [COMPUTING, WRITING].concat().into_iter().map(|call| (call, Vec::new()));
        compiled(listed.chain([(libc::SYS_ioctl, flags)]).collect(), libc::ENOSYS)
    })
}

/// Nothing but what computing needs.
pub(super) fn computing() -> &'static Program {
    static PROGRAM: OnceLock<Program> = OnceLock::new();
    PROGRAM.get_or_init(|| compiled(COMPUTING.iter().map(|call| (*call, Vec::new())).collect(), libc::EPERM))
}

/// That an argument has this value.
fn argument(number: u8, value: u64) -> Result<SeccompRule, String> {
    let condition = SeccompCondition::new(number, Len::Dword, Op::Eq, value).map_err(|error| error.to_string())?;
    SeccompRule::new(vec![condition]).map_err(|error| error.to_string())
}

/// Lets these calls pass, by their arguments where such are given.
fn compiled(calls: BTreeMap<libc::c_long, Vec<SeccompRule>>, refusal: libc::c_int) -> Program {
    let text = |error: seccompiler::BackendError| error.to_string();
    let arch = std::env::consts::ARCH.try_into().map_err(text)?;
    let refused = SeccompAction::Errno(refusal.unsigned_abs());
    SeccompFilter::new(calls, refused, SeccompAction::Allow, arch).and_then(TryInto::try_into).map_err(text)
}

/// Memory, time, waiting for the other threads, writing to what is open (the log), and the thread's end or the process's.
const COMPUTING: &[libc::c_long] = &[
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_futex,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Making, describing and removing files. `ioctl` is not here: of it two requests are let pass, for files that nobody may change.
const WRITING: &[libc::c_long] = &[
    // Libraries take it for granted that these succeed.
    libc::SYS_geteuid,
    libc::SYS_getegid,
    libc::SYS_getuid,
    libc::SYS_getgid,
    // musl's way to open.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_lseek,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_mkdirat,
    libc::SYS_mknodat,
    libc::SYS_symlinkat,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
];
