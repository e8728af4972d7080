//! Snapshots in a namespace: containerd's kinds, keys, parents and labels; what a crash between the steps leaves.

use std::fs;
use std::sync::{Arc, Mutex};

use crate::support;
use crate::support::{PlainDriver, Root, labels, refused, scope, texts};
use orlop_content::MemoryStore;
use orlop_metadata::{Commit, Error, ObjectKind, Resource, ResourceKind, Result, Scope, ScopedSnapshots, SnapshotKind};
use orlop_snapshot::{Driver, SnapshotId};

fn snapshots(root: &Root) -> ScopedSnapshots {
    root.store.snapshots(&scope(), "").unwrap()
}

/// A committed snapshot per name, each on the one before.
fn stack(snapshots: &ScopedSnapshots, names: &[&str]) {
    let mut parent = "";
    for name in names {
        let key = format!("extract {name}");
        snapshots.prepare(&key, parent, labels([])).unwrap();
        snapshots.commit(name, &key, None, labels([])).unwrap();
        parent = name;
    }
}

fn is_missing<T>(result: Result<T>, wanted: &str) -> bool {
    matches!(result, Err(Error::NotFound { kind: ObjectKind::Snapshot, name }) if name == wanted)
}

fn is_existing<T>(result: Result<T>, wanted: &str) -> bool {
    matches!(result, Err(Error::AlreadyExists { kind: ObjectKind::Snapshot, name }) if name == wanted)
}

fn is_refused<T>(result: Result<T>, wanted: &str) -> bool {
    matches!(result, Err(Error::FailedPrecondition { kind: ObjectKind::Snapshot, name, .. }) if name == wanted)
}

fn held(root: &Root, lease: &str) -> Vec<String> {
    let all = root.store.resources("test", lease).unwrap();
    let kind = ResourceKind::Snapshots("plain".to_owned());
    all.into_iter().filter(|r| r.kind == kind).map(|r| r.name).collect()
}

fn on_disk(root: &Root) -> Vec<u64> {
    let mut ids: Vec<u64> = root.driver.list().unwrap().into_iter().map(|(id, _)| id.0).collect();
    ids.sort_unstable();
    ids
}

#[test]
fn the_life_of_a_layer() {
    let root = Root::new();
    let s = snapshots(&root);
    assert_eq!(s.driver_name(), "plain");
    let mounts = s.prepare("key", "", labels([("a", "1")])).unwrap();
    assert_eq!((mounts[0].kind.as_str(), mounts[0].options[0].as_str()), ("bind", "rw"));
    let active = s.stat("key").unwrap();
    assert_eq!((active.kind, active.parent.as_str()), (SnapshotKind::Active, ""));
    assert_eq!(active.labels, labels([("a", "1")]));
    let target = s.apply_target("key").unwrap();
    fs::write(target.root.join("file"), "12345").unwrap();
    assert_eq!(s.usage("key").unwrap().bytes, 5);

    s.commit("name", "key", None, labels([("b", "2")])).unwrap();
    assert!(is_missing(s.stat("key"), "key"));
    let committed = s.stat("name").unwrap();
    assert_eq!((committed.kind, committed.labels), (SnapshotKind::Committed, labels([("b", "2")])));
    assert!(committed.created_at >= active.created_at);
    assert_eq!((s.usage("name").unwrap().bytes, s.usage("name").unwrap().inodes), (5, 1));
    assert!(is_refused(s.mounts("name"), "name"));
    assert!(is_refused(s.apply_target("name"), "name"));
}

#[test]
fn mounts_name_all_parents_nearest_first() {
    let root = Root::new();
    let s = snapshots(&root);
    stack(&s, &["one", "two", "three"]);
    let made = s.prepare("top", "three", labels([])).unwrap();
    assert_eq!(made[0].options, ["rw", "below=3", "below=2", "below=1"]);
    assert_eq!(s.mounts("top").unwrap(), made);
    let view = s.view("look", "two", labels([])).unwrap();
    assert_eq!(view[0].options, ["ro", "below=2", "below=1"]);
    assert_eq!(s.mounts("look").unwrap(), view);
    assert_eq!(s.stat("look").unwrap().kind, SnapshotKind::View);
    assert!(is_missing(s.mounts("nothing"), "nothing"));
}

#[test]
fn only_a_committed_snapshot_is_a_parent() {
    let root = Root::new();
    let s = snapshots(&root);
    stack(&s, &["base"]);
    s.prepare("active", "base", labels([])).unwrap();
    s.view("view", "base", labels([])).unwrap();
    for parent in ["active", "view"] {
        let refused = s.prepare("child", parent, labels([]));
        assert!(matches!(refused, Err(Error::Invalid { what: "parent snapshot", .. })), "{parent}");
    }
    assert!(is_missing(s.prepare("child", "nothing", labels([])), "nothing"));
    assert!(is_missing(s.stat("child"), "child"));
}

