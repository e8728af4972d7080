//! Garbage collection through the API, beside a real containerd: the same objects and labels in both, after a collection
//! that a call waits for the same objects left.

use std::collections::BTreeMap;

use crate::common::{Node, labels, request};
use jiff::{SignedDuration, Timestamp};
use orlop_api::containerd::services::content::v1 as content;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::images::v1 as images;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_api::containerd::types::Descriptor;
use orlop_oci::{Algorithm, Digester};
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::need_root;
use tonic::transport::Channel;

const CONDITION: &str = "containerd.io/gc.cond.snapshot";
const USED: &str = "containerd.io/gc.cond.value-usedat";

type Map = BTreeMap<String, String>;

fn digest(bytes: &str) -> String {
    let mut digester = Digester::new(Algorithm::Sha256);
    digester.update(bytes.as_bytes());
    digester.finish().to_string()
}

/// So many minutes ago, as a label says it.
fn ago(minutes: i64) -> String {
    (Timestamp::now() - SignedDuration::from_mins(minutes)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// containerd wants a target even of an update that does not change it.
fn record(name: &str, labels: Map) -> images::Image {
    let target = Some(Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: digest("absent"),
        size: 6,
        ..Default::default()
    });
    images::Image { name: name.into(), labels, target, ..Default::default() }
}

/// One side.
struct Side(Channel);

impl Side {
    async fn image(&self, name: &str, labels: Map) {
        let image = Some(record(name, labels));
        let wanted = images::CreateImageRequest { image, ..Default::default() };
        ImagesClient::new(self.0.clone()).create(request(wanted)).await.unwrap();
    }

    async fn relabel_image(&self, name: &str, labels: Map) {
        let image = Some(record(name, labels));
        let update_mask = Some(prost_types::FieldMask { paths: vec!["labels".into()] });
        let wanted = images::UpdateImageRequest { image, update_mask, ..Default::default() };
        ImagesClient::new(self.0.clone()).update(request(wanted)).await.unwrap();
    }

    async fn blob(&self, text: &str, labels: Map) {
        let wanted = content::WriteContentRequest {
            action: content::WriteAction::Commit.into(),
            r#ref: text.into(),
            total: i64::try_from(text.len()).unwrap(),
            expected: digest(text),
            data: text.to_owned().into(),
            labels,
            ..Default::default()
        };
        let mut client = ContentClient::new(self.0.clone());
        let mut answers = client.write(request(futures::stream::iter([wanted]))).await.unwrap().into_inner();
        while answers.message().await.unwrap().is_some() {}
    }

    async fn snapshot(&self, key: &str, labels: Map) {
        let wanted = snapshots::PrepareSnapshotRequest {
            snapshotter: "native".into(),
            key: key.into(),
            labels,
            ..Default::default()
        };
        SnapshotsClient::new(self.0.clone()).prepare(request(wanted)).await.unwrap();
    }

    /// The keys that are left after a collection, which the deletion of a lease waits for.
    async fn left(&self) -> Vec<String> {
        let mut client = LeasesClient::new(self.0.clone());
        client.create(request(leases::CreateRequest { id: "forced".into(), ..Default::default() })).await.unwrap();
        client.delete(request(leases::DeleteRequest { id: "forced".into(), sync: true })).await.unwrap();
        let wanted = snapshots::ListSnapshotsRequest { snapshotter: "native".into(), ..Default::default() };
        let mut listed = SnapshotsClient::new(self.0.clone()).list(request(wanted)).await.unwrap().into_inner();
        let mut keys = Vec::new();
        while let Some(message) = listed.message().await.unwrap() {
            keys.extend(message.info.into_iter().map(|info| info.name));
        }
        keys.sort();
        keys
    }
}

/// Every way to write a condition, each with a snapshot of its own that was used an hour ago.
const WAYS: [(&str, &str, &str); 20] = [
    ("newer", ".native", "usedat<61m"),
    ("newer-past", ".native", "usedat<59m"),
    ("older", ".native", "usedat>59m"),
    ("older-not-yet", ".native", "usedat>61m"),
    ("or", ".native", "usedat<1m,usedat<2h"),
    ("or-none", ".native", "usedat<1m,usedat>2h"),
    ("named", ".native/any.name", "usedat<2h"),
    ("slash", "/native", "usedat<2h"),
    ("joined", "native", "usedat<2h"),
    ("dots", "..native", "usedat<2h"),
    ("dotted", ".native.more", "usedat<2h"),
    ("other-driver", ".overlayfs", "usedat<2h"),
    ("operator", ".native", "usedat<=2h"),
    ("equal", ".native", "usedat=1h"),
    ("unit", ".native", "usedat<1d"),
    ("fraction", ".native", "usedat<1.5h"),
    ("sum", ".native", "usedat<1h1m1s"),
    ("negative", ".native", "usedat>-1h"),
    ("unknown", ".native", "lastused<2h"),
    ("rescued", ".native", "lastused<2h, usedat<2h,usedat<2h"),
];

/// containerd collects in the background as well: what is to stay is asked for before it is made.
async fn transcript(channel: Channel) -> Vec<Vec<String>> {
    let side = Side(channel);
    for (key, suffix, conditions) in WAYS {
        let condition = format!("{conditions}|{key}");
        side.image(key, labels(&[(&format!("{CONDITION}{suffix}"), &condition)])).await;
        side.snapshot(key, labels(&[(USED, &ago(60))])).await;
    }
    let keeps = |key: &str| labels(&[(&format!("{CONDITION}.native"), &format!("usedat<2h|{key}"))]);
    side.image("keyless", labels(&[(&format!("{CONDITION}.native"), "usedat<2h")])).await;
    // When it was used: under several keys, never, badly written.
    for (key, used) in [
        ("used-twice", labels(&[(USED, &ago(300)), (&format!("{USED}.2"), &ago(1))])),
        ("used-suffixed", labels(&[(&format!("{USED}-by-me"), &ago(1))])),
        ("used-never", labels(&[])),
        ("used-badly", labels(&[(USED, "yesterday")])),
        ("used-tomorrow", labels(&[(USED, &ago(-1440))])),
    ] {
        side.image(key, keeps(key)).await;
        side.snapshot(key, used).await;
    }
    // Of whom it may be asked.
    let mut rooted = keeps("by-blob");
    rooted.insert("containerd.io/gc.root".into(), "1".into());
    side.blob("rooted", rooted).await;
    side.blob("lost", keeps("by-lost-blob")).await;
    let mut expired = keeps("by-expired");
    expired.insert("containerd.io/gc.expire".into(), ago(1));
    side.image("holds", labels(&[("containerd.io/gc.ref.image", "expired")])).await;
    side.image("expired", expired).await;
    let mut root = keeps("by-snapshot");
    root.insert("containerd.io/gc.root".into(), "1".into());
    side.snapshot("root", root).await;
    for key in ["by-blob", "by-lost-blob", "by-expired", "by-snapshot"] {
        side.snapshot(key, labels(&[(USED, &ago(1))])).await;
    }

    let mut told = vec![side.left().await];
    // What goes with its condition, and what a label that is no condition cannot keep.
    side.relabel_image("newer", labels(&[("containerd.io/gc.ref.mount", "newer")])).await;
    side.relabel_image("older", labels(&[(&format!("{CONDITION}.native"), "usedat<2h|newer")])).await;
    side.relabel_image("holds", labels(&[])).await;
    told.push(side.left().await);
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_keep_what_they_keep_in_containerd() {
    let ours = transcript(Node::new().channel.clone()).await;
    assert!(ours[0].len() > 10 && ours[0].len() < 25 && ours[1].len() < ours[0].len(), "{ours:?}");
    let (Some(programs), true) = (Programs::current(), need_root()) else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    let theirs = transcript(orlop_api::channel::unix(&containerd.socket()).await.unwrap()).await;
    assert_eq!(ours, theirs);
}
