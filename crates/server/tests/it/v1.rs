//! orlop.v1 through its client.

use crate::common;
use crate::common::image::archive;
use crate::common::{Node, request, request_in};
use bytes::Bytes;
use orlop_api::containerd::services::images::v1::DeleteImageRequest;
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::error::{Class, details};
use orlop_api::orlop::v1 as pb;
use orlop_api::orlop::v1::orlop_client::OrlopClient;
use orlop_testkit::image::Content;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

const NAME: &str = "example.org/hello:1.0";

fn client(node: &Node) -> OrlopClient<Channel> {
    OrlopClient::new(node.channel.clone())
}

fn cri<T>(message: T) -> Request<T> {
    request_in("k8s.io", message)
}

fn options() -> pb::ImportRequest {
    pb::ImportRequest { step: Some(pb::import_request::Step::Options(pb::ImportOptions::default())) }
}

fn data(bytes: &[u8]) -> pb::ImportRequest {
    pb::ImportRequest { step: Some(pb::import_request::Step::Data(Bytes::copy_from_slice(bytes))) }
}

/// Imports in small pieces; every event, or the error.
async fn import(node: &Node, namespace: &str, archive: &[u8]) -> Result<Vec<pb::Progress>, Status> {
    let messages: Vec<_> = [options()].into_iter().chain(archive.chunks(1000).map(data)).collect();
    let call = client(node).import(request_in(namespace, tokio_stream::iter(messages))).await?;
    all(call.into_inner()).await
}

async fn all<T>(mut stream: Streaming<T>) -> Result<Vec<T>, Status> {
    let mut seen = Vec::new();
    while let Some(message) = stream.message().await? {
        seen.push(message);
    }
    Ok(seen)
}

async fn with_image() -> (Node, Content) {
    let node = Node::new();
    let (content, archive) = archive(NAME);
    import(&node, "k8s.io", &archive).await.unwrap();
    (node, content)
}

async fn records(node: &Node) -> Vec<pb::RecordRow> {
    let pages = client(node).list_records(cri(pb::ListRecordsRequest::default())).await.unwrap();
    all(pages.into_inner()).await.unwrap().into_iter().flat_map(|page| page.rows).collect()
}

async fn images(node: &Node) -> Vec<pb::ImageRow> {
    let pages = client(node).list_images(cri(pb::ListImagesRequest::default())).await.unwrap();
    all(pages.into_inner()).await.unwrap().into_iter().flat_map(|page| page.rows).collect()
}

fn removal(plan: &str) -> pb::RemoveRequest {
    pb::RemoveRequest { names: vec![NAME.into()], plan: plan.into(), ..Default::default() }
}

#[tokio::test]
async fn an_import_tells_its_progress_and_writes_three_records() {
    let node = Node::new();
    let (content, archive) = archive(NAME);
    let events = import(&node, "k8s.io", &archive).await.unwrap();
    let (last, before) = events.split_last().unwrap();
    let done = last.done.as_ref().unwrap();
    let id = content.image_id().unwrap().to_string();
    let target = content.root.digest.to_string();
    assert!(before.iter().all(|event| event.done.is_none()));
    assert!(before.iter().any(|event| event.blob.is_some()));
    assert_eq!((done.image_ids.as_slice(), &done.target.as_ref().unwrap().digest), (&[id.clone()][..], &target));

    let rows = records(&node).await;
    let mut kinds: Vec<_> = rows.iter().map(|row| (row.kind.as_str(), row.name.clone())).collect();
    kinds.sort();
    let digest = format!("example.org/hello@{target}");
    assert_eq!(kinds, [("digest", digest.clone()), ("id", id.clone()), ("tag", NAME.to_owned())]);
    assert!(rows.iter().all(|row| row.image_id == id && row.target.as_ref().unwrap().digest == target));

    let rows = images(&node).await;
    assert_eq!(rows.len(), 1);
    assert_eq!((&rows[0].names, rows[0].hash_references.len(), rows[0].incomplete), (&vec![NAME.to_owned()], 2, false));
    let inspected =
        client(&node).inspect(cri(pb::InspectRequest { name: id[7..19].into() })).await.unwrap().into_inner();
    assert_eq!(inspected.documents.iter().map(|d| d.missing).collect::<Vec<_>>(), [false, false]);
    assert_eq!(inspected.snapshots.len(), 2);
}

