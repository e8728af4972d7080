//! Who leads to a blob, by the edges.

use std::collections::BTreeSet;

use crate::support::{Root, digest, image, labels, scope};
use bytes::Bytes;
use orlop_content::Ingester;
use orlop_metadata::{Labels, ManifestSummary, Store};
use orlop_oci::Digest;

async fn blob(store: &Store, text: &'static str, labels: Labels) -> Digest {
    let content = store.content(&scope());
    let options = orlop_content::IngestOptions { reference: text.to_owned(), ..Default::default() };
    let mut writer = content.writer(options).await.unwrap();
    writer.write(Bytes::from_static(text.as_bytes())).await.unwrap();
    let written = writer.commit(0, None).await.unwrap();
    content.label_all(&[(written.clone(), labels)]).unwrap();
    written
}

fn names(store: &Store, blobs: &[&str]) -> Vec<String> {
    let blobs: BTreeSet<Digest> = blobs.iter().map(|text| digest(text)).collect();
    store.images_leading_to("test", &blobs).unwrap().into_iter().map(|image| image.name).collect()
}

fn read(store: &Store, text: &str) {
    let summary = ManifestSummary {
        size: 1,
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        image_id: None,
        config_size: 0,
        platform: None,
        user: String::new(),
        chain: Vec::new(),
        layers: Vec::new(),
        manifests: Vec::new(),
    };
    store.put_summaries(&[(digest(text), summary)]).unwrap();
}

#[tokio::test]
async fn records_are_found_from_what_their_images_have() {
    let root = Root::new();
    let store = &root.store;
    for (name, target) in [("index:1", "index"), ("manifest:1", "manifest"), ("other:1", "other"), ("gone:1", "gone")] {
        store.create_image(&scope(), image(name, target)).unwrap();
    }
    let refers = |keys: &[(&str, &str)]| -> Labels {
        keys.iter().map(|(key, to)| (format!("containerd.io/gc.ref.content.{key}"), digest(to).to_string())).collect()
    };
    for text in ["config", "layer", "base"] {
        blob(store, text, Labels::new()).await;
    }
    blob(store, "manifest", refers(&[("config", "config"), ("l.0", "base"), ("l.1", "layer")])).await;
    blob(store, "other", refers(&[("l.0", "base")])).await;
    blob(store, "index", refers(&[("m.0", "manifest"), ("m.1", "never here")])).await;

    assert_eq!(names(store, &["config"]), ["index:1", "manifest:1"]);
    assert_eq!(names(store, &["base"]), ["index:1", "manifest:1", "other:1"]);
    assert_eq!(names(store, &["index"]), ["index:1"]);
    assert_eq!(names(store, &["never here", "gone"]), ["gone:1", "index:1"], "be they there or not");
    assert!(names(store, &["nothing"]).is_empty());
    assert!(store.images_leading_to("elsewhere", &BTreeSet::from([digest("base")])).unwrap().is_empty());

    for text in ["config", "never here", "gone", "index"] {
        let all = digest(text);
        for length in [1, 12, 64] {
            let found = store.digests_starting("test", &all.hex()[..length]).unwrap();
            assert!(found.contains(&all), "{text}");
            assert!(found.iter().all(|found| found.hex().starts_with(&all.hex()[..length])), "{found:?}");
        }
    }
    assert!(store.digests_starting("test", &digest("nothing").hex()[..12]).unwrap().is_empty());
}

#[tokio::test]
async fn a_target_is_loose_until_it_was_read_and_says_what_it_has() {
    let root = Root::new();
    let store = &root.store;
    assert!(!store.has_loose_targets("test").unwrap());
    store.create_image(&scope(), image("a:1", "manifest")).unwrap();
    assert!(!store.has_loose_targets("test").unwrap(), "what is not there has nothing to say");
    blob(store, "manifest", Labels::new()).await;
    assert!(store.has_loose_targets("test").unwrap());
    read(store, "manifest");
    assert!(store.has_loose_targets("test").unwrap(), "it does not say what it has");
    let refers = labels([("containerd.io/gc.ref.content.config", digest("config").as_str())]);
    store.content(&scope()).label_all(&[(digest("manifest"), refers)]).unwrap();
    assert!(!store.has_loose_targets("test").unwrap());
    assert!(!store.has_loose_targets("elsewhere").unwrap());
}

/// Once no target was loose, only what came since is asked. Here a record comes in a way that is no change, which nobody but
/// this test does: a store that has asked before does not find it, one that has not does.
#[tokio::test]
async fn targets_are_asked_once_and_then_what_has_changed() {
    let root = Root::new();
    let store = &root.store;
    let refers = || labels([("containerd.io/gc.ref.content.config", digest("config").as_str())]);
    store.create_image(&scope(), image("a:1", "manifest")).unwrap();
    blob(store, "manifest", refers()).await;
    read(store, "manifest");
    assert!(!store.has_loose_targets("test").unwrap());

    let database = rusqlite::Connection::open(root.path().join("meta.db")).unwrap();
    blob(store, "unread", refers()).await;
    let hidden = "INSERT INTO image SELECT namespace, 'hidden:1', ?1, media_type, size, annotations, labels, expires,
                      created, updated FROM image WHERE name = 'a:1'";
    assert_eq!(database.execute(hidden, [digest("unread").as_str()]).unwrap(), 1);
    assert!(!store.has_loose_targets("test").unwrap(), "nothing has changed");
    assert!(root.reopened().has_loose_targets("test").unwrap());

    store.create_image(&scope(), image("b:1", "manifest")).unwrap();
    assert!(store.has_loose_targets("test").unwrap(), "a record has come: all are asked");
    read(store, "unread");
    assert!(!store.has_loose_targets("test").unwrap());
    store.delete_image(&scope(), "b:1", None).unwrap();
    assert!(!store.has_loose_targets("test").unwrap());
    let content = store.content(&scope());
    let nothing = Labels::from([("containerd.io/gc.ref.content.config".to_owned(), String::new())]);
    content.label_all(&[(digest("manifest"), nothing)]).unwrap();
    assert!(store.has_loose_targets("test").unwrap(), "it says nothing any more");
}
