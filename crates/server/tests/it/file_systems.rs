//! Mounts of file systems in files, by `mkfs/`, `loop` and `erofs`, beside a real containerd: answers, what is mounted then,
//! which loop devices are taken; and that none is left, whatever fails. Needs root, loop devices, and the programs that make
//! file systems.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::common;
use crate::common::mounts::{Map, Side, collect_until_unmounted, mount, node};
use crate::common::{Node, labels, request};
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::types::Mount;
use orlop_metadata::gc::Disposal;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::disk::Disk;
use orlop_testkit::mounts::{Cleaned, loops, mounted, need_file_system, need_loop_devices, no_loops};
use orlop_testkit::process::{need, need_root, run};
use tonic::Code;

const UUID: &str = "11111111-2222-3333-4444-555555555555";

/// What every test here needs.
fn needed() -> bool {
    let programs = [("mkfs.ext4", "e2fsprogs"), ("mkfs.xfs", "xfsprogs"), ("mkfs.erofs", "erofs-utils")];
    need_root()
        && need_loop_devices()
        && ["ext4", "xfs", "erofs", "overlay"].into_iter().all(need_file_system)
        && programs.into_iter().all(|(program, package)| need(program, package).is_some())
}

fn erofs_image(side: &Side, name: &str, tree: &str) {
    run("mkfs.erofs", [side.at(name), side.at(tree)]).ok();
}

fn mkfs(side: &Side, name: &str, kind: &str, options: &[&str]) -> Mount {
    mount(&format!("mkfs/{kind}"), &side.at(name), options)
}

const EXT4: [&str; 3] = ["X-containerd.mkfs.size=8MiB", "rw", "loop"];
const EXT4_RO: [&str; 4] = ["X-containerd.mkfs.fs=ext4", "X-containerd.mkfs.size=8m", "loop", "ro"];

/// What is tried: a name, mounts, whether temporary.
fn tries(side: &Side) -> Vec<(&'static str, Vec<Mount>, bool)> {
    let uuid = format!("X-containerd.mkfs.uuid={UUID}");
    let of_xfs = ["X-containerd.mkfs.fs=xfs", "X-containerd.mkfs.size=320m", &uuid, "loop", "nosuid"];
    let of_ext2 = ["X-containerd.mkfs.fs=ext2", "X-containerd.mkfs.size=1048576", &uuid, "loop", "direct-io"];
    let (ext4, ext4_ro) =
        (|name: &str| mkfs(side, name, "ext4", &EXT4), |name: &str| mkfs(side, name, "ext4", &EXT4_RO));
    let erofs = |name: &str, options: &[&str]| mount("erofs", &side.at(name), options);
    let upper = ["X-containerd.mkdir.path={{ mount 0 }}/upper:755", "rw", "rbind"];
    let writable = [
        "X-containerd.mkdir.path={{ mount 0 }}/upper:755",
        "X-containerd.mkdir.path={{ mount 0 }}/work:755",
        "workdir={{ mount 0 }}/work",
        "upperdir={{ mount 0 }}/upper",
        "lowerdir={{ overlay 2 1 }}",
    ];
    vec![
        ("left to the client", vec![ext4("left")], false),
        ("again", vec![ext4("left")], false),
        ("loop alone", vec![mount("ext4", &side.at("left"), &["loop"])], false),
        ("temporary", vec![ext4("temporary")], true),
        ("read-only", vec![ext4_ro("temporary")], true),
        ("xfs", vec![mkfs(side, "xfs", "xfs", &of_xfs)], true),
        ("direct", vec![mkfs(side, "ext2", "ext2", &of_ext2)], true),
        ("in it", vec![ext4("in it"), mount("format/mkdir/bind", "{{ mount 0 }}/upper", &upper)], false),
        ("erofs", vec![erofs("one", &["ro"])], false),
        ("erofs, temporary", vec![erofs("one", &["ro", "loop", "nodev"])], true),
        ("erofs, then more", vec![erofs("one", &[]), mount("bind", "{{ mount 0 }}", &["rbind"])], false),
        (
            "erofs by name",
            vec![mount("bind", &side.work.display().to_string(), &["rbind"]), {
                mount("format/erofs", "{{ mount 0 }}/one", &[])
            }],
            false,
        ),
        (
            "layers",
            vec![erofs("one", &[]), erofs("two", &["ro"]), {
                mount("format/overlay", "overlay", &["lowerdir={{ overlay 1 0 }}"])
            }],
            false,
        ),
        (
            "layers and what is written",
            vec![ext4("written"), erofs("one", &[]), erofs("two", &[]), {
                mount("format/mkdir/overlay", "overlay", &writable)
            }],
            true,
        ),
        ("elsewhere", vec![mount("mkfs/ext4", "/orlop-nowhere/x", &EXT4)], false),
        ("no size", vec![mkfs(side, "none", "ext4", &["loop"])], false),
        ("no such setting", vec![mkfs(side, "none", "ext4", &["X-containerd.mkfs.sizes=1m"])], false),
        ("no such file system", vec![mkfs(side, "none", "ext4", &["X-containerd.mkfs.fs=ntfs", EXT4[0]])], false),
    ]
}

