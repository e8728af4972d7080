//! What a daemon asks of a root: changes by anybody, expiries, counts, and whether a collection missed something.

mod rig;

use orlop_metadata::gc::Disposal;
use orlop_metadata::{Counts, HistoryAction};
use rig::{Rig, at, digest, labels};

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
