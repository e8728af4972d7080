//! A fresh tree takes the place of a damaged one only where nobody stands on that, whoever came while it was made; a snapshot that went
//! or changed meanwhile is left; and what is not used goes.

use std::fs;

use crate::support::{Root, labels, scope};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Error, Healing, ScopedSnapshots};

/// A root with a damaged snapshot `one`, and `two` on it.
fn root() -> (Root, ScopedSnapshots) {
    let root = Root::new();
    root.store.create_lease("test", "held", labels([])).unwrap();
    let snapshots = root.store.snapshots(&scope().with_lease("held"), "").unwrap();
    for (name, parent) in [("one", ""), ("two", "one")] {
        snapshots.prepare("extract", parent, labels([])).unwrap();
        fs::write(snapshots.apply_target("extract").unwrap().root.join("file"), "damaged").unwrap();
        snapshots.commit(name, "extract", None, labels([])).unwrap();
    }
    (root, snapshots)
}

fn begun(snapshots: &ScopedSnapshots) -> Healing {
    let healing = snapshots.begin_healing("one").unwrap();
    fs::write(snapshots.healing_target(&healing).unwrap().root.join("file"), "sound").unwrap();
    healing
}

/// What is in the tree of `one`.
fn file(root: &Root, snapshots: &ScopedSnapshots) -> String {
    let (id, _) = snapshots.ids().unwrap().into_iter().find(|(_, info)| info.name == "one").unwrap();
    fs::read_to_string(orlop_snapshot::Driver::apply_target(&*root.driver, id).root.join("file")).unwrap()
}

fn trees(root: &Root) -> usize {
    root.store.collect(Disposal::Reclaim).unwrap();
    orlop_snapshot::Driver::list(&*root.driver).unwrap().len()
}

#[test]
fn whoever_comes_while_a_tree_is_healed_keeps_the_one_that_is_there() {
    let (root, snapshots) = root();
    for parent in ["one", "two"] {
        for view in [false, true] {
            let healing = begun(&snapshots);
            match view {
                true => snapshots.view("comer", parent, labels([])).unwrap(),
                false => snapshots.prepare("comer", parent, labels([])).unwrap(),
            };
            assert_eq!(snapshots.end_healing(healing).unwrap(), ["comer"], "on {parent}");
            assert_eq!(snapshots.standing_on("one").unwrap(), ["comer"]);
            assert_eq!(file(&root, &snapshots), "damaged", "it changed beneath a comer on {parent}");
            snapshots.remove("comer").unwrap();
            assert_eq!(trees(&root), 2, "fresh trees that nobody wants go at once");
        }
    }
    let before = snapshots.ids().unwrap();
    assert_eq!(snapshots.end_healing(begun(&snapshots)).unwrap(), [""; 0]);
    assert_eq!(file(&root, &snapshots), "sound");
    assert_eq!(snapshots.ids().unwrap(), before, "nothing that names it changes");
    assert_eq!(trees(&root), 3, "the damaged one goes an hour later");
}

#[test]
fn a_snapshot_that_changes_or_goes_meanwhile_is_left() {
    let (root, snapshots) = root();
    let healing = begun(&snapshots);
    snapshots.update("one", labels([("a", "b")]), &[]).unwrap();
    assert!(matches!(snapshots.end_healing(healing), Err(Error::FailedPrecondition { .. })));
    assert_eq!(file(&root, &snapshots), "damaged");
    let healing = begun(&snapshots);
    snapshots.remove("two").unwrap();
    snapshots.remove("one").unwrap();
    assert!(matches!(snapshots.end_healing(healing), Err(Error::NotFound { .. })));
    assert_eq!(trees(&root), 0);
    snapshots.prepare("active", "", labels([])).unwrap();
    assert!(matches!(snapshots.begin_healing("active"), Err(Error::FailedPrecondition { .. })));
    assert!(matches!(snapshots.begin_healing("nothing"), Err(Error::NotFound { .. })));
    assert_eq!(trees(&root), 1);
}
