//! A real Spegel and Orlop, which give each other what they have.
//!
//! Spegel is no part of this repository and of nothing that it installs: `ORLOP_TEST_SPEGEL` names a binary.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::process::Daemon;

use super::{Network, Node, Origin, image, until};

/// Spegel itself, between this machine's containerd and the network: whatever binary `ORLOP_TEST_SPEGEL` names.
struct Spegel {
    // Ended before its containerd.
    daemon: Daemon,
    containerd: Containerd,
    address: Ipv4Addr,
    _dir: tempfile::TempDir,
}

impl Spegel {
    fn start(program: &Path, containerd: Containerd, network: &mut Network, first: &Node) -> Self {
        let number = network.add();
        let (address, dir) = (network.address(number), tempfile::tempdir().expect("a temporary directory"));
        let space = &network.namespaces[usize::from(number) - 10];
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{space}")).arg(program).arg("registry");
        let content = containerd.root().join("io.containerd.content.v1.content");
        command.arg("--containerd-sock").arg(containerd.socket()).arg("--containerd-content-path").arg(content);
        command.args(["--router-addr", ":5001", "--registry-addr", ":5000", "--metrics-addr", ":9090"]);
        command.args(["--mirror-resolve-timeout", "10s", "--log-level", "DEBUG", "--bootstrap-kind", "static"]);
        let (at, id) =
            (network.address(first.number), first.json(&["peers"])["id"].as_str().expect("an ID").to_owned());
        command.arg("--static-bootstrap-peers").arg(format!("/ip4/{at}/tcp/5001/p2p/{id}"));
        command.arg("--data-dir").arg(dir.path());
        let daemon = Daemon::start(&mut command, &dir.path().join("log")).expect("Spegel starts");
        Self { daemon, containerd, address, _dir: dir }
    }
}

/// A blob by HTTP, as containerd asks its mirror.
fn mirrored(at: Ipv4Addr, path: &str) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect((at, 5000)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    answer.starts_with(b"HTTP/1.1 200").then(|| answer[body..].to_vec())
}

#[test]
fn spegel_and_orlop_give_each_other() {
    let Some(program) = std::env::var_os("ORLOP_TEST_SPEGEL").map(PathBuf::from) else {
        eprintln!("skipped: ORLOP_TEST_SPEGEL names no Spegel");
        return;
    };
    let Some(programs) = Programs::current().or_else(Programs::debian) else { return };
    let Some(mut network) = Network::new() else { return };
    let origin = Origin::start(network.address(1));
    let (ours, theirs) = (image(5, 300_000), image(6, 300_000));
    let (our_name, their_name) = (origin.has("team/ours", &ours), origin.has("team/theirs", &theirs));
    let node = Node::start(&mut network, None, "");
    node.pull(&our_name);
    let containerd = Containerd::start(&programs, &Options::default());
    // Fetched, not imported: Spegel announces what has labels that say where it is from.
    containerd.ctr("k8s.io", &["content", "fetch", "--plain-http", &their_name]).ok();
    let spegel = Spegel::start(&program, containerd, &mut network, &node);
    node.meets(1);
    // Spegel finds with Orlop what its own containerd has not.
    for layer in ours.layers() {
        let path = format!("/v2/team/ours/blobs/{layer}?ns={}", origin.address);
        let mut came = None;
        until("Spegel is given by Orlop", || {
            came = mirrored(spegel.address, &path);
            came.is_some()
        });
        assert!(came.as_deref() == Some(ours.bytes(&layer)), "{}", spegel.daemon.log());
    }
    // And Orlop with Spegel what the registry has lost.
    for layer in theirs.layers() {
        origin.registry.forget("team/theirs", &layer);
    }
    until("Orlop is given by Spegel", || node.pulls(&their_name).wait_with_output().expect("it ends").status.success());
    node.is_sound();
    let peers = node.json(&["peers"]);
    assert!(peers["received"].as_u64().unwrap() >= 900_000, "{peers}\n{}", spegel.daemon.log());
    assert!(!spegel.containerd.socket().as_os_str().is_empty());
}
