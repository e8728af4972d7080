//! containerd.services.diff.v1.

use orlop_api::containerd::services::diff::v1 as pb;
use orlop_api::containerd::services::diff::v1::diff_server::Diff;
use tonic::{Request, Status};

use crate::{Answer, Server, call};

#[tonic::async_trait]
impl Diff for Server {
    async fn apply(&self, request: Request<pb::ApplyRequest>) -> Answer<pb::ApplyResponse> {
        call::scope(&request)?;
        Err(Status::unimplemented("applying a layer to mounts"))
    }

    async fn diff(&self, request: Request<pb::DiffRequest>) -> Answer<pb::DiffResponse> {
        call::scope(&request)?;
        Err(Status::unimplemented("making a layer from mounts"))
    }
}
