//! Each class of fault, injected by real means into a real containerd: found, and nothing else; mended by the doctor's own
//! plan or the command that it prints; and everything that lives is there after.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;

use orlop_oci::{Digest, ImageConfig, chain_ids};
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use serde_json::Value;

use crate::node::{Node, generations, image};
use crate::ward::{K8S, Ward, own_layer};

fn strings(values: &Value, field: &str) -> BTreeSet<String> {
    values.as_array().unwrap().iter().map(|value| value[field].as_str().unwrap().to_owned()).collect()
}

/// Runs a test on each containerd that is installed.
fn each(test: &str, run: impl Fn(Ward)) {
    for programs in generations(test) {
        let Some(ward) = Ward::open(&programs) else { return };
        assert_eq!(ward.found(&[]), [], "{} is sound", programs.version());
        run(ward);
    }
}

fn pair(class: &str, subject: impl AsRef<str>) -> (String, String) {
    (class.to_owned(), subject.as_ref().to_owned())
}

fn by_digest(name: &str, content: &Content) -> String {
    format!("{}@{}", name.rsplit_once(':').unwrap().0, content.root.digest)
}

#[test]
fn an_image_without_a_name_is_stranded_and_goes_only_when_its_class_is_named() {
    each("an_image_without_a_name_is_stranded_and_goes_only_when_its_class_is_named", |ward| {
        let before = ward.items();
        let content = image("web", 90_000);
        let tag = ward.node.pull("web:2", &content);
        ward.ctr(&["images", "rm", "--sync", &tag]);
        let id = content.image_id().unwrap().to_string();
        assert_eq!(ward.found(&[]), [pair("stranded", &id)]);
        let problem = ward.problems(&[])[0].clone();
        assert_eq!(problem["safe"], false);
        assert_eq!(strings(&problem["things"], "name"), BTreeSet::from([id.clone(), by_digest(&tag, &content)]));
        // Everything but the layer that the other image has too.
        assert!(problem["cost"]["bytes"].as_u64().unwrap() > 180_000, "{problem:#}");
        assert_eq!(problem["cost"]["blobs"], 3);
        let plan = ward.node.json(&["doctor", "--fix"])["plan"].clone();
        assert_eq!(plan["steps"], serde_json::json!([]), "not without being named");
        assert_eq!(plan["left"][0]["class"], "stranded");
        let plan = ward.mended(&["--class", "stranded"]);
        assert_eq!(plan["frees"], problem["cost"]["bytes"]);
        assert_eq!(ward.items(), before);
        assert_eq!(ward.found(&[]), []);
        // By the command that is printed, too.
        ward.node.pull("web:2", &content);
        ward.ctr(&["images", "rm", "--sync", &tag]);
        ward.printed(&ward.problems(&[])[0]);
        assert_eq!(ward.items(), before);
    });
}

#[test]
fn an_image_without_a_name_that_a_container_uses_is_not_stranded() {
    each("an_image_without_a_name_that_a_container_uses_is_not_stranded", |ward| {
        ward.ctr(&["images", "rm", "--sync", &ward.live]);
        assert_eq!(ward.found(&[]), []);
        ward.ctr(&["containers", "rm", "web-1"]);
        assert_eq!(ward.found(&["--class", "stranded"]).len(), 1);
    });
}

#[test]
fn hash_references_that_are_missing_are_written_again() {
    each("hash_references_that_are_missing_are_written_again", |ward| {
        let before = ward.items();
        let hashes: Vec<String> = ward.node.records().into_iter().filter(|name| name.contains("sha256:")).collect();
        let (digest, id) = match &hashes[..] {
            [a, b] if a.contains('@') => (a, b),
            [a, b] => (b, a),
            other => panic!("{other:?}"),
        };
        ward.ctr(&["images", "rm", "--sync", digest, id]);
        assert_eq!(ward.found(&[]), [pair("missing-digest", &ward.live), pair("missing-id", &ward.live)]);
        assert_eq!(ward.problems(&["--class", "missing-id"])[0]["safe"], true);
        let plan = ward.mended(&[]);
        assert_eq!(strings(&plan["steps"], "name"), BTreeSet::from([digest.clone(), id.clone()]));
        assert_eq!(ward.items(), before);
        assert_eq!(ward.found(&[]), []);
        ward.node.crictl(&["inspecti", digest]);
        let label = ward.ctr(&["images", "ls", &format!("name=={digest}")]);
        assert!(label.contains("io.cri-containerd.image=managed"), "{label}");
        ward.ctr(&["images", "rm", "--sync", digest]);
        ward.printed(&ward.problems(&[])[0]);
        assert_eq!(ward.items(), before);
    });
}

