//! Whether containers start: a containerd is given an image ([`super::program`]), unpacks it with a snapshotter, runs it, and all of
//! it is removed.
//!
//! # Invariants
//! - Nothing is fetched; no file of the node is needed.
//! - All of it is in the namespace [`NAMESPACE`], which is there for nothing else, and goes at the end, whatever happened; what a
//!   trial that was killed left goes before the next. A lease ends by itself after an hour.
//! - One trial at a time on a containerd: the caller holds the place beside its configuration.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use orlop_api::containerd::services::containers::v1 as containers;
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::diff::v1 as diff;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::namespaces::v1 as namespaces;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::containerd::services::tasks::v1 as tasks;
use orlop_api::containerd::types::{Descriptor, Mount};
use orlop_image::GC_CONTENT;
use serde_json::json;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::program::{self, Blob, Image};
use crate::client::Clients;
use crate::error::{Class, CliError, Result};

/// Where a trial happens.
const NAMESPACE: &str = "orlop-install";
const RUNTIME: &str = "io.containerd.runc.v2";
/// What JSON of a container's spec is called within messages.
const SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const SIGKILL: u32 = 9;

/// One trial.
struct Trial {
    clients: Clients,
    snapshotter: String,
    /// Of the container, its snapshot, its lease: runc has containers of all containerds of a machine in one place.
    id: String,
    image: Image,
}

/// What containers' snapshots of a snapshotter there are: `namespace/container`.
///
/// # Errors
/// If containerd does not say.
pub(super) async fn users(channel: &Channel, snapshotter: &str) -> Result<Vec<String>> {
    let clients = Clients::new(channel.clone(), NAMESPACE, "orlop install")?;
    let mut found = Vec::new();
    for namespace in crate::find::probe::namespaces(channel).await? {
        let mut asked = clients.in_namespace(&namespace)?.containers();
        let listed = asked.list(containers::ListContainersRequest::default()).await?.into_inner().containers;
        let using = listed.into_iter().filter(|container| container.snapshotter == snapshotter);
        found.extend(using.map(|container| format!("{namespace}/{}", container.id)));
    }
    found.sort_unstable();
    Ok(found)
}

/// Starts a container on a snapshotter and removes it.
///
/// # Errors
/// [`Class::Failed`] with the step that failed and what containerd said of it.
pub(super) async fn run(channel: &Channel, snapshotter: &str, patience: Duration) -> Result<()> {
    let Some(image) = Image::new() else {
        let message = format!("no program is known for {}, so that no container can be tried", std::env::consts::ARCH);
        return Err(CliError::new(Class::Failed, message).hint("go on without: --no-check"));
    };
    let id = format!("orlop-install-{}-{:x}", std::process::id(), Timestamp::now().as_nanosecond());
    let clients = Clients::new(channel.clone(), NAMESPACE, "orlop install")?;
    let trial = Trial { clients: clients.with_lease(&id)?, snapshotter: snapshotter.to_owned(), id, image };
    // What a killed one left may have been made with another snapshotter, which is not there any more.
    trial.remove_all().await.map_err(|status| failed("remove what an earlier check left", &status))?;
    let tried = match tokio::time::timeout(patience, trial.start()).await {
        Ok(tried) => tried,
        Err(_) => Err(CliError::new(Class::Failed, format!("it had not ended after {} s", patience.as_secs()))),
    };
    let removed = trial.remove_all().await;
    tried?;
    removed.map_err(|status| failed("remove the container and its image", &status))
}

fn failed(step: &str, status: &Status) -> CliError {
    CliError::new(Class::Failed, format!("{step}: {:?}: {}", status.code(), status.message()))
}

/// For `map_err` on a step.
fn at(step: &'static str) -> impl Fn(Status) -> CliError {
    move |status| failed(step, &status)
}

