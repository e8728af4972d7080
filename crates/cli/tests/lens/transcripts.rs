//! What README.md and the documents show is what is printed: on the node that they tell of, made anew, but for digests, sizes,
//! times and where lines are broken.

use std::path::Path;

use orlop_oci::Compression;
use orlop_testkit::image::{Content, Image, Layer};

use crate::common::Done;
use crate::node::{Node, generations};

const POD: [&str; 3] = [
    "io.kubernetes.pod.namespace=kube-system",
    "io.kubernetes.pod.name=calico-node-7xk2p",
    "io.kubernetes.container.name=install-cni",
];

/// An image for two platforms, as those of the documents are.
fn several(own: &str, base: &[&str]) -> Content {
    let of = |platform: Image, mark: &str| {
        let layers = base.iter().chain([&own]).map(|name| {
            let seed = name.bytes().chain(mark.bytes()).map(u64::from).sum();
            Layer::noise(name, seed, 100_000).packed(Compression::Gzip)
        });
        Content::image(&layers.fold(platform, Image::layer))
    };
    Content::index(&[of(Image::host(), ""), of(Image::new("linux/s390x"), "s390x")])
}

/// The node of the documents.
fn node(node: &Node) {
    let base = ["base", "libraries"];
    node.pull("calico/cni:v3.25.1", &several("cni", &base));
    node.pull("calico/node:v3.25.1", &several("node", &base));
    node.pull("coredns/coredns:1.10.1", &several("coredns", &[]));
    node.pull("pause:3.8", &several("pause", &[]));
}

/// A word without what differs from node to node.
fn bare(word: &str) -> String {
    let (before, rest) = word.split_at(word.find(|c: char| c.is_ascii_alphanumeric()).unwrap_or(word.len()));
    let end = rest
        .rfind(|c: char| c.is_ascii_alphanumeric() || c == '…')
        .map_or(0, |at| at + rest[at..].chars().next().map_or(0, char::len_utf8));
    let (core, after) = rest.split_at(end);
    let is_id = core.len() == 12 && core.bytes().all(|b| b.is_ascii_hexdigit());
    let is_time = core.ends_with('Z') && core.contains('T') && core.starts_with("20");
    let core = match core.split_once("sha256:") {
        Some((name, _)) => format!("{name}DIGEST"),
        None if is_id => "ID".to_owned(),
        None if is_time => "TIME".to_owned(),
        None => core.to_owned(),
    };
    format!("{before}{core}{after}")
}

/// A text as words without what differs from node to node; lines matter only as words do.
fn bared(text: &str, host: &str) -> Vec<String> {
    let text = text.replace(host, "docker.io").replace("registry.k8s.io", "docker.io");
    let mut words: Vec<String> = Vec::new();
    let mut after_address = false;
    for word in text.split_whitespace() {
        let is_unit = matches!(word.trim_end_matches([',', ':']), "B" | "KiB" | "MiB");
        let is_size = is_unit && words.last().is_some_and(|last| last.trim_start_matches('(').parse::<f64>().is_ok());
        if std::mem::replace(&mut after_address, word == "--address") {
            words.push("SOCKET".to_owned());
        } else if is_size {
            let open = if words.pop().is_some_and(|number| number.starts_with('(')) { "(" } else { "" };
            let after = &word[word.trim_end_matches([',', ':']).len()..];
            words.push(format!("{open}SIZE{after}"));
        } else {
            words.push(bare(word));
        }
    }
    words
}

/// What a document shows of a command, in the parts that it did not leave out, by how the command begins.
fn shown(document: &str, command: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(document);
    let text = std::fs::read_to_string(&path).unwrap();
    let start = format!("\n$ {command}");
    let at = text.find(&start).unwrap_or_else(|| panic!("{document} shows no {command}")) + start.len();
    let lines = text[at..].lines().skip(1).take_while(|line| !line.starts_with("```") && !line.starts_with("$ "));
    // Which store is used is said on standard error.
    let lines: Vec<&str> = lines.filter(|line| !line.starts_with("using ")).collect();
    lines.split(|line| line.trim() == "…").map(|part| part.join("\n")).filter(|part| !part.trim().is_empty()).collect()
}

#[track_caller]
fn same(node: &Node, document: &str, command: &str, done: &Done) {
    let found = bared(&done.out, &node.registry.host().to_string());
    let mut from = 0;
    for part in shown(document, command) {
        let part = bared(&part, "docker.io");
        let at = (from..=found.len().saturating_sub(part.len())).find(|at| found[*at..].starts_with(&part));
        let at = at.unwrap_or_else(|| {
            panic!("{document}: `{command}` prints\n{}\n{found:?}\nand the document shows\n{part:?}", done.out)
        });
        from = at + part.len();
    }
}

#[test]
fn what_the_documents_show_is_what_is_printed() {
    for programs in generations("what_the_documents_show_is_what_is_printed") {
        let Some(shown) = Node::start(&programs) else { return };
        node(&shown);
        let cni = shown.name("calico/cni:v3.25.1");
        let tree = shown.json(&["tree", &cni]);
        let manifests = tree["images"][0]["targets"][0]["manifests"].as_array().unwrap();
        let here = manifests.iter().find(|manifest| manifest["here"] == true).unwrap();
        let (id, top) = (here["config"]["digest"].as_str().unwrap(), here["layers"][2]["chainId"].as_str().unwrap());
        let compare = |document: &str, command: &str, args: &[&str]| same(&shown, document, command, &shown.run(args));
        compare("README.md", "orlop images", &["images"]);
        compare("README.md", "orlop explain sha256:", &["explain", id]);
        compare("docs/lens.md", "orlop images", &["images"]);
        let container = format!("184ec36ee03d{}", "0".repeat(52));
        let labels = POD.iter().flat_map(|label| ["--label", label]);
        let create: Vec<&str> = ["containers", "create"].into_iter().chain(labels).chain([&*cni, &container]).collect();
        shown.containerd.ctr("k8s.io", &create).ok();
        compare("docs/lens.md", "orlop explain calico/cni", &["explain", &cni]);
        compare("docs/lens.md", "orlop why sha256:", &["why", top]);
        compare("docs/lens.md", "orlop rm --plan calico/cni", &["rm", "--plan", &cni]);
        let coredns = shown.name("coredns/coredns:1.10.1");
        shown.containerd.ctr("k8s.io", &["images", "rm", "--sync", &coredns]).ok();
        let by_digest = shown.records().into_iter().find(|name| name.contains("coredns@")).unwrap();
        compare("docs/lens.md", "orlop df", &["df"]);
        compare("docs/lens.md", "orlop doctor", &["doctor"]);
        for document in ["docs/hash-references.md", "docs/hash-references.zh.md"] {
            compare(document, "orlop doctor", &["doctor"]);
            compare(document, "orlop rm --plan", &["rm", "--plan", &by_digest]);
        }
    }
}
