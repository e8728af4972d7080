//! Pulling: resolve, plan, one pipeline a layer, records.
//!
//! ```text
//! origin ──▶ Pieces ──▶ ingest (hash) ──▶ commit blob
//!                  └──▶ pipe ──▶ apply (inflate, hash, write files) ──▶ commit snapshot in order
//! ```
//! Nothing is read back from disk that was just in memory, unless a transfer was resumed or the driver needs the parent
//! first; then the layer is unpacked from its blob.

mod blobs;
mod origin;
mod pipe;
mod records;
mod together;
mod unpack;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use orlop_content::BlobReader;
use orlop_metadata::{Asking, Brought, Scope, ScopedContent};
use orlop_oci::{Descriptor, Digest, Document, MediaKind, Platform, Reference, RepositoryName};
use orlop_remote::{Client, Resolved};
use orlop_snapshot::apply;
use tokio::sync::oneshot;
use tracing::field::Empty;
use tracing::{Span, info_span};

use crate::gate::{Remote, Vouched, Way};
use crate::span::within;
use crate::walk::{self, Node, Select, Tree};
use crate::{Error, ErrorKind, Event, Images, Outcome, Result, Sink, near};
pub(crate) use blobs::Stored;
pub(crate) use origin::Registry;
pub(crate) use origin::{Nowhere, Origin, collect, lacking};
pub(crate) use pipe::{PIECE, PipeWriter, pipe};
pub(crate) use records::{Naming, add_source, document_labels, names, record_labels};
use together::{Ahead, Trees};
use unpack::{Actives, Ready, Step, Stop, Unpacker};

/// What to pull.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// As the user wrote it.
    pub reference: String,
    /// Platforms; none: the host's.
    pub platforms: Vec<Platform>,
    /// Every platform, attestations included.
    pub all_platforms: bool,
    /// Content only, no snapshots.
    pub no_unpack: bool,
    /// The snapshot driver; empty: the default.
    pub snapshotter: String,
    /// Pin what is pulled.
    pub pin: bool,
    /// Layers at once; 0: the default.
    pub concurrency: usize,
}

/// How documents become an image on this node.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) select: Select,
    /// Platforms to unpack; none: content only.
    pub(crate) unpack: Vec<Platform>,
    pub(crate) snapshotter: String,
    pub(crate) concurrency: usize,
}

/// Takes what reads behind a write; none where nothing can.
pub(crate) type Followed<'a> = &'a (dyn Fn(Option<Arc<dyn BlobReader>>) + Send + Sync);

/// One operation that brings content in, under one lease.
pub(crate) struct Session<'a> {
    pub(crate) images: &'a Images,
    pub(crate) scope: Scope,
    pub(crate) content: ScopedContent,
    pub(crate) origin: &'a dyn Origin,
    pub(crate) sink: Sink<'a>,
    pub(crate) transferred: AtomicU64,
    pub(crate) present: AtomicU64,
    /// Blobs that this operation wrote before it knew what they are: not here before, though they are found here.
    pub(crate) arrived: BTreeSet<Digest>,
    /// Is given what reads behind each write that is begun.
    pub(crate) follow: Option<Followed<'a>>,
    /// What the gate said.
    pub(crate) vouched: Vouched,
    /// Blobs whose bytes are here and that are not visible yet.
    brought: Mutex<Vec<(Descriptor, Brought)>>,
    /// Held while some of them are made visible.
    showing: tokio::sync::Mutex<()>,
}

impl Images {
    /// Pulls one image.
    ///
    /// # Errors
    /// Nothing becomes visible on an error. Blobs that were complete stay until the next collection, parts of blobs
    /// for a day, and the next try uses them.
    pub async fn pull(&self, scope: &Scope, client: &Client, request: &PullRequest, sink: Sink<'_>) -> Result<Outcome> {
        let reference: Reference = request.reference.parse()?;
        let Some(repository) = reference.repository().cloned() else {
            let reason = "an image ID names no repository: give the image's name, or name@digest";
            return Err(Error::Name { name: request.reference.clone(), reason });
        };
        let span = info_span!("pull", image = %reference, error = Empty);
        within(span, self.pull_reference(scope, client, request, &reference, repository, sink)).await
    }