impl Trial {
    async fn start(&self) -> Result<()> {
        self.hold().await.map_err(at("make a namespace and a lease"))?;
        for blob in self.image.layers.iter().chain([&self.image.config]) {
            self.write(blob, BTreeMap::new()).await.map_err(at("write a blob"))?;
        }
        self.write(&self.image.manifest, self.keeps()).await.map_err(at("write a blob"))?;
        self.unpack().await?;
        let mounts = self.prepare(&self.id, self.top()).await.map_err(at("prepare the container's snapshot"))?;
        let container = self.container();
        let create = containers::CreateContainerRequest { container: Some(container) };
        self.clients.containers().create(create).await.map_err(at("create the container"))?;
        let task = tasks::CreateTaskRequest { container_id: self.id.clone(), rootfs: mounts, ..Default::default() };
        self.clients.tasks().create(task).await.map_err(at("create its task"))?;
        let ended = self.run_task().await?;
        if ended != program::ANSWER {
            let message = format!("the container ended with {ended}, expected {}", program::ANSWER);
            return Err(CliError::new(Class::Failed, message));
        }
        Ok(())
    }

    async fn run_task(&self) -> Result<u32> {
        // Whoever waits before it starts misses no end.
        let mut waiting = self.clients.tasks();
        let wait = tasks::WaitRequest { container_id: self.id.clone(), exec_id: String::new() };
        let waiting = tokio::spawn(async move { waiting.wait(wait).await });
        let start = tasks::StartRequest { container_id: self.id.clone(), exec_id: String::new() };
        if let Err(status) = self.clients.tasks().start(start).await {
            waiting.abort();
            return Err(failed("start it", &status));
        }
        let ended = waiting.await.map_err(|e| CliError::new(Class::Failed, e.to_string()))?;
        Ok(ended.map_err(at("wait for its end"))?.into_inner().exit_status)
    }

    async fn hold(&self) -> Result<(), Status> {
        let namespace = namespaces::Namespace { name: NAMESPACE.to_owned(), labels: BTreeMap::new() };
        let create = namespaces::CreateNamespaceRequest { namespace: Some(namespace) };
        tolerate(self.clients.namespaces().create(create).await, Code::AlreadyExists)?;
        self.clients.lease_for_an_hour(&self.id).await
    }

    /// What the manifest keeps.
    fn keeps(&self) -> BTreeMap<String, String> {
        let key = |what: String| format!("{GC_CONTENT}{what}");
        let layers = self.image.layers.iter().enumerate();
        let mut labels: BTreeMap<_, _> =
            layers.map(|(n, layer)| (key(format!("l.{n}")), layer.digest.to_string())).collect();
        labels.insert(key("config".to_owned()), self.image.config.digest.to_string());
        labels
    }

