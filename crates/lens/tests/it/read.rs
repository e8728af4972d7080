//! What is read of a real containerd is what its own `ctr` lists.

use std::collections::BTreeSet;

use orlop_graph::model::{Inventory, Model, Node, NodeId, NodeKind, Resource, Role};
use orlop_lens::{Documents, Reader};
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;

fn generations() -> Vec<Programs> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containerd needs root");
        return Vec::new();
    }
    [Programs::debian(), Programs::current()].into_iter().flatten().collect()
}

fn image(own: &str) -> Content {
    let below = Layer::new([Entry::dir("etc"), Entry::file("etc/base", "x".repeat(9_000))]);
    let above = Layer::noise(own, 3, 100_000).packed(Compression::Gzip);
    Content::image(&Image::host().layer(below.packed(Compression::Gzip)).layer(above))
}

/// Two images that share a layer, one of them in two namespaces, a lease, a container, a label.
fn filled(programs: &Programs) -> Containerd {
    let containerd = Containerd::start(programs, &Options::default());
    let dir = tempfile::tempdir().unwrap();
    let import = |namespace: &str, name: &str, own: &str| {
        let file = dir.path().join("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(name, &image(own))])).unwrap();
        containerd.import(namespace, &file, "overlayfs").ok();
    };
    import("k8s.io", "docker.io/library/one:1", "one");
    import("k8s.io", "docker.io/library/two:1", "two");
    import("default", "docker.io/library/one:1", "one");
    containerd.ctr("k8s.io", &["leases", "create", "--id", "held", "--expires", "1h"]).ok();
    containerd.ctr("k8s.io", &["images", "label", "docker.io/library/one:1", "team=blue"]).ok();
    containerd.ctr("k8s.io", &["containers", "create", "docker.io/library/one:1", "web"]).ok();
    collect(&containerd);
    containerd
}

/// Has garbage collected: a lease's removal waits for that if asked to.
fn collect(containerd: &Containerd) {
    containerd.ctr("k8s.io", &["leases", "create", "--id", "gone", "--expires", "1h"]).ok();
    containerd.ctr("k8s.io", &["leases", "rm", "--sync", "gone"]).ok();
}

async fn read(containerd: &Containerd) -> (Reader, Inventory) {
    let reader = Reader::new(orlop_api::channel::unix(&containerd.socket()).await.unwrap());
    let mut inventory = reader.inventory(None).await.unwrap();
    reader.measure(&mut inventory, |_| true).await.unwrap();
    (reader, inventory)
}

fn lines(containerd: &Containerd, namespace: &str, args: &[&str]) -> BTreeSet<String> {
    containerd.ctr(namespace, args).ok().stdout.lines().map(str::to_owned).collect()
}

/// The first words of a table's rows.
fn firsts(containerd: &Containerd, namespace: &str, args: &[&str]) -> BTreeSet<String> {
    let word = |line: String| line.split_whitespace().next().unwrap_or_default().to_owned();
    let out = containerd.ctr(namespace, args).ok().stdout;
    out.lines().skip(1).map(|line| word(line.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_has_records_and_blobs_and_snapshots_unless_they_are_too_many() {
    for programs in generations() {
        let containerd = filled(&programs);
        let reader = Reader::new(orlop_api::channel::unix(&containerd.socket()).await.unwrap());
        let all = reader.inventory(None).await.unwrap();
        let count = all.snapshots.len();
        assert!(count > 2 && all.namespaces.len() > 1);
        let few = reader.listing(count).await.unwrap();
        assert!(few.all_snapshots);
        assert_eq!((&few.inventory.records, &few.inventory.blobs), (&all.records, &all.blobs));
        assert_eq!(few.inventory.snapshots.len(), count);
        for most in [count - 1, 0] {
            let many = reader.listing(most).await.unwrap();
            assert!(!many.all_snapshots && many.inventory.snapshots.is_empty(), "{most}");
            assert_eq!((&many.inventory.records, &many.inventory.blobs), (&all.records, &all.blobs));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_list_of_every_namespace_is_what_ctr_shows() {
    for programs in generations() {
        let containerd = filled(&programs);
        let (_, inventory) = read(&containerd).await;
        assert_eq!(inventory.gaps, [], "{}", programs.version());
        let names: Vec<&str> = inventory.namespaces.iter().map(|n| &*n.name).collect();
        assert_eq!(names, ["default", "k8s.io"]);
        for (at, namespace) in names.iter().enumerate() {
            let at = at as u16;
            let records = inventory.records.iter().filter(|r| r.namespace == at).map(|r| r.name.to_string());
            assert_eq!(records.collect::<BTreeSet<_>>(), lines(&containerd, namespace, &["images", "ls", "-q"]));
            let blobs = inventory.blobs.iter().filter(|b| b.namespace == at).map(|b| b.digest.to_string());
            assert_eq!(blobs.collect::<BTreeSet<_>>(), lines(&containerd, namespace, &["content", "ls", "-q"]));
            let snapshots = inventory.snapshots.iter().filter(|s| s.namespace == at).map(|s| s.key.to_string());
            assert_eq!(snapshots.collect::<BTreeSet<_>>(), firsts(&containerd, namespace, &["snapshots", "ls"]));
            let leases = inventory.leases.iter().filter(|l| l.namespace == at).map(|l| l.id.to_string());
            assert_eq!(leases.collect::<BTreeSet<_>>(), lines(&containerd, namespace, &["leases", "ls", "-q"]));
            let containers = inventory.containers.iter().filter(|c| c.namespace == at).map(|c| c.id.to_string());
            assert_eq!(containers.collect::<BTreeSet<_>>(), lines(&containerd, namespace, &["containers", "ls", "-q"]));
        }
        let one = inventory.records.iter().find(|r| r.namespace == 1 && r.name.contains("one")).unwrap();
        assert_eq!(one.labels.get("team"), Some("blue"));
        assert!(one.created.is_some() && one.updated > one.created);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_tells_roles_sharing_and_usage_without_reading_a_document() {
    for programs in generations() {
        let containerd = filled(&programs);
        let (reader, inventory) = read(&containerd).await;
        let model = Model::new(inventory);
        let k8s = 1;
        let record = model.record(k8s, "docker.io/library/one:1").unwrap();
        let images = model.images();
        let sizes = model.sizes(&images);
        let at = images.iter().position(|image| image.records.contains(&record)).unwrap();
        assert_eq!((sizes[at].missing, sizes[at].unmeasured), (0, 0));
        // What containerd says that the snapshots take.
        let chain = firsts(&containerd, "k8s.io", &["snapshots", "ls"]);
        let mut expected = 0;
        for node in model.nodes(NodeKind::Snapshot) {
            let Node::Snapshot(row) = model.node(node) else { unreachable!() };
            assert!(row.namespace != k8s || chain.contains(&*row.key));
            let said = containerd.ctr("k8s.io", &["snapshots", "usage", "-b", &row.key]);
            let said = said.stdout.lines().nth(1).unwrap_or_default().split_whitespace().nth(1).map(str::to_owned);
            if row.namespace == k8s {
                assert_eq!(said, Some(row.usage.unwrap().bytes.to_string()), "{}", row.key);
                let image_keeps = model.reached(&[record]).contains(node);
                expected += if image_keeps { row.usage.unwrap().bytes } else { 0 };
            }
        }
        assert_eq!(sizes[at].unpacked, expected);
        assert!(sizes[at].shared > sizes[at].compressed, "all blobs are in two namespaces, a snapshot in two images");
        let target = model.references(record).next().unwrap().node;
        let mut documents = Documents::default();
        let Node::Blob(row) = model.node(target) else { panic!("the target is here") };
        reader.documents(&mut documents, [("k8s.io".into(), row.digest.clone(), row.size)]).await.unwrap();
        assert_eq!(documents.get(&row.digest).unwrap().len() as u64, row.size);
        let roles: BTreeSet<Role> = model.nodes(NodeKind::Blob).map(|blob| model.role(blob)).collect();
        assert!(roles.is_superset(&[Role::Manifest, Role::Config, Role::Layer].into()), "{roles:?}");
        let users = model.users(&[record]);
        assert_eq!(users.len(), 1);
    }
}

/// Things that take space, by name.
fn named(model: &Model, nodes: impl Iterator<Item = NodeId>) -> BTreeSet<String> {
    let name = |node| match model.node(node) {
        Node::Blob(row) => format!("{} {}", row.namespace, row.digest),
        Node::Snapshot(row) => format!("{} {}", row.namespace, row.key),
        other => format!("{other:?}"),
    };
    nodes.map(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_model_calls_garbage_is_what_containerd_collects() {
    for programs in generations() {
        let containerd = filled(&programs);
        let (_, inventory) = read(&containerd).await;
        // containerd collects when it likes: a lease keeps everything until it has been looked at.
        for namespace in ["k8s.io", "default"] {
            containerd.ctr(namespace, &["leases", "create", "--id", "last", "--expires", "1h"]).ok();
            let record = inventory.records.iter().find(|r| r.name.contains("one")).unwrap();
            list(&containerd, namespace, "last", "content", record.target.as_str()).await;
            containerd.ctr(namespace, &["images", "rm", "docker.io/library/one:1"]).ok();
        }
        let before = Model::new(read(&containerd).await.1);
        let leases: Vec<NodeId> = before.nodes(NodeKind::Lease).filter(|lease| is_last(&before, *lease)).collect();
        let kept = before.kept_without(&leases);
        let (stays, goes) = before.items().partition::<Vec<_>, _>(|item| kept.contains(*item));
        for namespace in ["k8s.io", "default"] {
            containerd.ctr(namespace, &["leases", "rm", "--sync", "last"]).ok();
        }
        let after = Model::new(read(&containerd).await.1);
        assert_eq!(after.garbage(), [], "{}", programs.version());
        assert_eq!(named(&after, after.items()), named(&before, stays.into_iter()), "{}", programs.version());
        // All of it where there is no container; the container's snapshots, and the layer that another image has, stay.
        assert_eq!(goes.len(), (2 + 4) + 3, "{:?}", named(&before, goes.into_iter()));
    }
}

fn is_last(model: &Model, lease: NodeId) -> bool {
    matches!(model.node(lease), Node::Lease(row) if &*row.id == "last")
}

/// Adds a resource to a lease, for which `ctr` has no command.
async fn list(containerd: &Containerd, namespace: &str, lease: &str, kind: &str, id: &str) {
    use orlop_api::containerd::services::leases::v1 as pb;
    let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
    let resource = Some(pb::Resource { id: id.into(), r#type: kind.into() });
    let mut request = tonic::Request::new(pb::AddResourceRequest { id: lease.into(), resource });
    request.metadata_mut().insert("containerd-namespace", namespace.parse().unwrap());
    pb::leases_client::LeasesClient::new(channel).add_resource(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leases_list_is_read() {
    for programs in generations() {
        let containerd = filled(&programs);
        let blob = lines(&containerd, "default", &["content", "ls", "-q"]).pop_first().unwrap();
        let reader = Reader::new(orlop_api::channel::unix(&containerd.socket()).await.unwrap());
        for (kind, id) in [("content", blob.as_str()), ("snapshots/overlayfs", "some key"), ("ingests", "some-ref")] {
            list(&containerd, "k8s.io", "held", kind, id).await;
        }
        let inventory = reader.inventory(Some(&["k8s.io"])).await.unwrap();
        let lease = inventory.leases.iter().find(|l| &*l.id == "held").unwrap();
        let listed: BTreeSet<String> = lease.resources.iter().map(|r| format!("{r:?}")).collect();
        let expected = [
            Resource::Content(blob.parse().unwrap()),
            Resource::Snapshot { snapshotter: "overlayfs".into(), key: "some key".into() },
            Resource::Ingest("some-ref".into()),
        ];
        assert_eq!(listed, expected.iter().map(|r| format!("{r:?}")).collect(), "{}", programs.version());
        let model = Model::new(inventory);
        assert_eq!(model.nodes(NodeKind::Missing).filter(|n| model.referrers(*n).len() > 0).count(), 2);
    }
}
