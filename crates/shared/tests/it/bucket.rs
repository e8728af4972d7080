//! What a content store over a bucket has beyond the contract: parts, other gateways, ranges, redirects, the cache, damage.

use bytes::Bytes;
use orlop_content::{
    Error, IngestManager as _, IngestOptions, Ingester as _, Manager as _, Provider as _, read_verified,
};
use orlop_oci::{Algorithm, Digest, Digester};
use orlop_shared::{CacheOptions, Options, Shared};

use crate::rig::{Place, noise, put};

fn named(reference: &str) -> IngestOptions {
    IngestOptions { reference: reference.to_owned(), ..IngestOptions::default() }
}

/// An upload of several parts that goes from gateway to gateway, at places that are no ends of parts.
#[tokio::test]
async fn any_gateway_goes_on_with_an_upload() {
    let Some(place) = Place::new() else { return };
    let gateways = [place.open().await, place.open().await, place.open().await];
    let bytes = noise(27 << 20, 1);
    let cuts = [0, 10, 9 << 20, (9 << 20) + 40_000, 25 << 20, 27 << 20];
    for (i, ends) in cuts.windows(2).enumerate() {
        let store = gateways[i % 3].store();
        let mut writer = store.writer(named("upload")).await.unwrap();
        assert_eq!(writer.status().offset, ends[0] as u64);
        for start in (ends[0]..ends[1]).step_by(1 << 20) {
            writer.write(bytes.slice(start..ends[1].min(start + (1 << 20)))).await.unwrap();
        }
        let other = gateways[(i + 1) % 3].store();
        assert!(matches!(other.writer(named("upload")).await, Err(Error::Locked(_))));
        assert!(writer.release().await.unwrap());
        assert!(matches!(writer.write(Bytes::new()).await, Err(Error::NotFound { .. })), "it is spent");
    }
    let store = gateways[2].store();
    let mut writer = store.writer(named("upload")).await.unwrap();
    let digest = writer.commit(0, Some(&Digest::of(&bytes))).await.unwrap();
    assert_eq!(read_verified(&gateways[0].store(), &digest, 1 << 30).await.unwrap(), bytes);
    gateways[2].collector().sweep().await.unwrap();
    // What the upload had goes in the background; a sweep would take it in any case.
    let keys = place.keys("blobs");
    assert_eq!(keys.len(), 1, "{keys:?}");
    assert!(keys[0].starts_with(&format!("blobs/sha256/{}/{}/", &digest.hex()[..2], digest.hex())), "{keys:?}");
    assert_eq!(place.sql("SELECT count(*) FROM ingests"), "0");
}

/// A gateway that is killed leaves its ref locked for a while; what it had written down stays.
#[tokio::test]
async fn a_dead_gateways_upload_is_taken_over() {
    let Some(place) = Place::new() else { return };
    let (dead, alive) = (place.open().await, place.open().await);
    let store = dead.store();
    let mut writer = store.writer(named("upload")).await.unwrap();
    writer.write(noise(100_000, 2)).await.unwrap();
    writer.release().await.unwrap();
    let mut writer = store.writer(named("upload")).await.unwrap();
    writer.write(noise(100_000, 3)).await.unwrap();
    assert!(matches!(alive.store().writer(named("upload")).await, Err(Error::Locked(_))));
    place.sql("UPDATE ingests SET writer_until = now() - interval '1 second'");
    let mut other = alive.store().writer(named("upload")).await.unwrap();
    assert_eq!(other.status().offset, 100_000, "what was written down");
    // The first one was only slow: it changes nothing any more.
    assert!(matches!(writer.commit(0, None).await, Err(Error::NotFound { .. })));
    drop(writer);
    dead.settle().await;
    other.write(Bytes::from_static(b"!")).await.unwrap();
    let expected = Digest::of(&[noise(100_000, 2), Bytes::from_static(b"!")].concat());
    assert_eq!(other.commit(0, None).await.unwrap(), expected);
}