/// Whoever deletes a hash reference that a name needs sees it again at once.
#[tokio::test]
async fn a_hash_reference_that_is_needed_comes_back() {
    let (node, content) = with_image().await;
    let id = content.image_id().unwrap().to_string();
    let delete = DeleteImageRequest { name: id.clone(), sync: true, target: None };
    ImagesClient::new(node.channel.clone()).delete(cri(delete)).await.unwrap();
    assert!(records(&node).await.iter().any(|row| row.name == id));
    let history = client(&node).history(cri(pb::HistoryRequest { name: id, limit: 0 })).await.unwrap();
    let rows: Vec<_> = all(history.into_inner()).await.unwrap().into_iter().flat_map(|page| page.rows).collect();
    assert_eq!(rows.iter().map(|r| r.action.as_str()).collect::<Vec<_>>(), ["create", "delete", "create"]);
}

#[tokio::test]
async fn what_is_exported_can_be_imported_elsewhere() {
    let (node, content) = with_image().await;
    for format in ["oci", "docker"] {
        let wanted = pb::ExportRequest { names: vec![NAME.into()], format: format.into(), ..Default::default() };
        let pieces = all(client(&node).export(cri(wanted)).await.unwrap().into_inner()).await.unwrap();
        let archive: Vec<u8> = pieces.into_iter().flat_map(|piece| piece.data).collect();
        let events = import(&node, format, &archive).await.unwrap();
        let done = events.last().unwrap().done.clone().unwrap();
        assert_eq!(done.image_ids, [content.image_id().unwrap().to_string()], "{format}");
    }
}

#[tokio::test]
async fn a_removal_is_planned_executed_and_undone() {
    let (node, _) = with_image().await;
    let mut client = client(&node);
    let plan = client.plan_remove(cri(removal(""))).await.unwrap().into_inner();
    assert!(plan.plan.starts_with("sha256:") && plan.records.contains(&NAME.to_owned()));
    assert!(!plan.blobs.is_empty() && plan.snapshots.len() == 2);
    assert_eq!(records(&node).await.len(), 3, "a plan changes nothing");

    let stale = client.remove(cri(removal("sha256:other"))).await.unwrap_err();
    assert_eq!((stale.code(), details(&stale).unwrap().class), (Code::FailedPrecondition, Class::Conflict));
    let removed = client.remove(cri(removal(&plan.plan))).await.unwrap().into_inner();
    assert_eq!(removed.executed.unwrap(), plan);
    assert!(records(&node).await.is_empty());

    let entries = client.list_trash(cri(pb::ListTrashRequest {})).await.unwrap().into_inner().entries;
    assert_eq!(entries.iter().map(|e| &e.id).collect::<Vec<_>>(), [&removed.trash]);
    let undone = client.undo(cri(pb::UndoRequest::default())).await.unwrap().into_inner();
    assert!(undone.names.contains(&NAME.to_owned()) && undone.snapshots == 2);
    assert_eq!(records(&node).await.len(), 3);
    let checked =
        all(client.check(cri(pb::CheckRequest { deep: true, ..Default::default() })).await.unwrap().into_inner());
    let events: Vec<_> = checked.await.unwrap().into_iter().map(|c| c.event.unwrap()).collect();
    let [pb::check_response::Event::Summary(summary)] = &events[..] else { panic!("{events:?}") };
    assert_eq!((summary.records, summary.blobs, summary.snapshots), (3, 4, 2));
}

