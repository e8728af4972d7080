//! Deleting into the trash, undoing it, emptying it.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use crate::rig;
use crate::rig::{DRIVER, Rig, labels};
use orlop_metadata::gc::{Disposal, Report};
use orlop_metadata::{HistoryAction, ImageChange, OpenOptions, Scope, Store};
use orlop_oci::Digest;
use orlop_snapshot::{Driver, NativeDriver, OverlayDriver};

const NS: &str = "default";
const REF: &str = "containerd.io/gc.ref.content";

/// An image of a manifest, a layer and two snapshots; `base` is shared by all that use it.
fn make(rig: &Rig, name: &str) -> Digest {
    let scope = rig.scope(NS, None);
    let base = rig.put(&scope, b"base", &[]).or_else(exists).expect("a blob");
    let layer = rig.put(&scope, format!("layer of {name}").as_bytes(), &[]).expect("a blob");
    let top = format!("top of {name}");
    let reference = format!("containerd.io/gc.ref.snapshot.{DRIVER}");
    let manifest = rig
        .put(
            &scope,
            name.as_bytes(),
            &[(&format!("{REF}.0"), base.as_str()), (&format!("{REF}.1"), layer.as_str()), (&reference, &top)],
        )
        .expect("a blob");
    let snapshots = rig.snapshots(NS, None);
    if !rig.keys(NS).contains("base") {
        snapshots.prepare("making", "", labels(&[])).expect("prepared");
        snapshots.commit("base", "making", None, labels(&[])).expect("committed");
    }
    snapshots.prepare("making", "base", labels(&[])).expect("prepared");
    snapshots.commit(&top, "making", None, labels(&[("made.for", name)])).expect("committed");
    rig.image(NS, name, &manifest);
    manifest
}

fn exists(error: orlop_content::Error) -> orlop_content::Result<Digest> {
    match error {
        orlop_content::Error::AlreadyExists(digest) => Ok(digest),
        other => Err(other),
    }
}

fn remove(rig: &Rig, names: &[&str]) -> Report {
    let changes: Vec<_> = names.iter().map(|name| ImageChange::Delete { name: (*name).to_owned() }).collect();
    rig.store
        .delete_images(&rig.scope(NS, None), &changes, &Disposal::Trash { reason: "orlop rm".into() }, None)
        .expect("deleted")
}

/// Everything that can be seen of a root.
fn state(rig: &Rig) -> String {
    let scope = rig.scope(NS, None);
    let images: Vec<_> = rig.store.images(NS, &[]).expect("a list");
    let images: Vec<_> = images.iter().map(|i| (&i.name, &i.target, &i.labels, i.created_at)).collect();
    let blobs = rig.store.content(&scope).find(&[]).expect("a list");
    let blobs: Vec<_> = blobs.iter().map(|b| (&b.digest, b.size, &b.labels, b.created_at)).collect();
    let snapshots = rig.snapshots(NS, None).list(&[]).expect("a list");
    let snapshots: Vec<_> = snapshots.iter().map(|s| (&s.name, &s.parent, s.kind, &s.labels, s.created_at)).collect();
    let disk: Vec<_> = ["content/blobs", "snapshots"].map(|d| rig::tree(&rig.directory.path().join(d))).into();
    format!("{images:?}\n{blobs:?}\n{snapshots:?}\n{disk:?}")
}

fn nothing(report: &Report) -> bool {
    *report == Report { visited: report.visited, ..Report::default() }
}

