//! How images were built, on any store; and Orlop's own log of what names meant.

use orlop_oci::{Compression, Platform};
use orlop_testkit::archive;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::registry::{self, Registry};
use orlop_testkit::tar::Entry;
use serde_json::{Value, json};

use crate::common::{Done, Orlop};
use crate::node::{Node, generations};

fn layer(name: &str, size: usize) -> Layer {
    Layer::new([Entry::file(name, name.repeat(size))]).packed(Compression::Gzip)
}

/// Two layers with a step between that makes none, for two platforms.
fn built() -> Content {
    let of = |platform: &str, own: &str| {
        let steps = [
            json!({"created": "2026-01-02T03:04:05.6Z", "created_by": "ADD base.tar /", "author": "somebody"}),
            json!({"created": "2026-01-02T03:04:06Z", "created_by": "ENV A=1", "empty_layer": true, "comment": "buildkit"}),
            json!({"created": "2026-01-02T03:04:07Z", "created_by": format!("RUN make {own}\n\tand more, much more than fits into one column of a terminal")}),
        ];
        Content::image(&Image::new(platform).layer(layer("base", 2_000)).layer(layer(own, 9_000)).history(steps))
    };
    Content::index(&[of("linux/s390x", "foreign"), of(&Platform::host().to_string(), "own")])
}

/// The manifest of this machine's platform.
fn host(content: &Content) -> Value {
    let host = Platform::host();
    let index = content.document();
    let is_host = |m: &&Value| m["platform"]["architecture"] == host.architecture.as_str();
    let digest = index["manifests"].as_array().unwrap().iter().find(is_host).unwrap()["digest"].clone();
    let bytes = content.bytes(&digest.as_str().unwrap().parse().unwrap());
    let mut manifest: Value = serde_json::from_slice(bytes).unwrap();
    manifest["digest"] = digest;
    manifest
}

/// What is told is what the image's documents say.
fn is_right(document: &Value, manifest: &Value, is_unpacked: bool) {
    assert_eq!(document["schema"], "orlop.history/v1");
    assert_eq!((&document["manifest"], &document["imageId"]), (&manifest["digest"], &manifest["config"]["digest"]));
    let steps = document["steps"].as_array().unwrap();
    let by: Vec<&str> = steps.iter().map(|step| step["createdBy"].as_str().unwrap()).collect();
    assert!(by[0].starts_with("RUN make own\n") && by[1..] == ["ENV A=1", "ADD base.tar /"], "{document:#}");
    assert_eq!((&steps[1]["comment"], &steps[1]["layer"]), (&"buildkit".into(), &Value::Null));
    assert_eq!((&steps[2]["author"], &steps[2]["created"]), (&"somebody".into(), &"2026-01-02T03:04:05.6Z".into()));
    for (step, layer) in [(&steps[2], &manifest["layers"][0]), (&steps[0], &manifest["layers"][1])] {
        assert_eq!((&step["layer"]["digest"], &step["layer"]["compressed"]), (&layer["digest"], &layer["size"]));
        assert_eq!(step["layer"]["unpacked"].as_u64().is_some_and(|bytes| bytes > 4_096), is_unpacked, "{step:#}");
    }
}

#[test]
fn the_steps_that_built_an_image_are_told_with_what_their_layers_take() {
    for programs in generations("the_steps_that_built_an_image_are_told_with_what_their_layers_take") {
        let Some(mut node) = Node::start(&programs) else { return };
        let content = built();
        let (tag, manifest) = (node.pull("app:1", &content), host(&content));
        let id = manifest["config"]["digest"].as_str().unwrap();
        for name in [&*tag, id, &id[7..19], manifest["digest"].as_str().unwrap()] {
            is_right(&node.json(&["history", name]), &manifest, true);
        }
        let text = node.ok(&["history", &tag]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[1].starts_with("2026-01-02T03:04:07Z  RUN make own and more") && lines[1].contains('…'),
            "{text}"
        );
        assert!(lines[2].contains("ENV A=1") && lines[2].contains("0 B") && lines[2].ends_with("buildkit"), "{text}");
        let wide = node.ok(&["history", "-o", "wide", &tag]);
        assert!(
            wide.contains("column of a terminal") && wide.contains(manifest["layers"][1]["digest"].as_str().unwrap())
        );
        // Of another platform, which was not fetched, only that it is not here can be told.
        let done = node.run(&["history", "--platform", "linux/s390x", &tag]);
        assert!(done.code == 3 && done.err.contains("pull"), "{}: {}", done.code, done.err);
        let done = node.run(&["history", "--platform", "windows/amd64", &tag]);
        assert!(done.code == 3 && done.err.contains("linux/s390x"), "{}: {}", done.code, done.err);
        assert_eq!(node.run(&["history", "absent:1"]).code, 3);
        // A layer of several images is of none.
        let other = Content::image(&Image::host().layer(layer("base", 2_000)).layer(layer("other", 50)));
        node.pull("other:1", &other);
        let base = manifest["layers"][0]["digest"].as_str().unwrap();
        let done = node.run(&["history", base]);
        assert!(done.code == 4 && done.err.contains("2 images"), "{}: {}", done.code, done.err);
        // The same from the files alone.
        let done = node.stop().run(&["history", "-o", "json", &tag]);
        is_right(&serde_json::from_str(&done.out).unwrap_or_else(|e| panic!("{e}: {}", done.err)), &manifest, true);
    }
}