#[tokio::test]
async fn a_chunk_that_is_not_what_it_said_is_taken_back() {
    let Some(place) = Place::new() else { return };
    let shared = place.open().await;
    let store = shared.store();
    let bytes = noise(20 << 20, 4);
    let mut writer = store.writer(named("upload")).await.unwrap();
    writer.write(bytes.slice(..9 << 20)).await.unwrap();
    writer.release().await.unwrap();
    let mut writer = store.writer(named("upload")).await.unwrap();
    writer.write(noise(18 << 20, 5)).await.unwrap();
    assert!(matches!(writer.truncate(1 << 20).await, Err(Error::Invalid(_))));
    writer.truncate(9 << 20).await.unwrap();
    writer.write(bytes.slice(9 << 20..)).await.unwrap();
    let digest = writer.commit(0, Some(&Digest::of(&bytes))).await.unwrap();
    assert_eq!(read_verified(&store, &digest, 1 << 30).await.unwrap(), bytes);
    assert_eq!(place.sql("SELECT count(*) FROM ingests"), "0");
}

/// The client names SHA-512 when all has come: what is in the bucket already is read again.
#[tokio::test]
async fn another_algorithm_may_be_named_at_the_end() {
    let Some(place) = Place::new() else { return };
    let store = place.open().await.store();
    let bytes = noise(9 << 20, 6);
    let mut digester = Digester::new(Algorithm::Sha512);
    digester.update(&bytes);
    let digest = digester.finish();
    let mut writer = store.writer(named("upload")).await.unwrap();
    writer.write(bytes.clone()).await.unwrap();
    let wrong = Digest::of(b"");
    assert!(matches!(writer.commit(0, Some(&wrong)).await, Err(Error::DigestMismatch { .. })));
    assert_eq!(writer.commit(0, Some(&digest)).await.unwrap(), digest);
    assert_eq!(read_verified(&store, &digest, 1 << 30).await.unwrap(), bytes);
}

/// Larger than the server copies at once (5 GiB with S3, less here): it goes through the gateway in pieces.
#[tokio::test]
async fn what_the_server_does_not_copy_is_copied_in_pieces() {
    let Some(place) = Place::new() else { return };
    let mut options = place.options();
    options.bucket.copy_limit = 1 << 20;
    let store = Shared::open(options).await.unwrap().store();
    let bytes = noise(70 << 20, 7);
    let digest = put(&store, &bytes).await;
    assert_eq!(read_verified(&store, &digest, 1 << 30).await.unwrap(), bytes);
}

#[tokio::test]
async fn ranges_and_long_reads_give_the_same_bytes() {
    let Some(place) = Place::new() else { return };
    let store = place.open().await.store();
    let bytes = noise((5 << 20) + 3, 8);
    let reader = store.open(&put(&store, &bytes).await).await.unwrap();
    for (offset, length) in
        [(0, 1 << 20), (1 << 20, 1 << 20), (2 << 20, 7), ((2 << 20) + 7, 4 << 20), (5, 5), (10, 100)]
    {
        let expected = bytes.slice(offset..bytes.len().min(offset + length));
        assert_eq!(reader.read_at(offset as u64, length).await.unwrap(), expected, "{length} from {offset}");
    }
}

#[tokio::test]
async fn large_blobs_are_read_from_the_bucket_by_whom_it_sends_there() {
    let Some(place) = Place::new() else { return };
    let shared = Shared::open(Options { redirect_from: Some(1000), ..place.options() }).await.unwrap();
    let store = shared.store();
    let (small, large) = (noise(999, 9), noise(1000, 10));
    let reader = store.open(&put(&store, &small).await).await.unwrap();
    assert_eq!(reader.redirect().await.unwrap(), None);
    let reader = store.open(&put(&store, &large).await).await.unwrap();
    let url = reader.redirect().await.unwrap().unwrap();
    let client = reqwest::Client::new();
    let read = client.get(&url).send().await.unwrap();
    assert_eq!(read.status(), 200);
    assert_eq!(read.bytes().await.unwrap(), large);
    let part = client.get(&url).header("range", "bytes=10-19").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.bytes().await.unwrap()), (206, large.slice(10..20)));
    let forged = client.get(url.replace("X-Amz-Signature=", "X-Amz-Signature=0")).send().await.unwrap();
    assert_eq!(forged.status(), 403);
}

