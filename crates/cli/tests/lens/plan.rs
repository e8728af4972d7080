//! Removal from a foreign containerd: what the plan says goes, goes, and the file system gets back what it says.

use std::collections::BTreeSet;
use std::path::Path;

use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::disk::Disk;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use orlop_testkit::tier;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::common::{Done, binary};
use crate::node::{Node, generations, image};

const NAMESPACES: [&str; 2] = ["k8s.io", "default"];

/// A containerd on a file system that nobody else writes to.
struct Alone {
    // Unmounted last.
    containerd: Containerd,
    disk: Disk,
    archives: tempfile::TempDir,
}

impl Alone {
    fn start(programs: &Programs) -> Option<Self> {
        let disk = Disk::new(1024)?;
        let options = Options { root: Some(disk.path().join("root")), ..Options::default() };
        let containerd = Containerd::start(programs, &options);
        Some(Self { containerd, disk, archives: tempfile::tempdir().unwrap() })
    }

    fn orlop(&self, namespace: &str, args: &[&str]) -> Done {
        let mut command = binary();
        command.arg("--address").arg(self.containerd.socket()).args(["-n", namespace]).args(args);
        Done::of(&command.output().expect("orlop starts"))
    }

    fn import(&self, namespace: &str, name: &str, content: &Content) {
        let file = self.archives.path().join("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
        self.containerd.import(namespace, &file, "overlayfs").ok();
    }

    /// Everything that takes space, in all namespaces; and what of it is only there once.
    fn items(&self) -> BTreeSet<String> {
        let mut items = BTreeSet::new();
        for namespace in NAMESPACES {
            let blobs = self.containerd.ctr(namespace, &["content", "ls", "-q"]).ok().stdout;
            items.extend(blobs.lines().map(str::to_owned));
            let snapshots = self.containerd.ctr(namespace, &["snapshots", "ls"]).ok().stdout;
            let keys = snapshots.lines().skip(1).filter_map(|line| line.split_whitespace().next());
            items.extend(keys.map(|key| format!("{namespace} {key}")));
        }
        items
    }

    fn collect(&self) {
        self.containerd.ctr("k8s.io", &["leases", "create", "--id", "gone"]).ok();
        self.containerd.ctr("k8s.io", &["leases", "rm", "--sync", "gone"]).ok();
    }
}

fn free(path: &Path) -> u64 {
    let directory = std::fs::File::open(path).unwrap();
    rustix::fs::syncfs(&directory).unwrap();
    let found = rustix::fs::fstatvfs(&directory).unwrap();
    found.f_bfree * found.f_frsize
}

/// A layer of some kinds of files; the same number gives the same layer.
fn layer(number: u64) -> Layer {
    let mut random = StdRng::seed_from_u64(number);
    let mut entries = vec![Entry::dir(format!("d{number}"))];
    for n in 0..random.random_range(1..30) {
        let bytes = random.random_range(0..60_000usize);
        let text: Vec<u8> = (0..bytes).map(|_| random.random_range(0..64u8)).collect();
        entries.push(Entry::file(format!("d{number}/f{n}"), text));
        if random.random_bool(0.2) {
            entries.push(Entry::hardlink(format!("d{number}/l{n}"), format!("d{number}/f{n}")));
        }
        if random.random_bool(0.2) {
            entries.push(Entry::symlink(format!("d{number}/s{n}"), "f0"));
        }
    }
    Layer::new(entries).packed(Compression::Gzip)
}

fn random_image(random: &mut StdRng) -> Content {
    let mut image = Image::host();
    for _ in 0..random.random_range(1..5) {
        image = image.layer(layer(random.random_range(0..12)));
    }
    Content::image(&image.layer(Layer::noise("own", random.random(), random.random_range(1..3_000_000))))
}

#[test]
fn what_random_plans_say_goes_and_is_given_back() {
    let stores: u64 = tier::amount("ORLOP_TEST_STORES", 4);
    for programs in generations("what_random_plans_say_goes_and_is_given_back") {
        let Some(node) = Alone::start(&programs) else { return };
        let mut names: BTreeSet<(usize, String)> = BTreeSet::new();
        for seed in 0..stores {
            let mut random = StdRng::seed_from_u64(seed);
            for n in 0..random.random_range(1..4) {
                let (at, name) = (random.random_range(0..2), format!("r.example/i{seed}:{n}"));
                node.import(NAMESPACES[at], &name, &random_image(&mut random));
                if random.random_bool(0.3) {
                    let other = format!("r.example/again{seed}:{n}");
                    node.containerd.ctr(NAMESPACES[at], &["images", "tag", &name, &other]).ok();
                    names.insert((at, other));
                }
                names.insert((at, name));
            }
            let at = random.random_range(0..2);
            let mut going: Vec<String> = names.iter().filter(|(n, _)| *n == at).map(|(_, name)| name.clone()).collect();
            going.retain(|_| random.random_bool(0.6));
            if !going.is_empty() {
                names.retain(|(n, name)| *n != at || !going.contains(name));
                removed_as_planned(&node, NAMESPACES[at], &going, &format!("{} store {seed}", programs.version()));
            }
        }
    }
}

/// Plans a removal, executes exactly that plan, and compares.
fn removed_as_planned(node: &Alone, namespace: &str, names: &[String], case: &str) {
    // What is garbage already would go in between.
    node.collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let before = node.items();
    let planned = node.orlop(namespace, &[&["rm", "--plan", "-o", "json"], &names[..]].concat());
    assert_eq!(planned.code, 0, "{case}: {}", planned.err);
    let plan: Value = serde_json::from_str(&planned.out).unwrap();
    let free_before = free(&node.disk.path());
    let hash = plan["plan"].as_str().unwrap();
    let done = node.orlop(namespace, &[&["rm", "--execute", hash], &names[..]].concat());
    assert_eq!(done.code, 0, "{case}: {}", done.err);
    let freed = free(&node.disk.path()).saturating_sub(free_before);
    let after = node.items();
    let gone: BTreeSet<String> = before.difference(&after).cloned().collect();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut said: BTreeSet<String> = plan["blobs"].as_array().unwrap().iter().map(|b| text(&b["digest"])).collect();
    said.extend(plan["snapshots"].as_array().unwrap().iter().map(|s| format!("{namespace} {}", text(&s["chainId"]))));
    assert_eq!(gone, said, "{case}");
    assert!(after.is_subset(&before), "{case}");
    let planned = plan["freedNow"].as_u64().unwrap();
    let off = freed.abs_diff(planned);
    eprintln!("{case}: planned {planned}, given back {freed}");
    assert!(off <= (planned / 100).max(1 << 20), "{case}: planned {planned}, given back {freed}");
}

#[test]
fn a_plan_is_refused_once_the_state_has_moved_and_nothing_goes() {
    for programs in generations("a_plan_is_refused_once_the_state_has_moved_and_nothing_goes") {
        let Some(node) = Node::start(&programs) else { return };
        let tag = node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        let plan = node.json(&["rm", "--plan", &tag]);
        assert_eq!(plan["records"].as_array().unwrap().len(), 3, "the hash references go with the last name");
        assert!(plan["freedNow"].as_u64().unwrap() > 200_000);
        let other = node.name("calico/cni:kept");
        node.containerd.ctr("k8s.io", &["images", "tag", &tag, &other]).ok();
        let before = node.records();
        let refused = node.run(&["rm", "--execute", plan["plan"].as_str().unwrap(), &tag]);
        assert_eq!(refused.code, 4, "{}", refused.err);
        assert!(refused.err.contains("the plan has changed"), "{}", refused.err);
        assert_eq!(node.records(), before);
        // The new plan: the other name keeps everything.
        let plan = node.json(&["rm", "--plan", &tag]);
        assert_eq!((plan["records"].as_array().unwrap().len(), plan["freedNow"].as_u64()), (1, Some(0)));
        node.ok(&["rm", "--execute", plan["plan"].as_str().unwrap(), &tag]);
        assert!(!node.records().contains(&tag) && node.records().contains(&other));
        node.ok(&["rm", &other]);
        assert_eq!(node.records(), [""; 0]);
        assert_eq!(node.containerd.ctr("k8s.io", &["content", "ls", "-q"]).ok().stdout, "");
    }
}

#[test]
fn disk_usage_agrees_with_what_the_file_system_has_allocated() {
    for programs in generations("disk_usage_agrees_with_what_the_file_system_has_allocated") {
        let Some(node) = Alone::start(&programs) else { return };
        let mut random = StdRng::seed_from_u64(7);
        for n in 0..6 {
            node.import(NAMESPACES[n % 2], &format!("r.example/i:{n}"), &random_image(&mut random));
        }
        node.containerd.ctr("k8s.io", &["images", "rm", "r.example/i:0"]).ok();
        // containerd collects when it likes: what it would take between both looks goes before, and all is written out.
        node.collect();
        free(&node.disk.path());
        let done = node.orlop("k8s.io", &["df", "-o", "json"]);
        assert_eq!(done.code, 0, "{}", done.err);
        let usage: Value = serde_json::from_str(&done.out).unwrap();
        let number = |field: &str| usage[field].as_u64().unwrap_or_else(|| panic!("{field}: {usage:#}"));
        let parts = number("content") + number("snapshots") + number("ingests") + number("metadata");
        assert_eq!(number("total"), parts);
        assert_eq!(usage["measured"], true);
        let root = node.disk.path().join("root");
        let taken = du(&root);
        let off = taken.abs_diff(number("total"));
        assert!(off <= (taken / 100).max(1 << 20), "{}: df {}, du {taken}", programs.version(), number("total"));
        assert!(number("snapshots") > 0 && usage["images"].as_array().unwrap().len() == 5);
        let layers = node.orlop("k8s.io", &["df", "--by", "layer", "-o", "json"]);
        let layers: Value = serde_json::from_str(&layers.out).unwrap();
        let shared = layers["layers"].as_array().unwrap().iter().filter(|l| l["images"].as_array().unwrap().len() > 1);
        assert!(shared.count() > 0, "{layers:#}");
        let parts = node.orlop("k8s.io", &["df", "--by", "namespace", "-o", "json"]);
        let parts: Value = serde_json::from_str(&parts.out).unwrap();
        assert_eq!(parts["parts"].as_array().unwrap().len(), 2, "{parts:#}");
    }
}

/// What `du` says that a directory takes.
fn du(directory: &Path) -> u64 {
    let out = std::process::Command::new("du").args(["-s", "--block-size=1"]).arg(directory).output().unwrap();
    String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
}
