//! A blob's bytes from nearby, and from the registry for what does not come from there.
//!
//! While the registry gives, a neighbour that is ahead is looked for. When there is one, the rest comes from him and the request to the
//! registry is ended: of many nodes that begin at once only those that are ahead stay at the registry.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, Bytes};
use futures::StreamExt;
use futures::future::BoxFuture;
use orlop_oci::{Descriptor, RepositoryName};
use orlop_remote::{BlobStream, Client};

use super::ledger::{Entry, Pending};
use super::{Given, Ledger, NearStream, Part, Relay, Source, Wanted};

/// Neighbours that may break off before the registry is asked for the rest.
const MAX_BREAKS: u32 = 4;

/// Where a blob may come from.
pub(crate) struct Ways<'a> {
    pub(crate) part: &'a Arc<Part>,
    pub(crate) ledger: &'a Ledger,
    pub(crate) client: &'a Client,
    pub(crate) repository: &'a RepositoryName,
    /// Counts what the registry gives.
    pub(crate) pulled: &'a Arc<AtomicU64>,
}

/// A blob from `offset` on.
///
/// # Errors
/// What the registry says, when it is asked.
pub(crate) async fn blob(ways: Ways<'_>, descriptor: &Descriptor, offset: u64) -> orlop_remote::Result<BlobStream> {
    let part = ways.part;
    let relay = part.with(&descriptor.digest, |givers| {
        // What was begun before came from who knows where.
        givers.others |= offset > 0;
        givers.relay.clone()
    });
    let mut mixed = Mixed {
        part: Arc::clone(part),
        client: ways.client.clone(),
        entry: ways.ledger.begin(ways.repository, &descriptor.digest, descriptor.size),
        repository: ways.repository.clone(),
        pulled: Arc::clone(ways.pulled),
        descriptor: descriptor.clone(),
        position: offset,
        from: From::Nobody,
        breaks: 0,
        relay,
    };
    mixed.open().await?;
    Ok(Box::pin(futures::stream::unfold(Some(mixed), |state| async move {
        let mut mixed = state?;
        match mixed.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(mixed))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })))
}

/// Whose bytes come now.
enum From {
    Nobody,
    Neighbour(Nearby, Running),
    Registry(BlobStream, Running, Look),
}

/// A neighbour's bytes; the first of them may be here already.
struct Nearby {
    stream: NearStream,
    skip: u64,
}

/// Looks for a neighbour that is ahead.
type Look = BoxFuture<'static, Given>;

/// Somebody who gives, since a certain byte.
struct Running {
    pending: Option<Pending>,
    since: u64,
}

/// What came next from the registry: its bytes, or somebody who takes its place.
enum Came {
    Bytes(Option<orlop_remote::Result<Bytes>>),
    Ahead(Given),
}

struct Mixed {
    part: Arc<Part>,
    client: Client,
    repository: RepositoryName,
    pulled: Arc<AtomicU64>,
    descriptor: Descriptor,
    position: u64,
    from: From,
    breaks: u32,
    relay: Option<Arc<dyn Relay>>,
    /// Written when this is dropped.
    entry: Entry,
}

impl Mixed {
    /// Finds somebody for what is still to come.
    async fn open(&mut self) -> orlop_remote::Result<()> {
        self.tell(None, "");
        let digest = &self.descriptor.digest;
        let may_be_near = self.breaks < MAX_BREAKS && self.position < self.descriptor.size;
        let near = self.part.neighbours(digest).filter(|_| may_be_near).cloned();
        if let Some(neighbours) = near {
            let (size, offset) = (Some(self.descriptor.size), self.position);
            let wanted = Wanted { repository: &self.repository, digest, size, offset, is_document: false };
            let opening = neighbours.open(wanted).await;
            self.entry.add(opening.asked);
            if let Some(given) = opening.given {
                self.take(given);
                return Ok(());
            }
        }
        // Others wait for who is the first to ask the registry, and not for its answer.
        self.tell(Some(Source::Registry), "");
        let pending = self.entry.ask(Source::Registry, self.repository.domain());
        match self.client.blob(&self.repository, &self.descriptor, self.position).await {
            Ok(stream) => {
                self.part.with(&self.descriptor.digest, |givers| givers.others = true);
                let running = Running { pending: Some(pending), since: self.position };
                self.from = From::Registry(stream, running, self.look());
                Ok(())
            }
            Err(error) => {
                self.entry.end(pending, 0, &error.to_string());
                Err(error)
            }
        }
    }

    fn tell(&self, by: Option<Source>, host: &str) {
        if let Some(relay) = &self.relay {
            relay.fed(by, host);
        }
    }

