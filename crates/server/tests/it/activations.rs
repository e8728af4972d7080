//! Mounts that the server makes, beside a real containerd: the same calls on both, what they answer and what is mounted then.
//! Needs root.

use std::path::Path;

use crate::common;
use crate::common::mounts::{Map, Side, collect_until_unmounted, mount, node};
use crate::common::{labels, request};
use orlop_api::containerd::services::containers::v1 as containers;
use orlop_api::containerd::services::containers::v1::containers_client::ContainersClient;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::types::{Descriptor, Mount};
use orlop_metadata::gc::Disposal;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::mounts::mounted;
use orlop_testkit::process::need_root;
use rustix::mount::UnmountFlags;
use tonic::Code;

/// What is tried: a name, mounts, whether temporary.
fn tries(side: &Side) -> Vec<(&'static str, Vec<Mount>, bool)> {
    let bind = |path: &str| mount("bind", &side.at(path), &["rbind", "ro"]);
    let (writable, outside) = (mount("bind", &side.at("b"), &["rbind"]), "X-containerd.mkdir.path=/orlop-nowhere/x");
    let made = format!("X-containerd.mkdir.path={}:750", side.at("made"));
    let other_mode = format!("X-containerd.mkdir.path={}:700", side.at("made"));
    let lower = format!("lowerdir={}:{}", side.at("a"), side.at("b"));
    vec![
        ("plain", vec![bind("a")], false),
        ("format", vec![bind("a"), mount("format/bind", "{{ mount 0 }}/sub", &["rbind", "x={{ source 0 }}"])], false),
        (
            "layers",
            vec![bind("a"), bind("b"), mount("format/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"])],
            false,
        ),
        (
            "upwards",
            vec![bind("a"), bind("b"), mount("format/overlay", "overlay", &["lowerdir={{ overlay 0 1 }}"])],
            false,
        ),
        ("rest", vec![mount("format/bind", "x", &[]), mount("bind", "{{ mount 0 }}", &[])], false),
        ("made", vec![mount("mkdir/bind", &side.at("made"), &[&made, "rbind"])], false),
        ("again", vec![mount("mkdir/bind", &side.at("made"), &[&made, "rbind"])], false),
        ("other-mode", vec![mount("mkdir/bind", "x", &[&other_mode])], false),
        ("outside", vec![mount("mkdir/bind", "x", &[outside])], false),
        ("bad-mkdir", vec![mount("mkdir/bind", "x", &["X-containerd.mkdir.x=y"])], false),
        (
            "both",
            vec![
                writable,
                mount(
                    "format/mkdir/bind",
                    "{{ mount 0 }}/new",
                    &["X-containerd.mkdir.path={{ mount 0 }}/new", "rbind"],
                ),
            ],
            false,
        ),
        ("odd", vec![bind("a"), mount("odd/bind", "x", &[])], false),
        ("format", vec![bind("a"), mount("format/bind", "x", &[])], false),
        ("temporary", vec![bind("a")], true),
        ("temporary-overlay", vec![bind("a"), mount("overlay", "overlay", &[&lower])], true),
        ("temporary-format", vec![bind("a"), mount("format/bind", "{{ mount 0 }}/sub", &["rbind"])], true),
        ("temporary-tmpfs", vec![mount("tmpfs", "tmpfs", &["nosuid", "size=64k", "mode=700"])], true),
        ("temporary-none", vec![], true),
    ]
}

