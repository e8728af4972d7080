//! What containerd's Content service promises beyond the contract of content stores.

use crate::common::{Node, labels, leased, request, request_in};
use bytes::Bytes;
use orlop_api::containerd::services::content::v1 as pb;
use orlop_api::containerd::services::content::v1::content_client::ContentClient;
use orlop_api::containerd::services::leases::v1 as leases;
use orlop_api::containerd::services::leases::v1::leases_client::LeasesClient;
use orlop_metadata::gc::Disposal;
use orlop_oci::{Algorithm, Digest, Digester};
use prost_types::FieldMask;
use tonic::{Code, Request, Status};

fn client(node: &Node) -> ContentClient<tonic::transport::Channel> {
    ContentClient::new(node.channel.clone())
}

fn message(action: pb::WriteAction, offset: i64, data: &'static [u8]) -> pb::WriteContentRequest {
    let data = Bytes::from_static(data);
    pb::WriteContentRequest { action: action.into(), r#ref: "ref".into(), offset, data, ..Default::default() }
}

fn commit(offset: i64, data: &'static [u8]) -> pb::WriteContentRequest {
    message(pb::WriteAction::Commit, offset, data)
}

fn write(offset: i64, data: &'static [u8]) -> pb::WriteContentRequest {
    message(pb::WriteAction::Write, offset, data)
}

/// All answers of one call, up to the error if there is one.
async fn call(
    node: &Node,
    messages: Request<Vec<pb::WriteContentRequest>>,
) -> (Vec<pb::WriteContentResponse>, Option<Status>) {
    let messages = messages.map(tokio_stream::iter);
    let mut answers = client(node).write(messages).await.unwrap().into_inner();
    let mut seen = Vec::new();
    loop {
        match answers.message().await {
            Ok(Some(answer)) => seen.push(answer),
            Ok(None) => return (seen, None),
            Err(status) => return (seen, Some(status)),
        }
    }
}

async fn put(node: &Node, data: &'static [u8]) -> Digest {
    let (answers, error) = call(node, request(vec![commit(0, data)])).await;
    assert!(error.is_none(), "{error:?}");
    answers[0].digest.parse().unwrap()
}

async fn read(node: &Node, digest: &Digest, offset: i64, size: i64) -> Result<Vec<pb::ReadContentResponse>, Status> {
    let wanted = pb::ReadContentRequest { digest: digest.to_string(), offset, size };
    let mut pieces = client(node).read(request(wanted)).await?.into_inner();
    let mut seen = Vec::new();
    while let Some(piece) = pieces.message().await? {
        seen.push(piece);
    }
    Ok(seen)
}

#[tokio::test]
async fn one_message_may_write_and_commit() {
    let node = Node::new();
    let digest = put(&node, b"whole").await;
    assert_eq!(digest, Digest::of(b"whole"));
    assert_eq!(read(&node, &digest, 0, 0).await.unwrap()[0].data, "whole");
}

#[tokio::test]
async fn offset_zero_begins_again_even_with_a_commit() {
    let node = Node::new();
    let (answers, error) = call(&node, request(vec![write(0, b"wrong"), write(0, b"wr"), commit(0, b"right")])).await;
    assert!(error.is_none());
    assert_eq!(answers.iter().map(|a| a.offset).collect::<Vec<_>>(), [5, 2, 5]);
    assert_eq!(answers[2].digest, Digest::of(b"right").to_string());
}

#[tokio::test]
async fn any_other_offset_must_be_where_the_ingest_ends() {
    let node = Node::new();
    for offset in [1, 4, 6, -1] {
        let (answers, error) = call(&node, request(vec![write(0, b"12345"), write(offset, b"6")])).await;
        assert_eq!((answers.len(), error.unwrap().code()), (1, Code::OutOfRange), "offset {offset}");
    }
    let (answers, _) = call(&node, request(vec![message(pb::WriteAction::Stat, 0, b"")])).await;
    assert_eq!(answers[0].offset, 5, "what was written before stays");
    let (_, error) = call(&node, request(vec![commit(5, b"6")])).await;
    assert!(error.is_none());
}

#[tokio::test]
async fn a_blob_that_was_cut_short_is_lost_data_to_who_reads_it() {
    let node = Node::new();
    let digest = put(&node, b"whole").await;
    let file = node.directory.path().join("root/content/blobs/sha256").join(digest.hex());
    std::fs::write(&file, "who").unwrap();
    let error = read(&node, &digest, 0, 0).await.unwrap_err();
    assert_eq!(error.code(), Code::DataLoss, "{error:?}");
    assert_eq!(orlop_api::error::details(&error).unwrap().class, orlop_api::error::Class::Verification);
}

/// What was hashed as it came does not count where something else was written before.
#[tokio::test]
async fn every_answer_has_the_digest_of_all_that_is_written_however_it_came_to_be() {
    let node = Node::new();
    let digests = |answers: &[pb::WriteContentResponse]| answers.iter().map(|a| a.digest.clone()).collect::<Vec<_>>();
    let of = |texts: &[&str]| texts.iter().map(|text| Digest::of(text.as_bytes()).to_string()).collect::<Vec<_>>();
    let (answers, _) = call(&node, request(vec![write(0, b"first "), write(6, b""), write(6, b"call, ")])).await;
    assert_eq!(digests(&answers), of(&["first ", "first ", "first call, "]));
    let (answers, _) = call(&node, request(vec![write(12, b"second"), write(18, b" call")])).await;
    assert_eq!(digests(&answers), of(&["first call, second", "first call, second call"]));
    let (answers, _) = call(&node, request(vec![write(0, b"again"), write(5, b" it is"), write(0, b"begun")])).await;
    assert_eq!(digests(&answers), of(&["again", "again it is", "begun"]));
    let mut longer = Digester::new(Algorithm::Sha512);
    longer.update(b"begun anew");
    let expected = longer.finish().to_string();
    let last = pb::WriteContentRequest { expected: expected.clone(), ..commit(5, b" anew") };
    let (answers, error) = call(&node, request(vec![last])).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(digests(&answers), [expected]);
}

#[tokio::test]
async fn a_ref_is_required_and_locked() {
    let node = Node::new();
    let mut nameless = write(0, b"x");
    nameless.r#ref.clear();
    let (_, error) = call(&node, request(vec![nameless])).await;
    assert_eq!(error.unwrap().code(), Code::InvalidArgument);

    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(write(0, b"held")).await.unwrap();
    let held = request(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let mut answers = client(&node).write(held).await.unwrap().into_inner();
    answers.message().await.unwrap();
    let (_, error) = call(&node, request(vec![write(0, b"x")])).await;
    assert_eq!(error.unwrap().code(), Code::Unavailable, "clients retry on that");
    drop(sender);
    assert!(answers.message().await.unwrap().is_none());
    let (answers, error) = call(&node, request(vec![message(pb::WriteAction::Stat, 0, b"")])).await;
    assert!(error.is_none());
    assert_eq!(answers[0].offset, 4);
}

#[tokio::test]
async fn a_digest_that_is_there_ends_the_write_and_frees_the_ref() {
    let node = Node::new();
    let digest = put(&node, b"there").await;
    let mut early = write(0, b"");
    early.expected = digest.to_string();
    let mut late = commit(2, b"");
    late.expected = digest.to_string();
    for messages in [vec![early], vec![write(0, b"th"), late], vec![commit(0, b"there")]] {
        let (_, error) = call(&node, request(messages)).await;
        assert_eq!(error.unwrap().code(), Code::AlreadyExists);
        let status = client(&node).status(request(pb::StatusRequest { r#ref: "ref".into() })).await;
        assert_eq!(status.unwrap_err().code(), Code::NotFound);
    }
}

#[tokio::test]
async fn a_wrong_digest_or_size_is_a_failed_precondition_and_the_ingest_survives() {
    let node = Node::new();
    let (_, error) = call(&node, request(vec![pb::WriteContentRequest { total: 6, ..commit(0, b"bytes") }])).await;
    let error = error.unwrap();
    assert_eq!(error.code(), Code::FailedPrecondition);
    let details = orlop_api::error::details(&error).unwrap();
    assert_eq!(details.class, orlop_api::error::Class::Verification);
    let expected = Digest::of(b"other").to_string();
    let (_, error) = call(&node, request(vec![pb::WriteContentRequest { expected, ..commit(0, b"bytes") }])).await;
    assert_eq!(error.unwrap().code(), Code::FailedPrecondition);
    let found = client(&node).status(request(pb::StatusRequest { r#ref: "ref".into() })).await.unwrap();
    assert_eq!(found.into_inner().status.unwrap().offset, 5);
    client(&node).abort(request(pb::AbortRequest { r#ref: "ref".into() })).await.unwrap();
}

/// The labels come with the row: a collection between commit and label would take the blob.
#[tokio::test]
async fn labels_of_a_commit_protect_the_blob_from_the_start() {
    let node = Node::new();
    let kept = pb::WriteContentRequest {
        labels: labels(&[("containerd.io/gc.root", "yes"), ("empty", "")]),
        ..commit(0, b"kept")
    };
    let (answers, _) = call(&node, request(vec![kept])).await;
    let lost = put(&node, b"lost").await;
    node.store.collect(Disposal::Reclaim).unwrap();
    let digest: Digest = answers[0].digest.parse().unwrap();
    assert_eq!(read(&node, &digest, 0, 0).await.unwrap()[0].data, "kept");
    assert_eq!(read(&node, &lost, 0, 0).await.unwrap_err().code(), Code::NotFound);
    let info = client(&node).info(request(pb::InfoRequest { digest: digest.to_string() })).await.unwrap();
    assert_eq!(info.into_inner().info.unwrap().labels, labels(&[("containerd.io/gc.root", "yes")]));
    let long = pb::WriteContentRequest { labels: labels(&[("k", &"v".repeat(5000))]), ..commit(0, b"long") };
    let (_, error) = call(&node, request(vec![long])).await;
    assert_eq!(error.unwrap().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn reads_stay_within_the_blob_and_count_from_zero() {
    let node = Node::new();
    let bytes: Vec<u8> = (0..2_500_000_u32).map(|i| (i % 251) as u8).collect();
    let digest = put(&node, bytes.clone().leak()).await;
    let cases = [
        (0, 0, 0, 2_500_000),
        (5, -1, 5, 2_500_000),
        (-7, 3, 0, 3),
        (100, 9_000_000, 100, 2_500_000),
        (2_500_000, 1, 0, 0),
    ];
    for (offset, size, from, to) in cases {
        let pieces = read(&node, &digest, offset, size).await.unwrap();
        let mut whole = Vec::new();
        for piece in pieces {
            assert_eq!(piece.offset, whole.len() as i64);
            whole.extend_from_slice(&piece.data);
        }
        assert!(whole == bytes[from..to], "offset {offset}, size {size}");
    }
    assert_eq!(read(&node, &digest, 2_500_001, 0).await.unwrap_err().code(), Code::OutOfRange);
}

#[tokio::test]
async fn masks_of_labels_keep_dots_and_empty_values_delete() {
    let node = Node::new();
    let digest = put(&node, b"labelled").await.to_string();
    let update = |pairs: &[(&str, &str)], paths: &[&str]| {
        let info = pb::Info { digest: digest.clone(), labels: labels(pairs), ..Default::default() };
        let paths = paths.iter().map(|p| (*p).to_owned()).collect();
        let wanted = pb::UpdateRequest { info: Some(info), update_mask: Some(FieldMask { paths }) };
        let mut client = client(&node);
        async move { client.update(request(wanted)).await.map(|u| u.into_inner().info.unwrap().labels) }
    };
    let all = update(&[("a.b/c.d", "1"), ("x", "2")], &[]).await.unwrap();
    assert_eq!(all, labels(&[("a.b/c.d", "1"), ("x", "2")]));
    let one = update(&[("a.b/c.d", "3"), ("x", "9")], &["labels.a.b/c.d"]).await.unwrap();
    assert_eq!(one, labels(&[("a.b/c.d", "3"), ("x", "2")]));
    assert_eq!(update(&[("x", "")], &["labels.x"]).await.unwrap(), labels(&[("a.b/c.d", "3")]));
    assert_eq!(update(&[], &["size"]).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(update(&[], &[]).await.unwrap().is_empty(), "no mask replaces everything");
}

#[tokio::test]
async fn refs_are_filtered_and_the_empty_filter_matches_all() {
    let node = Node::new();
    for name in ["layer-a", "layer-b", "manifest"] {
        let started = pb::WriteContentRequest { r#ref: name.into(), ..write(0, b"x") };
        call(&node, request(vec![started])).await;
    }
    for (filters, count) in
        [(vec![], 3), (vec![""], 3), (vec!["ref~=^layer"], 2), (vec!["ref==manifest", "ref~=a$"], 2)]
    {
        let wanted = pb::ListStatusesRequest { filters: filters.iter().map(|f| (*f).to_owned()).collect() };
        let found = client(&node).list_statuses(request(wanted)).await.unwrap().into_inner().statuses;
        assert_eq!(found.len(), count, "{filters:?}");
    }
    let wanted = pb::ListStatusesRequest { filters: vec!["ref==".into()] };
    let error = client(&node).list_statuses(request(wanted)).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_is_written_under_a_lease_lives_as_long_as_it() {
    let node = Node::new();
    let mut client = LeasesClient::new(node.channel.clone());
    let wanted = leases::CreateRequest { id: "mine".into(), labels: labels(&[]) };
    client.create(request(wanted)).await.unwrap();
    let (answers, _) = call(&node, leased("mine", vec![commit(0, b"leased")])).await;
    let digest: Digest = answers[0].digest.parse().unwrap();
    node.store.collect(Disposal::Reclaim).unwrap();
    assert!(read(&node, &digest, 0, 0).await.is_ok());
    let listed = client.list_resources(request(leases::ListResourcesRequest { id: "mine".into() })).await.unwrap();
    let resources = listed.into_inner().resources;
    assert_eq!(resources, [leases::Resource { id: digest.to_string(), r#type: "content".into() }]);
    client.delete(request(leases::DeleteRequest { id: "mine".into(), sync: true })).await.unwrap();
    assert_eq!(read(&node, &digest, 0, 0).await.unwrap_err().code(), Code::NotFound);
    let (_, error) = call(&node, leased("gone", vec![commit(0, b"x")])).await;
    assert_eq!(error.unwrap().code(), Code::NotFound, "an unknown lease");
}

#[tokio::test]
async fn a_call_without_a_namespace_is_refused_and_namespaces_are_apart() {
    let node = Node::new();
    let digest = put(&node, b"mine").await.to_string();
    let wanted = pb::InfoRequest { digest };
    let error = client(&node).info(Request::new(wanted.clone())).await.unwrap_err();
    assert_eq!((error.code(), error.message().contains("namespace is required")), (Code::FailedPrecondition, true));
    for invalid in ["../x", "a..b", " "] {
        let error = client(&node).info(request_in(invalid, wanted.clone())).await.unwrap_err();
        assert!(matches!(error.code(), Code::InvalidArgument | Code::FailedPrecondition), "{invalid:?}: {error}");
    }
    let error = client(&node).info(request_in("other", wanted.clone())).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    client(&node).info(request(wanted)).await.unwrap();
    let error = client(&node).info(request(pb::InfoRequest { digest: "sha256:beef".into() })).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}
