//! containerd.services.tasks.v1: that nothing runs. Clients that remove a container ask for its task first, and go on if there
//! is none.
//!
//! # Invariants
//! - No call makes a task: lists are empty, and what is asked of a container's task is `NOT_FOUND` as with a containerd in which
//!   nothing was started.

use orlop_api::containerd::services::tasks::v1 as pb;
use orlop_api::containerd::services::tasks::v1::tasks_server::Tasks;
use orlop_metadata::Filter;
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::status::ToStatus;
use crate::{Answer, Server, call};

impl Server {
    /// Why there is nothing to do with the task of a container: no such container, or nothing runs in it.
    async fn no_task<T, A>(&self, request: Request<T>, id: fn(T) -> String) -> Answer<A> {
        let id = self.container_of(request, id).await?;
        Err(Status::not_found(format!("task {id}: not found: Orlop keeps images and runs nothing")))
    }

    /// The container that a call is about, which must be there.
    async fn container_of<T>(&self, request: Request<T>, id: fn(T) -> String) -> Result<String, Status> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let id = id(request.into_inner());
        blocking(move || store.container(&scope.namespace, &id)).await.map(|container| container.id)
    }
}

#[tonic::async_trait]
impl Tasks for Server {
    async fn create(&self, request: Request<pb::CreateTaskRequest>) -> Answer<pb::CreateTaskResponse> {
        let id = self.container_of(request, |r| r.container_id).await?;
        Err(Status::unimplemented(format!(
            "a task for container {id}: Orlop keeps images and runs nothing; run it by a containerd"
        )))
    }

    async fn list(&self, request: Request<pb::ListTasksRequest>) -> Answer<pb::ListTasksResponse> {
        call::scope(&request)?;
        Ok(Response::new(pb::ListTasksResponse::default()))
    }

    async fn metrics(&self, request: Request<pb::MetricsRequest>) -> Answer<pb::MetricsResponse> {
        call::scope(&request)?;
        Filter::parse(&request.into_inner().filters).map_err(|e| e.to_status())?;
        Ok(Response::new(pb::MetricsResponse::default()))
    }

    async fn get(&self, request: Request<pb::GetRequest>) -> Answer<pb::GetResponse> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn start(&self, request: Request<pb::StartRequest>) -> Answer<pb::StartResponse> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn delete(&self, request: Request<pb::DeleteTaskRequest>) -> Answer<pb::DeleteResponse> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn delete_process(&self, request: Request<pb::DeleteProcessRequest>) -> Answer<pb::DeleteResponse> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn kill(&self, request: Request<pb::KillRequest>) -> Answer<()> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn exec(&self, request: Request<pb::ExecProcessRequest>) -> Answer<()> {
        call::scope(&request)?;
        if request.get_ref().exec_id.is_empty() {
            return Err(Status::invalid_argument("exec_id is required"));
        }
        self.no_task(request, |r| r.container_id).await
    }

    async fn resize_pty(&self, request: Request<pb::ResizePtyRequest>) -> Answer<()> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn close_io(&self, request: Request<pb::CloseIoRequest>) -> Answer<()> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn pause(&self, request: Request<pb::PauseTaskRequest>) -> Answer<()> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn resume(&self, request: Request<pb::ResumeTaskRequest>) -> Answer<()> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn list_pids(&self, request: Request<pb::ListPidsRequest>) -> Answer<pb::ListPidsResponse> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn checkpoint(&self, request: Request<pb::CheckpointTaskRequest>) -> Answer<pb::CheckpointTaskResponse> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn update(&self, request: Request<pb::UpdateTaskRequest>) -> Answer<()> {
        self.no_task(request, |r| r.container_id).await
    }

    async fn wait(&self, request: Request<pb::WaitRequest>) -> Answer<pb::WaitResponse> {
        self.no_task(request, |r| r.container_id).await
    }
}
