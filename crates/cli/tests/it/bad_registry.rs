//! What a registry may serve, by malice or by accident. Each is refused with an exit code that scripts can use and a
//! message that names the thing, says what was expected and found, and what to do; what was acknowledged before is
//! untouched.

use crate::common;
use crate::common::{Done, Orlop};
use orlop_oci::{Compression, Digest, Platform, media_type};
use orlop_testkit::archive;
use orlop_testkit::corpus::{self, Expect, Hideout};
use orlop_testkit::image::{Content, Flavour, Image, Layer, noise};
use orlop_testkit::liar::{Answer, Liar};
use orlop_testkit::tar::Entry;
use serde_json::{Value, json};

const REPOSITORY: &str = "team/bad";

/// A store with one image that was acknowledged, and a registry that lies.
struct Bench {
    store: Orlop,
    acknowledged: Vec<String>,
    liar: Liar,
}

impl Bench {
    fn new() -> Self {
        let store = Orlop::new();
        let file = store.path("good.tar");
        std::fs::write(&file, archive::oci_archive(&[("docker.io/library/good:1", &plain("good"))])).unwrap();
        store.ok(["import", file.to_str().unwrap()]);
        Self { acknowledged: store.records(), store, liar: Liar::start() }
    }

    /// Pulls, and sees that nothing but that changed.
    #[track_caller]
    fn pull(&self, case: &str, reference: &str) -> Done {
        let done = self.store.run(["pull", reference]);
        let mut expected = self.acknowledged.clone();
        if done.code == 0 {
            self.store.ok(["rm", "--no-trash", reference]);
        }
        expected.sort();
        assert_eq!(self.store.records(), expected, "{case}: {}", done.err);
        self.store.ok(["gc"]);
        self.store.ok(["verify", "-q", "good:1"]);
        self.store.is_sound();
        done
    }

    /// Pulls what must be refused with this exit code and all of these words.
    #[track_caller]
    fn refuses(&self, case: &str, reference: &str, code: i32, says: &[&str]) {
        let done = self.pull(case, reference);
        assert_eq!(done.code, code, "{case}: {}", done.err);
        assert!(done.err.lines().any(|line| line.starts_with("orlop: ")), "{case}: {}", done.err);
        assert!(done.err.contains("  hint: "), "{case} does not say what to do: {}", done.err);
        for word in says {
            assert!(done.err.contains(word), "{case} does not say {word:?}: {}", done.err);
        }
    }
}

fn plain(name: &str) -> Content {
    Content::image(&Image::host().layer(Layer::new([Entry::file(name, name)])))
}

fn with_layer(layer: Layer) -> Content {
    Content::image(&Image::host().layer(layer))
}

/// The one layer of an image, as a digest.
fn layer_of(content: &Content) -> Digest {
    content.layers()[0].clone()
}

/// The same image with its manifest changed.
fn edited(content: &Content, media_type: &str, edit: impl FnOnce(&mut Value)) -> Content {
    let mut document = content.document();
    edit(&mut document);
    content.clone().with_document(media_type, document.to_string().into_bytes())
}

#[test]
fn wrong_and_short_bytes_are_refused() {
    let bench = Bench::new();
    let content = with_layer(Layer::noise("file", 3, 100_000));
    let (layer, config) = (layer_of(&content), content.image_id().unwrap().into_digest());
    let bytes = content.bytes(&layer).to_vec();
    let other = noise(9, bytes.len());
    let octets = "application/octet-stream";
    let cases: [(&str, &Digest, Answer, i32, &str); 6] = [
        ("another layer", &layer, Answer::new(octets, other), 5, "digest mismatch: expected"),
        ("a short layer", &layer, Answer::new(octets, &bytes[..5000]), 5, "expected"),
        ("a layer without bytes", &layer, Answer::new(octets, []), 5, "expected"),
        ("a long layer", &layer, Answer::new(octets, [&bytes[..], b"more"].concat()), 5, "expected"),
        ("another config", &config, Answer::new(octets, vec![b' '; content.bytes(&config).len()]), 5, "expected"),
        ("a layer that breaks off", &layer, Answer { cut: Some(0), ..Answer::new(octets, &*bytes) }, 8, "connection"),
    ];
    for (case, digest, answer, code, says) in cases {
        let name = bench.liar.put(REPOSITORY, "1", &content);
        bench.liar.blob(REPOSITORY, digest, answer);
        bench.refuses(case, &name, code, &[digest.as_str(), says]);
    }
    let name = bench.liar.put(REPOSITORY, "1", &content);
    bench.liar.forget(REPOSITORY, &layer);
    bench.refuses("a layer that is not there", &name, 3, &[layer.as_str(), "not found"]);
    let name = bench.liar.put(REPOSITORY, "1", &content);
    assert_eq!(bench.pull("the truth", &name).code, 0, "and then it is pulled");
}