async fn transcript(side: &mut Side, points: &Path) -> Vec<String> {
    let mut told = Vec::new();
    let before = mounted(points).len();
    // Without a lease, what is activated may go at any time.
    let created = leases::CreateRequest { id: "transcript".into(), ..Default::default() };
    LeasesClient::new(side.channel.clone()).create(request(created)).await.unwrap();
    for (name, mounts, temporary) in tries(side) {
        let label = labels(&[("k", name)]);
        let answer = side.activate(name, mounts, label, temporary, Some("transcript")).await;
        told.push(format!("activate {}", side.shown(answer)));
        let answer = side.info(name).await;
        told.push(format!("info {}", side.shown(answer)));
    }
    let kinds: Vec<String> = mounted(points).into_iter().skip(before).map(|(_, kind)| kind).collect();
    told.push(format!("mounted {} of them overlay {}", kinds.len(), kinds.iter().filter(|k| *k == "overlay").count()));
    told.push(format!("list {:?}", side.names().await));
    for name in side.names().await {
        told.push(format!("deactivate {name} {:?}", side.deactivate(&name).await.map_err(|s| s.code())));
        told.push(format!("again {:?}", side.deactivate(&name).await.map_err(|s| s.code())));
    }
    told.push(format!("left {:?} {}", side.names().await, mounted(points).len() - before));
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_mounts_are_containerds() {
    if !need_root() {
        return;
    }
    let (node, root, _cleaned) = node();
    let ours = transcript(&mut Side::new(&node.channel, &root), &root.join("mounts")).await;
    assert!(ours.iter().any(|line| line.contains("lowerdir=@1:@0")), "{ours:#?}");
    assert_eq!(ours.last().unwrap(), "left [] 0", "{ours:#?}");
    assert_eq!(std::fs::read_dir(root.join("mounts")).unwrap().count(), 0, "directories are left");
    let Some(programs) = Programs::current() else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
    let state = containerd.root().with_file_name("state");
    assert_eq!(ours, transcript(&mut Side::new(&channel, &containerd.root()), &state).await);
}

/// The activations that are left after a collection, which the deletion of a lease waits for; and how many mounts.
async fn left(side: &mut Side, points: &Path) -> (Vec<String>, usize) {
    let mut client = LeasesClient::new(side.channel.clone());
    client.create(request(leases::CreateRequest { id: "forced".into(), ..Default::default() })).await.unwrap();
    client.delete(request(leases::DeleteRequest { id: "forced".into(), sync: true })).await.unwrap();
    (side.names().await, mounted(points).len())
}

async fn collected(side: &mut Side, points: &Path) -> Vec<(Vec<String>, usize)> {
    let mut client = LeasesClient::new(side.channel.clone());
    for (id, flat) in [("lease", None), ("flat", Some(("containerd.io/gc.flat", "1")))] {
        let labels = labels(&flat.into_iter().collect::<Vec<_>>());
        client.create(request(leases::CreateRequest { id: id.into(), labels })).await.unwrap();
    }
    let target = Descriptor {
        media_type: "x".into(),
        digest: format!("sha256:{}", "0".repeat(64)),
        size: 1,
        ..Default::default()
    };
    for (name, label) in [("holds", "containerd.io/gc.ref.mount/any"), ("holds-not", "containerd.io/gc.ref.mounts")] {
        let labels = labels(&[(label, if name == "holds" { "named" } else { "misnamed" })]);
        let image =
            Some(images::Image { name: name.into(), labels, target: Some(target.clone()), ..Default::default() });
        let wanted = images::CreateImageRequest { image, ..Default::default() };
        ImagesClient::new(side.channel.clone()).create(request(wanted)).await.unwrap();
    }
    let runtime = Some(containers::container::Runtime { name: "r".into(), options: None });
    let spec = Some(prost_types::Any::default());
    let container = Some(containers::Container { id: "c".into(), runtime, spec, ..Default::default() });
    let wanted = containers::CreateContainerRequest { container };
    ContainersClient::new(side.channel.clone()).create(request(wanted)).await.unwrap();

    let source = side.at("a");
    for (name, label, lease) in [
        ("alone", None, None),
        ("leased", None, Some("lease")),
        ("flat", None, Some("flat")),
        ("named", None, None),
        ("misnamed", None, None),
        ("of-container", Some(("containerd.io/gc.bref.container", "c")), None),
        ("of-nobody", Some(("containerd.io/gc.bref.container", "d")), None),
        ("of-image", Some(("containerd.io/gc.bref.image.x", "holds")), None),
        ("root", Some(("containerd.io/gc.root", "1")), None),
    ] {
        let labels = labels(&label.into_iter().collect::<Vec<_>>());
        side.activate(name, vec![mount("bind", &source, &["rbind"])], labels, true, lease).await.unwrap();
    }
    let mut told = vec![left(side, points).await];
    let deleted = leases::DeleteRequest { id: "lease".into(), sync: true };
    client.delete(request(deleted)).await.unwrap();
    told.push(left(side, points).await);
    let wanted = containers::DeleteContainerRequest { id: "c".into() };
    ContainersClient::new(side.channel.clone()).delete(request(wanted)).await.unwrap();
    let wanted = images::DeleteImageRequest { name: "holds".into(), sync: true, ..Default::default() };
    ImagesClient::new(side.channel.clone()).delete(request(wanted)).await.unwrap();
    told.push(left(side, points).await);
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_an_activation_is_what_keeps_it_in_containerd() {
    if !need_root() {
        return;
    }
    let (node, root, _cleaned) = node();
    let ours = collected(&mut Side::new(&node.channel, &root), &root.join("mounts")).await;
    assert_eq!(ours[0].0, ["flat", "leased", "named", "of-container", "of-image"]);
    assert_eq!(ours[2], (vec!["flat".to_owned()], 1));
    let full = node.store.collect_full(Disposal::Reclaim).unwrap();
    assert!(full.missed.is_empty() && full.mounts.is_empty(), "{full:?}");
    assert_eq!(node.store.check_metadata().unwrap(), []);
    let held = leases::ListResourcesRequest { id: "flat".into() };
    let held = LeasesClient::new(node.channel.clone()).list_resources(request(held)).await.unwrap().into_inner();
    assert!(held.resources.is_empty(), "as in containerd");
    let Some(programs) = Programs::current() else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
    let state = containerd.root().with_file_name("state");
    assert_eq!(ours, collected(&mut Side::new(&channel, &containerd.root()), &state).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_still_mounted_is_known_after_a_restart_and_what_is_not_goes() {
    if !need_root() {
        return;
    }
    let (node, root, _cleaned) = node();
    let mut side = Side::new(&node.channel, &root);
    node.store.create_lease("test", "l", Map::new()).unwrap();
    let mut points = Vec::new();
    for name in ["stays", "lost"] {
        let source = mount("bind", &side.at("a"), &["rbind"]);
        let made = side.activate(name, vec![source], Map::new(), true, Some("l")).await.unwrap();
        points.push(made.active[0].mount_point.clone());
    }
    // As the machine's restart does, or a person.
    rustix::mount::unmount(points[1].as_str(), UnmountFlags::empty()).unwrap();
    let other = common::open(&root);
    other.settle_mounts().unwrap();
    other.collect(Disposal::Reclaim).unwrap();
    let names: Vec<String> = other.activations("test").unwrap().into_iter().map(|a| a.name).collect();
    assert_eq!(names, ["stays"]);
    assert_eq!(mounted(&root).len(), 1);
    assert!(Path::new(&points[0]).join("sub/file").exists() && !Path::new(&points[1]).exists());
    assert_eq!(other.check_metadata().unwrap(), []);
    side.deactivate("stays").await.unwrap();
    assert!(mounted(&root).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_is_unmounted_later_and_a_failure_leaves_nothing() {
    if !need_root() {
        return;
    }
    let (node, root, _cleaned) = node();
    let mut side = Side::new(&node.channel, &root);
    let source = || mount("bind", &side.work.join("a").display().to_string(), &["rbind"]);
    let (first, second) = (source(), source());
    for broken in [
        mount("bind", "/orlop-nowhere", &["rbind"]),
        mount("format/bind", "{{ mount 7 }}", &[]),
        mount("no-such-file-system", "x", &[]),
        mount("overlay", "overlay", &["lowerdir=/orlop-nowhere"]),
    ] {
        side.activate("broken", vec![first.clone(), broken], Map::new(), true, None).await.unwrap_err();
        assert_eq!((mounted(&root).len(), std::fs::read_dir(root.join("mounts")).unwrap().count()), (0, 0));
    }
    let told = side.activate("t", vec![mount("format/bind", "{{ mount 7 }}", &[])], Map::new(), false, None).await;
    assert_eq!(told.unwrap_err().code(), Code::InvalidArgument);

    let made = side.activate("used", vec![second], Map::new(), true, None).await.unwrap();
    let open = std::fs::File::open(Path::new(&made.active[0].mount_point).join("sub/file")).unwrap();
    let told = side.deactivate("used").await.unwrap_err();
    assert_eq!(told.code(), Code::FailedPrecondition, "{told:?}");
    assert!(told.message().contains("still uses it"), "{}", told.message());
    node.store.collect(Disposal::Reclaim).unwrap();
    assert_eq!((side.names().await.len(), mounted(&root).len()), (0, 1));
    drop(open);
    collect_until_unmounted(&node.store);
    assert_eq!((mounted(&root).len(), std::fs::read_dir(root.join("mounts")).unwrap().count()), (0, 0));
}
