//! A blob's bytes from nearby, and from the registry for what does not come from there.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use orlop_oci::{Descriptor, RepositoryName};
use orlop_remote::{BlobStream, Client};

use super::ledger::{Entry, Pending};
use super::{Given, Ledger, NearStream, Part, Source, Wanted};

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
    };
    if offset > 0 {
        // What was begun before came from who knows where.
        part.with(&descriptor.digest, |givers| givers.others = true);
    }
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
    Neighbour(NearStream, Running),
    Registry(BlobStream, Running),
}

/// Somebody who gives, since a certain byte.
struct Running {
    pending: Option<Pending>,
    since: u64,
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
    /// Written when this is dropped.
    entry: Entry,
}

impl Mixed {
    /// Finds somebody for what is still to come.
    async fn open(&mut self) -> orlop_remote::Result<()> {
        let digest = &self.descriptor.digest;
        let may_be_near = self.breaks < MAX_BREAKS && self.position < self.descriptor.size;
        let near = self.part.neighbours(digest).filter(|_| may_be_near).cloned();
        if let Some(neighbours) = near {
            let (size, offset) = (Some(self.descriptor.size), self.position);
            let wanted = Wanted { repository: &self.repository, digest, size, offset, is_document: false };
            let opening = neighbours.open(wanted).await;
            self.entry.add(opening.asked);
            if let Some(Given { host, stream }) = opening.given {
                let pending = Some(self.entry.ask(Source::Neighbour, &host));
                self.part.with(digest, |givers| {
                    if !givers.hosts.contains(&host) {
                        givers.hosts.push(host);
                    }
                });
                self.from = From::Neighbour(stream, Running { pending, since: self.position });
                return Ok(());
            }
        }
        let pending = self.entry.ask(Source::Registry, self.repository.domain());
        match self.client.blob(&self.repository, &self.descriptor, self.position).await {
            Ok(stream) => {
                self.part.with(digest, |givers| givers.others = true);
                self.from = From::Registry(stream, Running { pending: Some(pending), since: self.position });
                Ok(())
            }
            Err(error) => {
                self.entry.end(pending, 0, &error.to_string());
                Err(error)
            }
        }
    }

    async fn next(&mut self) -> orlop_remote::Result<Option<Bytes>> {
        loop {
            let why = match &mut self.from {
                From::Nobody => return Ok(None),
                From::Registry(stream, _) => {
                    let came = stream.next().await.transpose();
                    return self.registry_gave(came);
                }
                From::Neighbour(stream, _) => match stream.next().await {
                    Some(Ok(bytes)) if bytes.is_empty() => continue,
                    Some(Ok(bytes)) if bytes.len() as u64 <= self.descriptor.size - self.position => {
                        self.position += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                    Some(Ok(_)) => "gave more bytes than the blob has".to_owned(),
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
        let (From::Neighbour(_, running) | From::Registry(_, running)) =
            std::mem::replace(&mut self.from, From::Nobody)
        else {
            return;
        };
        if let Some(pending) = running.pending {
            self.entry.end(pending, self.position - running.since, said);
        }
    }
}

impl Drop for Mixed {
    fn drop(&mut self) {
        let said = if self.position == self.descriptor.size { "gave it" } else { "was not wanted any more" };
        self.ended(said);
    }
}
