use orlop_oci::{Compression, Platform};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use serde_json::Value;

use crate::node::{Node, generations, image};

/// An image of two platforms with an attestation and an artifact; its lowest layer is that of [`image`].
pub(crate) fn several() -> Content {
    let base = || Layer::new([Entry::dir("etc"), Entry::file("etc/base", "common ".repeat(5_000))]);
    let own = Layer::noise("own", 5, 50_000).packed(Compression::Gzip);
    let host = Content::image(&Image::host().layer(base().packed(Compression::Gzip)).layer(own));
    let foreign = Content::image(&Image::new("linux/s390x").layer(Layer::noise("foreign", 6, 1_000)));
    let attestation = Content::attestation(&host);
    let artifact = Content::artifact("application/spdx+json", &[("application/json", b"{\"a\":1}")], None);
    Content::index(&[host, foreign, attestation, artifact])
}

fn ctr(node: &Node, args: &[&str]) -> String {
    node.containerd.ctr("k8s.io", args).ok().stdout
}

fn of_kind<'v>(manifests: &'v Value, kind: &str) -> Vec<&'v Value> {
    manifests.as_array().unwrap().iter().filter(|manifest| manifest["kind"] == kind).collect()
}

/// The size of a snapshot as `ctr` tells it in bytes.
fn usage(node: &Node, key: &str) -> u64 {
    let out = ctr(node, &["snapshots", "usage", "-b", key]);
    out.lines().nth(1).unwrap().split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn an_index_is_shown_down_to_its_snapshots_with_what_is_not_here_and_what_is_shared() {
    for programs in generations("an_index_is_shown_down_to_its_snapshots_with_what_is_not_here_and_what_is_shared") {
        let Some(node) = Node::start(&programs) else { return };
        let content = several();
        let tag = node.pull("multi:1", &content);
        let web = node.pull("web:2", &image("web", 90_000));
        let document = node.json(&["tree", &tag]);
        assert_eq!(document["schema"], "orlop.tree/v1");
        let images = document["images"].as_array().unwrap();
        assert_eq!((images.len(), &images[0]["names"][0]["name"]), (1, &Value::from(tag.as_str())));
        let index = &images[0]["targets"][0];
        assert_eq!((&index["kind"], &index["digest"]), (&"index".into(), &content.root.digest.as_str().into()));
        let blobs = ctr(&node, &["content", "ls", "-q"]);
        for manifest in index["manifests"].as_array().unwrap() {
            assert_eq!(manifest["here"], blobs.contains(manifest["digest"].as_str().unwrap()), "{manifest:#}");
        }
        let manifests = of_kind(&index["manifests"], "manifest");
        let host = manifests.iter().find(|m| m["platform"] == Platform::host().to_string()).unwrap();
        let foreign = manifests.iter().find(|m| m["platform"] == "linux/s390x").unwrap();
        assert_eq!((&host["here"], foreign["layers"].is_null()), (&true.into(), foreign["here"] == false));
        assert_eq!(of_kind(&index["manifests"], "attestation")[0]["about"], host["digest"]);
        let layers = host["layers"].as_array().unwrap();
        assert_eq!(layers.iter().map(|layer| &layer["sharedWith"]).collect::<Vec<_>>(), [1, 0], "{host:#}");
        for layer in layers {
            let digest = layer["digest"].as_str().unwrap().parse().unwrap();
            assert_eq!(layer["size"], content.blobs[&digest].bytes.len());
            let [snapshot] = &layer["snapshots"].as_array().unwrap()[..] else { panic!("{layer:#}") };
            assert_eq!(snapshot["key"], layer["chainId"]);
            assert_eq!(snapshot["sharedWith"], layer["sharedWith"]);
            assert_eq!(snapshot["size"], usage(&node, snapshot["key"].as_str().unwrap()));
        }
        let text = node.ok(&["tree", "--quiet", &tag]);
        assert!(text.starts_with(&format!("{tag}\n└─ index {}", &content.root.digest.as_str()[..19])), "{text}");
        let line =
            |part: &str| text.lines().find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part}: {text}"));
        assert_eq!(line("linux/s390x").contains("not here"), foreign["here"] == false, "{text}");
        assert!(line("layer 1 ").contains("shared with 1 image"), "{text}");
        assert!(line("attestation ").contains("about sha256:"), "{text}");
        // The same when everything was fetched.
        assert_eq!(of_kind(&index["manifests"], "artifact").len(), 1);
        ctr(&node, &["content", "fetch", "--all-platforms", "--plain-http", &tag]);
        let whole = node.json(&["tree", &tag]);
        let manifests = &whole["images"][0]["targets"][0]["manifests"];
        assert!(manifests.as_array().unwrap().iter().all(|manifest| manifest["here"] == true), "{manifests:#}");
        for kind in ["attestation", "artifact"] {
            let [part] = of_kind(manifests, kind)[..] else { panic!("{manifests:#}") };
            assert_eq!(part["layers"].as_array().unwrap().len(), 1, "{part:#}");
            assert!(part["layers"][0]["diffId"].is_null() && part["unreadable"].is_null(), "{part:#}");
        }
        // Without a name: every image, each once.
        let all = node.json(&["tree"]);
        let names: Vec<&Value> = all["images"].as_array().unwrap().iter().map(|i| &i["names"][0]["name"]).collect();
        assert_eq!(names, [tag.as_str(), web.as_str()]);
    }
}