fn cached(place: &Place, directory: &std::path::Path, bytes: u64) -> Options {
    let cache = CacheOptions { directory: directory.to_owned(), bytes, largest: bytes };
    Options { cache: Some(cache), ..place.options() }
}

#[tokio::test]
async fn the_cache_keeps_what_is_used_and_trusts_no_disk() {
    let Some(place) = Place::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let shared = Shared::open(cached(&place, directory.path(), 250_000)).await.unwrap();
    let store = shared.store();
    let mut blobs = Vec::new();
    for seed in 0..3 {
        let bytes = noise(100_000, 20 + seed);
        blobs.push((put(&store, &bytes).await, bytes));
    }
    let file = |digest: &Digest| directory.path().join("blobs/sha256").join(digest.hex());
    let [first, second, third] = &blobs[..] else { unreachable!() };
    for (digest, bytes) in [first, second, first, third] {
        assert_eq!(read_verified(&store, digest, 1 << 20).await.unwrap(), bytes);
    }
    assert_eq!([first, second, third].map(|(digest, _)| file(digest).exists()), [true, false, true]);
    // What is in the cache asks nothing of the bucket.
    for key in place.keys("blobs") {
        place.delete(&key);
    }
    assert_eq!(read_verified(&store, &first.0, 1 << 20).await.unwrap(), first.1);
    assert!(store.open(&second.0).await.is_err(), "neither here nor there");
    drop((store, shared));

    // Changed on disk between two processes: hashed before it is used, and not used.
    let damaged = file(&first.0);
    std::fs::remove_file(&damaged).unwrap();
    std::fs::write(&damaged, noise(100_000, 99)).unwrap();
    let store = Shared::open(cached(&place, directory.path(), 250_000)).await.unwrap().store();
    assert!(store.open(&first.0).await.is_err());
    assert!(!damaged.exists());
    assert_eq!(read_verified(&store, &third.0, 1 << 20).await.unwrap(), third.1, "sound, and still there");
}

/// Bytes that changed in the bucket are told before they get into a cache, or, without one, by who verifies them.
#[tokio::test]
async fn damage_in_the_bucket_is_told() {
    let Some(place) = Place::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let store = place.open().await.store();
    let cached = Shared::open(cached(&place, directory.path(), 1 << 20)).await.unwrap().store();
    let digest = put(&store, &noise(10_000, 30)).await;
    let object = place.keys("blobs").remove(0);
    place.put(&object, &noise(10_000, 31));
    assert!(matches!(read_verified(&store, &digest, 1 << 20).await, Err(Error::Damaged { .. })));
    assert!(matches!(cached.open(&digest).await, Err(Error::DigestMismatch { .. })));
    place.put(&object, &noise(9_000, 31));
    assert!(read_verified(&store, &digest, 1 << 20).await.is_err());
    assert!(cached.open(&digest).await.is_err());
}

#[tokio::test]
async fn nothing_is_left_of_an_upload_that_is_dropped() {
    let Some(place) = Place::new() else { return };
    let shared = place.open().await;
    let store = shared.store();
    for round in 0..2 {
        let mut writer = store.writer(named("upload")).await.unwrap();
        writer.write(noise(17 << 20, 40)).await.unwrap();
        if round == 0 {
            writer.release().await.unwrap();
            assert_eq!(place.keys("uploads").len(), 1, "the tail");
        }
        store.abort("upload").await.unwrap();
    }
    shared.settle().await;
    assert_eq!(place.keys("uploads"), [""; 0]);
    assert_eq!(place.sql("SELECT count(*) FROM ingests"), "0");
    assert!(store.list().await.unwrap().is_empty());
}
