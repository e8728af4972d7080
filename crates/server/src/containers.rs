//! containerd.services.containers.v1: containers as records. Nothing is run here.

use orlop_api::containerd::services::containers::v1 as pb;
use orlop_api::containerd::services::containers::v1::containers_server::Containers;
use orlop_metadata::{Container, TypedBytes};
use prost_types::Any;
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::convert::{mask, required, timestamp};
use crate::{Answer, AnswerStream, Server, call};

#[tonic::async_trait]
impl Containers for Server {
    type ListStreamStream = AnswerStream<pb::ListContainerMessage>;

    async fn get(&self, request: Request<pb::GetContainerRequest>) -> Answer<pb::GetContainerResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let id = request.into_inner().id;
        let container = blocking(move || store.container(&scope.namespace, &id)).await?;
        Ok(Response::new(pb::GetContainerResponse { container: Some(to_wire(container)) }))
    }

    async fn list(&self, request: Request<pb::ListContainersRequest>) -> Answer<pb::ListContainersResponse> {
        let containers = self.matching(request).await?;
        Ok(Response::new(pb::ListContainersResponse { containers: containers.into_iter().map(to_wire).collect() }))
    }

    async fn list_stream(&self, request: Request<pb::ListContainersRequest>) -> Answer<Self::ListStreamStream> {
        let containers = self.matching(request).await?;
        let message = |container| Ok(pb::ListContainerMessage { container: Some(to_wire(container)) });
        Ok(Response::new(Box::pin(futures::stream::iter(containers.into_iter().map(message)))))
    }

    async fn create(&self, request: Request<pb::CreateContainerRequest>) -> Answer<pb::CreateContainerResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let container = from_wire(required(request.into_inner().container, "container")?);
        let made = blocking(move || store.create_container(&scope, container)).await?;
        Ok(Response::new(pb::CreateContainerResponse { container: Some(to_wire(made)) }))
    }

    async fn update(&self, request: Request<pb::UpdateContainerRequest>) -> Answer<pb::UpdateContainerResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let request = request.into_inner();
        let container = from_wire(required(request.container, "container")?);
        let mask = mask(request.update_mask);
        let updated = blocking(move || store.update_container(&scope, container, &mask)).await?;
        self.collector().request();
        Ok(Response::new(pb::UpdateContainerResponse { container: Some(to_wire(updated)) }))
    }

    async fn delete(&self, request: Request<pb::DeleteContainerRequest>) -> Answer<()> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let id = request.into_inner().id;
        let namespace = scope.namespace.clone();
        let gone = blocking(move || store.delete_container(&scope, &id)).await?;
        // Hash references may have stayed for it alone.
        self.reconcile(&namespace, &gone.image).await;
        self.collector().request();
        Ok(Response::new(()))
    }
}

impl Server {
    async fn matching(&self, request: Request<pb::ListContainersRequest>) -> Result<Vec<Container>, Status> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let filters = request.into_inner().filters;
        blocking(move || store.containers(&scope.namespace, &filters)).await
    }
}

fn bytes(any: Any) -> TypedBytes {
    TypedBytes { type_url: any.type_url, value: any.value }
}

fn any(bytes: TypedBytes) -> Any {
    Any { type_url: bytes.type_url, value: bytes.value }
}

fn from_wire(container: pb::Container) -> Container {
    let runtime = container.runtime.unwrap_or_default();
    // The store sets the times.
    let now = jiff::Timestamp::UNIX_EPOCH;
    Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        runtime: runtime.name,
        runtime_options: runtime.options.map(bytes),
        spec: container.spec.map(bytes),
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        sandbox: container.sandbox,
        extensions: container.extensions.into_iter().map(|(key, value)| (key, bytes(value))).collect(),
        created_at: now,
        updated_at: now,
    }
}

pub(crate) fn to_wire(container: Container) -> pb::Container {
    let runtime = pb::container::Runtime { name: container.runtime, options: container.runtime_options.map(any) };
    pb::Container {
        id: container.id,
        labels: container.labels,
        image: container.image,
        runtime: Some(runtime),
        spec: container.spec.map(any),
        snapshotter: container.snapshotter,
        snapshot_key: container.snapshot_key,
        created_at: Some(timestamp(container.created_at)),
        updated_at: Some(timestamp(container.updated_at)),
        extensions: container.extensions.into_iter().map(|(key, value)| (key, any(value))).collect(),
        sandbox: container.sandbox,
    }
}
