//! Indexes that name indexes. The bytes say of each document which earlier ones it names, and how wrongly.
//!
//! An archive of such documents is imported. After a collection the store has exactly what a walk from the names over the
//! plain JSON reaches; and what `graph` says that removing a name frees is what another walk, without that name, no longer
//! reaches.

use std::collections::{BTreeMap, BTreeSet};

use orlop_graph::{Builder, Manifest, PlanRequest, Record};
use orlop_image::ImportRequest;
use orlop_oci::{Digest, MediaKind, PlatformMatcher, media_type};
use orlop_testkit::archive::archive;
use serde_json::{Value, json};

use super::Target;
use super::archives::Rig;

/// See the module.
pub const TARGET: Target =
    Target { name: "graphs", run, seeds, words: &[b"\0\0", b"\x01\x01", b"\xff\x10"], limit: 160, isolated: false };

/// Documents of one input at most.
const MOST: usize = 40;

/// Entries of an index.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Entries {
    /// Manifests and indexes; of a manifest its config and layers.
    Documents,
    /// What has another media type.
    Others,
}

/// Documents as they were made, children first.
#[derive(Default)]
struct Made {
    bytes: BTreeMap<Digest, Vec<u8>>,
    /// In order, with their descriptors.
    documents: Vec<Value>,
}

impl Made {
    fn blob(&mut self, kind: &str, bytes: Vec<u8>) -> Value {
        let digest = Digest::of(&bytes);
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        self.bytes.insert(digest, bytes);
        descriptor
    }

    /// An image without layers, or an artifact.
    fn manifest(&mut self, style: u8) {
        let seed = self.documents.len();
        let config = json!({"architecture": "amd64", "os": "linux", "author": seed.to_string(), "config": {},
            "rootfs": {"type": "layers", "diff_ids": []}});
        let config = match style & 1 {
            0 => self.blob(media_type::OCI_CONFIG, config.to_string().into_bytes()),
            _ => self.blob(media_type::OCI_EMPTY, b"{}".to_vec()),
        };
        let layers = match style & 3 {
            1 | 3 => vec![self.blob("text/plain", format!("blob {}", style >> 4).into_bytes())],
            _ => Vec::new(),
        };
        let mut document =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers});
        if style & 4 != 0 && !self.documents.is_empty() {
            document["subject"] = self.documents[seed / 2].clone();
        }
        let made = self.blob(media_type::OCI_MANIFEST, document.to_string().into_bytes());
        self.documents.push(made);
    }

    /// An index of some that are there; the upper bits of a child's byte say what is wrong with its entry.
    fn index(&mut self, children: &[u8]) {
        let mut entries = Vec::new();
        for child in children {
            let known = self.documents.get(usize::from(child & 31) % self.documents.len().max(1)).cloned();
            let mut entry = known.unwrap_or_else(|| json!({"mediaType": media_type::OCI_INDEX, "size": 1}));
            match child >> 5 {
                1 => entry["platform"] = json!({"architecture": "amd64", "os": "linux"}),
                2 => entry["platform"] = json!({"architecture": "unknown", "os": "unknown"}),
                3 => entry["digest"] = json!(Digest::of(&[*child])),
                4 => entry["size"] = json!(7),
                5 => entry["mediaType"] = json!(media_type::OCI_INDEX),
                6 => entry["mediaType"] = json!("application/octet-stream"),
                7 => entry["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"}),
                _ => {}
            }
            if entry["digest"].is_null() {
                entry["digest"] = json!(Digest::of(b"nobody"));
            }
            entries.push(entry);
        }
        let seed = self.documents.len().to_string();
        let document = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries,
            "annotations": {"n": seed}});
        let made = self.blob(media_type::OCI_INDEX, document.to_string().into_bytes());
        self.documents.push(made);
    }

    fn archive(&self, roots: &[&Value]) -> Vec<u8> {
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (digest, bytes) in &self.bytes {
            files.insert(format!("blobs/sha256/{}", digest.hex()), bytes.clone());
        }
        let named = roots.iter().enumerate().map(|(at, root)| {
            let mut root = (*root).clone();
            root["annotations"] = json!({"io.containerd.image.name": format!("example.com/g:{at}")});
            root
        });
        let index = json!({"schemaVersion": 2, "manifests": named.collect::<Vec<_>>()});
        files.insert("index.json".into(), index.to_string().into_bytes());
        files.insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        archive(&files)
    }

    /// What a document names, by a plain look at its JSON.
    fn named(&self, digest: &Digest, which: Entries) -> BTreeSet<Digest> {
        let value: Value =
            self.bytes.get(digest).and_then(|raw| serde_json::from_slice(raw).ok()).unwrap_or(Value::Null);
        let listed = |member: &str| value[member].as_array().into_iter().flatten();
        let wanted = |entry: &&Value| {
            let kind = MediaKind::of(entry["mediaType"].as_str().unwrap_or_default());
            matches!(kind, MediaKind::Manifest | MediaKind::Index) == (which == Entries::Documents)
        };
        let entries = listed("manifests").filter(wanted);
        let blobs = std::iter::once(&value["config"]).chain(listed("layers")).filter(|_| which == Entries::Documents);
        blobs.chain(entries).filter_map(|child| child["digest"].as_str()?.parse().ok()).collect()
    }

    /// The same with what nobody looks into since its media type is unknown.
    fn kept(&self, roots: impl IntoIterator<Item = Digest>) -> BTreeSet<Digest> {
        let reached = self.reached(roots);
        let others = reached.iter().flat_map(|digest| self.named(digest, Entries::Others));
        let others: Vec<_> = others.filter(|digest| self.bytes.contains_key(digest)).collect();
        reached.into_iter().chain(others).collect()
    }

    fn reached(&self, roots: impl IntoIterator<Item = Digest>) -> BTreeSet<Digest> {
        let (mut open, mut seen): (Vec<_>, BTreeSet<_>) = (roots.into_iter().collect(), BTreeSet::new());
        while let Some(digest) = open.pop() {
            if self.bytes.contains_key(&digest) && seen.insert(digest.clone()) {
                open.extend(self.named(&digest, Entries::Documents));
            }
        }
        seen
    }
}

