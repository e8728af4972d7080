//! Streams and transfers at the level of messages: what clients get wrong, progress, credentials.

use std::time::Duration;

use crate::common;
use crate::common::{Node, labels, request, request_in};
use orlop_api::containerd::services::images::v1::images_client::ImagesClient;
use orlop_api::containerd::services::images::v1::{GetImageRequest, Image};
use orlop_api::containerd::services::streaming::v1::StreamInit;
use orlop_api::containerd::services::streaming::v1::streaming_client::StreamingClient;
use orlop_api::containerd::services::transfer::v1::transfer_client::TransferClient;
use orlop_api::containerd::services::transfer::v1::{TransferOptions, TransferRequest};
use orlop_api::containerd::types::transfer as types;
use orlop_testkit::registry::{Options, PASSWORD, Registry, USER};
use prost::{Message, Name};
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

fn any<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

fn decoded<M: Message + Name + Default>(any: &Any) -> M {
    assert_eq!(any.type_url, M::full_name());
    M::decode(any.value.as_slice()).unwrap()
}

/// A stream that the server has acknowledged.
struct Stream {
    sender: mpsc::Sender<Any>,
    answers: Streaming<Any>,
}

async fn open(node: &Node, name: &str) -> Result<Stream, Status> {
    let (sender, receiver) = mpsc::channel(16);
    sender.send(any(&StreamInit { id: name.into() })).await.unwrap();
    let mut client = StreamingClient::new(node.channel.clone());
    let mut answers = client.stream(request(ReceiverStream::new(receiver))).await?.into_inner();
    let first = answers.message().await?.expect("an acknowledgement");
    assert_eq!((first.type_url.as_str(), first.value.len()), ("google.protobuf.Empty", 0));
    Ok(Stream { sender, answers })
}

async fn transfer(node: &Node, source: Any, destination: Any, progress: &str) -> Result<(), Status> {
    let options = Some(TransferOptions { progress_stream: progress.into() });
    let wanted = TransferRequest { source: Some(source), destination: Some(destination), options };
    TransferClient::new(node.channel.clone()).transfer(request(wanted)).await.map(drop)
}

fn store(name: &str) -> types::ImageStore {
    types::ImageStore { name: name.into(), ..types::ImageStore::default() }
}

async fn image(node: &Node, name: &str) -> Result<Image, Status> {
    let found = ImagesClient::new(node.channel.clone()).get(request(GetImageRequest { name: name.into() })).await?;
    Ok(found.into_inner().image.unwrap())
}

/// Imports an archive through a stream; the client sends only what the server says it takes.
async fn import(node: &Node, bytes: Vec<u8>, place: types::ImageStore) -> Result<(), Status> {
    let Stream { sender, mut answers } = open(node, "import").await?;
    let sending = tokio::spawn(async move {
        let (mut rest, mut credit) = (bytes.as_slice(), 0);
        while !rest.is_empty() {
            while credit == 0 {
                let Ok(Some(update)) = answers.message().await else { return };
                credit += usize::try_from(decoded::<types::WindowUpdate>(&update).update).unwrap();
            }
            let (piece, more) = rest.split_at(rest.len().min(credit).min(1000));
            (rest, credit) = (more, credit - piece.len());
            let data = types::Data { data: piece.to_vec().into() };
            if sender.send(any(&data)).await.is_err() {
                return;
            }
        }
        // The end of what is sent; the stream itself ends with the transfer.
        drop(sender);
        while let Ok(Some(_)) = answers.message().await {}
    });
    let source = types::ImageImportStream { stream: "import".into(), ..Default::default() };
    let done = transfer(node, any(&source), any(&place), "").await;
    sending.await.unwrap();
    done
}

async fn imported(node: &Node, name: &str) {
    let rule =
        types::ImageReference { name: "import".into(), is_prefix: true, allow_overwrite: true, ..Default::default() };
    let place = types::ImageStore { extra_references: vec![rule], ..Default::default() };
    import(node, common::image::archive(name).1, place).await.unwrap();
}

