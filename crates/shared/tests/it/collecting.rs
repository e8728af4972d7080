//! The collector and the sweep: what goes, what stays, and when.

use std::time::Duration;

use bytes::Bytes;
use orlop_content::{IngestOptions, Ingester as _, Provider as _, read_verified};
use orlop_oci::{Digest, media_type};
use orlop_registry::{BlobIndex as _, ManifestIndex as _, ManifestKey, ManifestRecord};
use orlop_shared::{Collected, Options, Shared, Swept};

use crate::rig::{Place, noise, put};

const NOTHING: Collected = Collected { uploads: 0, given_up: 0, deleted: 0 };

async fn open(place: &Place, delete_after: Duration) -> Shared {
    Shared::open(Options { delete_after, ..place.options() }).await.unwrap()
}

fn leases_end(place: &Place) {
    place.sql("UPDATE blobs SET held_until = now() - interval '1 second'");
}

/// Pushes an image of one layer into a repository; returns the digests of both.
async fn push(shared: &Shared, repository: &str, seed: u64) -> (Digest, Digest) {
    let layer = put(&shared.store(), &noise(1000, seed)).await;
    let manifest = Bytes::from(format!("manifest {seed}"));
    let digest = put(&shared.store(), &manifest).await;
    shared.index().link_blob(repository, &layer).await.unwrap();
    let record = ManifestRecord {
        digest: digest.clone(),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        size: manifest.len() as u64,
        subject: None,
        artifact_type: None,
        annotations: Default::default(),
        children: vec![layer.clone()],
        elsewhere: Vec::new(),
    };
    shared.index().put_manifest(repository, record, &["latest".to_owned()]).await.unwrap();
    (layer, digest)
}

#[tokio::test]
async fn what_a_manifest_needs_stays_and_the_rest_goes_after_its_lease() {
    let Some(place) = Place::new() else { return };
    let shared = open(&place, Duration::ZERO).await;
    let (store, index, collector) = (shared.store(), shared.index(), shared.collector());
    let (layer, manifest) = push(&shared, "a", 1).await;
    let alone = put(&store, &noise(1000, 2)).await;
    index.link_blob("a", &alone).await.unwrap();
    assert_eq!(collector.collect().await.unwrap(), Some(NOTHING), "all are held");
    leases_end(&place);
    let expected = Collected { given_up: 1, deleted: 1, ..NOTHING };
    assert_eq!(collector.collect().await.unwrap(), Some(expected));
    assert!(!index.has_blob("a", &alone).await.unwrap());
    for digest in [&layer, &manifest] {
        read_verified(&store, digest, 1 << 20).await.unwrap();
    }
    assert_eq!(place.keys("blobs").len(), 2);

    // Two repositories need it; it goes with the second.
    let _ = push(&shared, "b", 1).await;
    for (repository, given_up) in [("a", 0), ("b", 2)] {
        index.delete_manifest(repository, &ManifestKey::Digest(manifest.clone())).await.unwrap();
        leases_end(&place);
        let collected = collector.collect().await.unwrap().unwrap();
        assert_eq!((collected.given_up, collected.deleted), (given_up, given_up), "{repository}");
    }
    assert!(place.keys("blobs").is_empty());
    assert_eq!(place.sql("SELECT count(*) FROM blobs"), "0");
}

/// Readers go on, and a database that is restored to a time within a day misses nothing.
#[tokio::test]
async fn objects_outlive_their_rows_state_for_a_while() {
    let Some(place) = Place::new() else { return };
    let shared = open(&place, Duration::from_secs(3600)).await;
    let bytes = noise(3 << 20, 3);
    let digest = put(&shared.store(), &bytes).await;
    let reader = shared.store().open(&digest).await.unwrap();
    leases_end(&place);
    let collected = shared.collector().collect().await.unwrap().unwrap();
    assert_eq!((collected.given_up, collected.deleted), (1, 0));
    assert!(shared.store().open(&digest).await.is_err());
    assert_eq!(reader.read_at(2 << 20, 1 << 20).await.unwrap(), bytes.slice(2 << 20..));
    // Pushed meanwhile, it is another object; the first one's end does not touch it.
    put(&shared.store(), &bytes).await;
    assert_eq!(place.keys("blobs").len(), 2);
    place.sql("UPDATE blobs SET delete_at = now() WHERE state = 'deleting'");
    assert_eq!(shared.collector().collect().await.unwrap(), Some(Collected { deleted: 1, ..NOTHING }));
    assert_eq!(read_verified(&shared.store(), &digest, 1 << 30).await.unwrap(), bytes);
}

