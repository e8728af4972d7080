//! How nodes find the first peer: by a name that a real server of names knows, by mDNS; and IPv6.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use orlop_testkit::process::{Daemon, need};
use rustix::process::Signal;

use super::{Network, Node, Origin, exact, image, until};

/// dnsmasq on the bridge, and what names it knows.
struct Names {
    server: Daemon,
    dir: tempfile::TempDir,
}

impl Names {
    /// `None`, with a word on standard error, where there is no dnsmasq.
    fn start(network: &Network) -> Option<Self> {
        let program = need("dnsmasq", "dnsmasq-base")?;
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (at, hosts) = (network.address(1), dir.path().join("hosts"));
        std::fs::write(&hosts, "").expect("written");
        std::fs::write(dir.path().join("resolv.conf"), format!("nameserver {at}\n")).expect("written");
        let mut command = Command::new(program);
        command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--bind-interfaces", "--user=root"]);
        command.args(["--conf-file=/dev/null", "--log-facility=-", "--local=/test/", "--pid-file="]);
        command.arg(format!("--listen-address={at}")).arg(format!("--addn-hosts={}", hosts.display()));
        let mut server = Daemon::start(&mut command, &dir.path().join("log")).expect("dnsmasq starts");
        server.wait_for(|server| server.log().contains("started").then_some(()));
        Some(Self { server, dir })
    }

    fn resolv(&self) -> PathBuf {
        self.dir.path().join("resolv.conf")
    }

    /// From now on `peers.test` has these addresses.
    fn know(&self, addresses: &[IpAddr]) {
        let lines: String = addresses.iter().map(|address| format!("{address} peers.test\n")).collect();
        std::fs::write(self.dir.path().join("hosts"), lines).expect("written");
        self.server.signal(Signal::HUP);
    }
}

/// Whether what one node has pulled comes to another from it.
#[track_caller]
fn give_each_other(origin: &Origin, nodes: &[Node], seed: u64) {
    let content = image(seed, 300_000);
    let name = origin.has(&format!("app{seed}"), &content);
    nodes[0].pull(&name);
    nodes[0].announces(content.push_order().len() as u64);
    for layer in content.layers() {
        origin.registry.forget(&format!("app{seed}"), &layer);
    }
    for node in &nodes[1..] {
        node.pull(&exact(&name, &content));
        node.is_sound();
        assert!(node.received() >= 900_000, "{}", node.json(&["peers"]));
    }
}

/// As a headless service of Kubernetes: the name has nobody yet, then somebody who is gone, then the nodes.
#[test]
fn a_name_that_has_every_node_is_all_that_a_fleet_needs_to_know() {
    let Some(mut network) = Network::new() else { return };
    let Some(names) = Names::start(&network) else { return };
    let origin = Origin::start(network.address(1));
    let config = "bootstrap = [\"dns:peers.test\"]\n";
    let nodes: Vec<Node> = (0..4).map(|_| Node::start_with(&mut network, config, Some(&names.resolv()))).collect();
    until("the name is asked for", || nodes.iter().all(|node| node.served.log().contains("no first peers")));
    for node in &nodes {
        assert_eq!(node.json(&["peers"])["peers"].as_array().unwrap().len(), 0);
    }
    // The first address of a name is that of a node that is gone; the nodes know each other by the next two.
    let gone = network.address(3);
    let mut addresses = vec![IpAddr::from(gone)];
    addresses.extend(nodes.iter().map(|node| IpAddr::from(network.address(node.number))));
    names.know(&addresses);
    nodes.iter().for_each(|node| node.meets(3));
    give_each_other(&origin, &nodes, 20);
}

#[test]
fn nodes_of_a_network_find_each_other_by_mdns() {
    let Some(mut network) = Network::new() else { return };
    let origin = Origin::start(network.address(1));
    let nodes: Vec<Node> = (0..3).map(|_| Node::start_with(&mut network, "mdns = true\n", None)).collect();
    nodes.iter().for_each(|node| node.meets(2));
    give_each_other(&origin, &nodes, 21);
}

/// Nodes that have nothing but IPv6 to do with each other, and a registry there; one is found by its name.
#[test]
fn a_fleet_may_speak_ipv6_alone() {
    let Some(mut network) = Network::new() else { return };
    if !network.speak_ipv6() {
        return;
    }
    let Some(names) = Names::start(&network) else { return };
    let origin = Origin::start(network.address6(1));
    let listen = "listen = \"[::]:5001\"\nserve = \"[::]:5000\"\n";
    let first = Node::start_with(&mut network, listen, None);
    let at = network.address6(first.number);
    names.know(&[at.into()]);
    let by_address = Node::start_with(&mut network, &format!("{listen}bootstrap = [\"{at}\"]\n"), None);
    let by_name =
        Node::start_with(&mut network, &format!("{listen}bootstrap = [\"dns:peers.test\"]\n"), Some(&names.resolv()));
    let nodes = [first, by_address, by_name];
    nodes.iter().for_each(|node| node.meets(2));
    give_each_other(&origin, &nodes, 22);
}

/// `[::]` means both families, as it does for every other server: nodes that have one each find the one that has both.
#[test]
fn a_node_that_listens_everywhere_is_found_by_both_families() {
    let Some(mut network) = Network::new() else { return };
    if !network.speak_ipv6() {
        return;
    }
    let origin = Origin::start(network.address(1));
    let both = Node::start_with(&mut network, "listen = \"[::]:5001\"\nserve = \"[::]:5000\"\n", None);
    let number = both.number;
    let four = format!("bootstrap = [\"{}\"]\n", network.address(number));
    let four = Node::start_with(&mut network, &four, None);
    let own = network.address6(number + 2);
    let six = format!(
        "listen = \"[{own}]:5001\"\nserve = \"[{own}]:5000\"\nbootstrap = [\"{}\"]\n",
        network.address6(number)
    );
    let six = Node::start_with(&mut network, &six, None);
    let nodes = [both, four, six];
    nodes[1..].iter().for_each(|node| node.meets(1));
    give_each_other(&origin, &nodes, 23);
}
