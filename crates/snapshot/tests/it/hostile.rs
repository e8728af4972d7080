//! No bytes make applying panic or reach outside the root.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::common::{Meta, Tar, cases, describe, gzip};
use orlop_snapshot::apply::{Limits, Options, apply};
use orlop_snapshot::{ApplyTarget, Whiteouts};
use proptest::prelude::*;
use tar_core::EntryType;

/// A directory beside which there is one that must stay as it is.
struct Cage {
    parent: tempfile::TempDir,
    before: BTreeMap<String, String>,
}

impl Cage {
    fn new() -> Self {
        let parent = tempfile::tempdir().unwrap();
        for name in ["root", "outside", "outside/deep"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        fs::write(parent.path().join("outside/deep/sentinel"), "untouched").unwrap();
        fs::write(parent.path().join("sentinel"), "untouched").unwrap();
        let before = Self::outside(parent.path());
        Self { parent, before }
    }

    fn outside(parent: &Path) -> BTreeMap<String, String> {
        let mut tree = describe(parent);
        tree.retain(|path, _| path != "root" && !path.starts_with("root/") && path != "deferred" && path != "applied");
        tree
    }

    fn apply(&self, bytes: &[u8], whiteouts: Whiteouts) {
        let target = ApplyTarget {
            root: self.parent.path().join("root"),
            whiteouts,
            deferred: (whiteouts != Whiteouts::Delete).then(|| self.parent.path().join("deferred")),
            applied: Some(self.parent.path().join("applied")),
            image: None,
        };
        // Small limits, so that no case takes long or much.
        let limits = Limits { layer_bytes: 64 << 20, zstd_window_bytes: 1 << 20, ..Limits::default() };
        let _ = apply(bytes, &target, &Options { limits, ..Options::default() });
        assert_eq!(Self::outside(self.parent.path()), self.before);
    }
}

fn whiteouts() -> impl Strategy<Value = Whiteouts> {
    prop::sample::select(vec![Whiteouts::Delete, Whiteouts::Overlay { userxattr: true }])
}

/// A tar with something of everything.
fn seed() -> Vec<u8> {
    let mut tar = Tar::default();
    let pax = vec![
        ("SCHILY.xattr.user.x".to_owned(), b"y".to_vec()),
        ("mtime".to_owned(), b"12.5".to_vec()),
        ("GNU.sparse.major".to_owned(), b"1".to_vec()),
        ("GNU.sparse.minor".to_owned(), b"0".to_vec()),
        ("GNU.sparse.realsize".to_owned(), b"2000".to_vec()),
    ];
    let mut map = b"1\n1000\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abc");
    tar.dir("d", 0o755).file("d/f", "content").symlink("s", "../outside").link("h", "d/f").file("d/.wh.gone", "");
    tar.entry(EntryType::Regular, "sparse", "", &Meta { pax, ..Meta::default() }, &map);
    tar.file("d/.wh..wh..opq", "").file(&"long/".repeat(40), "x").file("s/in", "x").link("low", "below");
    tar.end()
}

fn name() -> impl Strategy<Value = String> {
    let part = prop::sample::select(vec![
        "..",
        ".",
        "",
        "a",
        "b",
        "up",
        "abs",
        ".wh.a",
        ".wh..wh..opq",
        ".wh.",
        ".wh..",
        "outside",
        "sentinel",
        "deep",
    ]);
    prop::collection::vec(part, 1..6).prop_map(|parts| parts.join("/"))
}

fn kind() -> impl Strategy<Value = EntryType> {
    prop::sample::select(vec![
        EntryType::Regular,
        EntryType::Directory,
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Regular,
    ])
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn random_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..4096), packed in any::<bool>(), whiteouts in whiteouts()) {
        let bytes = if packed { gzip(&bytes) } else { bytes };
        Cage::new().apply(&bytes, whiteouts);
    }

    #[test]
    fn mutated_tars_do_no_harm(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        fix in any::<bool>(),
        whiteouts in whiteouts(),
    ) {
        let mut bytes = seed();
        for (index, value) in &edits {
            let length = bytes.len();
            bytes[index.index(length)] = *value;
        }
        if fix {
            // With right checksums the damage reaches the layers below the header's own check.
            for block in bytes.as_chunks_mut::<512>().0 {
                let mut header = *tar_core::Header::from_bytes(block);
                if header.is_ustar() || header.is_gnu() {
                    header.set_checksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        Cage::new().apply(&bytes, whiteouts);
    }

    #[test]
    fn mutated_streams_do_no_harm(edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), zstd in any::<bool>()) {
        let mut bytes = if zstd { zstd::encode_all(&seed()[..], 3).unwrap() } else { gzip(&seed()) };
        for (index, value) in &edits {
            let length = bytes.len();
            bytes[index.index(length)] = *value;
        }
        Cage::new().apply(&bytes, Whiteouts::Delete);
    }

    #[test]
    fn entries_with_crooked_names_do_no_harm(
        entries in prop::collection::vec((kind(), name(), name()), 1..10),
        whiteouts in whiteouts(),
    ) {
        let cage = Cage::new();
        let outside = cage.parent.path().join("outside").display().to_string();
        let mut tar = Tar::default();
        tar.symlink("up", "../outside").symlink("abs", &outside);
        for (kind, name, link) in &entries {
            let content: &[u8] = if *kind == EntryType::Regular { b"written" } else { b"" };
            tar.entry(*kind, name, link, &Meta::default(), content);
            // Each entry also alone: a refusal ends the layer.
            let mut alone = Tar::default();
            alone.entry(*kind, name, link, &Meta::default(), content);
            cage.apply(&alone.end(), whiteouts);
        }
        cage.apply(&tar.end(), whiteouts);
    }
}
