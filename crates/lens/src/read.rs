//! Reading the lists.

use std::sync::Arc;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use orlop_api::containerd::services::containers::v1::ListContainersRequest;
use orlop_api::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::content::v1::{ListContentRequest, ListStatusesRequest};
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::images::v1::{Image, ListImagesRequest};
use orlop_api::containerd::services::introspection::v1::PluginsRequest;
use orlop_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::leases::v1::{ListRequest, ListResourcesRequest};
use orlop_api::containerd::services::namespaces::v1::ListNamespacesRequest;
use orlop_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use orlop_api::containerd::services::snapshots::v1::ListSnapshotsRequest;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_graph::model::{Gap, Inventory, LeaseRow, NamespaceId, NamespaceRow};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::Error;
use crate::convert::{self, Interned};

/// Calls that wait at the same time where each asks for one thing: enough that a socket is never idle, few enough that a
/// store with other clients does not notice.
pub(crate) const AT_ONCE: usize = 32;

/// A list that does not fit one message is read in this many parts, by the first digit of the targets' digests.
const PARTS: [&str; 16] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "b", "c", "d", "e", "f"];

/// What to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Everything: records, blobs, snapshots, leases, writes in progress and containers.
    All,
    /// Records alone.
    Records,
}

/// Adds the header that names the namespace.
#[derive(Debug, Clone)]
pub(crate) struct InNamespace(MetadataValue<Ascii>);

impl tonic::service::Interceptor for InNamespace {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, self.0.clone());
        Ok(request)
    }
}

/// A connection to a store that is only read.
#[derive(Debug, Clone)]
pub struct Reader {
    channel: Channel,
}

/// A client in a namespace. The answer may be as large as the store's own bound allows.
macro_rules! client {
    ($client:ident, $self:ident, $namespace:expr) => {
        $client::with_interceptor($self.channel.clone(), in_namespace($namespace)?)
            .max_decoding_message_size(usize::MAX)
    };
}

pub(crate) fn in_namespace(name: &str) -> Result<InNamespace, Error> {
    let text = |_| Error::Answer {
        call: "namespaces.List",
        what: format!("{name:?}"),
        expected: "a namespace's name in printable ASCII",
    };
    name.parse().map(InNamespace).map_err(text)
}

pub(crate) type Service = InterceptedService<Channel, InNamespace>;

impl Reader {
    /// Reads through a channel; no header but the namespace is sent.
    pub fn new(channel: Channel) -> Self {
        Self { channel }
    }

    pub(crate) fn content(&self, namespace: &str) -> Result<ContentClient<Service>, Error> {
        Ok(client!(ContentClient, self, namespace))
    }

    pub(crate) fn snapshots(&self, namespace: &str) -> Result<SnapshotsClient<Service>, Error> {
        Ok(client!(SnapshotsClient, self, namespace))
    }

    /// Everything that the store lists, in these namespaces, or in all.
    ///
    /// # Errors
    /// If namespaces or image records cannot be listed. Anything else that cannot be is a gap.
    pub async fn inventory(&self, scope: Scope, namespaces: Option<&[&str]>) -> Result<Inventory, Error> {
        let mut inventory = Inventory { taken: Timestamp::now(), ..Inventory::default() };
        inventory.namespaces = self.namespaces().await?;
        if let Some(wanted) = namespaces {
            inventory.namespaces.retain(|n| wanted.contains(&&*n.name));
        }
        let snapshotters = match scope {
            Scope::All => self.snapshotters(&mut inventory.gaps).await,
            Scope::Records => Vec::new(),
        };
        let mut texts = Interned::default();
        for namespace in 0..inventory.namespaces.len() as NamespaceId {
            let name = inventory.namespaces[usize::from(namespace)].name.clone();
            if scope == Scope::All {
                self.holders(namespace, &name, &mut inventory, &mut texts).await;
            }
            for image in self.records(&name).await? {
                match convert::record(namespace, image, &mut texts) {
                    Ok(row) => inventory.records.push(row),
                    Err(error) => inventory.gaps.push(gap("a record", &name, &error)),
                }
            }
            if scope == Scope::All {
                self.items(namespace, &name, &snapshotters, &mut inventory).await;
            }
        }
        Ok(inventory)
    }