#[test]
fn orlops_own_store_tells_the_same_with_a_daemon_and_without_one() {
    let store = Orlop::new();
    let (content, name) = (built(), "r.example/app:1");
    let manifest = host(&content);
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(name, &content)])).unwrap();
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    is_right(&store.json(["history", name]), &manifest, false);
    let foreign = store.json(["history", "--platform", "linux/s390x", name]);
    assert!(foreign["steps"][0]["createdBy"].as_str().unwrap().starts_with("RUN make foreign"), "{foreign:#}");
    let _served = store.serve(&[]);
    is_right(&store.json(["history", name]), &manifest, false);
}

#[test]
fn layers_of_which_no_step_is_told_are_steps_by_themselves() {
    let store = Orlop::new();
    let steps = [json!({"created_by": "ADD base.tar /"})];
    let content = Content::image(&Image::host().layer(layer("base", 2)).layer(layer("own", 3)).history(steps));
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[("r.example/app:1", &content)])).unwrap();
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    let document = store.json(["history", "r.example/app:1"]);
    let steps = document["steps"].as_array().unwrap();
    let layers = content.layers();
    let told: Vec<(&str, &str)> =
        steps.iter().map(|s| (s["createdBy"].as_str().unwrap(), s["layer"]["digest"].as_str().unwrap())).collect();
    assert_eq!(told, [("", layers[1].as_str()), ("ADD base.tar /", layers[0].as_str())], "{document:#}");
}

#[test]
fn the_log_says_who_changed_a_name_from_which_host_and_by_what_it_was_verified() {
    let Some(registry) = Registry::start(&registry::Options::new()) else { return };
    let maker = Orlop::new();
    let name = format!("{}/app:1", registry.host());
    let content = Content::image(&Image::host().layer(layer("app", 9)));
    let file = maker.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(&name, &content)])).unwrap();
    maker.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    maker.ok(["push", "--plain-http", &name]);
    // The same by a mirror of a registry that nobody can reach, and by a program that lets it in.
    let store = Orlop::new();
    let (hosts, programs) = (store.path("hosts"), store.path("verifiers"));
    std::fs::create_dir_all(hosts.join("registry.invalid")).unwrap();
    let mirror = format!("[host.\"http://{}\"]\ncapabilities = ['pull', 'resolve']\n", registry.host());
    std::fs::write(hosts.join("registry.invalid/hosts.toml"), mirror).unwrap();
    std::fs::create_dir(&programs).unwrap();
    std::os::unix::fs::symlink("/bin/true", programs.join("10-yes")).unwrap();
    let (policy, config) = (store.path("policy.toml"), store.path("config.toml"));
    std::fs::write(&policy, "[default]\nrequire = \"accept\"\n").unwrap();
    std::fs::write(&config, format!("[verify]\npolicy = {policy:?}\nverifiers = {programs:?}\n")).unwrap();
    let mut command = store.command(["--config", config.to_str().unwrap(), "pull", "--no-unpack"]);
    let done = command.args(["--hosts-dir", hosts.to_str().unwrap(), "registry.invalid/app:1"]).output().unwrap();
    assert_eq!(Done::of(&done).code, 0, "{}", String::from_utf8_lossy(&done.stderr));
    store.ok(["tag", "registry.invalid/app:1", "registry.invalid/app:2"]);
    let log = store.json(["log", "registry.invalid/app:1"]);
    assert_eq!(log["schema"], "orlop.log/v1");
    let [change] = &log["changes"].as_array().unwrap()[..] else { panic!("{log:#}") };
    assert_eq!((&change["action"], &change["actor"]), (&"create".into(), &"orlop pull".into()));
    assert_eq!((&change["new"], &change["host"]), (&content.root.digest.as_str().into(), &registry.host().into()));
    assert!(change["verifiedBy"][0].as_str().unwrap().contains("10-yes"), "{change:#}");
    // What was tagged here came from no host.
    let tagged = store.json(["log", "registry.invalid/app:2"]);
    assert_eq!(tagged["changes"][0]["host"], Value::Null, "{tagged:#}");
    let text = store.ok(["log"]);
    let line = text.lines().find(|line| line.contains("orlop pull") && line.contains("app:1")).unwrap();
    assert!(line.contains(&registry.host()) && line.contains("10-yes"), "{text}");
}
