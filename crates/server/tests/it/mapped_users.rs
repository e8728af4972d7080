//! Mounts with `uidmap=` and `gidmap=`, beside a real containerd: the same calls on both, what they answer and whose the files
//! are then; and that nothing is left where it cannot be done. Needs root.

use std::os::unix::fs::{MetadataExt, chown, lchown};
use std::path::Path;

use crate::common;
use crate::common::mounts::{Map, Side, mount, node};
use crate::common::request;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::types::{ActivationInfo, Mount};
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::mounts::{mounted, need_file_system, need_loop_devices};
use orlop_testkit::process::{need, need_root, run};
use rustix::mount::UnmountFlags;
use tonic::Code;

/// Files of many owners: `a` with `sub/file`, `sub/two` and `link`, `b` with `other`; users from 0 on, groups from 100.
fn prepare(side: &Side) {
    // What is there still, of an earlier try.
    for tree in ["a", "b", "upper", "work"] {
        let _ = std::fs::remove_dir_all(side.at(tree));
    }
    std::fs::create_dir_all(side.at("a/sub")).unwrap();
    std::fs::create_dir(side.at("b")).unwrap();
    for file in ["a/sub/file", "a/sub/two", "b/other"] {
        std::fs::write(side.at(file), file).unwrap();
    }
    std::os::unix::fs::symlink("sub", side.at("a/link")).unwrap();
    for (path, owner) in
        [("a", 0), ("b", 0), ("a/sub", 1), ("a/sub/file", 2), ("a/sub/two", 5), ("a/link", 6), ("b/other", 3)]
    {
        lchown(side.at(path), Some(owner), Some(100 + owner)).unwrap();
    }
    for directory in ["upper", "work"] {
        std::fs::create_dir(side.at(directory)).unwrap();
        chown(side.at(directory), Some(1000), Some(2000)).unwrap();
    }
}

/// A bind mount of `a` with these options and `rbind`.
fn bind(side: &Side, options: &[&str]) -> Mount {
    mount("bind", &side.at("a"), &[&["rbind"], options].concat())
}

const MAPPED: [&str; 2] = ["uidmap=0:1000:4", "gidmap=100:2000:4"];

/// What is tried, and comes out alike: a name, mounts, whether temporary.
fn tries(side: &Side) -> Vec<(&'static str, Vec<Mount>, bool)> {
    let bind = |options: &[&str]| bind(side, options);
    let lower = format!("lowerdir={}:{}", side.at("a"), side.at("b"));
    let overlay = |options: &[&str]| mount("overlay", "overlay", &[options, &MAPPED].concat());
    let writable = ["rw", "rbind", "nosuid", "uidmap=0:1000:4,7:0:1", "gidmap=100:2000:4,107:0:1"];
    let (upper, work) = (format!("upperdir={}", side.at("upper")), format!("workdir={}", side.at("work")));
    vec![
        ("left to the client", vec![bind(&MAPPED)], false),
        ("mapped", vec![bind(&MAPPED)], true),
        ("several", vec![bind(&["uidmap=0:1000:2,5:7:1,2:70000:1", "gidmap=101:1:6,100:2000:1"])], true),
        ("all", vec![bind(&["uidmap=0:0:4294967295", "gidmap=0:100000:65536"])], true),
        ("signed", vec![bind(&["uidmap=+0:+1000:+4", "gidmap=0100:02000:04"])], true),
        ("users alone", vec![bind(&MAPPED[..1])], true),
        ("groups alone", vec![bind(&MAPPED[1..])], true),
        ("nonsense alone", vec![bind(&["uidmap=nonsense"])], true),
        ("empty", vec![bind(&[MAPPED[0], "gidmap="])], true),
        ("the last one", vec![bind(&["uidmap=0:1:1", MAPPED[0], "gidmap=nonsense", MAPPED[1]])], true),
        ("before a transform", vec![bind(&MAPPED), mount("format/bind", "{{ mount 0 }}/sub", &["rbind"])], false),
        ("through another", vec![bind(&MAPPED), mount("format/bind", "{{ mount 0 }}/sub", &["rbind"])], true),
        ("writable", vec![mount("bind", &side.at("b"), &writable)], true),
        ("not written by root", vec![mount("bind", &side.at("b"), &["rbind", MAPPED[0], MAPPED[1]])], true),
        ("tmpfs", vec![mount("tmpfs", "tmpfs", &["size=64k", "gid=100", MAPPED[0], MAPPED[1]])], true),
        ("layers", vec![overlay(&[&lower])], true),
        ("layers and what is written", vec![overlay(&[&lower, &upper, &work])], true),
        ("two numbers", vec![bind(&["uidmap=0:1", MAPPED[1]])], true),
        ("four numbers", vec![bind(&["uidmap=0:1:2:3", MAPPED[1]])], true),
        ("no number", vec![bind(&["uidmap=a:1:1", MAPPED[1]])], true),
        ("below zero", vec![bind(&[MAPPED[0], "gidmap=0:-1:1"])], true),
        ("too high", vec![bind(&[MAPPED[0], "gidmap=0:1:4294967296"])], true),
        ("a comma too many", vec![bind(&["uidmap=0:1:1,", MAPPED[1]])], true),
        ("none of them", vec![bind(&["uidmap=0:1:0", MAPPED[1]])], true),
        ("twice", vec![bind(&["uidmap=0:1:5,2:9:1", MAPPED[1]])], true),
        ("beyond the end", vec![bind(&["uidmap=4294967290:0:10", MAPPED[1]])], true),
        ("no file system that can", vec![mount("bind", "/proc", &["bind", MAPPED[0], MAPPED[1]])], true),
        ("an overlay of nothing", vec![overlay(&[])], true),
        ("a layer that is not there", vec![overlay(&[&format!("lowerdir={}:{}", side.at("a"), side.at("x"))])], true),
    ]
}

