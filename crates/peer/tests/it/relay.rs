//! Blobs that are given on while they come.

use std::time::Duration;

use orlop_image::Source;
use orlop_oci::Digest;
use orlop_peer::Settings;
use orlop_peer::schedule::Rules;
use orlop_testkit::image::Content;
use reqwest::StatusCode;

use crate::common::{Fleet, Node, Origin, image, until};

/// Peers are waited for however slow this machine is: what is asked here is who gives, and not when.
fn patient() -> Rules {
    let long = Duration::from_secs(30);
    Rules {
        budget: long,
        busy_wait: long * 2,
        settle: long,
        stall: long,
        relay_stall: long,
        slow: 0,
        ..Rules::default()
    }
}

fn with(fleet: &Fleet, rules: Rules) -> Settings {
    Settings { rules, ..fleet.settings() }
}

/// So many nodes that know each other.
async fn nodes(fleet: &Fleet, count: usize) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    for _ in 0..count {
        let node = Node::start(with(fleet, patient()), nodes.first()).await;
        nodes.push(node);
    }
    for node in &nodes {
        node.meets(count - 1).await;
    }
    nodes
}

fn sources(node: &Node, digest: &Digest) -> Vec<Source> {
    node.gave(digest).into_iter().map(|(source, _)| source).collect()
}

fn layer_bytes(content: &Content) -> u64 {
    content.layers().iter().map(|layer| content.bytes(layer).len() as u64).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn eight_nodes_that_begin_at_once_take_one_copy() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(30, 3, 2_000_000);
    let name = origin.has("app", &content);
    let nodes = nodes(&fleet, 8).await;
    origin.proxy.limit(3_000_000);
    for pulled in futures::future::join_all(nodes.iter().map(|node| node.pull(&name))).await {
        pulled.unwrap();
    }
    let copies = origin.gave() as f64 / layer_bytes(&content) as f64;
    eprintln!("eight nodes at once: {copies:.2} copies from the registry");
    for node in &nodes {
        node.is_sound().await;
    }
    for layer in content.layers() {
        let from_registry = nodes.iter().filter(|node| sources(node, &layer).contains(&Source::Registry)).count();
        let seen: Vec<_> = nodes.iter().map(|node| node.gave(&layer)).collect();
        assert_eq!(from_registry, 1, "{seen:?}");
    }
    assert!(copies < 1.2, "{copies}");
    let relayed: u64 = nodes.iter().map(|node| node.report().relayed).sum();
    assert!(relayed >= 3, "{relayed}: what was coming was given on");
}