#[tokio::test]
async fn a_name_is_taken_until_its_client_goes_away() {
    let node = Node::new();
    let first = open(&node, "one").await.unwrap();
    let refused = open(&node, "one").await.err().expect("the name is taken");
    assert_eq!(refused.code(), Code::AlreadyExists);
    open(&node, "two").await.unwrap();
    drop(first);
    let again = async {
        while open(&node, "one").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again).await.expect("the name is free again");
}

#[tokio::test]
async fn a_stream_begins_with_its_name_and_a_namespace() {
    let node = Node::new();
    let mut client = StreamingClient::new(node.channel.clone());
    let undefined = Any { type_url: "type.googleapis.com/x".into(), value: vec![1] };
    for first in [any(&types::Data::default()), undefined] {
        let mut answers = client.stream(request(tokio_stream::iter([first]))).await.unwrap().into_inner();
        assert_eq!(answers.message().await.unwrap_err().code(), Code::Unknown);
    }
    let nameless = tonic::Request::new(tokio_stream::iter([any(&StreamInit { id: "x".into() })]));
    assert_eq!(client.stream(nameless).await.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn what_is_no_source_or_destination_is_refused() {
    let node = Node::new();
    let good = any(&store("a"));
    let prefixed = Any { type_url: format!("type.googleapis.com/{}", good.type_url), ..good.clone() };
    let unknown = Any { type_url: "my.own.Place".into(), value: Vec::new() };
    let elsewhere = any(&types::Data::default());
    for (bad, code) in [(prefixed, Code::Unimplemented), (unknown, Code::Unknown), (elsewhere, Code::Unimplemented)] {
        let refused = transfer(&node, good.clone(), bad, "").await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    let registry = any(&types::OciRegistry::default());
    let refused = transfer(&node, registry.clone(), registry, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let broken = Any { value: vec![0xff, 0xff], ..good.clone() };
    assert_eq!(transfer(&node, broken, good.clone(), "").await.unwrap_err().code(), Code::Unknown);
    let refused = transfer(&node, good.clone(), good.clone(), "no such stream").await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(transfer(&node, good.clone(), any(&store("b")), "").await.unwrap_err().code(), Code::NotFound);
    let source = types::ImageImportStream { stream: "nothing".into(), ..Default::default() };
    assert_eq!(transfer(&node, any(&source), good, "").await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn a_tag_always_overwrites_and_drops_labels() {
    let node = Node::new();
    imported(&node, "example.org/hello:1.0").await;
    let labelled = types::ImageStore { labels: labels(&[("a", "b")]), ..store("example.org/two:2") };
    let source = any(&store("example.org/hello:1.0"));
    transfer(&node, source.clone(), any(&labelled), "").await.unwrap();
    assert_eq!(image(&node, "example.org/two:2").await.unwrap().labels, labels(&[("a", "b")]));
    transfer(&node, source, any(&store("example.org/two:2")), "").await.unwrap();
    let tagged = image(&node, "example.org/two:2").await.unwrap();
    assert_eq!(tagged.labels, labels(&[]));
    assert_eq!(tagged.target, image(&node, "example.org/hello:1.0").await.unwrap().target);
}

#[tokio::test]
async fn an_import_with_wrong_bytes_names_nothing_and_frees_its_stream() {
    let node = Node::new();
    let refused = import(&node, b"this is no archive".repeat(100), store("a.b/c:1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert_eq!(image(&node, "a.b/c:1").await.unwrap_err().code(), Code::NotFound);
    open(&node, "import").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pushed_and_pulled_with_the_clients_credentials_and_progress() {
    let Some(registry) = Registry::start(&Options::new().basic()) else { return };
    let node = Node::new();
    imported(&node, "example.org/hello:1.0").await;
    let reference = format!("{}/team/hello:1.0", registry.host());
    let there = |stream: &str| types::OciRegistry {
        reference: reference.clone(),
        resolver: Some(types::RegistryResolver { auth_stream: stream.into(), ..Default::default() }),
    };
    let refused = transfer(&node, any(&store("example.org/hello:1.0")), any(&there("")), "").await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");

    let asked = answer_questions(&node, "creds", &reference).await;
    transfer(&node, any(&store("example.org/hello:1.0")), any(&there("creds")), "").await.unwrap();
    assert!(asked.await.unwrap() > 0, "the client was asked");

    let asked = answer_questions(&node, "creds", &reference).await;
    let Stream { sender: _sender, mut answers } = open(&node, "progress").await.unwrap();
    let listening = tokio::spawn(async move {
        let mut told = Vec::new();
        while let Ok(Some(message)) = answers.message().await {
            told.push(decoded::<types::Progress>(&message));
        }
        told
    });
    let place = types::ImageStore { labels: labels(&[("by", "test")]), ..store("pulled.io/x:1") };
    transfer(&node, any(&there("creds")), any(&place), "progress").await.unwrap();
    asked.await.unwrap();
    assert_eq!(image(&node, "pulled.io/x:1").await.unwrap().labels, labels(&[("by", "test")]));
    let told = listening.await.expect("the stream ends with the transfer");
    let events: Vec<&str> = told.iter().map(|p| p.event.as_str()).collect();
    assert_eq!(events[0], format!("Resolving from OCI Registry ({reference})"));
    assert_eq!(*events.last().unwrap(), format!("Completed pull from OCI Registry ({reference})"));
    let saved = told.iter().find(|p| p.event == "saved").expect("a record");
    assert_eq!(saved.name, "pulled.io/x:1");
    let layer = told.iter().find(|p| p.name.starts_with("layer-sha256:")).expect("a layer");
    assert!(layer.parents[0].starts_with("manifest-sha256:") && layer.desc.is_some(), "{layer:?}");
}

/// Answers what a registry's client is asked, until the transfer ends the stream; how often that was.
async fn answer_questions(node: &Node, stream: &str, reference: &str) -> tokio::task::JoinHandle<usize> {
    let Stream { sender, mut answers } = open(node, stream).await.unwrap();
    let reference = reference.to_owned();
    tokio::spawn(async move {
        let mut asked = 0;
        while let Ok(Some(question)) = answers.message().await {
            let question: types::AuthRequest = decoded(&question);
            assert_eq!(question.reference, reference);
            asked += 1;
            let auth_type = types::AuthType::Credentials.into();
            let answer =
                types::AuthResponse { auth_type, username: USER.into(), secret: PASSWORD.into(), expire_at: None };
            sender.send(any(&answer)).await.unwrap();
        }
        asked
    })
}

#[tokio::test]
async fn an_archive_goes_out_as_it_came_in_and_streams_belong_to_their_namespace() {
    let node = Node::new();
    imported(&node, "example.org/hello:1.0").await;
    let Stream { sender, mut answers } = open(&node, "export").await.unwrap();
    let export = types::ImageExportStream { stream: "export".into(), ..Default::default() };
    let wanted = TransferRequest {
        source: Some(any(&store("example.org/hello:1.0"))),
        destination: Some(any(&export)),
        options: None,
    };
    let elsewhere = TransferClient::new(node.channel.clone()).transfer(request_in("other", wanted)).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound, "the stream is of another namespace");
    let taking = tokio::spawn(async move {
        let mut bytes = Vec::new();
        sender.send(any(&types::WindowUpdate { update: 700 })).await.unwrap();
        while let Ok(Some(message)) = answers.message().await {
            let data = decoded::<types::Data>(&message).data;
            assert!(data.len() <= 700, "more than was asked for");
            bytes.extend_from_slice(&data);
            let update = types::WindowUpdate { update: i32::try_from(data.len()).unwrap() };
            // The last one may come when the stream has ended.
            let _ = sender.send(any(&update)).await;
        }
        bytes
    });
    transfer(&node, any(&store("example.org/hello:1.0")), any(&export), "").await.unwrap();
    let archive = taking.await.unwrap();
    let other = Node::new();
    let rule = types::ImageReference { name: "x".into(), is_prefix: true, allow_overwrite: true, ..Default::default() };
    let place = types::ImageStore { extra_references: vec![rule], ..Default::default() };
    import(&other, archive, place).await.unwrap();
    let (here, there) =
        (image(&node, "example.org/hello:1.0").await.unwrap(), image(&other, "example.org/hello:1.0").await.unwrap());
    assert_eq!(here.target.unwrap().digest, there.target.unwrap().digest);
}
