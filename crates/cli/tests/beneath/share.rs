//! kubelet's image service is Orlop, its runtime a containerd: what is pulled here is started there, and both know the same images.

use std::collections::BTreeMap;
use std::process::Stdio;

use orlop_testkit::archive;
use orlop_testkit::containerd::Programs;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::process::output;
use orlop_testkit::proxy::Fault;
use orlop_testkit::tar::Entry;
use rustix::process::Signal;
use serde_json::Value;

use crate::stack::{By, Of, Stack, crictl, generations, image, text};

/// Orlop's configuration beside a containerd whose snapshotter is this one.
fn share(of: Of) -> String {
    let snapshotter = if of == Of::Snapshotter || of == Of::Both { "orlop-overlay" } else { "overlayfs" };
    format!("[containerd]\nsocket = \"STORE/containerd\"\nsnapshotter = \"{snapshotter}\"\n")
}

fn start(programs: &Programs, of: Of) -> Option<Stack> {
    Stack::start_with(programs, of, By::Cri, &image()?, &share(of))
}

/// What each of both has of containerd's parts.
const PARTS: [Of; 4] = [Of::Snapshotter, Of::Both, Of::Content, Of::Nothing];

impl Stack {
    /// Names and targets of Orlop's records.
    fn ours(&self) -> BTreeMap<String, String> {
        let socket = self.served.socket();
        let listed = self.store.json(["--address", text(&socket), "images", "--all"]);
        let row = |record: &Value| {
            Some((record["name"].as_str()?.to_owned(), record["target"]["digest"].as_str()?.to_owned()))
        };
        listed["records"].as_array().expect("records").iter().filter_map(row).collect()
    }

    /// The same of containerd's.
    fn theirs(&self) -> BTreeMap<String, String> {
        let listed = self.ctr(&["images", "ls"]).ok().stdout;
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            let digest = words.find(|word| word.starts_with("sha256:") && word.len() == 71)?;
            Some((name, digest.to_owned()))
        };
        listed.lines().skip(1).filter_map(row).collect()
    }

    /// Waits until both have the same records, so many.
    #[track_caller]
    fn agree_on(&self, number: usize) {
        let mut last = (BTreeMap::new(), BTreeMap::new());
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            last.0.clone_from(&self.ours());
            last.1.clone_from(&self.theirs());
            if last.0 == last.1 && last.0.len() == number {
                return;
            }
            assert!(std::time::Instant::now() < deadline, "{last:#?}\n{}", self.served.log());
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }

    /// What kubelet is told of images.
    fn kubelets(&self) -> Value {
        let listed = output(&mut self.through(&["images", "-o", "json"])).ok().stdout;
        serde_json::from_str::<Value>(&listed).expect("JSON")["images"].clone()
    }

    /// Starts a pod and a container in it through Orlop's socket, and has it say something; `None` where this machine runs none.
    pub(crate) fn container(&self, name: &str, words: &str) -> Option<(String, String)> {
        let id = self.id(name);
        let pod = self.store.path("pod.json");
        let container = self.store.path("container.json");
        // The host's network needs no plugin.
        let config = serde_json::json!({
            "metadata": {"name": id, "namespace": "test", "uid": id, "attempt": 1},
            "linux": {"security_context": {"namespace_options": {"network": 2}}},
        });
        std::fs::write(&pod, config.to_string()).unwrap();
        let config = serde_json::json!({
            "metadata": {"name": name},
            "image": {"image": self.name()},
            "command": ["/bin/sh", "-c", "sleep 1000"],
            "linux": {},
        });
        std::fs::write(&container, config.to_string()).unwrap();
        let ran = output(&mut self.through(&["runp", text(&pod)]));
        if !ran.status.success() && !self.runs_without_orlop() {
            eprintln!("skipped: this machine runs no pods: {}", ran.stderr.trim());
            return None;
        }
        let ran = ran.ok().stdout.trim().to_owned();
        let made = output(&mut self.through(&["create", &ran, text(&container), text(&pod)])).ok().stdout;
        let made = made.trim().to_owned();
        output(&mut self.through(&["start", &made])).ok();
        let said = output(&mut self.through(&["exec", "--sync", &made, "/bin/sh", "-c", words])).ok().stdout;
        Some((ran, said.trim().to_owned()))
    }

    pub(crate) fn end(&self, pod: &str) {
        output(&mut self.through(&["rmp", "--force", pod])).ok();
    }
}

