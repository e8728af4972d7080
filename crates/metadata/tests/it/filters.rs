//! Filters against what containerd's own parser says of them.
//!
//! `data/filters.jsonl` has random and chosen filters, for each whether containerd 2.4's `pkg/filters` accepts it and
//! which of the objects below it matches. Left out are expressions of which Go's and Rust's dialects differ.

use std::borrow::Cow;

use orlop_metadata::Filter;

#[derive(serde::Deserialize)]
struct Row {
    filter: String,
    valid: bool,
    #[serde(default)]
    matches: Vec<usize>,
}

const OBJECTS: [&[(&str, &str)]; 4] = [
    &[("name", "docker.io/library/a:1"), ("labels.a.b/c", "1"), ("labels.plain", "x y"), ("empty", "")],
    &[("name", "b@sha256:1"), ("labels.a", "1"), ("labels.plain", "\"q\""), ("kind", "committed")],
    &[("name", ""), ("labels.a.b", "é\\d|/"), ("kind", "active")],
    &[],
];

fn is_matched(filter: &Filter, object: &'static [(&str, &str)]) -> bool {
    filter.matches(|path| {
        let path = path.join(".");
        object.iter().find(|(name, _)| *name == path).map(|(_, value)| Cow::Borrowed(*value))
    })
}

#[test]
fn filters_mean_what_they_mean_to_containerd() {
    let mut accepted = 0;
    for line in include_str!("../data/filters.jsonl").lines() {
        let row: Row = serde_json::from_str(line).unwrap();
        let parsed = Filter::parse(std::slice::from_ref(&row.filter));
        assert_eq!(parsed.is_ok(), row.valid, "{:?}: {parsed:?}", row.filter);
        if let Ok(filter) = parsed {
            let matches: Vec<usize> = (0..4).filter(|&i| is_matched(&filter, OBJECTS[i])).collect();
            assert_eq!(matches, row.matches, "{:?}", row.filter);
            accepted += 1;
        }
    }
    assert!(accepted > 250);
}
