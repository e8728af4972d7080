//! containerd.services.namespaces.v1. No call here needs a namespace header.

use orlop_api::containerd::services::namespaces::v1 as pb;
use orlop_api::containerd::services::namespaces::v1::namespaces_server::Namespaces;
use orlop_metadata::NamespaceInfo;
use tonic::{Request, Response};

use crate::blocking::blocking;
use crate::convert::{mask, required};
use crate::{Answer, Server};

#[tonic::async_trait]
impl Namespaces for Server {
    async fn get(&self, request: Request<pb::GetNamespaceRequest>) -> Answer<pb::GetNamespaceResponse> {
        let store = self.store().clone();
        let found = blocking(move || store.namespace(&request.into_inner().name)).await?;
        Ok(Response::new(pb::GetNamespaceResponse { namespace: Some(to_wire(found)) }))
    }

    /// containerd defines a filter and does not look at it.
    async fn list(&self, _: Request<pb::ListNamespacesRequest>) -> Answer<pb::ListNamespacesResponse> {
        let store = self.store().clone();
        let found = blocking(move || store.namespaces()).await?;
        Ok(Response::new(pb::ListNamespacesResponse { namespaces: found.into_iter().map(to_wire).collect() }))
    }

    async fn create(&self, request: Request<pb::CreateNamespaceRequest>) -> Answer<pb::CreateNamespaceResponse> {
        let store = self.store().clone();
        let wanted = required(request.into_inner().namespace, "namespace")?;
        let made = blocking(move || store.create_namespace(&wanted.name, wanted.labels)).await?;
        Ok(Response::new(pb::CreateNamespaceResponse { namespace: Some(to_wire(made)) }))
    }

    async fn update(&self, request: Request<pb::UpdateNamespaceRequest>) -> Answer<pb::UpdateNamespaceResponse> {
        let store = self.store().clone();
        let request = request.into_inner();
        let (wanted, mask) = (required(request.namespace, "namespace")?, mask(request.update_mask));
        let updated = blocking(move || store.update_namespace(&wanted.name, wanted.labels, &mask)).await?;
        Ok(Response::new(pb::UpdateNamespaceResponse { namespace: Some(to_wire(updated)) }))
    }

    async fn delete(&self, request: Request<pb::DeleteNamespaceRequest>) -> Answer<()> {
        let store = self.store().clone();
        blocking(move || store.delete_namespace(&request.into_inner().name)).await?;
        Ok(Response::new(()))
    }
}

fn to_wire(namespace: NamespaceInfo) -> pb::Namespace {
    pb::Namespace { name: namespace.name, labels: namespace.labels }
}
