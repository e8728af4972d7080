//! containerd.services.mounts.v1. A client asks before it mounts whether the server has to mount something first.
//!
//! For what Orlop's snapshotters give, overlay and bind mounts that any system makes, the answer is containerd's:
//! `UNIMPLEMENTED`, upon which clients mount by themselves. Nothing is ever activated here, so there is nothing to find,
//! list or deactivate; what would have to be mounted by the server is refused by its type.

use orlop_api::containerd::services::mounts::v1 as pb;
use orlop_api::containerd::services::mounts::v1::mounts_server::Mounts;
use orlop_api::containerd::types::Mount;
use tonic::{Request, Response, Status};

use crate::{Answer, AnswerStream, Server, call};

/// What containerd's mount manager makes of a mount before it is one, each before a `/` in its type.
const TRANSFORMS: [&str; 3] = ["format", "mkfs", "mkdir"];
/// The type that containerd's mount manager mounts by a handler of its own.
const HANDLED: &str = "erofs";

#[tonic::async_trait]
impl Mounts for Server {
    async fn activate(&self, request: Request<pb::ActivateRequest>) -> Answer<pb::ActivateResponse> {
        call::scope(&request)?;
        Err(refusal(&request.into_inner()))
    }

    async fn deactivate(&self, request: Request<pb::DeactivateRequest>) -> Answer<()> {
        call::scope(&request)?;
        Err(not_found(&request.into_inner().name))
    }

    async fn info(&self, request: Request<pb::InfoRequest>) -> Answer<pb::InfoResponse> {
        call::scope(&request)?;
        Err(not_found(&request.into_inner().name))
    }

    /// containerd has no update either.
    async fn update(&self, _: Request<pb::UpdateRequest>) -> Answer<pb::UpdateResponse> {
        Err(Status::unimplemented("an activation cannot be updated"))
    }

    type ListStream = AnswerStream<pb::ListMessage>;

    /// containerd defines filters and does not look at them.
    async fn list(&self, request: Request<pb::ListRequest>) -> Answer<Self::ListStream> {
        call::scope(&request)?;
        Ok(Response::new(Box::pin(futures::stream::empty())))
    }
}

fn refusal(request: &pb::ActivateRequest) -> Status {
    let name = &request.name;
    Status::unimplemented(match request.mounts.iter().find(|mount| is_special(mount)) {
        Some(mount) => {
            format!(
                "mount {name:?}: type {:?} is not mounted by this server: mount it on the client's side",
                mount.r#type
            )
        }
        None if request.temporary => {
            format!("mount {name:?}: temporary mounts are not made by this server: mount on the client's side")
        }
        None => format!("mount {name:?}: nothing has to be activated, the system can mount it as it is"),
    })
}

fn is_special(mount: &Mount) -> bool {
    let kind = mount.r#type.as_str();
    kind == HANDLED || kind.split_once('/').is_some_and(|(first, _)| TRANSFORMS.contains(&first))
}

fn not_found(name: &str) -> Status {
    Status::not_found(format!("mount {name:?}: not found"))
}