    async fn pull_reference(
        &self,
        scope: &Scope,
        client: &Client,
        request: &PullRequest,
        reference: &Reference,
        repository: RepositoryName,
        sink: Sink<'_>,
    ) -> Result<Outcome> {
        let resolved = match self.meaning(client, reference).await {
            Err(Error::Remote(error)) if error.is_not_found() => {
                self.note_absence(scope, client, reference).await;
                return Err(error.into());
            }
            other => other?,
        };
        sink(Event::Target(resolved.descriptor.clone()));
        let scope = &scope.clone().with_host(&resolved.host);
        let plan = self.pull_plan(request);
        let origin = Registry::new(self, client, repository);
        let outcome = self
            .under_lease(scope, async |scope| {
                let session = self.session(scope, &origin, sink);
                let name = reference.to_string();
                let [tags, referrers] = signatures(client, &origin.repository);
                let by = session.admit(&name, &resolved.descriptor, &[&tags, &referrers]).await?;
                let tree = session.bring(&name, &resolved.descriptor, &plan).await?;
                let verified = crate::gate::label(&resolved.descriptor.digest, &by);
                let naming = Naming { reference: Some(reference.clone()), name, pin: request.pin, verified };
                let named = [(tree, vec![naming])];
                let names = session.record(&named, &plan).await?;
                Ok(session.outcome(names, &named[0].0))
            })
            .await?;
        // The tag may have moved away from another image.
        self.reconcile_image(&scope.namespace, &reference.to_string()).await?;
        Ok(outcome)
    }

    /// What a reference means. Only its registry says what a tag means; of a digest for which that cannot be asked, neighbours
    /// have the document.
    async fn meaning(&self, client: &Client, reference: &Reference) -> Result<Resolved> {
        let asked = resolve(client, reference);
        let (Some(repository), Some(digest), true) =
            (reference.repository(), reference.digest(), self.nearby().is_some())
        else {
            return asked.await;
        };
        tokio::pin!(asked);
        let failed = match tokio::time::timeout(near::REGISTRY_PATIENCE, &mut asked).await {
            Ok(Err(Error::Remote(error))) if error.is_temporary() => Some(error),
            Ok(other) => return other,
            Err(_) => None,
        };
        match (self.near_document(repository, digest).await, failed) {
            (Some(found), _) => Ok(found),
            (None, Some(error)) => Err(error.into()),
            (None, None) => asked.await,
        }
    }

    async fn near_document(&self, repository: &RepositoryName, digest: &Digest) -> Option<Resolved> {
        let wanted = near::Wanted { repository, digest, size: None, offset: 0, is_document: true };
        let (bytes, host) = near::small(&near::Part::new(self), self.ledger(), wanted).await?;
        let document = Document::parse_as(bytes, None, digest.algorithm()).ok()?;
        Some(Resolved { descriptor: document.descriptor(), host })
    }

    fn pull_plan(&self, request: &PullRequest) -> Plan {
        let host = self.platform().clone();
        let platforms = if request.platforms.is_empty() { vec![host.clone()] } else { request.platforms.clone() };
        let select = if request.all_platforms { Select::All } else { Select::Best(platforms.clone()) };
        let unpack = match (request.no_unpack, request.all_platforms) {
            (true, _) => Vec::new(),
            (false, true) => vec![host],
            (false, false) => platforms,
        };
        self.plan(select, unpack, &request.snapshotter, request.concurrency)
    }

    pub(crate) fn plan(&self, select: Select, unpack: Vec<Platform>, snapshotter: &str, concurrency: usize) -> Plan {
        let settings = self.settings();
        let snapshotter = if snapshotter.is_empty() { settings.snapshotter.clone() } else { snapshotter.to_owned() };
        let concurrency = if concurrency == 0 { settings.concurrency } else { concurrency };
        Plan { select, unpack, snapshotter, concurrency: concurrency.max(1) }
    }

