//! Roots of older formats: brought up when opened for writing, read as they are otherwise.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::support;
use crate::support::{PlainDriver, Root, digest, labels};
use orlop_content::MemoryStore;
use orlop_metadata::gc::Disposal;
use orlop_metadata::{ListedManifest, Listing, ManifestSummary, Store};
use orlop_oci::{ChainId, ImageId, Platform};
use rusqlite::types::Value;

/// A root as an older format left it.
fn root_of(format: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let connection = rusqlite::Connection::open(directory.path().join("meta.db")).unwrap();
    connection.execute_batch(format).unwrap();
    directory
}

const FORMAT_2: &str = include_str!("../data/format-2.sql");
const FORMAT_3: &str = include_str!("../data/format-3.sql");
const FORMAT_4: &str = include_str!("../data/format-4.sql");
const FORMAT_5: &str = include_str!("../data/format-5.sql");

fn root_of_format_1() -> tempfile::TempDir {
    root_of(include_str!("../data/format-1.sql"))
}

fn open(root: &Path, read_only: bool) -> Store {
    support::open(root, &MemoryStore::new(), &Arc::new(PlainDriver::new(root)), read_only).unwrap()
}

fn arm() -> Option<Platform> {
    Some("linux/arm/v7".parse().unwrap())
}

fn manifest() -> ManifestSummary {
    ManifestSummary {
        size: 8,
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        image_id: Some(ImageId::new(digest("config"))),
        config_size: 6,
        platform: arm(),
        user: "65532:65532".to_owned(),
        chain: vec![ChainId::new(digest("chain 1")), ChainId::new(digest("chain 2"))],
        layers: vec![(digest("layer 1"), 7), (digest("layer 2"), 9)],
        manifests: Vec::new(),
    }
}

fn index() -> ManifestSummary {
    ManifestSummary {
        size: 5,
        media_type: "application/vnd.oci.image.index.v1+json".to_owned(),
        image_id: None,
        config_size: 0,
        platform: None,
        user: String::new(),
        chain: Vec::new(),
        layers: Vec::new(),
        manifests: vec![(digest("manifest"), 8, arm()), (digest("elsewhere"), 3, None)],
    }
}

/// What a listing says of blobs and snapshots: names and sizes.
fn sizes(listing: &Listing) -> [Vec<(String, u64)>; 2] {
    let named = |rows: &[(u32, u32, u64)]| {
        let mut rows: Vec<_> =
            rows.iter().map(|(_, n, size)| (listing.digests.digest(*n).to_string(), *size)).collect();
        rows.sort();
        rows
    };
    [named(&listing.blobs), named(&listing.snapshots)]
}

fn is_all_there(store: &Store) {
    let image = store.image("test", "docker.io/library/a:1").unwrap();
    assert_eq!((image.target.digest, image.labels), (digest("index"), labels([("k", "v")])));
    let listing = store.listing(true).unwrap();
    let sorted = |mut rows: Vec<(String, u64)>| {
        rows.sort();
        rows
    };
    let blobs = [("index", 5), ("manifest", 8), ("config", 6), ("layer 1", 7), ("layer 2", 9)];
    let blobs = blobs.map(|(text, size)| (digest(text).to_string(), size)).to_vec();
    let snapshots = [("chain 1", 70), ("chain 2", 90)].map(|(text, size)| (digest(text).to_string(), size)).to_vec();
    assert_eq!(sizes(&listing), [sorted(blobs), sorted(snapshots)]);
    assert_eq!(listing.images.len(), 1);
}

#[test]
fn format_1_is_brought_up_with_all_that_is_in_it() {
    let directory = root_of_format_1();
    let store = open(directory.path(), false);
    is_all_there(&store);
    assert_eq!(store.summary(&digest("manifest")).unwrap(), Some(manifest()));
    assert_eq!(store.summary(&digest("index")).unwrap(), Some(index()));
    assert_eq!(store.summaries().unwrap().len(), 2, "what could not be read is gone, and what lacks the user");
    assert_eq!(store.check_metadata().unwrap(), []);
    drop(store);
    is_all_there(&open(directory.path(), false));
}

