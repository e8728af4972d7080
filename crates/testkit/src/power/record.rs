//! Calls as operations: whose descriptor is what, which path is which node.

use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::disk::{Attribute, Disk, How, Ino, Kind, Name, Node, Op, TOP};
use super::timeline::{Synced, Timeline};
use rustix::process::{Pid, Signal};

use super::trace::{self, Call};
use crate::process::{Output, output};

/// Calls that change no file: they look, lock, wait, or are about no file.
const HARMLESS: &[&str] = &[
    "access",
    "close_range",
    "epoll_create1",
    "epoll_ctl",
    "epoll_pwait",
    "epoll_wait",
    "eventfd2",
    "execve",
    "faccessat",
    "faccessat2",
    "fadvise64",
    "fgetxattr",
    "flistxattr",
    "flock",
    "fstat",
    "fstatfs",
    "getcwd",
    "getdents64",
    "getxattr",
    "inotify_add_watch",
    "inotify_init1",
    "lgetxattr",
    "listxattr",
    "llistxattr",
    "lstat",
    "memfd_create",
    "newfstatat",
    "pidfd_open",
    "poll",
    "ppoll",
    "pread64",
    "preadv",
    "preadv2",
    "readahead",
    "readlink",
    "readlinkat",
    "signalfd4",
    "stat",
    "statfs",
    "statx",
    "fsconfig",
    "fsmount",
    "fsopen",
    "mount",
    "move_mount",
    "open_tree",
    "timerfd_create",
    "timerfd_settime",
    "umask",
    "umount2",
];

/// Follows what a program does to the files below a directory.
#[derive(Debug)]
pub struct Recorder {
    top: PathBuf,
    log: PathBuf,
    timeline: Timeline,
    /// What is there.
    disk: Disk,
    next: Ino,
    umask: u32,
    owner: (u32, u32),
    /// Of the command that is followed.
    open: HashMap<i64, Open>,
    /// Its directory, if that is below.
    current: Option<Ino>,
}

/// What a descriptor is open on.
#[derive(Debug, Clone)]
struct Open {
    node: Ino,
    /// Where the next bytes go; `None`: to the end.
    offset: Option<u64>,
    /// The line in which it was opened.
    since: usize,
}

/// A command that is running, and what it does is written down.
#[derive(Debug)]
pub struct Followed {
    strace: Child,
    told: PathBuf,
}

impl Followed {
    /// What the command has said on its standard error so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.told).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The command itself.
    pub fn program(&self) -> Option<Pid> {
        let id = self.strace.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Nothing, if it was stopped.
        if matches!(self.strace.try_wait(), Ok(None)) {
            if let Some(program) = self.program() {
                let _ = rustix::process::kill_process(program, Signal::KILL);
            }
            let _ = self.strace.wait();
        }
    }
}

fn micros(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_micros() as u64
}