    /// A neighbour gives from now on.
    fn take(&mut self, given: Given) {
        let Given { host, from, stream, .. } = given;
        self.tell(Some(Source::Neighbour), &host);
        let pending = Some(self.entry.ask(Source::Neighbour, &host));
        self.part.with(&self.descriptor.digest, |givers| {
            if !givers.hosts.contains(&host) {
                givers.hosts.push(host);
            }
        });
        let near = Nearby { stream, skip: self.position.saturating_sub(from) };
        self.from = From::Neighbour(near, Running { pending, since: self.position });
    }

    /// Looks for whoever is ahead. Nobody is, where nobody is told how far this is: two might wait for each other.
    fn look(&self) -> Look {
        let digest = self.descriptor.digest.clone();
        let neighbours = self.part.neighbours(&digest).filter(|_| self.relay.is_some() && self.breaks < MAX_BREAKS);
        let Some(neighbours) = neighbours.cloned() else { return Box::pin(std::future::pending()) };
        let (repository, size, offset) = (self.repository.clone(), Some(self.descriptor.size), self.position);
        Box::pin(async move {
            let wanted = Wanted { repository: &repository, digest: &digest, size, offset, is_document: false };
            neighbours.ahead(wanted).await
        })
    }

    async fn next(&mut self) -> orlop_remote::Result<Option<Bytes>> {
        loop {
            let why = match &mut self.from {
                From::Nobody => return Ok(None),
                From::Registry(stream, _, look) => {
                    let came = tokio::select! {
                        bytes = stream.next() => Came::Bytes(bytes),
                        given = look => Came::Ahead(given),
                    };
                    match came {
                        Came::Bytes(came) => return self.registry_gave(came.transpose()),
                        Came::Ahead(given) => self.move_to(given),
                    }
                    continue;
                }
                From::Neighbour(near, _) => match near.stream.next().await {
                    Some(Ok(bytes)) => match near.new_of(bytes) {
                        bytes if bytes.is_empty() => continue,
                        bytes if bytes.len() as u64 <= self.descriptor.size - self.position => {
                            self.position += bytes.len() as u64;
                            return Ok(Some(bytes));
                        }
                        _ => "gave more bytes than the blob has".to_owned(),
                    },
                    Some(Err(why)) => why,
                    None if self.position == self.descriptor.size => {
                        self.ended("gave it");
                        return Ok(None);
                    }
                    None => "ended before the blob's end".to_owned(),
                },
            };
            tracing::debug!(digest = %self.descriptor.digest, position = self.position, why, "going on elsewhere");
            self.ended(&why);
            self.breaks += 1;
            if self.position == self.descriptor.size {
                return Ok(None);
            }
            self.open().await?;
        }
    }

    /// Goes on with a neighbour, if he is still ahead: only then nobody waits for himself, over however many others.
    fn move_to(&mut self, given: Given) {
        if given.had.is_some_and(|had| had <= self.position) || given.from > self.position {
            let look = self.look();
            if let From::Registry(_, _, old) = &mut self.from {
                *old = look;
            }
            return;
        }
        tracing::debug!(digest = %self.descriptor.digest, position = self.position, host = given.host, "a peer is ahead");
        self.ended("was left for a peer that is ahead");
        self.take(given);
    }

    fn registry_gave(&mut self, came: orlop_remote::Result<Option<Bytes>>) -> orlop_remote::Result<Option<Bytes>> {
        match &came {
            Ok(Some(bytes)) => {
                self.position += bytes.len() as u64;
                self.pulled.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            Ok(None) => self.ended("gave it"),
            Err(error) => self.ended(&error.to_string()),
        }
        came
    }

    /// Whoever gave does not any more.
    fn ended(&mut self, said: &str) {
        let (From::Neighbour(_, running) | From::Registry(_, running, _)) =
            std::mem::replace(&mut self.from, From::Nobody)
        else {
            return;
        };
        if let Some(pending) = running.pending {
            self.entry.end(pending, self.position - running.since, said);
        }
    }
}

impl Nearby {
    /// What of a piece is not here yet.
    fn new_of(&mut self, mut bytes: Bytes) -> Bytes {
        let known = self.skip.min(bytes.len() as u64);
        self.skip -= known;
        bytes.advance(usize::try_from(known).unwrap_or(usize::MAX));
        bytes
    }
}

impl Drop for Mixed {
    fn drop(&mut self) {
        let said = if self.position == self.descriptor.size { "gave it" } else { "was not wanted any more" };
        self.ended(said);
    }
}
