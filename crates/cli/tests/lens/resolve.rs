use orlop_oci::{DiffId, Digest, chain_ids};
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::tar::Entry;
use serde_json::Value;

use crate::node::{Node, generations, image};

/// What an image's own documents say.
pub(crate) struct Truth {
    pub(crate) manifest: String,
    pub(crate) config: String,
    pub(crate) layers: Vec<String>,
    pub(crate) diff_ids: Vec<String>,
    pub(crate) chain_ids: Vec<String>,
}

fn strings(values: &Value) -> Vec<String> {
    values.as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
}

pub(crate) fn truth(content: &Content) -> Truth {
    let document = |digest: &Digest| -> Value { serde_json::from_slice(&content.blobs[digest].bytes).unwrap() };
    let manifest = document(&content.root.digest);
    let config = manifest["config"]["digest"].as_str().unwrap().to_owned();
    let diff_ids = strings(&document(&config.parse().unwrap())["rootfs"]["diff_ids"]);
    let parsed: Vec<DiffId> = diff_ids.iter().map(|id| DiffId::new(id.parse().unwrap())).collect();
    let layers = manifest["layers"].as_array().unwrap();
    Truth {
        manifest: content.root.digest.to_string(),
        config,
        layers: layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect(),
        diff_ids,
        chain_ids: chain_ids(&parsed).iter().map(ToString::to_string).collect(),
    }
}

pub(crate) fn column(image: &Value, field: &str) -> Vec<String> {
    let manifest = &image["targets"][0];
    manifest["layers"].as_array().unwrap().iter().map(|layer| layer[field].as_str().unwrap().to_owned()).collect()
}

fn images(document: &Value) -> Vec<Value> {
    document["images"].as_array().unwrap().clone()
}

/// What `ctr` lists of everything.
fn everything(node: &Node) -> Vec<String> {
    let lists: [&[&str]; 3] = [&["images", "ls"], &["content", "ls"], &["snapshots", "ls"]];
    let sorted = |out: String| {
        let mut lines: Vec<&str> = out.lines().collect();
        lines.sort_unstable();
        // Ages of content are told to the second.
        lines.iter().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    lists.iter().flat_map(|list| -> Vec<String> { sorted(node.containerd.ctr("k8s.io", list).ok().stdout) }).collect()
}

#[test]
fn every_identifier_of_an_image_leads_to_all_others() {
    for programs in generations("every_identifier_of_an_image_leads_to_all_others") {
        let Some(node) = Node::start(&programs) else { return };
        let content = image("cni", 200_000);
        let (tag, known) = (node.pull("calico/cni:v3.25.1", &content), truth(&content));
        let web = node.pull("web:2", &image("web", 90_000));
        let before = everything(&node);
        let by_digest = format!("{}@{}", node.name("calico/cni"), known.manifest);
        let ids = [&tag, &by_digest, &known.config, &known.manifest, &known.layers[1], &known.diff_ids[1]];
        let short = known.chain_ids[1][7..19].to_owned();
        for id in ids.into_iter().chain([&known.chain_ids[1], &short]) {
            let document = node.json(&["resolve", id]);
            assert_eq!(document["schema"], "orlop.resolve/v1");
            let [image] = &images(&document)[..] else { panic!("{id}: {document:#}") };
            assert_eq!(image["imageId"], known.config.as_str());
            let names = |field: &str| -> Vec<String> {
                let names = image[field].as_array().unwrap();
                names.iter().map(|name| name["name"].as_str().unwrap().to_owned()).collect()
            };
            assert_eq!(names("names"), [tag.as_str()]);
            let mut hashes = names("hashReferences");
            hashes.sort();
            let listed = node.records().into_iter().filter(|r| *r == known.config || *r == by_digest);
            assert_eq!(hashes, listed.collect::<Vec<_>>());
            assert_eq!(image["targets"][0]["digest"], known.manifest.as_str());
            assert_eq!(column(image, "digest"), known.layers);
            assert_eq!(column(image, "diffId"), known.diff_ids);
            assert_eq!(column(image, "chainId"), known.chain_ids);
        }
        // What is said to be here, `ctr` has.
        let document = node.json(&["resolve", &tag]);
        let (blobs, snapshots) = (
            node.containerd.ctr("k8s.io", &["content", "ls", "-q"]).ok().stdout,
            node.containerd.ctr("k8s.io", &["snapshots", "ls"]).ok().stdout,
        );
        for layer in images(&document)[0]["targets"][0]["layers"].as_array().unwrap() {
            assert_eq!(layer["here"], blobs.contains(layer["digest"].as_str().unwrap()), "{layer:#}");
            assert_eq!(layer["snapshots"].as_array().unwrap().len(), 1, "{layer:#}");
            assert!(snapshots.contains(layer["snapshots"][0]["key"].as_str().unwrap()), "{layer:#}");
        }
        // The common layer is in both, as all that it is called.
        for (id, roles) in [(&known.layers[0], &["layer"][..]), (&known.diff_ids[0], &["diffId", "chainId"])] {
            let found = images(&node.json(&["resolve", id]));
            let names: Vec<&Value> = found.iter().map(|image| &image["names"][0]["name"]).collect();
            assert_eq!(names, [tag.as_str(), web.as_str()]);
            for image in &found {
                let positions = image["positions"].as_array().unwrap();
                let told: Vec<&str> = positions.iter().map(|p| p["as"].as_str().unwrap()).collect();
                assert_eq!(told, roles, "{image:#}");
                assert!(positions.iter().all(|p| p["position"] == 1 && p["of"] == 2), "{image:#}");
            }
        }
        let text = node.ok(&["resolve", &known.diff_ids[0][..19]]);
        assert!(text.contains("diff ID of layer 1 of 2"), "{text}");
        assert_eq!(everything(&node), before, "nothing was changed");
    }
}

#[test]
fn what_was_fetched_and_never_unpacked_is_found_by_its_diff_ids_in_all_namespaces() {
    for programs in generations("what_was_fetched_and_never_unpacked_is_found_by_its_diff_ids_in_all_namespaces") {
        let Some(node) = Node::start(&programs) else { return };
        let only = Layer::new([Entry::file("only", "in a namespace of its own")]);
        let content = Content::image(&Image::host().layer(only).layer(Layer::noise("above", 7, 9_000)));
        let known = truth(&content);
        let name = node.pull("job:1", &content);
        node.containerd.ctr("other", &["content", "fetch", "--plain-http", &name]).ok();
        for record in node.records() {
            node.containerd.ctr("k8s.io", &["images", "rm", "--sync", &record]).ok();
        }
        for (id, role) in [(&known.diff_ids[1], "diffId"), (&known.chain_ids[1], "chainId")] {
            let document = node.json(&["resolve", id]);
            let [image] = &images(&document)[..] else { panic!("{document:#}") };
            assert_eq!(image["names"][0]["namespace"], "other");
            let places = image["positions"].as_array().unwrap();
            assert!(places.iter().any(|place| place["position"] == 2 && place["as"] == role), "{image:#}");
            assert_eq!(image["targets"][0]["layers"][1]["snapshots"].as_array().unwrap().len(), 0);
        }
        let done = node.run(&["resolve", &"0".repeat(64)]);
        assert_eq!(done.code, 3, "{}", done.err);
    }
}
