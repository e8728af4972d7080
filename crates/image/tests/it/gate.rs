//! Signature policy on every way in, with signatures made on the spot and a registry over loopback.

use std::io::Cursor;
use std::sync::Arc;

use crate::common::sign::{self, Signer};
use crate::common::{Made, Node, Shelf, client, layers, on};
use aws_lc_rs::signature::ECDSA_P384_SHA384_ASN1_SIGNING;
use orlop_image::{
    Cause, Error, ErrorKind, ExportRequest, Flaw, Gate, Identity, ImportAs, ImportRequest, KeyError, NameRule, Place,
    Policy, PublicKey, Refusal, Requirement, Rule, Settings, SignatureOutcome, Signed, VerifyRequest,
};
use orlop_oci::{Descriptor, Digest};

fn rule(images: &[&str], requirement: Requirement) -> Rule {
    let images = images.iter().map(|p| p.parse().unwrap()).collect();
    Rule { images, place: "policy.toml:1".to_owned(), requirement }
}

fn signed_by(keys: &[&Signer], threshold: usize, identity: Identity) -> Requirement {
    let keys = keys.iter().map(|signer| signer.key()).collect();
    Requirement::Signed(Signed { keys, threshold, identity })
}

fn gate(rules: Vec<Rule>, default: Requirement) -> Gate {
    Gate { policy: Some(Arc::new(Policy { rules, default: rule(&[], default) })), verifiers: None }
}

fn node(gate: Gate) -> Node {
    Node::with(Settings { gate, ..Settings::default() })
}

/// A node that lets in what one key signed.
fn trusting(signer: &Signer) -> Node {
    node(gate(Vec::new(), signed_by(&[signer], 1, Identity::Any)))
}

fn refusal<T: std::fmt::Debug>(result: orlop_image::Result<T>) -> Refusal {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Verification, "{error}");
    match error {
        Error::Refused(refusal) => *refusal,
        other => panic!("{other}"),
    }
}

/// The flaws of the signatures that did not count.
fn flaws(refusal: &Refusal) -> Vec<Flaw> {
    let Cause::Unsigned { found, .. } = &refusal.cause else { panic!("{refusal}") };
    let flaw = |outcome: &SignatureOutcome| match outcome {
        SignatureOutcome::Flawed(flaw) => Some(flaw.clone()),
        SignatureOutcome::Good(_) => None,
    };
    found.iter().filter_map(|c| flaw(&c.outcome)).collect()
}

fn nothing_shows(node: &Node) {
    assert!(node.names().is_empty(), "{:?}", node.names());
    assert!(node.store().leases("k8s.io", &[]).unwrap().is_empty());
    node.store().collect(orlop_metadata::gc::Disposal::Reclaim).unwrap();
    assert_eq!(node.blobs(), 0);
}

/// An image in the registry, and its name.
async fn unsigned(shelf: &Shelf) -> (Made, Descriptor, String) {
    let mut made = Made::default();
    let image = made.image("amd64", &layers()[..1]);
    shelf.push(&made, "team/app:v1", &image).await;
    (made, image, shelf.name("team/app:v1"))
}

