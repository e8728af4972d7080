//! Blobs from nearby: whoever gives them, and whatever they give.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use orlop_content::BlobReader;
use orlop_image::{
    Bringer, End, Given, Mending, Neighbourhood, Neighbours, Opening, Relay, RepairRequest, Source, Wanted,
};
use orlop_oci::{Descriptor, Digest};

use crate::common::{Made, Node, Shelf, client, layers};

/// How a neighbour gives a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Truly,
    /// Other bytes, as many.
    Falsely,
    /// The same tar, packed otherwise: what it unpacks to is right, and the blob is not.
    Otherwise,
    /// Not to its end.
    Half,
    /// And then more.
    Surplus,
}

/// Neighbours that are told how to give.
struct Told {
    blobs: BTreeMap<Digest, Bytes>,
    manner: Manner,
    asked: Mutex<Vec<(Digest, u64)>>,
    disproved: Mutex<Vec<(Digest, Vec<String>, bool)>>,
    /// What was told of blobs while they came.
    relayed: Arc<Mutex<Vec<(Digest, String)>>>,
}

/// Writes down what is told of a blob.
struct Heard {
    digest: Digest,
    bytes: Arc<dyn BlobReader>,
    log: Arc<Mutex<Vec<(Digest, String)>>>,
    ended: AtomicBool,
}

impl Heard {
    fn note(&self, what: impl Into<String>) {
        self.log.lock().unwrap().push((self.digest.clone(), what.into()));
    }
}

impl Relay for Heard {
    fn fed(&self, by: Option<Source>, host: &str) {
        self.note(format!("{} {host}", by.map_or("nobody", Source::as_str)).trim_end());
    }

    fn has(&self, bytes: u64) {
        let length = bytes.try_into().unwrap();
        let read = self.bytes.read_at(0, length).now_or_never().unwrap().unwrap();
        assert_eq!(read.len(), length, "what is told of is there");
        self.note(format!("has {bytes}"));
    }

    fn ended(&self, is_right: bool) {
        if !self.ended.swap(true, Ordering::SeqCst) {
            self.note(if is_right { "right" } else { "wrong" });
        }
    }
}

impl Told {
    fn new(made: &Made, manner: Manner) -> Arc<Self> {
        let blobs = made.blobs.iter().map(|(digest, (_, bytes))| (digest.clone(), bytes.clone())).collect();
        Arc::new(Self { blobs, manner, asked: Mutex::default(), disproved: Mutex::default(), relayed: Arc::default() })
    }

    fn disproved(&self) -> Vec<(Digest, Vec<String>, bool)> {
        self.disproved.lock().unwrap().clone()
    }
}

#[async_trait]
impl Neighbours for Told {
    async fn open(&self, wanted: Wanted<'_>) -> Opening {
        self.asked.lock().unwrap().push((wanted.digest.clone(), wanted.offset));
        let Some(bytes) = self.blobs.get(wanted.digest) else { return Opening::default() };
        let rest = bytes.slice(wanted.offset as usize..);
        let pieces: Vec<Result<Bytes, String>> = match self.manner {
            _ if wanted.is_document => vec![Ok(rest)],
            Manner::Truly => rest.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect(),
            Manner::Falsely => vec![Ok(vec![7; rest.len()].into())],
            Manner::Otherwise => vec![Ok(otherwise(bytes).slice(wanted.offset as usize..))],
            Manner::Half => vec![Ok(rest.slice(..rest.len() / 2)), Err("broke off".into())],
            Manner::Surplus => vec![Ok(rest), Ok(Bytes::from_static(b"more"))],
        };
        let given =
            Given { host: "a".into(), from: wanted.offset, had: None, stream: Box::pin(futures::stream::iter(pieces)) };
        Opening { asked: Vec::new(), given: Some(given) }
    }

    fn relay(&self, wanted: Wanted<'_>, bytes: Arc<dyn BlobReader>) -> Option<Arc<dyn Relay>> {
        assert_eq!(wanted.size, Some(bytes.size()));
        let (digest, log) = (wanted.digest.clone(), Arc::clone(&self.relayed));
        Some(Arc::new(Heard { digest, bytes, log, ended: AtomicBool::new(false) }))
    }

    fn disproved(&self, digest: &Digest, givers: &[String], alone: bool) {
        self.disproved.lock().unwrap().push((digest.clone(), givers.to_vec(), alone));
    }

    fn report(&self) -> Neighbourhood {
        Neighbourhood::default()
    }
}

/// The operating system in a gzip header says nothing of what is packed.
fn otherwise(gzip: &Bytes) -> Bytes {
    let mut bytes = gzip.to_vec();
    if bytes.starts_with(&[0x1f, 0x8b]) {
        bytes[9] ^= 0x55;
    }
    bytes.into()
}

async fn pulled(manner: Manner) -> (Node, Arc<Told>, Made, Descriptor) {
    let (node, shelf, mut made) = (Node::new(), Shelf::start().await, Made::default());
    let image = made.image("amd64", &layers());
    shelf.push(&made, "team/app:v1", &image).await;
    let told = Told::new(&made, manner);
    node.images.set_nearby(Some(told.clone()));
    node.pull(&shelf.name("team/app:v1")).await.unwrap();
    node.is_sound().await;
    assert_eq!(node.snapshots().len(), 3, "{manner:?}");
    (node, told, made, image)
}