#[tokio::test]
async fn names_are_added_pinned_and_remembered() {
    let (node, content) = with_image().await;
    let mut client = client(&node);
    let tag = |source: &str, force| pb::TagRequest {
        source: source.into(),
        names: vec!["example.org/hello:2.0".into()],
        force,
    };
    let written = client.tag(cri(tag(NAME, false))).await.unwrap().into_inner().names;
    assert!(written.contains(&"example.org/hello:2.0".to_owned()));
    let one = client.check(cri(pb::CheckRequest { deep: false, name: "example.org/hello:2.0".into() })).await.unwrap();
    let events = all(one.into_inner()).await.unwrap();
    assert!(matches!(
        events[..],
        [pb::CheckResponse { event: Some(pb::check_response::Event::Summary(pb::CheckSummary { blobs: 4, .. })) }]
    ));
    let pinned = client.pin(cri(pb::PinRequest { name: NAME.into(), pinned: true })).await.unwrap().into_inner();
    assert!(!pinned.names.is_empty());
    assert!(images(&node).await[0].pinned);
    let error = client.remove(cri(removal(""))).await.unwrap_err();
    assert_eq!((error.code(), details(&error).unwrap().class), (Code::FailedPrecondition, Class::Conflict));
    let history =
        client.history(cri(pb::HistoryRequest { name: "example.org/hello:2.0".into(), limit: 1 })).await.unwrap();
    let rows = all(history.into_inner()).await.unwrap().remove(0).rows;
    assert_eq!((rows.len(), rows[0].new_target.clone()), (1, content.root.digest.to_string()));
}

#[tokio::test]
async fn disk_is_measured_and_garbage_collected() {
    let (node, _) = with_image().await;
    let mut client = client(&node);
    let usage = client.disk_usage(cri(pb::DiskUsageRequest::default())).await.unwrap().into_inner();
    assert!(usage.total > usage.content && usage.content > 0 && usage.snapshots > 0);
    let references = usage.hash_references.unwrap();
    assert_eq!((references.records, references.content_bytes), (2, 0), "hash references cost no content");
    let dry = pb::GcRequest { dry_run: true, ..Default::default() };
    assert_eq!(client.gc(cri(dry)).await.unwrap().into_inner().blobs, 0);
    let delete = pb::RemoveRequest { no_trash: true, ..removal("") };
    let removed = client.remove(cri(delete)).await.unwrap().into_inner();
    assert!(removed.trash.is_empty());
    let after = client.disk_usage(cri(pb::DiskUsageRequest::default())).await.unwrap().into_inner();
    assert!(after.content < usage.content && after.snapshots < usage.snapshots, "{usage:?} then {after:?}");
}

#[tokio::test]
async fn a_broken_import_leaves_nothing_visible() {
    let node = Node::new();
    let (_, archive) = archive(NAME);
    let error = import(&node, "k8s.io", &archive[..archive.len() / 2]).await.unwrap_err();
    assert_eq!((error.code(), details(&error).unwrap().class), (Code::FailedPrecondition, Class::Verification));
    assert!(records(&node).await.is_empty());
    let late = [data(b"x"), options()];
    for messages in [vec![], vec![data(b"x")], late.to_vec()] {
        let call = client(&node).import(cri(tokio_stream::iter(messages))).await.unwrap();
        assert_eq!(all(call.into_inner()).await.unwrap_err().code(), Code::InvalidArgument);
    }
}

/// A client that goes away stops the pull: its connection to the registry is closed.
#[tokio::test]
async fn a_pull_ends_with_its_client() {
    let node = Node::new();
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reference = format!("{}/silent:1", registry.local_addr().unwrap());
    let options = Some(pb::RegistryOptions { plain_http: true, ..Default::default() });
    let wanted = pb::PullRequest { reference, registry: options, ..Default::default() };
    let call = client(&node).pull(cri(wanted)).await.unwrap();
    let (mut connection, _) = registry.accept().await.unwrap();
    let mut request = [0; 4];
    tokio::io::AsyncReadExt::read_exact(&mut connection, &mut request).await.unwrap();
    drop(call);
    let mut rest = Vec::new();
    // A reset is as much of an end as a close.
    let _ = tokio::io::AsyncReadExt::read_to_end(&mut connection, &mut rest).await;
    assert!(records(&node).await.is_empty());
}