    async fn write(&self, blob: &Blob, labels: BTreeMap<String, String>) -> Result<(), Status> {
        let message = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: format!("{}-{}", self.id, blob.digest),
            total: blob.bytes.len() as i64,
            expected: blob.digest.to_string(),
            offset: 0,
            data: blob.bytes.clone().into(),
            labels,
        };
        let answers = async {
            let answers = self.clients.content().write(futures::stream::iter([message])).await?.into_inner();
            answers.map(|answer| answer.map(drop)).fold(Ok(()), |all, one| async { all.and(one) }).await
        };
        tolerate(answers.await, Code::AlreadyExists)
    }

    async fn unpack(&self) -> Result<()> {
        let mut parent = "";
        for (layer, chain) in self.image.layers.iter().zip(&self.image.chain) {
            let key = format!("extract-{} {chain}", self.id);
            let mounts = self.prepare(&key, parent).await.map_err(at("prepare a layer's snapshot"))?;
            let diff = Some(descriptor(layer));
            let apply = diff::ApplyRequest { diff, mounts, ..Default::default() };
            self.clients.diff().apply(apply).await.map_err(at("apply a layer"))?;
            let commit = snapshots::CommitSnapshotRequest {
                snapshotter: self.snapshotter.clone(),
                name: chain.clone(),
                key,
                ..Default::default()
            };
            self.clients.snapshots().commit(commit).await.map_err(at("commit a layer's snapshot"))?;
            parent = chain;
        }
        let image = images::Image {
            name: self.id.clone(),
            target: Some(descriptor(&self.image.manifest)),
            ..Default::default()
        };
        let create = images::CreateImageRequest { image: Some(image), ..Default::default() };
        self.clients.images().create(create).await.map(drop).map_err(at("write the image's record"))
    }

    async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let asked = snapshots::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            ..Default::default()
        };
        Ok(self.clients.snapshots().prepare(asked).await?.into_inner().mounts)
    }

    fn top(&self) -> &str {
        self.image.chain.last().map_or("", String::as_str)
    }

    fn container(&self) -> containers::Container {
        let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({"type": kind}));
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 0, "gid": 0}, "args": [program::PATH], "cwd": "/", "env": ["PATH=/"],
                "noNewPrivileges": true, "capabilities": {},
            },
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": format!("/{NAMESPACE}/{}", self.id),
                "namespaces": namespaces,
            },
        });
        let spec = prost_types::Any { type_url: SPEC.to_owned(), value: spec.to_string().into_bytes() };
        containers::Container {
            id: self.id.clone(),
            image: self.id.clone(),
            runtime: Some(containers::container::Runtime { name: RUNTIME.to_owned(), options: None }),
            spec: Some(spec),
            snapshotter: self.snapshotter.clone(),
            snapshot_key: self.id.clone(),
            ..Default::default()
        }
    }

    /// Removes all that is in the namespace, and it.
    async fn remove_all(&self) -> Result<(), Status> {
        let listed = self.clients.namespaces().list(namespaces::ListNamespacesRequest::default()).await?.into_inner();
        if listed.namespaces.iter().all(|namespace| namespace.name != NAMESPACE) {
            return Ok(());
        }
        let listed = self.clients.containers().list(containers::ListContainersRequest::default()).await?.into_inner();
        for container in listed.containers {
            self.remove_container(container).await?;
        }
        let listed = self.clients.images().list(images::ListImagesRequest::default()).await?.into_inner();
        for image in listed.images {
            let delete = images::DeleteImageRequest { name: image.name, sync: false, ..Default::default() };
            tolerate(self.clients.images().delete(delete).await, Code::NotFound)?;
        }
        // The last one waits for a collection of all that nothing keeps any more.
        let listed = self.clients.leases().list(leases::ListRequest::default()).await?.into_inner();
        for lease in listed.leases {
            let delete = leases::DeleteRequest { id: lease.id, sync: true };
            tolerate(self.clients.leases().delete(delete).await, Code::NotFound)?;
        }
        let delete = namespaces::DeleteNamespaceRequest { name: NAMESPACE.to_owned() };
        tolerate(self.clients.namespaces().delete(delete).await, Code::NotFound)
    }

    async fn remove_container(&self, container: containers::Container) -> Result<(), Status> {
        let id = container.id;
        let kill = tasks::KillRequest { container_id: id.clone(), signal: SIGKILL, all: true, ..Default::default() };
        if self.clients.tasks().kill(kill).await.is_ok() {
            let wait = tasks::WaitRequest { container_id: id.clone(), exec_id: String::new() };
            tolerate(self.clients.tasks().wait(wait).await, Code::NotFound)?;
        }
        let delete = tasks::DeleteTaskRequest { container_id: id.clone() };
        tolerate(self.clients.tasks().delete(delete).await, Code::NotFound)?;
        tolerate(self.clients.containers().delete(containers::DeleteContainerRequest { id }).await, Code::NotFound)?;
        let remove =
            snapshots::RemoveSnapshotRequest { snapshotter: container.snapshotter, key: container.snapshot_key };
        match self.clients.snapshots().remove(remove).await {
            // Of a snapshotter that is not there any more nothing can be removed.
            Err(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// An answer, or one kind of error that is as good.
fn tolerate<T>(answer: Result<T, Status>, as_good: Code) -> Result<(), Status> {
    match answer {
        Err(status) if status.code() != as_good => Err(status),
        _ => Ok(()),
    }
}

fn descriptor(blob: &Blob) -> Descriptor {
    Descriptor {
        media_type: blob.media_type.to_owned(),
        digest: blob.digest.to_string(),
        size: blob.bytes.len() as i64,
        ..Default::default()
    }
}
