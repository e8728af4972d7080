//! The Mounts service where nothing is mounted: what it leaves to clients, refuses and does not find. What it mounts is in
//! `activations.rs`.

use crate::common::{self, Node, request};
use orlop_api::containerd::services::mounts::v1 as pb;
use orlop_api::containerd::services::mounts::v1::mounts_client::MountsClient;
use orlop_api::containerd::services::snapshots::v1 as snapshots;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use orlop_api::containerd::types::{ActivationInfo, Mount};
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::need_root;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

fn mount(kind: &str) -> Mount {
    Mount { r#type: kind.into(), source: "source".into(), ..Mount::default() }
}

fn activate(mounts: Vec<Mount>, temporary: bool) -> Request<pb::ActivateRequest> {
    request(pb::ActivateRequest { name: "/mnt/a".into(), mounts, temporary, ..Default::default() })
}

/// `ctr images mount` and `ctr snapshots mounts` go on by themselves upon this code, and upon no other.
#[tokio::test]
async fn what_snapshotters_give_is_left_to_the_client() {
    let node = Node::new();
    let mut client = MountsClient::new(node.channel.clone());
    for snapshotter in common::snapshotters() {
        let wanted = snapshots::PrepareSnapshotRequest {
            snapshotter: snapshotter.into(),
            key: "key".into(),
            ..Default::default()
        };
        let made = SnapshotsClient::new(node.channel.clone()).prepare(request(wanted)).await.unwrap().into_inner();
        assert!(!made.mounts.is_empty());
        let told = client.activate(activate(made.mounts, false)).await.unwrap_err();
        assert_eq!(told.code(), Code::Unimplemented, "{told:?}");
        assert!(told.message().contains("nothing has to be activated"), "{}", told.message());
    }
}

/// Neither server leaves it to a client, who would mount it without the hashes: containerd cannot read them here.
#[tokio::test]
async fn an_erofs_that_is_to_be_verified_is_refused_and_left_to_nobody() {
    let refused = async |channel: &Channel| {
        let mut told = Vec::new();
        for (kind, temporary) in [("erofs", false), ("erofs", true), ("format/erofs", false)] {
            let verified = Mount { options: vec!["ro".into(), "X-containerd.dmverity=/hashes".into()], ..mount(kind) };
            let mut client = MountsClient::new(channel.clone());
            let status = client.activate(activate(vec![verified], temporary)).await.unwrap_err();
            assert!(status.message().contains("dm-verity") && status.message().contains("/hashes"), "{status:?}");
            told.push(status.code());
        }
        told
    };
    assert_eq!(refused(&Node::new().channel).await, [Code::FailedPrecondition; 3]);
    let (Some(programs), true) = (Programs::current(), need_root()) else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    let channel = orlop_api::channel::unix(&containerd.socket()).await.unwrap();
    assert_eq!(refused(&channel).await, [Code::Unknown; 3]);
}

#[tokio::test]
async fn nothing_is_active_at_first() {
    let node = Node::new();
    let mut client = MountsClient::new(node.channel.clone());
    client.activate(activate(vec![mount("overlay")], false)).await.unwrap_err();
    let name = || "/mnt/a".to_owned();
    let told = client.info(request(pb::InfoRequest { name: name() })).await.unwrap_err();
    assert_eq!(told.code(), Code::NotFound);
    let told = client.deactivate(request(pb::DeactivateRequest { name: name() })).await.unwrap_err();
    assert_eq!(told.code(), Code::NotFound);
    assert!(told.message().contains("/mnt/a"), "{}", told.message());
    let told = client.update(request(pb::UpdateRequest::default())).await.unwrap_err();
    assert_eq!(told.code(), Code::Unimplemented);
    let mut listed = client.list(request(pb::ListRequest::default())).await.unwrap().into_inner();
    assert!(listed.message().await.unwrap().is_none());
    let told = client.list(Request::new(pb::ListRequest::default())).await.unwrap_err();
    assert_eq!(told.code(), Code::FailedPrecondition, "a namespace is required");
}

/// Code of each call for mounts that any system makes, and for names that nothing has.
async fn codes(channel: Channel) -> Vec<Code> {
    let mut client = MountsClient::new(channel);
    let mut codes = Vec::new();
    let mut told = |answer: Result<(), Status>| codes.push(answer.map_or_else(|status| status.code(), |()| Code::Ok));
    for kind in ["bind", "overlay", "unheard-of", "odd/bind"] {
        told(client.activate(activate(vec![mount("bind"), mount(kind)], false)).await.map(drop));
    }
    told(client.activate(activate(Vec::new(), true)).await.map(drop));
    told(client.activate(Request::new(pb::ActivateRequest::default())).await.map(drop));
    let name = || "/mnt/a".to_owned();
    told(client.info(request(pb::InfoRequest { name: name() })).await.map(drop));
    told(client.deactivate(request(pb::DeactivateRequest { name: name() })).await.map(drop));
    told(
        client
            .update(request(pb::UpdateRequest { info: Some(ActivationInfo::default()), update_mask: None }))
            .await
            .map(drop),
    );
    let filters = vec!["no == filter ==".to_owned()];
    let listed = client.list(request(pb::ListRequest { filters })).await;
    told(match listed {
        Ok(stream) => stream.into_inner().message().await.map(drop),
        Err(status) => Err(status),
    });
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_are_those_of_containerd() {
    let (Some(programs), true) = (Programs::current(), need_root()) else { return };
    let containerd = Containerd::start(&programs, &Options::default());
    let theirs = codes(orlop_api::channel::unix(&containerd.socket()).await.unwrap()).await;
    assert_eq!(codes(Node::new().channel.clone()).await, theirs);
}
