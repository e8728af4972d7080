//! containerd.services.mounts.v1. A client asks before it mounts whether the server has to mount something first.
//!
//! For what Orlop's snapshotters give, overlay and bind mounts that any system makes, the answer is containerd's:
//! `UNIMPLEMENTED`, upon which clients mount by themselves. What has to be prepared, every `erofs`, and what is asked for as
//! temporary, is mounted by this process and kept until it is deactivated or nothing keeps it. What this server cannot mount is
//! refused with the same code and what it is.

use orlop_api::containerd::services::mounts::v1 as pb;
use orlop_api::containerd::services::mounts::v1::mounts_server::Mounts;
use orlop_api::containerd::types;
use orlop_metadata::Activation;
use orlop_snapshot::activate::Wanted;
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::convert::timestamp;
use crate::{Answer, AnswerStream, Server, call};

#[tonic::async_trait]
impl Mounts for Server {
    async fn activate(&self, request: Request<pb::ActivateRequest>) -> Answer<pb::ActivateResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let request = request.into_inner();
        let mounts: Vec<Wanted> = request.mounts.into_iter().map(wanted).collect();
        let made =
            blocking(move || store.activate(&scope, &request.name, &mounts, request.labels, request.temporary)).await?;
        Ok(Response::new(pb::ActivateResponse { info: Some(to_wire(made)) }))
    }

    async fn deactivate(&self, request: Request<pb::DeactivateRequest>) -> Answer<()> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        blocking(move || store.deactivate(&scope, &request.into_inner().name)).await?;
        Ok(Response::new(()))
    }

    async fn info(&self, request: Request<pb::InfoRequest>) -> Answer<pb::InfoResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let found = blocking(move || store.activation(&scope.namespace, &request.into_inner().name)).await?;
        Ok(Response::new(pb::InfoResponse { info: Some(to_wire(found)) }))
    }

    /// containerd has no update either.
    async fn update(&self, _: Request<pb::UpdateRequest>) -> Answer<pb::UpdateResponse> {
        Err(Status::unimplemented("an activation cannot be updated"))
    }

    type ListStream = AnswerStream<pb::ListMessage>;

    /// containerd defines filters and does not look at them.
    async fn list(&self, request: Request<pb::ListRequest>) -> Answer<Self::ListStream> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let found = blocking(move || store.activations(&scope.namespace)).await?;
        let messages = found.into_iter().map(|found| Ok(pb::ListMessage { info: Some(to_wire(found)) }));
        Ok(Response::new(Box::pin(futures::stream::iter(messages))))
    }
}

fn wanted(mount: types::Mount) -> Wanted {
    Wanted { kind: mount.r#type, source: mount.source, target: mount.target, options: mount.options }
}

fn mount(wanted: Wanted) -> types::Mount {
    types::Mount { r#type: wanted.kind, source: wanted.source, target: wanted.target, options: wanted.options }
}

fn to_wire(found: Activation) -> types::ActivationInfo {
    let mounted_at = timestamp(found.created_at);
    let active = found.active.into_iter().map(|active| types::ActiveMount {
        mount: Some(mount(active.mount)),
        mounted_at: Some(mounted_at),
        mount_point: active.point.display().to_string(),
        ..Default::default()
    });
    types::ActivationInfo {
        active: active.collect(),
        system: found.system.into_iter().map(mount).collect(),
        name: found.name,
        labels: found.labels,
    }
}