#[test]
fn one_key_space_for_all_kinds() {
    let root = Root::new();
    let s = snapshots(&root);
    stack(&s, &["committed"]);
    s.prepare("active", "", labels([])).unwrap();
    s.view("view", "", labels([])).unwrap();
    for key in ["committed", "active", "view"] {
        assert!(is_existing(s.prepare(key, "", labels([])), key));
        assert!(is_existing(s.view(key, "", labels([])), key));
        assert!(is_existing(s.commit(key, "active", None, labels([])), key));
    }
    assert!(is_refused(s.commit("new", "view", None, labels([])), "view"));
    assert!(is_refused(s.commit("new", "committed", None, labels([])), "committed"));
    assert!(is_missing(s.commit("new", "nothing", None, labels([])), "nothing"));
    assert!(matches!(s.prepare("", "", labels([])), Err(Error::Invalid { .. })));
    assert!(matches!(s.commit("", "active", None, labels([])), Err(Error::Invalid { .. })));
}

#[test]
fn a_parent_cannot_be_removed() {
    let root = Root::new();
    let s = snapshots(&root);
    stack(&s, &["one", "two"]);
    s.prepare("top", "two", labels([])).unwrap();
    assert!(is_refused(s.remove("one"), "one"));
    assert!(is_refused(s.remove("two"), "two"));
    s.remove("top").unwrap();
    s.remove("two").unwrap();
    s.remove("one").unwrap();
    assert!(is_missing(s.remove("one"), "one"));
    assert!(s.list(&[]).unwrap().is_empty());
    assert_eq!(on_disk(&root), [1, 2, 3], "trees go at the next collection");
}

#[test]
fn a_key_can_be_used_again_and_gets_a_new_tree() {
    let root = Root::new();
    let s = snapshots(&root);
    let first = s.prepare("key", "", labels([])).unwrap();
    s.remove("key").unwrap();
    assert_ne!(s.prepare("key", "", labels([])).unwrap(), first);
}

#[test]
fn namespaces_and_drivers_have_their_own_keys() {
    let root = Root::new();
    let s = snapshots(&root);
    let other = root.store.snapshots(&Scope::new("other", "tests"), "plain").unwrap();
    stack(&s, &["base"]);
    assert!(is_missing(other.stat("base"), "base"));
    assert!(is_missing(other.prepare("key", "base", labels([])), "base"));
    stack(&other, &["base"]);
    s.remove("base").unwrap();
    other.stat("base").unwrap();
    let unknown = root.store.snapshots(&scope(), "zfs");
    assert!(matches!(unknown, Err(Error::NotFound { kind: ObjectKind::Snapshotter, name }) if name == "zfs"));
}

#[test]
fn labels_follow_the_mask() {
    let root = Root::new();
    let s = snapshots(&root);
    stack(&s, &["base"]);
    let before = s.stat("base").unwrap();
    let info = s.update("base", labels([("a", "1"), ("b.c", "2"), ("gone", "")]), &[]).unwrap();
    assert_eq!(info.labels, labels([("a", "1"), ("b.c", "2")]));
    assert_eq!((info.created_at, info.kind), (before.created_at, SnapshotKind::Committed));
    let info = s.update("base", labels([("b.c", "3")]), &texts(["labels.b.c", "labels.a"])).unwrap();
    assert_eq!(info.labels, labels([("b.c", "3")]));
    assert_eq!(s.stat("base").unwrap(), info);
    assert!(matches!(s.update("base", labels([]), &texts(["parent"])), Err(Error::Invalid { .. })));
    assert!(is_missing(s.update("none", labels([]), &[]), "none"));
    let long = "x".repeat(4096);
    assert!(matches!(s.prepare("key", "", labels([("k", &long)])), Err(Error::Invalid { what: "label", .. })));
}

