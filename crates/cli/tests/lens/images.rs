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
