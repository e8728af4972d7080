//! Conditional references: what the model says is kept is what a real containerd leaves when it collects.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use orlop_api::NAMESPACE_HEADER;
use orlop_api::containerd::services::content::v1::{self as content, content_client::ContentClient};
use orlop_api::containerd::services::images::v1::{self as images, images_client::ImagesClient};
use orlop_api::containerd::services::leases::v1::{self as leases, leases_client::LeasesClient};
use orlop_api::containerd::services::snapshots::v1::{self as snapshots, snapshots_client::SnapshotsClient};
use orlop_api::containerd::types::Descriptor;
use orlop_graph::model::{Collector, Model, Node, NodeKind};
use orlop_lens::Reader;
use orlop_oci::Digest;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use tonic::Request;
use tonic::transport::Channel;

const CONDITION: &str = "containerd.io/gc.cond.snapshot";
const USED: &str = "containerd.io/gc.cond.value-usedat";

type Labels = BTreeMap<String, String>;

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(NAMESPACE_HEADER, "k8s.io".parse().unwrap());
    request
}

fn labels(all: &[(&str, &str)]) -> Labels {
    all.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn ago(minutes: i64) -> String {
    (Timestamp::now() - SignedDuration::from_mins(minutes)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

async fn image(channel: &Channel, name: &str, labels: Labels) {
    let target = Some(Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: Digest::of(b"absent").to_string(),
        size: 6,
        ..Default::default()
    });
    let image = Some(images::Image { name: name.into(), labels, target, ..Default::default() });
    let wanted = images::CreateImageRequest { image, ..Default::default() };
    ImagesClient::new(channel.clone()).create(request(wanted)).await.unwrap();
}

async fn blob(channel: &Channel, text: &str, labels: Labels) {
    let wanted = content::WriteContentRequest {
        action: content::WriteAction::Commit.into(),
        r#ref: text.into(),
        total: i64::try_from(text.len()).unwrap(),
        expected: Digest::of(text.as_bytes()).to_string(),
        data: text.to_owned().into(),
        labels,
        ..Default::default()
    };
    let mut client = ContentClient::new(channel.clone());
    let mut answers = client.write(request(futures::stream::iter([wanted]))).await.unwrap().into_inner();
    while answers.message().await.unwrap().is_some() {}
}

async fn snapshot(channel: &Channel, key: &str, labels: Labels) {
    let wanted = snapshots::PrepareSnapshotRequest {
        snapshotter: "native".into(),
        key: key.into(),
        labels,
        ..Default::default()
    };
    SnapshotsClient::new(channel.clone()).prepare(request(wanted)).await.unwrap();
}

/// What a collection leaves.
async fn left(channel: &Channel) -> BTreeSet<String> {
    let mut client = LeasesClient::new(channel.clone());
    client.create(request(leases::CreateRequest { id: "forced".into(), ..Default::default() })).await.unwrap();
    client.delete(request(leases::DeleteRequest { id: "forced".into(), sync: true })).await.unwrap();
    let wanted = snapshots::ListSnapshotsRequest { snapshotter: "native".into(), ..Default::default() };
    let mut listed = SnapshotsClient::new(channel.clone()).list(request(wanted)).await.unwrap().into_inner();
    let mut keys = BTreeSet::new();
    while let Some(message) = listed.message().await.unwrap() {
        keys.extend(message.info.into_iter().map(|info| info.name));
    }
    keys
}

/// What the model says is kept, and everything that there is.
async fn told(channel: &Channel, collector: Collector) -> (BTreeSet<String>, BTreeSet<String>) {
    let mut inventory = Reader::new(channel.clone()).inventory(None).await.unwrap();
    inventory.collector = collector;
    let model = Model::new(inventory);
    let kept = model.kept();
    let key = |node| match model.node(node) {
        Node::Snapshot(row) => row.key.to_string(),
        other => panic!("{other:?}"),
    };
    let all: Vec<_> = model.nodes(NodeKind::Snapshot).collect();
    let stays = all.iter().copied().filter(|node| kept.contains(*node)).map(key).collect();
    (stays, all.iter().copied().map(key).collect())
}

/// Ways to write a condition, each with a snapshot of its own that was used an hour ago.
const WAYS: [(&str, &str, &str); 14] = [
    ("newer", ".native", "usedat<61m"),
    ("newer-past", ".native", "usedat<59m"),
    ("older", ".native", "usedat>59m"),
    ("older-not-yet", ".native", "usedat>61m"),
    ("or", ".native", "usedat<1m,usedat<2h"),
    ("or-none", ".native", "usedat<1m,usedat>2h"),
    ("named", ".native/any.name", "usedat<2h"),
    ("joined", "native", "usedat<2h"),
    ("dotted", ".native.more", "usedat<2h"),
    ("other-driver", ".overlayfs", "usedat<2h"),
    ("operator", ".native", "usedat<=2h"),
    ("unit", ".native", "usedat<1d"),
    ("negative", ".native", "usedat>-1h"),
    ("unknown", ".native", "lastused<2h"),
];

async fn fill(channel: &Channel) {
    for (key, suffix, conditions) in WAYS {
        let condition = format!("{conditions}|{key}");
        image(channel, key, labels(&[(&format!("{CONDITION}{suffix}"), &condition)])).await;
        snapshot(channel, key, labels(&[(USED, &ago(60))])).await;
    }
    let keeps = |key: &str| labels(&[(&format!("{CONDITION}.native"), &format!("usedat<2h|{key}"))]);
    // When it was used: under several keys, never, badly written.
    for (key, used) in [
        ("used-twice", labels(&[(USED, &ago(300)), (&format!("{USED}.2"), &ago(1))])),
        ("used-never", labels(&[])),
        ("used-badly", labels(&[(USED, "yesterday")])),
        ("used-tomorrow", labels(&[(USED, &ago(-1440))])),
    ] {
        image(channel, key, keeps(key)).await;
        snapshot(channel, key, used).await;
    }
    // Who states it: a blob that stays, one that goes, a snapshot.
    let root = ("containerd.io/gc.root".to_owned(), "1".to_owned());
    blob(channel, "rooted", keeps("by-blob").into_iter().chain([root.clone()]).collect()).await;
    blob(channel, "lost", keeps("by-lost-blob")).await;
    snapshot(channel, "root", keeps("by-snapshot").into_iter().chain([root]).collect()).await;
    for key in ["by-blob", "by-lost-blob", "by-snapshot"] {
        snapshot(channel, key, labels(&[(USED, &ago(1))])).await;
    }
    // Labels that older generations do not know: what refers back, records that expire, records that refer to records.
    let rooted = Digest::of(b"rooted").to_string();
    snapshot(channel, "back", labels(&[("containerd.io/gc.bref.content", &rooted)])).await;
    let expired =
        |key: &str| labels(&[("containerd.io/gc.expire", &ago(1)), ("containerd.io/gc.ref.snapshot.native", key)]);
    image(channel, "run-out", expired("by-run-out")).await;
    image(channel, "held", expired("by-held")).await;
    image(channel, "holder", labels(&[("containerd.io/gc.ref.image", "held")])).await;
    for key in ["by-run-out", "by-held"] {
        snapshot(channel, key, Labels::new()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_to_be_kept_by_a_condition_is_what_a_collection_leaves() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containerd needs root");
        return;
    }
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        // It collects when it is asked to.
        let config =
            "[plugins.\"io.containerd.gc.v1.scheduler\"]\nmutation_threshold = 100000\nstartup_delay = \"24h\"\n";
        let containerd = Containerd::start(&programs, &Options { config: config.to_owned(), ..Options::default() });
        let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
        fill(&channel).await;
        // `containerd REPOSITORY VERSION COMMIT`
        let version = programs.version().split_whitespace().nth(2).unwrap().to_owned();
        let collector = Collector::of_version(&version);
        let (stays, all) = told(&channel, collector).await;
        assert_eq!(all.len(), WAYS.len() + 11, "{version}: nothing was collected before: {all:?}");
        let expected = match collector {
            Collector::V1 => &["by-held", "by-run-out", "root"][..],
            _ => &NOW,
        };
        assert_eq!(stays.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{version}");
        assert_eq!(left(&channel).await, stays, "{version}");
    }
}

/// What containerd keeps that knows all labels.
const NOW: [&str; 12] = [
    "back",
    "by-blob",
    "by-held",
    "joined",
    "named",
    "negative",
    "newer",
    "older",
    "or",
    "root",
    "used-tomorrow",
    "used-twice",
];