#[tokio::test]
async fn reservations_of_the_dead_go() {
    let Some(place) = Place::new() else { return };
    let shared = open(&place, Duration::ZERO).await;
    let digest = Digest::of(b"never came");
    place.sql(&format!(
        "INSERT INTO blobs (digest, generation, state, size, held_until) VALUES ('{digest}', 7, 'reserved', 1, now())"
    ));
    assert_eq!(shared.collector().collect().await.unwrap(), Some(Collected { given_up: 1, deleted: 1, ..NOTHING }));
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_go() {
    let Some(place) = Place::new() else { return };
    let shared = open(&place, Duration::ZERO).await;
    let options = IngestOptions { reference: "idle".to_owned(), ..IngestOptions::default() };
    let mut writer = shared.store().writer(options).await.unwrap();
    writer.write(noise(9 << 20, 4)).await.unwrap();
    writer.release().await.unwrap();
    assert_eq!(shared.collector().collect().await.unwrap(), Some(NOTHING));
    place.sql("UPDATE ingests SET updated_at = now() - interval '2 days'");
    assert_eq!(shared.collector().collect().await.unwrap(), Some(Collected { uploads: 1, ..NOTHING }));
    assert_eq!(place.keys("uploads"), [""; 0]);
}

#[tokio::test]
async fn one_gateway_collects_at_a_time() {
    let Some(place) = Place::new() else { return };
    let (one, two) = (place.open().await, place.open().await);
    // As the other would hold it.
    let sql = "SELECT pg_advisory_lock(122537236197378), pg_sleep(2)";
    let place = place.clone();
    let holder = std::thread::spawn(move || place.sql(sql));
    while one.collector().collect().await.unwrap().is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(two.collector().sweep().await.unwrap(), None);
    holder.join().unwrap();
    assert!(two.collector().collect().await.unwrap().is_some());
}

#[tokio::test]
async fn the_sweep_takes_what_no_row_names_and_is_old() {
    let Some(place) = Place::new() else { return };
    let week = Shared::open(place.options()).await.unwrap();
    let now = Shared::open(Options { orphan_age: Duration::ZERO, ..place.options() }).await.unwrap();
    let _ = push(&week, "a", 5).await;
    let options = IngestOptions { reference: "going on".to_owned(), ..IngestOptions::default() };
    let mut writer = week.store().writer(options).await.unwrap();
    writer.write(noise(100_000, 6)).await.unwrap();
    writer.release().await.unwrap();
    let sound = [place.keys("blobs"), place.keys("uploads")].concat();
    assert_eq!(sound.len(), 3);
    let digest = Digest::of(b"orphan");
    let orphans = [
        format!("blobs/sha256/{}/{}/{:016x}", &digest.hex()[..2], digest.hex(), 9),
        "blobs/sha256/zz/no digest/1".to_owned(),
        "uploads/nobody/data".to_owned(),
    ];
    for key in &orphans {
        place.put(key, b"orphan");
    }
    // What others keep in the bucket is none of its business.
    place.put("other/one", b"other");
    assert_eq!(week.collector().sweep().await.unwrap(), Some(Swept { seen: 6, deleted: 0, young: 3 }));
    assert_eq!(now.collector().sweep().await.unwrap(), Some(Swept { seen: 6, deleted: 3, young: 0 }));
    assert_eq!([place.keys("blobs"), place.keys("uploads")].concat(), sound);
    assert_eq!(place.keys("other"), ["other/one"]);
}
