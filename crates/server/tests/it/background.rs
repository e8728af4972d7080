//! What a daemon does beside its calls, also for what other processes do to its root.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::common;
use crate::common::{Node, image, labels};
use orlop_content::{IngestOptions, Ingester};
use orlop_image::Settings;
use orlop_metadata::{ImageChange, Labels, Progress, Scope, Store};
use orlop_oci::Descriptor;
use orlop_server::{Background, ServeOptions};
use orlop_testkit::archive::oci_archive;
use orlop_testkit::image::{Content, Layer};
use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};

const PATIENCE: Duration = Duration::from_secs(60);

/// A node that is served, and another process' view of its root.
struct Served {
    node: Node,
    other: Store,
    options: watch::Sender<ServeOptions>,
    stop: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

impl Served {
    fn start(node: Node, background: Background) -> Self {
        let listener = UnixListener::bind(node.directory.path().join("sock")).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = node.server.clone();
        let (options, watched) = watch::channel(ServeOptions { background, ..ServeOptions::default() });
        let ended = tokio::spawn(async move {
            server.serve_by(vec![listener], watched, async { drop(stopped.await) }).await.unwrap();
        });
        let other = common::open(&node.directory.path().join("root"));
        Self { node, other, options, stop, ended }
    }

    /// Ends the daemon; the root is there as it leaves it.
    async fn stop(self) -> Node {
        drop(self.stop);
        self.ended.await.unwrap();
        std::fs::remove_file(self.node.directory.path().join("sock")).unwrap();
        Node::at(self.node.directory, Settings::default())
    }

    /// The daemon goes by other options from now on.
    fn change(&self, background: Background) {
        self.options.send_replace(ServeOptions { background, ..ServeOptions::default() });
    }

