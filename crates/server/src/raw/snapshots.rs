//! containerd.services.snapshots.v1 for an owner.

use orlop_api::containerd::services::snapshots::v1 as pb;
use orlop_api::containerd::services::snapshots::v1::snapshots_server::Snapshots;
use orlop_image::GC_CONTENT;
use orlop_metadata::{Error, Filter, Labels, Scope, ScopedSnapshots, SnapshotInfo};
use orlop_snapshot::{Mount, is_unpacking};
use tonic::{Request, Response, Status};

use super::remote::Asked;
use super::{CLAIM, Raw};
use crate::blocking::blocking;
use crate::convert::{mask, mounts_to_wire, required, signed};
use crate::page::pages;
use crate::snapshots::to_wire;
use crate::status::{ToStatus, uncoded};
use crate::{Answer, AnswerStream, call};

/// The name under which containerd knows the overlayfs driver: one of its own has the driver's.
const OVERLAY: &str = "orlop-overlay";
/// The native driver's.
const NATIVE: &str = "orlop-native";
/// The driver's of images.
const EROFS: &str = "orlop-erofs";

impl Raw {
    /// The request as the owner's, and the snapshots it is about.
    fn in_snapshots<T>(&self, request: Request<T>, snapshotter: &str) -> Result<(Scope, ScopedSnapshots), Status> {
        let scope = call::scope(&Self::owned(&self.owner.snapshots(), request)?)?;
        let driver = driver_of(snapshotter).unwrap_or(snapshotter);
        match self.server.store().snapshots(&scope, driver) {
            Ok(snapshots) => Ok((scope, snapshots)),
            Err(Error::NotFound { .. }) => Err(Status::not_found(format!(
                "snapshotter {snapshotter:?}: here are {OVERLAY}, {EROFS} and {NATIVE}, as far as the kernel allows them; give one \
                 of them as the name of the proxy plugin"
            ))),
            Err(error) => Err(error.to_status()),
        }
    }

    fn show_snapshot(&self, info: SnapshotInfo) -> pb::Info {
        let mut info = to_wire(info);
        self.unmark(&mut info.labels);
        info
    }
}

/// The driver behind a name that a containerd knows it by; `None` for a snapshotter that is not Orlop's.
pub(crate) fn driver_of(snapshotter: &str) -> Option<&'static str> {
    match snapshotter {
        OVERLAY => Some("overlayfs"),
        NATIVE => Some("native"),
        EROFS => Some("erofs"),
        _ => None,
    }
}

/// The mounts of a snapshot that layers are applied to: those above the first are made without a parent where all are unpacked at
/// once, and whoever applies one must know that what it removes lies in an overlay below. Only to be unpacked into: such a mount
/// has an upper directory and no lower one.
fn for_unpacking(key: &str, mounts: Vec<Mount>) -> Vec<Mount> {
    let [mount] = mounts.as_slice() else { return mounts };
    if !is_unpacking(key) || mount.kind != "bind" {
        return mounts;
    }
    let upper = format!("upperdir={}", mount.source);
    vec![Mount { kind: "overlay".into(), source: "overlay".into(), options: vec![upper] }]
}

/// Splits a request into what it asks and what its headers say.
fn split<T>(request: Request<T>) -> (Request<()>, T) {
    let (metadata, extensions, message) = request.into_parts();
    (Request::from_parts(metadata, extensions, ()), message)
}

/// A snapshot that the owner has.
fn claimed(snapshots: &ScopedSnapshots, key: &str) -> Result<SnapshotInfo, Error> {
    let info = snapshots.stat(key)?;
    if is_claimed(&info) { Ok(info) } else { Err(not_found(key)) }
}

fn is_claimed(info: &SnapshotInfo) -> bool {
    info.labels.contains_key(CLAIM)
}

fn not_found(key: &str) -> Error {
    Error::NotFound { kind: orlop_metadata::ObjectKind::Snapshot, name: key.to_owned() }
}

/// Removes a snapshot of the owner's. One that others were made on, which the owner never was handed, goes with them.
fn remove(snapshots: &ScopedSnapshots, key: &str) -> Result<(), Error> {
    claimed(snapshots, key)?;
    match snapshots.remove(key) {
        Err(refused @ Error::FailedPrecondition { .. }) => {
            let children = snapshots.list(&[format!("parent=={}", quoted(key))])?;
            if children.iter().any(is_claimed) {
                return Err(refused);
            }
            let off = Labels::from([(CLAIM.to_owned(), String::new())]);
            snapshots.update(key, off, &[format!("labels.{CLAIM}")]).map(drop)
        }
        other => other,
    }
}

/// A value as filters take it.
fn quoted(value: &str) -> String {
    format!("{value:?}")
}

#[tonic::async_trait]
impl Snapshots for Raw {
    type ListStream = AnswerStream<pb::ListSnapshotsResponse>;