#[test]
fn an_undo_brings_back_exactly_what_a_deletion_took() {
    let mut rig = Rig::new();
    let kept = make(&rig, "kept");
    let gone = make(&rig, "gone");
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    let before = state(&rig);

    let report = remove(&rig, &["gone"]);
    assert_eq!((report.content.len(), report.snapshots.len()), (2, 1));
    assert_eq!((report.blob_bytes, report.snapshot_bytes), (17, 4096));
    assert_eq!((rig.reads(&gone), rig.reads(&kept)), (false, true));
    let entries = rig.store.trash().expect("a list");
    assert_eq!(entries.len(), 1);
    assert_eq!(Some(&entries[0].id), report.trash.as_ref());
    assert_eq!((entries[0].bytes, entries[0].reason.as_str()), (17 + 4096, "orlop rm"));
    assert_eq!(entries[0].images, [(NS.to_owned(), "gone".to_owned())]);
    let bin = rig.directory.path().join("trash").join(&entries[0].id);
    assert!(bin.join("blobs/sha256").join(gone.hex()).exists());
    assert_eq!(std::fs::read_dir(bin.join("snapshots").join(DRIVER)).expect("trees").count(), 1);
    for private in [bin.parent().expect("trash"), &bin] {
        let mode = std::fs::metadata(private).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{}: trees have set-user-ID programs", private.display());
    }

    rig.reopen();
    let undone = rig.store.undo(&rig.scope(NS, None), None).expect("undone");
    assert_eq!(undone.images, [(NS.to_owned(), "gone".to_owned())]);
    assert_eq!((undone.blobs, undone.snapshots, undone.kept.len(), undone.missing.len()), (2, 1, 0, 0));
    assert_eq!(state(&rig), before);
    assert!(!bin.exists());
    assert!(rig.store.trash().expect("a list").is_empty());
    let last = rig.store.history(NS, Some("gone"), 1).expect("history").remove(0);
    assert_eq!((last.action, last.new), (HistoryAction::Create, Some(gone)));
    assert!(nothing(&rig.store.collect(Disposal::Reclaim).expect("a collection")), "what came back is held");
    assert!(nothing(&rig.store.collect_full(Disposal::Reclaim).expect("a collection")));
}

#[test]
fn what_was_garbage_before_does_not_go_to_the_trash() {
    let rig = Rig::new();
    make(&rig, "gone");
    let garbage = rig.put(&rig.scope(NS, None), b"garbage", &[]).expect("a blob");
    let report = remove(&rig, &["gone"]);
    assert!(!report.content.contains(&(NS.to_owned(), garbage.to_string())));
    assert!(!rig.reads(&garbage));
    rig.store.undo(&rig.scope(NS, None), None).expect("undone");
    assert!(!rig.reads(&garbage));
}

#[test]
fn records_that_exist_again_are_kept() {
    let rig = Rig::new();
    make(&rig, "name");
    remove(&rig, &["name"]);
    let scope = rig.scope(NS, None);
    let newer = rig.put(&scope, b"newer", &[]).expect("a blob");
    rig.image(NS, "name", &newer);
    let undone = rig.store.undo(&scope, None).expect("undone");
    assert_eq!((undone.images.len(), undone.kept), (0, vec![(NS.to_owned(), "name".to_owned())]));
    assert_eq!(rig.store.image(NS, "name").expect("it is there").target.digest, newer);
    // Nothing holds what came back beside it.
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    assert_eq!(rig.blobs(NS), [newer].into());
    assert_eq!(rig.trees_on_disk(), 0);
}

#[test]
fn blobs_and_snapshots_that_are_there_again_are_fine() {
    let rig = Rig::new();
    let manifest = make(&rig, "image");
    let labels = rig.store.content(&rig.scope(NS, None)).stat(&manifest).expect("a blob").labels;
    remove(&rig, &["image"]);
    // Pulled anew under another name, before the undo.
    let scope = rig.scope(NS, None);
    rig.put(&scope, b"image", &[("own", "label")]).expect("a blob");
    let snapshots = rig.snapshots(NS, None);
    snapshots.prepare("making", "", rig::labels(&[("containerd.io/gc.root", "1")])).expect("prepared");
    snapshots.commit("base", "making", None, rig::labels(&[("containerd.io/gc.root", "1")])).expect("committed");
    rig.image(NS, "other", &manifest);
    let undone = rig.store.undo(&scope, None).expect("undone");
    assert_eq!((undone.blobs, undone.snapshots, undone.images.len()), (2, 1, 1));
    let now = rig.store.content(&scope).stat(&manifest).expect("a blob").labels;
    assert_eq!(now.get("own").map(String::as_str), Some("label"));
    assert!(labels.iter().all(|(key, value)| now.get(key) == Some(value)), "its references are back: {now:?}");
    assert_eq!(snapshots.stat("top of image").expect("a snapshot").parent, "base");
    assert!(nothing(&rig.store.collect(Disposal::Reclaim).expect("a collection")));
    assert_eq!(rig.trees_on_disk(), 2);
}