/// Imports an image while no CRI runs, takes its config away, and has CRI run again.
fn in_part(ward: &mut Ward, content: &Content, name: &str) {
    let file = ward.node.containerd.config().with_file_name("web.tar");
    std::fs::write(&file, archive::oci_archive(&[(name, content)])).unwrap();
    let config = ward.node.containerd.config();
    let with_cri = std::fs::read_to_string(&config).unwrap();
    let plugins = r#""io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime""#;
    let without = with_cri.replacen("disabled_plugins = [", &format!("disabled_plugins = [{plugins}, "), 1);
    assert_ne!(with_cri, without);
    ward.node.containerd.changed(|_| std::fs::write(&config, without).unwrap());
    ward.node.containerd.import(K8S, &file, "overlayfs").ok();
    assert_eq!(ward.found(&[]), [], "where no CRI runs nobody writes hash references");
    ward.ctr(&["content", "rm", content.image_id().unwrap().digest().as_str()]);
    ward.collect();
    ward.node.containerd.changed(|_| std::fs::write(&config, with_cri).unwrap());
}

#[test]
fn of_an_image_in_part_no_hash_reference_is_missing() {
    each("of_an_image_in_part_no_hash_reference_is_missing", |mut ward| {
        let before = ward.items();
        let (content, name) = (image("web", 90_000), "r.example/web:2");
        in_part(&mut ward, &content, name);
        assert_eq!(ward.found(&[]), [pair("partial", name)]);
        assert_eq!(ward.node.json(&["doctor", "--fix"])["plan"]["steps"], serde_json::json!([]));
        assert!(before.is_subset(&ward.items()));
    });
}

/// CRI leaves out of its start what it cannot read, and then hears only of records that change: an image whose last blob
/// comes without its record being written again stays as it is.
#[test]
fn a_record_whose_content_came_after_cri_had_looked_is_unmanaged_until_the_command_that_is_printed() {
    each(
        "a_record_whose_content_came_after_cri_had_looked_is_unmanaged_until_the_command_that_is_printed",
        |mut ward| {
            let (content, name) = (image("web", 90_000), "r.example/web:2");
            in_part(&mut ward, &content, name);
            let config = content.image_id().unwrap().digest().clone();
            ward.write("the rest", content.bytes(&config), Some(&config));
            let missing = [pair("missing-digest", name), pair("missing-id", name)];
            assert_eq!(ward.found(&[]), [&missing[..], &[pair("unmanaged", name)]].concat());
            let found = ward.problems(&["--class", "unmanaged"])[0].clone();
            assert_eq!((&found["safe"], &found["cost"]["bytes"]), (&false.into(), &0.into()));
            // Neither by itself nor when it is named: it is CRI's.
            let plan = ward.node.json(&["doctor", "--fix", "--class", "unmanaged"])["plan"].clone();
            assert_eq!(plan["steps"], serde_json::json!([]));
            let before = ward.items();
            ward.printed(&found);
            // CRI, which hears of the change, may write the record of the ID before anybody looks.
            assert_eq!(ward.found(&["--class", "unmanaged"]), []);
            assert!(before.is_subset(&ward.items()));
            ward.mended(&[]);
            assert_eq!(ward.found(&[]), []);
            ward.node.crictl(&["inspecti", name]);
        },
    );
}

#[test]
fn a_record_whose_content_came_late_is_taken_in_when_containerd_starts_again() {
    each("a_record_whose_content_came_late_is_taken_in_when_containerd_starts_again", |mut ward| {
        let (content, name) = (image("web", 90_000), "r.example/web:2");
        in_part(&mut ward, &content, name);
        let config = content.image_id().unwrap().digest().clone();
        ward.write("the rest", content.bytes(&config), Some(&config));
        assert_eq!(ward.found(&["--class", "unmanaged"]), [pair("unmanaged", name)]);
        ward.node.containerd.changed(|_| ());
        // CRI looks through all records after it has begun to answer.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !ward.found(&["--class", "unmanaged"]).is_empty() {
            assert!(std::time::Instant::now() < deadline, "CRI does not take it in: {:?}", ward.found(&[]));
        }
        assert_eq!(ward.found(&[]), [pair("missing-digest", name)]);
    });
}

