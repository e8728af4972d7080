//! A containerd with something of everything.

use std::process::Command;

use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::content::v1::{WriteAction, WriteContentRequest};
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::leases::v1::{AddResourceRequest, Resource as Listed};
use orlop_graph::model::{Inventory, Resource, SnapshotKind};
use orlop_lens::offline::Root;
use orlop_oci::{Compression, Digest};
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::{need_root, output};
use orlop_testkit::registry::{self, Registry};
use orlop_testkit::tar::Entry;
use tonic::Request;

pub(crate) fn generations() -> Vec<Programs> {
    if !need_root() {
        return Vec::new();
    }
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

/// A containerd, and what is special in it.
pub(crate) struct Store {
    pub(crate) containerd: Containerd,
    /// A blob that is there.
    pub(crate) blob: Digest,
    pulled: bool,
    cri_pulled: bool,
}

pub(crate) fn image(own: &str) -> Content {
    let below = Layer::new([Entry::dir("etc"), Entry::file("etc/base", "x".repeat(9_000))]);
    let above = Layer::noise(own, 3, 100_000).packed(Compression::Gzip);
    Content::image(&Image::host().layer(below.packed(Compression::Gzip)).layer(above))
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, "k8s.io".parse().unwrap());
    request
}

impl Store {
    pub(crate) async fn filled(programs: &Programs, cri: bool) -> Self {
        // No collection but those that a test asks for.
        let config = "[plugins.\"io.containerd.gc.v1.scheduler\"]\nmutation_threshold = 100000\n".to_owned();
        let containerd = Containerd::start(programs, &Options { cri, config, ..Options::default() });
        let content = image("two");
        let blob = content.layers()[0].clone();
        let mut store = Self { containerd, blob, pulled: false, cri_pulled: false };
        store.import("k8s.io", "docker.io/library/one:1", &image("one"), "overlayfs");
        store.import("k8s.io", "docker.io/library/two:1", &content, "overlayfs");
        store.import("default", "docker.io/library/one:1", &image("one"), "native");
        store.pull(cri);
        store.label_and_make();
        store.hold().await;
        store.snapshots();
        store.write().await;
        store
    }

