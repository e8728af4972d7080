//! What a daemon asks of a root: changes by anybody, expiries, counts, and whether a collection missed something.

use crate::rig::{Rig, at, digest, image, labels};
use orlop_metadata::gc::Disposal;
use orlop_metadata::{Counts, HistoryAction};

const NS: &str = "default";

#[test]
fn changes_of_every_process_come_in_order_and_none_twice() {
    let rig = Rig::new();
    let other = rig.another();
    let start = rig.store.last_change().unwrap();
    rig.image(NS, "a", &digest(b"1"));
    other.delete_image(&rig.scope(NS, None), "a", None).unwrap();
    rig.image("elsewhere", "b", &digest(b"2"));
    let first = rig.store.changes_since(start, 2).unwrap();
    let told: Vec<_> = first.iter().map(|c| (c.namespace.as_str(), c.name.as_str(), c.action)).collect();
    assert_eq!(told, [(NS, "a", HistoryAction::Create), (NS, "a", HistoryAction::Delete)]);
    let rest = rig.store.changes_since(first[1].seq, 10).unwrap();
    assert_eq!(rest.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(rig.store.last_change().unwrap(), rest[0].seq);
    assert!(rig.store.changes_since(rest[0].seq, 10).unwrap().is_empty());
}

#[test]
fn the_next_expiry_is_the_earliest_of_all_kinds() {
    let rig = Rig::new();
    assert_eq!(rig.store.next_expiry().unwrap(), None);
    let expires = |seconds| at(rig.seconds() + seconds);
    rig.store.create_lease(NS, "late", labels(&[("containerd.io/gc.expire", &expires(100))])).unwrap();
    assert_eq!(rig.store.next_expiry().unwrap().unwrap().as_second(), rig.seconds() + 100);
    rig.store.create_lease("other", "soon", labels(&[("containerd.io/gc.expire", &expires(10))])).unwrap();
    assert_eq!(rig.store.next_expiry().unwrap().unwrap().as_second(), rig.seconds() + 10);
}

#[test]
fn conditions_turn_at_times_that_can_be_asked_for() {
    let rig = Rig::new();
    let scope = rig.scope(NS, None);
    let used = |seconds| [("containerd.io/gc.cond.value-usedat", at(rig.seconds() + seconds))];
    let owned = |pairs: &[(&str, String)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    rig.snapshots(NS, None).prepare("a", "", owned(&used(-5))).unwrap();
    rig.snapshots(NS, None).prepare("b", "", owned(&used(-50))).unwrap();
    let condition = |text: &str| image("i", &digest(b"x"), &[("containerd.io/gc.cond.snapshot.plain", text)]);
    rig.store.create_image(&scope, condition("usedat<1m|b")).unwrap();
    let next = || rig.store.next_expiry().unwrap().map(|at| at.as_second() - rig.seconds());
    assert_eq!(next(), Some(10), "the condition is about b alone");
    rig.store.update_image(&scope, condition("usedat>3s,usedat<1m|a"), &[]).unwrap();
    assert_eq!(next(), Some(-2), "already past, and not collected since");
    rig.store.collect(Disposal::Reclaim).unwrap();
    assert_eq!(next(), Some(55));
    rig.advance(55);
    assert_eq!(next(), Some(0));
    rig.store.collect(Disposal::Reclaim).unwrap();
    assert_eq!(next(), None);
    // Beyond what the database can say: some time, and no error.
    rig.snapshots(NS, None)
        .update("a", labels(&[("containerd.io/gc.cond.value-usedat", "9999-01-01T00:00:00Z")]), &[])
        .unwrap();
    rig.store.update_image(&scope, condition("usedat<2562047h|a"), &[]).unwrap();
    assert!(next().is_some());
}

#[test]
fn rows_are_counted_in_all_namespaces() {
    let rig = Rig::new();
    assert_eq!(rig.store.counts().unwrap(), Counts::default());
    rig.put(&rig.scope(NS, None), b"x", &[]).unwrap();
    rig.image(NS, "a", &digest(b"x"));
    rig.image("other", "a", &digest(b"x"));
    assert_eq!(rig.store.counts().unwrap(), Counts { images: 2, blobs: 1, ..Counts::default() });
}

#[test]
fn a_full_collection_names_what_the_incremental_one_had_lost_sight_of() {
    let rig = Rig::new();
    let lost = rig.put(&rig.scope(NS, None), b"lost", &[]).unwrap();
    // A fault in the book-keeping of suspects, as none is known.
    let database = rusqlite::Connection::open(rig.store.root().join("meta.db")).unwrap();
    database.execute("DELETE FROM suspect", []).unwrap();
    assert!(rig.store.collect(Disposal::Reclaim).unwrap().content.is_empty());
    let report = rig.store.collect_full(Disposal::Reclaim).unwrap();
    assert_eq!(report.missed, [format!("{NS} content {lost}")].into());
    assert_eq!(report.content.len(), 1);
    rig.put(&rig.scope(NS, None), b"seen", &[]).unwrap();
    assert!(rig.store.collect_full(Disposal::Reclaim).unwrap().missed.is_empty());
}