#[test]
fn an_image_in_part_is_found_and_whole_after_the_command_that_is_printed() {
    each("an_image_in_part_is_found_and_whole_after_the_command_that_is_printed", |ward| {
        let content = image("web", 90_000);
        let tag = ward.node.pull("web:2", &content);
        let before = ward.items();
        let config = content.image_id().unwrap().digest().clone();
        for (lost, role) in [(own_layer(&content), "layer 2"), (config, "config"), (content.root.digest.clone(), "")] {
            ward.ctr(&["content", "rm", lost.as_str()]);
            ward.collect();
            let found = ward.problems(&["--class", "partial"]);
            assert_eq!(found.len(), 1, "{found:#?}");
            assert_eq!(found[0]["subject"], tag.as_str());
            assert!(found[0]["detail"].as_str().unwrap().starts_with(role), "{found:#?}");
            assert!(strings(&found[0]["things"], "name").contains(lost.as_str()), "{found:#?}");
            let plan = ward.node.json(&["doctor", "--fix", "--class", "partial"])["plan"].clone();
            assert_eq!(plan["steps"], serde_json::json!([]), "it needs the registry");
            ward.printed(&found[0]);
            assert_eq!(ward.found(&["--class", "partial"]), []);
            let blobs =
                |items: BTreeSet<String>| items.into_iter().filter(|i| i.starts_with("blob")).collect::<Vec<_>>();
            assert_eq!(blobs(ward.items()), blobs(before.clone()));
        }
    });
}

#[test]
fn manifests_of_other_platforms_that_were_not_fetched_are_no_fault() {
    each("manifests_of_other_platforms_that_were_not_fetched_are_no_fault", |ward| {
        let host = Content::image(&Image::host().layer(Layer::noise("own", 7, 60_000)));
        let other = Content::image(&Image::new("linux/s390x").layer(Layer::noise("other", 8, 60_000)));
        ward.node.pull("two:1", &Content::index(&[other, host]));
        assert_eq!(ward.found(&[]), []);
    });
}

#[test]
fn what_cri_cannot_take_in_is_found_and_goes_when_its_class_is_named() {
    each("what_cri_cannot_take_in_is_found_and_goes_when_its_class_is_named", |ward| {
        let before = ward.items();
        let other = Content::image(&Image::new("linux/s390x").layer(Layer::noise("other", 8, 60_000)));
        let name = "r.example/other:1";
        let file = ward.node.containerd.config().with_file_name("other.tar");
        std::fs::write(&file, archive::oci_archive(&[(name, &Content::index(&[other]))])).unwrap();
        let file = file.to_str().unwrap();
        ward.ctr(&["images", "import", "--no-unpack", "--platform", "linux/s390x", file]);
        ward.collect();
        assert_eq!(ward.found(&[]), [pair("foreign-platform", name)]);
        assert_eq!(ward.node.json(&["doctor", "--fix"])["plan"]["steps"], serde_json::json!([]));
        let plan = ward.mended(&["--class", "foreign-platform"]);
        assert!(plan["frees"].as_u64().unwrap() > 60_000, "{plan:#}");
        assert_eq!(ward.items(), before);
    });
}

#[test]
fn a_lease_without_an_end_is_found_when_it_is_old_and_what_only_it_keeps_goes_with_it() {
    each("a_lease_without_an_end_is_found_when_it_is_old_and_what_only_it_keeps_goes_with_it", |mut ward| {
        let before = ward.items();
        let content = image("web", 90_000);
        ward.node.pull("web:2", &content);
        let root = content.root.digest.to_string();
        ward.lease("forgotten", &[], &[("content", &root)]);
        ward.node.crictl(&["rmi", &ward.node.name("web:2")]);
        assert_eq!(ward.found(&[]), [], "a young lease is somebody's work");
        ward.age();
        ward.lease("young", &[], &[]);
        assert_eq!(ward.found(&[]), [pair("lease", "forgotten")]);
        let problem = ward.problems(&[])[0].clone();
        assert!(problem["cost"]["blobBytes"].as_u64().unwrap() > 90_000, "{problem:#}");
        assert!(problem["cost"]["snapshotBytes"].as_u64().unwrap() > 90_000, "{problem:#}");
        assert_eq!(ward.node.json(&["doctor", "--fix"])["plan"]["steps"], serde_json::json!([]));
        ward.mended(&["--class", "lease"]);
        ward.ctr(&["leases", "rm", "young"]);
        assert_eq!(ward.items(), before);
    });
}