    pub(crate) fn import(&self, namespace: &str, name: &str, content: &Content, snapshotter: &str) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
        self.containerd.import(namespace, &file, snapshotter).ok();
    }

    pub(crate) fn ctr(&self, namespace: &str, args: &[&str]) {
        self.containerd.ctr(namespace, args).ok();
    }

    /// Into a namespace of its own, and by CRI.
    fn pull(&mut self, cri: bool) {
        let Some(registry) = Registry::start(&registry::Options::new()) else { return };
        let name = format!("{}/app:1", registry.host());
        self.ctr("k8s.io", &["images", "push", "--plain-http", &name, "docker.io/library/two:1"]);
        self.ctr("third", &["images", "pull", "--plain-http", &name]);
        self.pulled = true;
        let Some(crictl) = Programs::current().map(|programs| programs.ctr.with_file_name("crictl")) else { return };
        if cri && crictl.exists() {
            let endpoint = format!("unix://{}", self.containerd.socket().display());
            let mut command = Command::new(crictl);
            command.args(["--config", "/dev/null", "-t", "60s", "-r", &endpoint, "-i", &endpoint, "pull", &name]);
            output(&mut command).ok();
            self.cri_pulled = true;
        }
    }

    fn label_and_make(&self) {
        self.ctr("k8s.io", &["namespaces", "label", "k8s.io", "team=red"]);
        self.ctr("k8s.io", &["namespaces", "create", "empty", "purpose=none"]);
        self.ctr("k8s.io", &["images", "label", "docker.io/library/one:1", "team=blue"]);
        self.ctr("k8s.io", &["images", "tag", "docker.io/library/one:1", "docker.io/library/one:again"]);
        self.ctr("k8s.io", &["containers", "create", "docker.io/library/one:1", "web"]);
        let layer = image("one").layers()[0].to_string();
        self.ctr("default", &["content", "label", &layer, "containerd.io/gc.root=yes"]);
    }

    /// One of each kind, with files in the one that is written to.
    fn snapshots(&self) {
        let taken = |args: &[&str]| self.ctr("k8s.io", &[&["snapshots"], args].concat());
        taken(&["prepare", "first"]);
        taken(&["commit", "layer", "first"]);
        taken(&["prepare", "active", "layer"]);
        taken(&["view", "looked at", "layer"]);
        taken(&["label", "looked at", "why=test"]);
        taken(&["--snapshotter", "native", "prepare", "copy"]);
        let stored = Root::open(&self.containerd.root()).unwrap().read().unwrap();
        for (key, below) in [("active", "fs"), ("copy", ".")] {
            let row = stored.inventory.snapshots.iter().find(|row| &*row.key == key).unwrap();
            let tree = stored.directory(row).unwrap().join(below);
            std::fs::write(tree.join("written"), vec![1; 70_000]).unwrap();
            std::fs::hard_link(tree.join("written"), tree.join("linked")).unwrap();
            std::fs::create_dir(tree.join("directory")).unwrap();
            std::os::unix::fs::symlink("written", tree.join("directory/link")).unwrap();
        }
    }

    /// A lease that lists one of each, and what is made afterwards: a collection may come at any time.
    async fn hold(&self) {
        self.ctr("k8s.io", &["leases", "create", "--id", "held", "--expires", "1h"]);
        let channel = orlop_api::channel::unix(&self.containerd.socket()).await.unwrap();
        let mut leases = LeasesClient::new(channel);
        let blob = self.blob.to_string();
        let snapshots = ["first", "layer", "active", "looked at"].map(|key| ("snapshots/overlayfs", key));
        let others = [("content", &*blob), ("ingests", "under way"), ("snapshots/native", "copy")];
        for (r#type, id) in snapshots.into_iter().chain(others) {
            let resource = Some(Listed { id: id.into(), r#type: r#type.into() });
            leases.add_resource(in_namespace(AddResourceRequest { id: "held".into(), resource })).await.unwrap();
        }
    }

    /// A write that does not end.
    async fn write(&self) {
        let channel = orlop_api::channel::unix(&self.containerd.socket()).await.unwrap();
        let part = WriteContentRequest {
            action: WriteAction::Write.into(),
            r#ref: "under way".into(),
            total: 1000,
            expected: Digest::of(b"not yet").to_string(),
            data: b"begun".to_vec().into(),
            ..Default::default()
        };
        let mut answers =
            ContentClient::new(channel).write(in_namespace(futures::stream::iter([part]))).await.unwrap().into_inner();
        while answers.message().await.unwrap().is_some() {}
    }

    /// So that a comparison of nothing with nothing is not taken for one.
    pub(crate) fn holds_something_of_everything(&self, found: &Inventory, cri: bool) {
        let names: Vec<&str> = found.namespaces.iter().map(|n| &*n.name).collect();
        let expected = ["default", "empty", "k8s.io", "third"];
        assert_eq!(names, expected.into_iter().filter(|n| self.pulled || *n != "third").collect::<Vec<_>>());
        assert_eq!(found.namespaces[2].labels.get("team"), Some("red"));
        for kind in [SnapshotKind::Active, SnapshotKind::View, SnapshotKind::Committed] {
            assert!(found.snapshots.iter().any(|row| row.kind == kind && row.usage.is_some()), "{kind:?}");
        }
        for snapshotter in ["overlayfs", "native"] {
            assert!(found.snapshots.iter().any(|row| &*row.snapshotter == snapshotter && row.parent.is_some()));
        }
        let resources = &found.leases.iter().find(|lease| &*lease.id == "held").unwrap().resources;
        assert!(resources.contains(&Resource::Ingest("under way".into())) && resources.len() == 7, "{resources:?}");
        assert_eq!(found.ingests.len(), 1);
        assert_eq!(found.containers.len(), 1);
        assert!(found.blobs.len() > 8 && found.records.len() >= 4);
        let ids = found.records.iter().filter(|record| record.name.starts_with("sha256:")).count();
        assert_eq!(ids > 0, cri, "hash references are CRI's");
        assert!(!self.cri_pulled || found.records.iter().any(|record| record.name.contains("/app@sha256:")));
    }
}