impl Recorder {
    /// What is below `top` is durable to begin with. What commands do there is followed; `log` is a file elsewhere.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(top: &Path, log: &Path) -> io::Result<Self> {
        let top = top.canonicalize()?;
        let disk = Disk::read(&top)?;
        let status = std::fs::read_to_string("/proc/self/status")?;
        let umask = status.lines().find_map(|line| u32::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok());
        Ok(Self {
            timeline: Timeline::new(disk.clone()),
            next: disk.next_ino(),
            disk,
            log: log.to_owned(),
            top,
            umask: umask.unwrap_or(0o022),
            owner: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
            open: HashMap::new(),
            current: None,
        })
    }

    /// Runs a command to its end, and follows it; if it succeeds, that is a mark.
    ///
    /// # Panics
    /// If it makes a call that is about files below the directory and is not known here.
    #[track_caller]
    pub fn run(&mut self, command: &Command) -> Output {
        let ended = output(&mut self.traced(command));
        self.follow(&[]);
        if ended.status.success() {
            self.timeline.mark();
        }
        ended
    }

    /// Starts a command that goes on until it is stopped; what it did is followed then.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start(&self, command: &Command) -> Followed {
        let told = self.log.with_extension("told");
        let file = std::fs::File::create(&told).expect("a writable directory");
        Followed { strace: self.traced(command).stderr(file).spawn().expect("strace starts"), told }
    }

    /// Ends a command, and follows what it did; each of `answered` is a mark at that time. Each has to be a time at which
    /// somebody knew something that the command had told him.
    ///
    /// # Panics
    /// If it does not end well; and as [`Recorder::run`].
    #[track_caller]
    pub fn stop(&mut self, mut followed: Followed, answered: &[SystemTime]) {
        let program = followed.program().expect("the command runs");
        rustix::process::kill_process(program, Signal::TERM).expect("it can be told to end");
        let ended = followed.strace.wait().expect("strace can be waited for");
        assert!(ended.success(), "{ended}: {}", followed.log());
        self.follow(answered);
    }

    fn traced(&self, command: &Command) -> Command {
        let mut traced = Command::new("strace");
        traced
            .args(trace::OPTIONS)
            .arg("-o")
            .arg(&self.log)
            .arg("--")
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => traced.env(name, value),
                None => traced.env_remove(name),
            };
        }
        traced.current_dir("/").stdin(std::process::Stdio::null());
        traced
    }

    /// What was recorded.
    ///
    /// # Panics
    /// If what was followed is not what is there.
    pub fn finish(self) -> Timeline {
        let differences = self.disk.differs(&self.top).expect("the directory can be read");
        assert!(differences.is_empty(), "the recording is not what happened:\n{}", differences.join("\n"));
        self.timeline
    }

    fn follow(&mut self, answered: &[SystemTime]) {
        let text = std::fs::read_to_string(&self.log).expect("strace writes its log");
        self.open.clear();
        self.current = None;
        let mut answered: Vec<u64> = answered.iter().map(|at| micros(*at)).collect();
        answered.sort_unstable();
        let mut answered = answered.into_iter().peekable();
        // Lines in which calls ended, and how many operations there were then.
        let mut ended = vec![(0, self.timeline.ops)];
        for call in trace::calls(&text) {
            while answered.next_if(|at| *at < call.at).is_some() {
                self.timeline.mark();
            }
            let before = ended.partition_point(|(line, _)| *line < call.began).max(1) - 1;
            self.call(&call, ended[before].1);
            ended.push((call.ended, self.timeline.ops));
        }
        answered.for_each(|_| self.timeline.mark());
    }

    /// Does what a call did; a sync covers the first `covered` operations.
    fn call(&mut self, call: &Call, covered: usize) {
        match call.name.as_str() {
            "open" | "openat" | "openat2" | "creat" => self.opened(call),
            "close" => self.close(call),
            "fcntl" | "dup" | "dup2" | "dup3" => self.duplicate(call),
            "lseek" => self.seek(call),
            "read" | "readv" => self.advance(call),
            "write" | "pwrite64" | "writev" => self.write(call),
            "chdir" => self.current = self.named(call, None, 0),
            "fchdir" => self.current = self.descriptor(call, 0).map(|(_, node)| node),
            "copy_file_range" => self.copy(call),
            "ftruncate" | "truncate" | "fallocate" => self.resize(call),
            "fsync" | "fdatasync" | "syncfs" | "sync" => self.sync(call, covered),
            "mkdir" | "mkdirat" | "symlink" | "symlinkat" | "mknod" | "mknodat" => self.make(call),
            "link" | "linkat" => self.link(call),
            "unlink" | "unlinkat" | "rmdir" => self.unlink(call),
            "rename" | "renameat" | "renameat2" => self.rename(call),
            "chmod" | "fchmod" | "fchmodat" | "chown" | "fchown" | "lchown" | "fchownat" | "utimensat" | "setxattr"
            | "lsetxattr" | "fsetxattr" | "removexattr" | "lremovexattr" | "fremovexattr" => self.attribute(call),
            name if HARMLESS.contains(&name) => {}
            _ => self.unknown(call),
        }
    }

    fn unknown(&self, call: &Call) {
        let below = |path: &Vec<u8>| path.starts_with(self.top.as_os_str().as_bytes());
        let index = |path: &Vec<u8>| path.ends_with(b"-shm");
        // The index of SQLite's log is mapped; nothing else is by who may write.
        let reads = call.name == "mmap" && !(call.arg(2).contains("PROT_WRITE") && call.arg(3).contains("MAP_SHARED"));
        let ours = call.paths().into_iter().find(below);
        assert!(ours.is_none_or(|path| reads || index(&path)), "a call that is not followed: {}", call.text);
    }

    fn op(&mut self, op: Op) {
        self.disk.apply(&op, How::Whole);
        self.timeline.op(op);
    }

    /// The number and node of a descriptor, if it is on something below the directory.
    fn descriptor(&self, call: &Call, at: usize) -> Option<(i64, Ino)> {
        let found = call.descriptor(at)?;
        let number = found.number?;
        found.path.starts_with(self.top.as_os_str().as_bytes()).then_some(())?;
        let open = self.open.get(&number);
        Some((number, open.unwrap_or_else(|| panic!("descriptor {number} was never opened: {}", call.text)).node))
    }

    /// Where a path leads: a name in a directory; `None` is elsewhere. `base` is the argument with a descriptor, if there is one.
    fn place(&self, call: &Call, base: Option<usize>, at: usize) -> Option<Name> {
        let path = call.string(at)?;
        let (mut directory, rest) = match self.beginning(call, base, &path)? {
            (Some(node), rest) => (node, rest),
            (None, _) => return None,
        };
        let mut parts = rest.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").peekable();
        while let Some(part) = parts.next() {
            if part == b".." {
                directory = self.disk.above(directory)?.0;
            } else if parts.peek().is_none() {
                return Some((directory, part.to_vec()));
            } else {
                directory = self.disk.find(&(directory, part.to_vec()))?;
            }
        }
        // It ends with the directory itself: by the name that it has above.
        self.disk.above(directory)
    }

    /// Where a path begins, and what is left of it.
    fn beginning<'a>(&self, call: &Call, base: Option<usize>, path: &'a [u8]) -> Option<(Option<Ino>, &'a [u8])> {
        if let Some(rest) = path.strip_prefix(self.top.as_os_str().as_bytes()) {
            return (rest.is_empty() || rest[0] == b'/').then_some((Some(TOP), rest));
        }
        if let Some(rest) = path.strip_prefix(b"/proc/self/fd/") {
            let end = rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len());
            let number: i64 = std::str::from_utf8(&rest[..end]).ok()?.parse().ok()?;
            return Some((self.open.get(&number).map(|open| open.node), &rest[end..]));
        }
        if path.starts_with(b"/") {
            return None;
        }
        let directory = match base.and_then(|base| call.descriptor(base)).and_then(|found| found.number) {
            Some(_) => self.descriptor(call, base?)?.1,
            None => self.current?,
        };
        Some((Some(directory), path))
    }

    /// The node that a path or, where that is empty or null, a descriptor names.
    fn named(&self, call: &Call, base: Option<usize>, at: usize) -> Option<Ino> {
        let path = call.string(at).unwrap_or_default();
        if path.is_empty() {
            return Some(self.descriptor(call, base?)?.1);
        }
        match self.beginning(call, base, &path)? {
            (node, rest) if rest.iter().all(|byte| *byte == b'/') => node,
            _ => self.disk.find(&self.place(call, base, at)?),
        }
    }

    fn node(&mut self, kind: Kind, mode: u32) -> (Ino, Arc<Node>) {
        let ino = self.next;
        self.next += 1;
        let xattrs = std::collections::BTreeMap::new();
        (ino, Arc::new(Node { kind, mode: mode & 0o7777 & !self.umask, owner: self.owner, time: None, xattrs }))
    }

    fn opened(&mut self, call: &Call) {
        let (base, path) = if call.name.starts_with("openat") { (Some(0), 1) } else { (None, 0) };
        let flags = if call.name == "creat" { "O_CREAT|O_TRUNC" } else { call.arg(path + 1) };
        let flags = flags.to_owned();
        let place = self.place(call, base, path);
        let mut node = self.named(call, base, path);
        if flags.contains("O_TMPFILE") && node.is_some() {
            let (ino, is) = self.node(Kind::file(), call.number(path + 2).unwrap_or(0) as u32);
            self.op(Op::Make { at: None, node: ino, is });
            node = Some(ino);
        } else if let (None, Some(at)) = (node, place) {
            assert!(flags.contains("O_CREAT"), "what is opened was never made: {}", call.text);
            let (ino, is) = self.node(Kind::file(), mode(call, path));
            self.op(Op::Make { at: Some(at), node: ino, is });
            node = Some(ino);
        } else if let (Some(node), true) = (node, flags.contains("O_TRUNC")) {
            self.op(Op::Resize { node, length: 0 });
        }
        assert!(node.is_none() || !flags.contains("SYNC"), "writes that sync are not followed: {}", call.text);
        match node {
            Some(node) => {
                let offset = (!flags.contains("O_APPEND")).then_some(0);
                self.open.insert(call.result, Open { node, offset, since: call.ended });
            }
            None => drop(self.open.remove(&call.result)),
        }
    }

    /// A close that ends late may be of what the number was before.
    fn close(&mut self, call: &Call) {
        let Some(number) = call.descriptor(0).and_then(|found| found.number) else { return };
        if self.open.get(&number).is_some_and(|open| open.since < call.began) {
            self.open.remove(&number);
        }
    }

    fn duplicate(&mut self, call: &Call) {
        if call.name == "fcntl" && !call.arg(1).starts_with("F_DUPFD") {
            return;
        }
        let Some((number, _)) = self.descriptor(call, 0) else {
            self.open.remove(&call.result);
            return;
        };
        let open = Open { since: call.ended, ..self.open[&number].clone() };
        self.open.insert(call.result, open);
    }

    fn seek(&mut self, call: &Call) {
        let Some((number, _)) = self.descriptor(call, 0) else { return };
        if let Some(offset) = self.open.get_mut(&number).and_then(|open| open.offset.as_mut()) {
            *offset = call.result as u64;
        }
    }

    fn advance(&mut self, call: &Call) {
        let Some((number, _)) = self.descriptor(call, 0) else { return };
        if let Some(offset) = self.open.get_mut(&number).and_then(|open| open.offset.as_mut()) {
            *offset += call.result as u64;
        }
    }

    fn write(&mut self, call: &Call) {
        let Some((number, node)) = self.descriptor(call, 0) else { return };
        let mut bytes = if call.name == "writev" { call.vector(1) } else { call.string(1).unwrap_or_default() };
        bytes.truncate(call.result as usize);
        assert_eq!(bytes.len() as i64, call.result, "bytes are missing: {}", call.text);
        let offset = if call.name == "pwrite64" {
            call.number(3).expect("an offset")
        } else {
            let end = self.length(node);
            let open = self.open.get_mut(&number).expect("found above");
            let offset = open.offset.unwrap_or(end);
            open.offset = open.offset.map(|offset| offset + bytes.len() as u64);
            offset
        };
        self.op(Op::Write { node, offset, bytes: Arc::new(bytes) });
    }

    /// What the kernel copies is what was there when the call ended.
    fn copy(&mut self, call: &Call) {
        let (Some((from, source)), Some((to, node))) = (self.descriptor(call, 0), self.descriptor(call, 2)) else {
            return self.unknown(call);
        };
        let count = call.result as u64;
        let offsets = [(from, 1), (to, 3)].map(|(number, at)| {
            let given = call.arg(at).trim_matches(['[', ']']).parse().ok();
            let open = self.open.get_mut(&number).expect("found above");
            let offset = given.or(open.offset).unwrap_or_else(|| panic!("an offset is missing: {}", call.text));
            if given.is_none() {
                open.offset = Some(offset + count);
            }
            offset
        });
        let Some(Kind::File { data, .. }) = self.disk.node(source).map(|node| &node.kind) else { return };
        let mut bytes = data.get(offsets[0] as usize..).unwrap_or_default().to_vec();
        bytes.resize(count as usize, 0);
        self.op(Op::Write { node, offset: offsets[1], bytes: Arc::new(bytes) });
    }

    fn length(&self, node: Ino) -> u64 {
        match self.disk.node(node).map(|node| &node.kind) {
            Some(Kind::File { length, .. }) => *length,
            _ => 0,
        }
    }

    fn resize(&mut self, call: &Call) {
        let node = if call.name == "truncate" {
            self.named(call, None, 0)
        } else {
            self.descriptor(call, 0).map(|(_, node)| node)
        };
        let Some(node) = node else { return };
        let length = if call.name == "fallocate" {
            assert_eq!(call.arg(1), "0", "only growth is followed: {}", call.text);
            self.length(node).max(call.number(2).unwrap_or(0) + call.number(3).unwrap_or(0))
        } else {
            call.number(1).expect("a length")
        };
        self.op(Op::Resize { node, length });
    }

    fn sync(&mut self, call: &Call, covered: usize) {
        let found = self.descriptor(call, 0);
        let synced = match (call.name.as_str(), found) {
            ("sync", _) | ("syncfs", Some(_)) => Synced::All,
            (name, Some((_, node))) => Synced::Node { node, attributes: name == "fsync" },
            _ => return,
        };
        self.timeline.sync(synced, covered);
    }

    fn make(&mut self, call: &Call) {
        let (base, path) = match call.name.as_str() {
            "mkdirat" | "mknodat" => (Some(0), 1),
            "symlink" => (None, 1),
            "symlinkat" => (Some(1), 2),
            _ => (None, 0),
        };
        let Some(at) = self.place(call, base, path) else { return };
        let (kind, mode) = match call.name.as_str() {
            "mkdir" | "mkdirat" => (Kind::Directory(Default::default()), call.number(path + 1).unwrap_or(0) as u32),
            "symlink" | "symlinkat" => (Kind::Symlink(call.string(0).unwrap_or_default()), 0o777),
            _ => special(call, path),
        };
        let (node, is) = self.node(kind, mode);
        let is = match is.kind {
            Kind::Symlink(_) => Arc::new(Node { mode: 0o777, ..(*is).clone() }),
            _ => is,
        };
        self.op(Op::Make { at: Some(at), node, is });
    }

    fn link(&mut self, call: &Call) {
        let (from, to) = if call.name == "link" { ((None, 0), (None, 1)) } else { ((Some(0), 1), (Some(2), 3)) };
        let Some(at) = self.place(call, to.0, to.1) else { return };
        let node = self.named(call, from.0, from.1);
        let node = node.unwrap_or_else(|| panic!("what is linked was never made: {}", call.text));
        self.op(Op::Link { at, node });
    }

    fn unlink(&mut self, call: &Call) {
        let (base, path) = if call.name == "unlinkat" { (Some(0), 1) } else { (None, 0) };
        let Some(at) = self.place(call, base, path) else { return };
        // What the kernel made by itself, as overlayfs does in its work directory, is not known.
        if let Some(node) = self.disk.find(&at) {
            self.op(Op::Unlink { at, node });
        }
    }

    fn rename(&mut self, call: &Call) {
        let (from, to) = if call.name == "rename" { ((None, 0), (None, 1)) } else { ((Some(0), 1), (Some(2), 3)) };
        let (from, to) = (self.place(call, from.0, from.1), self.place(call, to.0, to.1));
        assert!(!call.arg(4).contains("WHITEOUT"), "not followed: {}", call.text);
        match (from, to) {
            (Some(a), Some(b)) if call.arg(4).contains("EXCHANGE") => {
                let nodes = self.disk.find(&a).zip(self.disk.find(&b));
                let nodes = nodes.unwrap_or_else(|| panic!("what is exchanged was never made: {}", call.text));
                self.op(Op::Exchange { a, b, nodes });
            }
            (Some(from), Some(to)) => {
                let node = self.disk.find(&from);
                let node = node.unwrap_or_else(|| panic!("what is renamed was never made: {}", call.text));
                self.op(Op::Rename { from, to, node });
            }
            (None, None) => {}
            _ => panic!("a rename into or out of the directory is not followed: {}", call.text),
        }
    }

    fn attribute(&mut self, call: &Call) {
        let name = call.name.as_str();
        let by_descriptor = matches!(name, "fchmod" | "fchown" | "fsetxattr" | "fremovexattr");
        let (node, next) = match name {
            "fchmodat" | "fchownat" | "utimensat" => (self.named(call, Some(0), 1), 2),
            _ if by_descriptor => (self.descriptor(call, 0).map(|(_, node)| node), 1),
            _ => (self.named(call, None, 0), 1),
        };
        let Some(node) = node else { return };
        let id = |at: usize| call.number(at).map(|id| id as u32);
        let attribute = match name {
            "chmod" | "fchmod" | "fchmodat" => Attribute::Mode(call.number(next).expect("a mode") as u32),
            "utimensat" => match time(call.arg(2)) {
                Some(time) => Attribute::Time(time),
                None => return,
            },
            _ if name.contains("own") => Attribute::Owner(id(next), id(next + 1)),
            _ => {
                let key = call.string(next).expect("a name");
                Attribute::Xattr(key, name.contains("setxattr").then(|| call.string(next + 1).unwrap_or_default()))
            }
        };
        self.op(Op::Change { node, attribute });
    }
}

