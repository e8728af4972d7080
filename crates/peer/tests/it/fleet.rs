//! What becomes of an image among nodes.

use std::time::Duration;

use orlop_image::Source;
use orlop_oci::Digest;
use orlop_peer::schedule::Rules;

use crate::common::{Fleet, Node, Origin, exact, image, until};

/// Every digest of an image, layers and documents.
fn digests(content: &orlop_testkit::image::Content) -> Vec<Digest> {
    content.push_order().into_iter().map(|(descriptor, _)| descriptor.digest).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_once_from_its_registry_and_from_there_on_from_peers() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(1, 3, 300_000);
    let name = origin.has("app", &content);
    let seed = Node::start(fleet.settings(), None).await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(Node::start(fleet.settings(), Some(&seed)).await);
    }
    for node in &nodes {
        node.meets(1).await;
    }
    seed.pull(&name).await.unwrap();
    seed.announces(&content).await;
    let first = origin.gave();
    assert!(first > 900_000);
    let pulls = nodes.iter().map(|node| node.pull(&name));
    for pulled in futures::future::join_all(pulls).await {
        pulled.unwrap();
    }
    // What a tag means the registry says; nothing else came from there.
    let more = origin.gave() - first;
    assert!(more < 100_000, "{more} bytes more came from the registry");
    for node in &nodes {
        node.is_sound().await;
        for layer in content.layers() {
            assert!(node.had_from_peers(&layer), "{:?}", node.gave(&layer));
        }
        assert!(node.report().received > 900_000);
    }
    let sent: u64 = nodes.iter().chain([&seed]).map(|node| node.report().sent).sum();
    assert!(sent > 3 * 900_000, "{sent}");
    let from_seed = nodes[0].report().neighbours.into_iter().any(|n| n.id == seed.id() && n.blobs > 0 && n.lies == 0);
    assert!(from_seed || nodes[0].report().neighbours.iter().any(|n| n.blobs > 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_liar_costs_one_more_try_and_is_not_asked_again() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(2, 2, 400_000);
    let name = origin.has("app", &content);
    let liar = Node::start(fleet.settings(), None).await;
    liar.pull(&name).await.unwrap();
    liar.announces(&content).await;
    // As long, and other bytes: what only a hash finds.
    let layer = content.layers().remove(0);
    let file = liar.blob(&layer);
    let bytes = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, vec![7; bytes.len()]).unwrap();
    let node = Node::start(fleet.settings(), Some(&liar)).await;
    node.meets(1).await;
    node.pull(&name).await.unwrap();
    node.is_sound().await;
    let sources: Vec<Source> = node.gave(&layer).into_iter().map(|(source, _)| source).collect();
    assert_eq!(sources, [Source::Neighbour, Source::Registry], "{:?}", node.gave(&layer));
    let report = node.report();
    let known = report.neighbours.iter().find(|n| n.id == liar.id()).unwrap();
    assert_eq!((known.lies, report.disproved), (1, 1));
    assert!(known.excluded_for.unwrap() > Duration::from_secs(3000));
    // Another image of it comes from the registry.
    let other = image(3, 1, 100_000);
    let name = origin.has("other", &other);
    liar.pull(&name).await.unwrap();
    node.pull(&name).await.unwrap();
    assert!(!node.had_from_peers(&other.layers()[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_registry_an_exact_name_is_pulled_from_peers_and_a_tag_is_not() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(4, 2, 200_000);
    let name = origin.has("app", &content);
    let seed = Node::start(fleet.settings(), None).await;
    seed.pull(&name).await.unwrap();
    seed.announces(&content).await;
    let late = Node::start(fleet.settings(), Some(&seed)).await;
    late.meets(1).await;
    drop(origin);
    let refused = late.pull(&name).await.unwrap_err().to_string();
    assert!(refused.contains("cannot connect"), "{refused}");
    let exact = exact(&name, &content);
    let pulled = late.pull(&exact).await.unwrap();
    assert!(pulled.names.contains(&exact), "{:?}", pulled.names);
    late.is_sound().await;
    for digest in digests(&content) {
        assert!(late.had_from_peers(&digest), "{digest}: {:?}", late.gave(&digest));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_that_goes_in_the_middle_of_a_blob_is_followed_by_the_registry() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(5, 1, 4_000_000);
    let name = origin.has("app", &content);
    let mut seed = Node::start(orlop_peer::Settings { upload_rate: 500_000, ..fleet.settings() }, None).await;
    seed.pull(&name).await.unwrap();
    seed.announces(&content).await;
    let before = origin.gave();
    let node = Node::start(fleet.settings(), Some(&seed)).await;
    node.meets(1).await;
    let killing = async {
        until("the layer is under way", || node.report().received > 600_000).await;
        seed.leave();
    };
    let (pulled, ()) = tokio::join!(node.pull(&name), killing);
    pulled.unwrap();
    node.is_sound().await;
    let layer = content.layers().remove(0);
    let sources: Vec<Source> = node.gave(&layer).into_iter().map(|(source, _)| source).collect();
    assert_eq!(sources, [Source::Neighbour, Source::Registry], "{:?}", node.gave(&layer));
    // The rest came from the registry, and not all again: it ignores ranges, so that this is by what was kept.
    assert!(origin.gave() > before);
    assert_eq!(node.report().disproved, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_gone_is_not_given_and_costs_no_pull() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(6, 2, 100_000);
    let name = origin.has("app", &content);
    let seed = Node::start(fleet.settings(), None).await;
    seed.pull(&name).await.unwrap();
    seed.announces(&content).await;
    let node = Node::start(fleet.settings(), Some(&seed)).await;
    node.meets(1).await;
    // Announced, and gone behind everybody's back: an announcement outlives a blob.
    for layer in content.layers() {
        std::fs::remove_file(seed.blob(&layer)).unwrap();
    }
    node.pull(&name).await.unwrap();
    for layer in content.layers() {
        assert!(!node.had_from_peers(&layer));
        let asked = node.images.ledger().of(std::slice::from_ref(&layer)).remove(0).asked;
        assert!(asked.iter().any(|asking| asking.said == "does not have it"), "{asked:?}");
    }
    let known = node.report().neighbours.into_iter().find(|n| n.id == seed.id()).unwrap();
    assert_eq!((known.failures, known.excluded_for), (0, None), "that it is gone is no fault");
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_another_key_or_no_certificate_stay_apart() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(7, 1, 100_000);
    let name = origin.has("app", &content);
    let keyed = |key| orlop_peer::Settings { shared_key: Some([key; 32]), ..fleet.settings() };
    let seed = Node::start(keyed(1), None).await;
    seed.pull(&name).await.unwrap();
    let friend = Node::start(keyed(1), Some(&seed)).await;
    let stranger = Node::start(keyed(2), Some(&seed)).await;
    let plain = Node::start(fleet.settings(), Some(&seed)).await;
    friend.meets(1).await;
    friend.pull(&name).await.unwrap();
    assert!(friend.had_from_peers(&content.layers()[0]));
    for other in [&stranger, &plain] {
        assert!(other.report().neighbours.iter().all(|n| !n.is_connected));
        other.pull(&name).await.unwrap();
        assert!(!other.had_from_peers(&content.layers()[0]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_delays_no_blob_for_more_than_the_budget_each() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let content = image(8, 1, 100_000);
    let name = origin.has("app", &content);
    let rules = Rules { budget: Duration::from_millis(300), ..Rules::default() };
    let mut seed = Node::start(fleet.settings(), None).await;
    seed.pull(&name).await.unwrap();
    seed.announces(&content).await;
    let node = Node::start(orlop_peer::Settings { rules, ..fleet.settings() }, Some(&seed)).await;
    node.meets(1).await;
    // Something takes connections there and never answers.
    let serve = seed.settings.serve;
    let settings = seed.settings.clone();
    seed.leave();
    let silent = loop {
        match tokio::net::TcpListener::bind(serve).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    // It still announces: the same node, whose blobs are served elsewhere.
    let other = std::net::SocketAddr::new(serve.ip(), serve.port() + 7);
    seed.settings = orlop_peer::Settings { serve: other, ..settings };
    seed.join().await;
    seed.meets(1).await;
    node.pull(&name).await.unwrap();
    drop(silent);
    let layer = content.layers().remove(0);
    assert!(!node.had_from_peers(&layer));
    let asked = node.images.ledger().of(std::slice::from_ref(&layer)).remove(0).asked;
    assert_eq!(asked.last().unwrap().source, Source::Registry, "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_is_given_too_and_what_is_withheld_is_not() {
    let (fleet, origin) = (Fleet::new(), Origin::start());
    let (open, secret) = (image(9, 1, 100_000), image(10, 1, 100_000));
    let (open_name, secret_name) = (origin.has("open", &open), origin.has("secret/app", &secret));
    let withheld = vec![format!("{}/secret/*", origin.proxy.host()).parse().unwrap()];
    let seed = Node::start(orlop_peer::Settings { withheld, ..fleet.settings() }, None).await;
    seed.pull(&secret_name).await.unwrap();
    let archive = orlop_testkit::archive::oci_archive(&[(open_name.as_str(), &open)]);
    let scope = orlop_metadata::Scope::new("k8s.io", "test");
    let request = orlop_image::ImportRequest { no_unpack: true, ..Default::default() };
    seed.images.import(&scope, &mut archive.as_slice(), &request, &|_| {}).await.unwrap();
    seed.announces(&open).await;
    let node = Node::start(fleet.settings(), Some(&seed)).await;
    node.meets(1).await;
    node.pull(&open_name).await.unwrap();
    assert!(node.had_from_peers(&open.layers()[0]), "{:?}", node.gave(&open.layers()[0]));
    node.pull(&secret_name).await.unwrap();
    assert!(!node.had_from_peers(&secret.layers()[0]));
    // Nor does it help to know the digest.
    let layer = &secret.layers()[0];
    let url = format!("http://{}/v2/secret/app/blobs/{layer}", seed.settings.serve);
    assert_eq!(reqwest::get(&url).await.unwrap().status(), 404);
}
