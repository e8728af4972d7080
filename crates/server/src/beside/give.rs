//! Giving the containerd beside an image, and taking it away again.
//!
//! # Order
//! A lease there; the snapshots, if its snapshotter is Orlop's; the blobs; the records; the end of the lease; and the mark here.
//! Whatever comes in between: what is not marked is given again, and what a lease that nobody ends holds goes within the hour.
//!
//! What containerd's content store has through Orlop's raw socket is not copied ([`blobs`]). With snapshots of Orlop's layers are given
//! only so, for no container needs them.

use std::collections::BTreeSet;
use std::time::Duration;

use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::runtime::v1 as pb;
use orlop_image::{CriImage, Error, SNAPSHOT_REF};
use orlop_metadata::{self as metadata, Image, Scope};
use orlop_oci::{Digest, Reference};
use tonic::{Code, Status};
use tracing::Instrument as _;

use super::blobs::{self, Giving};
use super::calls::Calls;
use super::{ACTOR, Beside, marks};
use crate::Server;
use crate::blocking::blocking;
use crate::convert::descriptor_to_wire;
use crate::cri::NAMESPACE;
use crate::cri::status::cri_status;
use crate::raw::Raw;
use crate::raw::remote::{IMAGE, MANIFEST};

/// What the labels of a record begin with that CRI reads.
const CRIS: &str = "io.cri-containerd.";

/// How long that containerd's CRI may take to see its own new records: it hears of them as events, one after the other.
const PATIENCE: Duration = Duration::from_secs(30);
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_millis(200);

/// An image that was removed between its pull and its giving is pulled again so often.
const TRIES: u32 = 3;

impl Beside {
    /// Pulls, and gives what came.
    pub(super) async fn pull(
        &self,
        server: &Server,
        asked: pb::PullImageRequest,
    ) -> Result<pb::PullImageResponse, Status> {
        let name = asked.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        for _ in 0..TRIES {
            let id = server.cri().pull(asked.clone()).await?;
            let name = name.parse::<Reference>().map_or_else(|_| name.clone(), |reference| reference.to_string());
            let Some(record) = record(server, &name).await? else { continue };
            if self.give(server, &record.target.digest, true).await? {
                return Ok(pb::PullImageResponse { image_ref: id });
            }
        }
        Err(Status::unavailable(format!("pull {name:?}: it is removed as often as it is pulled")))
    }

    /// Removes an image on both sides: there first, since kubelet looks there.
    pub(super) async fn remove(
        &self,
        server: &Server,
        asked: pb::RemoveImageRequest,
    ) -> Result<pb::RemoveImageResponse, Status> {
        let text = asked.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
        if text.is_empty() {
            return Err(Status::invalid_argument("image: it is empty; give a name, an image ID or the start of one"));
        }
        let view = server.cri().catalog().view().await.map_err(|e| cri_status(&e))?;
        let own = match view.resolve(&text) {
            Err(Error::NotFound(_)) => None,
            other => Some(other.map_err(|e| cri_status(&e))?),
        };
        // Whoever gives it at the moment has given it before it goes.
        let turn = own.map(|image| self.inner.giving.of(&image.target.digest));
        let _turn = match &turn {
            Some(turn) => Some(turn.lock().await),
            None => None,
        };
        if let (Some(_), Some(chain)) = (self.driver(), own.and_then(|image| image.gist.chain_id.as_ref())) {
            self.reaches_us(&chain.to_string()).await;
        }
        self.calls().cri().remove_image(asked).await.map_err(|status| self.told(&status))?;
        // By its ID: the name may have been followed already.
        let text = own.map_or(text, |image| image.gist.id.to_string());
        let scope = Scope::new(NAMESPACE, ACTOR);
        let removed = server.cri().catalog().remove(&scope, &text).await.map_err(|e| cri_status(&e))?;
        tracing::info!(image = text, records = removed.len(), "image removed here and in containerd");
        Ok(pb::RemoveImageResponse {})
    }

