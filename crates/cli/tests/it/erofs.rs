//! The snapshotter whose layers are images, from a pull to the last byte: mounted, measured, verified, mended and removed.

use std::fs;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::PathBuf;

use crate::common::{self, Orlop};
use orlop_testkit::archive::oci_archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::mounts::{mounted, need_file_system};
use orlop_testkit::process::need_root;
use orlop_testkit::tar::Entry;
use rustix::process::Signal;

const NAME: &str = "r.example/app:1";

fn content() -> Content {
    let base = [
        Entry::dir("etc").mode(0o751),
        Entry::file("etc/gone", "soon"),
        Entry::file("etc/kept", "kept"),
        Entry::file("large", "x".repeat(5 << 20)),
    ];
    let above = [Entry::whiteout("etc/gone"), Entry::file("etc/new", "new"), Entry::hardlink("etc/linked", "etc/kept")];
    Content::image(&Image::host().layer(Layer::new(base)).layer(Layer::new(above)))
}

/// A store with the image as images of layers; `None` where there can be none.
fn unpacked() -> Option<(Orlop, String)> {
    if !(need_root() && need_file_system("erofs")) {
        return None;
    }
    let store = Orlop::new();
    let archive = store.path("image.tar");
    fs::write(&archive, oci_archive(&[(NAME, &content())])).unwrap();
    let archive = archive.to_str().unwrap().to_owned();
    store.ok(["import", "--snapshotter", "erofs", &archive]);
    Some((store, archive))
}

fn images(store: &Orlop) -> Vec<PathBuf> {
    let snapshots = fs::read_dir(store.root().join("snapshots/erofs")).unwrap();
    let mut images: Vec<_> = snapshots.map(|entry| entry.unwrap().path().join("layer.erofs")).collect();
    images.retain(|image| image.exists());
    images.sort_by_key(|image| image.parent().unwrap().file_name().unwrap().to_str().unwrap().parse::<u64>().unwrap());
    images
}

#[test]
fn an_image_is_pulled_mounted_and_removed_to_the_last_byte() {
    if !(need_root() && need_file_system("erofs")) {
        return;
    }
    let Some(registry) = common::registry_with(&content()) else { return };
    let (store, name) = (Orlop::new(), format!("{}/app:1", registry.host()));
    store.ok(["pull", "--plain-http", "--snapshotter", "erofs", &name]);
    assert_eq!(images(&store).len(), 2);
    assert!(fs::read_dir(store.root().join("snapshots/overlayfs")).unwrap().next().is_none());
    assert!(mounted(&store.root()).is_empty(), "a pull mounts nothing");

    let directory = store.path("mounted");
    fs::create_dir(&directory).unwrap();
    store.ok(["mount", &name, directory.to_str().unwrap()]);
    let names = |path: &str| {
        let entries = fs::read_dir(directory.join(path)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(names("etc"), ["kept", "linked", "new"]);
    assert_eq!(fs::metadata(directory.join("etc")).unwrap().mode() & 0o7777, 0o751, "from the layer below");
    let [kept, linked] = ["kept", "linked"].map(|name| fs::metadata(directory.join("etc").join(name)).unwrap());
    assert_eq!((kept.ino(), kept.dev(), kept.nlink()), (linked.ino(), linked.dev(), 2));
    // What is mounted is counted once, where it lies.
    let trees: u64 = images(&store).iter().map(|image| fs::metadata(image).unwrap().blocks() * 512).sum();
    let measured = store.json(["df"])["snapshots"].as_u64().unwrap();
    assert!((trees..trees + (64 << 10)).contains(&measured), "{measured} beside {trees}");
    store.ok(["umount", directory.to_str().unwrap()]);
    store.is_sound();

    store.ok(["rm", &name]);
    store.ok(["gc", "--trash"]);
    assert!(images(&store).is_empty() && mounted(&store.root()).is_empty(), "{:?}", mounted(&store.root()));
}

#[test]
fn damage_is_found_told_and_mended() {
    let Some((store, _)) = unpacked() else { return };
    // Of the layer with content, whichever was begun first.
    let image = images(&store).into_iter().max_by_key(|image| fs::metadata(image).unwrap().len()).unwrap();
    let before = fs::read(&image).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.write_all_at(b"!", 1 << 20).unwrap();
    let done = store.run(["check", "--deep"]);
    assert_eq!(done.code, 5, "{}\n{}", done.out, done.err);
    assert!(done.out.contains("its image differs") && done.out.contains("BLAKE3"), "{}", done.out);
    let scrubbed = store.run(["scrub"]);
    assert!(format!("{}{}", scrubbed.out, scrubbed.err).contains("its image differs"), "{scrubbed:?}");
    store.ok(["repair"]);
    store.is_sound();
    let mended = images(&store);
    assert!(mended.iter().any(|image| fs::read(image).unwrap() == before), "the layer gives the same bytes again");
}

#[test]
fn a_daemon_takes_its_mounts_along_and_one_that_was_killed_finds_them() {
    let Some((store, _)) = unpacked() else { return };
    let key = store.json(["snapshots", "ls", "--snapshotter", "erofs"]);
    let key = key["snapshots"].as_array().unwrap().iter().find(|s| s["parent"].as_str().is_some_and(|p| !p.is_empty()));
    let key = key.unwrap()["name"].as_str().unwrap().to_owned();
    let images = || mounted(&store.root()).into_iter().filter(|(_, kind)| kind == "erofs").count();
    let ask = |what: &[&str], at: &str| store.ok([&["--address", at], what].concat());
    let mut served = store.serve(&[]);
    let socket = served.socket().display().to_string();
    ask(&["snapshots", "prepare", "--snapshotter", "erofs", "mine", &key], &socket);
    assert_eq!(images(), 2);
    served.process().kill();
    assert_eq!(images(), 2, "containers may stand on them");
    let mut served = store.serve(&[]);
    let socket = served.socket().display().to_string();
    ask(&["snapshots", "mounts", "--snapshotter", "erofs", "mine"], &socket);
    assert_eq!(images(), 2);
    served.process().signal(Signal::TERM);
    served.process().wait();
    assert_eq!(images(), 0);
    // The next one mounts them again.
    let served = store.serve(&[]);
    let socket = served.socket().display().to_string();
    ask(&["snapshots", "mounts", "--snapshotter", "erofs", "mine"], &socket);
    assert_eq!(images(), 2);
    drop(served);
    store.is_sound();
}

#[test]
fn without_root_it_says_what_is_missing_and_what_to_do() {
    if !need_root() {
        return;
    }
    let Some(registry) = common::registry_with(&content()) else { return };
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let store = Orlop::below(place.path());
    let name = format!("{}/app:1", registry.host());
    let done = store.run_as_nobody(&["pull", "--plain-http", "--snapshotter", "erofs", &name]);
    assert_ne!(done.code, 0);
    assert!(done.err.contains("mounting EROFS images") && done.err.contains("overlayfs"), "{}", done.err);
}
