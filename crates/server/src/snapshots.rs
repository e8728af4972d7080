//! containerd.services.snapshots.v1. An empty snapshotter means the default one.

use orlop_api::containerd::services::snapshots::v1 as pb;
use orlop_api::containerd::services::snapshots::v1::snapshots_server::Snapshots;
use orlop_metadata::{Filter, ScopedSnapshots, SnapshotInfo, SnapshotKind};
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::convert::{mask, mounts_to_wire, required, signed, timestamp};
use crate::page::pages;
use crate::status::{ToStatus, uncoded};
use crate::{Answer, AnswerStream, Server, call};

impl Server {
    fn snapshots_of<T>(&self, request: &Request<T>, snapshotter: &str) -> Result<ScopedSnapshots, Status> {
        self.store().snapshots(&call::scope(request)?, snapshotter).map_err(|e| e.to_status())
    }
}

#[tonic::async_trait]
impl Snapshots for Server {
    type ListStream = AnswerStream<pb::ListSnapshotsResponse>;

    async fn prepare(&self, request: Request<pb::PrepareSnapshotRequest>) -> Answer<pb::PrepareSnapshotResponse> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        let request = request.into_inner();
        let mounts = blocking(move || snapshots.prepare(&request.key, &request.parent, request.labels)).await?;
        Ok(Response::new(pb::PrepareSnapshotResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn view(&self, request: Request<pb::ViewSnapshotRequest>) -> Answer<pb::ViewSnapshotResponse> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        let request = request.into_inner();
        let mounts = blocking(move || snapshots.view(&request.key, &request.parent, request.labels)).await?;
        Ok(Response::new(pb::ViewSnapshotResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn mounts(&self, request: Request<pb::MountsRequest>) -> Answer<pb::MountsResponse> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        let mounts = blocking(move || snapshots.mounts(&request.into_inner().key)).await?;
        Ok(Response::new(pb::MountsResponse { mounts: mounts_to_wire(mounts) }))
    }

    async fn commit(&self, request: Request<pb::CommitSnapshotRequest>) -> Answer<()> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        let request = request.into_inner();
        blocking(move || {
            let parent = (!request.parent.is_empty()).then_some(request.parent.as_str());
            snapshots.commit(&request.name, &request.key, parent, request.labels)
        })
        .await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<pb::RemoveSnapshotRequest>) -> Answer<()> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        blocking(move || snapshots.remove(&request.into_inner().key)).await?;
        self.collector().request();
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<pb::StatSnapshotRequest>) -> Answer<pb::StatSnapshotResponse> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        let found = blocking(move || snapshots.stat(&request.into_inner().key)).await?;
        Ok(Response::new(pb::StatSnapshotResponse { info: Some(to_wire(found)) }))
    }

    async fn update(&self, request: Request<pb::UpdateSnapshotRequest>) -> Answer<pb::UpdateSnapshotResponse> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        let request = request.into_inner();
        let (wanted, mask) = (required(request.info, "info")?, mask(request.update_mask));
        let updated = blocking(move || snapshots.update(&wanted.name, wanted.labels, &mask)).await?;
        Ok(Response::new(pb::UpdateSnapshotResponse { info: Some(to_wire(updated)) }))
    }

    async fn list(&self, request: Request<pb::ListSnapshotsRequest>) -> Answer<Self::ListStream> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        let filters = request.into_inner().filters;
        Filter::parse(&filters).map_err(|e| uncoded(&e))?;
        let mut found = blocking(move || snapshots.list(&filters)).await?;
        // containerd's order, in which clients print them.
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Response::new(pages(found.into_iter().map(to_wire), |info| pb::ListSnapshotsResponse { info })))
    }

    async fn usage(&self, request: Request<pb::UsageRequest>) -> Answer<pb::UsageResponse> {
        let snapshots = self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        let usage = blocking(move || snapshots.usage(&request.into_inner().key)).await?;
        Ok(Response::new(pb::UsageResponse { size: signed(usage.bytes), inodes: signed(usage.inodes) }))
    }

    /// What is left of removed snapshots goes with the next collection.
    async fn cleanup(&self, request: Request<pb::CleanupRequest>) -> Answer<()> {
        self.snapshots_of(&request, &request.get_ref().snapshotter)?;
        self.collector().request();
        Ok(Response::new(()))
    }
}

pub(crate) fn to_wire(info: SnapshotInfo) -> pb::Info {
    let kind = match info.kind {
        SnapshotKind::View => pb::Kind::View,
        SnapshotKind::Active => pb::Kind::Active,
        SnapshotKind::Committed => pb::Kind::Committed,
    };
    pb::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(timestamp(info.created_at)),
        updated_at: Some(timestamp(info.updated_at)),
        labels: info.labels,
    }
}
