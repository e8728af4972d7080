//! Following a store: versions, marks, changed records, dropped blobs.

use crate::support::{Root, digest, image, labels, scope};
use bytes::Bytes;
use orlop_content::Ingester;
use orlop_metadata::{Labels, Mark, Scope, Store};
use orlop_oci::Digest;

fn mark(store: &Store) -> Mark {
    store.look("test", |look| look.mark()).unwrap()
}

fn changed(store: &Store, since: &Mark) -> (Vec<String>, Vec<String>) {
    let (images, gone) = store.look("test", |look| look.images_since(since)).unwrap();
    (images.into_iter().map(|i| i.name).collect(), gone)
}

async fn blob(store: &Store, scope: &Scope, text: &'static str) -> Digest {
    let content = store.content(scope);
    let mut writer = content
        .writer(orlop_content::IngestOptions { reference: text.to_owned(), ..Default::default() })
        .await
        .unwrap();
    writer.write(Bytes::from_static(text.as_bytes())).await.unwrap();
    writer.commit(0, None).await.unwrap()
}

#[test]
fn the_version_moves_with_every_commit_of_anybody_and_with_nothing_else() {
    let root = Root::new();
    let before = root.store.version().unwrap();
    root.store.images("test", &[]).unwrap();
    assert_eq!(root.store.version().unwrap(), before);
    root.store.create_image(&scope(), image("a", "a")).unwrap();
    let own = root.store.version().unwrap();
    assert_ne!(own, before);
    root.reopened().create_image(&scope(), image("b", "b")).unwrap();
    assert_ne!(root.store.version().unwrap(), own, "another process' commit counts");
}

#[test]
fn a_look_tells_which_records_changed_since_a_mark() {
    let (root, other) = (Root::new(), Scope::new("other", "tests"));
    let store = &root.store;
    for name in ["a", "b", "c"] {
        store.create_image(&scope(), image(name, name)).unwrap();
    }
    store.create_image(&other, image("elsewhere", "elsewhere")).unwrap();
    let start = mark(store);
    assert_eq!(changed(store, &start), (vec![], vec![]));

    store.update_image(&scope(), image("b", "other"), &[]).unwrap();
    store.delete_image(&scope(), "a", None).unwrap();
    store.delete_image(&scope(), "c", None).unwrap();
    store.create_image(&scope(), image("c", "c")).unwrap();
    store.create_image(&other, image("d", "d")).unwrap();
    assert_eq!(changed(store, &start), (vec!["b".to_owned(), "c".to_owned()], vec!["a".to_owned()]));
    assert_eq!(changed(store, &mark(store)), (vec![], vec![]));
}

#[test]
fn records_at_a_glance_are_all_of_the_namespace_by_name() {
    let (root, other) = (Root::new(), Scope::new("other", "tests"));
    let store = &root.store;
    for (name, labels) in
        [("b", labels([("k", "v\"\n")])), ("a", Labels::new()), ("c", labels([("x.k", "k"), ("y", "")]))]
    {
        let image = orlop_metadata::Image { labels, ..image(name, name) };
        store.create_image(&scope(), image).unwrap();
    }
    store.create_image(&other, image("elsewhere", "a")).unwrap();
    let mut seen = Vec::new();
    let see = |look: &orlop_metadata::Look<'_>| {
        look.each_image(|glance| {
            let image = store.image("test", glance.name).unwrap();
            let target = (&image.target.digest, image.target.media_type.as_str(), image.target.size);
            assert_eq!((&glance.digest, glance.media_type, glance.size), target);
            assert_eq!(glance.created_at, image.created_at);
            seen.push((glance.name.to_owned(), glance.label("k")));
        })
    };
    store.look("test", see).unwrap();
    let named = |name: &str, label: Option<&str>| (name.to_owned(), label.map(str::to_owned));
    assert_eq!(seen, [named("a", None), named("b", Some("v\"\n")), named("c", None)]);
}

#[tokio::test]
async fn a_mark_tells_dropped_and_relabelled_blobs_from_new_ones() {
    let root = Root::new();
    let (store, content) = (&root.store, root.store.content(&scope()));
    let first = blob(store, &scope(), "first").await;
    let kept = |earlier: &Mark| mark(store).kept_content_since(earlier);

    let start = mark(store);
    let second = blob(store, &scope(), "second").await;
    content.label_all(&[(first.clone(), labels([("k", "v")]))]).unwrap();
    assert!(kept(&start), "what only adds leaves the mark alone");
    content.label_all(&[(first.clone(), labels([("k", "")]))]).unwrap();
    assert!(!kept(&start), "a label went");

    let start = mark(store);
    content.update(&first, labels([("k", "w")]), &[]).unwrap();
    assert!(!kept(&start), "labels were replaced");

    let start = mark(store);
    content.forget(&second).unwrap();
    assert!(!kept(&start), "a blob went");

    let start = mark(store);
    store.collect(orlop_metadata::gc::Disposal::Reclaim).unwrap();
    assert!(content.stat(&first).is_err());
    assert!(!kept(&start), "the collector dropped a blob");
}

#[tokio::test]
async fn blobs_and_labels_are_those_of_the_namespace() {
    let root = Root::new();
    let store = &root.store;
    let here = blob(store, &scope(), "here").await;
    let there = blob(store, &Scope::new("other", "tests"), "there").await;
    let given = labels([("a.b/one", "1"), ("a.b/two", "2"), ("c", "a.b/")]);
    store.content(&scope()).label_all(&[(here.clone(), given)]).unwrap();
    store
        .look("test", |look| {
            assert!(look.has(&here)? && !look.has(&there)? && !look.has(&digest("nothing"))?);
            let blobs = look.blobs()?;
            assert_eq!((blobs.len(), blobs.get(&here), blobs.get(&there)), (1, Some(0), None));
            assert_eq!(look.labels(&here, &["a.b/"])?, Some(labels([("a.b/one", "1"), ("a.b/two", "2")])));
            assert_eq!(look.labels(&here, &["x", "y"])?, Some(Labels::new()));
            assert_eq!(look.labels(&there, &["a"])?, None);
            Ok(())
        })
        .unwrap();
}