#[test]
fn undos_in_any_order_find_what_they_share() {
    let rig = Rig::new();
    let (a, b) = (make(&rig, "a"), make(&rig, "b"));
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    let before = state(&rig);
    let first = remove(&rig, &["a"]).trash.expect("an entry");
    rig.advance(1);
    // The shared base goes only now.
    let second = remove(&rig, &["b"]).trash.expect("an entry");
    assert_eq!(rig.blobs_on_disk().len(), 0);
    let undone = rig.store.undo(&rig.scope(NS, None), Some(&first)).expect("undone");
    assert_eq!((undone.blobs, undone.snapshots), (3, 2), "with the base that went with b");
    assert!(rig.reads(&a) && rig.reads(&rig::digest(b"base")) && !rig.reads(&b));
    assert!(nothing(&rig.store.collect(Disposal::Reclaim).expect("a collection")));
    let undone = rig.store.undo(&rig.scope(NS, None), Some(&second)).expect("undone");
    assert_eq!((undone.blobs, undone.snapshots, undone.missing.len()), (2, 1, 0));
    assert_eq!(state(&rig), before);
}

#[test]
fn labels_that_changed_meanwhile_on_what_was_shared_stay() {
    let rig = Rig::new();
    make(&rig, "a");
    make(&rig, "b");
    remove(&rig, &["a"]);
    let content = rig.store.content(&rig.scope(NS, None));
    let base = rig::digest(b"base");
    content.update(&base, labels(&[("new", "label")]), &[]).expect("labelled");
    rig.store.undo(&rig.scope(NS, None), None).expect("undone");
    assert_eq!(content.stat(&base).expect("a blob").labels, labels(&[("new", "label")]));
}

/// It failed with a number that was there already: the snapshot was looked for by its old key alone.
#[test]
fn a_shared_snapshot_that_was_committed_meanwhile_is_fine() {
    let rig = Rig::new();
    let reference = format!("containerd.io/gc.ref.snapshot.{DRIVER}");
    let blob = rig.put(&rig.scope(NS, None), b"blob", &[(&reference, "being made")]).expect("a blob");
    rig.image(NS, "a", &blob);
    rig.store.create_lease(NS, "lease", labels(&[])).expect("a lease");
    let snapshots = rig.snapshots(NS, Some("lease"));
    snapshots.prepare("being made", "", labels(&[])).expect("prepared");
    remove(&rig, &["a"]);
    snapshots.commit("made", "being made", None, labels(&[])).expect("committed");
    let undone = rig.store.undo(&rig.scope(NS, None), None).expect("undone");
    assert_eq!((undone.images.len(), undone.blobs, undone.snapshots), (1, 1, 0));
    assert!(rig.keys(NS).contains("made"));
}

#[test]
fn what_is_nowhere_any_more_is_told() {
    let rig = Rig::new();
    make(&rig, "a");
    make(&rig, "b");
    let first = remove(&rig, &["a"]).trash;
    rig.store.delete_image(&rig.scope(NS, None), "b", None).expect("deleted");
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    let undone = rig.store.undo(&rig.scope(NS, None), first.as_deref()).expect("undone");
    assert_eq!(undone.missing, [rig::digest(b"base")]);
    assert_eq!((undone.images.len(), undone.blobs, undone.snapshots), (1, 2, 0));
    assert!(rig.store.collect_full(Disposal::Reclaim).expect("a collection").orphans.is_empty());
    assert_eq!(rig.trees_on_disk(), 0);
}

