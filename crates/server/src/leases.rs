//! containerd.services.leases.v1.

use orlop_api::containerd::services::leases::v1 as pb;
use orlop_api::containerd::services::leases::v1::leases_server::Leases;
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Lease, Resource, ResourceKind};
use tonic::{Request, Response, Status};

use crate::blocking::blocking;
use crate::convert::{required, timestamp};
use crate::{Answer, Server, call};

#[tonic::async_trait]
impl Leases for Server {
    async fn create(&self, request: Request<pb::CreateRequest>) -> Answer<pb::CreateResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let request = request.into_inner();
        let lease = blocking(move || store.create_lease(&scope.namespace, &request.id, request.labels)).await?;
        Ok(Response::new(pb::CreateResponse { lease: Some(to_wire(lease)) }))
    }

    async fn delete(&self, request: Request<pb::DeleteRequest>) -> Answer<()> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let request = request.into_inner();
        let sync = request.sync;
        blocking(move || {
            store.delete_lease(&scope.namespace, &request.id)?;
            if sync {
                store.collect(Disposal::Reclaim)?;
            }
            Ok::<_, orlop_metadata::Error>(())
        })
        .await?;
        if !sync {
            self.collector().request();
        }
        Ok(Response::new(()))
    }

    async fn list(&self, request: Request<pb::ListRequest>) -> Answer<pb::ListResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let leases = blocking(move || store.leases(&scope.namespace, &request.into_inner().filters)).await?;
        Ok(Response::new(pb::ListResponse { leases: leases.into_iter().map(to_wire).collect() }))
    }

    async fn add_resource(&self, request: Request<pb::AddResourceRequest>) -> Answer<()> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let request = request.into_inner();
        let resource = resource(required(request.resource, "resource")?)?;
        blocking(move || store.add_resource(&scope.namespace, &request.id, &resource)).await?;
        Ok(Response::new(()))
    }

    async fn delete_resource(&self, request: Request<pb::DeleteResourceRequest>) -> Answer<()> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let request = request.into_inner();
        let resource = resource(required(request.resource, "resource")?)?;
        blocking(move || store.delete_resource(&scope.namespace, &request.id, &resource)).await?;
        self.collector().request();
        Ok(Response::new(()))
    }

    async fn list_resources(&self, request: Request<pb::ListResourcesRequest>) -> Answer<pb::ListResourcesResponse> {
        let (scope, store) = (call::scope(&request)?, self.store().clone());
        let found = blocking(move || store.resources(&scope.namespace, &request.into_inner().id)).await?;
        let resources = found.into_iter().map(resource_to_wire).collect();
        Ok(Response::new(pb::ListResourcesResponse { resources }))
    }
}

pub(crate) fn to_wire(lease: Lease) -> pb::Lease {
    pb::Lease { id: lease.id, created_at: Some(timestamp(lease.created_at)), labels: lease.labels }
}

pub(crate) fn resource_to_wire(resource: Resource) -> pb::Resource {
    pb::Resource { id: resource.name, r#type: kind_to_wire(&resource.kind) }
}

fn kind_to_wire(kind: &ResourceKind) -> String {
    match kind {
        ResourceKind::Content => "content".into(),
        ResourceKind::Ingests => "ingests".into(),
        ResourceKind::Images => "images".into(),
        ResourceKind::Snapshots(driver) => format!("snapshots/{driver}"),
    }
}

fn resource(resource: pb::Resource) -> Result<Resource, Status> {
    let kind = match resource.r#type.split_once('/') {
        None if resource.r#type == "content" => ResourceKind::Content,
        None if resource.r#type == "ingests" => ResourceKind::Ingests,
        None if resource.r#type == "images" => ResourceKind::Images,
        Some(("snapshots", driver)) if !driver.is_empty() => ResourceKind::Snapshots(driver.to_owned()),
        _ if resource.r#type == "snapshots" || resource.r#type == "snapshots/" => {
            return Err(Status::invalid_argument("resource type snapshots: expected snapshots/NAME of a snapshotter"));
        }
        _ => {
            return Err(Status::unimplemented(format!(
                "resource type {:?}: content, ingests, images and snapshots/NAME are known",
                resource.r#type
            )));
        }
    };
    Ok(Resource { kind, name: resource.id })
}