#[test]
fn documents_that_no_registry_should_serve_are_refused() {
    let bench = Bench::new();
    let content = plain("document");
    let digest = content.root.digest.clone();
    bench.liar.put(REPOSITORY, "1", &content);
    let by_digest = format!("{}/{REPOSITORY}@{digest}", bench.liar.host());
    let other = plain("other");
    let lie = Answer::new(media_type::OCI_MANIFEST, other.bytes(&other.root.digest));
    bench.liar.manifest(REPOSITORY, digest.as_str(), lie);
    bench.refuses("another manifest", &by_digest, 5, &[digest.as_str(), "expected"]);

    let padded = [content.bytes(&digest), &vec![b' '; 5 << 20][..]].concat();
    let unknown = "application/vnd.example.unheard-of+json";
    let own = edited(&content, media_type::OCI_MANIFEST, |d| d["config"]["size"] = json!(5 << 20));
    let odd_size = edited(&content, media_type::OCI_MANIFEST, |d| d["config"]["size"] = json!(1));
    let two = edited(&content, media_type::OCI_MANIFEST, |d| {
        let layer = d["layers"][0].clone();
        d["layers"].as_array_mut().unwrap().push(layer);
    });
    let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let make = |media_type: &str, bytes: Vec<u8>| content.clone().with_document(media_type, bytes);
    let cases: [(&str, Content, &[&str]); 9] = [
        ("an oversized manifest", make(media_type::OCI_MANIFEST, padded), &["bytes"]),
        ("an oversized config", own, &["bytes"]),
        ("a config of another size", odd_size, &["expected"]),
        ("a manifest that is no JSON", make(media_type::OCI_MANIFEST, b"not JSON".to_vec()), &["not a valid manifest"]),
        ("a manifest that is a list", make(media_type::OCI_MANIFEST, b"[]".to_vec()), &[]),
        ("a manifest of nothing", make(media_type::OCI_MANIFEST, Vec::new()), &[]),
        ("an unknown media type", edited(&content, unknown, |d| d["mediaType"] = json!(unknown)), &[unknown]),
        ("schema 1", make(schema1, br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec()), &["schema"]),
        ("more layers than diff IDs", two, &["2 layers", "1 diff IDs"]),
    ];
    for (case, content, says) in cases {
        let name = bench.liar.put(REPOSITORY, "2", &content);
        bench.refuses(case, &name, 5, says);
    }
}

#[test]
fn indexes_without_end_are_refused() {
    let bench = Bench::new();
    let mut deep = plain("deep");
    for _ in 0..20 {
        deep = Content::index(&[deep]);
    }
    let name = bench.liar.put(REPOSITORY, "deep", &deep);
    bench.refuses("an index 20 deep", &name, 5, &["nested more than 8 deep"]);

    // No index can hold its own digest; one that pretends to is not what it says.
    let inner = plain("inner");
    let pretended = Digest::of(b"an index that names itself");
    let index = edited(&Content::index(&[inner]), media_type::OCI_INDEX, |d| {
        d["manifests"][0] = json!({ "mediaType": media_type::OCI_INDEX, "digest": pretended, "size": 300 });
    });
    let name = bench.liar.put(REPOSITORY, "loop", &index);
    let itself = Answer::new(media_type::OCI_INDEX, index.bytes(&index.root.digest));
    bench.liar.manifest(REPOSITORY, pretended.as_str(), itself);
    bench.refuses("an index that names itself", &name, 5, &[pretended.as_str(), "expected"]);

    let wide = edited(&Content::index(&[plain("wide")]), media_type::OCI_INDEX, |d| {
        let entry = |n: usize| {
            let digest = Digest::of(n.to_string().as_bytes());
            json!({ "mediaType": media_type::OCI_MANIFEST, "digest": digest, "size": 300,
                    "platform": { "os": "plan9", "architecture": format!("a{n}") } })
        };
        d["manifests"] = (0..5000).map(entry).collect();
    });
    let name = bench.liar.put(REPOSITORY, "wide", &wide);
    bench.refuses("an index of 5,000 platforms, none ours", &name, 3, &["plan9"]);
}

#[test]
fn platforms_that_are_not_there_are_said() {
    let bench = Bench::new();
    let foreign =
        |platform: &str| Content::image(&Image::new(platform).layer(Layer::new([Entry::file("f", platform)])));
    let host = Platform::host().to_string();
    let index = Content::index(&[foreign("linux/s390x"), foreign("windows/amd64")]);
    let name = bench.liar.put(REPOSITORY, "index", &index);
    bench.refuses("an index without us", &name, 3, &[&host, "linux/s390x", "windows/amd64", "--platform"]);
    let name = bench.liar.put(REPOSITORY, "single", &foreign("linux/s390x"));
    bench.refuses("an image for others", &name, 3, &[&host, "linux/s390x"]);
    let done = bench.store.run(["pull", "--platform", "nonsense/", &name]);
    assert_eq!(done.code, 2, "{}", done.err);
}

