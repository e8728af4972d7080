//! Bytes by digest from elsewhere than their registry, and the ledger of who was asked for each blob.
//!
//! What a name means only its registry says; what a digest means cannot be told wrongly, since the bytes are hashed. So blobs
//! and documents are asked for nearby first ([`Neighbours`]), wherever those come from, and at the registry for what is not
//! there or breaks off.
//!
//! # Invariants
//! - Nothing from a neighbour is used before it was hashed, by whoever writes it into the store ([`crate::pull`]) or here.
//! - Wrong bytes cost one more try: neighbours learn who gave them, and that blob comes from the registry then.
//! - Whoever was asked stands in the [`Ledger`], with what was answered and how fast it was.
//!
//! # What is given on while it comes
//! A blob that is being fetched is told of to the neighbours ([`Neighbours::relay`]), who may take what of it is written already and the
//! rest as it comes. They are told whoever gives it, how far it is, and at last whether its bytes are right: that before the last byte can
//! be had ([`Relay`]). While the registry gives a blob, neighbours look for one of theirs that is ahead, and the rest comes from him
//! ([`Neighbours::ahead`]).

mod ledger;
mod mixed;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt};
use orlop_content::BlobReader;
use orlop_oci::{Digest, Digester, MAX_MANIFEST_BYTES, RepositoryName};

pub use ledger::{Asking, BlobSource, Ledger, Source};
pub(crate) use mixed::{Ways, blob};

use crate::Images;

/// How long a registry may take to say what a digest is before neighbours are asked too.
pub(crate) const REGISTRY_PATIENCE: Duration = Duration::from_secs(1);

/// What is asked for nearby.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Where its registry has it.
    pub repository: &'a RepositoryName,
    /// Which blob or document.
    pub digest: &'a Digest,
    /// Bytes in all, if that is known.
    pub size: Option<u64>,
    /// From which byte on.
    pub offset: u64,
    /// Whether it is a manifest or an index.
    pub is_document: bool,
}

/// Bytes as they come. After an error it ends; the error says why, for people.
pub type NearStream = Pin<Box<dyn Stream<Item = Result<Bytes, String>> + Send>>;

/// Somebody gives.
pub struct Given {
    /// Who, as [`Neighbours::disproved`] is told.
    pub host: String,
    /// Where the stream begins.
    pub from: u64,
    /// How much of the blob he had when he was asked, if he had not all of it.
    pub had: Option<u64>,
    /// What, not verified.
    pub stream: NearStream,
}

/// A blob on its way to this node, of which neighbours are given what is here.
pub trait Relay: Send + Sync {
    /// Whoever gives it from now on; `None`: somebody is looked for.
    fn fed(&self, by: Option<Source>, host: &str);

    /// So many bytes of it can be read.
    fn has(&self, bytes: u64);

    /// No more comes. `is_right` says that all bytes are here and hash to the digest; else whoever takes it is broken off before its
    /// last byte. Only the first call counts.
    fn ended(&self, is_right: bool);
}

/// What asking nearby came to.
#[derive(Default)]
pub struct Opening {
    /// Who was asked in vain, or why nobody was.
    pub asked: Vec<Asking>,
    /// Whoever gives.
    pub given: Option<Given>,
}

/// Others that may have bytes by their digest.
#[async_trait]
pub trait Neighbours: Send + Sync {
    /// Finds somebody who gives. It takes a second at most, or somewhat longer while those who have it are busy; then the
    /// registry is asked. Dropping the stream ends the transfer.
    async fn open(&self, wanted: Wanted<'_>) -> Opening;

    /// A blob is fetched from now on: what of it is in `bytes`, from 0 to [`Relay::has`], neighbours may be given. `None` if they are not,
    /// for whatever reason.
    fn relay(&self, _wanted: Wanted<'_>, _bytes: Arc<dyn BlobReader>) -> Option<Arc<dyn Relay>> {
        None
    }

    /// Somebody who has more of a blob than this node, which others than neighbours are giving it: the relay tells how much. Waits
    /// until there is somebody.
    async fn ahead(&self, _wanted: Wanted<'_>) -> Given {
        std::future::pending().await
    }

    /// What came of a blob was wrong. `givers` are those that gave any of it, `alone` says that nothing else was among it.
    fn disproved(&self, digest: &Digest, givers: &[String], alone: bool);

    /// How it is among neighbours.
    fn report(&self) -> Neighbourhood;
}

/// How it is among neighbours: what people are shown.
#[derive(Debug, Clone, Default)]
pub struct Neighbourhood {
    /// What this node is called there.
    pub id: String,
    /// Where others find it.
    pub addresses: Vec<String>,
    /// Where it gives blobs.
    pub serves: String,
    /// Digests that it announces.
    pub announced: u64,
    /// Bytes that it gave.
    pub sent: u64,
    /// Bytes that it was given.
    pub received: u64,
    /// Blobs whose bytes were wrong.
    pub disproved: u64,
    /// Requests of others that were given a blob while it came here.
    pub relayed: u64,
    /// Transfers that moved from a registry to a neighbour that was ahead.
    pub moved: u64,
    /// Requests of others: given, not here, refused since too many were running.
    pub served: [u64; 3],
    /// The others.
    pub neighbours: Vec<Neighbour>,
}

/// One of the others.
#[derive(Debug, Clone, Default)]
pub struct Neighbour {
    /// What it is called.
    pub id: String,
    /// Where it is.
    pub addresses: Vec<String>,
    /// Whether a connection to it is open.
    pub is_connected: bool,
    /// Whether it counts as near.
    pub is_near: bool,
    /// How long it takes to answer.
    pub latency: Option<Duration>,
    /// Bytes a second that it gave.
    pub rate: Option<u64>,
    /// Bytes that it gave.
    pub received: u64,
    /// Blobs that it gave.
    pub blobs: u64,
    /// How often it could not be reached, broke off or was too slow.
    pub failures: u64,
    /// Blobs of it that were wrong.
    pub lies: u64,
    /// For how long it is not asked.
    pub excluded_for: Option<Duration>,
}

/// The neighbours' part in one operation: who gave what, until it is verified.
#[derive(Default)]
pub(crate) struct Part {
    neighbours: Option<Arc<dyn Neighbours>>,
    given: Mutex<HashMap<Digest, Givers>>,
}

#[derive(Default)]
struct Givers {
    hosts: Vec<String>,
    /// The registry gave some of it too, or it was begun before.
    others: bool,
    /// What they gave was wrong: nobody else is asked than the registry.
    disproved: bool,
    /// Who is told how far it is.
    relay: Option<Arc<dyn Relay>>,
}

impl std::fmt::Debug for Givers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Givers").field("hosts", &self.hosts).field("others", &self.others).finish_non_exhaustive()
    }
}