#[test]
fn a_write_that_has_stood_still_for_days_is_dropped_and_a_younger_one_is_not() {
    each("a_write_that_has_stood_still_for_days_is_dropped_and_a_younger_one_is_not", |mut ward| {
        let before = ward.items();
        ward.write("broken-off", &[7; 50_000], None);
        assert_eq!(ward.found(&[]), []);
        ward.age();
        ward.write("at-work", &[8; 1_000], None);
        assert_eq!(ward.found(&[]), [pair("ingest", "broken-off")]);
        assert_eq!(ward.problems(&[])[0]["cost"]["bytes"], 50_000);
        let plan = ward.mended(&[]);
        assert_eq!(plan["frees"], 50_000);
        let mut expected = before;
        expected.insert("write at-work".into());
        assert_eq!(ward.items(), expected);
    });
}

#[test]
fn what_only_its_own_label_keeps_is_found_and_goes_when_its_class_is_named() {
    each("what_only_its_own_label_keeps_is_found_and_goes_when_its_class_is_named", |ward| {
        let before = ward.items();
        let chain = ward.ctr(&["snapshots", "ls"]);
        let chain = chain.lines().skip(1).find_map(|line| line.split_whitespace().next()).unwrap().to_owned();
        ward.ctr(&["snapshots", "prepare", "by-hand", &chain]);
        let blob = ward.loose(&[9; 30_000]);
        ward.ctr(&["content", "label", blob.as_str(), "containerd.io/gc.root=by-hand"]);
        // What an image has is not lost by a label more.
        ward.ctr(&["snapshots", "label", &chain, "containerd.io/gc.root=too"]);
        let expected = [pair("orphan-snapshot", "by-hand"), pair("orphan-blob", blob.as_str())];
        assert_eq!(ward.found(&[]), expected);
        ward.printed(&ward.problems(&["--class", "orphan-snapshot"])[0]);
        assert_eq!(ward.found(&[]), expected[1..]);
        ward.ctr(&["snapshots", "prepare", "by-hand", &chain]);
        assert_eq!(ward.node.json(&["doctor", "--fix"])["plan"]["steps"], serde_json::json!([]));
        let plan = ward.mended(&["--class", "orphan-snapshot,orphan-blob"]);
        assert!(plan["frees"].as_u64().unwrap() >= 30_000, "{plan:#}");
        assert_eq!(ward.items(), before);
    });
}

/// Puts other bytes of the same length into a database.
fn replace(bytes: &mut [u8], old: &[u8], new: &[u8]) {
    assert_eq!(old.len(), new.len());
    let places: Vec<usize> =
        bytes.windows(old.len()).enumerate().filter(|(_, window)| *window == old).map(|(at, _)| at).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at..at + new.len()].copy_from_slice(new));
}

#[test]
fn garbage_is_found_and_collected() {
    each("garbage_is_found_and_collected", |mut ward| {
        let before = ward.items();
        let blob: Digest = ward.loose(&[4; 20_000]);
        const NEVER: &str = "2999-01-01T00:00:00Z";
        ward.lease("run-out", &[("containerd.io/gc.expire", NEVER)], &[("content", blob.as_str())]);
        // It runs out after the collection with which containerd starts, and with no change that brings another.
        let soon = jiff::Timestamp::now().as_second() + 20;
        let soon = jiff::Timestamp::from_second(soon).unwrap().to_string();
        ward.age_and(|bytes| replace(bytes, NEVER.as_bytes(), soon.as_bytes()));
        let is_found = || !ward.found(&[]).is_empty();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(90);
        while !is_found() && std::time::Instant::now() < deadline {}
        assert_eq!(ward.found(&[]), [pair("garbage", "namespace k8s.io")]);
        let plan = ward.mended(&[]);
        assert_eq!(plan["frees"], 20_000);
        assert_eq!(ward.items(), before);
    });
}

