//! Daemons in network namespaces of their own, on links of 200 Mbit/s, with a registry that counts what it gives.
//!
//! Needs root, `ip` and `tc` (iproute2), and a kernel with veth, bridges and tbf; elsewhere the tests say that they skip.

mod finding;
mod harm;
mod spegel;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::process::{Output, need, need_root, output};
use orlop_testkit::served::Served;
use orlop_testkit::tier;
use serde_json::Value;

use crate::common::binary;

/// How long something that must happen may take.
const PATIENCE: Duration = Duration::from_secs(90);

/// A bridge on this machine, and nodes' namespaces on it; all goes when it is dropped.
struct Network {
    bridge: String,
    octets: (u8, u8),
    ipv6: bool,
    namespaces: Vec<String>,
}

#[track_caller]
fn ip(args: &[&str]) -> Output {
    output(Command::new("ip").args(args))
}

impl Network {
    /// `None`, with a word on standard error, where there can be none.
    fn new() -> Option<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        if !need_root() || need("ip", "iproute2").is_none() || need("tc", "iproute2").is_none() {
            return None;
        }
        let start = std::process::id() as usize * 7 + COUNT.fetch_add(1, Ordering::Relaxed);
        // The range for benchmarks of networks (RFC 2544), which no machine has. A bridge is called as its part of it is, so that
        // whoever makes it has that to himself.
        let claim = |number: usize| {
            let octets = (18 + (number / 256 % 2) as u8, (number % 256) as u8);
            let bridge = format!("ob{}x{}", octets.0, octets.1);
            (ip(&["link", "add", &bridge, "type", "bridge"]), bridge, octets)
        };
        let mut claims = (start..start + 512).map(claim);
        let claimed = claims.find(|(done, ..)| done.status.success() || !done.stderr.contains("exists"));
        let Some((_, bridge, octets)) = claimed.filter(|(done, ..)| done.status.success()) else {
            eprintln!("skipped: no bridge can be made here");
            return None;
        };
        let network = Self { bridge, octets, ipv6: false, namespaces: Vec::new() };
        ip(&["addr", "add", &format!("{}/24", network.address(1)), "dev", &network.bridge]).ok();
        ip(&["link", "set", &network.bridge, "up"]).ok();
        Some(network)
    }

    fn address(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, self.octets.0, self.octets.1, host)
    }

    /// An address for local use (RFC 4193), which a node has after [`Network::speak_ipv6`].
    fn address6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd0b, 0, self.octets.0.into(), self.octets.1.into(), 0, 0, 0, host.into())
    }

    /// Gives the bridge and the nodes to come IPv6 addresses too; `false`, with a word on standard error, if there is no IPv6 here.
    fn speak_ipv6(&mut self) -> bool {
        let address = format!("{}/64", self.address6(1));
        self.ipv6 = ip(&["addr", "add", &address, "dev", &self.bridge, "nodad"]).status.success();
        if !self.ipv6 {
            eprintln!("skipped: no IPv6 here");
        }
        self.ipv6
    }

    /// One more namespace with an address and a shaped link; returns its number.
    fn add(&mut self) -> u8 {
        let number = u8::try_from(self.namespaces.len()).unwrap() + 10;
        let (space, outer) = (format!("{}n{number}", self.bridge), self.link(number));
        let inner = self.inner(number);
        self.namespaces.push(space.clone());
        // Whoever was killed may have left them; who has the bridge has these names to himself.
        ip(&["netns", "del", &space]);
        ip(&["link", "del", &outer]);
        ip(&["netns", "add", &space]).ok();
        ip(&["link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &space]).ok();
        ip(&["link", "set", &outer, "master", &self.bridge, "up"]).ok();
        let address = format!("{}/24", self.address(number));
        ip(&["-n", &space, "addr", "add", &address, "dev", &inner]).ok();
        if self.ipv6 {
            let address = format!("{}/64", self.address6(number));
            ip(&["-n", &space, "addr", "add", &address, "dev", &inner, "nodad"]).ok();
        }
        ip(&["-n", &space, "link", "set", &inner, "up"]).ok();
        ip(&["-n", &space, "link", "set", "lo", "up"]).ok();
        let shape = ["root", "tbf", "rate", "200mbit", "burst", "256k", "latency", "100ms"];
        output(Command::new("tc").args(["qdisc", "add", "dev", &outer]).args(shape)).ok();
        output(Command::new("tc").args(["-n", &space, "qdisc", "add", "dev", &inner]).args(shape)).ok();
        number
    }

    /// This end of a node's link.
    fn link(&self, number: u8) -> String {
        format!("{}o{number}", &self.bridge[..self.bridge.len().min(10)])
    }

    /// A node's end of its link.
    fn inner(&self, number: u8) -> String {
        format!("{}i{number}", &self.bridge[..self.bridge.len().min(10)])
    }

    /// Lets nothing through between two nodes, without a word to either, or everything again.
    fn part(&self, nodes: [u8; 2], apart: bool) {
        for [from, to] in [nodes, [nodes[1], nodes[0]]] {
            let (space, to) = (&self.namespaces[usize::from(from) - 10], self.address(to).to_string());
            let inner = self.inner(from);
            if apart {
                // Packets go to a card that nobody has.
                let nowhere = ["lladdr", "02:00:00:00:00:fe", "nud", "permanent", "dev", &inner];
                ip(&[&["-n", space, "neigh", "replace", &to][..], &nowhere].concat()).ok();
            } else {
                ip(&["-n", space, "neigh", "del", &to, "dev", &inner]).ok();
            }
        }
    }

    /// Cuts a node off, or lets it back.
    fn cut(&self, number: u8, off: bool) {
        ip(&["link", "set", &self.link(number), if off { "down" } else { "up" }]).ok();
    }

    /// A command that runs in a node's namespace, where `resolv`, if it is there, says who knows names.
    fn within(&self, number: u8, resolv: Option<&Path>) -> Command {
        let mut command = binary();
        let program = command.get_program().to_owned();
        let environment: Vec<_> = command.get_envs().map(|(k, v)| (k.to_owned(), v.map(ToOwned::to_owned))).collect();
        let space = &self.namespaces[usize::from(number) - 10];
        command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{space}")).stdin(std::process::Stdio::null());
        if let Some(file) = resolv {
            let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
            command.args(["unshare", "--mount", "sh", "-c", script]).arg(file);
        }
        command.arg(program);
        for (name, value) in environment {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for (number, space) in (10..).zip(&self.namespaces) {
            // A namespace goes when nothing is in it any more, and its link with it: later than the name that another may want.
            ip(&["link", "del", &self.link(number)]);
            ip(&["netns", "del", space]);
        }
        ip(&["link", "del", &self.bridge]);
    }
}

/// A registry at an address of the bridge, which counts what it gives.
struct Origin {
    registry: Arc<Liar>,
    address: SocketAddr,
    given: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

impl Origin {
    fn start(at: impl Into<IpAddr>) -> Self {
        let listener = TcpListener::bind((at.into(), 0)).expect("the bridge has its address");
        let address = listener.local_addr().expect("bound");
        let registry = Arc::new(Liar::start());
        let (given, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (target, count, taken) = (registry.host(), given.clone(), connections.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                taken.fetch_add(1, Ordering::Relaxed);
                let Ok(server) = TcpStream::connect(&target) else { return };
                let (from, to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || pass(from, to, &AtomicU64::new(0)));
                let count = count.clone();
                std::thread::spawn(move || pass(server, client, &count));
            }
        });
        Self { registry, address, given, connections }
    }

    fn has(&self, name: &str, content: &Content) -> String {
        self.registry.put(name, "1", content);
        format!("{}/{name}:1", self.address)
    }

    fn gave(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }
}

/// Hands bytes on until either end closes.
fn pass(mut from: TcpStream, mut to: TcpStream, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(some @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..some]).is_err() {
            break;
        }
        count.fetch_add(some as u64, Ordering::Relaxed);
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

/// A daemon in its namespace.
struct Node {
    number: u8,
    served: Served,
    _dir: tempfile::TempDir,
}

impl Node {
    fn start(network: &mut Network, first: Option<&Self>, more: &str) -> Self {
        let bootstrap =
            first.map(|first| format!("{:?}", network.address(first.number).to_string())).unwrap_or_default();
        Self::start_with(network, &format!("bootstrap = [{bootstrap}]\n{more}"), None)
    }

    /// With these lines in `[peers]`, and this `/etc/resolv.conf`.
    fn start_with(network: &mut Network, peers: &str, resolv: Option<&Path>) -> Self {
        let number = network.add();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let config = dir.path().join("config.toml");
        std::fs::write(&config, format!("[peers]\nenabled = true\n{peers}")).expect("the configuration is written");
        let mut command = network.within(number, resolv);
        command.arg("--config").arg(&config);
        let served = Served::start(command, &dir.path().join("root"), &[]);
        Self { number, served, _dir: dir }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = binary();
        command.arg("--address").arg(self.served.socket()).args(args);
        command
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        let done = output(self.command(args).args(["-o", "json"])).ok();
        serde_json::from_str(&done.stdout).expect("JSON")
    }

    /// Pulls in the background.
    fn pulls(&self, reference: &str) -> std::process::Child {
        let mut command = self.command(&["pull", "--plain-http", "--no-unpack", reference]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command.spawn().expect("orlop starts")
    }

    #[track_caller]
    fn pull(&self, reference: &str) {
        ends_well(self.pulls(reference), &self.served);
    }

    #[track_caller]
    fn meets(&self, count: usize) {
        until("peers meet", || self.connected() >= count);
    }

    fn connected(&self) -> usize {
        self.json(&["peers"])["peers"].as_array().unwrap().iter().filter(|p| p["connected"] == true).count()
    }

    #[track_caller]
    fn announces(&self, count: u64) {
        until("digests are announced", || self.json(&["peers"])["announced"].as_u64().unwrap() >= count);
    }

    fn received(&self) -> u64 {
        self.json(&["peers"])["received"].as_u64().unwrap()
    }

    #[track_caller]
    fn is_sound(&self) {
        output(&mut self.command(&["check", "--deep"])).ok();
    }
}

#[track_caller]
fn ends_well(child: std::process::Child, served: &Served) {
    let done = child.wait_with_output().expect("it ends");
    assert!(done.status.success(), "{}\n{}", String::from_utf8_lossy(&done.stderr), served.log());
}

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn image(seed: u64, bytes: usize) -> Content {
    let layer = |at: u64| Layer::noise(&format!("file-{at}"), seed * 10 + at, bytes);
    Content::image(&Image::host().layer(layer(0)).layer(layer(1)).layer(layer(2)))
}

/// `HOST/NAME@DIGEST`.
fn exact(name: &str, content: &Content) -> String {
    format!("{}@{}", name.rsplit_once(':').expect("a tag").0, content.root.digest)
}

#[test]
fn a_fleet_fetches_an_image_once_and_goes_on_without_seed_and_registry() {
    let Some(mut network) = Network::new() else { return };
    let origin = Origin::start(network.address(1));
    let content = image(1, 4 << 20);
    let name = origin.has("team/app", &content);
    let size = content.size();
    let mut nodes = vec![Node::start(&mut network, None, "")];
    for _ in 1..tier::amount("ORLOP_TEST_PEERS", 4) {
        let node = Node::start(&mut network, nodes.first(), "");
        nodes.push(node);
    }
    for node in &nodes {
        node.meets(nodes.len() - 1);
    }
    nodes[0].pull(&name);
    nodes[0].announces(content.push_order().len() as u64);
    let pulls: Vec<_> = nodes[1..].iter().map(|node| (node.pulls(&name), node)).collect();
    for (pull, node) in pulls {
        ends_well(pull, &node.served);
    }
    let (given, most) = (origin.gave(), size + size / 5);
    eprintln!("{} nodes: the registry gave {given} bytes of an image of {size}", nodes.len());
    assert!(given <= most, "the registry gave {given} bytes of an image of {size} to {} nodes", nodes.len());
    for node in &nodes[1..] {
        node.is_sound();
        assert!(node.received() >= size * 9 / 10, "{}", node.received());
    }
    says_who_gave(&nodes[1], &name, &content);
    without_seed_and_registry(network, nodes, origin, &name, &content);
}

/// What `orlop peers` and `orlop explain pull` say.
fn says_who_gave(node: &Node, name: &str, content: &Content) {
    let peers = node.json(&["peers"]);
    assert_eq!(peers["schema"], "orlop.peers/v1");
    assert!(peers["fromRegistries"].as_u64().unwrap() < content.size() / 5, "{peers}");
    let table = output(&mut node.command(&["peers"])).ok().stdout;
    assert!(table.contains("connected") && table.contains("taken from peers"), "{table}");
    let told = node.json(&["explain", "pull", name]);
    assert_eq!(told["schema"], "orlop.explain.pull/v1");
    for layer in content.layers() {
        let blob = told["blobs"].as_array().unwrap().iter().find(|blob| blob["digest"] == layer.as_str());
        let asked = &blob.unwrap_or_else(|| panic!("{layer} is not in {told}"))["asked"];
        let gave =
            asked.as_array().unwrap().iter().any(|asking| asking["source"] == "peer" && asking["said"] == "gave it");
        assert!(gave, "{asked}");
    }
    let table = output(&mut node.command(&["explain", "pull", name])).ok().stdout;
    assert!(table.contains("gave it"), "{table}");
}

fn without_seed_and_registry(
    mut network: Network,
    mut nodes: Vec<Node>,
    origin: Origin,
    name: &str,
    content: &Content,
) {
    // The seed is cut off, and one that joins late is given by the others, the registry being gone too.
    network.cut(nodes[0].number, true);
    let before = origin.gave();
    origin.registry.forget("team/app", &content.layers()[0]);
    let late = Node::start(&mut network, Some(&nodes[1]), "");
    late.meets(1);
    late.pull(&exact(name, content));
    late.is_sound();
    let more = origin.gave() - before;
    assert!(more < content.size() / 10, "{more} bytes more came from the registry");
    // The seed is back, and pulls something that only others have.
    let other = image(2, 1 << 20);
    let name = origin.has("team/other", &other);
    late.pull(&name);
    late.announces((content.push_order().len() + other.push_order().len()) as u64);
    network.cut(nodes[0].number, false);
    nodes[0].meets(1);
    let given = origin.gave();
    until("the seed hears of what came meanwhile", || {
        let seed = &nodes[0];
        seed.pull(&name);
        let had = seed.received() >= other.size() * 9 / 10;
        if !had {
            output(&mut seed.command(&["rm", "--no-trash", &name])).ok();
        }
        had
    });
    assert!(origin.connections.load(Ordering::Relaxed) > 0 && given > 0);
    nodes.clear();
}

#[test]
fn a_seed_that_is_killed_in_the_middle_costs_nobody_the_image() {
    let Some(mut network) = Network::new() else { return };
    let origin = Origin::start(network.address(1));
    let content = image(3, 4 << 20);
    let name = origin.has("app", &content);
    let mut seed = Node::start(&mut network, None, "upload_bytes_per_second = 3000000\n");
    let nodes = [Node::start(&mut network, Some(&seed), ""), Node::start(&mut network, Some(&seed), "")];
    nodes.iter().for_each(|node| node.meets(2));
    seed.pull(&name);
    seed.announces(content.push_order().len() as u64);
    let pulls = nodes.each_ref().map(|node| node.pulls(&name));
    until("blobs are under way", || nodes.iter().all(|node| node.received() > 1 << 20));
    let pid = rustix::process::Pid::from_raw(i32::try_from(seed.served.process().id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    for (pull, node) in pulls.into_iter().zip(&nodes) {
        ends_well(pull, &node.served);
        node.is_sound();
    }
}

#[test]
fn a_node_that_cannot_take_part_says_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let serve = |text: &str| {
        let config: PathBuf = dir.path().join("config.toml");
        std::fs::write(&config, text).expect("written");
        let (root, socket) = (dir.path().join("root"), dir.path().join("s"));
        let mut command = binary();
        command.arg("--config").arg(config).arg("serve").arg("--root").arg(root).arg("--socket").arg(socket);
        output(&mut command)
    };
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    let refused =
        serve(&format!("[peers]\nenabled = true\nlisten = '127.0.0.1:1'\nserve = '127.0.0.1:{port}'\n")).code(1);
    assert!(refused.stderr.contains(&format!("listen for peers on 127.0.0.1:{port}")), "{}", refused.stderr);
    let refused = serve("[peers]\nenabled = true\nshared_key_file = '/nonexistent'\n");
    assert!(!refused.status.success() && refused.stderr.contains("/nonexistent"), "{}", refused.stderr);
    let refused = serve("[peers]\nenabld = true\n").code(2);
    assert!(refused.stderr.contains("unknown key peers.enabld"), "{}", refused.stderr);
}
