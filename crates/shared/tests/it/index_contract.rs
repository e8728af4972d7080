//! The contract of a registry's index, over PostgreSQL; and what this index has beyond it.

use std::sync::Arc;

use bytes::Bytes;
use orlop_content::Manager as _;
use orlop_oci::{Digest, media_type};
use orlop_registry::suite::Fixture;
use orlop_registry::{
    BlobIndex as _, IndexError, ManifestIndex as _, ManifestKey, ManifestRecord, MemoryIndex, TagIndex as _,
};

use crate::rig::{Place, put};

/// Rows without objects: an index never looks into the bucket.
async fn factory() -> Fixture {
    let Some(place) = Place::new() else { return Fixture::new(MemoryIndex::new(), ()) };
    let index = place.open().await.index();
    let rows = Arc::new(place);
    Fixture::new(index, rows.clone()).bringing(move |digest| {
        let rows = rows.clone();
        Box::pin(async move {
            let insert = format!(
                "INSERT INTO blobs (digest, generation, state, size, held_until) \
                 VALUES ('{digest}', 1, 'live', 1, now() + interval '1 hour') ON CONFLICT DO NOTHING"
            );
            tokio::task::spawn_blocking(move || rows.sql(&insert)).await.unwrap();
        })
    })
}

orlop_registry::index_suite!(factory);

fn record(bytes: &Bytes, children: &[Digest]) -> ManifestRecord {
    ManifestRecord {
        digest: Digest::of(bytes),
        media_type: media_type::OCI_MANIFEST.to_owned(),
        size: bytes.len() as u64,
        subject: None,
        artifact_type: None,
        annotations: Default::default(),
        children: children.to_vec(),
        elsewhere: Vec::new(),
    }
}

/// The one thing that stands between a collector and a loss.
#[tokio::test]
async fn a_manifest_whose_blob_was_given_up_is_refused() {
    let Some(place) = Place::new() else { return };
    let shared = place.open().await;
    let (store, index) = (shared.store(), shared.index());
    let (layer, manifest) = (Bytes::from_static(b"layer"), Bytes::from_static(b"manifest"));
    let layer_digest = put(&store, &layer).await;
    put(&store, &manifest).await;
    index.link_blob("r", &layer_digest).await.unwrap();
    let record = record(&manifest, std::slice::from_ref(&layer_digest));
    store.delete(&layer_digest).await.unwrap();
    let tags = ["v1".to_owned()];
    let refused = index.put_manifest("r", record.clone(), &tags).await;
    assert!(matches!(&refused, Err(IndexError::NoChild(digest)) if *digest == layer_digest), "{refused:?}");
    assert!(matches!(index.link_blob("r", &layer_digest).await, Err(IndexError::NoBlob)));
    assert!(matches!(index.tags("r", None, 10).await.as_deref(), Ok([])), "nothing of it is there");

    // Pushed again it is another generation, and the link of the first one does not stand for it.
    put(&store, &layer).await;
    assert!(!index.has_blob("r", &layer_digest).await.unwrap());
    index.link_blob("r", &layer_digest).await.unwrap();
    index.put_manifest("r", record, &tags).await.unwrap();
    assert_eq!(place.sql("SELECT count(*), count(DISTINCT generation) FROM blobs WHERE size = 5"), "2|2");
}

#[tokio::test]
async fn a_layer_that_is_elsewhere_need_not_be_here() {
    let Some(place) = Place::new() else { return };
    let shared = place.open().await;
    let index = shared.index();
    let manifest = Bytes::from_static(b"of a layer that is not distributed");
    put(&shared.store(), &manifest).await;
    let foreign = Digest::of(b"foreign");
    let record = record(&manifest, std::slice::from_ref(&foreign));
    assert!(matches!(index.put_manifest("r", record.clone(), &[]).await, Err(IndexError::NoChild(_))));
    let record = ManifestRecord { elsewhere: vec![foreign], ..record };
    index.put_manifest("r", record.clone(), &[]).await.unwrap();
    assert_eq!(index.manifest("r", &ManifestKey::Digest(record.digest.clone())).await.unwrap(), record);
}

#[tokio::test]
async fn a_tag_is_moved_only_from_what_it_was() {
    let Some(place) = Place::new() else { return };
    let shared = place.open().await;
    let index = shared.index();
    let mut digests = Vec::new();
    for name in ["one", "two", "three"] {
        let bytes = Bytes::from_static(name.as_bytes());
        put(&shared.store(), &bytes).await;
        index.put_manifest("r", record(&bytes, &[]), &[]).await.unwrap();
        digests.push(Digest::of(&bytes));
    }
    let [one, two, three] = &digests[..] else { unreachable!() };
    assert!(index.move_tag("r", "t", None, one).await.unwrap());
    assert!(!index.move_tag("r", "t", None, two).await.unwrap(), "it is there");
    assert!(!index.move_tag("r", "t", Some(two), three).await.unwrap(), "it is something else");
    let version = place.sql("SELECT version FROM tags");
    // Of many who move it at once from the same, one does.
    let movers: Vec<_> = (0..16)
        .map(|i| {
            let (index, from, to) = (index.clone(), one.clone(), if i % 2 == 0 { two.clone() } else { three.clone() });
            tokio::spawn(async move { index.move_tag("r", "t", Some(&from), &to).await.unwrap() })
        })
        .collect();
    let mut moved = 0;
    for mover in movers {
        moved += usize::from(mover.await.unwrap());
    }
    assert_eq!(moved, 1);
    assert_ne!(place.sql("SELECT version FROM tags"), version);
    let unknown = Digest::of(b"unknown");
    assert!(matches!(index.move_tag("r", "u", None, &unknown).await, Err(IndexError::NoManifest)));
    assert!(matches!(index.move_tag("none", "t", None, one).await, Err(IndexError::NoRepository)));
}
