//! containerd.services.diff.v1.
//!
//! A tree of one of the store's own drivers is found by its mounts and written without being mounted: the driver's
//! commit then settles what refers to the layers below. Any other tree is mounted for the time of the call; and so are
//! trees that are compared, read-only.

mod apply;
mod make;

use orlop_api::containerd::services::diff::v1 as pb;
use orlop_api::containerd::services::diff::v1::diff_server::Diff;
use orlop_content::{BlockingReader, Provider};
use orlop_oci::{Descriptor, media_type};
use tokio::runtime::Handle;
use tonic::{Request, Response};

use crate::blocking::blocking;
use crate::convert::{descriptor_from_wire, descriptor_to_wire, mounts_from_wire, required};
use crate::status::ToStatus;
use crate::{Answer, Server, call};

#[tonic::async_trait]
impl Diff for Server {
    async fn apply(&self, request: Request<pb::ApplyRequest>) -> Answer<pb::ApplyResponse> {
        let content = self.store().content(&call::scope(&request)?);
        let request = request.into_inner();
        let layer = descriptor_from_wire(required(request.diff, "diff")?)?;
        let mounts = mounts_from_wire(request.mounts)?;
        let reader = content.open(&layer.digest).await.map_err(|e| e.to_status())?;
        let handle = Handle::current();
        let read = move || BlockingReader::new(handle.clone(), reader.clone(), 0);
        let store = self.store().clone();
        let limits = self.images().settings().limits.layer.clone();
        let apply = move || apply::apply_to_mounts(&store, limits, &mounts, read, request.sync_fs);
        let applied = blocking(apply).await?;
        let applied = Descriptor::new(media_type::OCI_LAYER, applied.diff_id.into_digest(), applied.tar_bytes);
        Ok(Response::new(pb::ApplyResponse { applied: Some(descriptor_to_wire(&applied)) }))
    }

    async fn diff(&self, request: Request<pb::DiffRequest>) -> Answer<pb::DiffResponse> {
        let scope = call::scope(&request)?;
        let made = make::make(self.store(), &scope, request.into_inner()).await?;
        Ok(Response::new(pb::DiffResponse { diff: Some(descriptor_to_wire(&made)) }))
    }
}