#[test]
fn a_database_that_was_brought_up_is_as_a_new_one() {
    let Root { store, directory: new, .. } = Root::new();
    drop(store);
    let new = schema(new.path());
    for directory in [root_of_format_1(), root_of(FORMAT_2), root_of(FORMAT_3), root_of(FORMAT_4), root_of(FORMAT_5)] {
        drop(open(directory.path(), false));
        let old = schema(directory.path());
        assert!(old.len() > 100, "{old:?}");
        assert_eq!(old.symmetric_difference(&new).collect::<Vec<_>>(), [] as [&String; 0]);
    }
}

/// Every column of every table and index, and what the database says of itself.
fn schema(root: &Path) -> BTreeSet<String> {
    let connection = rusqlite::Connection::open(root.join("meta.db")).unwrap();
    let mut schema = BTreeSet::new();
    for sql in [
        "SELECT m.name, t.cid, t.name, t.type, t.\"notnull\", t.dflt_value, t.pk
         FROM sqlite_master m, pragma_table_xinfo(m.name) t",
        "SELECT m.name, t.name, t.\"unique\", t.origin, t.partial FROM sqlite_master m, pragma_index_list(m.name) t",
        "SELECT m.name, t.* FROM sqlite_master m, pragma_index_xinfo(m.name) t",
        "SELECT sql FROM sqlite_master WHERE type = 'index'",
        "PRAGMA application_id",
        "PRAGMA user_version",
    ] {
        let mut query = connection.prepare(sql).unwrap();
        let columns = query.column_count();
        let mut rows = query.query([]).unwrap();
        while let Some(row) = rows.next().unwrap() {
            let values = (0..columns).map(|at| format!("{:?}", row.get::<_, Value>(at).unwrap()));
            schema.insert(values.collect::<Vec<_>>().join(" "));
        }
    }
    schema
}

#[test]
fn format_1_can_be_read_where_it_may_not_be_written() {
    let directory = root_of_format_1();
    let before = fs::read(directory.path().join("meta.db")).unwrap();
    let store = open(directory.path(), true);
    is_all_there(&store);
    // What is known of manifests must be learnt from the documents again.
    assert_eq!(store.summary(&digest("manifest")).unwrap(), None);
    assert!(store.summaries().unwrap().is_empty());
    drop(store);
    assert_eq!(fs::read(directory.path().join("meta.db")).unwrap(), before);
}

#[test]
fn a_listing_numbers_what_summaries_say() {
    let root = Root::new();
    let summaries = [(digest("manifest"), manifest()), (digest("index"), index())];
    root.store.put_summaries(&summaries).unwrap();
    for usage in [true, false] {
        let listing = root.store.listing(usage).unwrap();
        let number = |text: &str| listing.digests.get(&digest(text));
        let of = |text: &str| {
            let wanted = number(text).unwrap();
            listing.manifests.iter().find(|(n, _)| *n == wanted).map(|(_, m)| m.clone()).unwrap()
        };
        let chain = if usage { ["chain 1", "chain 2"].map(|c| number(c).unwrap()).to_vec() } else { Vec::new() };
        let layers = vec![(number("layer 1").unwrap(), 7), (number("layer 2").unwrap(), 9)];
        let platform = arm().map(Arc::new);
        let expected = ListedManifest {
            size: 8,
            image_id: number("config"),
            config_size: 6,
            platform: platform.clone(),
            chain,
            layers,
            manifests: Vec::new(),
        };
        assert_eq!(of("manifest"), expected);
        let manifests = vec![(number("manifest").unwrap(), 8, platform), (number("elsewhere").unwrap(), 3, None)];
        let empty = (None, 0, None, Vec::new(), Vec::new());
        let (image_id, config_size, platform, chain, layers) = empty;
        let index = ListedManifest { size: 5, image_id, config_size, platform, chain, layers, manifests };
        assert_eq!(of("index"), index);
    }
}