#[test]
fn what_another_namespace_still_had_is_found_in_its_trash() {
    let rig = Rig::new();
    for namespace in [NS, "other"] {
        let blob = rig.put(&rig.scope(namespace, None), b"shared", &[]).expect("a blob");
        rig.image(namespace, "image", &blob);
    }
    let first = remove(&rig, &["image"]);
    assert_eq!((first.content.len(), first.blob_bytes), (1, 0));
    rig.advance(1);
    let change = [ImageChange::Delete { name: "image".to_owned() }];
    rig.store
        .delete_images(&rig.scope("other", None), &change, &Disposal::Trash { reason: "orlop rm".into() }, None)
        .expect("deleted");
    assert!(rig.blobs_on_disk().is_empty());
    let undone = rig.store.undo(&rig.scope(NS, None), first.trash.as_deref()).expect("undone");
    assert!(undone.missing.is_empty());
    assert!(rig.reads(&rig::digest(b"shared")));
    let undone = rig.store.undo(&rig.scope("other", None), None).expect("undone");
    assert!(undone.missing.is_empty());
    assert_eq!(rig.blobs("other").len(), 1);
}

#[test]
fn the_trash_is_emptied_by_age_and_by_size() {
    let rig = Rig::new();
    for name in ["first", "second", "third"] {
        make(&rig, name);
    }
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    for name in ["first", "second"] {
        remove(&rig, &[name]);
        rig.advance(100);
    }
    let sizes: Vec<_> = rig.store.trash().expect("a list").iter().map(|entry| entry.bytes).collect();
    assert_eq!(rig.store.empty_trash(1000, u64::MAX).expect("emptied"), 0);
    assert_eq!(rig.store.empty_trash(150, u64::MAX).expect("emptied"), sizes[1], "only the first is that old");
    assert_eq!(rig.store.empty_trash(1000, sizes[0]).expect("emptied"), 0);
    assert_eq!(rig.store.empty_trash(1000, sizes[0] - 1).expect("emptied"), sizes[0]);
    assert!(rig.store.trash().expect("a list").is_empty());
    assert_eq!(rig::tree(&rig.directory.path().join("trash")).len(), 0);
    let error = rig.store.undo(&rig.scope(NS, None), None).expect_err("nothing to undo");
    assert!(matches!(error, orlop_metadata::Error::TrashEmpty), "{error}");
    assert_eq!(rig.names(NS), ["third".to_owned()].into());
}

/// The rows are gone and the trash row is there, but the process died before it moved the bytes.
#[test]
fn a_killed_deletion_can_be_undone() {
    let mut rig = Rig::new();
    make(&rig, "image");
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    let before = state(&rig);
    // A file where the trash should be stands for the kill.
    std::fs::write(rig.directory.path().join("trash"), b"").expect("written");
    let change = [ImageChange::Delete { name: "image".to_owned() }];
    rig.store
        .delete_images(&rig.scope(NS, None), &change, &Disposal::Trash { reason: "orlop rm".into() }, None)
        .expect_err("nowhere to put it");
    assert!(rig.names(NS).is_empty());
    std::fs::remove_file(rig.directory.path().join("trash")).expect("removed");
    rig.reopen();
    rig.store.undo(&rig.scope(NS, None), None).expect("undone");
    assert_eq!(state(&rig), before);
}

/// The bytes are back but the process died before it restored the rows.
#[test]
fn a_killed_undo_can_be_repeated() {
    let rig = Rig::new();
    let manifest = make(&rig, "image");
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    let before = state(&rig);
    let id = remove(&rig, &["image"]).trash.expect("an entry");
    let bin = rig.directory.path().join("trash").join(id);
    let blob = rig.directory.path().join("content/blobs/sha256").join(manifest.hex());
    std::fs::rename(bin.join("blobs/sha256").join(manifest.hex()), blob).expect("moved");
    let tree =
        std::fs::read_dir(bin.join("snapshots").join(DRIVER)).expect("trees").next().expect("one").expect("entry");
    let back = rig.directory.path().join("snapshots").join(DRIVER).join(tree.file_name());
    std::fs::rename(tree.path(), back).expect("moved");
    let report = rig.store.collect_full(Disposal::Reclaim).expect("a collection");
    assert!(report.orphans.is_empty(), "a trash entry names them: {:?}", report.orphans);
    rig.store.undo(&rig.scope(NS, None), None).expect("undone");
    assert_eq!(state(&rig), before);
}