    /// Full collections so far.
    async fn full_collections(&self) -> u64 {
        let text = self.node.server.metrics_text().await;
        let found = text.lines().find_map(|line| line.strip_prefix(r#"orlop_collections_total{kind="full"} "#));
        found.map_or(0, |count| count.parse().unwrap())
    }

    async fn until(&self, what: &str, reached: impl Fn(&Store) -> bool) {
        let wait = async {
            while !reached(&self.other) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "never: {what}; there is {:?}", names(&self.other));
    }
}

fn names(store: &Store) -> BTreeSet<String> {
    store.images("k8s.io", &[]).unwrap().into_iter().map(|image| image.name).collect()
}

fn scope() -> Scope {
    Scope::new("k8s.io", "another process")
}

async fn import(node: &Node, archive: &[u8]) {
    let request = orlop_image::ImportRequest { no_unpack: true, ..Default::default() };
    let mut reader = archive;
    let images = orlop_image::Images::new(node.store.clone(), Settings::default());
    images.import(&scope(), &mut reader, &request, &|_| {}).await.unwrap();
}

/// Another image, under a name, with its hash references. Returns its target and its records.
async fn another(node: &Node, name: &str, seed: u64) -> (Descriptor, BTreeSet<String>) {
    let content = Content::image(&image::image().layer(Layer::noise("noise", seed, 1000)));
    import(node, &oci_archive(&[(name, &content)])).await;
    let record = node.store.image("k8s.io", name).unwrap();
    let of = BTreeSet::from([record.target.digest.clone()]);
    let records = node.store.images_of("k8s.io", &of).unwrap().into_iter().map(|image| image.name);
    (record.target, records.collect())
}

/// The record that is an image's ID.
fn id(records: &BTreeSet<String>) -> &String {
    records.iter().find(|name| name.starts_with("sha256:")).unwrap()
}

/// An image in `k8s.io` with its hash references.
async fn imported(node: &Node) -> BTreeSet<String> {
    let (_, archive) = image::archive("example.org/hello:1.0");
    import(node, &archive).await;
    let names = names(&node.store);
    assert_eq!(names.len(), 3, "{names:?}");
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn hash_references_return_whoever_deletes_them_and_go_with_the_last_name() {
    let node = Node::new();
    let all = imported(&node).await;
    let served = Served::start(node, Background::default());
    for hash in all.iter().filter(|name| name.contains("sha256:")) {
        served.other.delete_image(&scope(), hash, None).unwrap();
        served.until("the hash reference is back", |store| names(store) == all).await;
    }
    served.other.delete_image(&scope(), "example.org/hello:1.0", None).unwrap();
    served.until("the hash references go", |store| names(store).is_empty()).await;
    served.until("their content goes", |store| store.counts().unwrap().blobs == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_done_without_a_daemon_is_made_up_for_at_its_start() {
    let node = Node::new();
    let all = imported(&node).await;
    let hash = all.iter().find(|name| name.starts_with("sha256:")).unwrap();
    node.store.delete_image(&scope(), hash, None).unwrap();
    let garbage = node.store.content(&scope());
    let options = IngestOptions { reference: "x".into(), ..IngestOptions::default() };
    let mut writer = garbage.writer(options).await.unwrap();
    writer.write(bytes::Bytes::from_static(b"garbage")).await.unwrap();
    let digest = writer.commit(7, None).await.unwrap();
    let served = Served::start(node, Background::default());
    served.until("the hash reference is back", |store| names(store) == all).await;
    served.until("garbage goes", |store| store.content(&scope()).stat(&digest).is_err()).await;
}

/// A root where a daemon has looked through everything, and where since then the image IDs of two images went: of the
/// first as if that had been followed, of the second not. Returns what there was.
async fn half_followed(settings: Settings) -> (Node, BTreeSet<String>, [String; 2]) {
    let node = Node::new();
    let (first, second) = (another(&node, "example.org/a:1", 1).await.1, another(&node, "example.org/b:1", 2).await.1);
    let all = names(&node.store);
    let served = Served::start(node, Background::default());
    served.until("everything was looked through", |store| store.progress().unwrap().is_some()).await;
    let node = served.stop().await;
    let progress = node.store.progress().unwrap().unwrap();
    node.store.delete_image(&scope(), id(&first), None).unwrap();
    let followed = Progress { change: node.store.last_change().unwrap(), ..progress };
    node.store.put_progress(&followed).unwrap();
    node.store.delete_image(&scope(), id(&second), None).unwrap();
    (Node::at(node.directory, settings), all, [id(&first).clone(), id(&second).clone()])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_goes_on_where_changes_were_followed_to() {
    let (node, mut all, [first, second]) = half_followed(Settings::default()).await;
    all.remove(&first);
    let served = Served::start(node, Background::default());
    served.until("the other hash reference is back", |store| store.image("k8s.io", &second).is_ok()).await;
    let followed = |store: &Store| store.progress().unwrap().unwrap().change == store.last_change().unwrap();
    served.until("that it was followed is remembered", followed).await;
    assert_eq!(names(&served.other), all, "what was followed is not looked at again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_looks_through_everything_by_other_settings_or_when_it_is_time() {
    let other = Settings { pinned_images: vec!["example.org/c:1".to_owned()], ..Settings::default() };
    let now = Background { full_reconciliation: Duration::from_millis(1), ..Background::default() };
    for (settings, background) in [(other, Background::default()), (Settings::default(), now)] {
        let (node, all, _) = half_followed(settings).await;
        let served = Served::start(node, background);
        served.until("both hash references are back", |store| names(store) == all).await;
    }
}

/// Only where a tag pointed last was looked at: a start that has to follow several changes of it left hash references of the
/// targets in between.
#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_twice_while_no_daemon_ran_strands_both_images() {
    let node = Node::new();
    let mut made = Vec::new();
    for (seed, name) in [(1, "example.org/a:1"), (2, "example.org/b:1"), (3, "example.org/c:1")] {
        made.push(another(&node, name, seed).await);
    }
    let served = Served::start(node, Background::default());
    served.until("everything was looked through", |store| store.progress().unwrap().is_some()).await;
    let node = served.stop().await;
    let delete = |name: &str| ImageChange::Delete { name: name.to_owned() };
    let moved = |target: &Descriptor| ImageChange::Upsert {
        name: "example.org/a:1".to_owned(),
        target: target.clone(),
        labels: Labels::new(),
    };
    for change in [moved(&made[1].0), delete("example.org/b:1"), moved(&made[2].0)] {
        node.store.write_images(&scope(), &[change]).unwrap();
    }
    let served = Served::start(node, Background::default());
    let is_stranded = |store: &Store, name: &String| match store.image("k8s.io", name) {
        Ok(image) => image.labels.contains_key("io.orlop.stranded-since"),
        Err(_) => true,
    };
    for (_, records) in &made[..2] {
        served.until("its hash references are stranded", |store| is_stranded(store, id(records))).await;
    }
    assert!(!is_stranded(&served.other, id(&made[2].1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lease_held_goes_soon_after_it_expires() {
    let node = Node::new();
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let label = expires.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let lease = node.store.create_lease("k8s.io", "", labels(&[("containerd.io/gc.expire", &label)])).unwrap();
    let held = node.store.content(&scope().with_lease(lease.id));
    let options = IngestOptions { reference: "x".into(), ..IngestOptions::default() };
    let mut writer = held.writer(options).await.unwrap();
    writer.write(bytes::Bytes::from_static(b"held")).await.unwrap();
    writer.commit(4, None).await.unwrap();
    let served = Served::start(node, Background::default());
    served.until("what the lease held goes", |store| store.counts().unwrap().blobs == 0).await;
    assert!(jiff::Timestamp::now() > expires.round(jiff::Unit::Second).unwrap() - jiff::SignedDuration::from_secs(1));
}

/// Nobody deletes anything: the daemon knows when the time is up.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_condition_kept_goes_soon_after_it_has_turned() {
    let node = Node::new();
    let used = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let scope = Scope::new("default", "test");
    let snapshots = node.store.snapshots(&scope, "native").unwrap();
    for (key, age) in [("soon", "3s"), ("late", "1h")] {
        snapshots.prepare(key, "", labels(&[("containerd.io/gc.cond.value-usedat", &used)])).unwrap();
        let condition = format!("usedat<{age}|{key}");
        let target = orlop_oci::Descriptor::new("x", format!("sha256:{}", "0".repeat(64)).parse().unwrap(), 1);
        let image = orlop_metadata::Image {
            name: key.into(),
            target,
            labels: labels(&[("containerd.io/gc.cond.snapshot.native", &condition)]),
            created_at: jiff::Timestamp::UNIX_EPOCH,
            updated_at: jiff::Timestamp::UNIX_EPOCH,
        };
        node.store.create_image(&scope, image).unwrap();
    }
    let served = Served::start(node, Background::default());
    served.until("one of two snapshots goes", |store| store.counts().unwrap().snapshots == 1).await;
    let used = used.parse::<jiff::Timestamp>().unwrap();
    assert!(jiff::Timestamp::now() >= used + jiff::SignedDuration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trash_is_emptied_when_its_time_is_up_or_the_disk_is_full() {
    let old = Background { trash_age: Duration::ZERO, trash_free_percent: 0, ..Background::default() };
    let full = Background { trash_free_percent: 100, ..Background::default() };
    for background in [old, full] {
        let node = Node::new();
        imported(&node).await;
        let images = orlop_image::Images::new(node.store.clone(), orlop_image::Settings::default());
        let request = orlop_image::RemoveRequest { names: vec!["example.org/hello:1.0".into()], ..Default::default() };
        images.remove(&scope(), &request).await.unwrap();
        assert_eq!(node.store.trash().unwrap().len(), 1);
        let served = Served::start(node, background);
        served.until("the trash is empty", |store| store.trash().unwrap().is_empty()).await;
    }
    let node = Node::new();
    imported(&node).await;
    let images = orlop_image::Images::new(node.store.clone(), orlop_image::Settings::default());
    let request = orlop_image::RemoveRequest { names: vec!["example.org/hello:1.0".into()], ..Default::default() };
    images.remove(&scope(), &request).await.unwrap();
    let served = Served::start(node, Background { trash_free_percent: 0, ..Background::default() });
    served.until("a first collection", |_| true).await;
    assert_eq!(served.other.trash().unwrap().len(), 1, "what may stay, stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_marked_from_time_to_time_and_nothing_was_missed() {
    let node = Node::new();
    imported(&node).await;
    let background = Background { full_collection: Some(Duration::from_millis(50)), ..Background::default() };
    let served = Served::start(node, background);
    let wanted = async {
        loop {
            let text = served.node.server.metrics_text().await;
            if text.contains(r#"orlop_collections_total{kind="full"}"#) {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let text = tokio::time::timeout(PATIENCE, wanted).await.unwrap();
    assert!(text.contains("orlop_missed_total 0"), "{text}");
    assert_eq!(names(&served.other).len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_on_beside_the_calls_follows_the_options() {
    let node = Node::new();
    imported(&node).await;
    let images = orlop_image::Images::new(node.store.clone(), orlop_image::Settings::default());
    let request = orlop_image::RemoveRequest { names: vec!["example.org/hello:1.0".into()], ..Default::default() };
    images.remove(&scope(), &request).await.unwrap();
    let keep = Background { full_collection: None, trash_free_percent: 0, ..Background::default() };
    let served = Served::start(node, keep.clone());
    let collected = async |more: u64| {
        let wanted = served.full_collections().await + more;
        let reached = async {
            while served.full_collections().await < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, reached).await.expect("everything is marked");
    };
    served.change(Background { full_collection: Some(Duration::from_millis(20)), ..keep.clone() });
    collected(3).await;
    assert_eq!(served.other.trash().unwrap().len(), 1, "the trash may stay");
    served.change(Background { trash_age: Duration::ZERO, ..keep });
    served.until("the trash is empty", |store| store.trash().unwrap().is_empty()).await;
}