    pub(crate) fn session<'a>(&'a self, scope: Scope, origin: &'a dyn Origin, sink: Sink<'a>) -> Session<'a> {
        Session {
            images: self,
            content: self.store().content(&scope),
            scope,
            origin,
            sink,
            transferred: AtomicU64::new(0),
            present: AtomicU64::new(0),
            arrived: BTreeSet::new(),
            follow: None,
            vouched: Vouched::default(),
            brought: Mutex::default(),
            showing: tokio::sync::Mutex::default(),
        }
    }

    /// How layers are applied here.
    pub(crate) fn apply_options(&self) -> apply::Options {
        apply::Options {
            squash_owners: !rustix::process::geteuid().is_root(),
            limits: self.settings().limits.layer.clone(),
            admission: Some(Arc::new(self.store().gate())),
        }
    }
}

/// Asks the registry what a reference means.
pub(crate) async fn resolve(client: &Client, reference: &Reference) -> Result<orlop_remote::Resolved> {
    let asked = async { Ok(client.resolve(reference).await?) };
    within(info_span!("resolve", image = %reference, error = Empty), asked).await
}

/// Where a repository has the signatures of its images.
pub(crate) fn signatures<'a>(client: &'a Client, repository: &'a RepositoryName) -> [Remote<'a>; 2] {
    [Way::Tag, Way::Referrers].map(|way| Remote { client, repository, way })
}

/// A blob to bring, and the steps of images that wait for it.
struct Job {
    blob: Descriptor,
    waiting: Vec<(Step, oneshot::Sender<Ready>)>,
}

/// An image to unpack: its steps from `from` on are not there yet.
struct Stack {
    steps: Vec<Step>,
    from: usize,
    ready: Vec<oneshot::Receiver<Ready>>,
}

impl<'a> Session<'a> {
    /// The same for somebody who reads behind its writes.
    pub(crate) fn followed(self, follow: Followed<'a>) -> Self {
        Self { follow: Some(follow), ..self }
    }
}