/// What is refused, with our code, and words of our message; containerd says of all of them that they are unknown to it.
const REFUSED: [(&str, Code, &str); 12] = [
    ("two numbers", Code::InvalidArgument, "uidmap=0:1"),
    ("four numbers", Code::InvalidArgument, "uidmap=0:1:2:3"),
    ("no number", Code::InvalidArgument, "uidmap=a:1:1"),
    ("below zero", Code::InvalidArgument, "gidmap=0:-1:1"),
    ("too high", Code::InvalidArgument, "gidmap=0:1:4294967296"),
    ("a comma too many", Code::InvalidArgument, "uidmap=0:1:1,"),
    ("none of them", Code::InvalidArgument, "uid_map 0 1 0: the kernel refuses it"),
    ("twice", Code::InvalidArgument, "uid_map 0 1 5, 2 9 1: the kernel refuses it"),
    ("beyond the end", Code::InvalidArgument, "uid_map 4294967290 0 10: the kernel refuses it"),
    ("no file system that can", Code::FailedPrecondition, "cannot do it with this kernel"),
    ("an overlay of nothing", Code::InvalidArgument, "lowerdir="),
    ("a layer that is not there", Code::Internal, "No such file"),
];

/// Whose everything on a mount point is shown to be.
fn owners(point: &Path) -> String {
    fn walk(top: &Path, path: &Path, told: &mut Vec<String>) {
        let found = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(top).unwrap().display().to_string();
        told.push(format!("{name}={}:{}", found.uid(), found.gid()));
        if found.is_dir() {
            let mut below: Vec<_> = path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            below.sort();
            below.iter().for_each(|path| walk(top, path, told));
        }
    }
    let mut told = Vec::new();
    walk(point, point, &mut told);
    told.join(" ")
}

/// `a` as it is made.
const ON_DISK: &str = "=0:100 link=6:106 sub=1:101 sub/file=2:102 sub/two=5:105";

fn is_theirs(points: &Path) -> bool {
    points.ends_with("state")
}

/// What a side says and shows of a mount, then that it goes.
async fn tried(side: &mut Side, points: &Path, name: &str, mounts: Vec<Mount>, temporary: bool) -> Vec<String> {
    let before = mounted(points).len();
    let answer = side.activate(name, mounts, Map::new(), temporary, Some("transcript")).await;
    let active = answer.clone().map(|info| info.active).unwrap_or_default();
    let mut told = vec![format!("activate {}", side.shown(answer))];
    told.extend(active.iter().map(|active| owners(Path::new(&active.mount_point))));
    if let [.., top] = &active[..]
        && ["tmpfs", "writable", "not written by root", "layers and what is written"].contains(&name)
    {
        // By root, who is somebody else on disk, or nobody; then of somebody who is shown.
        let new = Path::new(&top.mount_point).join("new");
        let written = std::fs::write(&new, "new").map_err(|error| error.to_string());
        told.push(format!("{written:?}"));
        if written.is_ok() {
            let given = chown(&new, Some(1001), Some(2001));
            told.push(format!("{:?} {}", given.map_err(|error| error.to_string()), owners(&new)));
            told.extend(["b", "upper"].map(|tree| owners(Path::new(&side.at(tree)))));
            std::fs::remove_file(&new).unwrap();
        }
    }
    let info = side.info(name).await;
    told.push(format!("info {}", side.shown(info)));
    told.push(format!("deactivate {:?}", side.deactivate(name).await.map_err(|status| status.code())));
    let left = mounted(points).split_off(before);
    // containerd mounts twice, as it is and mapped above that, unmounts once, and empties what it takes for a directory then:
    // the source.
    assert!(left.is_empty() || is_theirs(points), "{name} is still mounted: {left:?}");
    let a = owners(Path::new(&side.at("a")));
    match is_theirs(points) {
        true if name == "mapped" => {
            assert_eq!((left.len(), a.as_str()), (1, "=0:100"), "as docs/compatibility.md says")
        }
        true => {}
        false => assert_eq!(a, ON_DISK, "after {name}"),
    }
    for (point, _) in left.into_iter().rev() {
        rustix::mount::unmount(&point, UnmountFlags::DETACH).unwrap();
    }
    told
}