/// The same with a signature under its tag.
async fn signed(shelf: &Shelf, signer: &Signer) -> (Descriptor, String) {
    let (mut made, image, name) = unsigned(shelf).await;
    let signature = sign::simple(&mut made, signer, &image.digest);
    shelf.push(&made, &format!("team/app:{}", sign::tag(&image.digest)), &signature).await;
    (image, name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signature_under_its_tag_lets_an_image_in_whatever_the_kind_of_key() {
    let signers = [
        Signer::new("p256.pub"),
        Signer::ecdsa("p384.pub", &ECDSA_P384_SHA384_ASN1_SIGNING),
        Signer::rsa("rsa.pub"),
        Signer::ed25519("ed25519.pub"),
    ];
    for signer in &signers {
        let shelf = Shelf::start().await;
        let (image, name) = signed(&shelf, signer).await;
        let node = trusting(signer);
        let outcome = node.pull(&name).await.unwrap_or_else(|e| panic!("{}: {e}", signer.name));
        assert_eq!(outcome.verified_by, [format!("key {}", signer.key())]);
        let record = node.store().image("k8s.io", &name).unwrap();
        let verified = &record.labels["io.orlop.verified"];
        assert_eq!(*verified, format!("{} key {}", image.digest, signer.key()));
        node.is_sound().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_among_the_referrers_lets_an_image_in() {
    for signer in [Signer::new("p256.pub"), Signer::rsa("rsa.pub"), Signer::ed25519("ed25519.pub")] {
        let shelf = Shelf::start().await;
        let (mut made, image, name) = unsigned(&shelf).await;
        let other = sign::referrer(&mut made, &image, "no bundle at all");
        shelf.push(&made, "team/app:other", &other).await;
        let bundle = sign::bundle(&mut made, &signer, &image);
        shelf.push(&made, "team/app:bundle", &bundle).await;
        let outcome = trusting(&signer).pull(&name).await.unwrap();
        assert_eq!(outcome.verified_by, [format!("key {}", signer.key())]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unsigned_image_is_refused_and_nothing_shows() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (_, image, name) = unsigned(&shelf).await;
    let node = trusting(&signer);
    let refusal = refusal(node.pull(&name).await);
    assert_eq!((&refusal.image, &refusal.digest), (&name, &image.digest));
    assert!(flaws(&refusal).is_empty());
    let text = refusal.to_string();
    for part in [&name, "policy.toml:1", "release.pub", image.digest.as_str(), "found no signature"] {
        assert!(text.contains(part), "{text} does not say {part}");
    }
    nothing_shows(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_key_is_refused() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (_, name) = signed(&shelf, &Signer::new("mallory.pub")).await;
    let node = trusting(&signer);
    assert_eq!(flaws(&refusal(node.pull(&name).await)), [Flaw::Key]);
    nothing_shows(&node);
}

/// Everything about the signature is right but what it is for: it was taken from another image.
#[tokio::test(flavor = "multi_thread")]
async fn the_signature_of_another_digest_is_refused() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (mut made, image, name) = unsigned(&shelf).await;
    let other = Digest::of(b"another image");
    let stolen = sign::simple(&mut made, &signer, &other);
    shelf.push(&made, &format!("team/app:{}", sign::tag(&image.digest)), &stolen).await;
    let bundle = sign::bundle_json(&signer, &other, sign::SIGN).to_string();
    let bundle = sign::referrer(&mut made, &image, &bundle);
    shelf.push(&made, "team/app:bundle", &bundle).await;
    let found = flaws(&refusal(trusting(&signer).pull(&name).await));
    assert_eq!(found, [Flaw::Digest(other.to_string()), Flaw::Digest(other.to_string())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_payload_is_refused() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (mut made, image, name) = unsigned(&shelf).await;
    let original = sign::payload(&Digest::of(b"another image"), "registry.example.com/app");
    let signature = signer.sign(original.as_bytes());
    let changed = sign::payload(&image.digest, "registry.example.com/app");
    let layer = sign::simple_layer(&mut made, &changed, &signature);
    let manifest = sign::simple_manifest(&mut made, &[layer]);
    shelf.push(&made, &format!("team/app:{}", sign::tag(&image.digest)), &manifest).await;
    assert_eq!(flaws(&refusal(trusting(&signer).pull(&name).await)), [Flaw::Key]);
}

/// A scan report is signed by the same key and is about the same image; it does not say that the image may be used.
#[tokio::test(flavor = "multi_thread")]
async fn an_attestation_is_no_signature() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (mut made, image, name) = unsigned(&shelf).await;
    let kind = "https://cosign.sigstore.dev/attestation/vuln/v1";
    let report = sign::bundle_json(&signer, &image.digest, kind).to_string();
    let report = sign::referrer(&mut made, &image, &report);
    shelf.push(&made, "team/app:report", &report).await;
    let found = flaws(&refusal(trusting(&signer).pull(&name).await));
    assert_eq!(found, [Flaw::Predicate(kind.to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_good_signature_among_bad_ones_is_enough() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (mut made, image, name) = unsigned(&shelf).await;
    let payload = sign::payload(&image.digest, "registry.example.com/app");
    let layers = [
        sign::simple_layer(&mut made, &payload, b"no signature"),
        sign::simple_layer(&mut made, "no payload", &signer.sign(b"no payload")),
        sign::simple_layer(&mut made, &payload, &signer.sign(payload.as_bytes())),
    ];
    let manifest = sign::simple_manifest(&mut made, &layers);
    shelf.push(&made, &format!("team/app:{}", sign::tag(&image.digest)), &manifest).await;
    trusting(&signer).pull(&name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_threshold_counts_different_keys() {
    let (shelf, one, two) = (Shelf::start().await, Signer::new("one.pub"), Signer::rsa("two.pub"));
    let (mut made, image, name) = unsigned(&shelf).await;
    let keys = [&one, &two, &Signer::new("three.pub")];
    let wanting = |count| node(gate(Vec::new(), signed_by(&keys, count, Identity::Any)));

    let payload = sign::payload(&image.digest, "registry.example.com/app");
    let twice = [0, 1].map(|_| sign::simple_layer(&mut made, &payload, &one.sign(payload.as_bytes())));
    let manifest = sign::simple_manifest(&mut made, &twice);
    shelf.push(&made, &format!("team/app:{}", sign::tag(&image.digest)), &manifest).await;
    wanting(1).pull(&name).await.unwrap();
    let refused = refusal(wanting(2).pull(&name).await);
    assert!(refused.to_string().contains("signatures by 2 of one.pub"), "{refused}");

    // The second signature has the other form, in another place.
    let bundle = sign::bundle(&mut made, &two, &image);
    shelf.push(&made, "team/app:bundle", &bundle).await;
    assert_eq!(wanting(2).pull(&name).await.unwrap().verified_by.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_repository_in_the_signature_counts_where_the_rule_says_so() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (mut made, image, name) = unsigned(&shelf).await;
    let strict = || node(gate(Vec::new(), signed_by(&[&signer], 1, Identity::Repository)));
    let put = async |made: &mut Made, reference: &str| {
        let payload = sign::payload(&image.digest, reference);
        let layer = sign::simple_layer(made, &payload, &signer.sign(payload.as_bytes()));
        let manifest = sign::simple_manifest(made, &[layer]);
        shelf.push(made, &format!("team/app:{}", sign::tag(&image.digest)), &manifest).await;
    };
    let other = shelf.name("other/app");
    put(&mut made, &other).await;
    trusting(&signer).pull(&name).await.unwrap();
    assert_eq!(flaws(&refusal(strict().pull(&name).await)), [Flaw::Identity(other)]);
    for own in [shelf.name("team/app"), shelf.name("team/app:v1")] {
        put(&mut made, &own).await;
        strict().pull(&name).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_index_the_index_is_signed() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let mut made = Made::default();
    let (image, other) = (made.image("amd64", &layers()), made.image("arm64", &layers()[..1]));
    let index = made.index(&[on(&other, "arm64"), on(&image, "amd64")]);
    shelf.push(&made, "team/app:v1", &index).await;
    let part = sign::simple(&mut made, &signer, &image.digest);
    shelf.push(&made, &format!("team/app:{}", sign::tag(&image.digest)), &part).await;
    refusal(trusting(&signer).pull(&shelf.name("team/app:v1")).await);
    trusting(&signer).pull(&shelf.name(&format!("team/app@{}", image.digest))).await.unwrap();
    let whole = sign::simple(&mut made, &signer, &index.digest);
    shelf.push(&made, &format!("team/app:{}", sign::tag(&index.digest)), &whole).await;
    let node = trusting(&signer);
    node.pull(&shelf.name("team/app:v1")).await.unwrap();
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_to_an_unsigned_image_is_refused_and_the_old_one_stays() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (image, name) = signed(&shelf, &signer).await;
    let node = trusting(&signer);
    node.pull(&name).await.unwrap();
    let before = node.names();
    let mut made = Made::default();
    let evil = made.image("amd64", &layers()[1..]);
    shelf.push(&made, "team/app:v1", &evil).await;
    assert_eq!(refusal(node.pull(&name).await).digest, evil.digest);
    assert_eq!(node.names(), before);
    assert_eq!(node.store().image("k8s.io", &name).unwrap().target.digest, image.digest);
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_rule_that_matches_counts() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (made, image, name) = unsigned(&shelf).await;
    shelf.push(&made, "free/app:v1", &image).await;
    let host = shelf.server.address();
    let rules = vec![
        rule(&[&format!("{host}/free/*")], Requirement::Accept),
        rule(&[&format!("{host}/team/*")], signed_by(&[&signer], 1, Identity::Any)),
        rule(&["*"], Requirement::Accept),
    ];
    let node = node(gate(rules, Requirement::Reject));
    let outcome = node.pull(&shelf.name("free/app:v1")).await.unwrap();
    assert!(outcome.verified_by.is_empty(), "accepted is not verified");
    let text = refusal(node.pull(&name).await).to_string();
    assert!(text.contains(&format!("the rule for {host}/team/*")), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_rule_names_falls_under_the_default() {
    let shelf = Shelf::start().await;
    let (_, _, name) = unsigned(&shelf).await;
    let node = node(gate(vec![rule(&["example.com/*"], Requirement::Accept)], Requirement::Reject));
    let refused = refusal(node.pull(&name).await);
    assert!(matches!(refused.cause, Cause::Rejected { .. }));
    assert!(refused.to_string().contains("the default rule"), "{refused}");
    nothing_shows(&node);
}

/// What a pull verified is kept: later the same is proved without the registry, and goes with the image in the end.
#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_kept_with_the_image_and_go_with_it() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (mut made, image, name) = unsigned(&shelf).await;
    let bundle = sign::bundle(&mut made, &signer, &image);
    shelf.push(&made, "team/app:bundle", &bundle).await;
    let node = trusting(&signer);
    node.pull(&name).await.unwrap();
    drop(shelf);
    node.store().collect(orlop_metadata::gc::Disposal::Reclaim).unwrap();
    let request = VerifyRequest { name: name.clone(), gate: None };
    let verdicts = node.images.verify(&node.scope, &request, None).await.unwrap();
    assert!(verdicts.iter().all(|v| v.refused.is_none()), "{verdicts:?}");
    assert_eq!(verdicts[0].verified_by, [format!("key {}", signer.key())]);
    assert_eq!(verdicts[0].signatures[0].manifest, bundle.digest);

    let names = vec![name];
    let request = orlop_image::RemoveRequest { names, no_trash: true, ..Default::default() };
    node.images.remove(&node.scope, &request).await.unwrap();
    nothing_shows(&node);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_cannot_be_asked_is_not_taken_for_one_without_signatures() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (_, _, name) = unsigned(&shelf).await;
    let node = Node::new();
    node.pull(&name).await.unwrap();
    shelf.server.shutdown().await;
    let gate = Some(gate(Vec::new(), signed_by(&[&signer], 1, Identity::Any)));
    let request = VerifyRequest { name, gate };
    let error = node.images.verify(&node.scope, &request, Some(&client())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    let verdicts = node.images.verify(&node.scope, &request, None).await.unwrap();
    assert!(verdicts[0].refused.is_some());
}

/// An archive with some names of a node that has no policy.
async fn archive(node: &Node, names: &[&str]) -> Vec<u8> {
    let names = names.iter().map(|&n| n.to_owned()).collect();
    let mut out = Cursor::new(Vec::new());
    let request = ExportRequest { names, ..Default::default() };
    node.images.export(&node.scope, &request, &mut out).await.unwrap();
    out.into_inner()
}

async fn import(node: &Node, archive: &[u8]) -> orlop_image::Result<orlop_image::Outcome> {
    node.images.import(&node.scope, &mut Cursor::new(archive), &ImportRequest::default(), &|_| {}).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_brings_its_signatures_along() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (image, name) = signed(&shelf, &signer).await;
    let free = Node::new();
    let signature = shelf.name(&format!("team/app:{}", sign::tag(&image.digest)));
    free.pull(&name).await.unwrap();
    free.pull(&signature).await.unwrap();
    let (alone, together) = (archive(&free, &[&name]).await, archive(&free, &[&name, &signature]).await);
    let only_signature = archive(&free, &[&signature]).await;
    drop(shelf);

    let node = trusting(&signer);
    refusal(import(&node, &alone).await);
    nothing_shows(&node);
    let outcome = import(&node, &together).await.unwrap();
    assert_eq!(outcome.verified_by, [format!("key {}", signer.key())]);
    assert!(node.names().contains(&signature), "a signature needs none itself");
    node.is_sound().await;

    // One after the other is as good.
    let node = trusting(&signer);
    import(&node, &only_signature).await.unwrap();
    import(&node, &alone).await.unwrap();
    refusal(import(&trusting(&Signer::new("other.pub")), &together).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layout_directory_brings_its_referrers_along() {
    let (mut made, signer) = (Made::default(), Signer::new("release.pub"));
    let image = made.image("amd64", &layers()[..1]);
    let bundle = sign::bundle(&mut made, &signer, &image);
    let directory = tempfile::tempdir().unwrap();
    let blobs = directory.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    for (digest, (_, bytes)) in &made.blobs {
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
    }
    let mut entry = serde_json::to_value(&image).unwrap();
    entry["annotations"] = serde_json::json!({"io.containerd.image.name": "registry.example.com/app:1"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [entry, bundle]});
    std::fs::write(directory.path().join("index.json"), index.to_string()).unwrap();

    let import = async |node: &Node| {
        let request = ImportRequest::default();
        node.images.import_directory(&node.scope, directory.path(), &request, &|_| {}).await
    };
    let node = trusting(&signer);
    let outcome = import(&node).await.unwrap();
    assert_eq!(outcome.verified_by, [format!("key {}", signer.key())]);
    refusal(import(&trusting(&Signer::new("other.pub"))).await);
}

/// The way of containerd's transfer service: the names are the client's, and all of them are judged.
#[tokio::test(flavor = "multi_thread")]
async fn transfers_are_judged_like_pulls_imports_and_tags() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (image, name) = signed(&shelf, &signer).await;
    let place = |name: &str| Place { name: name.to_owned(), ..Place::default() };
    let pull = async |node: &Node, to: &str| {
        node.images.pull_as(&node.scope, &client(), &name, &place(to), &|_| {}).await.map(drop)
    };
    let node = trusting(&signer);
    pull(&node, &name).await.unwrap();
    assert!(node.store().image("k8s.io", &name).unwrap().labels.contains_key("io.orlop.verified"));
    let other = trusting(&Signer::new("other.pub"));
    refusal(pull(&other, &name).await);
    nothing_shows(&other);

    let rules = vec![rule(&["example.com/kept-out/*"], Requirement::Reject)];
    let strict = self::node(gate(rules, Requirement::Accept));
    refusal(pull(&strict, "example.com/kept-out/app:1").await);
    pull(&strict, "example.com/app:1").await.unwrap();
    let tag = strict.images.tag_as(&strict.scope, "example.com/app:1", &place("example.com/kept-out/app:1")).await;
    refusal(tag);

    let free = Node::new();
    let signature = shelf.name(&format!("team/app:{}", sign::tag(&image.digest)));
    free.pull(&name).await.unwrap();
    free.pull(&signature).await.unwrap();
    let (alone, together) = (archive(&free, &[&name]).await, archive(&free, &[&name, &signature]).await);
    let prefix = NameRule { name: shelf.name("team/app"), is_prefix: true, ..NameRule::default() };
    let import = async |archive: &[u8]| {
        let node = trusting(&signer);
        let request = ImportAs { place: Place { rules: vec![prefix.clone()], ..Place::default() } };
        let result = node.images.import_as(&node.scope, &mut Cursor::new(archive), &request, &|_| {}).await;
        result.map(|_| node)
    };
    refusal(import(&alone).await.map(drop));
    let names = import(&together).await.unwrap_or_else(|e| panic!("{e}")).names();
    assert!(names.contains(&name) && names.contains(&signature), "{names:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_policy_refuses_cannot_be_given_by_tagging_either() {
    let (shelf, signer) = (Shelf::start().await, Signer::new("release.pub"));
    let (image, name) = signed(&shelf, &signer).await;
    let rules = vec![
        rule(&["example.com/kept-out/*"], Requirement::Reject),
        rule(&["example.com/free/*"], Requirement::Accept),
    ];
    let node = node(gate(rules, signed_by(&[&signer], 1, Identity::Any)));
    node.pull(&name).await.unwrap();
    let tag = async |to: &str| node.images.tag(&node.scope, &name, &[to.to_owned()], false).await;
    refusal(tag("example.com/kept-out/app:1").await);
    tag("example.com/free/app:1").await.unwrap();
    tag("example.com/any/app:1").await.unwrap();
    let label = |name: &str| node.store().image("k8s.io", name).unwrap().labels.get("io.orlop.verified").cloned();
    assert_eq!(label("example.com/free/app:1"), None);
    assert!(label("example.com/any/app:1").unwrap().starts_with(image.digest.as_str()));
}

#[test]
fn what_is_no_public_key_is_refused_with_a_reason() {
    let signer = Signer::new("release.pub");
    let read = |text: &str| PublicKey::from_pem("key", text.as_bytes());
    assert!(matches!(read(""), Err(KeyError::Count(0))));
    assert!(matches!(read(&signer.pem().repeat(2)), Err(KeyError::Count(2))));
    let private = signer.pem().replace("PUBLIC", "ENCRYPTED SIGSTORE PRIVATE");
    assert!(matches!(read(&private), Err(KeyError::Private)));
    let certificate = signer.pem().replace("PUBLIC KEY", "CERTIFICATE");
    assert!(matches!(read(&certificate), Err(KeyError::Count(0))));
    assert!(matches!(read(&signer.pem().replace("-----END", "-----EN")), Err(KeyError::Pem(_))));
    let garbage = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
    assert!(matches!(read(garbage), Err(KeyError::Unsupported)));
    assert!(matches!(read(SHORT_RSA), Err(KeyError::Weak)));
    assert!(matches!(read(&"x".repeat(1 << 20)), Err(KeyError::TooLarge { .. })));
}

/// Made by `openssl genrsa 1024`.
const SHORT_RSA: &str = "-----BEGIN PUBLIC KEY-----\n\
    MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCt9WE9azCx2wTgdqfXcAH6huzq\n\
    IpFuL5P1mVNBRJTwvDxQGNrbt+Rv9kmR4oNisZKNhtD++K4jWCj3bNS5xjeEW0FH\n\
    dp11PCA9jbneZcw09WOtfJeOTj2YjKC/rfTbOzhKIqeU2qvU5sq/quD8WHL4BC4q\n\
    AaEi3wCeFjbXQfJW6QIDAQAB\n\
    -----END PUBLIC KEY-----\n";