/// A node that fetches a layer from the registry, slowly, and has more than `bytes` of it.
async fn fetching(
    node: &std::sync::Arc<Node>,
    name: &str,
    origin: &Origin,
    bytes: u64,
) -> tokio::task::JoinHandle<orlop_image::Result<orlop_image::Outcome>> {
    let (own, name, before) = (std::sync::Arc::clone(node), name.to_owned(), origin.gave());
    let pulling = tokio::spawn(async move { own.pull(&name).await });
    until("the layer is under way", || origin.gave() > before + bytes).await;
    pulling
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_asked_the_registry_goes_on_with_a_peer_that_is_ahead() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(31, 1, 4_000_000);
    let name = origin.has("app", &content);
    let first = std::sync::Arc::new(Node::start(with(&fleet, patient()), None).await);
    // It waits for nobody.
    let hasty = Rules { budget: Duration::from_micros(1), busy_wait: Duration::ZERO, ..patient() };
    let hasty = Rules { ahead_after: Duration::from_millis(50), ..hasty };
    let second = Node::start(with(&fleet, hasty), Some(&first)).await;
    second.meets(1).await;
    origin.proxy.limit(1_000_000);
    let pulling = fetching(&first, &name, &origin, 1_000_000).await;
    second.pull(&name).await.unwrap();
    pulling.await.unwrap().unwrap();
    second.is_sound().await;
    let layer = content.layers().remove(0);
    assert_eq!(sources(&first, &layer), [Source::Registry]);
    assert_eq!(sources(&second, &layer), [Source::Registry, Source::Neighbour], "{:?}", second.gave(&layer));
    assert_eq!(second.gave(&layer)[0].1, "was left for a peer that is ahead");
    assert_eq!((second.report().moved, first.report().relayed), (1, 1));
    let copies = origin.gave() as f64 / layer_bytes(&content) as f64;
    assert!(copies < 1.6, "{copies}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_source_that_dies_is_left_for_the_registry_from_there_on() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(32, 1, 4_000_000);
    let name = origin.has("app", &content);
    let first = std::sync::Arc::new(Node::start(with(&fleet, patient()), None).await);
    let second = Node::start(with(&fleet, patient()), Some(&first)).await;
    second.meets(1).await;
    origin.proxy.limit(1_000_000);
    let pulling = fetching(&first, &name, &origin, 1_000_000).await;
    let killing = async {
        until("it is given on", || second.report().received > 1_500_000).await;
        pulling.abort();
        drop(pulling.await);
        origin.proxy.limit(0);
    };
    let (pulled, ()) = tokio::join!(second.pull(&name), killing);
    pulled.unwrap();
    second.is_sound().await;
    let layer = content.layers().remove(0);
    assert_eq!(sources(&second, &layer), [Source::Neighbour, Source::Registry], "{:?}", second.gave(&layer));
    assert_eq!(second.report().disproved, 0);
    // Its own pull goes on where it was cut.
    first.pull(&name).await.unwrap();
    first.is_sound().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_expects_all_of_a_blob_is_given_it_as_it_comes_and_who_has_more_is_given_nothing() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(33, 1, 4_000_000);
    let name = origin.has("app", &content);
    let node = std::sync::Arc::new(Node::start(with(&fleet, patient()), None).await);
    origin.proxy.limit(1_000_000);
    let pulling = fetching(&node, &name, &origin, 1_000_000).await;
    let layer = content.layers().remove(0);
    let bytes = content.bytes(&layer).to_vec();
    let url = format!("http://{}/v2/app/blobs/{layer}?ns=example.com", node.settings.serve);
    let client = reqwest::Client::new();
    // As Spegel asks.
    let whole = client.get(&url).header("x-spegel-mirrored", "true").send().await.unwrap();
    assert_eq!((whole.status(), whole.content_length()), (StatusCode::OK, Some(bytes.len() as u64)));
    let had: u64 = whole.headers()["x-orlop-has"].to_str().unwrap().parse().unwrap();
    assert!(had > 0 && had < bytes.len() as u64, "{had}");
    // One that gives it on, and has nearly all of it: what it would get it might have given itself.
    let ahead =
        client.get(&url).header("x-orlop-coming", "give").header("range", "bytes=3999999-").send().await.unwrap();
    assert_eq!(
        (ahead.status(), &ahead.headers()["x-orlop-coming"]),
        (StatusCode::NOT_FOUND, &"behind".parse().unwrap())
    );
    // As many as may give it on are given it; more are told of those.
    let mut held = Vec::new();
    for _ in 0..node.settings.rules.fan_out {
        let taken = client.get(&url).header("x-orlop-coming", "give").send().await.unwrap();
        assert_eq!(taken.status(), StatusCode::OK);
        held.push(taken);
    }
    let full = client.get(&url).header("x-orlop-coming", "give").send().await.unwrap();
    assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(full.headers()["x-orlop-try"].to_str().unwrap().contains("127."), "{:?}", full.headers());
    drop(held);
    assert_eq!(whole.bytes().await.unwrap(), bytes);
    pulling.await.unwrap().unwrap();
    // From then on it is a blob like any other.
    let later = client.get(&url).header("x-orlop-coming", "give").send().await.unwrap();
    assert!(!later.headers().contains_key("x-orlop-has"));
    assert_eq!(later.bytes().await.unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_liar_gave_is_given_on_to_nobody_to_its_end_and_only_the_liar_is_excluded() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(34, 1, 4_000_000);
    let name = origin.has("app", &content);
    let slow = Settings { uploads: 1, upload_rate: 1_000_000, ..with(&fleet, patient()) };
    let liar = Node::start(slow, None).await;
    liar.pull(&name).await.unwrap();
    liar.announces(&content).await;
    let layer = content.layers().remove(0);
    let (file, length) = (liar.blob(&layer), content.bytes(&layer).len());
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, vec![7; length]).unwrap();
    let first = std::sync::Arc::new(Node::start(with(&fleet, patient()), Some(&liar)).await);
    first.meets(1).await;
    let second = Node::start(with(&fleet, patient()), Some(&first)).await;
    second.meets(2).await;
    let own = std::sync::Arc::clone(&first);
    let reference = name.clone();
    let pulling = tokio::spawn(async move { own.pull(&reference).await });
    until("the liar gives", || first.report().received > 500_000).await;
    // The liar gives to one at a time, so that the second node has it from the first.
    let url = format!("http://{}/v2/app/blobs/{layer}", first.settings.serve);
    let spegel = tokio::spawn(async move {
        let mut response = reqwest::get(&url).await.unwrap();
        let mut got = 0;
        let broken = loop {
            match response.chunk().await {
                Ok(Some(piece)) => got += piece.len(),
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        (got, broken)
    });
    second.pull(&name).await.unwrap();
    pulling.await.unwrap().unwrap();
    let (got, is_broken) = spegel.await.unwrap();
    assert!(is_broken && got < length, "{got} of {length} bytes, which are wrong");
    for node in [&*first, &second] {
        node.is_sound().await;
    }
    assert_eq!(sources(&first, &layer), [Source::Neighbour, Source::Registry]);
    // Whether it began before the lie was found decides where it has the right bytes from: the registry, or the first node.
    assert_eq!(sources(&second, &layer).first(), Some(&Source::Neighbour), "{:?}", second.gave(&layer));
    let of = |node: &Node, other: &Node| node.report().neighbours.into_iter().find(|n| n.id == other.id()).unwrap();
    let known = of(&first, &liar);
    assert_eq!(known.lies, 1);
    assert!(known.excluded_for.unwrap() > Duration::from_secs(3000));
    let known = of(&second, &first);
    assert_eq!(known.lies, 0);
    assert!(known.excluded_for.is_none_or(|rest| rest < Duration::from_secs(60)), "{known:?}");
}
