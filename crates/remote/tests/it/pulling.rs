//! Servers that answer in every way but the right one, and what the client makes of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use orlop_oci::media_type::OCI_MANIFEST;
use orlop_oci::{Descriptor, Digest, MAX_MANIFEST_BYTES};
use orlop_remote::{Client, ClientOptions, Error, Tuning};

use crate::common::*;
use crate::fake::*;

fn small_ranges() -> Tuning {
    Tuning {
        parallel_from: 100_000,
        parallel_below: u64::MAX,
        probe_bytes: 32_000,
        range_bytes: 32_000,
        ranges: 4,
        ..quick()
    }
}

#[tokio::test]
async fn a_digest_that_head_does_not_say_is_computed() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let expected = document.descriptor();
    let raw = document.raw().clone();
    let fake = Fake::start(move |_| reply(200, &[("content-type", OCI_MANIFEST)], raw.clone())).await;
    let resolved = client().resolve(&fake.reference("a:1")).await.unwrap();
    assert_eq!(resolved.descriptor, expected);
    assert_eq!((fake.count("HEAD", "/v2/a/manifests/1"), fake.count("GET", "/v2/a/manifests/1")), (1, 1));
}

#[tokio::test]
async fn a_host_that_knows_no_head_and_no_media_type_is_asked_by_get() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let expected = document.descriptor();
    let raw = document.raw().clone();
    let fake = Fake::start(move |seen| match seen.method.as_str() {
        "HEAD" => status(405),
        _ => reply(200, &[("content-type", "text/plain; charset=utf-8")], raw.clone()),
    })
    .await;
    let resolved = client().resolve(&fake.reference("a:1")).await.unwrap();
    assert_eq!(resolved.descriptor, expected);
}

#[tokio::test]
async fn a_wrong_digest_is_refused_in_the_header_and_in_the_body() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let other = Digest::of(b"other");
    let (raw, header) = (document.raw().clone(), other.to_string());
    let fake = Fake::start(move |_| {
        reply(200, &[("content-type", OCI_MANIFEST), ("docker-content-digest", &header)], raw.clone())
    })
    .await;
    let wrong = fake.repository("a").with_digest(document.digest().digest());
    assert!(matches!(client().resolve(&wrong).await, Err(Error::DigestMismatch { .. })));
    let descriptor = Descriptor::new(OCI_MANIFEST, other, document.raw().len() as u64);
    let error = client().document(&fake.repository("a"), &descriptor).await.unwrap_err();
    assert!(matches!(&error, Error::DigestMismatch { actual, .. } if actual == document.digest().digest()), "{error}");
}

#[tokio::test]
async fn sha512_documents_are_checked_by_sha512() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let raw = document.raw().clone();
    let served = raw.clone();
    let fake = Fake::start(move |_| reply(200, &[("content-type", OCI_MANIFEST)], served.clone())).await;
    let mut digester = orlop_oci::Digester::new(orlop_oci::Algorithm::Sha512);
    digester.update(&raw);
    let digest = digester.finish();
    let reference = fake.repository("a").with_digest(&digest);
    let resolved = client().resolve(&reference).await.unwrap();
    assert_eq!(resolved.descriptor.digest, digest);
    let got = client().document(&fake.repository("a"), &resolved.descriptor).await.unwrap();
    assert_eq!(got.digest().digest(), &digest);
}

