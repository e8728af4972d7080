//! The leases under which operations work, and those that killed processes left.
//!
//! # Invariants
//! - A lease ends with its operation, however that ends: when it is dropped in the middle too, and while the runtime
//!   shuts down. What it held goes at the next collection, but for writes in progress: those rest for a day.
//! - A lease names the process that made it. Nobody ends the lease of a process that is killed; without more, what it
//!   fetched would be held until the lease expires, a day later, even after everything was removed. So operations end
//!   leases whose process is certainly gone: one of the same boot and the same PID namespace that runs no more.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use orlop_metadata::{self as metadata, Labels, Scope, Store};
use rustix::io::Errno;
use tokio::runtime::Handle;

use crate::{Images, Result, labels};

impl Images {
    /// Runs `work` under the scope's lease, or under one of its own that ends with it. A root that cannot be written
    /// needs none: nothing can be deleted from it either.
    ///
    /// # Cancellation
    /// Dropped at any point, it ends its lease in the background.
    pub async fn under_lease<T>(&self, scope: &Scope, work: impl AsyncFnOnce(Scope) -> Result<T>) -> Result<T> {
        if scope.lease.is_some() || self.store().read_only_reason().is_some() {
            return work(scope.clone()).await;
        }
        let (plain, seconds) = (scope.clone(), self.settings().lease_seconds);
        let lease = self
            .blocking(move |store| {
                end_orphans(store, &plain.namespace)?;
                begin(store, &plain, seconds)
            })
            .await?;
        let result = work(scope.clone().with_lease(lease.id())).await;
        if let Some(held) = lease.take() {
            self.blocking(move |_| {
                drop(held);
                Ok(())
            })
            .await?;
        }
        result
    }
}

/// The lease of an operation that runs. Dropped, it is ended on the blocking pool.
struct Lease(Option<Held>);

/// A lease that ends when this is dropped, on the thread that drops it.
struct Held {
    store: Store,
    namespace: String,
    id: String,
}

impl Lease {
    fn id(&self) -> &str {
        self.0.as_ref().map_or("", |held| &held.id)
    }

    fn take(mut self) -> Option<Held> {
        self.0.take()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(held) = self.0.take() else { return };
        // A pool that shuts down drops what it is given: then the lease is ended on this thread.
        if let Ok(runtime) = Handle::try_current() {
            drop(runtime.spawn_blocking(move || drop(held)));
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        match self.store.release_lease(&self.namespace, &self.id) {
            // Whoever ended it meanwhile wanted what is wanted here.
            Ok(()) | Err(metadata::Error::NotFound { .. }) => {}
            // What was done is done; the lease ends with its time, or with an operation of the next process.
            Err(error) => tracing::warn!(%error, lease = self.id, "a lease could not be ended"),
        }
    }
}

fn begin(store: &Store, scope: &Scope, seconds: i64) -> Result<Lease> {
    let expires = Timestamp::now().saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX);
    let mut map = Labels::from([(labels::GC_EXPIRE.to_owned(), expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())]);
    map.extend(Owner::this().map(|owner| (labels::OWNER.to_owned(), owner.to_string())));
    let lease = store.create_lease(&scope.namespace, "", map)?;
    Ok(Lease(Some(Held { store: store.clone(), namespace: scope.namespace.clone(), id: lease.id })))
}

/// Ends the leases of processes that are certainly gone.
pub(crate) fn end_orphans(store: &Store, namespace: &str) -> Result<()> {
    let Some(this) = Owner::this() else { return Ok(()) };
    for lease in store.leases(namespace, &[])? {
        let owner = lease.labels.get(labels::OWNER).and_then(|text| Owner::parse(text));
        if !owner.is_some_and(|owner| owner.is_gone(&this)) {
            continue;
        }
        match store.release_lease(namespace, &lease.id) {
            // Somebody else was faster.
            Ok(()) | Err(metadata::Error::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A process, told from any other that ever runs on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Owner {
    boot: String,
    pid_namespace: String,
    pid: u32,
    /// Clock ticks from boot to the process' start: a number that is used again has another one.
    started: u64,
}

impl Owner {
    /// This process; `None` where `/proc` does not tell.
    fn this() -> Option<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
        let pid_namespace = fs::read_link("/proc/self/ns/pid").ok()?.to_str()?.to_owned();
        let pid = std::process::id();
        Some(Self { boot, pid_namespace, pid, started: started(pid)? })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(' ');
        let (boot, pid_namespace) = (parts.next()?.to_owned(), parts.next()?.to_owned());
        let (pid, started) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        parts.next().is_none().then_some(Self { boot, pid_namespace, pid, started })
    }

    /// Whether the process runs no more, as far as `this` one can know.
    fn is_gone(&self, this: &Self) -> bool {
        if self.boot != this.boot || self.pid_namespace != this.pid_namespace {
            return false;
        }
        match started(self.pid) {
            Some(started) => started != self.started,
            // `/proc` may hide what belongs to others; the kernel tells whether there is such a process.
            None => self.process().is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(Errno::SRCH)),
        }
    }

    fn process(&self) -> Option<rustix::process::Pid> {
        rustix::process::Pid::from_raw(i32::try_from(self.pid).ok()?)
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {} {}", self.boot, self.pid_namespace, self.pid, self.started)
    }
}

/// When a process started (proc(5), `stat`, field 22); `None` if there is none or it cannot be told.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command in field 2 may have spaces and parentheses; nothing after its last one has.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_survives_its_text_and_only_a_dead_one_is_gone() {
        let this = Owner::this().unwrap();
        assert_eq!(Owner::parse(&this.to_string()), Some(this.clone()));
        assert!(!this.is_gone(&this));
        let reused = Owner { started: this.started + 1, ..this.clone() };
        assert!(reused.is_gone(&this), "another process has its number");
        let elsewhere = Owner { pid_namespace: "pid:[1]".to_owned(), ..reused.clone() };
        assert!(!elsewhere.is_gone(&this), "of another PID namespace nothing is known");
        assert!(
            !Owner { boot: "other".to_owned(), ..reused }.is_gone(&this),
            "the clock of another boot tells nothing"
        );
        assert_eq!(Owner::parse("a b 1"), None);
        assert_eq!(Owner::parse("a b 1 2 3"), None);
    }
}