thread_local! {
    static RIG: Rig = Rig::new();
}

fn run(bytes: &[u8]) {
    let Some((flags, plan)) = bytes.split_first() else { return };
    let mut made = Made::default();
    let mut rest = plan;
    while let (Some((kind, after)), true) = (rest.split_first(), made.documents.len() < MOST) {
        rest = after;
        if kind & 1 == 0 || made.documents.is_empty() {
            made.manifest(kind >> 1);
        } else {
            let (children, after) = rest.split_at(rest.len().min(usize::from(kind >> 1) % 8));
            made.index(children);
            rest = after;
        }
    }
    let Some((last, before)) = made.documents.split_last() else { return };
    let mut roots = vec![last];
    roots.extend(before.last().filter(|_| flags & 1 != 0));
    pure(&made, &roots);
    stored(&made, &roots, *flags);
}

fn digest_of(descriptor: &Value) -> Digest {
    descriptor["digest"].as_str().and_then(|text| text.parse().ok()).expect("made with a digest")
}

/// In a store.
fn stored(made: &Made, roots: &[&Value], flags: u8) {
    let request = ImportRequest { all_platforms: flags & 2 != 0, no_unpack: true, ..ImportRequest::default() };
    RIG.with(|rig| {
        if rig.import(&made.archive(roots), &request).is_ok() {
            rig.is_sound();
            rig.collect();
            let content = rig.images.store().content(&rig.scope).find(&[]).expect("content can be listed");
            let kept: BTreeSet<Digest> = content.into_iter().map(|info| info.digest).collect();
            assert_eq!(kept, made.kept(roots.iter().map(|root| digest_of(root))));
        } else {
            assert_eq!(rig.names(), Vec::<String>::new());
        }
        rig.clear();
    });
}

/// By the graph alone, which takes links that no document could have: cycles too.
fn pure(made: &Made, roots: &[&Value]) {
    let mut builder = Builder::new(PlatformMatcher::all());
    for (digest, raw) in &made.bytes {
        builder.blob("n", digest, raw.len() as u64);
        let value: Value = serde_json::from_slice(raw).unwrap_or(Value::Null);
        let size = |digest: &Digest| made.bytes.get(digest).map_or(0, |raw| raw.len() as u64);
        let named = made.named(digest, Entries::Documents);
        let is_index = value["manifests"].is_array();
        let manifests = named.iter().filter(|_| is_index).map(|child| (child.clone(), size(child), None)).collect();
        let layers = named.iter().filter(|_| !is_index).map(|child| (child.clone(), size(child))).collect();
        if is_index || value["layers"].is_array() {
            builder.manifest(digest, &Manifest { size: raw.len() as u64, layers, manifests, ..Manifest::default() });
        }
    }
    let record = |at: usize, target: Digest| Record {
        namespace: "n".into(),
        name: format!("example.com/g:{at}"),
        target,
        pinned: false,
    };
    roots.iter().enumerate().for_each(|(at, root)| builder.record(record(at, digest_of(root))));
    let graph = builder.build();
    let mut total = 0;
    for image in graph.images() {
        let sizes = &image.sizes;
        assert_eq!(sizes.shared + sizes.unique, sizes.compressed + sizes.unpacked);
        total += sizes.unique;
    }
    let all = made.reached(roots.iter().map(|root| digest_of(root)));
    let bytes = |digests: &BTreeSet<Digest>| digests.iter().map(|d| made.bytes[d].len() as u64).sum::<u64>();
    assert!(total <= bytes(&all));
    assert_eq!(graph.total_bytes(), bytes(&all));
    let request = PlanRequest { namespace: "n", names: &["example.com/g:0"], managed: false };
    let plan = graph.plan(&request).expect("the name is there");
    let rest = made.reached(roots[1..].iter().map(|root| digest_of(root)));
    let gone: BTreeSet<Digest> = all.difference(&rest).cloned().collect();
    let planned: BTreeSet<Digest> = plan.blobs.iter().map(|(digest, _)| digest.clone()).collect();
    assert_eq!(planned, gone);
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let named = |name: &str, bytes: &[u8]| (name.to_owned(), bytes.to_vec());
    vec![
        named("image", &[0, 0]),
        named("artifact", &[0, 2]),
        named("index", &[0, 0, 8, 5, 0, 1]),
        named("nested", &[3, 0, 3, 0, 3, 1, 3, 2, 3, 3]),
        named("deep", &[2, 0, 3, 0, 3, 1, 3, 2, 3, 3, 3, 4, 3, 5, 3, 6, 3, 7, 3, 8, 3, 9]),
        named("missing", &[0, 0, 5, 0x60, 0x20]),
        named("wrong-sizes", &[0, 0, 5, 0x80, 0x00]),
        named("two-names", &[1, 0, 2, 7, 0, 1, 0x21]),
        named("subject", &[0, 0, 8, 12]),
    ]
}