/// An image whose start keeps a pod.
pub(crate) fn pause() -> Option<Content> {
    let shell = std::fs::read(orlop_testkit::process::need("busybox", "busybox-static")?).ok()?;
    let base = [
        Entry::dir("bin"),
        Entry::file("bin/busybox", shell).mode(0o755),
        Entry::symlink("bin/sh", "busybox"),
        Entry::symlink("bin/sleep", "busybox"),
        Entry::symlink("bin/cat", "busybox"),
        Entry::dir("etc"),
        Entry::file("etc/kept", "kept"),
    ];
    let image = Image::host()
        .layer(Layer::new(base))
        .layer(Layer::new([Entry::file("etc/new", "new")]))
        .config("Cmd", serde_json::json!(["/bin/sh", "-c", "sleep 100000"]));
    Some(Content::image(&image))
}

#[test]
fn what_is_pulled_through_orlop_is_started_by_containerd_and_removed_on_both_sides() {
    for programs in generations() {
        for of in PARTS {
            let Some(content) = pause() else { return };
            let Some(stack) = Stack::start_with(&programs, of, By::Cri, &content, &share(of)) else { return };
            let what = format!("{} with {of:?} of Orlop", programs.version());
            let name = stack.name();
            let before = stack.on_disk();
            output(&mut stack.through(&["pull", &name])).ok();
            assert_eq!(stack.ours(), stack.theirs(), "{what}");
            assert_eq!(stack.ours().len(), 3, "{what}: {:?}", stack.ours());
            assert_eq!(stack.fallbacks(), [""; 0], "{what}");
            let theirs = output(&mut crictl(&stack.containerd.socket(), &["images", "-o", "json"])).ok().stdout;
            let theirs: Value = serde_json::from_str(&theirs).unwrap();
            assert_eq!(stack.kubelets(), theirs["images"], "{what}");
            let id = content.image_id().unwrap().to_string();
            assert_eq!(stack.kubelets()[0]["id"], id.as_str(), "{what}");
            // Layers are where they are needed, and once.
            let layers: Vec<String> = content.layers().iter().map(ToString::to_string).collect();
            let there = stack.ctr(&["content", "ls", "-q"]).ok().stdout;
            let has_layers = layers.iter().all(|layer| there.contains(layer));
            assert_eq!(has_layers, of != Of::Snapshotter, "{what}: {there}");
            let own = stack.containerd.root().join("io.containerd.content.v1.content/blobs/sha256");
            assert_eq!(own.exists(), matches!(of, Of::Snapshotter | Of::Nothing), "{what}");
            let leases = stack.ctr(&["leases", "ls", "-q"]).ok().stdout;
            assert!(!leases.contains("orlop-"), "{what}: {leases}");

            // containerd's collection takes nothing of it.
            stack.collect();
            if let Some((pod, said)) = stack.container("one", "cat /etc/kept /etc/new") {
                assert_eq!(said, "keptnew", "{what}");
                let usage = output(&mut stack.through(&["imagefsinfo", "-o", "json"])).ok().stdout;
                let usage: Value = serde_json::from_str(&usage).unwrap();
                let root = usage["status"]["imageFilesystems"][0]["fsId"]["mountpoint"].as_str().unwrap().to_owned();
                assert!(std::path::Path::new(&root).is_dir(), "{what}: {usage}");
                stack.end(&pod);
            }
            output(&mut stack.through(&["rmi", &name])).ok();
            assert_eq!((stack.ours(), stack.theirs()), Default::default(), "{what}");
            stack.collect();
            stack.is_emptied();
            assert!(before.len() <= 1, "{before:?}");
            stack.agree_on(0);
            stack.store.is_sound();
        }
    }
}

#[test]
fn an_image_that_a_container_uses_goes_on_when_it_is_removed() {
    for programs in generations() {
        let Some(content) = pause() else { return };
        let of = Of::Both;
        let Some(stack) = Stack::start_with(&programs, of, By::Cri, &content, &share(of)) else { return };
        let name = stack.name();
        output(&mut stack.through(&["pull", &name])).ok();
        let Some((pod, _)) = stack.container("one", "true") else { return };
        output(&mut stack.through(&["rmi", &name])).ok();
        let socket = stack.served.socket();
        stack.store.run(["--address", text(&socket), "gc", "--trash"]);
        let listed = output(&mut stack.through(&["ps", "-q"])).ok().stdout;
        let id = listed.trim();
        let said = output(&mut stack.through(&["exec", "--sync", id, "/bin/sh", "-c", "cat /etc/kept /etc/new"])).ok();
        assert_eq!(said.stdout.trim(), "keptnew", "{}", programs.version());
        stack.end(&pod);
        stack.collect();
        stack.is_emptied();
    }
}