#[tokio::test]
async fn manifests_are_bounded_whether_their_length_is_said_or_not() {
    let endless = || futures::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 65_536])));
    let fake = Fake::start(move |seen| match (seen.method.as_str(), seen.path().contains("told")) {
        ("HEAD", _) => status(405),
        (_, true) => reply(
            200,
            &[("content-length", &(MAX_MANIFEST_BYTES + 1).to_string())],
            axum::body::Body::from_stream(endless()),
        ),
        (_, false) => reply(200, &[], axum::body::Body::from_stream(endless())),
    })
    .await;
    for name in ["told:1", "unsaid:1"] {
        let error = client().resolve(&fake.reference(name)).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn the_blob_endpoint_is_asked_after_404_only() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let raw = document.raw().clone();
    let fake = Fake::start(move |seen| match seen.path() {
        path if path.contains("/gone/manifests/") => status(404),
        path if path.contains("/closed/manifests/") => status(403),
        _ => reply(200, &[], raw.clone()),
    })
    .await;
    let digest = document.digest().digest();
    let gone = fake.repository("gone");
    let resolved = client().resolve(&gone.with_digest(digest)).await.unwrap();
    assert_eq!(resolved.descriptor, document.descriptor());
    assert_eq!(client().document(&gone, &resolved.descriptor).await.unwrap(), document);
    let closed = fake.repository("closed");
    assert!(matches!(client().resolve(&closed.with_digest(digest)).await, Err(Error::Denied { .. })));
    assert!(matches!(client().document(&closed, &document.descriptor()).await, Err(Error::Denied { .. })));
    assert_eq!(fake.count("GET", "/closed/blobs/"), 0);
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke() {
    let bytes = noise(5, 300_000);
    let served = bytes.clone();
    let fake = Fake::start(move |seen| serve_blob(seen, &served, 70_000, Then::Break)).await;
    let stream = client().blob(&fake.repository("a"), &layer(&bytes), 10_000).await.unwrap();
    let (got, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert!(got == bytes[10_000..]);
    let starts: Vec<_> = fake.seen().iter().map(|s| s.range().map_or(0, |r| r.0)).collect();
    assert!(starts.len() > 3 && starts[0] == 10_000 && starts.is_sorted(), "{starts:?}");
}

#[tokio::test]
async fn a_server_that_ignores_ranges_still_gives_the_right_bytes() {
    let bytes = noise(6, 200_000);
    let served = bytes.clone();
    let calls = AtomicUsize::new(0);
    let fake = Fake::start(move |_| {
        let most = 50_000 * (1 + calls.fetch_add(1, Ordering::SeqCst));
        let length = served.len().to_string();
        let then = if most < served.len() { Then::Break } else { Then::End };
        let part = served.slice(..most.min(served.len()));
        reply(200, &[("content-length", &length)], body(part, then))
    })
    .await;
    for (offset, tuning) in [(0, quick()), (30_000, small_ranges())] {
        let client = Client::with_tuning(ClientOptions::default(), tuning);
        let stream = client.blob(&fake.repository("a"), &layer(&bytes), offset).await.unwrap();
        let (got, error) = collect(stream).await;
        assert!(error.is_none(), "{error:?}");
        assert!(got == bytes[offset as usize..]);
    }
}

#[tokio::test]
async fn a_stalled_connection_is_replaced() {
    let bytes = noise(7, 200_000);
    for tuning in [quick(), small_ranges()] {
        let served = bytes.clone();
        let calls = AtomicUsize::new(0);
        let fake = Fake::start(move |seen| {
            let stalls = calls.fetch_add(1, Ordering::SeqCst).is_multiple_of(3);
            serve_blob(seen, &served, if stalls { 20_000 } else { usize::MAX }, Then::Stall)
        })
        .await;
        let tuning = Tuning { idle_timeout: Duration::from_millis(150), ..tuning };
        let client = Client::with_tuning(ClientOptions::default(), tuning);
        let stream = client.blob(&fake.repository("a"), &layer(&bytes), 0).await.unwrap();
        let (got, error) = collect(stream).await;
        assert!(error.is_none(), "{error:?}");
        assert!(got == bytes);
    }
}

#[tokio::test]
async fn large_blobs_come_by_parallel_ranges_in_order() {
    let bytes = noise(8, 500_001);
    let served = bytes.clone();
    let fake = Fake::start(move |seen| serve_blob(seen, &served, usize::MAX, Then::End)).await;
    let client = Client::with_tuning(ClientOptions::default(), small_ranges());
    let stream = client.blob(&fake.repository("a"), &layer(&bytes), 7).await.unwrap();
    let (got, error) = collect(stream).await;
    assert!(error.is_none(), "{error:?}");
    assert!(got == bytes[7..]);
    assert_eq!(fake.seen().len(), (500_001usize - 7).div_ceil(32_000));
}

#[tokio::test]
async fn a_fast_sender_gives_the_rest_by_one_request() {
    let bytes = noise(8, 500_000);
    let served = bytes.clone();
    let fake = Fake::start(move |seen| serve_blob(seen, &served, usize::MAX, Then::End)).await;
    let tuning = Tuning { parallel_below: 0, ..small_ranges() };
    let client = Client::with_tuning(ClientOptions::default(), tuning);
    let (got, error) = collect(client.blob(&fake.repository("a"), &layer(&bytes), 0).await.unwrap()).await;
    assert!(error.is_none() && got == bytes, "{error:?}");
    let ranges: Vec<_> = fake.seen().iter().map(|s| s.range().unwrap()).collect();
    assert_eq!(ranges, [(0, Some(32_000)), (32_000, None)]);
}

#[tokio::test]
async fn a_range_that_keeps_the_reader_waiting_gets_another_connection() {
    let bytes = noise(8, 200_000);
    let served = bytes.clone();
    let stalled = AtomicUsize::new(0);
    let fake = Fake::start(move |seen| {
        let stalls = seen.range().unwrap().0 == 64_000 && stalled.fetch_add(1, Ordering::SeqCst) == 0;
        serve_blob(seen, &served, if stalls { 10_000 } else { usize::MAX }, Then::Stall)
    })
    .await;
    let tuning =
        Tuning { slow_range: Duration::from_millis(100), idle_timeout: Duration::from_secs(600), ..small_ranges() };
    let client = Client::with_tuning(ClientOptions::default(), tuning);
    let (got, error) = collect(client.blob(&fake.repository("a"), &layer(&bytes), 0).await.unwrap()).await;
    assert!(error.is_none() && got == bytes, "{error:?}");
    assert!(fake.seen().iter().any(|s| s.range() == Some((74_000, Some(96_000)))), "it did not go on where it stood");
}

#[tokio::test]
async fn no_more_ranges_are_asked_for_than_the_bound_while_nobody_reads() {
    let bytes = noise(8, 500_000);
    let served = bytes.clone();
    let fake = Fake::start(move |seen| serve_blob(seen, &served, usize::MAX, Then::End)).await;
    let client = Client::with_tuning(ClientOptions::default(), small_ranges());
    let mut stream = client.blob(&fake.repository("a"), &layer(&bytes), 0).await.unwrap();
    let mut read = 0;
    while read < 40_000 {
        read += stream.next().await.unwrap().unwrap().len();
    }
    // The first one, and four at once.
    assert!(fake.seen().len() <= 5, "{}", fake.seen().len());
}

#[tokio::test]
async fn more_bytes_than_the_descriptor_says_are_an_error() {
    let bytes = noise(9, 60_000);
    let short = Descriptor { size: 50_000, ..layer(&bytes) };
    let served = bytes.clone();
    // Once with a length that gives it away, once without.
    let fake = Fake::start(move |seen| match seen.path().contains("told") {
        true => serve_blob(seen, &served, usize::MAX, Then::End),
        false => reply(200, &[], body(served.clone(), Then::End)),
    })
    .await;
    let said = client().blob(&fake.repository("told"), &short, 0).await.map(drop);
    assert!(matches!(said, Err(Error::SizeMismatch { expected: 50_000, actual: 60_000, .. })), "{said:?}");
    let stream = client().blob(&fake.repository("unsaid"), &short, 0).await.unwrap();
    let (got, error) = collect(stream).await;
    assert!(matches!(error, Some(Error::SizeMismatch { expected: 50_000, .. })), "{error:?}");
    assert!(got.len() <= 50_000);
    // The surplus may come after the last good byte.
    let exact = Descriptor { size: 49_152, ..layer(&bytes) };
    let (_, error) = collect(client().blob(&fake.repository("unsaid"), &exact, 0).await.unwrap()).await;
    assert!(matches!(error, Some(Error::SizeMismatch { .. })), "{error:?}");
}

#[tokio::test]
async fn fewer_bytes_than_the_descriptor_says_are_an_error_in_the_end() {
    let bytes = noise(10, 50_000);
    let long = Descriptor { size: 60_000, ..layer(&bytes) };
    let served = bytes.clone();
    let fake = Fake::start(move |seen| match seen.range() {
        None => reply(200, &[], body(served.clone(), Then::End)),
        Some(_) => status(416),
    })
    .await;
    let (got, error) = collect(client().blob(&fake.repository("a"), &long, 0).await.unwrap()).await;
    assert_eq!(got.len(), 50_000);
    let error = error.expect("an error");
    assert!(matches!(error, Error::Status { status: 416, .. } | Error::SizeMismatch { .. }), "{error}");
}

#[tokio::test]
async fn wrong_content_ranges_are_refused() {
    let bytes = noise(11, 1000);
    for wrong in ["bytes 0-499/1000", "bytes 500-999/2000", "nonsense"] {
        let served = bytes.clone();
        let fake = Fake::start(move |_| reply(206, &[("content-range", wrong)], served.slice(500..))).await;
        let result = client().blob(&fake.repository("a"), &layer(&bytes), 500).await.map(drop);
        assert!(matches!(result, Err(Error::Protocol { .. } | Error::SizeMismatch { .. })), "{wrong}: {result:?}");
    }
}

#[tokio::test]
async fn a_packed_body_is_refused() {
    let fake = Fake::start(|_| reply(200, &[("content-encoding", "gzip")], "xxxx")).await;
    let result = client().blob(&fake.repository("a"), &layer(&noise(1, 4)), 0).await.map(drop);
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    assert_eq!(fake.seen()[0].header("accept-encoding"), Some("identity"));
}

#[tokio::test]
async fn retry_after_is_obeyed_within_reason() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let calls = AtomicUsize::new(0);
    let fake = Fake::start(move |seen| match seen.path().contains("patient") {
        true if calls.fetch_add(1, Ordering::SeqCst) < 2 => reply(429, &[("retry-after", "0")], "slow down"),
        true => good(seen, &document, &Bytes::new()),
        false => reply(
            429,
            &[("retry-after", "86400")],
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit"}]}"#,
        ),
    })
    .await;
    client().resolve(&fake.reference("patient:1")).await.unwrap();
    assert_eq!(fake.count("HEAD", "patient"), 3);
    let blob = layer(&noise(1, 4));
    let error = client().blob(&fake.repository("strict"), &blob, 0).await.map(drop).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::TooManyRequests { retry_after: Some(_), .. }), "{text}");
    assert!(text.contains("pull rate limit") && text.contains("86400"), "{text}");
    assert!(error.is_temporary());
    assert_eq!(fake.count("GET", "strict"), 1);
}