    /// Waits until that containerd finds Orlop's raw socket again, which takes it some seconds after Orlop was away: what it cannot remove
    /// when it collects, it does not try to remove again before it removes something else.
    async fn reaches_us(&self, chain: &str) {
        let asked = snapshots::StatSnapshotRequest {
            snapshotter: self.inner.settings.snapshotter.clone(),
            key: chain.to_owned(),
        };
        let looking = async {
            while let Err(status) = self.calls().snapshots().stat(asked.clone()).await {
                if status.code() != Code::Unavailable {
                    return;
                }
                tokio::time::sleep(LONGEST_LOOK).await;
            }
        };
        if tokio::time::timeout(PATIENCE, looking).await.is_err() {
            tracing::warn!(
                "containerd does not reach Orlop's raw socket: what it removes now keeps its space for a while"
            );
        }
    }

    /// Gives all records of a target that were not given, or with `again` all that are not there, and what they need. Returns whether
    /// there is any record. What is no image for this platform is of no use there, and is left out.
    pub(super) async fn give(&self, server: &Server, target: &Digest, again: bool) -> Result<bool, Status> {
        let turn = self.inner.giving.of(target);
        let _turn = turn.lock().await;
        let store = server.store().clone();
        let (of, targets) = (target.clone(), BTreeSet::from([target.clone()]));
        let (records, given) = blocking(move || {
            let records = store.images_of(NAMESPACE, &targets)?;
            Ok::<_, metadata::Error>((records, marks::given(&store, &of)?))
        })
        .await?;
        if records.is_empty() {
            return Ok(false);
        }
        self.reach().await?;
        let mut missing = Vec::new();
        for record in records {
            let there = self.calls().target(&record.name).await.map_err(|status| self.told(&status))?;
            let has = there.as_deref() == Some(target.as_str());
            if !has && (again || !given.has(&record.name)) {
                missing.push(record);
            }
        }
        if !missing.is_empty() {
            let view = server.cri().catalog().view().await.map_err(|e| cri_status(&e))?;
            let image = missing.iter().find_map(|record| view.resolve(&record.name).ok());
            let Some(image) = image else { return Ok(true) };
            let span = tracing::info_span!("give", image = %image.gist.id);
            self.give_records(server, image, &missing).instrument(span).await?;
            self.seen(image, &missing).await?;
        }
        let names: Vec<String> = missing.into_iter().map(|record| record.name).collect();
        let (store, of) = (server.store().clone(), target.clone());
        blocking(move || marks::mark(&store, &of, &names, true)).await?;
        Ok(true)
    }

    async fn give_records(&self, server: &Server, image: &CriImage, records: &[Image]) -> Result<(), Status> {
        let (lease, calls) = self.lease().await?;
        let given = self.give_under(server, &calls, image, records).await;
        self.end_lease(lease).await;
        given?;
        tracing::info!(image = %image.gist.id, records = records.len(), "given to containerd");
        Ok(())
    }

    async fn give_under(
        &self,
        server: &Server,
        calls: &Calls,
        image: &CriImage,
        records: &[Image],
    ) -> Result<(), Status> {
        let raw = Raw::new(server, self.inner.settings.owner.clone());
        let top = match self.driver() {
            Some(driver) => self.hand_over(&raw, calls, driver, image, &records[0].name).await?,
            None => None,
        };
        let content = server.store().content(&Scope::new(NAMESPACE, ACTOR));
        let top = top.as_deref().map(|chain| (self.inner.settings.snapshotter.as_str(), chain));
        let all = blobs::of(&content, image, &records[0].target.digest, top).await?;
        let mut giving = Giving::new(calls, content, raw, self.driver().is_some());
        for blob in &all {
            giving.give(blob).await.map_err(|status| self.told(&status))?;
        }
        // The ID first: containerd's CRI looks for it when it hears of a name.
        let mut records: Vec<&Image> = records.iter().collect();
        records.sort_by_key(|record| record.name.parse::<Digest>().is_err());
        for record in records {
            let labels = record.labels.iter().filter(|(key, _)| key.starts_with(CRIS));
            let given = images::Image {
                name: record.name.clone(),
                labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
                target: Some(descriptor_to_wire(&record.target)),
                created_at: None,
                updated_at: None,
            };
            calls.put(given).await.map_err(|status| self.told(&status))?;
        }
        Ok(())
    }