/// A blob that neighbours are told of, for as long as this lives. If nobody said that it is right, it is not.
pub(crate) struct Relaying {
    relay: Arc<dyn Relay>,
    part: Arc<Part>,
    digest: Digest,
}

impl Relaying {
    /// So many bytes are written.
    pub(crate) fn has(&self, bytes: u64) {
        self.relay.has(bytes);
    }

    /// All of it is written, and right.
    pub(crate) fn is_right(&self) {
        self.relay.ended(true);
    }
}

impl Drop for Relaying {
    fn drop(&mut self) {
        self.relay.ended(false);
        self.part.with(&self.digest, |givers| givers.relay = None);
    }
}

impl Part {
    pub(crate) fn new(images: &Images) -> Self {
        Self { neighbours: images.nearby(), given: Mutex::default() }
    }

    /// Whom to ask for this digest.
    fn neighbours(&self, digest: &Digest) -> Option<&Arc<dyn Neighbours>> {
        let disproved = self.with(digest, |givers| givers.disproved);
        self.neighbours.as_ref().filter(|_| !disproved)
    }

    fn with<T>(&self, digest: &Digest, f: impl FnOnce(&mut Givers) -> T) -> T {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        f(given.entry(digest.clone()).or_default())
    }

    /// Tells neighbours of a blob that is fetched from now on, of which the first bytes are here.
    pub(crate) fn relay(self: &Arc<Self>, wanted: Wanted<'_>, bytes: Arc<dyn BlobReader>) -> Option<Relaying> {
        let relay = self.neighbours.as_ref()?.relay(wanted, bytes)?;
        relay.has(wanted.offset);
        self.with(wanted.digest, |givers| givers.relay = Some(Arc::clone(&relay)));
        Some(Relaying { relay, part: Arc::clone(self), digest: wanted.digest.clone() })
    }

    /// What came of a digest is wrong. True if neighbours gave any of it, so that it may come anew from the registry.
    pub(crate) fn disproved(&self, digest: &Digest) -> bool {
        let (hosts, alone) = self.with(digest, |givers| {
            givers.disproved = true;
            (std::mem::take(&mut givers.hosts), !givers.others)
        });
        let Some(neighbours) = self.neighbours.as_ref().filter(|_| !hosts.is_empty()) else { return false };
        tracing::warn!(%digest, ?hosts, alone, "what came from nearby was wrong; it is fetched anew");
        neighbours.disproved(digest, &hosts, alone && hosts.len() == 1);
        true
    }
}

/// A small blob in memory from nearby, verified, and who gave it; `None` if nobody has it. `size` is what it must have.
pub(crate) async fn small(part: &Part, ledger: &Ledger, wanted: Wanted<'_>) -> Option<(Bytes, String)> {
    let Wanted { repository, digest, size, .. } = wanted;
    let neighbours = part.neighbours(digest)?;
    let mut entry = ledger.begin(repository, digest, size.unwrap_or_default());
    let opening = neighbours.open(wanted).await;
    entry.add(opening.asked);
    let Given { host, mut stream, .. } = opening.given?;
    let asking = entry.ask(Source::Neighbour, &host);
    let limit = size.unwrap_or(MAX_MANIFEST_BYTES).min(MAX_MANIFEST_BYTES);
    let mut bytes = BytesMut::new();
    while let Some(piece) = stream.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(why) => {
                entry.end(asking, bytes.len() as u64, &why);
                return None;
            }
        }
        if bytes.len() as u64 > limit {
            break;
        }
    }
    let mut digester = Digester::new(digest.algorithm());
    digester.update(&bytes);
    let count = bytes.len() as u64;
    if digester.finish() != *digest {
        entry.end(asking, count, "gave wrong bytes");
        part.with(digest, |givers| givers.hosts.push(host));
        part.disproved(digest);
        return None;
    }
    entry.end(asking, count, "gave it");
    Some((bytes.freeze(), host))
}