impl Session<'_> {
    /// Brings everything that `plan` wants of `target`: documents, blobs, snapshots. Writes no record.
    pub(crate) async fn bring(&self, name: &str, target: &Descriptor, plan: &Plan) -> Result<Tree> {
        let tree = walk::walk(self, name, target, &plan.select).await?;
        if let Some(missing) = tree.missing.first() {
            return Err(Error::Incomplete { name: name.to_owned(), missing: vec![missing.clone()] });
        }
        self.bring_tree(&tree, plan).await?;
        Ok(tree)
    }

    /// Brings the blobs and snapshots of what was walked.
    pub(crate) async fn bring_tree(&self, tree: &Tree, plan: &Plan) -> Result<()> {
        let unpacker = self.unpacker(plan)?;
        if !plan.unpack.is_empty() {
            tree.manifests().filter_map(not_unpacked).for_each(|message| (self.sink)(Event::Message(message)));
        }
        let stop = Stop(&unpacker);
        let result = self.bring_blobs(tree, plan, &unpacker).await;
        drop(stop);
        // After an error too: what has come stays until the next collection.
        let result = match self.show_brought().await {
            Err(error) if result.is_ok() => Err(error),
            _ => result,
        };
        if result.is_err() {
            let tidy = move |_: &_| {
                unpacker.clean_up();
                Ok(())
            };
            self.images.blocking(tidy).await?;
        }
        result
    }

    fn unpacker(&self, plan: &Plan) -> Result<Unpacker> {
        let snapshots = self.images.store().snapshots(&self.scope, &plan.snapshotter)?;
        let (actives, trees) = (Arc::new(Actives::default()), Arc::new(Trees::default()));
        Ok(Unpacker { snapshots, actives, trees, options: self.images.apply_options() })
    }

    async fn bring_blobs(&self, tree: &Tree, plan: &Plan, unpacker: &Unpacker) -> Result<()> {
        let (jobs, stacks) = self.jobs(tree, plan, unpacker).await?;
        let ahead = Ahead::new(jobs.iter().map(|job| &job.blob));
        let blobs = async {
            let begun = async |(at, job): (usize, Job)| {
                self.announce(&ahead, at).await?;
                self.job(job, unpacker).await
            };
            let mut running =
                futures::stream::iter(jobs.into_iter().enumerate()).map(begun).buffer_unordered(plan.concurrency);
            while let Some(done) = running.next().await {
                done?;
            }
            Ok(())
        };
        let commits = futures::future::try_join_all(
            stacks.into_iter().map(async |s| self.commit_steps(unpacker, &s.steps, s.from, s.ready).await),
        );
        // A failed job drops its senders, and the commits that wait for them fail too; the jobs are polled first, so
        // that the cause is reported.
        futures::try_join!(blobs, commits).map(|_| ())
    }

    /// One job for each distinct blob of the wanted manifests, and one stack for each image to unpack.
    async fn jobs(&self, tree: &Tree, plan: &Plan, unpacker: &Unpacker) -> Result<(Vec<Job>, Vec<Stack>)> {
        let mut order = Vec::new();
        let mut jobs: BTreeMap<Digest, Job> = BTreeMap::new();
        let mut stacks = Vec::new();
        let mut planned = BTreeSet::new();
        for node in tree.manifests() {
            let Some(manifest) = node.document.manifest() else { continue };
            let blobs = node.image.is_none().then_some(&manifest.config).into_iter().chain(&manifest.layers);
            for blob in blobs {
                jobs.entry(blob.digest.clone()).or_insert_with(|| {
                    order.push(blob.digest.clone());
                    Job { blob: blob.clone(), waiting: Vec::new() }
                });
            }
            let Some(steps) = steps(node).filter(|_| wants_unpack(node, tree, plan)) else { continue };
            if !steps.last().is_some_and(|top| planned.insert(top.chain.clone())) {
                continue;
            }
            let from = self.existing(unpacker, &steps).await?;
            let mut ready = Vec::new();
            for step in &steps[from..] {
                let (sender, receiver) = oneshot::channel();
                ready.push(receiver);
                if let Some(job) = jobs.get_mut(&step.layer.digest) {
                    job.waiting.push((step.clone(), sender));
                }
            }
            if unpacker.snapshots.supports_rebase() {
                unpacker.trees.plan(steps[from..].iter().map(|step| step.chain.clone()));
            }
            stacks.push(Stack { steps, from, ready });
        }
        Ok((order.iter().filter_map(|digest| jobs.remove(digest)).collect(), stacks))
    }

    async fn existing(&self, unpacker: &Unpacker, steps: &[Step]) -> Result<usize> {
        let (unpacker, scope, steps) = (unpacker.clone(), self.scope.clone(), steps.to_vec());
        self.images.blocking(move |store| unpacker.existing(&scope, store, &steps)).await
    }

    async fn job(&self, job: Job, unpacker: &Unpacker) -> Result<()> {
        if job.waiting.is_empty() || !unpacker.snapshots.supports_rebase() {
            self.bring_blob(&job.blob, &mut || None).await?;
            job.waiting.into_iter().for_each(|(_, sender)| answer(sender, Ready::Stored));
            return Ok(());
        }
        for (at, (step, sender)) in job.waiting.into_iter().enumerate() {
            let key = match at {
                0 => self.stream_and_apply(&job.blob, &step, unpacker).await?,
                _ => self.apply_stored(unpacker, &step, "").await?,
            };
            answer(sender, Ready::Applied(key));
        }
        Ok(())
    }

    /// Brings a layer and applies it while it comes; from the store, if it is there or was resumed.
    async fn stream_and_apply(&self, blob: &Descriptor, step: &Step, unpacker: &Unpacker) -> Result<String> {
        // Unpacking is beside the transfer, not a part of it.
        let mut asking = self.images.store().asking(blob.size);
        let (mut applying, mut anew, beside) = (None, false, Span::current());
        let brought = self
            .bring_blob(blob, &mut || {
                if applying.is_some() {
                    // What came first was not the layer: what comes now is unpacked when it is verified.
                    anew = true;
                    return None;
                }
                let (writer, reader) = pipe();
                let (step, unpacker) = (step.clone(), unpacker.clone());
                let apply = move |_: &_| unpacker.apply(&step, "", reader);
                applying = Some(self.images.blocking_within(beside.clone(), apply));
                Some(writer)
            })
            .await;
        let applied = match applying {
            // Awaited after an error too: it ends since its pipe has broken, and leaves nothing behind.
            Some(applying) => Some(applying.await),
            None => None,
        };
        brought?;
        match applied {
            // What came was cut, and when it was to come anew somebody else had brought it.
            Some(Err(Error::Layer { source: orlop_snapshot::Error::Source { .. }, .. })) | None => {
                self.apply_stored(unpacker, step, "").await
            }
            Some(Err(_)) if anew => self.apply_stored(unpacker, step, "").await,
            // It is unpacked anew, from what came.
            Some(Err(error)) if self.makes_room(&error, &mut asking).await? => {
                self.apply_stored(unpacker, step, "").await
            }
            Some(applied) => {
                let (key, bytes) = applied?;
                self.unpacked(blob, bytes);
                Ok(key)
            }
        }
    }

    /// Whether an error says that no space is left, and something gave way since.
    pub(crate) async fn makes_room(&self, error: &Error, asking: &mut Asking) -> Result<bool> {
        if error.kind() != ErrorKind::NoSpace {
            return Ok(false);
        }
        let mut asked = std::mem::take(asking);
        let (made, asked) = self
            .images
            .blocking(move |store| {
                let made = store.make_room(&mut asked);
                Ok((made, asked))
            })
            .await?;
        *asking = asked;
        Ok(made)
    }

    /// What the operation came to.
    pub(crate) fn outcome(&self, names: Vec<String>, tree: &Tree) -> Outcome {
        Outcome {
            names,
            target: tree.target.clone(),
            image_ids: tree.manifests().filter_map(|n| n.image.as_ref().map(|i| i.id.clone())).collect(),
            verified_by: self.vouched.by(),
            bytes_transferred: self.transferred.load(Ordering::Relaxed),
            bytes_present: self.present.load(Ordering::Relaxed),
        }
    }
}