#[test]
fn foreign_layers_come_from_their_url_or_say_that_it_does_not_answer() {
    let bench = Bench::new();
    for flavour in [Flavour::Oci, Flavour::Docker] {
        let tag = format!("{flavour:?}").to_lowercase();
        let image = |url: &str| {
            let image = Image::host().layer(Layer::new([Entry::file(&*tag, "foreign")]).foreign(url));
            Content::image(&if flavour == Flavour::Docker { image.docker() } else { image })
        };
        let layer = layer_of(&image("http://unused.invalid"));
        let bytes = image("http://unused.invalid").bytes(&layer).to_vec();
        let url = bench.liar.anywhere("/elsewhere/layer", Answer::new("application/octet-stream", bytes));
        let name = bench.liar.put(REPOSITORY, &tag, &image(&url));
        bench.liar.forget(REPOSITORY, &layer);
        assert_eq!(bench.pull("a foreign layer", &name).code, 0);

        bench.liar.anywhere("/elsewhere/layer", Answer::new("application/octet-stream", "other bytes"));
        bench.refuses("a foreign layer of other bytes", &name, 5, &[layer.as_str(), "expected"]);

        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let name = bench.liar.put(REPOSITORY, &tag, &image(&format!("http://{gone}/layer")));
        bench.liar.forget(REPOSITORY, &layer);
        bench.refuses("a foreign layer that nobody serves", &name, 8, &[layer.as_str(), &gone.to_string()]);
    }
}

/// Signatures and the like have the config of an image and layers of any type.
#[test]
fn layers_of_an_unknown_media_type_are_kept_and_said_not_to_be_unpacked() {
    let bench = Bench::new();
    let strange = "application/vnd.example.strange";
    let content = edited(&plain("strange"), media_type::OCI_MANIFEST, |d| d["layers"][0]["mediaType"] = json!(strange));
    let name = bench.liar.put(REPOSITORY, "1", &content);
    let done = bench.pull("a layer of an unknown type", &name);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains(strange) && done.err.contains("cannot be unpacked"), "{}", done.err);
}

#[test]
fn no_layer_that_is_pulled_reaches_outside_and_broken_ones_are_refused() {
    if !common::is_root("no_layer_that_is_pulled_reaches_outside_and_broken_ones_are_refused") {
        return;
    }
    let bench = Bench::new();
    let aim = tempfile::tempdir().unwrap();
    let hideout = Hideout::create(aim.path()).unwrap();
    for case in corpus::broken().into_iter().chain(corpus::hostile(&hideout)) {
        let name = bench.liar.put(REPOSITORY, "corpus", &case.image());
        let done = bench.store.run(["pull", &name]);
        assert_eq!(hideout.check(), Ok(()), "{}", case.name);
        assert!(done.code != 0 || case.expect != Expect::Refused, "{} was taken", case.name);
        if done.code == 0 {
            bench.store.ok(["rm", "--no-trash", &name]);
        } else {
            done.refuses_a_layer(case.name);
        }
        assert_eq!(bench.store.records(), bench.acknowledged, "{}", case.name);
    }
    bench.store.ok(["gc"]);
    bench.store.ok(["verify", "-q", "good:1"]);
    bench.store.is_sound();
}

/// What must be refused, by the words that people get to see.
#[test]
fn a_refused_layer_is_told_by_its_digest_its_entry_and_its_rule() {
    let bench = Bench::new();
    let path = format!("{}file", "long-component-of-a-path/".repeat(200));
    let gzip = orlop_testkit::compress::gzip(&orlop_testkit::tar::tar(&[Entry::file("f", "x".repeat(10_000))]));
    let packed = |bytes: Vec<u8>| Layer::of_packed(bytes, Compression::Gzip, Vec::new());
    let cases: [(&str, Layer, &[&str]); 6] = [
        ("..", Layer::new([Entry::file("../../evil", "x")]), &["../../evil"]),
        ("a path of 5,000 bytes", Layer::new([Entry::file(path, "x")]), &["4095"]),
        ("a hard link to nothing", Layer::new([Entry::hardlink("link", "nothing")]), &["\"link\"", "\"nothing\""]),
        ("truncated gzip", packed(gzip[..gzip.len() / 2].to_vec()), &["cut short"]),
        ("trailing garbage", packed([&gzip[..], b"garbage"].concat()), &["compressed stream"]),
        ("xz", packed(b"\xfd7zXZ\0 and so on".to_vec()), &["xz", "gzip, zstd or plain tar"]),
    ];
    for (case, layer, says) in cases {
        let content = with_layer(layer);
        let name = bench.liar.put(REPOSITORY, "1", &content);
        bench.refuses(case, &name, 5, &[&[layer_of(&content).as_str()], says].concat());
    }
    let right = Layer::new([Entry::file("f", "right")]);
    let wrong = Layer::of_packed(right.bytes(), Compression::Gzip, b"wrong".to_vec());
    let name = bench.liar.put(REPOSITORY, "1", &with_layer(wrong));
    bench.refuses("a wrong diff ID", &name, 5, &["expected diff ID", right.diff_id().digest().as_str()]);
}