#[tokio::test]
async fn passing_failures_are_tried_again_and_lasting_ones_are_told() {
    let document = manifest(&noise(1, 10), &layer(&noise(2, 10)), "");
    let calls = AtomicUsize::new(0);
    let fake = Fake::start(move |seen| match seen.path().contains("passing") {
        true => match calls.fetch_add(1, Ordering::SeqCst) {
            0 => status(503),
            1 => status(502),
            _ => good(seen, &document, &Bytes::new()),
        },
        false => status(500),
    })
    .await;
    client().resolve(&fake.reference("passing:1")).await.unwrap();
    let error = client().resolve(&fake.reference("lasting:1")).await.unwrap_err();
    assert!(matches!(error, Error::Status { status: 500, .. }) && error.is_temporary(), "{error}");
    assert_eq!(fake.count("HEAD", "lasting"), 4);
}

#[tokio::test]
async fn refused_connections_and_unknown_names_say_so() {
    let tuning = Tuning { attempts: 2, ..quick() };
    let client = Client::with_tuning(ClientOptions::default(), tuning);
    let error = client.resolve(&format!("{}/a:1", free_address()).parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.to_string().contains("refused"), "{error}");
    let error = client.resolve(&"no-such-host.invalid/a:1".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Dns { .. }), "{error}");
}

#[tokio::test]
async fn foreign_layers_come_from_their_urls() {
    let bytes = noise(12, 5000);
    let served = bytes.clone();
    let elsewhere = Fake::start(move |seen| serve_blob(seen, &served, 2000, Then::Break)).await;
    let registry = Fake::start(|_| status(404)).await;
    let url = format!("http://{}/layer.tar.gz", elsewhere.address);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let mut descriptor = Descriptor { urls: vec!["ftp://x/y".to_owned(), url], ..layer(&bytes) };
    let ordinary = client().blob(&registry.repository("a"), &descriptor, 0).await.map(drop);
    assert!(matches!(ordinary, Err(Error::NotFound { .. })), "{ordinary:?}");
    assert!(elsewhere.seen().is_empty());
    descriptor.media_type = foreign.to_owned();
    let (got, error) = collect(client().blob(&registry.repository("a"), &descriptor, 0).await.unwrap()).await;
    assert!(error.is_none() && got == bytes, "{error:?}");
}
