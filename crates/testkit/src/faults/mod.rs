//! Faults of the operating system at calls of an unmodified program: a call comes back with an error instead of being done, the
//! program is killed at it, or something happens before it.
//!
//! ```text
//! Faults   puts a filter into a command that is about to be started (notify), is asked by the kernel before each call that
//!          may be about a file, and answers: go on, or an error
//! calls    which calls those are, which of their arguments name files, and which errors each can return
//! Site     a call that was made: what it is, and on which path
//! Rule     at which of the sites what happens; given and taken away while the program runs
//! ```
//!
//! The kernel asks through seccomp(2) (`SECCOMP_RET_USER_NOTIF`), of every thread and child. So calls are counted over all threads in
//! the order in which they are made, only those below one directory are meant, and a rule can begin and end in the middle of a
//! run. strace(1) can inject errors too, but counts the calls of each thread by itself and cannot tell files from sockets.
//!
//! # Concurrency
//! One thread answers, call by call; the calls of a program's threads wait for it.

mod calls;
mod notify;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use calls::Role;

/// An error that the operating system gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// ENOSPC.
    NoSpace,
    /// EDQUOT.
    Quota,
    /// EIO.
    Io,
    /// EROFS.
    ReadOnly,
    /// EMFILE.
    TooManyFiles,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::NoSpace, Self::Quota, Self::Io, Self::ReadOnly, Self::TooManyFiles];

    const fn errno(self) -> i32 {
        match self {
            Self::NoSpace => libc::ENOSPC,
            Self::Quota => libc::EDQUOT,
            Self::Io => libc::EIO,
            Self::ReadOnly => libc::EROFS,
            Self::TooManyFiles => libc::EMFILE,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSpace => "ENOSPC",
            Self::Quota => "EDQUOT",
            Self::Io => "EIO",
            Self::ReadOnly => "EROFS",
            Self::TooManyFiles => "EMFILE",
        })
    }
}

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Its name.
    pub call: &'static str,
    /// What it is about, below the directory; empty for calls that are about no file, as `accept4`.
    pub path: PathBuf,
    role: Role,
}

impl Site {
    /// Whether this call can return that error.
    pub const fn may(&self, fault: Fault) -> bool {
        let Role { makes, grows, changes, syncs, reads, writable, descriptor } = self.role;
        match fault {
            Fault::NoSpace | Fault::Quota => makes || grows || syncs,
            Fault::Io => makes || grows || changes || syncs || reads,
            Fault::ReadOnly => makes || grows || changes || syncs || writable,
            Fault::TooManyFiles => descriptor,
        }
    }

    /// Whether it changes what is on the disk.
    pub const fn changes(&self) -> bool {
        let Role { makes, grows, changes, syncs, .. } = self.role;
        makes || grows || changes || syncs
    }

    /// What kind of call it is, on what kind of file: without what differs from run to run.
    pub fn kind(&self) -> String {
        let names = self.path.components().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_string_lossy()),
            _ => None,
        });
        let general = |name: &str| match name {
            name if name.len() >= 16 || name.bytes().all(|byte| byte.is_ascii_digit()) => "*".to_owned(),
            name => name.to_owned(),
        };
        let names: Vec<String> = names.take(4).map(|name| general(&name)).collect();
        format!("{} {}", self.call, names.join("/"))
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.call, self.path.display())
    }
}

/// What happens at a call.
pub enum Act {
    /// It is not done, and returns this.
    Fail(Fault),
    /// The program is killed before it is done.
    Kill,
    /// This is done before it is.
    Before(Box<dyn FnMut() + Send>),
}

/// At which calls what happens.
pub struct Rule {
    /// Which calls count; what cannot return the error of [`Act::Fail`] never does.
    pub which: Box<dyn Fn(&Site) -> bool + Send>,
    /// The first one of them, counted from 0 since the rule was given.
    pub from: usize,
    /// Whether all later ones are meant, too.
    pub lasting: bool,
    /// What.
    pub act: Act,
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("from", &self.from).field("lasting", &self.lasting).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    /// Kept only while somebody wants them.
    recorded: Option<Vec<Site>>,
    rule: Option<Rule>,
    /// Calls that counted for the rule.
    counted: usize,
    hit: Vec<Site>,
}

