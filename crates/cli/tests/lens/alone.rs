//! A containerd on a file system of its own, so that what a plan says can be compared with what that gets back.

use std::collections::BTreeSet;
use std::path::Path;

use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::{Containerd, Options, Programs};
use orlop_testkit::disk::Disk;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::common::{Done, binary};

pub(crate) const NAMESPACES: [&str; 2] = ["k8s.io", "default"];

/// A containerd on a file system that nobody else writes to.
pub(crate) struct Alone {
    // Unmounted last.
    pub(crate) containerd: Containerd,
    pub(crate) disk: Disk,
    archives: tempfile::TempDir,
}

impl Alone {
    pub(crate) fn start(programs: &Programs) -> Option<Self> {
        let disk = Disk::new(1024)?;
        let options = Options { root: Some(disk.path().join("root")), ..Options::default() };
        let containerd = Containerd::start(programs, &options);
        Some(Self { containerd, disk, archives: tempfile::tempdir().unwrap() })
    }

    pub(crate) fn orlop(&self, namespace: &str, args: &[&str]) -> Done {
        let mut command = binary();
        command.arg("--address").arg(self.containerd.socket()).args(["-n", namespace]).args(args);
        Done::of(&command.output().expect("orlop starts"))
    }

    pub(crate) fn import(&self, namespace: &str, name: &str, content: &Content) {
        let file = self.archives.path().join("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
        self.containerd.import(namespace, &file, "overlayfs").ok();
    }

    /// Everything that takes space, in all namespaces; and what of it is only there once.
    pub(crate) fn items(&self) -> BTreeSet<String> {
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

    pub(crate) fn collect(&self) {
        self.containerd.ctr("k8s.io", &["leases", "create", "--id", "gone"]).ok();
        self.containerd.ctr("k8s.io", &["leases", "rm", "--sync", "gone"]).ok();
    }

    /// Has a command plan a removal, executes exactly that plan, and compares what goes and what the file system gets back.
    pub(crate) fn as_planned(&self, namespace: &str, command: &[&str], case: &str) -> Value {
        // What is garbage already would go in between.
        self.collect();
        let before = self.items();
        let run = |args: &[&str]| {
            let done = self.orlop(namespace, &[command, args, &["-o", "json"]].concat());
            assert_eq!(done.code, 0, "{case}: {}", done.err);
            serde_json::from_str::<Value>(&done.out).unwrap()
        };
        let plan = run(&["--plan"]);
        let free_before = free(&self.disk.path());
        let done = run(&["--execute", plan["plan"].as_str().unwrap()]);
        let freed = free(&self.disk.path()).saturating_sub(free_before);
        let after = self.items();
        let gone: BTreeSet<String> = before.difference(&after).cloned().collect();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut said: BTreeSet<String> = plan["blobs"].as_array().unwrap().iter().map(|b| text(&b["digest"])).collect();
        let snapshots = plan["snapshots"].as_array().unwrap();
        said.extend(snapshots.iter().map(|s| format!("{namespace} {}", text(&s["chainId"]))));
        assert_eq!(gone, said, "{case}");
        assert!(after.is_subset(&before), "{case}");
        let planned = plan["freedNow"].as_u64().unwrap();
        let slack = (planned / 100).max(1 << 20);
        eprintln!("{case}: planned {planned}, given back {freed}");
        assert!(freed.abs_diff(planned) <= slack, "{case}: planned {planned}, given back {freed}");
        // The outcome that the command itself tells; it does not wait until all is written out.
        assert!(plan.get("outcome").is_none(), "{case}: {plan:#}");
        assert_eq!(
            (&done["outcome"]["planned"], &done["outcome"]["differences"]),
            (&plan["freedNow"], &json!([])),
            "{case}"
        );
        let told = done["outcome"]["freed"].as_u64().unwrap();
        assert!(told.abs_diff(planned) <= slack, "{case}: planned {planned}, told {told}");
        plan
    }
}

pub(crate) fn free(path: &Path) -> u64 {
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

pub(crate) fn random_image(random: &mut StdRng) -> Content {
    let mut image = Image::host();
    for _ in 0..random.random_range(1..5) {
        image = image.layer(layer(random.random_range(0..12)));
    }
    Content::image(&image.layer(Layer::noise("own", random.random(), random.random_range(1..3_000_000))))
}