#[test]
fn format_2_is_brought_up_with_all_that_is_in_it() {
    let directory = root_of(FORMAT_2);
    let store = open(directory.path(), false);
    is_all_there(&store);
    assert_eq!(store.check_metadata().unwrap(), []);
    assert!(store.containers("test", &[]).unwrap().is_empty());
}

/// Whatever asks for containers met a database without such a table: the check of a root that may only be read failed.
#[test]
fn older_formats_that_may_not_be_written_have_no_containers() {
    for directory in [root_of_format_1(), root_of(FORMAT_2)] {
        let before = fs::read(directory.path().join("meta.db")).unwrap();
        let store = open(directory.path(), true);
        is_all_there(&store);
        assert_eq!(store.check_metadata().unwrap(), []);
        assert!(store.containers("test", &[]).unwrap().is_empty());
        assert!(store.container("test", "a").is_err());
        store.plan_collection(&[]).unwrap();
        drop(store);
        assert_eq!(fs::read(directory.path().join("meta.db")).unwrap(), before);
    }
}

/// The image, the blob that holds a condition, and the snapshot that is kept by it.
fn keeps_by_condition(store: &Store) {
    is_all_there(store);
    assert_eq!(store.check_metadata().unwrap(), []);
    let plan = store.plan_collection(&[("test".to_owned(), "docker.io/library/a:1".to_owned())]).unwrap();
    assert!(plan.snapshots.is_empty(), "{plan:?}");
    let turns =
        "2033-05-18T03:00:00Z".parse::<jiff::Timestamp>().unwrap() + jiff::SignedDuration::from_hours(1_000_000);
    assert_eq!(store.next_expiry().unwrap(), Some(turns));
}

/// Formats before 4 had no conditions; the labels that state them may be there all the same.
#[test]
fn format_3_is_brought_up_with_the_conditions_that_labels_state() {
    let directory = root_of(FORMAT_3);
    keeps_by_condition(&open(directory.path(), false));
    let store = open(directory.path(), false);
    keeps_by_condition(&store);
    store.collect(Disposal::Reclaim).unwrap();
    keeps_by_condition(&store);
}

#[test]
fn format_3_can_be_read_with_its_conditions_where_it_may_not_be_written() {
    let directory = root_of(FORMAT_3);
    let before = fs::read(directory.path().join("meta.db")).unwrap();
    let store = open(directory.path(), true);
    keeps_by_condition(&store);
    drop(store);
    assert_eq!(fs::read(directory.path().join("meta.db")).unwrap(), before);
}

/// Formats before 5 knew no activation: labels that name one stated nothing.
#[test]
fn format_4_is_brought_up_with_what_labels_say_of_mounts() {
    let directory = root_of(FORMAT_4);
    let before = fs::read(directory.path().join("meta.db")).unwrap();
    let store = open(directory.path(), true);
    is_all_there(&store);
    assert!(store.activations("test").unwrap().is_empty());
    store.plan_collection(&[]).unwrap();
    drop(store);
    assert_eq!(fs::read(directory.path().join("meta.db")).unwrap(), before);
    let store = open(directory.path(), false);
    keeps_by_condition(&store);
    assert!(store.activations("test").unwrap().is_empty());
}

/// Formats before 6 knew of no damage: what asks for it must not fail where nothing may be written.
#[test]
fn format_5_is_brought_up_and_knows_of_no_damage() {
    let directory = root_of(FORMAT_5);
    let before = fs::read(directory.path().join("meta.db")).unwrap();
    let store = open(directory.path(), true);
    is_all_there(&store);
    assert!(store.damages().unwrap().is_empty());
    store.counts().unwrap();
    drop(store);
    assert_eq!(fs::read(directory.path().join("meta.db")).unwrap(), before);
    let store = open(directory.path(), false);
    keeps_by_condition(&store);
    assert!(store.damages().unwrap().is_empty());
}