    /// The namespaces, by name.
    ///
    /// # Errors
    /// If they cannot be listed.
    pub async fn namespaces(&self) -> Result<Vec<NamespaceRow>, Error> {
        let answer = NamespacesClient::new(self.channel.clone()).list(ListNamespacesRequest::default()).await;
        let listed = answer.map_err(Error::call("namespaces.List", ""))?.into_inner().namespaces;
        let row = |n: orlop_api::containerd::services::namespaces::v1::Namespace| NamespaceRow {
            name: n.name.into(),
            labels: convert::labels(n.labels),
        };
        let mut rows: Vec<NamespaceRow> = listed.into_iter().map(row).collect();
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    /// Snapshotters that are loaded.
    async fn snapshotters(&self, gaps: &mut Vec<Gap>) -> Vec<Arc<str>> {
        let request = PluginsRequest { filters: vec!["type==io.containerd.snapshotter.v1".into()] };
        match IntrospectionClient::new(self.channel.clone()).plugins(request).await {
            Ok(answer) => {
                let loaded = answer.into_inner().plugins.into_iter().filter(|p| p.init_err.is_none());
                loaded.map(|p| p.id.into()).collect()
            }
            Err(status) => {
                gaps.push(Gap {
                    what: "snapshots".into(),
                    why: format!("introspection.Plugins: {}", status.message()),
                });
                Vec::new()
            }
        }
    }

    /// Whether containerd's CRI plugin runs, which looks after the records of the kubelet's namespace.
    ///
    /// # Errors
    /// If the store does not tell.
    pub async fn has_cri(&self) -> Result<bool, Error> {
        let request = PluginsRequest { filters: vec!["type==io.containerd.grpc.v1,id==cri".into()] };
        let answer = IntrospectionClient::new(self.channel.clone()).plugins(request).await;
        let plugins = answer.map_err(Error::call("introspection.Plugins", ""))?.into_inner().plugins;
        Ok(plugins.iter().any(|plugin| plugin.init_err.is_none()))
    }

    /// Names of the records in a namespace that pass containerd's filters.
    ///
    /// # Errors
    /// If they cannot be listed: a filter that does not parse, too.
    pub async fn matching(&self, namespace: &str, filters: &[String]) -> Result<Vec<String>, Error> {
        let mut client = client!(ImagesClient, self, namespace);
        let answer = client.list(ListImagesRequest { filters: filters.to_vec() }).await;
        let images = answer.map_err(Error::call("images.List", namespace))?.into_inner().images;
        Ok(images.into_iter().map(|image| image.name).collect())
    }

    /// All records of a namespace, in parts if they do not fit one message.
    async fn records(&self, namespace: &str) -> Result<Vec<Image>, Error> {
        let mut client = client!(ImagesClient, self, namespace);
        match client.list(ListImagesRequest::default()).await {
            Ok(answer) => return Ok(answer.into_inner().images),
            Err(status) if status.code() == Code::ResourceExhausted => {}
            Err(status) => return Err(Error::call("images.List", namespace)(status)),
        }
        let mut all = Vec::new();
        for part in PARTS {
            let filters = vec![format!("target.digest~=\"^sha256:{part}\"")];
            let answer =
                client.list(ListImagesRequest { filters }).await.map_err(Error::call("images.List", namespace))?;
            all.extend(answer.into_inner().images);
        }
        let filters = vec!["target.digest~=\"^sha(384|512):\"".to_owned()];
        let rest = client.list(ListImagesRequest { filters }).await.map_err(Error::call("images.List", namespace))?;
        all.extend(rest.into_inner().images);
        Ok(all)
    }

    /// Who holds something by other means than a name: leases, containers.
    async fn holders(&self, id: NamespaceId, name: &str, inventory: &mut Inventory, texts: &mut Interned) {
        match self.leases(id, name).await {
            Ok(leases) => inventory.leases.extend(leases),
            Err(error) => inventory.gaps.push(gap("leases", name, &error)),
        }
        match self.containers(name).await {
            Ok(all) => inventory.containers.extend(all.into_iter().map(|c| convert::container(id, c, texts))),
            Err(error) => inventory.gaps.push(gap("containers", name, &error)),
        }
    }

    async fn leases(&self, id: NamespaceId, name: &str) -> Result<Vec<LeaseRow>, Error> {
        let client = client!(LeasesClient, self, name);
        let listed = client.clone().list(ListRequest::default()).await.map_err(Error::call("leases.List", name))?;
        let read = |lease| {
            let mut client = client.clone();
            async move {
                let mut row = convert::lease(id, lease);
                match client.list_resources(ListResourcesRequest { id: row.id.to_string() }).await {
                    Ok(answer) => {
                        row.resources = answer.into_inner().resources.into_iter().map(convert::resource).collect();
                        Ok(Some(row))
                    }
                    // It went meanwhile.
                    Err(status) if status.code() == Code::NotFound => Ok(None),
                    Err(status) => Err(Error::call("leases.ListResources", name)(status)),
                }
            }
        };
        let rows = stream::iter(listed.into_inner().leases).map(read).buffered(AT_ONCE);
        rows.try_filter_map(|row| async { Ok(row) }).try_collect().await
    }

    async fn containers(
        &self,
        name: &str,
    ) -> Result<Vec<orlop_api::containerd::services::containers::v1::Container>, Error> {
        let mut client = client!(ContainersClient, self, name);
        let failed = || Error::call("containers.List", name);
        let request = ListContainersRequest::default();
        let mut stream = match client.list_stream(request.clone()).await {
            Ok(answer) => answer.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => {
                return Ok(client.list(request).await.map_err(failed())?.into_inner().containers);
            }
            Err(status) => return Err(failed()(status)),
        };
        let mut all = Vec::new();
        while let Some(message) = stream.message().await.map_err(failed())? {
            all.extend(message.container);
        }
        Ok(all)
    }

    /// What takes space: blobs, snapshots, writes in progress.
    async fn items(&self, id: NamespaceId, name: &str, snapshotters: &[Arc<str>], inventory: &mut Inventory) {
        let content = self.blobs(id, name, inventory).await;
        inventory.gaps.extend(content.err().map(|error| gap("blobs", name, &error)));
        let ingests = self.ingests(id, name, inventory).await;
        inventory.gaps.extend(ingests.err().map(|error| gap("writes in progress", name, &error)));
        for snapshotter in snapshotters {
            let listed = self.listed(id, name, snapshotter, inventory).await;
            let what = format!("snapshots of {snapshotter}");
            inventory.gaps.extend(listed.err().map(|error| gap(&what, name, &error)));
        }
    }

    async fn blobs(&self, id: NamespaceId, name: &str, inventory: &mut Inventory) -> Result<(), Error> {
        let failed = || Error::call("content.List", name);
        let answer = self.content(name)?.list(ListContentRequest::default()).await;
        let mut stream = answer.map_err(failed())?.into_inner();
        while let Some(page) = stream.message().await.map_err(failed())? {
            for info in page.info {
                match convert::blob(id, info) {
                    Ok(row) => inventory.blobs.push(row),
                    Err(error) => inventory.gaps.push(gap("a blob", name, &error)),
                }
            }
        }
        Ok(())
    }

    async fn ingests(&self, id: NamespaceId, name: &str, inventory: &mut Inventory) -> Result<(), Error> {
        let answer = self.content(name)?.list_statuses(ListStatusesRequest::default()).await;
        let statuses = answer.map_err(Error::call("content.ListStatuses", name))?.into_inner().statuses;
        inventory.ingests.extend(statuses.into_iter().map(|status| convert::ingest(id, status)));
        Ok(())
    }

    async fn listed(
        &self,
        id: NamespaceId,
        name: &str,
        snapshotter: &Arc<str>,
        inventory: &mut Inventory,
    ) -> Result<(), Error> {
        let failed = || Error::call("snapshots.List", name);
        let request = ListSnapshotsRequest { snapshotter: snapshotter.to_string(), ..Default::default() };
        let mut stream = self.snapshots(name)?.list(request).await.map_err(failed())?.into_inner();
        while let Some(page) = stream.message().await.map_err(failed())? {
            inventory.snapshots.extend(page.info.into_iter().map(|info| convert::snapshot(id, snapshotter, info)));
        }
        Ok(())
    }
}

fn gap(what: &str, namespace: &str, error: &Error) -> Gap {
    Gap { what: format!("{what} of namespace {namespace}"), why: error.to_string() }
}