#[test]
fn what_either_side_does_to_its_records_the_other_follows() {
    for programs in generations() {
        let Some(stack) = start(&programs, Of::Snapshotter) else { return };
        let version = programs.version();
        let name = stack.name();
        let other = Content::image(&Image::host().layer(Layer::new([Entry::file("other", "other")])));
        let file = stack.store.path("other.tar");
        std::fs::write(&file, archive::oci_archive(&[("docker.io/library/other:1", &other)])).unwrap();

        // What somebody else brings to containerd, kubelet sees.
        stack.ctr(&["images", "import", "--snapshotter", "orlop-overlay", text(&file)]);
        if !stack.theirs().contains_key("docker.io/library/other:1") {
            stack.ctr(&["images", "import", "--local", "--snapshotter", "orlop-overlay", text(&file)]).ok();
        }
        stack.until(&mut stack.through(&["images"]), "docker.io/library/other");
        let id = other.image_id().unwrap().to_string();
        output(&mut stack.through(&["rmi", &id])).ok();
        assert_eq!(stack.theirs(), BTreeMap::new(), "{version}");

        // What comes into Orlop by another way, containerd is given.
        let socket = stack.served.socket();
        let own = |args: &[&str]| stack.store.ok([&["--address", text(&socket)], args].concat());
        own(&["import", text(&file)]);
        stack.until(&mut crictl(&stack.containerd.socket(), &["images"]), "docker.io/library/other");
        stack.agree_on(3);

        // A tag here is a tag there.
        output(&mut stack.through(&["pull", &name])).ok();
        let tag = format!("{}/app:2", stack.proxy.host());
        let socket = stack.served.socket();
        let own = |args: &[&str]| stack.store.ok([&["--address", text(&socket)], args].concat());
        own(&["tag", &name, &tag]);
        stack.until(&mut crictl(&stack.containerd.socket(), &["inspecti", &tag]), "app:2");
        stack.agree_on(7);

        // What is removed there goes here; a hash reference whose image has a name comes back on both sides.
        stack.ctr(&["images", "rm", &tag]).ok();
        stack.agree_on(6);
        stack.ctr(&["images", "rm", &id]).ok();
        stack.until(&mut crictl(&stack.containerd.socket(), &["images", "--no-trunc"]), &id);
        stack.agree_on(6);
        assert!(stack.theirs().contains_key(&id), "{version}");
        stack.store.is_sound();
    }
}

#[test]
fn a_containerd_that_is_away_is_told_and_given_everything_when_it_is_back() {
    for programs in generations() {
        let Some(mut stack) = start(&programs, Of::Snapshotter) else { return };
        let name = stack.name();
        stack.containerd.stop(Signal::KILL);
        let refused = output(&mut stack.through(&["pull", &name]));
        let says = format!("{}{}", refused.stdout, refused.stderr);
        assert!(!refused.status.success() && says.contains("does not answer"), "{says}");
        stack.containerd.restart_after_stop();
        stack.agree_on(3);
        stack.until(&mut stack.through(&["images"]), "app");
        stack.store.is_sound();
    }
}

#[test]
fn whoever_is_killed_in_a_pull_or_after_it_both_know_the_same_images() {
    for programs in generations() {
        for of in [Of::Snapshotter, Of::Nothing] {
            let Some(mut stack) = start(&programs, of) else { return };
            let name = stack.name();
            for victim in ["Orlop", "containerd"] {
                let what = format!("{} with {of:?} of Orlop, {victim} killed", programs.version());
                let before = stack.proxy.counts().faults;
                stack.proxy.set_default(Fault::StallAfter(1_200_000));
                stack.proxy.cut_all();
                let mut pull = stack.through(&["pull", &name]);
                let mut pull = pull.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
                let proxy = &stack.proxy;
                stack.served.process().wait_for(|_| (proxy.counts().faults > before).then_some(()));
                stack.kill(victim);
                stack.proxy.set_default(Fault::None);
                stack.proxy.cut_all();
                let done = pull.wait().unwrap();
                assert!(victim == "containerd" || !done.success(), "{what}: whoever pulls is told");
                stack.until(&mut stack.through(&["pull", &name]), "");
                stack.agree_on(3);
                stack.kill(victim);
                stack.agree_on(3);
                stack.until(&mut stack.through(&["inspecti", &name]), "app:1");
                stack.until(&mut stack.through(&["rmi", &name]), "");
                stack.agree_on(0);
                stack.end_leases();
                stack.collect();
                stack.has_nothing();
            }
            stack.store.is_sound();
        }
    }
}

impl Stack {
    /// Kills one of both and starts it again.
    fn kill(&mut self, victim: &str) {
        if victim == "containerd" {
            self.containerd.restart(Signal::KILL);
            return;
        }
        self.served = {
            self.served.process().kill();
            self.again()
        };
    }
}