#[tokio::test]
async fn failures_say_their_class() {
    let node = Node::new();
    let mut client = client(&node);
    let nothing = pb::InspectRequest { name: "nothing".into() };
    let error = client.inspect(cri(nothing)).await.unwrap_err();
    assert_eq!((error.code(), details(&error).unwrap().class), (Code::NotFound, Class::NotFound));
    let registry = Some(pb::RegistryOptions { plain_http: true, ..Default::default() });
    // Port 1 refuses at once.
    for (reference, code, class) in [
        ("UPPER CASE", Code::InvalidArgument, Class::Usage),
        ("127.0.0.1:1/none:1", Code::Unavailable, Class::Unavailable),
    ] {
        let wanted = pb::PullRequest { reference: reference.into(), registry: registry.clone(), ..Default::default() };
        let error = all(client.pull(cri(wanted)).await.unwrap().into_inner()).await.unwrap_err();
        assert_eq!((error.code(), details(&error).unwrap().class), (code, class), "{reference}: {error}");
    }
    let wanted = pb::PullRequest { platforms: vec!["a/b/c/d".into()], ..Default::default() };
    assert_eq!(client.pull(cri(wanted)).await.unwrap_err().code(), Code::InvalidArgument);
    let wanted = pb::ExportRequest { format: "rar".into(), ..Default::default() };
    assert_eq!(client.export(cri(wanted)).await.unwrap_err().code(), Code::InvalidArgument);
    let wanted = pb::ExportRequest { names: vec!["nothing".into()], ..Default::default() };
    let error = all(client.export(cri(wanted)).await.unwrap().into_inner()).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let error = client.undo(request(pb::UndoRequest::default())).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let error = client.gc(Request::new(pb::GcRequest::default())).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "no namespace");
}

/// Longer messages used to break the call, since headers are bounded.
#[tokio::test]
async fn a_long_message_is_cut() {
    let node = Node::new();
    let name = "é".repeat(100_000);
    let error = client(&node).inspect(cri(pb::InspectRequest { name })).await.unwrap_err();
    assert!(matches!(error.code(), Code::NotFound | Code::InvalidArgument), "{:?}", error.code());
    assert!(error.message().contains('é') && error.message().ends_with('…'));
    assert!(details(&error).is_some());
}

/// A thousand rows of three kilobytes come in pages of some twenty, and none is lost or out of order.
#[tokio::test]
async fn long_lists_come_in_pages() {
    let node = Node::new();
    let target = orlop_oci::Descriptor::new("application/x", orlop_oci::Digest::of(b"x"), 1);
    let labels = common::labels(&[("filler", &"x".repeat(3000))]);
    let upsert = |i: usize| orlop_metadata::ImageChange::Upsert {
        name: format!("name-{i:04}"),
        target: target.clone(),
        labels: labels.clone(),
    };
    let changes: Vec<_> = (0..1000).map(upsert).collect();
    node.store.write_images(&orlop_metadata::Scope::new("test", "tests"), &changes).unwrap();
    let pages = client(&node).list_records(request(pb::ListRecordsRequest::default())).await.unwrap();
    let pages = all(pages.into_inner()).await.unwrap();
    assert!((30..100).contains(&pages.len()), "{} pages", pages.len());
    let names: Vec<_> = pages.into_iter().flat_map(|page| page.rows).map(|row| row.name).collect();
    assert_eq!(names, (0..1000).map(|i| format!("name-{i:04}")).collect::<Vec<_>>());
}
