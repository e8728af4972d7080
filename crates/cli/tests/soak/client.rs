//! One client: what it does, and what must be so then.
//!
//! It alone uses its own image, names, blobs, leases and containers, so it knows what each call must answer. The layers
//! of its image, and the shared images, it has in common with all others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use orlop_api::containerd::services::containers::v1 as containers;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::WriteAction;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::runtime::v1 as cri;
use orlop_oci::Digest;
use orlop_testkit::image::noise;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::calls::{Calls, SNAPSHOTTER, Writing, spec};
use crate::ledger::Ledger;
use crate::shelf::{SHARED, Shelf, Shelved};

/// The namespace in which hash references are kept.
pub(crate) const CRI: &str = "k8s.io";
/// How long to wait until the server knows that a client has vanished.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client and what it knows.
pub(crate) struct Client {
    pub(crate) calls: Calls,
    number: usize,
    rng: StdRng,
    shelf: Arc<Shelf>,
    ledger: Arc<Ledger>,
    /// The names of its image that it has made.
    names: BTreeSet<String>,
    /// A lease that it keeps to the end, and the blob that only this lease holds.
    pub(crate) kept: Option<(String, String)>,
    /// So that nothing is made twice under one name.
    serial: u64,
}

impl Client {
    pub(crate) fn new(number: usize, calls: Calls, seed: u64, shelf: Arc<Shelf>, ledger: Arc<Ledger>) -> Self {
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(number as u64));
        Self { calls, number, rng, shelf, ledger, names: BTreeSet::new(), kept: None, serial: 0 }
    }

    /// Works until there is enough; then every other one takes its image away.
    pub(crate) async fn run(mut self) -> Self {
        while self.ledger.goes_on() {
            self.step().await;
        }
        if self.number.is_multiple_of(2) {
            self.remove().await;
        }
        self.look("the end").await;
        self
    }

    async fn step(&mut self) {
        let name = match self.rng.random_range(0..100) {
            _ if self.names.is_empty() && self.rng.random_ratio(1, 2) => {
                self.pull().await;
                "pull"
            }
            0..10 => {
                self.pull().await;
                "pull"
            }
            10..22 => {
                self.pull_shared().await;
                "pull a shared image"
            }
            22..32 => {
                self.list().await;
                "list"
            }
            32..42 => {
                self.tag().await;
                "tag"
            }
            42..50 => {
                self.untag().await;
                "untag"
            }
            50..56 => {
                self.remove().await;
                "remove"
            }
            56..64 => {
                self.remove_shared().await;
                "remove a shared image"
            }
            64..72 => {
                self.blob().await;
                "blob under a lease"
            }
            72..78 => {
                self.hold_own().await;
                "image under a lease"
            }
            78..84 => {
                self.hold_shared().await;
                "shared image under a lease"
            }
            84..89 => {
                self.vanish().await;
                "vanish in mid-write"
            }
            89..95 => {
                self.container().await;
                "container"
            }
            _ => {
                self.read().await;
                "read"
            }
        };
        self.ledger.operation(name);
    }

    fn own(&self) -> &Shelved {
        self.shelf.own(self.number)
    }

    fn is_cri(&self) -> bool {
        self.calls.namespace == CRI
    }

    fn next(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn coin(&mut self) -> bool {
        self.rng.random_ratio(1, 2)
    }

    /// The records of its image are those that it made, and where hash references are kept, those.
    pub(crate) async fn look(&self, when: &str) {
        let image = self.own();
        let found = self.calls.records(Some(format!("target.digest=={}", image.target()))).await;
        let found: BTreeSet<String> = found.into_iter().map(|record| record.name).collect();
        let mut expected = self.names.clone();
        if self.is_cri() && !expected.is_empty() {
            expected.insert(image.id.clone());
            expected.insert(format!("{}@{}", image.repository, image.target()));
        }
        assert_eq!(found, expected, "records of client {} after {when}", self.number);
    }

    async fn pull(&mut self) {
        let image = self.shelf.own(self.number);
        if self.is_cri() && self.rng.random_ratio(2, 3) {
            assert_eq!(self.calls.pull(&image.name).await, image.id);
        } else {
            self.calls.transfer(&image.name).await;
        }
        self.names.insert(image.name.clone());
        self.look("a pull").await;
    }

    async fn pull_shared(&mut self) {
        let image = self.shelf.shared(self.rng.random_range(0..SHARED));
        if self.is_cri() && self.rng.random_ratio(2, 3) {
            assert_eq!(self.calls.pull(&image.name).await, image.id);
        } else {
            self.calls.transfer(&image.name).await;
        }
        if let Some(found) = self.ledger.unless_expected("get what others delete", self.calls.image(&image.name).await)
        {
            assert_eq!(found.target.unwrap().digest, image.target().as_str());
        }
    }

    async fn list(&mut self) {
        self.look("anything").await;
        let image = self.own();
        for record in self.calls.records(None).await {
            let target = record.target.unwrap().digest;
            assert!(self.shelf.find(&target).is_some(), "{} points at {target}", record.name);
        }
        if self.is_cri() {
            let all = self.calls.cri().list_images(cri::ListImagesRequest::default()).await.expect("ListImages");
            let listed = all.into_inner().images.into_iter().any(|found| found.id == image.id);
            assert_eq!(listed, !self.names.is_empty(), "client {}", self.number);
            self.calls.cri().image_fs_info(cri::ImageFsInfoRequest {}).await.expect("ImageFsInfo");
        } else {
            let blobs: BTreeSet<String> = self.calls.blobs().await.into_iter().collect();
            let there = image.content.blobs.keys().all(|digest| blobs.contains(digest.as_str()));
            assert!(there || self.names.is_empty(), "client {}", self.number);
        }
    }

    async fn tag(&mut self) {
        let Some(source) = self.names.first().cloned() else { return };
        let serial = self.next();
        let name = format!("{}:tag-{serial}", self.own().repository);
        if self.coin() {
            self.calls.tag(&source, &name).await;
        } else {
            self.calls.create(&name, self.own()).await.expect("Images.Create");
        }
        let found = self.calls.image(&name).await.expect("what was made");
        assert_eq!(found.target.unwrap().digest, self.own().target().as_str());
        self.ledger.refused("create what is there", self.calls.create(&name, self.own()).await);
        self.names.insert(name);
        self.look("a tag").await;
    }

    async fn untag(&mut self) {
        let Some(name) = self.names.pop_last() else { return };
        let sync = self.coin();
        self.calls.delete(&name, sync).await.expect("Images.Delete");
        self.ledger.refused("get what was deleted", self.calls.image(&name).await);
        self.look("an untag").await;
    }

    /// Takes its image away. Nothing of it that nobody else has is left then.
    async fn remove(&mut self) {
        if self.names.is_empty() {
            return;
        }
        if self.is_cri() {
            let wanted = cri::RemoveImageRequest { image: spec(&self.own().id) };
            self.calls.cri().remove_image(wanted).await.expect("RemoveImage");
            let status = cri::ImageStatusRequest { image: spec(&self.own().id), verbose: false };
            let status = self.calls.cri().image_status(status).await.expect("ImageStatus").into_inner();
            assert_eq!(status.image, None);
        } else {
            let last = self.names.last().cloned();
            for name in &self.names {
                self.calls.delete(name, Some(name) == last.as_ref()).await.expect("Images.Delete");
            }
        }
        self.names.clear();
        self.look("a removal").await;
        self.is_gone().await;
    }

    async fn is_gone(&self) {
        for digest in [self.own().target().to_string(), self.own().id.clone()] {
            self.ledger.refused("get what was deleted", self.calls.info(&digest).await);
        }
    }

    async fn remove_shared(&mut self) {
        let (number, sync, by_id) = (self.rng.random_range(0..SHARED), self.coin(), self.coin());
        let image = self.shelf.shared(number);
        if self.is_cri() && by_id {
            let wanted = cri::RemoveImageRequest { image: spec(&image.id) };
            self.calls.cri().remove_image(wanted).await.expect("RemoveImage");
        } else {
            self.ledger.unless_expected("delete what others delete", self.calls.delete(&image.name, sync).await);
        }
    }

    async fn read(&mut self) {
        if !self.names.is_empty() {
            self.calls.read_all(self.own()).await;
        }
    }

    /// A blob lives as long as its lease, and no longer. Now and then one is kept to the end.
    async fn blob(&mut self) {
        let lease = self.calls.lease().await;
        let digest = self.write_whole(&lease).await;
        self.collect().await;
        self.calls.read(&digest).await;
        if self.kept.is_none() && self.rng.random_ratio(1, 4) {
            self.kept = Some((lease, digest));
            return;
        }
        self.calls.end(&lease, true).await;
        self.ledger.refused("get what was deleted", self.calls.info(&digest).await);
    }

    async fn write_whole(&mut self, lease: &str) -> String {
        let bytes = self.bytes();
        let digest = Digest::of(&bytes);
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let serial = self.next();
        let reference = format!("client {} write {serial}", self.number);
        let begun = self.calls.write(lease, piece(&reference, 0, first)).await;
        let (mut writing, _) = begun.expect("Content.Write");
        finish(&mut writing, &reference, first.len(), second, &digest).await;
        digest.to_string()
    }

    /// Bytes that no other blob has.
    fn bytes(&mut self) -> Vec<u8> {
        let (seed, length) = (self.rng.random(), self.rng.random_range(1..200_000));
        noise(seed, length)
    }

    /// Collects garbage and waits for it.
    async fn collect(&self) {
        let lease = self.calls.lease().await;
        self.calls.end(&lease, true).await;
    }

    /// An image without a name lives by a lease, with all that it has.
    async fn hold_own(&mut self) {
        if self.names.is_empty() {
            return;
        }
        let lease = self.calls.lease().await;
        self.calls.hold(&lease, self.own().target().as_str()).await;
        for name in std::mem::take(&mut self.names) {
            self.calls.delete(&name, true).await.expect("Images.Delete");
        }
        self.look("its names went while leased").await;
        self.calls.read_all(self.own()).await;
        if self.calls.unpacks {
            self.stat(&self.own().chain.to_string()).await.expect("the snapshot of a leased image");
        }
        self.calls.end(&lease, true).await;
        self.is_gone().await;
    }

    /// The same of an image that others pull and delete meanwhile: if its record was there all the time while the lease
    /// was made, the lease holds a whole image.
    async fn hold_shared(&mut self) {
        let image = self.shelf.shared(self.rng.random_range(0..SHARED));
        let get = || async {
            let found = self.calls.image(&image.name).await;
            self.ledger.unless_expected("get what others delete", found)
        };
        let Some(before) = get().await else { return };
        let lease = self.calls.lease().await;
        self.calls.hold(&lease, image.target().as_str()).await;
        let after = get().await;
        if after.is_some_and(|after| after.created_at == before.created_at) {
            self.collect().await;
            self.calls.read_all(image).await;
        }
        let sync = self.coin();
        self.calls.end(&lease, sync).await;
    }

    /// A write goes on, or is aborted, after its client has vanished.
    async fn vanish(&mut self) {
        let lease = self.calls.lease().await;
        let bytes = self.bytes();
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let serial = self.next();
        let reference = format!("client {} vanishes {serial}", self.number);
        let (writing, answer) = self.calls.write(&lease, piece(&reference, 0, first)).await.expect("Content.Write");
        assert_eq!(answer.offset, first.len() as i64);
        drop(writing);
        self.collect().await;
        if self.coin() {
            let (mut writing, at) = self.resume(&lease, &reference).await;
            assert_eq!(at, first.len() as i64, "what was acknowledged is there");
            let digest = Digest::of(&bytes);
            finish(&mut writing, &reference, first.len(), second, &digest).await;
            self.calls.read(digest.as_str()).await;
        } else {
            self.abort(&reference).await;
        }
        let status = content::StatusRequest { r#ref: reference };
        let status = self.calls.content().status(self.calls.plain(status)).await;
        self.ledger.refused("get what was deleted", status);
        let sync = self.coin();
        self.calls.end(&lease, sync).await;
    }

    async fn resume(&self, lease: &str, reference: &str) -> (Writing, i64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let opened =
                self.calls.write(lease, content::WriteContentRequest { r#ref: reference.into(), ..Default::default() });
            let case = "go on with a write whose client vanished";
            if let Some((writing, answer)) = self.ledger.unless_expected(case, opened.await) {
                return (writing, answer.offset);
            }
            assert!(Instant::now() < deadline, "{reference:?} stays locked");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn abort(&self, reference: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let wanted = self.calls.plain(content::AbortRequest { r#ref: reference.into() });
            let aborted = self.calls.content().abort(wanted).await;
            if self.ledger.unless_expected("abort a write whose client vanished", aborted).is_some() {
                return;
            }
            assert!(Instant::now() < deadline, "{reference:?} stays locked");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn stat(&self, key: &str) -> Result<snapshots::Info, tonic::Status> {
        let wanted = snapshots::StatSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key: key.into() };
        Ok(self.calls.snapshots().stat(self.calls.plain(wanted)).await?.into_inner().info.expect("info"))
    }

    /// A container keeps its snapshot when its image goes.
    async fn container(&mut self) {
        if self.names.is_empty() || !self.calls.unpacks {
            return;
        }
        let serial = self.next();
        let key = format!("container-{}-{serial}", self.number);
        let lease = self.calls.lease().await;
        let prepared = snapshots::PrepareSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.clone(),
            parent: self.own().chain.to_string(),
            ..Default::default()
        };
        self.calls.snapshots().prepare(self.calls.leased(&lease, prepared)).await.expect("Snapshots.Prepare");
        let container = containers::Container {
            id: key.clone(),
            image: self.own().name.clone(),
            runtime: Some(containers::container::Runtime { name: "none".into(), options: None }),
            snapshotter: SNAPSHOTTER.into(),
            snapshot_key: key.clone(),
            ..Default::default()
        };
        let wanted = containers::CreateContainerRequest { container: Some(container) };
        self.calls.containers().create(self.calls.plain(wanted)).await.expect("Containers.Create");
        let sync = self.coin();
        self.calls.end(&lease, sync).await;
        if self.coin() {
            self.remove().await;
        }
        let parent = self.stat(&key).await.expect("the snapshot of a container").parent;
        self.stat(&parent).await.expect("what it stands on");
        let wanted = containers::DeleteContainerRequest { id: key.clone() };
        self.calls.containers().delete(self.calls.plain(wanted)).await.expect("Containers.Delete");
        let wanted = snapshots::RemoveSnapshotRequest { snapshotter: SNAPSHOTTER.into(), key };
        let removed = self.calls.snapshots().remove(self.calls.plain(wanted)).await;
        self.ledger.unless_expected("remove a snapshot that nothing holds", removed);
    }
}

fn piece(reference: &str, offset: usize, data: &[u8]) -> content::WriteContentRequest {
    content::WriteContentRequest {
        action: WriteAction::Write.into(),
        r#ref: reference.into(),
        offset: offset as i64,
        data: data.to_vec().into(),
        ..Default::default()
    }
}

/// Sends the rest and commits.
async fn finish(writing: &mut Writing, reference: &str, offset: usize, rest: &[u8], digest: &Digest) {
    let commit = content::WriteContentRequest {
        action: WriteAction::Commit.into(),
        total: (offset + rest.len()) as i64,
        expected: digest.to_string(),
        ..piece(reference, offset, rest)
    };
    let answer = writing.ask(commit).await.unwrap_or_else(|status| panic!("commit {reference:?}: {status:?}"));
    assert_eq!(answer.digest, digest.as_str());
}