#[test]
fn collecting_into_the_trash_can_be_undone() {
    let rig = Rig::new();
    make(&rig, "image");
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    rig.store.delete_image(&rig.scope(NS, None), "image", None).expect("deleted");
    // Nothing else leads to this one, neither before nor after.
    rig.snapshots(NS, None).prepare("loose", "", labels(&[])).expect("prepared");
    let disposal = Disposal::Trash { reason: "orlop gc".to_owned() };
    let report = rig.store.collect(disposal.clone()).expect("a collection");
    assert_eq!((report.content.len(), report.snapshots.len(), report.trash.is_some()), (3, 3, true));
    let undone = rig.store.undo(&rig.scope(NS, None), None).expect("undone");
    assert_eq!((undone.blobs, undone.snapshots, undone.images.len()), (3, 3, 0));
    rig.store.collect(Disposal::Reclaim).expect("a collection");
    assert_eq!((rig.trees_on_disk(), rig.blobs_on_disk().len()), (0, 0));
    assert!(rig.store.collect(disposal).expect("a collection").trash.is_none(), "nothing needs no entry");
}

/// A deletion and its undo over a real driver: the trees are as they were.
fn trees_come_back(directory: &std::path::Path, driver: Arc<dyn Driver>) {
    let content = Arc::new(orlop_content::LocalStore::open(directory.join("content")).expect("a content store"));
    let options = OpenOptions { content, drivers: vec![driver.clone()], read_only: false };
    let store = Store::open(directory, options).expect("a root");
    let scope = Scope::new(NS, "test");
    let snapshots = store.snapshots(&scope, "").expect("the driver");
    let back = [("containerd.io/gc.bref.image", "image")];
    for (name, parent) in [("base", ""), ("top", "base")] {
        snapshots.prepare("key", parent, labels(&back)).expect("prepared");
        let target = snapshots.apply_target("key").expect("a target");
        std::fs::write(target.root.join(name), name).expect("written");
        std::fs::create_dir(target.root.join(format!("{name}.d"))).expect("made");
        snapshots.commit(name, "key", None, labels(&back)).expect("committed");
    }
    let target = rig::image("image", &rig::digest(b"absent"), &[]);
    store.create_image(&scope, target).expect("a record");
    store.collect(Disposal::Reclaim).expect("a collection");
    let before = rig::tree(driver.root());
    let change = [ImageChange::Delete { name: "image".to_owned() }];
    let report =
        store.delete_images(&scope, &change, &Disposal::Trash { reason: "orlop rm".into() }, None).expect("deleted");
    assert_eq!(report.snapshots.len(), 2);
    assert_eq!(driver.list().expect("a list").len(), 0);
    let undone = store.undo(&scope, None).expect("undone");
    assert_eq!(undone.snapshots, 2);
    assert_eq!(rig::tree(driver.root()), before);
    assert_eq!(
        snapshots.usage("top").expect("usage"),
        driver.usage(driver.list().expect("a list")[1].0).expect("usage")
    );
    store.delete_images(&scope, &change, &Disposal::Trash { reason: "orlop rm".into() }, None).expect("deleted");
    assert!(store.empty_trash(0, 0).expect("emptied") >= report.snapshot_bytes);
    assert_eq!(rig::tree(&directory.join("trash")).len(), 0);
}

#[test]
fn trees_of_native_come_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let driver = NativeDriver::open(directory.path().join("snapshots/native")).expect("a driver");
    trees_come_back(directory.path(), Arc::new(driver));
}

#[test]
fn trees_of_overlayfs_come_back() {
    let directory = tempfile::tempdir().expect("a directory");
    match OverlayDriver::open(directory.path().join("snapshots/overlayfs")) {
        Ok(driver) => trees_come_back(directory.path(), Arc::new(driver)),
        Err(error) => eprintln!("skipped: {error}"),
    }
}
