//! What goes wrong among nodes: liars, networks that fall apart, and everybody at once.

use orlop_testkit::process::output;
use orlop_testkit::tier;

use super::{Network, Node, Origin, ends_well, exact, image, until};

/// A node whose disk gives other bytes than it took: every node is sound all the same, and asks it no more.
#[test]
fn a_lying_node_costs_one_more_try_and_is_left_alone() {
    let Some(mut network) = Network::new() else { return };
    let origin = Origin::start(network.address(1));
    let content = image(30, 1 << 20);
    let name = origin.has("app", &content);
    let liar = Node::start(&mut network, None, "");
    liar.pull(&name);
    liar.announces(content.push_order().len() as u64);
    for layer in content.layers() {
        let file = liar.served.root().join("content/blobs/sha256").join(layer.hex());
        let bytes = std::fs::read(&file).expect("the blob is a file");
        std::fs::remove_file(&file).expect("it can be replaced");
        std::fs::write(&file, vec![7; bytes.len()]).expect("written");
    }
    let count = tier::amount("ORLOP_TEST_PEERS", 4);
    let nodes: Vec<Node> = (1..count).map(|_| Node::start(&mut network, Some(&liar), "")).collect();
    nodes.iter().for_each(|node| node.meets(count - 1));
    // One after the other: the first finds out, and has then what the others are given.
    for node in &nodes {
        node.pull(&name);
        node.is_sound();
    }
    let peers = nodes[0].json(&["peers"]);
    let id = liar.json(&["peers"])["id"].clone();
    let known = peers["peers"].as_array().unwrap().iter().find(|peer| peer["id"] == id).expect("it is known");
    assert!(known["lies"].as_u64().unwrap() >= 1, "{peers}");
    assert!(known["excludedSeconds"].as_f64().unwrap_or(0.0) > 0.0, "{peers}");
    let (gave, most) = (origin.gave(), content.size() * count as u64);
    eprintln!("{count} nodes, one of them a liar: the registry gave {gave} bytes of an image of {}", content.size());
    assert!(gave < most, "{gave} bytes: nobody but the registry gave anything");
}

/// Two halves that do not hear each other go on by themselves; when they do again, each is given what only the other has.
#[test]
fn a_network_that_falls_apart_and_together_again_is_one_fleet() {
    let Some(mut network) = Network::new() else { return };
    let origin = Origin::start(network.address(1));
    let first = Node::start(&mut network, None, "");
    let mut nodes = vec![first];
    for _ in 1..4 {
        let node = Node::start(&mut network, nodes.first(), "");
        nodes.push(node);
    }
    nodes.iter().for_each(|node| node.meets(3));
    let halves = [[0, 1], [2, 3]];
    let pairs = || halves[0].into_iter().flat_map(|a| halves[1].map(|b| [nodes[a].number, nodes[b].number]));
    pairs().for_each(|pair| network.part(pair, true));
    // Each half has an image of its own, and one node of each gets it from the other. Nobody waits for the other half.
    let images = [image(31, 300_000), image(32, 300_000)];
    let names = [origin.has("left", &images[0]), origin.has("right", &images[1])];
    for ((half, name), content) in halves.into_iter().zip(&names).zip(&images) {
        nodes[half[0]].pull(name);
        nodes[half[0]].announces(content.push_order().len() as u64);
        nodes[half[1]].pull(name);
        nodes[half[1]].is_sound();
    }
    until("the halves have lost each other", || nodes.iter().all(|node| node.connected() == 1));
    pairs().for_each(|pair| network.part(pair, false));
    for (repository, content) in ["left", "right"].into_iter().zip(&images) {
        content.layers().iter().for_each(|layer| origin.registry.forget(repository, layer));
    }
    for ((half, name), content) in [halves[1], halves[0]].into_iter().zip(&names).zip(&images) {
        let before = nodes[half[0]].received();
        until("the other half gives again", || {
            nodes[half[0]].pulls(&exact(name, content)).wait_with_output().expect("it ends").status.success()
        });
        nodes[half[0]].is_sound();
        assert!(nodes[half[0]].received() - before >= 900_000);
    }
}

/// Everybody at the same moment, and nobody first.
#[test]
fn all_nodes_may_begin_at_once() {
    let Some(mut network) = Network::new() else { return };
    let origin = Origin::start(network.address(1));
    let content = image(33, 4 << 20);
    let name = origin.has("app", &content);
    let mut nodes = vec![Node::start(&mut network, None, "")];
    for _ in 1..tier::amount("ORLOP_TEST_PEERS", 4) {
        let node = Node::start(&mut network, nodes.first(), "");
        nodes.push(node);
    }
    nodes.iter().for_each(|node| node.meets(nodes.len() - 1));
    let pulls: Vec<_> = nodes.iter().map(|node| (node.pulls(&name), node)).collect();
    for (pull, node) in pulls {
        ends_well(pull, &node.served);
    }
    let (gave, size) = (origin.gave(), content.size());
    let copies = gave as f64 / size as f64;
    eprintln!(
        "{} nodes at once: the registry gave {gave} bytes of an image of {size}: {copies:.2} copies",
        nodes.len()
    );
    for node in &nodes {
        node.is_sound();
        output(&mut node.command(&["explain", "pull", &name])).ok();
    }
    assert!(copies < nodes.len() as f64 + 0.2, "{copies} copies");
}