async fn transcript(side: &mut Side, points: &Path) -> Vec<(&'static str, Vec<String>)> {
    lease(side, "transcript").await;
    let mut told = Vec::new();
    for (name, mounts, temporary) in tries(side) {
        prepare(side);
        told.push((name, tried(side, points, name, mounts, temporary).await));
    }
    told
}

/// Without a lease, what is activated may go at any time.
async fn lease(side: &Side, id: &str) {
    let created = leases::CreateRequest { id: id.into(), ..Default::default() };
    LeasesClient::new(side.channel.clone()).create(request(created)).await.unwrap();
}

async fn containerd() -> Option<(Containerd, Side)> {
    let containerd = Containerd::start(&Programs::current()?, &Options::default());
    let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
    let side = Side::new(&channel, &containerd.root());
    Some((containerd, side))
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_and_owners_are_containerds() {
    if !(need_root() && need_file_system("overlay")) {
        return;
    }
    let (node, root, _cleaned) = node();
    let ours = transcript(&mut Side::new(&node.channel, &root), &root.join("mounts")).await;
    assert_eq!(std::fs::read_dir(root.join("mounts")).unwrap().count(), 0, "directories are left");
    assert_eq!(node.store.check_metadata().unwrap(), []);
    let says = |name: &str| &ours.iter().find(|(told, _)| *told == name).unwrap().1;
    let shown = "=1000:2000 link=65534:65534 sub=1001:2001 sub/file=1002:2002 sub/two=65534:65534";
    assert_eq!(says("mapped")[1], shown);
    assert_eq!(says("several")[1], "=1000:2000 link=65534:6 sub=1001:1 sub/file=70000:2 sub/two=7:5");
    assert_eq!(says("users alone")[1], ON_DISK);
    assert_eq!(
        says("layers")[1],
        "=1000:2000 link=65534:65534 other=1003:2003 sub=1001:2001 sub/file=1002:2002 sub/two=65534:65534"
    );
    assert_eq!(says("writable")[2..4], ["Ok(())".to_owned(), "Ok(()) =1001:2001".to_owned()]);
    assert!(says("not written by root")[2].starts_with("Err(\"Value too large"), "nobody on disk");
    assert_eq!(says("writable")[4], "=0:100 new=1:101 other=3:103", "on disk");
    assert!(says("left to the client")[0].ends_with("Unimplemented"));
    for (name, code, _) in REFUSED {
        assert_eq!(says(name)[0], format!("activate {code:?}"), "{name}");
    }
    let Some((containerd, mut side)) = containerd().await else { return };
    let state = containerd.root().with_file_name("state");
    let mut expected = ours.clone();
    for (name, told) in &mut expected {
        if REFUSED.iter().any(|(refused, ..)| refused == name) {
            "activate Unknown".clone_into(&mut told[0]);
        }
    }
    assert_eq!(expected, transcript(&mut side, &state).await);
}

/// Where containerd shows other owners than were asked for, or fails, and this does not.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_only_is_mapped_too_and_so_is_an_erofs() {
    if !(need_root() && need_file_system("erofs") && need("mkfs.erofs", "erofs-utils").is_some()) {
        return;
    }
    let (node, root, _cleaned) = node();
    let tried = async |side: &mut Side| {
        prepare(side);
        lease(side, "l").await;
        run("mkfs.erofs", [side.at("image"), side.at("b")]).ok();
        let options = ["ro", MAPPED[0], MAPPED[1]];
        let first = side.activate("bind", vec![bind(side, &options)], Map::new(), true, Some("l")).await;
        let image = mount("erofs", &side.at("image"), &options);
        let second = side.activate("erofs", vec![image], Map::new(), true, Some("l")).await;
        [first, second].map(|answer| answer.map(|info| info.active[0].mount_point.clone()))
    };
    let mut side = Side::new(&node.channel, &root);
    let [bound, erofs] = tried(&mut side).await.map(Result::unwrap);
    assert_eq!(owners(Path::new(&bound).join("sub/file").as_path()), "=1002:2002");
    assert_eq!(owners(Path::new(&erofs)), "=1000:2000 other=1003:2003");
    for point in [&bound, &erofs] {
        let written = std::fs::write(Path::new(point).join("new"), "").unwrap_err();
        assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    }
    for name in ["bind", "erofs"] {
        side.deactivate(name).await.unwrap();
    }
    assert!(mounted(&root).is_empty());
    let Some((_containerd, mut side)) = containerd().await else { return };
    let [bound, erofs] = tried(&mut side).await;
    let bound = bound.unwrap();
    assert_eq!(owners(Path::new(&bound).join("sub/file").as_path()), "=2:102", "as docs/compatibility.md says");
    assert_eq!(erofs.unwrap_err().code(), Code::Unknown);
    side.deactivate("bind").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_on_a_loop_device_is_mapped_and_the_device_goes_with_it() {
    if !(need_root() && need_loop_devices() && need_file_system("ext4") && need("mkfs.ext4", "e2fsprogs").is_some()) {
        return;
    }
    let (node, root, _cleaned) = node();
    let mut side = Side::new(&node.channel, &root);
    lease(&side, "l").await;
    let options = ["X-containerd.mkfs.size=8MiB", "loop", "uidmap=0:1000:1", "gidmap=0:2000:1"];
    let wanted = vec![mount("mkfs/ext4", &side.at("image"), &options)];
    let made = side.activate("ext4", wanted, Map::new(), true, Some("l")).await.unwrap();
    assert_eq!(owners(Path::new(&made.active[0].mount_point)), "=1000:2000 lost+found=1000:2000");
    assert_eq!(mounted(&root).len(), 1, "what is not mapped is not mounted");
    side.deactivate("ext4").await.unwrap();
    orlop_testkit::mounts::no_loops(&root);
    assert!(mounted(&root).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_mapped_leaves_nothing_and_says_why() {
    if !(need_root() && need_file_system("overlay")) {
        return;
    }
    let (node, root, _cleaned) = node();
    let mut side = Side::new(&node.channel, &root);
    prepare(&side);
    for (name, code, words) in REFUSED {
        let (_, mut mounts, _) = tries(&side).into_iter().find(|(tried, ..)| *tried == name).unwrap();
        // After one that can be made.
        mounts.insert(0, bind(&side, &MAPPED));
        let told = side.activate(name, mounts, Map::new(), true, None).await.unwrap_err();
        assert!(told.code() == code && told.message().contains(words), "{name}: {told:?}");
        assert_eq!((mounted(&root).len(), std::fs::read_dir(root.join("mounts")).unwrap().count()), (0, 0), "{name}");
    }
    // Mapped once, not twice.
    let mounts = vec![bind(&side, &MAPPED), mount("format/bind", "{{ mount 0 }}", &["rbind", MAPPED[0], MAPPED[1]])];
    let told = side.activate("twice", mounts, Map::new(), true, None).await.unwrap_err();
    assert!(told.code() == Code::PermissionDenied && told.message().contains("mapped there already"), "{told:?}");
    assert!(mounted(&root).is_empty());
    assert_eq!(node.store.check_metadata().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn mapped_mounts_outlast_the_daemon() {
    if !need_root() {
        return;
    }
    let (node, root, _cleaned) = node();
    let mut side = Side::new(&node.channel, &root);
    prepare(&side);
    lease(&side, "l").await;
    let made: ActivationInfo =
        side.activate("stays", vec![bind(&side, &MAPPED)], Map::new(), true, Some("l")).await.unwrap();
    let other = common::open(&root);
    other.settle_mounts().unwrap();
    other.collect(orlop_metadata::gc::Disposal::Reclaim).unwrap();
    assert!(owners(Path::new(&made.active[0].mount_point)).starts_with("=1000:2000 "));
    let scope = orlop_metadata::Scope::new("test", "test");
    other.deactivate(&scope, "stays").unwrap();
    assert_eq!((mounted(&root).len(), std::fs::read_dir(root.join("mounts")).unwrap().count()), (0, 0));
}