/// What the program is to do about a call.
enum Verdict {
    GoOn,
    Error(i32),
    Killed,
}

/// Answers for one program as long as it runs.
#[derive(Debug)]
pub struct Faults {
    state: Arc<Mutex<State>>,
    answering: Option<JoinHandle<()>>,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Faults {
    /// Whether this kernel asks; if not, says that the test is skipped.
    pub fn available() -> bool {
        let available = notify::is_known();
        if !available {
            eprintln!("skipped: this kernel or container has no seccomp notifications");
        }
        available
    }

    /// Prepares a command, to be started once and soon, whose calls on files below `root` are asked about.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn over(command: &mut Command, root: &Path) -> io::Result<Self> {
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, root) = (state.clone(), root.to_owned());
        let answering = notify::install(command, move |asked| {
            let site = calls::site(asked, &root);
            site.map_or(Verdict::GoOn, |site| decide(&shared, site))
        })?;
        Ok(Self { state, answering: Some(answering) })
    }

    /// Remembers all calls from now on.
    pub fn record(&self) {
        lock(&self.state).recorded = Some(Vec::new());
    }

    /// The calls since [`Faults::record`], which are no longer remembered.
    pub fn recorded(&self) -> Vec<Site> {
        lock(&self.state).recorded.take().unwrap_or_default()
    }

    /// Follows a rule from now on, and no earlier one.
    pub fn set(&self, rule: Rule) {
        let mut state = lock(&self.state);
        (state.rule, state.counted) = (Some(rule), 0);
        state.hit.clear();
    }

    /// Follows no rule any more; says at which calls the last one came true.
    pub fn clear(&self) -> Vec<Site> {
        let mut state = lock(&self.state);
        state.rule = None;
        std::mem::take(&mut state.hit)
    }

    /// At which calls the rule came true so far.
    pub fn hit(&self) -> Vec<Site> {
        lock(&self.state).hit.clone()
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        // It ends with the program. One that was never started has nobody to wait for.
        if let Some(answering) = self.answering.take().filter(JoinHandle::is_finished) {
            let _ = answering.join();
        }
    }
}

fn decide(state: &Mutex<State>, site: Site) -> Verdict {
    let mut state = lock(state);
    if let Some(recorded) = &mut state.recorded {
        recorded.push(site.clone());
    }
    let State { rule: Some(rule), counted, hit, .. } = &mut *state else { return Verdict::GoOn };
    let counts = match rule.act {
        Act::Fail(fault) => site.may(fault),
        _ => true,
    };
    if !(counts && (rule.which)(&site)) {
        return Verdict::GoOn;
    }
    let number = *counted;
    *counted += 1;
    if number < rule.from || (number > rule.from && !rule.lasting) {
        return Verdict::GoOn;
    }
    hit.push(site);
    match &mut rule.act {
        Act::Fail(fault) => Verdict::Error(fault.errno()),
        Act::Kill => Verdict::Killed,
        Act::Before(act) => {
            act();
            Verdict::GoOn
        }
    }
}

/// One site of each kind, with the numbers that sites of that kind have among those that `may`.
pub fn kinds(sites: &[Site], may: impl Fn(&Site) -> bool) -> Vec<(String, Vec<usize>)> {
    let counted: Vec<String> = sites.iter().filter(|site| may(site)).map(Site::kind).collect();
    let all: BTreeSet<&String> = counted.iter().collect();
    let numbers = |kind: &String| (0..counted.len()).filter(|at| counted[*at] == *kind).collect();
    all.into_iter().map(|kind| (kind.clone(), numbers(kind))).collect()
}

#[cfg(test)]
mod tests;