/// Loop devices of a side, by file.
fn devices(side: &Side) -> String {
    let told = |device: orlop_testkit::mounts::Loop| {
        let name = device.file.file_name().map(|name| name.display().to_string()).unwrap_or_default();
        format!("{name} ro={} autoclear={} direct={}", device.read_only, device.autoclear, device.direct)
    };
    loops(&side.work).into_iter().map(told).collect::<Vec<_>>().join(", ")
}

/// What can be seen of a file system in a file.
fn seen(side: &Side, name: &str) -> String {
    let path = side.at(name);
    let Ok(found) = std::fs::metadata(&path) else { return "none".into() };
    let said = run("blkid", ["-p", "-o", "value", "-s", "TYPE", "-s", "UUID", path.as_str()]).stdout;
    let uuid = if said.contains(UUID) { UUID } else { "any" };
    let kind = said.lines().last().unwrap_or_default();
    format!("{name} {kind} {uuid} {} {:o}", found.len(), found.permissions().mode())
}

async fn transcript(side: &mut Side, points: &Path) -> Vec<String> {
    let mut told = Vec::new();
    erofs_image(side, "one", "a");
    erofs_image(side, "two", "b");
    let created = leases::CreateRequest { id: "transcript".into(), ..Default::default() };
    LeasesClient::new(side.channel.clone()).create(request(created)).await.unwrap();
    let before = mounted(points).len();
    for (name, mounts, temporary) in tries(side) {
        let answer = side.activate(name, mounts, Map::new(), temporary, Some("transcript")).await;
        told.push(format!("activate {name}: {}", side.shown(answer)));
        let kinds: Vec<String> = mounted(points).into_iter().skip(before).map(|(_, kind)| kind).collect();
        told.push(format!("mounted {kinds:?} devices {}", devices(side)));
        let answer = side.info(name).await;
        told.push(format!("info {}", side.shown(answer)));
        told.push(format!("deactivate {:?}", side.deactivate(name).await.map_err(|status| status.code())));
        no_loops(&side.work);
        assert_eq!(mounted(points).len(), before, "{name} is still mounted");
    }
    told.extend(["left", "temporary", "xfs", "ext2", "none"].map(|name| seen(side, name)));
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_mounts_and_devices_are_containerds() {
    if !needed() {
        return;
    }
    let (node, root, _cleaned) = node();
    let ours = transcript(&mut Side::new(&node.channel, &root), &root.join("mounts")).await;
    assert_eq!(std::fs::read_dir(root.join("mounts")).unwrap().count(), 0, "directories are left");
    assert_eq!(node.store.check_metadata().unwrap(), []);
    for line in [
        "mounted [\"ext4\"] devices temporary ro=false autoclear=true direct=false",
        "mounted [\"ext4\"] devices temporary ro=true autoclear=true direct=false",
        "mounted [\"ext2\"] devices ext2 ro=false autoclear=true direct=true",
        &format!("xfs xfs {UUID} {} 100640", 320 << 20),
        &format!("left ext4 any {} 100640", 8 << 20),
        "activate no size: InvalidArgument",
        "activate loop alone: Unimplemented",
        "none",
    ] {
        assert!(ours.iter().any(|told| told == line), "not told {line}: {ours:#?}");
    }
    let Some(programs) = Programs::current() else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
    let state = containerd.root().with_file_name("state");
    assert_eq!(ours, transcript(&mut Side::new(&channel, &containerd.root()), &state).await);
}

/// Failures, each with our code and containerd's, for which all of these are unknown; and with words of our message.
fn failures(side: &Side) -> Vec<(&'static str, Mount, Code, Code, &'static str)> {
    let ext4 = |options: &[&str]| mkfs(side, "failed", "ext4", options);
    let small = ["X-containerd.mkfs.size=1k"];
    let xfs = ["X-containerd.mkfs.fs=xfs", "X-containerd.mkfs.size=1m"];
    let (invalid, unknown, failed) = (Code::InvalidArgument, Code::Unknown, Code::Internal);
    vec![
        ("size", ext4(&["X-containerd.mkfs.size=many"]), invalid, unknown, "size=many"),
        ("too small", ext4(&small), failed, unknown, "mkfs.ext4 failed"),
        ("too small for xfs", mkfs(side, "failed", "xfs", &xfs), failed, unknown, "mkfs.xfs failed"),
        ("no directory", mkfs(side, "nowhere/x", "ext4", &EXT4), failed, unknown, "nowhere/x"),
        (
            "not taken",
            mount("ext4", &side.at("one"), &["loop", "X-containerd.mkfs.size=1m"]),
            invalid,
            unknown,
            "mkfs.size",
        ),
        ("no file", mount("ext4", &side.at("nowhere"), &["loop"]), failed, unknown, "nowhere"),
        ("no file system", mount("ext4", &side.at("zeros"), &["loop"]), failed, unknown, "mount on"),
        ("another one", mount("erofs", &side.at("zeros"), &[]), failed, unknown, "mount erofs on"),
        ("no erofs", mount("erofs", &side.at("nowhere"), &[]), failed, unknown, "mount erofs on"),
        ("no such option", mount("erofs", &side.at("one"), &["orlop=1"]), failed, unknown, "mount erofs on"),
        (
            "half an erofs",
            mount("erofs", &side.at("one"), &[&format!("device={}", side.at("nowhere"))]),
            failed,
            unknown,
            "",
        ),
        ("a type loop", mount("loop", &side.at("one"), &[]), failed, unknown, "mount on"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_in_the_middle_leaves_nothing() {
    if !needed() {
        return;
    }
    let (node, root, _cleaned) = node();
    let mut side = Side::new(&node.channel, &root);
    let theirs = Programs::current().map(|programs| Containerd::start(&programs, &Options::default()));
    let mut their_side = match &theirs {
        Some(containerd) => {
            let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
            Some(Side::new(&channel, &containerd.root()))
        }
        None => None,
    };
    let prepared = |side: &Side| {
        erofs_image(side, "one", "a");
        std::fs::write(side.at("zeros"), vec![0; 1 << 20]).unwrap();
    };
    let around = |side: &Side, broken: Mount| {
        vec![mkfs(side, "first", "ext4", &EXT4), broken, mount("erofs", &side.at("one"), &[])]
    };
    prepared(&side);
    for (name, broken, code, _, words) in failures(&side) {
        let mounts = around(&side, broken);
        let told = side.activate(name, mounts, Map::new(), true, None).await.unwrap_err();
        assert!(told.code() == code && told.message().contains(words), "{name}: {told:?}");
        no_loops(&side.work);
        assert_eq!((mounted(&root).len(), std::fs::read_dir(root.join("mounts")).unwrap().count()), (0, 0), "{name}");
        assert_eq!(side.info(name).await.unwrap_err().code(), Code::NotFound);
        assert!(!Path::new(&side.at("failed")).exists(), "{name} left half of a file system");
    }
    assert_eq!(std::fs::read_dir(&side.work).unwrap().count(), 5, "a, b, one, zeros, and the first one's file");
    assert_eq!(node.store.check_metadata().unwrap(), []);
    let Some(side) = &mut their_side else { return };
    prepared(side);
    for (name, broken, _, code, _) in failures(side) {
        let mounts = around(side, broken);
        let told = side.activate(name, mounts, Map::new(), true, None).await.unwrap_err();
        assert_eq!(told.code(), code, "{name}: {told:?}");
        // What containerd left half made would be there in the next try.
        let _ = std::fs::remove_file(side.at("failed"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_there_is_never_made_anew_and_no_link_is_followed() {
    if need("mkfs.ext4", "e2fsprogs").is_none() {
        return;
    }
    let node = Node::new();
    let mut side = Side::new(&node.channel, node.store.root());
    std::fs::write(side.at("precious"), "precious").unwrap();
    let wanted = vec![mkfs(&side, "precious", "ext4", &EXT4)];
    let made = side.activate("precious", wanted, Map::new(), false, None).await.unwrap();
    assert_eq!((made.active.len(), made.system[0].options.clone()), (0, vec!["rw".to_owned(), "loop".to_owned()]));
    assert_eq!(std::fs::read_to_string(side.at("precious")).unwrap(), "precious");
    std::os::unix::fs::symlink(side.at("precious"), side.at("link")).unwrap();
    std::os::unix::fs::symlink(&side.work, side.at("b/up")).unwrap();
    for (name, code) in [
        ("link", Code::InvalidArgument),
        ("b/up/new", Code::Internal),
        ("../new", Code::InvalidArgument),
        ("a", Code::InvalidArgument),
    ] {
        let wanted = vec![mkfs(&side, name, "ext4", &EXT4)];
        let told = side.activate(name, wanted, Map::new(), false, None).await.unwrap_err();
        assert_eq!(told.code(), code, "{name}: {told:?}");
        assert!(!side.work.join("new").exists() && !side.work.with_file_name("new").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_make_the_same_file_get_one_file_system() {
    if need("mkfs.ext4", "e2fsprogs").is_none() {
        return;
    }
    let node = Node::new();
    let side = Side::new(&node.channel, node.store.root());
    let all = (0..4).map(|number| {
        let mut side = Side::new(&side.channel, node.store.root());
        let wanted = vec![mkfs(&side, "shared", "ext4", &EXT4)];
        async move { side.activate(&format!("n{number}"), wanted, Map::new(), false, None).await }
    });
    futures::future::try_join_all(all).await.unwrap();
    let found = std::fs::metadata(side.at("shared")).unwrap();
    assert_eq!((found.len(), found.nlink()), (8 << 20, 1));
    assert!(run("fsck.ext4", ["-n", "-f", side.at("shared").as_str()]).ok().stdout.contains("Pass 5"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_in_use_goes_when_it_is_not_any_more() {
    if !needed() {
        return;
    }
    let (node, root, _cleaned) = node();
    let mut side = Side::new(&node.channel, &root);
    // One is deactivated, of the other the lease expires: both while a file is open.
    node.store.create_lease("test", "lasting", Map::new()).unwrap();
    node.store.create_lease("test", "ending", labels(&[("containerd.io/gc.expire", "2020-01-01T00:00:00Z")])).unwrap();
    let mut open = Vec::new();
    for (name, lease) in [("deactivated", "lasting"), ("expired", "ending")] {
        let wanted = vec![mkfs(&side, name, "ext4", &EXT4)];
        let made = side.activate(name, wanted, Map::new(), true, Some(lease)).await.unwrap();
        open.push(std::fs::File::create(Path::new(&made.active[0].mount_point).join("file")).unwrap());
    }
    assert_eq!(side.deactivate("deactivated").await.unwrap_err().code(), Code::FailedPrecondition);
    node.store.collect(Disposal::Reclaim).unwrap();
    assert_eq!((side.names().await.len(), loops(&root).len()), (0, 2), "no names, but files are open");
    drop(open);
    collect_until_unmounted(&node.store);
    no_loops(&root);
    assert_eq!((mounted(&root).len(), std::fs::read_dir(root.join("mounts")).unwrap().count()), (0, 0));
    assert_eq!(node.store.check_metadata().unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_leaves_nothing() {
    if !needed() {
        return;
    }
    let Some(disk) = Disk::new(64) else { return };
    let root = disk.path().join("root");
    let store = common::open(&root);
    let server = orlop_server::Server::new(orlop_image::Images::new(store.clone(), orlop_image::Settings::default()));
    let _cleaned = Cleaned(root.clone());
    let mut side = Side::new(&server.in_process(), &root);
    store.create_lease("test", "l", Map::new()).unwrap();
    let wanted = |side: &Side, name: &str| vec![mkfs(side, "kept", "ext4", &EXT4), mkfs(side, name, "ext4", &EXT4)];
    // The first one's file is there when the disk fills up: the second's cannot be made.
    side.activate("before", wanted(&side, "kept"), Map::new(), false, Some("l")).await.unwrap();
    side.deactivate("before").await.unwrap();
    no_loops(&root);
    disk.fill();
    let mounts = wanted(&side, "full");
    let told = side.activate("full", mounts, Map::new(), true, Some("l")).await.unwrap_err();
    assert_eq!(told.code(), Code::ResourceExhausted, "{told:?}");
    no_loops(&root);
    assert_eq!((mounted(&root.join("mounts")).len(), Path::new(&side.at("full")).exists()), (0, false));
    assert_eq!(std::fs::read_dir(root.join("mounts")).unwrap().count(), 0);
    std::fs::remove_file(disk.path().join("filler")).unwrap();
    let mounts = wanted(&side, "full");
    side.activate("full", mounts, Map::new(), true, Some("l")).await.unwrap();
    side.deactivate("full").await.unwrap();
    no_loops(&root);
    assert_eq!(store.check_metadata().unwrap(), []);
}
