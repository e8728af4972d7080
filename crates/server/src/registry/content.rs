//! The content of the registry: the namespace's, with what is written held for a day.

use std::sync::Arc;

use async_trait::async_trait;
use orlop_content::{
    BlobReader, Error, Info, IngestManager, IngestOptions, Ingester, Manager, Provider, Result, Status, Writer,
};
use orlop_metadata::{self as metadata, Scope, ScopedContent, Store};
use orlop_oci::Digest;

use super::NodeRegistry;
use super::holding::{Holding, blocking, is_lease_gone};

/// Content of one namespace, written under the leases of pushes.
pub(super) struct NodeContent {
    store: Store,
    plain: ScopedContent,
    holding: Arc<Holding>,
}

impl NodeContent {
    pub(super) fn new(store: &Store, registry: &NodeRegistry, holding: Arc<Holding>) -> Self {
        let plain = store.content(&Scope::new(&*registry.namespace, "registry"));
        Self { store: store.clone(), plain, holding }
    }

    async fn held(&self) -> Result<ScopedContent> {
        let scope = blocking(&self.holding, Holding::scope).await?;
        Ok(self.store.content(&scope))
    }
}

#[async_trait]
impl Provider for NodeContent {
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn BlobReader>> {
        self.plain.open(digest).await
    }

    async fn info(&self, digest: &Digest) -> Result<Info> {
        self.plain.info(digest).await
    }
}

#[async_trait]
impl Ingester for NodeContent {
    async fn writer(&self, options: IngestOptions) -> Result<Box<dyn Writer>> {
        match self.held().await?.writer(options.clone()).await {
            Err(Error::Metadata(error)) if error.downcast_ref::<metadata::Error>().is_some_and(is_lease_gone) => {
                self.holding.forget();
                self.held().await?.writer(options).await
            }
            opened => opened,
        }
    }
}

#[async_trait]
impl IngestManager for NodeContent {
    async fn status(&self, reference: &str) -> Result<Status> {
        self.plain.status(reference).await
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        self.plain.statuses().await
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        self.plain.abort(reference).await
    }
}

#[async_trait]
impl Manager for NodeContent {
    async fn list(&self) -> Result<Vec<Info>> {
        self.plain.list().await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        self.plain.delete(digest).await
    }
}
