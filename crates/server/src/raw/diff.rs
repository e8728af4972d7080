//! containerd.services.diff.v1 for an owner: its blobs are those that it wrote through this surface.

use orlop_api::containerd::services::diff::v1 as pb;
use orlop_api::containerd::services::diff::v1::diff_server::Diff;
use tonic::Request;

use super::Raw;
use crate::Answer;

#[tonic::async_trait]
impl Diff for Raw {
    /// What was applied is durable when this answers, so that containerd, which commits within a transaction of its database,
    /// never waits for the disk there.
    async fn apply(&self, mut request: Request<pb::ApplyRequest>) -> Answer<pb::ApplyResponse> {
        request.get_mut().sync_fs = true;
        self.server.apply(Self::owned(&self.owner.content(), request)?).await
    }

    async fn diff(&self, mut request: Request<pb::DiffRequest>) -> Answer<pb::DiffResponse> {
        self.mark(&mut request.get_mut().labels);
        self.server.diff(Self::owned(&self.owner.content(), request)?).await
    }
}