#[test]
fn blobs_that_fail_their_digest_are_found_and_whole_after_the_commands() {
    each("blobs_that_fail_their_digest_are_found_and_whole_after_the_commands", |ward| {
        let content = image("web", 90_000);
        ward.node.pull("web:2", &content);
        let before = ward.items();
        assert_eq!(ward.found(&["--deep"]), []);
        let layer = own_layer(&content);
        let blobs = ward.node.containerd.root().join("io.containerd.content.v1.content/blobs/sha256");
        let file = blobs.join(layer.hex());
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[40_000] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let config = content.image_id().unwrap().digest().clone();
        std::fs::remove_file(blobs.join(config.hex())).unwrap();
        let expected = BTreeSet::from([pair("damaged", layer.as_str()), pair("damaged", config.as_str())]);
        assert_eq!(ward.found(&["--deep"]).into_iter().collect::<BTreeSet<_>>(), expected);
        assert_eq!(ward.found(&[]), [], "bytes are not read without --deep");
        assert_eq!(ward.node.json(&["doctor", "--fix", "--deep"])["plan"]["steps"], serde_json::json!([]));
        ward.mended(&["--deep", "--class", "damaged"]);
        let found = ward.problems(&["--class", "partial"]);
        assert_eq!(strings(&found[0]["things"], "name"), BTreeSet::from([layer.to_string(), config.to_string()]));
        ward.printed(&found[0]);
        assert_eq!(ward.found(&["--deep", "--class", "partial,damaged"]), []);
        // The snapshot went with the config that named it: the next container has it unpacked again.
        let stored = |items: BTreeSet<String>| items.into_iter().filter(|i| !i.starts_with("snap")).collect::<Vec<_>>();
        assert_eq!(stored(ward.items()), stored(before));
        ward.node.crictl(&["pull", &ward.node.name("web:2")]);
    });
}

/// The snapshots' files of one name.
fn files(ward: &Ward, name: &str) -> Vec<PathBuf> {
    let snapshots = ward.node.containerd.root().join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let trees = std::fs::read_dir(snapshots).unwrap().map(|entry| entry.unwrap().path().join("fs").join(name));
    trees.filter(|file| file.exists()).collect()
}

#[test]
fn files_that_lost_their_content_are_found_and_have_it_again_after_the_commands() {
    each("files_that_lost_their_content_are_found_and_have_it_again_after_the_commands", |ward| {
        let own =
            Layer::new([Entry::dir("etc"), Entry::file("etc/empty", ""), Entry::file("etc/full", "x".repeat(9_000))]);
        let content = Content::image(&Image::host().layer(own).layer(Layer::noise("web", 5, 70_000)));
        ward.node.pull("web:2", &content);
        let before = ward.items();
        assert_eq!(ward.found(&["--deep"]), [], "a file that is empty in its layer is as it should be");
        let [lost] = &files(&ward, "etc/full")[..] else { panic!("one snapshot has it") };
        File::options().write(true).open(lost).unwrap().set_len(0).unwrap();
        let found = ward.problems(&["--deep"]);
        assert_eq!((found.len(), &found[0]["class"]), (1, &Value::from("zero-length")), "{found:#?}");
        assert_eq!(found[0]["subject"], content_chain(&content, 1));
        assert!(found[0]["detail"].as_str().unwrap().contains("etc/full"), "{found:#?}");
        assert_eq!(strings(&found[0]["things"], "name").len(), 2, "what lies on it has to go too: {found:#?}");
        ward.printed(&found[0]);
        assert_eq!(ward.found(&["--deep"]), []);
        assert_eq!(ward.items(), before);
        // By its own plan the snapshots go; the next container has the image unpacked again.
        // What was removed leaves its directory to the next collection.
        ward.collect();
        let [lost] = &files(&ward, "etc/full")[..] else { panic!("one snapshot has it") };
        assert_eq!(std::fs::read(lost).unwrap().len(), 9_000);
        File::options().write(true).open(lost).unwrap().set_len(0).unwrap();
        ward.mended(&["--deep", "--class", "zero-length"]);
        assert_eq!(ward.found(&["--deep"]), []);
        assert_eq!(before.difference(&ward.items()).count(), 2, "the two snapshots and nothing else");
    });
}

