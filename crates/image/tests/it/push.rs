//! Pushing to Debian's docker-registry and to our own.

use crate::common;
use crate::common::{Entry, Made, Node, Shelf, client, layers, on};
use orlop_image::{Error, Event, PullRequest, PushRequest, Stage};
use orlop_remote::Client;
use orlop_testkit::registry::{Options, Registry};

async fn push(node: &Node, client: &Client, source: &str, destination: &str) -> orlop_image::Result<Vec<Event>> {
    let request =
        PushRequest { source: source.to_owned(), destination: destination.to_owned(), ..PushRequest::default() };
    let events = common::Events::default();
    node.images.push(&node.scope, client, &request, &|event| events.push(event)).await?;
    Ok(events.0.into_inner().unwrap())
}

fn stages(events: &[Event], kind: &str) -> Vec<Stage> {
    let of_kind = events.iter().filter_map(|event| match event {
        Event::Blob(blob) if blob.kind == kind => Some(blob.stage),
        _ => None,
    });
    of_kind.filter(|stage| matches!(stage, Stage::Present | Stage::Mounted | Stage::Complete)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_to_docker_registry_is_pulled_again_the_same() {
    let Some(registry) = Registry::start(&Options::new()) else { return };
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let images = [made.image("amd64", &layers()), made.image("arm64", &layers()[..1])];
    let index = made.index(&[on(&images[0], "amd64"), on(&images[1], "arm64")]);
    shelf.push(&made, "team/app:v1", &index).await;
    let all = PullRequest { all_platforms: true, ..PullRequest::default() };
    node.pull_with(&shelf.name("team/app:v1"), all.clone()).await.unwrap();

    let there = format!("{}/team/app:v2", registry.host());
    push(&node, &client(), &shelf.name("team/app:v1"), &there).await.unwrap();

    let other = Node::new();
    let outcome = other.pull_with(&there, all).await.unwrap();
    assert_eq!(outcome.target.digest, index.digest);
    assert_eq!(outcome.image_ids.len(), 2);
    other.is_sound().await;
    assert!(node.store().leases("k8s.io", &[]).unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_mounted_from_the_repository_they_came_from_and_sent_once() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    node.pull(&shelf.name("team/app:v1")).await.unwrap();
    let name = shelf.name("team/app:v1");
    let events = push(&node, &client(), &name, &shelf.name("other/app:v1")).await.unwrap();
    assert_eq!(stages(&events, "layer"), [Stage::Mounted; 3]);
    let events = push(&node, &client(), &name, &shelf.name("other/app:v2")).await.unwrap();
    assert_eq!(stages(&events, "layer"), [Stage::Present; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_of_which_one_platform_is_here_goes_as_that_one_unless_more_is_asked_for() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let images = [made.image("amd64", &layers()), made.image("arm64", &layers()[..1])];
    let index = made.index(&[on(&images[0], "amd64"), on(&images[1], "arm64")]);
    shelf.push(&made, "team/app:v1", &index).await;
    let name = shelf.name("team/app:v1");
    node.pull(&name).await.unwrap();
    let there = Shelf::start().await;
    let events = push(&node, &client(), &name, &there.name("team/app:v1")).await.unwrap();
    assert!(events.iter().any(|e| matches!(e, Event::Message(text) if text.contains("linux/amd64"))));
    let outcome = Node::new().pull(&there.name("team/app:v1")).await.unwrap();
    assert_eq!(outcome.target.digest, images[0].digest);

    let request = PushRequest {
        source: name.clone(),
        destination: there.name("team/app:v2"),
        platforms: vec!["linux/arm64".parse().unwrap()],
        ..PushRequest::default()
    };
    let error = node.images.push(&node.scope, &client(), &request, &|_| {}).await.unwrap_err();
    assert!(error.to_string().contains("linux/arm64"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_is_missing_is_named_and_nothing_is_sent() {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &[vec![Entry::file("a", "b")]]);
    shelf.push(&made, "team/app:v1", &image).await;
    node.pull(&shelf.name("team/app:v1")).await.unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(made.bytes(&image.digest)).unwrap();
    let layer = manifest["layers"][0]["digest"].as_str().unwrap().parse().unwrap();
    node.store().content(&node.scope).forget(&layer).unwrap();
    let there = Shelf::start().await;
    let error = push(&node, &client(), &shelf.name("team/app:v1"), &there.name("team/app:v1")).await.unwrap_err();
    let Error::Incomplete { missing, .. } = &error else { panic!("{error}") };
    assert_eq!(missing[0].digest, layer);
    let error = Node::new().pull(&there.name("team/app:v1")).await.unwrap_err();
    assert_eq!(error.kind(), orlop_image::ErrorKind::NotFound, "{error}");
}