/// The mode of a file that is opened and made.
fn mode(call: &Call, path: usize) -> u32 {
    let structured = call.arg(path + 1).split_once("mode=").map(|(_, rest)| rest);
    let text = structured.unwrap_or_else(|| call.arg(path + 2));
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    u32::from_str_radix(&text[..end], 8).unwrap_or(0)
}

/// A device or the like: `S_IFCHR|0666, makedev(0x1, 0x3)`.
fn special(call: &Call, path: usize) -> (Kind, u32) {
    let (format, mode) = call.arg(path + 1).split_once('|').unwrap_or((call.arg(path + 1), "0"));
    let format = match format {
        "S_IFCHR" => 0o020_000,
        "S_IFBLK" => 0o060_000,
        "S_IFIFO" => 0o010_000,
        "S_IFSOCK" => 0o140_000,
        _ => panic!("a node that is not followed: {}", call.text),
    };
    let number =
        |text: &str| u32::from_str_radix(text.trim().trim_start_matches("0x").trim_end_matches(')'), 16).unwrap_or(0);
    let device = call.arg(path + 2).strip_prefix("makedev(").and_then(|numbers| numbers.split_once(','));
    let device = device.map_or(0, |(major, minor)| rustix::fs::makedev(number(major), number(minor)));
    (Kind::Special { format, device }, u32::from_str_radix(mode, 8).unwrap_or(0))
}

/// The time of the last change that is set: `None`, it is left; `Some(None)`, it is now.
fn time(text: &str) -> Option<Option<(i64, i64)>> {
    let last = text.rsplit("tv_sec=").next().filter(|_| text.contains("tv_sec="));
    let last = match last {
        _ if text.ends_with("UTIME_OMIT]") => return None,
        _ if text == "NULL" || text.ends_with("UTIME_NOW]") => return Some(None),
        Some(last) => last,
        None => panic!("times that are not followed: {text}"),
    };
    let (seconds, rest) = last.split_once(", tv_nsec=")?;
    let digits = rest.split('}').next()?;
    match digits {
        "UTIME_OMIT" => None,
        "UTIME_NOW" => Some(None),
        digits => Some(Some((seconds.parse().ok()?, digits.parse().ok()?))),
    }
}