    /// Has containerd ask for each snapshot, which it is handed then. Returns the uppermost one's chain ID.
    async fn hand_over(
        &self,
        raw: &Raw,
        calls: &Calls,
        driver: &str,
        image: &CriImage,
        name: &str,
    ) -> Result<Option<String>, Status> {
        // An image ID names no repository, for which policy has its rules.
        let name = image.repo_tags.first().or_else(|| image.repo_digests.first()).map_or(name, |name| &**name);
        let manifest = &image.gist.manifest;
        let lent = raw.lend(driver, name, manifest).await?;
        let snapshotter = &self.inner.settings.snapshotter;
        let mut parent = String::new();
        for chain in lent.chains() {
            let key = format!("extract-{:016x} {chain}", rand::random::<u64>());
            let labels = [(SNAPSHOT_REF, chain), (IMAGE, name), (MANIFEST, manifest.as_str())];
            let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            let below = std::mem::replace(&mut parent, chain.to_owned());
            let asked = snapshots::PrepareSnapshotRequest {
                snapshotter: snapshotter.clone(),
                key: key.clone(),
                parent: below,
                labels,
            };
            match calls.snapshots().prepare(asked).await {
                Err(status) if status.code() == Code::AlreadyExists => {}
                Err(status) => return Err(self.told(&status)),
                Ok(_) => {
                    let remove = snapshots::RemoveSnapshotRequest { snapshotter: snapshotter.clone(), key };
                    // If it cannot be removed now it goes with the lease.
                    drop(calls.snapshots().remove(remove).await);
                    return Err(self.is_not_ours());
                }
            }
        }
        Ok((!parent.is_empty()).then_some(parent))
    }

    fn is_not_ours(&self) -> Status {
        let (socket, snapshotter) = (self.inner.settings.socket.display(), &self.inner.settings.snapshotter);
        let owner = &self.inner.settings.owner;
        Status::failed_precondition(format!(
            "containerd at {socket} takes no layers by its snapshotter {snapshotter:?}: expected a proxy plugin at the raw socket of \
             owner {owner} (serve.raw_sockets, containerd.owner), or another containerd.snapshotter"
        ))
    }

    /// Waits until that containerd's CRI knows the image by all its names: kubelet asks there.
    async fn seen(&self, image: &CriImage, records: &[Image]) -> Result<(), Status> {
        let id = image.gist.id.to_string();
        let names: Vec<&String> = records.iter().map(|record| &record.name).filter(|name| **name != id).collect();
        let looking = async {
            let mut pause = FIRST_LOOK;
            loop {
                let image = Some(pb::ImageSpec { image: id.clone(), ..pb::ImageSpec::default() });
                let asked = pb::ImageStatusRequest { image, verbose: false };
                let known = self.calls().cri().image_status(asked).await.map_err(|status| self.told(&status))?;
                let known = known.into_inner().image;
                let has = |known: &pb::Image, name: &String| {
                    known.repo_tags.contains(name) || known.repo_digests.contains(name)
                };
                if known.is_some_and(|known| names.iter().all(|name| has(&known, name) || !is_shown(name))) {
                    return Ok(());
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LONGEST_LOOK);
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| {
            let socket = self.inner.settings.socket.display();
            Err(Status::unavailable(format!(
                "containerd at {socket} has the records of {id}, and its CRI does not see them yet: {names:?}"
            )))
        })
    }
}

/// Whether CRI shows a record's name.
fn is_shown(name: &str) -> bool {
    name.parse::<Reference>().is_ok_and(|reference| reference.to_string() == name)
}

async fn record(server: &Server, name: &str) -> Result<Option<Image>, Status> {
    let (store, name) = (server.store().clone(), name.to_owned());
    blocking(move || match store.image(NAMESPACE, &name) {
        Ok(image) => Ok(Some(image)),
        Err(metadata::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    })
    .await
}
