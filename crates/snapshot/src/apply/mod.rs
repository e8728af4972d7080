//! Turns a layer's tar into files.
//!
//! Four threads share the work: the caller's reads (`feed`), one unpacks (`inflate`), one hashes (`hash`), one parses the tar
//! and writes files (`extract`); between them go a fixed number of buffers, so memory is bounded whatever the layer's size. All
//! but the caller's are confined ([`crate::confinement`]), and end with the layer.
//!
//! What entries mean follows containerd's serial apply onto overlayfs: entries take effect in the tar's order, the
//! last one of a name wins; a directory entry over a directory keeps its content; a parent that no entry made is
//! created and takes its attributes from the layers below; symbolic links *of this layer* are followed inside the
//! root where they are parents of an entry, those of lower layers are replaced by directories; `./` is ignored.
//!
//! # Invariants
//! - Every operation goes through a directory descriptor that was reached from the root without following a link in
//!   the kernel; the last component is never followed. So nothing outside the root can be named.
//! - A file is always created anew (`O_EXCL`); what was there is removed first.
//! - The digest covers every byte of the uncompressed stream, those after the tar's end too.

mod attributes;
mod deferred;
mod directories;
mod entry;
mod extract;
mod feed;
mod frames;
mod hash;
mod image;
mod inflate;
mod limits;
mod meter;
mod source;
mod tree;
mod whiteout;

use std::fmt;
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::{Scope, ScopedJoinHandle};

use orlop_oci::DiffId;

use crate::error::At as _;
use crate::{ApplyTarget, Error, Result, confine};
pub(crate) use attributes::{describe_link, set_times_of as set_times};
pub(crate) use deferred::{Deferred, DeferredLink};
pub(crate) use directories::times;
pub(crate) use entry::{Metadata, Time, shorten};
pub use limits::Limits;

/// Says whether there is room for what is written, beyond what the file system says by itself.
///
/// It is asked by the confined thread: whatever it looks at must be open already.
pub trait Admission: fmt::Debug + Send + Sync {
    /// Refuses so many bytes.
    fn admit(&self, bytes: u64) -> io::Result<()>;
}

/// How to apply.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What a layer may be at most.
    pub limits: Limits,
    /// Gives everything to the calling user instead of the owners that the layer names.
    pub squash_owners: bool,
    /// Who is asked before something is written; `None`: nobody.
    pub admission: Option<Arc<dyn Admission>>,
}

/// What was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the uncompressed stream.
    pub diff_id: DiffId,
    /// The uncompressed stream's length in bytes.
    pub tar_bytes: u64,
    /// The bytes that were read from the source.
    pub source_bytes: u64,
    /// The tar's entries, whiteouts included.
    pub entries: u64,
}

/// Bytes per buffer between the threads: small enough to stay in a core's cache from one to the next.
const CHUNK_BYTES: usize = 256 * 1024;
/// Buffers in flight: enough to ride out one slow directory or one slow read; 2 MiB a layer.
const CHUNKS: usize = 8;

/// Applies a layer's tar, plain or packed with gzip or zstd, to a directory.
///
/// Reads `reader` to its end. The caller compares the digest; a tree whose layer failed or does not match is to be
/// removed, it may be half written.
///
/// # Durability
/// None: [`crate::Driver::commit`] makes the tree durable.
///
/// # Errors
/// [`Error::Hostile`], [`Error::Limit`], [`Error::Damaged`], [`Error::LinkTarget`] if the layer is at fault,
/// [`Error::Source`] if `reader` failed, [`Error::Unsupported`] and [`Error::Io`] if the machine is.
pub fn apply(reader: impl Read + Send, target: &ApplyTarget, options: &Options) -> Result<Applied> {
    // Asked here: the confined thread cannot.
    let owner = attributes::Owner::current(options.squash_owners);
    let beside = [&target.deferred, &target.applied].into_iter().filter_map(|path| path.as_deref()?.parent());
    let directories: Vec<&Path> = std::iter::once(target.root.as_path()).chain(beside).collect();
    let (inflated, diff_id, entries) = pumped(reader, &options.limits, |source| {
        confine::to_directory(&directories)?;
        extract::run(source, target, options, owner)
    })?;
    Ok(Applied { diff_id, tar_bytes: inflated.tar_bytes, source_bytes: inflated.source_bytes, entries })
}

/// Reads a layer's tar, plain or packed, and writes nothing: `each` is told of every entry in the tar's order, its path
/// relative to the root and, of a file with content of its own, the length of that. The last entry of a path is what counts.
/// `each` runs in a thread that may compute and nothing else ([`crate::confinement`]).
///
/// # Errors
/// As [`apply`], where the layer or `reader` is at fault.
pub fn list(reader: impl Read + Send, limits: &Limits, each: impl FnMut(&[u8], Option<u64>) + Send) -> Result<()> {
    let listed = pumped(reader, limits, |source| {
        confine::to_memory()?;
        extract::list(source, limits, each)
    });
    listed.map(drop)
}

/// Has one thread unpack, one hash, and one `consume` what comes out, which confines itself first, while this one reads.
fn pumped<T: Send>(
    reader: impl Read + Send,
    limits: &Limits,
    consume: impl FnOnce(source::Source) -> Result<T> + Send,
) -> Result<(inflate::Inflated, DiffId, T)> {
    let (full, unhashed) = mpsc::sync_channel(CHUNKS);
    let (hashed, arriving) = mpsc::sync_channel(CHUNKS);
    let (recycle, empty) = mpsc::channel();
    let (fed, feeding) = mpsc::sync_channel(feed::PIECES);
    let (spent, unfed) = mpsc::channel();
    // The receivers are alive: they are a few lines up.
    (0..CHUNKS).for_each(|_| drop(recycle.send(vec![0; CHUNK_BYTES])));
    (0..feed::PIECES).for_each(|_| drop(spent.send(Vec::new())));
    // The first call looks what holds here and says what does not, which the threads cannot.
    confine::confinement();
    let told = Told::current();
    let (produced, diff_id, consumed) = std::thread::scope(|scope| {
        let producer = spawn(scope, "orlop-unpack", move || {
            confine::to_memory()?;
            inflate::run(feed::Feed::new(feeding, spent), limits, &empty, &full)
        })?;
        let hasher = spawn(scope, "orlop-hash", move || {
            confine::to_memory()?;
            Ok(hash::run(unhashed, hashed))
        })?;
        let source = source::Source::new(arriving, recycle);
        let consumer = spawn(scope, "orlop-write", move || told.within(|| consume(source)))?;
        feed::pump(reader, &unfed, fed);
        Ok((joined(producer), joined(hasher), joined(consumer)))
    })?;
    // A failed producer ends the stream early, which the consumer can only report as a cut: the cause comes first.
    match (produced?, diff_id?) {
        (Some(inflated), Some(diff_id)) => Ok((inflated, diff_id, consumed?)),
        _ => Err(consumed.err().unwrap_or(Error::Damaged { reason: "it stopped early".into() })),
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    run: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, run).at("start the thread", name)
}

/// Where a thread's log lines belong.
struct Told {
    span: tracing::Span,
    dispatch: tracing::Dispatch,
}

impl Told {
    fn current() -> Self {
        Self { span: tracing::Span::current(), dispatch: tracing::dispatcher::get_default(Clone::clone) }
    }

    fn within<T>(self, run: impl FnOnce() -> T) -> T {
        let Self { span, dispatch } = self;
        tracing::dispatcher::with_default(&dispatch, || span.in_scope(run))
    }
}