/// Who gave anything of a blob.
fn sources(node: &Node, digest: &Digest) -> Vec<Source> {
    let blobs = node.images.ledger().of(std::slice::from_ref(digest));
    let asked = blobs.into_iter().rev().flat_map(|blob| blob.asked);
    asked.filter(|asking| asking.bytes > 0).map(|asking| asking.source).collect()
}

fn layers_of(made: &Made, image: &Descriptor) -> Vec<Digest> {
    made.order
        .iter()
        .filter(|digest| **digest != image.digest && *digest.as_str() != *made.image_id(image))
        .cloned()
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_true_comes_from_nearby_alone() {
    let (node, told, made, image) = pulled(Manner::Truly).await;
    for digest in &made.order {
        assert_eq!(sources(&node, digest), [Source::Neighbour], "{digest}");
    }
    assert_eq!(node.images.pulled_bytes(), 0);
    assert!(told.disproved().is_empty());
    assert!(told.asked.lock().unwrap().iter().any(|(digest, _)| *digest == image.digest));
}

/// What the disk has lost is fetched again from whoever has the digest: here its registry is gone.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_lost_is_mended_from_nearby_while_the_registry_is_away() {
    let (node, told, made, image) = pulled(Manner::Truly).await;
    let lost = layers_of(&made, &image).swap_remove(1);
    let path = node.root.join("content/blobs/sha256").join(lost.hex());
    std::fs::remove_file(&path).unwrap();
    told.asked.lock().unwrap().clear();
    let (client, request) = (client(), RepairRequest::default());
    let repair = async |request| {
        let done = node.images.repair(&node.scope, Bringer::Registries(&client), request, &|_| {}).await;
        done.unwrap().mendings
    };
    node.images.set_nearby(None);
    let left = repair(&request).await;
    assert!(matches!(&left[..], [Mending { end: End::Left { .. }, .. }]), "nobody has it: {left:?}");
    node.images.set_nearby(Some(told.clone()));
    let mended = repair(&request).await;
    assert!(matches!(&mended[..], [Mending { end: End::Mended { .. }, .. }]), "{mended:?}");
    assert_eq!(*told.asked.lock().unwrap(), [(lost.clone(), 0)]);
    assert_eq!(Digest::of(&std::fs::read(&path).unwrap()), lost);
    node.is_sound().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_fetched_anew_from_the_registry_and_told() {
    for manner in [Manner::Falsely, Manner::Otherwise] {
        let (node, told, made, image) = pulled(manner).await;
        let layers = layers_of(&made, &image);
        for layer in &layers {
            assert_eq!(sources(&node, layer), [Source::Neighbour, Source::Registry], "{manner:?}");
            let of_layer: Vec<_> = told.disproved().into_iter().filter(|(digest, ..)| digest == layer).collect();
            assert_eq!(of_layer, [(layer.clone(), vec!["a".to_owned()], true)], "{manner:?}");
        }
        assert_eq!(layers.len(), 3);
        if manner == Manner::Falsely {
            // The config too, which is hashed before anybody sees it.
            assert_eq!(told.disproved().len(), 4);
        }
    }
}

/// Others are told whoever gives a blob, how far it is, and at last whether it is right, which it is not before it was hashed.
#[tokio::test(flavor = "multi_thread")]
async fn neighbours_are_told_how_a_blob_comes() {
    for (manner, expected) in [
        (Manner::Truly, &["nobody", "neighbour a", "right"][..]),
        (Manner::Half, &["nobody", "neighbour a", "nobody", "registry", "right"]),
        (Manner::Falsely, &["nobody", "neighbour a", "wrong", "nobody", "registry", "right"]),
    ] {
        let (_node, told, made, image) = pulled(manner).await;
        for layer in layers_of(&made, &image) {
            let size = made.blobs[&layer].1.len();
            let log = told.relayed.lock().unwrap();
            let of_layer = log.iter().filter(|(digest, _)| *digest == layer).map(|(_, what)| what.as_str());
            let (has, mut rest): (Vec<&str>, Vec<&str>) = of_layer.partition(|what| what.starts_with("has "));
            assert_eq!(
                (has.first(), has.last()),
                (Some(&"has 0"), Some(&format!("has {size}").as_str())),
                "{manner:?}"
            );
            // One neighbour after the other may break off.
            while manner == Manner::Half && rest[1..].starts_with(&["neighbour a", "nobody", "neighbour a"]) {
                rest.drain(1..3);
            }
            assert_eq!(rest, expected, "{manner:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_off_goes_on_elsewhere_from_there() {
    let (node, told, made, image) = pulled(Manner::Half).await;
    for layer in layers_of(&made, &image) {
        let found = sources(&node, &layer);
        assert_eq!((found.first(), found.last()), (Some(&Source::Neighbour), Some(&Source::Registry)), "{found:?}");
    }
    let offsets = told.asked.lock().unwrap().iter().filter(|(_, offset)| *offset > 0).count();
    assert!(offsets >= 3, "others are asked from where one broke off");
    assert!(told.disproved().is_empty(), "what came was right");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_more_than_the_blob_is_not_taken() {
    let (node, told, made, image) = pulled(Manner::Surplus).await;
    for layer in layers_of(&made, &image) {
        assert_eq!(sources(&node, &layer), [Source::Neighbour]);
    }
    assert!(told.disproved().iter().all(|(digest, ..)| digest.as_str() == made.image_id(&image)));
}
