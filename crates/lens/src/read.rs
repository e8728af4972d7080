//! Reading the lists.

use std::sync::Arc;

use futures::future::{BoxFuture, join_all, try_join_all};
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use orlop_api::containerd::services::containers::v1::ListContainersRequest;
use orlop_api::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::content::v1::{ListContentRequest, ListStatusesRequest};
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::images::v1::{Image, ListImagesRequest};
use orlop_api::containerd::services::introspection::v1::introspection_client::IntrospectionClient;
use orlop_api::containerd::services::introspection::v1::{Plugin, PluginsRequest};
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::leases::v1::{ListRequest, ListResourcesRequest};
use orlop_api::containerd::services::namespaces::v1::ListNamespacesRequest;
use orlop_api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use orlop_api::containerd::services::snapshots::v1::ListSnapshotsRequest;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_graph::model::{Gap, Inventory, LeaseRow, NamespaceId, NamespaceRow};
use tokio::task::JoinSet;
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

/// What a list of images is made of.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The rows.
    pub inventory: Inventory,
    /// Whether snapshots are among them: they are not if there are too many.
    pub all_snapshots: bool,
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
    pub(crate) channel: Channel,
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

    /// Everything that the store lists, in these namespaces, or in all: records, leases and containers first, then blobs,
    /// writes in progress and snapshots; lists that may be read at one time are.
    ///
    /// # Errors
    /// If namespaces or image records cannot be listed. Anything else that cannot be is a gap.
    pub async fn inventory(&self, namespaces: Option<&[&str]>) -> Result<Inventory, Error> {
        let (mut inventory, named) = self.begun(namespaces).await?;
        let snapshotters = self.snapshotters(&mut inventory.gaps).await;
        let roots = named.iter().flat_map(|(id, name)| {
            let (reader, id, of) = (self.clone(), *id, name.clone());
            [self.records_of(id, name), in_task(async move { Ok(reader.holders(id, &of).await) })]
        });
        for part in try_join_all(roots).await? {
            absorb(&mut inventory, part);
        }
        let items = named.iter().flat_map(|(id, name)| {
            let snapshots = snapshotters.iter().map(|snapshotter| self.snapshots_of(*id, name, snapshotter));
            [self.blobs_of(*id, name), self.ingests_of(*id, name)].into_iter().chain(snapshots).collect::<Vec<_>>()
        });
        for part in join_all(items).await {
            absorb(&mut inventory, part);
        }
        Ok(inventory)
    }

    /// What a list of images shows: records and blobs, and if there are at most so many in all, snapshots.
    ///
    /// # Errors
    /// If namespaces or image records cannot be listed. Anything else that cannot be is a gap.
    pub async fn listing(&self, snapshots: usize) -> Result<Listing, Error> {
        let (mut inventory, named) = self.begun(None).await?;
        for part in try_join_all(named.iter().map(|(id, name)| self.records_of(*id, name))).await? {
            absorb(&mut inventory, part);
        }
        let blobs = join_all(named.iter().map(|(id, name)| self.blobs_of(*id, name)));
        let (blobs, few) = futures::join!(blobs, self.few_snapshots(&named, snapshots));
        for part in blobs {
            absorb(&mut inventory, part);
        }
        let all_snapshots = few.is_some();
        absorb(&mut inventory, few.unwrap_or_default());
        Ok(Listing { inventory, all_snapshots })
    }

    /// An inventory of namespaces alone, and which they are.
    async fn begun(&self, namespaces: Option<&[&str]>) -> Result<(Inventory, Vec<(NamespaceId, Arc<str>)>), Error> {
        let mut inventory = Inventory { taken: Timestamp::now(), ..Inventory::default() };
        inventory.namespaces = self.namespaces().await?;
        if let Some(wanted) = namespaces {
            inventory.namespaces.retain(|n| wanted.contains(&&*n.name));
        }
        let named = inventory.namespaces.iter().enumerate();
        let named = named.map(|(id, row)| (id as NamespaceId, row.name.clone())).collect();
        Ok((inventory, named))
    }

    /// All snapshots; none if there are more than so many.
    async fn few_snapshots(&self, namespaces: &[(NamespaceId, Arc<str>)], most: usize) -> Option<Inventory> {
        let mut few = Inventory::default();
        for snapshotter in self.snapshotters(&mut few.gaps).await {
            for (id, name) in namespaces {
                let listed = self.listed(*id, name, &snapshotter, most - few.snapshots.len(), &mut few).await;
                few.gaps.extend(listed.err().map(|error| gap(&format!("snapshots of {snapshotter}"), name, &error)));
                if few.snapshots.len() > most {
                    return None;
                }
            }
        }
        Some(few)
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

    /// Plugins that pass a filter and are loaded.
    pub(crate) async fn loaded(&self, filter: &str) -> Result<Vec<Plugin>, Error> {
        let request = PluginsRequest { filters: vec![filter.to_owned()] };
        let answer = IntrospectionClient::new(self.channel.clone()).plugins(request).await;
        let mut plugins = answer.map_err(Error::call("introspection.Plugins", ""))?.into_inner().plugins;
        plugins.retain(|plugin| plugin.init_err.is_none());
        Ok(plugins)
    }

    /// Snapshotters that are loaded.
    async fn snapshotters(&self, gaps: &mut Vec<Gap>) -> Vec<Arc<str>> {
        match self.loaded("type==io.containerd.snapshotter.v1").await {
            Ok(plugins) => plugins.into_iter().map(|plugin| plugin.id.into()).collect(),
            Err(error) => {
                gaps.push(Gap { what: "snapshots".into(), why: error.to_string() });
                Vec::new()
            }
        }
    }

    /// Whether containerd's CRI plugin runs, which looks after the records of the kubelet's namespace.
    ///
    /// # Errors
    /// If the store does not tell.
    pub async fn has_cri(&self) -> Result<bool, Error> {
        Ok(!self.loaded("type==io.containerd.grpc.v1,id==cri").await?.is_empty())
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

    /// The records of a namespace as rows.
    fn records_of(&self, id: NamespaceId, name: &Arc<str>) -> BoxFuture<'static, Result<Inventory, Error>> {
        let (reader, name) = (self.clone(), name.clone());
        in_task(async move {
            let mut part = Inventory::default();
            let mut texts = Interned::default();
            for image in reader.records(&name).await? {
                match convert::record(id, image, &mut texts) {
                    Ok(row) => part.records.push(row),
                    Err(error) => part.gaps.push(gap("a record", &name, &error)),
                }
            }
            Ok(part)
        })
    }

    /// Who holds something by other means than a name: leases, containers.
    async fn holders(&self, id: NamespaceId, name: &str) -> Inventory {
        let mut part = Inventory::default();
        match self.leases(id, name).await {
            Ok(leases) => part.leases = leases,
            Err(error) => part.gaps.push(gap("leases", name, &error)),
        }
        let mut texts = Interned::default();
        match self.containers(name).await {
            Ok(all) => part.containers.extend(all.into_iter().map(|c| convert::container(id, c, &mut texts))),
            Err(error) => part.gaps.push(gap("containers", name, &error)),
        }
        part
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

    fn blobs_of(&self, id: NamespaceId, name: &Arc<str>) -> BoxFuture<'static, Inventory> {
        let (reader, name) = (self.clone(), name.clone());
        in_task(async move {
            let mut part = Inventory::default();
            let read = reader.blobs(id, &name, &mut part).await;
            part.gaps.extend(read.err().map(|error| gap("blobs", &name, &error)));
            part
        })
    }

    fn ingests_of(&self, id: NamespaceId, name: &Arc<str>) -> BoxFuture<'static, Inventory> {
        let (reader, name) = (self.clone(), name.clone());
        in_task(async move {
            let mut part = Inventory::default();
            let read = reader.ingests(id, &name, &mut part).await;
            part.gaps.extend(read.err().map(|error| gap("writes in progress", &name, &error)));
            part
        })
    }

    fn snapshots_of(&self, id: NamespaceId, name: &Arc<str>, snapshotter: &Arc<str>) -> BoxFuture<'static, Inventory> {
        let (reader, name, snapshotter) = (self.clone(), name.clone(), snapshotter.clone());
        in_task(async move {
            let mut part = Inventory::default();
            let read = reader.listed(id, &name, &snapshotter, usize::MAX, &mut part).await;
            part.gaps.extend(read.err().map(|error| gap(&format!("snapshots of {snapshotter}"), &name, &error)));
            part
        })
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

    /// The snapshots of a namespace, to the first page that has more than are wanted.
    async fn listed(
        &self,
        id: NamespaceId,
        name: &str,
        snapshotter: &Arc<str>,
        most: usize,
        part: &mut Inventory,
    ) -> Result<(), Error> {
        let failed = || Error::call("snapshots.List", name);
        let request = ListSnapshotsRequest { snapshotter: snapshotter.to_string(), ..Default::default() };
        let mut stream = self.snapshots(name)?.list(request).await.map_err(failed())?.into_inner();
        let before = part.snapshots.len();
        while let Some(page) = stream.message().await.map_err(failed())? {
            part.snapshots.extend(page.info.into_iter().map(|info| convert::snapshot(id, snapshotter, info)));
            if part.snapshots.len() - before > most {
                break;
            }
        }
        Ok(())
    }
}

/// Runs it on any thread, as long as somebody waits for it.
fn in_task<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> BoxFuture<'static, T> {
    // A set ends its tasks when it is dropped.
    let mut task = JoinSet::new();
    task.spawn(work);
    async move {
        let done = task.join_next().await.expect("one was spawned");
        done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }
    .boxed()
}

/// Takes in what was read of one list.
fn absorb(inventory: &mut Inventory, part: Inventory) {
    inventory.records.extend(part.records);
    inventory.blobs.extend(part.blobs);
    inventory.snapshots.extend(part.snapshots);
    inventory.leases.extend(part.leases);
    inventory.ingests.extend(part.ingests);
    inventory.containers.extend(part.containers);
    inventory.gaps.extend(part.gaps);
}

pub(crate) fn gap(what: &str, namespace: &str, error: &Error) -> Gap {
    Gap { what: format!("{what} of namespace {namespace}"), why: error.to_string() }
}