#[test]
fn a_list_has_parents_first_and_can_be_filtered() {
    let root = Root::new();
    let s = snapshots(&root);
    s.prepare("extract two", "", labels([])).unwrap();
    stack(&s, &["one"]);
    s.commit("two", "extract two", Some("one"), labels([("x.y/z", "1")])).unwrap();
    s.view("look", "two", labels([])).unwrap();
    let names = |filter: &str| s.list(&texts([filter])).unwrap().into_iter().map(|i| i.name).collect::<Vec<_>>();
    assert_eq!(names(""), ["one", "two", "look"]);
    assert_eq!(names("kind==committed"), ["one", "two"]);
    assert_eq!(names("parent==one"), ["two"]);
    assert_eq!(names(r#"labels."x.y/z""#), ["two"]);
    assert_eq!(names("name~=^look$,kind==view"), ["look"]);
}

#[test]
fn layers_made_without_parents_get_them_at_commit() {
    let root = Root::new();
    let s = snapshots(&root);
    assert!(s.supports_rebase());
    s.prepare("extract two", "", labels([])).unwrap();
    assert!(is_missing(s.commit("two", "extract two", Some("one"), labels([])), "one"));
    stack(&s, &["one"]);
    s.commit("two", "extract two", Some("one"), labels([])).unwrap();
    assert_eq!(s.stat("two").unwrap().parent, "one");
    assert!(is_refused(s.remove("one"), "one"));
    s.prepare("top", "two", labels([])).unwrap();
    assert!(is_refused(s.commit("three", "top", Some("one"), labels([])), "top"), "it has another parent");
    s.commit("three", "top", Some("two"), labels([])).unwrap();
}

fn link(name: &str, key: &str) -> Commit {
    Commit { name: name.to_owned(), key: key.to_owned(), labels: labels([("of", key)]) }
}

#[test]
fn layers_are_committed_together_or_not_at_all() {
    let root = Root::new();
    let s = snapshots(&root);
    stack(&s, &["one"]);
    let actives = ["a", "b", "c"];
    actives.iter().for_each(|key| drop(s.prepare(key, "", labels([])).unwrap()));
    let chain = || vec![link("two", "a"), link("three", "b"), link("four", "c")];
    let all_are_active = || actives.iter().all(|key| s.stat(key).unwrap().kind == SnapshotKind::Active);

    assert!(is_missing(s.commit_chain("nothing", chain()), "nothing"));
    assert!(is_missing(s.commit_chain("one", vec![link("two", "a"), link("three", "none")]), "none"));
    assert!(matches!(s.commit_chain("one", vec![link("two", "a"), link("", "b")]), Err(Error::Invalid { .. })));
    root.driver.hook(|call| if call == "commit" { Err(refused()) } else { Ok(()) });
    assert!(matches!(s.commit_chain("one", chain()), Err(Error::Snapshot(_))));
    // Another makes one of them while the trees are made durable.
    let (other, made) = (s.clone(), Mutex::new(false));
    root.driver.hook(move |call| {
        if call == "commit" && !std::mem::replace(&mut *made.lock().unwrap(), true) {
            stack(&other, &["three"]);
        }
        Ok(())
    });
    assert!(is_existing(s.commit_chain("one", chain()), "three"));
    root.driver.unhook();
    assert!(is_missing(s.stat("two"), "two"));
    assert!(is_existing(s.commit_chain("one", chain()), "three"));
    assert!(all_are_active());

    s.remove("three").unwrap();
    s.commit_chain("one", chain()).unwrap();
    let parents = ["two", "three", "four"].map(|name| s.stat(name).unwrap().parent);
    assert_eq!(parents, ["one", "two", "three"]);
    assert_eq!(s.stat("four").unwrap().labels, labels([("of", "c")]));
    assert!(actives.iter().all(|key| s.stat(key).is_err()));
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

#[test]
fn a_driver_that_cannot_rebase_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let driver = Arc::new(PlainDriver::new(directory.path()).without_rebase());
    let store = support::open(directory.path(), &MemoryStore::new(), &driver, false).unwrap();
    let s = store.snapshots(&scope(), "").unwrap();
    stack(&s, &["one"]);
    s.prepare("extract", "", labels([])).unwrap();
    assert!(is_refused(s.commit("two", "extract", Some("one"), labels([])), "extract"));
}

#[test]
fn what_is_made_is_leased() {
    let root = Root::new();
    for lease in ["a", "b"] {
        root.store.create_lease("test", lease, labels([])).unwrap();
    }
    let s = root.store.snapshots(&scope().with_lease("a"), "").unwrap();
    s.prepare("key", "", labels([])).unwrap();
    assert_eq!(held(&root, "a"), ["key"]);
    s.commit("name", "key", None, labels([])).unwrap();
    assert_eq!(held(&root, "a"), ["name"]);
    s.prepare("key", "name", labels([])).unwrap();

    let s = root.store.snapshots(&scope().with_lease("b"), "").unwrap();
    assert!(is_existing(s.prepare("key", "", labels([])), "key"));
    assert_eq!(held(&root, "b"), ["key"], "what exists already is leased too");
    assert!(is_existing(s.commit("name", "key", None, labels([])), "name"));
    assert_eq!(held(&root, "b"), ["key", "name"]);
    s.remove("key").unwrap();
    assert_eq!(held(&root, "b"), ["name"]);

    let s = root.store.snapshots(&scope().with_lease("none"), "").unwrap();
    let unknown = s.prepare("fresh", "", labels([]));
    assert!(matches!(unknown, Err(Error::NotFound { kind: ObjectKind::Lease, .. })));
    assert!(is_missing(s.stat("fresh"), "fresh"));
    assert_eq!(on_disk(&root), [1, 2], "nothing was made for it");
}

#[test]
fn a_snapshot_to_become_what_exists_is_not_made() {
    let root = Root::new();
    root.store.create_lease("test", "a", labels([])).unwrap();
    let s = root.store.snapshots(&scope().with_lease("a"), "").unwrap();
    let becomes = || labels([("containerd.io/snapshot.ref", "chain")]);
    s.prepare("extract 1", "", becomes()).unwrap();
    s.commit("chain", "extract 1", None, labels([])).unwrap();
    root.store
        .delete_resource(
            "test",
            "a",
            &Resource { kind: ResourceKind::Snapshots("plain".to_owned()), name: "chain".to_owned() },
        )
        .unwrap();
    assert!(is_existing(s.prepare("extract 2", "", becomes()), "chain"));
    assert_eq!(held(&root, "a"), ["chain"]);
    assert!(is_missing(s.stat("extract 2"), "extract 2"));
}

#[test]
fn a_driver_that_fails_leaves_no_row() {
    let root = Root::new();
    let s = snapshots(&root);
    root.driver.hook(|call| if call == "create" { Err(refused()) } else { Ok(()) });
    assert!(matches!(s.prepare("key", "", labels([])), Err(Error::Snapshot(_))));
    root.driver.unhook();
    assert!(is_missing(s.stat("key"), "key"));
    s.prepare("key", "", labels([])).unwrap();
    root.driver.hook(|call| if call == "commit" { Err(refused()) } else { Ok(()) });
    assert!(matches!(s.commit("name", "key", None, labels([])), Err(Error::Snapshot(_))));
    root.driver.unhook();
    assert_eq!(s.stat("key").unwrap().kind, SnapshotKind::Active);
    s.commit("name", "key", None, labels([])).unwrap();
}

/// While a driver works, others may come first: who is second learns it, and no row points at the wrong tree.
#[test]
fn races_while_the_driver_works() {
    let root = Root::new();
    let s = snapshots(&root);
    let meanwhile = |act: Box<dyn FnOnce(&ScopedSnapshots) + Send>, at: &'static str| {
        let (s, act) = (s.clone(), Mutex::new(Some(act)));
        root.driver.hook(move |call| {
            if call == at
                && let Some(act) = act.lock().unwrap().take()
            {
                act(&s);
            }
            Ok(())
        });
    };
    meanwhile(Box::new(|s| drop(s.prepare("key", "", labels([("who", "first")])).unwrap())), "create");
    assert!(is_existing(s.prepare("key", "", labels([])), "key"));
    assert_eq!(s.stat("key").unwrap().labels, labels([("who", "first")]));

    meanwhile(Box::new(|s| s.remove("key").unwrap()), "commit");
    assert!(is_missing(s.commit("name", "key", None, labels([])), "key"));

    s.prepare("key", "", labels([])).unwrap();
    meanwhile(
        Box::new(|s| {
            s.remove("key").unwrap();
            s.prepare("key", "", labels([])).unwrap();
        }),
        "commit",
    );
    assert!(is_refused(s.commit("name", "key", None, labels([])), "key"), "another tree has the key now");

    meanwhile(Box::new(|s| stack(s, &["name"])), "commit");
    assert!(is_existing(s.commit("name", "key", None, labels([])), "name"));

    meanwhile(Box::new(|s| s.remove("name").unwrap()), "create");
    assert!(is_missing(s.prepare("child", "name", labels([])), "name"));
    root.driver.unhook();
    assert_eq!(s.list(&[]).unwrap().len(), 1);
    assert_eq!(root.store.check_metadata().unwrap(), []);
}

#[test]
fn committing_needs_no_write_lock_while_the_driver_works() {
    let root = Root::new();
    let s = snapshots(&root);
    s.prepare("key", "", labels([])).unwrap();
    let other = root.reopened();
    root.driver.hook(move |_| {
        other.create_lease("test", "", labels([])).unwrap();
        Ok(())
    });
    s.commit("name", "key", None, labels([])).unwrap();
    s.prepare("key", "name", labels([])).unwrap();
    assert_eq!(root.store.leases("test", &[]).unwrap().len(), 3);
}

#[test]
fn a_reopened_root_has_the_same_snapshots() {
    let root = Root::new();
    stack(&snapshots(&root), &["one", "two"]);
    let again = root.reopened();
    let s = again.snapshots(&scope(), "plain").unwrap();
    assert_eq!(s.list(&[]).unwrap(), snapshots(&root).list(&[]).unwrap());
    s.prepare("top", "two", labels([])).unwrap();
    assert!(root.driver.list().unwrap().contains(&(SnapshotId(3), None)));
}