#[test]
fn files_that_lost_their_content_below_a_container_are_not_taken_from_it() {
    each("files_that_lost_their_content_below_a_container_are_not_taken_from_it", |ward| {
        let [lost] = &files(&ward, "cni")[..] else { panic!("one snapshot has it") };
        File::options().write(true).open(lost).unwrap().set_len(0).unwrap();
        let found = ward.problems(&["--deep"]);
        assert_eq!(found.len(), 1, "{found:#?}");
        assert!(found[0]["detail"].as_str().unwrap().contains("container web-1"), "{found:#?}");
        let plan = ward.node.json(&["doctor", "--fix", "--deep", "--class", "zero-length"])["plan"].clone();
        assert_eq!(plan["steps"], serde_json::json!([]));
    });
}

/// The key of an image's snapshot, counted from the bottom.
fn content_chain(content: &Content, layers: usize) -> String {
    let id = content.image_id().unwrap();
    let config = ImageConfig::parse(content.bytes(id.digest())).unwrap();
    chain_ids(&config.rootfs.diff_ids)[layers - 1].to_string()
}

#[test]
fn what_is_wrong_is_told_in_words_with_cause_cost_and_command() {
    each("what_is_wrong_is_told_in_words_with_cause_cost_and_command", |ward| {
        let content = image("web", 90_000);
        let tag = ward.node.pull("web:2", &content);
        ward.ctr(&["images", "rm", "--sync", &tag]);
        let done = ward.node.run(&["doctor"]);
        assert_eq!(done.code, 5, "{}", done.err);
        for words in ["stranded (1)", "cause", "--class stranded", "gives back", "orlop --address"] {
            assert!(done.out.contains(words), "{words}\n{}", done.out);
        }
        let done = ward.node.run(&["doctor", "--fix", "--class", "stranded"]);
        assert!(done.out.contains("remove record") && done.out.contains("Nothing was changed"), "{}", done.out);
        let names = ward.node.run(&["doctor", "-o", "name"]).out;
        assert_eq!(names.trim(), content.image_id().unwrap().to_string());
        let refused = ward.node.run(&["doctor", "--class", "stale"]);
        assert_eq!(refused.code, 2, "{}", refused.err);
    });
}

#[test]
fn a_plan_is_refused_once_the_state_has_moved() {
    each("a_plan_is_refused_once_the_state_has_moved", |ward| {
        let content = image("web", 90_000);
        let tag = ward.node.pull("web:2", &content);
        ward.ctr(&["images", "rm", "--sync", &tag]);
        let hash = ward.node.json(&["doctor", "--fix", "--class", "stranded"])["plan"]["plan"].clone();
        // Somebody pulls it by digest and starts a container.
        ward.ctr(&["containers", "create", &by_digest(&tag, &content), "web-2"]);
        let before = ward.items();
        let args = ["doctor", "--fix", "--class", "stranded", "--execute", hash.as_str().unwrap()];
        let refused = ward.node.run(&args);
        assert_eq!(refused.code, 4, "{}", refused.err);
        assert_eq!(ward.items(), before);
    });
}

#[test]
fn what_is_not_a_kubelets_is_not_measured_by_its_rules() {
    for programs in generations("what_is_not_a_kubelets_is_not_measured_by_its_rules") {
        let Some(node) = Node::start(&programs) else { return };
        let file = node.containerd.config().with_file_name("web.tar");
        let content = image("web", 90_000);
        std::fs::write(&file, archive::oci_archive(&[("r.example/web:2", &content)])).unwrap();
        node.containerd.import("default", &file, "overlayfs").ok();
        let by_digest = by_digest("r.example/web:2", &content);
        node.containerd.ctr("default", &["images", "tag", "r.example/web:2", &by_digest]).ok();
        node.containerd.ctr("default", &["images", "rm", "--sync", "r.example/web:2"]).ok();
        assert_eq!(node.json(&["doctor"])["problems"], serde_json::json!([]), "{}", programs.version());
    }
}