/// Tells the commits that a layer is ready; they are gone only if the whole operation failed.
fn answer(sender: oneshot::Sender<Ready>, ready: Ready) {
    drop(sender.send(ready));
}

/// What to tell of a manifest that looks like an image's and has something else than file system layers.
fn not_unpacked(node: &Node) -> Option<String> {
    let manifest = node.document.manifest().filter(|_| node.image.is_none() && !node.descriptor.is_attestation())?;
    let strange =
        manifest.layers.iter().find(|l| !l.kind().is_layer() && manifest.config.kind() == MediaKind::Config)?;
    Some(format!(
        "{} is kept and cannot be unpacked: its layer {} has the media type {:?}, which is no file system layer's",
        node.document.digest(),
        strange.digest,
        strange.media_type
    ))
}

/// The steps of an image, lowest first.
fn steps(node: &Node) -> Option<Vec<Step>> {
    let (image, manifest) = (node.image.as_ref()?, node.document.manifest()?);
    let parts = manifest.layers.iter().zip(&image.diff_ids).zip(&image.chain);
    let step = |((layer, diff_id), chain): ((&Descriptor, _), _)| Step {
        layer: layer.clone(),
        diff_id: Clone::clone(diff_id),
        chain: Clone::clone(chain),
    };
    Some(parts.map(step).collect())
}

/// Whether an image is the best one of a platform that is to be unpacked.
pub(crate) fn wants_unpack(node: &Node, tree: &Tree, plan: &Plan) -> bool {
    let digest = node.document.digest();
    plan.unpack.iter().any(|p| tree.image_for(p).is_some_and(|best| best.document.digest() == digest))
}
