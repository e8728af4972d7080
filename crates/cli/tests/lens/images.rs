use orlop_api::containerd::services::snapshots::v1::PrepareSnapshotRequest;
use orlop_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use serde_json::Value;

use crate::node::{Node, generations, image};

fn words(line: &str) -> Vec<String> {
    line.split("  ").map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

#[test]
fn one_row_an_image_where_ctr_shows_three() {
    for programs in generations("one_row_an_image_where_ctr_shows_three") {
        let Some(node) = Node::start(&programs) else { return };
        let (cni, web) =
            (node.pull("calico/cni:v3.25.1", &image("cni", 200_000)), node.pull("web:2", &image("web", 90_000)));
        assert_eq!(node.records().len(), 6);
        let images = node.json(&["images"]);
        let rows = images["images"].as_array().unwrap();
        let names: Vec<&Value> = rows.iter().flat_map(|row| row["names"].as_array().unwrap()).collect();
        assert_eq!(names, [cni.as_str(), web.as_str()], "{}", node.programs.version());
        let mut hashes: Vec<&str> = rows
            .iter()
            .flat_map(|row| row["hashReferences"].as_array().unwrap())
            .map(|n| n.as_str().unwrap())
            .collect();
        hashes.sort_unstable();
        let expected: Vec<String> = node.records().into_iter().filter(|name| name.contains("sha256:")).collect();
        assert_eq!(hashes, expected);
        // The IDs that the kubelet knows.
        let known: Value = serde_json::from_str(&node.crictl(&["images", "-o", "json"])).unwrap();
        for row in rows {
            let id = row["imageId"].as_str().unwrap();
            let theirs =
                known["images"].as_array().unwrap().iter().find(|i| i["id"] == id).unwrap_or_else(|| panic!("{known}"));
            assert_eq!(theirs["repoTags"][0], row["names"][0]);
            assert_eq!(row["size"]["compressed"].as_u64().unwrap().to_string(), theirs["size"].as_str().unwrap());
            assert!(row["size"]["unique"].as_u64() > row["size"]["shared"].as_u64().map(|_| 0));
            assert_eq!(row["platforms"].as_array().unwrap().len(), 1);
        }
        let shared: Vec<u64> = rows.iter().map(|row| row["size"]["shared"].as_u64().unwrap()).collect();
        assert!(shared[0] > 0 && shared[0] == shared[1], "the common layer counts in both: {shared:?}");
        let table = node.ok(&["images"]);
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(table.lines().nth(1).unwrap().starts_with(&cni), "{table}");
    }
}

#[test]
fn all_records_are_those_that_ctr_lists_with_its_digests_sizes_and_platforms() {
    for programs in generations("all_records_are_those_that_ctr_lists_with_its_digests_sizes_and_platforms") {
        let Some(node) = Node::start(&programs) else { return };
        node.pull("calico/cni:v3.25.1", &image("cni", 200_000));
        node.pull("web:2", &image("web", 90_000));
        let theirs = node.containerd.ctr("k8s.io", &["images", "ls"]).ok().stdout;
        let mut theirs: Vec<Vec<String>> = theirs
            .lines()
            .skip(1)
            .map(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                // REF TYPE DIGEST SIZE UNIT PLATFORMS LABELS
                [words[0], words[1], words[2], &format!("{} {}", words[3], words[4]), words[5]]
                    .map(str::to_owned)
                    .to_vec()
            })
            .collect();
        theirs.sort();
        let ours = node.ok(&["images", "--all"]);
        let mut ours: Vec<Vec<String>> = ours
            .lines()
            .skip(1)
            .map(|line| {
                let mut words = words(line);
                words.remove(1);
                words
            })
            .collect();
        ours.sort();
        assert_eq!(ours, theirs, "{}", node.programs.version());
        let id = node.records().into_iter().find(|name| name.starts_with("sha256:")).unwrap();
        let only = node.ok(&["images", "--all", "-o", "name", "--filter", &format!("name=={id}")]);
        assert_eq!(only.trim(), id);
        let refused = node.run(&["images", "--filter", "name=="]);
        assert_ne!(refused.code, 0, "a filter that is none");
    }
}

/// Prepares so many empty snapshots that stay.
async fn prepare(node: &Node, count: usize) {
    let channel = orlop_api::channel::unix(&node.containerd.socket()).await.unwrap();
    let mut client = SnapshotsClient::new(channel);
    for n in 0..count {
        // Otherwise containerd collects them.
        let labels = [("containerd.io/gc.root".to_owned(), "test".to_owned())].into();
        let (snapshotter, key) = ("native".to_owned(), format!("empty-{n}"));
        let mut request = tonic::Request::new(PrepareSnapshotRequest {
            snapshotter,
            key,
            labels,
            ..PrepareSnapshotRequest::default()
        });
        request.metadata_mut().insert(orlop_api::NAMESPACE_HEADER, "k8s.io".parse().unwrap());
        client.prepare(request).await.unwrap();
    }
}

#[test]
fn with_very_many_snapshots_sizes_that_nobody_asked_for_are_said_to_be_unknown() {
    for programs in generations("with_very_many_snapshots_sizes_that_nobody_asked_for_are_said_to_be_unknown") {
        let Some(node) = Node::start(&programs) else { return };
        let tag = node.pull("web:2", &image("web", 90_000));
        let sizes = |row: &Value| row["images"][0]["size"].clone();
        let known = sizes(&node.json(&["images"]));
        assert!(["unpacked", "shared", "unique"].iter().all(|size| known[size].is_u64()), "{known}");
        tokio::runtime::Runtime::new().unwrap().block_on(prepare(&node, 1_001));
        let unknown = sizes(&node.json(&["images"]));
        assert_eq!(unknown["compressed"], known["compressed"]);
        assert!(["unpacked", "shared", "unique"].iter().all(|size| unknown[size].is_null()), "{unknown}");
        let done = node.run(&["images"]);
        let row = words(done.out.lines().nth(1).unwrap());
        assert_eq!((&*row[0], &*row[3], &*row[4]), (&*tag, "-", "-"), "{}", done.out);
        assert!(done.err.contains("more than 1000 snapshots") && done.err.contains("orlop df"), "{}", done.err);
        // What is asked about one image is still answered.
        let cost = &node.json(&["explain", &tag])["things"][0]["imageCost"]["all"];
        assert_eq!((&cost["snapshotBytes"], &cost["unmeasured"]), (&known["unpacked"], &0.into()), "{cost}");
    }
}