    /// Of a layer that containerd names, with its image, the snapshot is brought and handed over: then it is there already. Where
    /// that cannot be, containerd gets an empty tree and brings the layer itself.
    async fn prepare(&self, request: Request<pb::PrepareSnapshotRequest>) -> Answer<pb::PrepareSnapshotResponse> {
        let (head, mut asked) = split(request);
        let (scope, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        if let Some(layer) = Asked::take(&mut asked.labels, &asked.parent) {
            self.hand_over(&scope, &snapshots, layer, &asked.labels).await?;
        }
        self.mark(&mut asked.labels);
        let overlay = snapshots.supports_rebase();
        let mounts = blocking(move || {
            let mounts = snapshots.prepare(&asked.key, &asked.parent, asked.labels)?;
            Ok::<_, Error>(if overlay { for_unpacking(&asked.key, mounts) } else { mounts })
        })
        .await?;
        Ok(Response::new(pb::PrepareSnapshotResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn view(&self, request: Request<pb::ViewSnapshotRequest>) -> Answer<pb::ViewSnapshotResponse> {
        let (head, mut asked) = split(request);
        let (_, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        self.mark(&mut asked.labels);
        let mounts = blocking(move || snapshots.view(&asked.key, &asked.parent, asked.labels)).await?;
        Ok(Response::new(pb::ViewSnapshotResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn mounts(&self, request: Request<pb::MountsRequest>) -> Answer<pb::MountsResponse> {
        let (head, asked) = split(request);
        let (_, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        let mounts = blocking(move || snapshots.mounts(&asked.key)).await?;
        Ok(Response::new(pb::MountsResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn commit(&self, request: Request<pb::CommitSnapshotRequest>) -> Answer<()> {
        let (head, mut asked) = split(request);
        let (_, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        self.mark(&mut asked.labels);
        blocking(move || {
            let parent = (!asked.parent.is_empty()).then_some(asked.parent.as_str());
            snapshots.commit(&asked.name, &asked.key, parent, asked.labels)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<pb::RemoveSnapshotRequest>) -> Answer<()> {
        let (head, asked) = split(request);
        let (_, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        blocking(move || remove(&snapshots, &asked.key)).await?;
        self.server.collector().request();
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<pb::StatSnapshotRequest>) -> Answer<pb::StatSnapshotResponse> {
        let (head, asked) = split(request);
        let (_, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        let found = blocking(move || claimed(&snapshots, &asked.key)).await?;
        Ok(Response::new(pb::StatSnapshotResponse { info: Some(self.show_snapshot(found)) }))
    }

    async fn update(&self, request: Request<pb::UpdateSnapshotRequest>) -> Answer<pb::UpdateSnapshotResponse> {
        let (head, mut asked) = split(request);
        let (_, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        if let Some(info) = &mut asked.info {
            self.mark_masked(&mut info.labels, asked.update_mask.as_ref());
        }
        let (wanted, mask) = (required(asked.info, "info")?, mask(asked.update_mask));
        let updated = blocking(move || {
            let had =
                claimed(&snapshots, &wanted.name)?.labels.into_iter().filter(|(key, _)| key.starts_with(GC_CONTENT));
            // Also where all labels are replaced.
            let labels = had.chain(wanted.labels).collect();
            snapshots.update(&wanted.name, labels, &mask)
        });
        Ok(Response::new(pb::UpdateSnapshotResponse { info: Some(self.show_snapshot(updated.await?)) }))
    }

    async fn list(&self, request: Request<pb::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let (head, asked) = split(request);
        let (_, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        Filter::parse(&asked.filters).map_err(|e| uncoded(&e))?;
        let mut found = blocking(move || snapshots.list(&asked.filters)).await?;
        found.retain(is_claimed);
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        let raw = self.clone();
        let rows = found.into_iter().map(move |info| raw.show_snapshot(info));
        Ok(Response::new(pages(rows, |info| pb::ListSnapshotsResponse { info })))
    }

    async fn usage(&self, request: Request<pb::UsageRequest>) -> Answer<pb::UsageResponse> {
        let (head, asked) = split(request);
        let (_, snapshots) = self.in_snapshots(head, &asked.snapshotter)?;
        let usage = blocking(move || {
            claimed(&snapshots, &asked.key)?;
            snapshots.usage(&asked.key)
        })
        .await?;
        Ok(Response::new(pb::UsageResponse { size: signed(usage.bytes), inodes: signed(usage.inodes) }))
    }

    async fn cleanup(&self, request: Request<pb::CleanupRequest>) -> Answer<()> {
        let (head, asked) = split(request);
        self.in_snapshots(head, &asked.snapshotter)?;
        self.server.collector().request();
        Ok(Response::new(()))
    }
}
